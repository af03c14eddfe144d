#pragma once
// The file of a statically linked program, and its place in memory. Owner: nobody; functions without state.

#include <elf.h>

#include "base/expected.h"
#include "base/types.h"

namespace anykvm::resident {

// A 64-bit x86 program that needs no dynamic linker. Also in a trap.
bool is_static_program(const char* path);
// Parts of such a file. False: it is none.
bool read_header(long fd, Elf64_Ehdr& header);
bool read_segment(long fd, const Elf64_Ehdr& header, unsigned number, Elf64_Phdr& segment);

struct Image {
  u64 entry = 0;
  u64 program_headers = 0;  // where the program finds its own
  unsigned header_count = 0;
  u64 moved = 0;                 // what is added to the addresses in the file
  bool mentions_device = false;  // its read-only memory has the text "/dev/kvm"
};

// Before the program starts.
Result<Image> map_program(const char* path);

}  // namespace anykvm::resident
