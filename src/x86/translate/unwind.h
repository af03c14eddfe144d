#pragma once
// Tells unwinders how to get through generated code, so that debuggers, profilers, backtrace(3) and thread
// cancellation see who called KVM_RUN: DWARF call frame information for the thunks and for all blocks,
// registered with the C++ runtime, and with gdb by its JIT interface together with names. Owner: CodeCache.
// Built before any vCPU runs, immutable afterwards.
//
// Blocks leave the host's RSP alone (only a call of a thunk pushes its return address), so one row describes
// all of them.

#include <memory>
#include <string>
#include <vector>

#include "base/types.h"

namespace anykvm::x86 {

// From `offset` in its function on, the frame's caller had RSP = RSP + `cfa` - 8 when it called, and if
// `saved`, RBX, RBP and R12 to R15 are on the stack below the return address, in this order.
struct FrameRow {
  unsigned offset = 0;
  unsigned cfa = 8;
  bool saved = false;

  bool operator==(const FrameRow&) const = default;
};

struct GeneratedFunction {
  std::string name;
  const u8* begin = nullptr;
  std::size_t size = 0;
  std::vector<FrameRow> rows;  // ascending offsets, the first one 0
};

// What thunks.cpp pushes between the return address to C++ and blocks: six registers and eight bytes for
// alignment.
inline constexpr unsigned kBlockCfa = 8 + 6 * 8 + 8;

class UnwindInfo {
 public:
  explicit UnwindInfo(std::vector<GeneratedFunction> functions);
  ~UnwindInfo();
  UnwindInfo(const UnwindInfo&) = delete;
  UnwindInfo& operator=(const UnwindInfo&) = delete;

 private:
  struct GdbEntry;

  std::vector<u8> m_frames;  // the contents of an .eh_frame section
  std::vector<u8> m_object;  // the same in an ELF object, for gdb
  std::unique_ptr<GdbEntry> m_gdb_entry;
};

// The contents of an .eh_frame section, with the zero that ends it.
std::vector<u8> make_eh_frame(const std::vector<GeneratedFunction>& functions);

}  // namespace anykvm::x86
