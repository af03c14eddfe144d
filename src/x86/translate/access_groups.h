#pragma once
// Which accesses of a block one check serves: those off one base register, close together, while constants
// are all that is added to it. The first of them, the leader, checks the bytes of all, for writing if any of
// them writes (docs/decisions/access-groups.md). Owner: one translation.

#include <array>
#include <functional>

#include "x86/translate/decode.h"
#include "x86/translate/policy.h"

namespace anykvm::x86 {

// An instruction's part in a group.
struct GroupPlace {
  static constexpr u8 kNone = 0xff;

  u8 group = kNone;     // number within the block
  bool leads = false;   // the check is here
  bool writes = false;  // of the leader: some access of the group writes
  i16 low = 0;          // of the leader: where the group's bytes begin, from its own address
  u16 span = 0;         // of the leader: how many there are

  bool follows() const { return group != kNone && !leads; }
};

// Does the instruction do nothing to registers but add a constant to a whole one?
bool adds_constant(const Decoded& d, u8* gpr, i64* constant);

class AccessGroups {
 public:
  static constexpr u8 kMostGroups = 16;  // in a block

  // The instructions of the block in their order. `place` must stay where it is until finish(). `may_lead`:
  // the access was never found to be better off alone.
  void add(const Decoded& d, const Policy& policy, bool may_lead, GroupPlace* place);
  void finish();

 private:
  struct Access {
    u8 base;
    i64 displacement;
    unsigned size;
    bool write;
  };
  // Of one base register; addresses count from its value at the leader.
  struct Open {
    GroupPlace* leader = nullptr;
    i64 moved = 0;          // what was added since
    i64 leader_at = 0;      // the leader's address
    i64 low = 0, high = 0;  // the bytes of all
    bool certain = true;    // whatever comes now is executed, unless something faults
  };
  // The groups of a base register that are open, the latest first: functions work on two ends of a frame.
  using Groups = std::array<Open, 2>;

  static bool access_of(const Decoded& d, const Policy& policy, Access* out);
  void place_access(const Access& access, bool may_lead, GroupPlace* place);
  bool join(Open& open, const Access& access, GroupPlace* place);
  void follow_registers(const Decoded& d, const Policy& policy);
  void forget(u16 gprs);

  std::array<Groups, 16> m_open{};
  std::array<GroupPlace*, kMostGroups> m_leaders{};
  std::array<u8, kMostGroups> m_members{};
  u8 m_count = 0;
};

}  // namespace anykvm::x86
