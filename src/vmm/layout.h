#pragma once
// Where the VMM puts things in guest-physical memory and on the ports, before the guest runs.
// Owner: nobody; constants. Any thread.

#include "base/types.h"

namespace anykvm::vmm {

// Low memory, all inside the e820 RAM below 640 KiB that Linux keeps clear until it has copied what it needs.
inline constexpr Gpa kGdtAddress{0x500};
inline constexpr Gpa kBootParamsAddress{0x7000};
inline constexpr u64 kBootStackTop = 0x8ff0;
inline constexpr Gpa kPageTablesAddress{0x9000};  // PML4, PDPT, four page directories: 6 pages
inline constexpr Gpa kCommandLineAddress{0x20000};
inline constexpr u64 kCommandLineMax = 0x10000;
inline constexpr u64 kLowRamEnd = 0x9fc00;   // the extended BIOS data area follows
inline constexpr Gpa kAcpiAddress{0xe0000};  // where a scan for the RSDP starts (ACPI 6.5, 5.2.5.1)
inline constexpr u64 kAcpiSize = 0x20000;
inline constexpr Gpa kHighRamStart{0x100000};

// Above RAM, below 4 GiB.
inline constexpr Gpa kBootTimerAddress{0xd0000000};  // a guest's write here says "booted"
inline constexpr u32 kIoapicAddress = 0xfec00000;
inline constexpr u32 kLapicAddress = 0xfee00000;
inline constexpr u64 kIdentityMapAddress = 0xfeffc000;  // one page, needed by some Intel CPUs' KVM
inline constexpr u64 kTssAddress = 0xfeffd000;          // three pages, likewise

inline constexpr u16 kI8042Port = 0x60, kRtcPort = 0x70, kSerialPort = 0x3f8, kAcpiPmPort = 0x600,
                     kResetPort = 0xcf9;
inline constexpr u32 kSerialIrq = 4, kRtcIrq = 8, kSciIrq = 9;

}  // namespace anykvm::vmm
