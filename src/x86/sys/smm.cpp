#include "x86/sys/smm.h"

#include <cstddef>

#include "x86/machine.h"
#include "x86/mmu/access.h"
#include "x86/nested/svm/world_switch.h"
#include "x86/sys/control_registers.h"
#include "x86/sys/segments.h"

namespace anykvm::x86 {
namespace {

constexpr u64 kAreaOffset = 0xfe00, kEntryOffset = 0x8000;  // from SMBASE
constexpr u32 kHaltRestart = 1;

// --- The save areas: the upper half of the last KiB of SMRAM ---

struct Segment64 {
  u16 selector, attributes;  // bits 55:40 of a descriptor
  u32 limit;
  u64 base;
};

// APM 2 table 10-2.
struct Area64 {
  Segment64 es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;
  u64 io_restart[4];
  u32 io_trap, reserved1;
  u8 io_restarts, halt_restarts, nmi_masked,
      shadow;  // the shadow of STI and MOV SS is reserved in the manual
  u32 reserved2;
  u64 efer;
  u64 guest_mode, guest_vmcb;  // a nested guest's registers are in the rest
  u64 reserved7;
  u32 reserved3[3], revision, base, reserved4[5];
  u64 reserved5[6];
  u64 cr4, cr3, cr0, dr7, dr6, rflags, rip;
  u64 gpr[16];  // R15 first
};
static_assert(sizeof(Area64) == 512 && offsetof(Area64, base) == 0x100 && offsetof(Area64, cr4) == 0x148);
constexpr u32 kRevision64 = 0x20064;  // SMBASE relocation, 64-bit state

struct Segment32 {
  u32 attributes;  // the upper half of a descriptor
  u32 limit, base;
};

// SDM 3C table 32-1, with the places of the hidden state, which it leaves open, as the P6 has them.
struct Area32 {
  u32 reserved1[62], base, revision;
  u16 io_restarts, halt_restarts;
  u32 io_restart[4], cr4;
  u16 reserved2;
  u8 shadow, reserved3[17];
  Segment32 ds, fs, gs, idtr, tr;
  u32 reserved4;
  Segment32 gdtr, ldtr, es, cs, ss;
  u32 selectors[6];  // in the order of the encoding
  u32 ldtr_selector, tr_selector, dr7, dr6, gpr[8], eip, eflags, cr3, cr0;
};
static_assert(sizeof(Area32) == 512 && offsetof(Area32, cr4) == 0x114 &&
              offsetof(Area32, selectors) == 0x1a8);
constexpr u32 kRevision32 = 0x20000;

// --- Segments as bits 23:8 of the upper half of a descriptor ---

u16 attributes_of(const Segment& s) {
  return static_cast<u16>(s.type | s.s << 4 | s.dpl << 5 | s.present << 7 | s.avl << 12 | s.l << 13 |
                          s.db << 14 | s.g << 15);
}

Segment segment_of(u16 selector, u32 attributes, u32 limit, u64 base) {
  auto bit_at = [&](unsigned number) { return static_cast<u8>(attributes >> number & 1); };
  Segment s;
  s.selector = selector;
  s.base = base;
  s.limit = limit;
  s.type = attributes & 0xf;
  s.s = bit_at(4);
  s.dpl = attributes >> 5 & 3;
  s.present = bit_at(7);
  s.avl = bit_at(12);
  s.l = bit_at(13);
  s.db = bit_at(14);
  s.g = bit_at(15);
  s.unusable = !s.present;
  return s;
}

Segment64 saved64(const Segment& s) { return {s.selector, attributes_of(s), s.limit, s.base}; }
Segment64 saved64(const DescriptorTable& t) { return {0, 0, t.limit, t.base}; }
Segment loaded(const Segment64& s) { return segment_of(s.selector, s.attributes, s.limit, s.base); }
DescriptorTable loaded_table(const Segment64& t) { return {t.base, static_cast<u16>(t.limit)}; }

Segment32 saved32(const Segment& s) {
  return {u32{attributes_of(s)} << 8, s.limit, static_cast<u32>(s.base)};
}
Segment32 saved32(const DescriptorTable& t) { return {0, t.limit, static_cast<u32>(t.base)}; }
Segment loaded(u32 selector, const Segment32& s) {
  return segment_of(static_cast<u16>(selector), s.attributes >> 8, s.limit, s.base);
}
DescriptorTable loaded_table(const Segment32& t) { return {t.base, static_cast<u16>(t.limit)}; }

// --- Saving ---

Area64 save64(const CpuState& state) {
  Area64 area{};
  area.es = saved64(state.segments[kEs]);
  area.cs = saved64(state.segments[kCs]);
  area.ss = saved64(state.segments[kSs]);
  area.ds = saved64(state.segments[kDs]);
  area.fs = saved64(state.segments[kFs]);
  area.gs = saved64(state.segments[kGs]);
  area.gdtr = saved64(state.gdtr);
  area.ldtr = saved64(state.ldtr);
  area.idtr = saved64(state.idtr);
  area.tr = saved64(state.tr);
  area.halt_restarts = state.smm.from_halt ? kHaltRestart : 0;
  area.nmi_masked = state.events.nmi.masked;
  area.shadow = state.events.shadow;
  area.efer = state.efer;
  area.guest_mode = state.svm.guest_mode;
  area.guest_vmcb = state.svm.guest_mode ? state.svm.vmcb_pa : 0;
  area.revision = kRevision64;
  area.base = state.smm.base;
  area.cr4 = state.cr4;
  area.cr3 = state.cr3;
  area.cr0 = state.cr0;
  area.dr7 = state.dr7;
  area.dr6 = state.dr6;
  area.rflags = state.rflags;
  area.rip = state.rip;
  for (unsigned i = 0; i < 16; ++i) area.gpr[15 - i] = state.gpr[i];
  return area;
}

Area32 save32(const CpuState& state) {
  Area32 area{};
  area.base = state.smm.base;
  area.revision = kRevision32;
  area.halt_restarts = state.smm.from_halt ? kHaltRestart : 0;
  area.cr4 = static_cast<u32>(state.cr4);
  area.shadow = state.events.shadow;
  area.ds = saved32(state.segments[kDs]);
  area.fs = saved32(state.segments[kFs]);
  area.gs = saved32(state.segments[kGs]);
  area.idtr = saved32(state.idtr);
  area.tr = saved32(state.tr);
  area.gdtr = saved32(state.gdtr);
  area.ldtr = saved32(state.ldtr);
  area.es = saved32(state.segments[kEs]);
  area.cs = saved32(state.segments[kCs]);
  area.ss = saved32(state.segments[kSs]);
  for (unsigned i = 0; i < kSegmentCount; ++i) area.selectors[i] = state.segments[i].selector;
  area.ldtr_selector = state.ldtr.selector;
  area.tr_selector = state.tr.selector;
  area.dr7 = static_cast<u32>(state.dr7);
  area.dr6 = static_cast<u32>(state.dr6);
  for (unsigned i = 0; i < 8; ++i) area.gpr[i] = static_cast<u32>(state.gpr[i]);
  area.eip = static_cast<u32>(state.rip);
  area.eflags = static_cast<u32>(state.rflags);
  area.cr3 = static_cast<u32>(state.cr3);
  area.cr0 = static_cast<u32>(state.cr0);
  return area;
}

// --- Loading; both return whether the CPU had halted ---

bool load64(const Area64& area, CpuState& state) {
  state.segments[kEs] = loaded(area.es);
  state.segments[kCs] = loaded(area.cs);
  state.segments[kSs] = loaded(area.ss);
  state.segments[kDs] = loaded(area.ds);
  state.segments[kFs] = loaded(area.fs);
  state.segments[kGs] = loaded(area.gs);
  state.gdtr = loaded_table(area.gdtr);
  state.ldtr = loaded(area.ldtr);
  state.idtr = loaded_table(area.idtr);
  state.tr = loaded(area.tr);
  state.events.shadow = area.shadow & (kShadowSti | kShadowMovSs);
  state.efer = area.efer;
  state.smm.base = area.base;
  state.cr4 = area.cr4;
  state.cr3 = area.cr3;
  state.cr0 = area.cr0;
  state.dr7 = (area.dr7 & low_bits(32)) | kDr7Fixed1;
  state.dr6 = (area.dr6 & low_bits(32)) | kDr6Fixed1;
  state.rflags = area.rflags | kFlagFixed1;
  state.rip = area.rip;
  for (unsigned i = 0; i < 16; ++i) state.gpr[i] = area.gpr[15 - i];
  return area.halt_restarts & kHaltRestart;
}

bool load32(const Area32& area, CpuState& state) {
  state.smm.base = area.base;
  state.cr4 = area.cr4;
  state.events.shadow = area.shadow & (kShadowSti | kShadowMovSs);
  state.segments[kEs] = loaded(area.selectors[kEs], area.es);
  state.segments[kCs] = loaded(area.selectors[kCs], area.cs);
  state.segments[kSs] = loaded(area.selectors[kSs], area.ss);
  state.segments[kDs] = loaded(area.selectors[kDs], area.ds);
  state.segments[kFs] = loaded(area.selectors[kFs], area.fs);
  state.segments[kGs] = loaded(area.selectors[kGs], area.gs);
  state.idtr = loaded_table(area.idtr);
  state.tr = loaded(area.tr_selector, area.tr);
  state.gdtr = loaded_table(area.gdtr);
  state.ldtr = loaded(area.ldtr_selector, area.ldtr);
  state.efer = 0;
  state.dr7 = area.dr7 | kDr7Fixed1;
  state.dr6 = area.dr6 | kDr6Fixed1;
  for (unsigned i = 0; i < 8; ++i) state.gpr[i] = area.gpr[i];
  state.rip = area.eip;
  state.rflags = area.eflags | kFlagFixed1;
  state.cr3 = area.cr3;
  state.cr0 = area.cr0;
  return area.halt_restarts & kHaltRestart;
}

// --- The handler's environment (SDM 3C 32.5.1): real mode with segments of 4 GiB ---

Segment flat_segment(u16 selector, u64 base) {
  Segment s;
  s.selector = selector;
  s.base = base;
  s.limit = 0xffffffff;
  s.type = 3;
  s.present = s.s = s.g = 1;
  return s;
}

void set_handlers_state(CpuState& state) {
  state.rflags = kFlagFixed1;
  state.rip = kEntryOffset;
  state.events.shadow = 0;
  state.cr0 &= ~(kCr0Pe | kCr0Em | kCr0Ts | kCr0Pg);
  state.cr4 = 0;
  state.efer = 0;
  state.idtr = {0, 0};
  state.dr7 = kDr7Fixed1;
  state.segments.fill(flat_segment(0, 0));
  state.segments[kCs] = flat_segment(static_cast<u16>(state.smm.base >> 4), state.smm.base);
  state.cpl = 0;
}

// In the mode's own address space.
Gpa area_of(Cpu& cpu) {
  return as_seen(cpu.state(), cpu.machine().memory(), Gpa(u64{cpu.state().smm.base} + kAreaOffset));
}

// Before the client says what the model is, the form of the 32-bit ones, as in KVM.
bool long_mode_model(const Cpu& cpu) {
  return !cpu.model().entries().empty() && cpu.model().has(Feature::kLm);
}

// CPL is the DPL of SS (SDM 3A 5.5), except in real mode (0) and virtual-8086 mode (3).
u8 cpl_of(const CpuState& state) {
  if (state.real_mode()) return 0;
  return state.v86_mode() ? 3 : state.segments[kSs].dpl;
}

}  // namespace

void enter_smm(Cpu& cpu) {
  CpuState& state = cpu.state();
  state.smm.pending = false;
  ++state.smm.count;
  const bool wide = long_mode_model(cpu);
  const Area64 area64 = save64(state);
  const Area32 area32 = save32(state);
  if (state.svm.guest_mode) svm::suspend_guest(cpu);
  state.smm.active = true;
  state.smm.from_halt = false;
  const bool saved = wide ? write_physical(cpu, area_of(cpu), &area64, sizeof area64)
                          : write_physical(cpu, area_of(cpu), &area32, sizeof area32);
  if (!saved) state.events.triple_fault = true;
  state.smm.nmis_were_masked = state.events.nmi.masked;
  state.events.nmi.masked = true;
  set_handlers_state(state);
  cpu.mode_changed();
  cpu.flush_tlb();
}

bool leave_smm(Cpu& cpu) {
  CpuState& state = cpu.state();
  CpuState next = state;
  bool halted = false, read = false;
  if (long_mode_model(cpu)) {
    Area64 area{};
    read = read_physical(cpu, area_of(cpu), &area, sizeof area);
    halted = load64(area, next);
    if (read && (area.guest_mode & 1)) read = svm::resume_guest(cpu, next, Gpa(area.guest_vmcb));
  } else {
    Area32 area{};
    read = read_physical(cpu, area_of(cpu), &area, sizeof area);
    halted = load32(area, next);
  }
  next.cpl = cpl_of(next);
  next.pdptes_valid = false;
  if (!read || !valid_sregs(cpu.model(), next)) return false;
  if (!state.smm.nmis_were_masked) next.events.nmi.masked = false;
  next.smm.active = next.smm.nmis_were_masked = false;
  next.mp_state = halted ? MpState::kHalted : MpState::kRunnable;
  state = next;
  cpu.mode_changed();
  cpu.flush_tlb();
  return true;
}

}  // namespace anykvm::x86
