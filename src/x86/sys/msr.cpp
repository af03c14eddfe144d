#include "x86/sys/msr.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "x86/sys/feature_table.h"
#include "x86/sys/msr_functions.h"

namespace anykvm::x86 {
namespace {

enum class Lists : u8 { kSaved, kFeature, kUnlisted };

using Getter = std::optional<u64> (*)(Cpu&, u32 index, MsrAccess);
using Setter = bool (*)(Cpu&, u32 index, u64 value, MsrAccess);

struct MsrRow {
  u32 first = 0, last = 0;
  Getter get = nullptr;
  Setter set = nullptr;
  std::optional<Feature> feature{};
  Lists lists = Lists::kUnlisted;
};

template <u64 MsrState::*kMember>
std::optional<u64> get_stored(Cpu& cpu, u32, MsrAccess) {
  return cpu.state().msrs.*kMember;
}

template <u64 MsrState::*kMember, u64 kReserved>
bool set_stored(Cpu& cpu, u32, u64 value, MsrAccess) {
  if (value & kReserved) return false;
  cpu.state().msrs.*kMember = value;
  return true;
}

template <u64 MsrState::*kMember>
bool set_canonical(Cpu& cpu, u32, u64 value, MsrAccess) {
  if (!cpu.model().canonical_register(value)) return false;
  cpu.state().msrs.*kMember = value;
  return true;
}

template <u64 kValue>
std::optional<u64> get_constant(Cpu&, u32, MsrAccess) {
  return kValue;
}

template <u64 kValue>
bool set_constant(Cpu&, u32, u64 value, MsrAccess access) {
  return access == MsrAccess::kClient && value == kValue;
}

namespace needs {
using enum Feature;
constexpr std::optional<Feature> kNone = std::nullopt;

constexpr MsrRow kUnsorted[] = {
#define ANYKVM_MSR_STORED(index, name, feature, reset, reserved, lists) \
  {index, index, get_stored<&MsrState::name>, set_stored<&MsrState::name, reserved>, feature, Lists::lists},
#define ANYKVM_MSR_CANONICAL(index, name, feature, lists) \
  {index, index, get_stored<&MsrState::name>, set_canonical<&MsrState::name>, feature, Lists::lists},
#define ANYKVM_MSR_CONSTANT(index, name, feature, value, lists) \
  {index, index, get_constant<value>, set_constant<value>, feature, Lists::lists},
#define ANYKVM_MSR_FUNCTIONS(first, last, name, feature, lists) \
  {first, last, get_##name, set_##name, feature, Lists::lists},
#include "x86/tables/msrs.def"
#undef ANYKVM_MSR_STORED
#undef ANYKVM_MSR_CANONICAL
#undef ANYKVM_MSR_CONSTANT
#undef ANYKVM_MSR_FUNCTIONS
};
}  // namespace needs

constexpr auto sorted_rows() {
  std::array<MsrRow, std::size(needs::kUnsorted)> rows{};
  std::copy(std::begin(needs::kUnsorted), std::end(needs::kUnsorted), rows.begin());
  std::sort(rows.begin(), rows.end(), [](const MsrRow& a, const MsrRow& b) { return a.first < b.first; });
  return rows;
}
constexpr auto kRows = sorted_rows();

constexpr bool rows_overlap() {
  for (std::size_t i = 1; i < kRows.size(); ++i) {
    if (kRows[i].first <= kRows[i - 1].last) return true;
  }
  return false;
}
static_assert(!rows_overlap(), "two rows of msrs.def have the same index");

const MsrRow* find_row(u32 index) {
  auto row = std::upper_bound(kRows.begin(), kRows.end(), index,
                              [](u32 wanted, const MsrRow& candidate) { return wanted < candidate.first; });
  if (row == kRows.begin()) return nullptr;
  --row;
  return index <= row->last ? &*row : nullptr;
}

bool visible(Cpu& cpu, const MsrRow& row, MsrAccess access) {
  if (access == MsrAccess::kClient || !row.feature || cpu.model().has(*row.feature)) return true;
  return is_pv_feature(*row.feature) && !cpu.platform().enforces_pv_features();
}

std::vector<u32> indices_in(Lists first, Lists second) {
  std::vector<u32> indices;
  for (const MsrRow& row : kRows) {
    if (row.lists == first || row.lists == second) indices.push_back(row.first);
  }
  return indices;
}

}  // namespace

std::optional<u64> read_msr(Cpu& cpu, u32 index, MsrAccess access) {
  const MsrRow* row = find_row(index);
  if (!row || !visible(cpu, *row, access)) return std::nullopt;
  return row->get(cpu, index, access);
}

bool write_msr(Cpu& cpu, u32 index, u64 value, MsrAccess access) {
  if (auto done = cpu.platform().chosen_msr_write(index, value)) return *done;
  const MsrRow* row = find_row(index);
  return row && visible(cpu, *row, access) && row->set(cpu, index, value, access);
}

bool msr_exists(u32 index) { return find_row(index); }

std::vector<u32> msr_index_list() { return indices_in(Lists::kSaved, Lists::kFeature); }
std::vector<u32> feature_msr_index_list() { return indices_in(Lists::kFeature, Lists::kFeature); }

// What a new CPU starts with is what the system offers.
std::optional<u64> read_feature_msr(u32 index) {
  MsrState fresh;
  switch (index) {
    case 0x8b:
      return fresh.microcode_revision;
    case 0x10a:
      return fresh.arch_capabilities;
    case 0x345:
      return kPerfCapabilities;
    case 0x122:
      return fresh.tsx_ctrl;
    case 0xc0011029:
      return kLfenceSerializes;
    default:
      return std::nullopt;
  }
}

}  // namespace anykvm::x86
