#pragma once
// The ACPI tables that describe the machine: RSDP, XSDT, FADT, FACS, MADT and a DSDT that knows how to switch
// off. Owner: nobody; a pure function. Any thread.

#include <vector>

#include "base/types.h"

namespace anykvm::vmm {

// The tables as one block to be placed at `address`; the RSDP is its first bytes. `apic_ids` has one entry
// per vCPU.
std::vector<u8> build_acpi_tables(Gpa address, const std::vector<u32>& apic_ids);

}  // namespace anykvm::vmm
