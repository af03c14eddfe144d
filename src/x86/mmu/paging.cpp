#include "x86/mmu/paging.h"

#include <algorithm>

#include "x86/mmu/page_walk.h"

namespace anykvm::x86 {

Gpa as_seen(const CpuState& state, const PhysicalMemory& memory, Gpa address) {
  return state.smm.active ? memory.in_management_space(address) : address;
}

namespace {

using namespace paging;

// What one page allows to one kind of access, SDM 3A 4.6.
struct Rights {
  bool read, write, fetch;
  bool key_denies_read = false, key_denies_write = false;

  bool allows(Access access) const {
    switch (access) {
      case Access::kRead:
        return read && !key_denies_read;
      case Access::kWrite:
        return write && !key_denies_write;
      case Access::kFetch:
        return fetch;
    }
    return false;
  }
  bool key_denies(Access access) const {
    return (access == Access::kRead && key_denies_read) || (access == Access::kWrite && key_denies_write);
  }
};

bool user_mode_access(const CpuState& state, Privilege privilege) {
  return state.cpl == 3 && privilege == Privilege::kCurrent;
}

template <class Mode>
Rights rights_of(const Walk<Mode>& walk, const CpuState& state, Privilege privilege) {
  bool user_access = user_mode_access(state, privilege);
  bool write_protect = user_access || (state.cr0 & kCr0Wp);
  Rights rights{};
  if (user_access) {
    rights.read = walk.user();
    rights.fetch = walk.user();
  } else {
    // RFLAGS.AC lifts SMAP for explicit accesses only.
    bool access_check_off = privilege == Privilege::kCurrent && (state.rflags & kFlagAc);
    rights.read = !(walk.user() && (state.cr4 & kCr4Smap) && !access_check_off);
    rights.fetch = !(walk.user() && (state.cr4 & kCr4Smep));
  }
  rights.write = rights.read && (walk.writable() || !write_protect);
  rights.fetch = rights.fetch && !walk.no_execute();

  // Protection keys guard user pages against data accesses, the supervisor's too (SDM 3A 4.6.2).
  if (Mode::kProtectionKeys && (state.cr4 & kCr4Pke) && walk.user()) {
    u32 key_bits = state.pkru >> (2 * walk.protection_key());
    rights.key_denies_read = key_bits & 1;
    rights.key_denies_write = (key_bits & 1) || ((key_bits & 2) && write_protect);
  }
  return rights;
}

constexpr u32 kReservedCode = kPfPresent | kPfReserved;

// The bits of the error code that do not depend on why (SDM 3A 4.7).
u32 error_code(const CpuState& state, Access access, Privilege privilege) {
  u32 code = user_mode_access(state, privilege) ? u32{kPfUser} : 0;
  if (access == Access::kWrite) code |= kPfWrite;
  bool fetch_reported = (state.cr4 & kCr4Smep) || ((state.cr4 & kCr4Pae) && (state.efer & kEferNx));
  if (access == Access::kFetch && fetch_reported) code |= kPfFetch;
  return code;
}

// --- Nested guests ---

Dimension first_dimension(const CpuState& state) {
  return state.svm.nested_paging() ? Dimension::kGuest : Dimension::kOnly;
}

// What the guest's own tables gave, or its linear address without paging, on its way to memory.
Guest<Translation> to_memory(const CpuState& state, const PhysicalMemory& memory, Translation guest,
                             Access access, unsigned address_bits) {
  if (state.svm.nested_paging()) {
    const NestedTranslation nested =
        TRY(translate_nested(state, memory, guest.gpa, access, Stage::kFinal, address_bits));
    guest.gpa = nested.gpa;
    guest.page_size = std::min(guest.page_size, nested.page_size);
    guest.writable = guest.writable && nested.writable;
    guest.executable = guest.executable && nested.executable;
  }
  guest.gpa = as_seen(state, memory, guest.gpa);
  return guest;
}

template <class Mode>
Guest<Translation> translate_with(const CpuState& state, const PhysicalMemory& memory, Gva address,
                                  Access access, Privilege privilege, unsigned address_bits, u64 table) {
  for (;;) {
    Walk<Mode> walk(state, memory, address.value, address_bits, first_dimension(state));
    Outcome outcome = walk.run(table);
    if (outcome == Outcome::kStopped) return *walk.stop();
    if (outcome != Outcome::kFound) {
      u32 why = outcome == Outcome::kReserved ? kReservedCode : 0;
      return GuestStop::pf(error_code(state, access, privilege) | why, address);
    }
    Rights rights = rights_of(walk, state, privilege);
    if (!rights.allows(access)) {
      u32 why = rights.key_denies(access) ? kPfPresent | kPfProtectionKey : u32{kPfPresent};
      return GuestStop::pf(error_code(state, access, privilege) | why, address);
    }
    if (!walk.set_accessed_and_dirty(access == Access::kWrite)) {
      if (walk.stop()) return *walk.stop();
      continue;
    }
    const Translation found{.gpa = walk.gpa(),
                            .page_size = walk.page_size(),
                            .writable = rights.allows(Access::kWrite) && walk.dirty(),
                            .user = walk.user(),
                            .global = walk.global(),
                            .executable = rights.allows(Access::kFetch)};
    return to_memory(state, memory, found, access, address_bits);
  }
}

// --- PAE's top level, SDM 3A 4.4.1 ---

Gpa pdpte_address(u64 cr3, unsigned index) { return Gpa((cr3 & mask(31, 5)) + index * 8); }

u64 pdpte_reserved(unsigned address_bits) { return mask(2, 1) | mask(8, 5) | ~low_bits(address_bits); }

Guest<u64> read_pdpte(const CpuState& state, const PhysicalMemory& memory, u64 cr3, unsigned index) {
  Gpa address = pdpte_address(cr3, index);
  if (state.svm.nested_paging())
    address = TRY(translate_nested(state, memory, address, Access::kWrite, Stage::kTables, 52)).gpa;
  return read_entry(state, memory, address);
}

Guest<u64> current_pdpte(const CpuState& state, const PhysicalMemory& memory, Gva address) {
  auto index = static_cast<unsigned>(bits(address.value, 31, 30));
  if (state.pdptes_valid) return state.pdptes[index];
  return read_pdpte(state, memory, state.cr3, index);
}

Guest<Translation> translate_pae(const CpuState& state, const PhysicalMemory& memory, Gva address,
                                 Access access, Privilege privilege, unsigned address_bits) {
  u64 pdpte = TRY(current_pdpte(state, memory, address));
  u32 code = error_code(state, access, privilege);
  if (!(pdpte & kEntryPresent)) return GuestStop::pf(code, address);
  if (pdpte & pdpte_reserved(address_bits)) return GuestStop::pf(code | kReservedCode, address);
  return translate_with<Pae>(state, memory, address, access, privilege, address_bits, pdpte & kEntryAddress);
}

Guest<Translation> translate_without_paging(const CpuState& state, const PhysicalMemory& memory, Gva address,
                                            Access access, unsigned address_bits) {
  const Translation found{.gpa = Gpa(address.value & low_bits(32)),
                          .page_size = kPageSize,
                          .writable = true,
                          .user = true,
                          .global = false,
                          .executable = true};
  return to_memory(state, memory, found, access, address_bits);
}

DebugTranslation debug_to_memory(const CpuState& state, const PhysicalMemory& memory,
                                 DebugTranslation guest) {
  if (!state.svm.nested_paging()) return guest;
  const auto nested =
      translate_nested(state, memory, guest.gpa, Access::kRead, Stage::kFinal, 52, Manner::kLook);
  if (!nested.ok()) return {};
  return {true, guest.writable && nested.value().writable, guest.user, nested.value().gpa};
}

template <class Mode>
DebugTranslation debug_with(const CpuState& state, const PhysicalMemory& memory, Gva address, u64 table) {
  Walk<Mode> walk(state, memory, address.value, 52, first_dimension(state), Manner::kLook);
  if (walk.run(table) != Outcome::kFound) return {};
  return debug_to_memory(state, memory, {true, walk.writable(), walk.user(), walk.gpa()});
}

DebugTranslation debug_pae(const CpuState& state, const PhysicalMemory& memory, Gva address) {
  auto pdpte = current_pdpte(state, memory, address);
  if (!pdpte.ok() || !(pdpte.value() & kEntryPresent)) return {};
  return debug_with<Pae>(state, memory, address, pdpte.value() & kEntryAddress);
}

}  // namespace

// flatten: small inline functions of headers exist in other translation units too, compiled with vector
// instructions, and the linker may keep those. Inlined they cannot be mixed up.
[[gnu::flatten]] Guest<Translation> translate(const CpuState& state, const PhysicalMemory& memory,
                                              Gva address, Access access, Privilege privilege,
                                              unsigned physical_address_bits) {
  u64 table = state.cr3 & kEntryAddress;
  switch (paging_mode(state)) {
    case PagingMode::kNone:
      break;
    case PagingMode::k32Bit:
      return translate_with<Legacy>(state, memory, address, access, privilege, physical_address_bits,
                                    table & low_bits(32));
    case PagingMode::kPae:
      return translate_pae(state, memory, address, access, privilege, physical_address_bits);
    case PagingMode::k4Level:
      return translate_with<Long<4>>(state, memory, address, access, privilege, physical_address_bits, table);
    case PagingMode::k5Level:
      return translate_with<Long<5>>(state, memory, address, access, privilege, physical_address_bits, table);
  }
  return translate_without_paging(state, memory, address, access, physical_address_bits);
}

Guest<void> load_pdptes(CpuState& state, const PhysicalMemory& memory, u64 cr3,
                        unsigned physical_address_bits) {
  std::array<u64, 4> loaded{};
  for (unsigned i = 0; i < loaded.size(); ++i) {
    loaded[i] = TRY(read_pdpte(state, memory, cr3, i));
    bool reserved = loaded[i] & pdpte_reserved(physical_address_bits);
    if ((loaded[i] & kEntryPresent) && reserved) return GuestStop::gp(0);
  }
  state.pdptes = loaded;
  state.pdptes_valid = true;
  return {};
}

std::array<u64, 4> pdptes_in_use(const CpuState& state, const PhysicalMemory& memory) {
  if (state.pdptes_valid) return state.pdptes;
  std::array<u64, 4> in_memory{};
  for (unsigned i = 0; i < in_memory.size(); ++i) {
    const Guest<u64> entry = read_pdpte(state, memory, state.cr3, i);
    if (entry.ok()) in_memory[i] = entry.value();
  }
  return in_memory;
}

DebugTranslation translate_for_debug(const CpuState& state, const PhysicalMemory& memory, Gva address) {
  u64 table = state.cr3 & kEntryAddress;
  switch (paging_mode(state)) {
    case PagingMode::kNone:
      break;
    case PagingMode::k32Bit:
      return debug_with<Legacy>(state, memory, address, table & low_bits(32));
    case PagingMode::kPae:
      return debug_pae(state, memory, address);
    case PagingMode::k4Level:
      return state.canonical(address.value) ? debug_with<Long<4>>(state, memory, address, table)
                                            : DebugTranslation{};
    case PagingMode::k5Level:
      return state.canonical(address.value) ? debug_with<Long<5>>(state, memory, address, table)
                                            : DebugTranslation{};
  }
  return debug_to_memory(state, memory, {true, true, true, Gpa(address.value & low_bits(32))});
}

}  // namespace anykvm::x86