// Compiled without vector instructions: the guest's may be in the host's registers when its privilege level
// changes (kOpKeepsVector).
#include "x86/sys/pmu.h"

#include <x86intrin.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "x86/cpu.h"
#include "x86/platform.h"
#include "x86/translate/context.h"

namespace anykvm::x86 {
namespace {

// IA32_PERFEVTSELx, PerfEvtSeln
constexpr u64 kSelectUser = bit(16), kSelectOs = bit(17), kSelectEdge = bit(18), kSelectInterrupt = bit(20),
              kSelectEnable = bit(22), kSelectInvert = bit(23), kSelectMask = u64{0xff} << 24;
// Fields of IA32_FIXED_CTR_CTRL
constexpr u64 kFixedOs = 1, kFixedUser = 2, kFixedInterrupt = 8;
constexpr unsigned kFixedBits = 4, kFixedStatus = 32;
constexpr u8 kInstructions = bit_of(Counted::kInstructions), kBranches = bit_of(Counted::kBranches),
             kCycles = bit_of(Counted::kCycles);
constexpr u8 kFixedEvents[kFixedCounters] = {kInstructions, kCycles, kCycles};

constexpr unsigned kWidth = 48;
constexpr unsigned kAmdLegacyCounters = 4, kAmdCoreCounters = 6;
// So many events are never left unlooked at: at the latest the timer interrupt comes before.
constexpr u64 kSoon = u64{1} << 40;

struct Event {
  u32 select;  // bits 7:0 event, 15:8 unit mask; AMD: 11:0, whatever the unit mask
  u8 absent;   // bit of CPUID.0AH:EBX
  u8 what;
};
// SDM 3B table 19-1: unhalted core and reference cycles, instructions and branches retired. Core cycles tick
// like the TSC, since nobody sees the host's.
constexpr Event kIntelEvents[] = {
    {0x003c, 0, kCycles}, {0x013c, 2, kCycles}, {0x00c0, 1, kInstructions}, {0x00c4, 5, kBranches}};
// The processor manuals' PMCx076, PMCx0C0 and PMCx0C2.
constexpr Event kAmdEvents[] = {{0x76, 0, kCycles}, {0xc0, 0, kInstructions}, {0xc2, 0, kBranches}};
// The same of families from 17H on: PMCx029, the accesses dispatched. The kinds that its unit mask names are
// added up.
constexpr u32 kAmdDispatch = 0x29;
constexpr Counted kDispatched[] = {Counted::kLoads, Counted::kStores, Counted::kUpdates};  // by unit mask bit

u8 dispatched_kinds(u64 select) {
  u8 kinds = 0;
  for (unsigned i = 0; i < std::size(kDispatched); ++i) {
    if (has_bit(select, 8 + i)) kinds |= bit_of(kDispatched[i]);
  }
  return kinds;
}

// CPUID leaf 1 (APM 3)
unsigned family_of(u32 eax) {
  const unsigned family = eax >> 8 & 0xf;
  return family == 0xf ? family + (eax >> 20 & 0xff) : family;
}

u64 mask_of(unsigned width) { return low_bits(std::min(width, kWidth)); }

}  // namespace

// --- What there is ---

Pmu::Layout Pmu::find_layout() const {
  Layout found;
  const CpuModel& model = m_cpu.model();
  if (model.entries().empty() || !m_cpu.platform().has_counters()) return found;
  found.intel = model.intel();
  if (!found.intel) {
    found.version = 1;
    found.zen = family_of(model.cpuid(1, 0, m_cpu.state()).eax) >= 0x17;
    found.general = model.has(Feature::kPerfctrCore) ? kAmdCoreCounters : kAmdLegacyCounters;
    found.general_mask = mask_of(kWidth);
    return found;
  }
  const CpuidResult leaf = model.cpuid(0xa, 0, m_cpu.state());
  found.version = static_cast<u8>(std::min<u32>(leaf.eax & 0xff, 2));
  if (!found.version) return found;
  found.general = static_cast<u8>(std::min<u32>(leaf.eax >> 8 & 0xff, kGeneralCounters));
  found.general_mask = mask_of(leaf.eax >> 16 & 0xff);
  const unsigned events = leaf.eax >> 24;
  found.absent = leaf.ebx | (events < 32 ? ~static_cast<u32>(low_bits(events)) : 0);
  if (found.version < 2) return found;
  found.fixed = static_cast<u8>(std::min<u32>(leaf.edx & 0x1f, kFixedCounters));
  found.fixed_mask = mask_of(leaf.edx >> 5 & 0xff);
  return found;
}

// 0: nobody knows it.
u8 Pmu::find_event(u64 select) const {
  // How often, or for how many cycles, something holds is known to nobody.
  if (select & (kSelectEdge | kSelectInvert | kSelectMask)) return 0;
  const u64 wanted = m_layout.intel ? select & 0xffff : (select & 0xff) | (select >> 24 & 0xf00);
  if (m_layout.zen && wanted == kAmdDispatch) return dispatched_kinds(select);
  const auto find = [&](const auto& events) -> u8 {
    for (const Event& event : events) {
      if (event.select != wanted) continue;
      return m_layout.intel && m_layout.absent >> event.absent & 1 ? u8{0} : event.what;
    }
    return 0;
  };
  return m_layout.intel ? find(kIntelEvents) : find(kAmdEvents);
}

void Pmu::add_general(unsigned index) {
  PmuState& state = m_cpu.state().pmu;
  const u64 select = state.selects[index];
  const bool global = m_layout.version < 2 || (state.global_control >> index & 1);
  Counter counter{};
  counter.what = find_event(select);
  if (!(select & kSelectEnable) || !global || !counter.what) return;
  if (!m_cpu.platform().counts_event(select)) return;
  counter.value = &state.counters[index];
  counter.mask = m_layout.general_mask;
  counter.status = m_layout.intel ? bit(index) : 0;
  counter.at[0] = select & kSelectOs;
  counter.at[1] = select & kSelectUser;
  counter.interrupts = select & kSelectInterrupt;
  m_counters[m_count++] = counter;
}

void Pmu::add_fixed(unsigned index) {
  PmuState& state = m_cpu.state().pmu;
  const u64 control = state.fixed_control >> (kFixedBits * index);
  if (!(control & (kFixedOs | kFixedUser)) || !(state.global_control >> (kFixedStatus + index) & 1)) return;
  if (!m_cpu.platform().counts_fixed(index)) return;
  m_counters[m_count++] = {.value = &state.fixed[index],
                           .mask = m_layout.fixed_mask,
                           .status = bit(kFixedStatus + index),
                           .what = kFixedEvents[index],
                           .at = {(control & kFixedOs) != 0, (control & kFixedUser) != 0},
                           .interrupts = (control & kFixedInterrupt) != 0};
}

void Pmu::refresh() {
  collect();
  const Layout before = m_layout;
  m_layout = find_layout();
  // As after reset (SDM 3A table 10-1).
  if (before.version < 2 && m_layout.version == 2)
    m_cpu.state().pmu.global_control = low_bits(m_layout.general);
  m_count = 0;
  for (unsigned i = 0; i < m_layout.general; ++i) add_general(i);
  for (unsigned i = 0; i < m_layout.fixed; ++i) add_fixed(i);
  for (bool user : {false, true}) {
    m_wanted[user] = 0;
    for (unsigned i = 0; i < m_count; ++i) {
      if (m_counters[i].at[user]) m_wanted[user] |= m_counters[i].what;
    }
  }
  m_user = m_cpu.state().cpl != 0;
  m_since = __rdtsc();
  arm();
}

void Pmu::events_replaced() {
  m_stale = true;
  m_cpu.request(kAttentionPmu);
}

// --- Counting ---

u64 Pmu::take_cycles() {
  if (!m_running) return 0;
  const u64 now = __rdtsc(), passed = now - m_since;
  m_since = now;
  return static_cast<u64>(static_cast<unsigned __int128>(passed) * m_cpu.state().tsc_ratio >> 32);
}

void Pmu::collect() {
  if (!m_count) return;
  i64 happened[kCountedKinds];
  for (unsigned i = 0; i < kCountedByCode; ++i)
    happened[i] = static_cast<i64>(m_armed[i] - m_cpu.context().events_left[i]);
  happened[static_cast<unsigned>(Counted::kCycles)] = static_cast<i64>(take_cycles());
  for (unsigned i = 0; i < m_count; ++i) {
    const Counter& counter = m_counters[i];
    if (!counter.at[m_user]) continue;
    i64 events = 0;
    for (unsigned kind = 0; kind < kCountedKinds; ++kind)
      events += counter.what >> kind & 1 ? happened[kind] : 0;
    advance(counter, events);
  }
  arm();
}

// One event less than before: an instruction that was counted did not complete.
void Pmu::advance(const Counter& counter, i64 events) {
  const u64 value = *counter.value + static_cast<u64>(events);
  *counter.value = value & counter.mask;
  if (events < 0 || !(value & ~counter.mask)) return;
  m_cpu.state().pmu.global_status |= counter.status;
  if (!counter.interrupts) return;
  m_interrupt_due = true;
  m_cpu.request(kAttentionPmu);
}

// Code looks at all accesses together for the sake of any counter of some: it may look too early, and then
// has less far to go.
Counted Pmu::looked_at_for(const Counter& counter) {
  if (counter.what & kAccessKinds) return Counted::kAccesses;
  return static_cast<Counted>(std::countr_zero(counter.what));
}

void Pmu::arm() {
  Context& context = m_cpu.context();
  u64 left[kCountedKinds];
  for (u64& events : left) events = kEventsUnlimited;
  for (unsigned i = 0; i < m_count; ++i) {
    const Counter& counter = m_counters[i];
    u64& events = left[static_cast<unsigned>(looked_at_for(counter))];
    if (counter.at[m_user] && counter.interrupts) events = std::min(events, counter.mask - *counter.value);
  }
  m_soon = false;
  for (unsigned i = 0; i < kCountedByCode; ++i) {
    context.events_left[i] = m_armed[i] = left[i];
    m_soon = m_soon || left[i] < kSoon;
  }
  for (u8& overflowed : context.stamp.part.overflowed) overflowed = 0;
  m_deadline = deadline_after(left[static_cast<unsigned>(Counted::kCycles)]);
  if (m_running && m_deadline < m_awaited) m_cpu.request(kAttentionPmu);
}

// Host TSC when so many cycles will have passed; one that is far away is looked for again in time.
u64 Pmu::deadline_after(u64 cycles) const {
  if (cycles >= kSoon) return kNoDeadline;
  constexpr unsigned kPrecision = 20;
  return m_since + (cycles << kPrecision) / (m_cpu.state().tsc_ratio >> (32 - kPrecision));
}

void Pmu::changed_privilege(u8 cpl) {
  if (m_user == (cpl != 0)) return;
  collect();
  m_user = cpl != 0;
  arm();
}

void Pmu::enter_guest() {
  m_running = true;
  if (!m_count) return;
  m_since = __rdtsc();
  m_awaited = kNoDeadline;
  arm();
}

void Pmu::leave_guest() {
  if (m_count) collect();
  m_running = false;
}

bool Pmu::overflowed() const {
  const auto& left = m_cpu.context().events_left;
  return static_cast<i64>(left[0] | left[1] | left[2]) < 0;
}

void Pmu::attend() {
  if (m_stale.exchange(false)) {
    refresh();
  } else {
    collect();
  }
  m_cpu.mode_changed();
  if (std::exchange(m_interrupt_due, false)) m_cpu.platform().performance_interrupt();
  m_awaited = m_deadline;
  if (m_awaited != kNoDeadline) m_cpu.platform().look_at_counters_at(m_awaited);
}

// AMD's counters of instructions and branches have these among them (PMCx0C0, PMCx0C2).
void Pmu::delivered() {
  if (!m_layout.intel) count_instruction_and_branch(1);
}

// What it accessed has been dispatched all the same.
void Pmu::branch_faulted() { count_instruction_and_branch(-1); }

void Pmu::count_instruction_and_branch(i64 times) {
  for (Counted what : {Counted::kInstructions, Counted::kBranches}) {
    if (counts(what)) m_cpu.context().events_left[static_cast<unsigned>(what)] -= static_cast<u64>(times);
  }
}

}  // namespace anykvm::x86
