#pragma once
// Puts a Linux kernel, its initrd and its command line into guest memory and says where to start: the 64-bit
// boot protocol (Documentation/arch/x86/boot.rst) for bzImage and for ELF vmlinux. Owner: nobody; functions
// on the machine's memory before it runs. Any one thread.

#include <optional>
#include <span>
#include <string>

#include "base/types.h"
#include "vmm/failure.h"
#include "vmm/guest_memory.h"

namespace anykvm::vmm {

struct BootImages {
  std::span<const u8> kernel;
  std::span<const u8> initrd;  // empty: none
  std::string command_line;
};

// Returns the 64-bit entry point. The zero page is at kBootParamsAddress, the ACPI RSDP must be at
// kAcpiAddress.
Outcome<Gpa> load_linux(const GuestMemory& memory, const BootImages& images);

// The defaults, then what the user asked for: Linux takes the last of two contradicting parameters, and
// several console= add up with the last one as /dev/console, so `append` wins.
std::string command_line_with_defaults(const std::string& append);

}  // namespace anykvm::vmm
