#pragma once
// Names of generated code for perf, which looks for them in /tmp/perf-PID.map: ANYKVM_PERF_MAP=1 switches
// this on, ANYKVM_PERF_MAP=FILE also names blocks of the guest's kernel after FILE, a System.map or
// /proc/kallsyms of it. Owner: the process; one file for all of its VMs. Any thread.

#include <map>
#include <string>
#include <string_view>

#include "x86/translate/block.h"

namespace anykvm::x86 {

// Addresses and names of a guest kernel.
class GuestSymbols {
 public:
  // Lines "address type name", as nm and the kernel write them; others are skipped.
  static GuestSymbols parse(std::string_view text);
  // "name+0x12", or an empty string for an address before the first symbol.
  std::string name_of(u64 address) const;

 private:
  std::map<u64, std::string> m_names;
};

// "guest kernel name+0x12" or "guest user 0x401000", and the width of the code if it is not 64 bits.
std::string block_name(const Block& block, u64 rip, const GuestSymbols& symbols);

namespace perf_map {
bool enabled();
// `rip`: where it was found first.
void add(const Block& block, u64 rip);
void add(const u8* code, std::size_t size, std::string_view name);
}  // namespace perf_map

}  // namespace anykvm::x86
