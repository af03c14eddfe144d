#pragma once
// What a kernel file says about itself, checked against the file's size: bzImage setup header or ELF program
// headers. Owner: nobody; plain values that point into the file's bytes. Any thread.

#include <asm/bootparam.h>

#include <span>
#include <vector>

#include "base/types.h"
#include "vmm/failure.h"

namespace anykvm::vmm {

struct LoadSegment {
  Gpa target;
  std::span<const u8> bytes;
  u64 memory_size;  // zeros follow the bytes up to here
};

struct KernelImage {
  std::vector<LoadSegment> segments;
  Gpa entry;
  setup_header header{};     // a bzImage's own, or what a vmlinux needs
  std::vector<u8> unpacked;  // keeps alive what `segments` point to, if that is not the file
  // All memory the kernel uses before it reads the memory map; initrd and boot data stay out of it.
  Gpa start;
  Gpa end;
};

Outcome<KernelImage> parse_kernel(std::span<const u8> file);
Outcome<KernelImage> parse_elf(std::span<const u8> file);

// The vmlinux that a bzImage carries, for a guest too small for a bzImage to unpack itself: moved down as far
// as its alignment allows, which a 64-bit Linux copes with, and without the randomization that the bzImage's
// own code does.
Outcome<KernelImage> parse_kernel_inside(std::span<const u8> bzimage);

}  // namespace anykvm::vmm
