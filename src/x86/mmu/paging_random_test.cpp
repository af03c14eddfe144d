// Random tables and CPU states: translate() against a second walk that follows the manual's text step by step
// and shares nothing with it. A failure prints the seed and the case.
#include <optional>
#include <random>

#include "x86/mmu/paging_fixture.h"

namespace anykvm::x86 {
namespace {

// --- The second walk: SDM 3A 4.3 to 4.7, one paragraph after the other ---

struct Expected {
  int error = PagingGuest::kOk;
  u64 gpa = 0, page_size = 0;
  bool writable = false, user = false, global = false, executable = false;
  std::vector<std::pair<u64, u64>> writes{};  // table entry, its new value

  bool operator==(const Expected&) const = default;
};
void PrintTo(const Expected& value, std::ostream* out) {
  *out << "error " << value.error << std::hex << " gpa " << value.gpa << " size " << value.page_size << " w"
       << value.writable << " u" << value.user << " g" << value.global << " x" << value.executable;
  for (auto [address, entry] : value.writes) *out << " [" << address << "]=" << entry;
}

class NaiveWalk {
 public:
  NaiveWalk(const PagingGuest& guest, Access access, Privilege privilege)
      : m_guest(guest), m_state(guest.state), m_access(access), m_privilege(privilege) {}

  Expected run() {
    if (!(m_state.cr0 & kCr0Pg)) {
      return {.gpa = m_guest.address & 0xffffffff,
              .page_size = 4096,
              .writable = true,
              .user = true,
              .executable = true};
    }
    if (!(m_state.cr4 & kCr4Pae)) return legacy();
    return m_state.long_mode() ? ia32e() : pae();
  }

 private:
  static bool set(u64 value, unsigned n) { return value >> n & 1; }
  bool write() const { return m_access == Access::kWrite; }
  bool fetch() const { return m_access == Access::kFetch; }
  bool user_mode() const { return m_state.cpl == 3 && m_privilege == Privilege::kCurrent; }
  bool nxe() const { return m_state.efer & kEferNx; }
  bool wp() const { return m_state.cr0 & kCr0Wp; }

  std::optional<u64> memory(u64 address, unsigned size) const {
    if (address >= PagingGuest::kRamSize) return {};
    u64 value = 0;
    std::memcpy(&value, m_guest.host_base() + address, size);
    return value;
  }

  Expected fault(int reason) const {
    int code = reason;
    if (write()) code += 2;
    if (user_mode()) code += 4;
    bool pae_nxe = (m_state.cr4 & kCr4Pae) && nxe();
    if (fetch() && ((m_state.cr4 & kCr4Smep) || pae_nxe)) code += 16;
    return {.error = code};
  }
  static constexpr int kAbsent = 0, kProtection = 1, kReserved = 9, kKey = 33;

  struct Used {
    u64 address, value;
  };

  Expected legacy() {
    u64 linear = m_guest.address;
    u64 pde_address = (m_state.cr3 & 0xfffff000) + (linear >> 22 & 0x3ff) * 4;
    auto pde = memory(pde_address, 4);
    if (!pde || !set(*pde, 0)) return fault(kAbsent);
    if (set(*pde, 7) && (m_state.cr4 & kCr4Pse)) {
      if (set(*pde, 21)) return fault(kReserved);
      unsigned width = std::min(m_guest.address_bits, 40u);
      for (unsigned n = 13; n <= 20; ++n) {
        if (set(*pde, n) && n - 13 + 32 >= width) return fault(kReserved);
      }
      u64 gpa = (*pde & 0xffc00000) + ((*pde >> 13 & 0xff) << 32) + (linear & 0x3fffff);
      return finish({{pde_address, *pde}}, gpa, 0x400000);
    }
    u64 pte_address = (*pde & 0xfffff000) + (linear >> 12 & 0x3ff) * 4;
    auto pte = memory(pte_address, 4);
    if (!pte || !set(*pte, 0)) return fault(kAbsent);
    return finish({{pde_address, *pde}, {pte_address, *pte}}, (*pte & 0xfffff000) + (linear & 0xfff), 4096);
  }

  bool address_reserved(u64 entry, unsigned highest) const {
    for (unsigned n = m_guest.address_bits; n <= highest; ++n) {
      if (set(entry, n)) return true;
    }
    return set(entry, 63) && !nxe();
  }

  Expected pae() {
    u64 linear = m_guest.address & 0xffffffff;
    auto pdpte = memory((m_state.cr3 & 0xffffffe0) + (linear >> 30) * 8, 8);
    if (!pdpte || !set(*pdpte, 0)) return fault(kAbsent);
    if ((*pdpte & 0x1e6) || *pdpte >> m_guest.address_bits) return fault(kReserved);
    return lower_tables(*pdpte & 0xffffffffff000, {}, 2, 62);
  }

  Expected ia32e() {
    int top = m_state.cr4 & kCr4La57 ? 5 : 4;
    return lower_tables(m_state.cr3 & 0xffffffffff000, {}, top, 51);
  }

  // 8-byte entries from `level` down.
  Expected lower_tables(u64 table, std::vector<Used> used, int level, unsigned highest_reserved) {
    u64 linear = m_guest.address;
    unsigned shift = 12 + 9 * (level - 1);
    u64 address = table + (linear >> shift & 0x1ff) * 8;
    auto entry = memory(address, 8);
    if (!entry || !set(*entry, 0)) return fault(kAbsent);
    if (address_reserved(*entry, highest_reserved)) return fault(kReserved);
    if (level >= 4 && set(*entry, 7)) return fault(kReserved);
    bool page = level == 1 || set(*entry, 7);
    if (page && level > 1) {
      for (unsigned n = 13; n < shift; ++n) {
        if (set(*entry, n)) return fault(kReserved);
      }
    }
    used.push_back({address, *entry});
    if (!page) return lower_tables(*entry & 0xffffffffff000, used, level - 1, highest_reserved);
    u64 size = u64{1} << shift;
    u64 frame = (*entry & 0xffffffffff000) / size * size;
    return finish(used, frame + linear % size, size);
  }

  // SDM 3A 4.6.1: may this access be made, given the flags of all entries?
  bool permitted(Access access, bool user_page, bool writable, bool no_execute) const {
    bool read = access == Access::kRead, write = access == Access::kWrite;
    if (user_mode()) {
      if (!user_page) return false;
      if (write) return writable;
      return read || !no_execute;
    }
    if (!user_page) {
      if (read) return true;
      return write ? writable || !wp() : !no_execute;
    }
    bool smap = m_state.cr4 & kCr4Smap;
    bool explicit_with_ac = m_privilege == Privilege::kCurrent && (m_state.rflags & kFlagAc);
    bool data_allowed = !smap || explicit_with_ac;
    if (read) return data_allowed;
    if (write) return data_allowed && (writable || !wp());
    return !no_execute && !(m_state.cr4 & kCr4Smep);
  }

  // SDM 3A 4.6.2.
  bool key_permits(Access access, bool user_page, u64 leaf) const {
    if (!m_state.long_mode() || !(m_state.cr4 & kCr4Pke) || !user_page || access == Access::kFetch)
      return true;
    u64 key = leaf >> 59 & 15;
    if (set(m_state.pkru, 2 * key)) return false;
    if (access == Access::kWrite && set(m_state.pkru, 2 * key + 1)) return !(user_mode() || wp());
    return true;
  }

  Expected finish(const std::vector<Used>& used, u64 gpa, u64 size) {
    bool user_page = true, writable = true, no_execute = false;
    for (const Used& entry : used) {
      user_page = user_page && set(entry.value, 2);
      writable = writable && set(entry.value, 1);
      no_execute = no_execute || set(entry.value, 63);
    }
    u64 leaf = used.back().value;
    if (!key_permits(m_access, user_page, leaf)) return fault(kKey);
    if (!permitted(m_access, user_page, writable, no_execute)) return fault(kProtection);

    Expected result{.gpa = gpa, .page_size = size, .user = user_page};
    for (std::size_t i = 0; i < used.size(); ++i) {
      bool last = i + 1 == used.size();
      u64 updated = used[i].value | 0x20 | (last && write() ? 0x40 : 0);
      if (updated != used[i].value) result.writes.push_back({used[i].address, updated});
    }
    bool dirty = set(leaf, 6) || write();
    result.writable = dirty && permitted(Access::kWrite, user_page, writable, no_execute) &&
                      key_permits(Access::kWrite, user_page, leaf);
    result.executable = permitted(Access::kFetch, user_page, writable, no_execute);
    result.global = set(leaf, 8) && (m_state.cr4 & kCr4Pge);
    return result;
  }

  const PagingGuest& m_guest;
  const CpuState& m_state;
  Access m_access;
  Privilege m_privilege;
};

// --- Random cases ---

class RandomCases {
 public:
  explicit RandomCases(unsigned seed) : m_random(seed) {}

  void make(PagingGuest& guest) {
    const PageKind& kind = kAllKinds[below(std::size(kAllKinds))];
    guest.address_bits = 36 + static_cast<unsigned>(below(17));
    guest.map(kind, leaf(), kP | kW | kU);
    for (unsigned level = kind.leaf_level; level <= guest.levels(); ++level) disturb(guest, level, kind);
    CpuState& state = guest.state;
    state.cpl = static_cast<u8>(below(4));
    state.pkru = static_cast<u32>(m_random());
    state.rflags = rare(2) ? u64{kFlagAc} : 0;
    if (rare(2)) state.cr0 &= ~u64{kCr0Wp};
    if (rare(8)) state.efer &= ~u64{kEferNx};
    if (rare(8)) state.cr4 ^= kCr4Pse;
    if (rare(64)) state.cr0 &= ~u64{kCr0Pg};
    state.cr4 |= m_random() & (kCr4Smep | kCr4Smap | kCr4Pke | kCr4Pge);
    access = static_cast<Access>(below(3));
    privilege = rare(4) ? Privilege::kSystem : Privilege::kCurrent;
  }

  Access access{};
  Privilege privilege{};

 private:
  u64 below(u64 limit) { return m_random() % limit; }
  bool rare(u64 one_in) { return below(one_in) == 0; }

  u64 leaf() {
    u64 flags = m_random() & (kP | kW | kU | kA | kD | kG | (u64{15} << 59));
    return flags | kP | (rare(4) ? kNx : 0) | (below(256) << 22);
  }

  // Mostly changes of single flags, so that deep levels are reached too.
  void disturb(PagingGuest& guest, unsigned level, const PageKind& kind) {
    u64 entry = guest.entry(level);
    bool pdpte = kind.mode == PagingMode::kPae && level == 3;
    if (rare(6) && !pdpte) entry &= ~(rare(2) ? kW : kU);
    if (rare(3) && !pdpte) entry |= kA;
    if (rare(16)) entry &= ~kP;
    if (rare(6)) entry |= u64{1} << below(64);
    guest.set_entry(level, entry);
  }

  std::mt19937_64 m_random;
};

Expected observed(PagingGuest& guest, Access access, Privilege privilege) {
  std::vector<u8> before(guest.host_base(), guest.host_base() + 0x8000);
  auto result = guest.walk(access, privilege);
  Expected seen;
  if (result.ok()) {
    const Translation& t = result.value();
    seen = {.gpa = t.gpa.value,
            .page_size = t.page_size,
            .writable = t.writable,
            .user = t.user,
            .global = t.global,
            .executable = t.executable};
  } else {
    seen.error = static_cast<int>(result.error().fault.error);
  }
  unsigned width = paging_mode(guest.state) == PagingMode::k32Bit ? 4 : 8;
  for (u64 at = 0; at < before.size(); at += width) {
    if (std::memcmp(&before[at], guest.host_base() + at, width) == 0) continue;
    u64 value = 0;
    std::memcpy(&value, guest.host_base() + at, width);
    seen.writes.push_back({at, value});
  }
  return seen;
}

// Number of cases in which both walks agree, and how many of them were permitted; stops at the first
// difference.
struct Tally {
  unsigned agreed = 0, permitted = 0, reserved = 0;
};
Tally compare(unsigned seed, unsigned cases) {
  Tally tally;
  RandomCases random(seed);
  PagingGuest guest;
  for (unsigned i = 0; i < cases; ++i) {
    std::memset(guest.host_base(), 0, 0x8000);
    random.make(guest);
    Expected expected = NaiveWalk(guest, random.access, random.privilege).run();
    Expected seen = observed(guest, random.access, random.privilege);
    EXPECT_EQ(seen, expected) << "seed " << seed << " case " << i << " mode " << int(paging_mode(guest.state))
                              << " access " << int(random.access) << " cpl " << int(guest.state.cpl);
    if (!(seen == expected)) return tally;
    ++tally.agreed;
    tally.permitted += expected.error == PagingGuest::kOk;
    tally.reserved += expected.error != PagingGuest::kOk && (expected.error & 8);
  }
  return tally;
}

class PagingRandom : public testing::TestWithParam<unsigned> {};
INSTANTIATE_TEST_SUITE_P(Seeds, PagingRandom, testing::Range(1u, 9u));

TEST_P(PagingRandom, both_walks_agree) {
  Tally tally = compare(GetParam(), 5000);
  EXPECT_EQ(tally.agreed, 5000u);
  // The cases must reach all ends.
  EXPECT_GT(tally.permitted, 500u);
  EXPECT_GT(tally.reserved, 100u);
}

}  // namespace
}  // namespace anykvm::x86
