#pragma once
// The state in which the 64-bit boot protocol wants the first CPU: long mode on identity page tables, flat
// segments, RSI at the zero page. Owner: nobody; functions on the machine before it runs. Any one thread.

#include <linux/kvm.h>

#include "vmm/guest_memory.h"

namespace anykvm::vmm {

// Writes the GDT and page tables that map the first 4 GiB one to one.
void write_boot_tables(const GuestMemory& memory);

// `sregs` as KVM_GET_SREGS returned it.
void set_boot_sregs(kvm_sregs& sregs);
kvm_regs boot_regs(Gpa entry);

}  // namespace anykvm::vmm
