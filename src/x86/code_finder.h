#pragma once
// From the CPU's RIP to translated code: fetch checks and page walk, the blocks found lately, the code cache,
// translation. Owner: the Dispatcher of one Cpu::run(). Only the vCPU's thread, between blocks.

#include "x86/cpu_private.h"

namespace anykvm::x86 {

class CodeFinder {
 public:
  CodeFinder(Cpu& cpu, Cpu::Private& p);

  // The block at the state's RIP for `mode`. Null: Context::leave and ::stop say why not.
  Block* find(const Mode& mode);
  // What the jump cache is to know of the block that find() gave.
  JumpedTo way_to(const Block& block) const;
  // An interrupt has come at the state's RIP: where user code runs is what its pages' translation goes by.
  void sample();

 private:
  Block* stop_with(const GuestStop& stop);
  Block* look_again();
  Block* find_at(const CodeSource& source);
  bool continues_on(const Block& block, Gva linear);
  void look_at(FetchCache::Entry& page);
  Gva next_page(Gva linear) const;
  Guest<Gva> fetch_address(u64* room);
  Guest<void> fetch_page(Gva linear, FetchCache::Entry** out);
  Block* translate(const CodeSource& source, Gva linear, u64 room);
  bool claim(Gpa address);
  Block* translate_straddling(CodeSource source, Gva linear, u64 room);
  Block* try_again(Untranslated why);

  Cpu& m_cpu;
  Cpu::Private& m_private;
  Context& m_context;
  CpuState& m_state;
  CodeCache& m_code;
  const FetchCache::Entry* m_page = nullptr;  // that find() fetched from
};

}  // namespace anykvm::x86
