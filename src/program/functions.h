#pragma once
// The functions of a loaded program, as its unwind tables give them (LSB 10.6, ".eh_frame_hdr").
// Owner: nobody; looks at what the dynamic linker has mapped. Any thread.

#include <link.h>

#include <optional>
#include <vector>

#include "base/types.h"

namespace anykvm::program {

struct Range {
  const u8* begin;
  const u8* end;
  bool has(const u8* at) const { return at >= begin && at < end; }
};

class Functions {
 public:
  // `table` is the segment PT_GNU_EH_FRAME. Tables in another form than linkers make them hold no function.
  explicit Functions(const u8* table) : m_table(table) {}

  // The function that `pc` lies in.
  std::optional<Range> around(const u8* pc) const;

 private:
  const u8* m_table;
};

// Segments of a program.
struct Image {
  std::vector<Range> code;
  const u8* unwind_table = nullptr;
};
// Of one whose program headers say so, mapped `moved` behind the addresses that they name.
Image program_with(const Elf64_Phdr* headers, unsigned count, u64 moved);
// The one that the dynamic linker started.
Image main_program();

}  // namespace anykvm::program
