#pragma once
// Why a guest instruction did not complete: a fault for the guest, or work for the client.
// Owner: nobody; plain values. Any thread.

#include "base/expected.h"
#include "base/types.h"
#include "x86/state/bits.h"

namespace anykvm::x86 {

// A fault as the manuals describe it. RIP and all registers are still those before the instruction.
struct GuestFault {
  u8 vector = 0;
  bool has_error = false;
  u32 error = 0;
  u64 payload = 0;  // #PF: the linear address for CR2; #DB: the bits to set in DR6
};

// `kFault`: deliver `fault`. `kExit`: Cpu::pending_exit() says what the client must do; the instruction is
// executed again from its start when the client comes back (DESIGN D9). `kUnmapped`: the client has taken
// away guest RAM that the instruction needs; as kExit, with Exit::Reason::kMemoryFault. `kAgain`: another
// vCPU was in the way; the instruction is executed again from its start, at once. `kAbsent`: the host may
// have to fetch the page at the guest-physical address in `fault.payload` first; the guest is told, or the
// instruction is executed again and waits (mmu/absent_pages.h). `kNestedPageFault`, `kVmexit`: the hypervisor
// of a nested guest is asked (nested/svm/), because of its page tables or as Cpu::stop_for_hypervisor() was
// told.
struct GuestStop {
  enum class Kind : u8 {
    kFault,
    kExit,
    kUnmapped,
    kAgain,
    kAbsent,
    kNestedPageFault,
    kVmexit
  } kind = Kind::kFault;
  GuestFault fault{};

  static GuestStop exit() { return {Kind::kExit, {}}; }
  static GuestStop unmapped() { return {Kind::kUnmapped, {}}; }
  static GuestStop again() { return {Kind::kAgain, {}}; }
  static GuestStop absent(Gpa page) { return {Kind::kAbsent, {0, false, 0, page.value}}; }
  // `error` as a page fault's; `in_tables`: the access was the page walker's.
  static GuestStop nested_page_fault(u32 error, Gpa address, bool in_tables) {
    return {Kind::kNestedPageFault, {kVectorPf, in_tables, error, address.value}};
  }
  static GuestStop vmexit() { return {Kind::kVmexit, {}}; }
  static GuestStop plain(u8 vector) { return {Kind::kFault, {vector, false, 0, 0}}; }
  static GuestStop with_error(u8 vector, u32 error) { return {Kind::kFault, {vector, true, error, 0}}; }
  static GuestStop de() { return plain(kVectorDe); }
  static GuestStop ud() { return plain(kVectorUd); }
  static GuestStop nm() { return plain(kVectorNm); }
  static GuestStop mf() { return plain(kVectorMf); }
  static GuestStop db(u64 dr6_bits) { return {Kind::kFault, {kVectorDb, false, 0, dr6_bits}}; }
  static GuestStop ts(u32 error) { return with_error(kVectorTs, error); }
  static GuestStop np(u32 error) { return with_error(kVectorNp, error); }
  static GuestStop ss(u32 error) { return with_error(kVectorSs, error); }
  static GuestStop gp(u32 error) { return with_error(kVectorGp, error); }
  static GuestStop ac() { return with_error(kVectorAc, 0); }
  static GuestStop pf(u32 error, Gva address) {
    return {Kind::kFault, {kVectorPf, true, error, address.value}};
  }
};

// The result of anything done on behalf of a guest instruction. Use TRY() to pass a stop up.
template <class T = void>
using Guest = Expected<T, GuestStop>;

}  // namespace anykvm::x86
