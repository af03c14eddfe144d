#pragma once
// Descriptors and segment loads (SDM 3A 3.4, 5.5-5.8).
// Owner: nobody; functions over a Cpu. Only the vCPU's thread.

#include <optional>

#include "x86/cpu.h"
#include "x86/fault.h"
#include "x86/state/segment_types.h"

namespace anykvm::x86 {

// The hidden part of a segment as an 8-byte descriptor `low` and, for 64-bit system segments, its upper half
// give it.
Segment segment_from_descriptor(u16 selector, u64 low, u64 high = 0);

// What a segment register holds after a null selector was loaded.
Segment null_segment(u16 selector, u8 dpl = 0);

// Loads ES, DS, SS, FS or GS by MOV, POP or Lxx: all checks, sets the accessed flag. In real and virtual-8086
// mode just sets the base. Calls mode_changed(). CS goes through far transfers only.
Guest<void> load_segment(Cpu& cpu, SegmentIndex segment, u16 selector);

// Real-address and virtual-8086 mode: selector and base; in virtual-8086 mode the other fields as well (SDM
// 3B 20.2.1).
void set_paragraph_segment(CpuState& state, SegmentIndex segment, u16 selector);

// Reads the descriptor that `selector` names from the GDT or LDT; `fault_vector` with the selector as error
// code if it is outside the table.
struct Descriptor {
  u64 low = 0, high = 0;  // high only for system descriptors in IA-32e mode
  Gva address{};
};
Guest<Descriptor> read_descriptor(Cpu& cpu, u16 selector, u8 fault_vector);

// As LAR and its like: nothing for a null selector or one outside the table. `high` is not read.
Guest<std::optional<Descriptor>> find_descriptor(Cpu& cpu, u16 selector);

// LOCKed updates of the type field in memory (SDM 3A 8.1.2.1).
Guest<void> set_accessed(Cpu& cpu, const Descriptor& descriptor);
Guest<void> set_busy(Cpu& cpu, const Descriptor& descriptor, bool busy);

// Sets the state's CPL, CS and SS together and tells the Cpu (mode_changed).
void set_cpl(Cpu& cpu, u8 cpl);

}  // namespace anykvm::x86
