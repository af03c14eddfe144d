// Performance counters: who may touch which register. What they do is the Pmu's.

#include "x86/sys/msr_functions.h"
#include "x86/sys/pmu.h"

namespace anykvm::x86 {
namespace {

constexpr u32 kIntelCounter = 0xc1, kIntelWideCounter = 0x4c1, kIntelSelect = 0x186, kIntelFixed = 0x309;
constexpr u32 kK7Select = 0xc0010000, kK7Counter = 0xc0010004;
constexpr u32 kCoreSelect = 0xc0010200, kCoreCounter = 0xc0010201;

enum class Names : u8 { kIntel, kK7, kCore };

struct Place {
  Names names;
  unsigned number;
};

Place place_of_counter(u32 index) {
  if (index >= kCoreCounter) return {Names::kCore, (index - kCoreCounter) / 2};
  if (index >= kK7Counter) return {Names::kK7, index - kK7Counter};
  return {Names::kIntel, index - kIntelCounter};
}

Place place_of_select(u32 index) {
  if (index >= kCoreSelect) return {Names::kCore, (index - kCoreSelect) / 2};
  if (index >= kK7Select) return {Names::kK7, index - kK7Select};
  return {Names::kIntel, index - kIntelSelect};
}

bool has(Cpu& cpu, const Place& place) {
  const Pmu::Layout& layout = cpu.pmu().layout();
  const bool vendor = (place.names == Names::kIntel) == layout.intel;
  if (place.names == Names::kCore && !cpu.model().has(Feature::kPerfctrCore)) return false;
  return layout.version && vendor && place.number < layout.general;
}

// The P6's two counters and the K7's four are there on every processor of the kind: no count changes.
bool stands_still(const Place& place) {
  return place.names == Names::kK7 || (place.names == Names::kIntel && place.number < 2);
}

bool has_global(Cpu& cpu) { return cpu.pmu().layout().version >= 2; }
bool visible(Cpu& cpu, MsrAccess access) { return access == MsrAccess::kClient || has_global(cpu); }

void changed(Cpu& cpu) {
  cpu.pmu().refresh();
  cpu.mode_changed();
}

void set_register(Cpu& cpu, u64& place, u64 value) {
  cpu.pmu().collect();
  place = value;
  changed(cpu);
}

u64 collected(Cpu& cpu, const u64& place) {
  cpu.pmu().collect();
  return place;
}

// The client may set counters before it says what the model is.
u64 general_mask(Cpu& cpu) {
  const Pmu::Layout& layout = cpu.pmu().layout();
  return layout.version ? layout.general_mask : ~u64{0};
}

u64 global_bits(Cpu& cpu) {
  const Pmu::Layout& layout = cpu.pmu().layout();
  return low_bits(layout.general) | low_bits(layout.fixed) << 32;
}

constexpr u64 kFullWidthWrites = bit(13);  // of IA32_PERF_CAPABILITIES

}  // namespace

std::optional<u64> get_perf_counter(Cpu& cpu, u32 index, MsrAccess access) {
  const Place place = place_of_counter(index);
  u64& counter = cpu.state().pmu.counters[place.number];
  if (access == MsrAccess::kClient || has(cpu, place)) return collected(cpu, counter);
  if (stands_still(place)) return 0;
  return std::nullopt;
}
bool set_perf_counter(Cpu& cpu, u32 index, u64 value, MsrAccess access) {
  const Place place = place_of_counter(index);
  if (access == MsrAccess::kGuest && !has(cpu, place)) return stands_still(place);
  // IA32_PMCx: bits 31:0, sign-extended (SDM 3B 19.2.5).
  if (access == MsrAccess::kGuest && place.names == Names::kIntel) value = sign_extend(value, 32);
  set_register(cpu, cpu.state().pmu.counters[place.number], value & general_mask(cpu));
  return true;
}

std::optional<u64> get_wide_perf_counter(Cpu& cpu, u32 index, MsrAccess access) {
  const Place place{Names::kIntel, index - kIntelWideCounter};
  const bool offered = has(cpu, place) && (cpu.state().pmu.capabilities & kFullWidthWrites);
  if (access == MsrAccess::kGuest && !offered) return std::nullopt;
  return collected(cpu, cpu.state().pmu.counters[place.number]);
}
bool set_wide_perf_counter(Cpu& cpu, u32 index, u64 value, MsrAccess access) {
  if (!get_wide_perf_counter(cpu, index, access) || (value & ~general_mask(cpu))) return false;
  set_register(cpu, cpu.state().pmu.counters[index - kIntelWideCounter], value);
  return true;
}

std::optional<u64> get_perf_select(Cpu& cpu, u32 index, MsrAccess access) {
  const Place place = place_of_select(index);
  if (access == MsrAccess::kClient || has(cpu, place)) return cpu.state().pmu.selects[place.number];
  if (stands_still(place)) return 0;
  return std::nullopt;
}
bool set_perf_select(Cpu& cpu, u32 index, u64 value, MsrAccess access) {
  // SDM 3B figure 19-6; AMD's have more bits of the event (APM 2 figure 13-12), and drop the others.
  constexpr u64 kIntelReserved = ~low_bits(32) | bit(21), kAmdKept = ~0xfffffff000280000;
  const Place place = place_of_select(index);
  if (access == MsrAccess::kGuest && !has(cpu, place)) return stands_still(place);
  const bool intel = cpu.pmu().layout().intel;
  if (intel && (value & kIntelReserved)) return false;
  set_register(cpu, cpu.state().pmu.selects[place.number], intel ? value : value & kAmdKept);
  return true;
}

std::optional<u64> get_fixed_counter(Cpu& cpu, u32 index, MsrAccess access) {
  const unsigned number = index - kIntelFixed;
  if (access == MsrAccess::kGuest && number >= cpu.pmu().layout().fixed) return std::nullopt;
  return collected(cpu, cpu.state().pmu.fixed[number]);
}
bool set_fixed_counter(Cpu& cpu, u32 index, u64 value, MsrAccess access) {
  if (!get_fixed_counter(cpu, index, access)) return false;
  const u64 mask = cpu.pmu().layout().fixed_mask;
  set_register(cpu, cpu.state().pmu.fixed[index - kIntelFixed], mask ? value & mask : value);
  return true;
}

std::optional<u64> get_fixed_counter_control(Cpu& cpu, u32, MsrAccess access) {
  if (!visible(cpu, access)) return std::nullopt;
  return cpu.state().pmu.fixed_control;
}
bool set_fixed_counter_control(Cpu& cpu, u32, u64 value, MsrAccess access) {
  constexpr u64 kOfEach = 0xb, kBitsOfEach = 4;  // OS, USR, PMI
  u64 valid = 0;
  for (unsigned i = 0; i < cpu.pmu().layout().fixed; ++i) valid |= kOfEach << (kBitsOfEach * i);
  if (!visible(cpu, access) || (value & ~valid)) return false;
  set_register(cpu, cpu.state().pmu.fixed_control, value);
  return true;
}

std::optional<u64> get_perf_global_control(Cpu& cpu, u32, MsrAccess access) {
  if (!visible(cpu, access)) return std::nullopt;
  return cpu.state().pmu.global_control;
}
bool set_perf_global_control(Cpu& cpu, u32, u64 value, MsrAccess access) {
  if (!visible(cpu, access) || (value & ~global_bits(cpu))) return false;
  set_register(cpu, cpu.state().pmu.global_control, value);
  return true;
}

std::optional<u64> get_perf_global_status(Cpu& cpu, u32, MsrAccess access) {
  if (!visible(cpu, access)) return std::nullopt;
  return collected(cpu, cpu.state().pmu.global_status);
}
bool set_perf_global_status(Cpu& cpu, u32, u64 value, MsrAccess access) {
  if (access == MsrAccess::kGuest || (value & ~global_bits(cpu))) return false;
  cpu.state().pmu.global_status = value;
  return true;
}

std::optional<u64> get_perf_global_clear(Cpu& cpu, u32, MsrAccess access) {
  if (!visible(cpu, access)) return std::nullopt;
  return 0;
}
bool set_perf_global_clear(Cpu& cpu, u32, u64 value, MsrAccess access) {
  constexpr u64 kBufferOverflow = bit(62), kConditionChanged = bit(63);  // which are never set
  if (!visible(cpu, access) || (value & ~(global_bits(cpu) | kBufferOverflow | kConditionChanged)))
    return false;
  cpu.pmu().collect();
  cpu.state().pmu.global_status &= ~value;
  return true;
}

std::optional<u64> get_perf_capabilities(Cpu& cpu, u32, MsrAccess access) {
  if (access == MsrAccess::kGuest && !cpu.model().has(Feature::kPdcm)) return std::nullopt;
  return cpu.state().pmu.capabilities;
}
bool set_perf_capabilities(Cpu& cpu, u32, u64 value, MsrAccess access) {
  if (access == MsrAccess::kGuest || (value & ~kPerfCapabilities)) return false;
  cpu.state().pmu.capabilities = value;
  return true;
}

std::optional<u64> read_counter(Cpu& cpu, u32 number) {
  const Pmu::Layout& layout = cpu.pmu().layout();
  constexpr u32 kFixed = 1u << 30;
  PmuState& state = cpu.state().pmu;
  if (number < layout.general) return collected(cpu, state.counters[number]);
  const u32 fixed = number - kFixed;
  if (number >= kFixed && fixed < layout.fixed) return collected(cpu, state.fixed[fixed]);
  return std::nullopt;
}

}  // namespace anykvm::x86
