#pragma once
// The accesses of the current instruction to MMIO and ports, and what was answered: an instruction that has
// to stop for the client is executed again from its start, and finds here what it already did (DESIGN D9).
// Owner: x86::Cpu. Only the vCPU's thread.

#include <array>
#include <optional>
#include <vector>

#include "x86/exit.h"
#include "x86/fault.h"
#include "x86/platform.h"

namespace anykvm::x86 {

struct BusAddress {
  bool port = false;
  u64 address = 0;  // port number, guest physical address, or MSR
  bool msr = false;
  bool call = false;

  bool operator==(const BusAddress&) const = default;
  bool is_memory() const { return !port && !msr && !call; }
  static BusAddress memory(Gpa gpa) { return {.address = gpa.value}; }
  static BusAddress io_port(u16 number) { return {.port = true, .address = number}; }
};

class IoReplay {
 public:
  IoReplay();

  // Before each attempt at an instruction (or at one element of a repeated one): its accesses start over.
  // Where `rip` is not the last attempt's, the client moved the CPU elsewhere meanwhile: the log is
  // dropped.
  void begin_instruction(u64 rip = 0) {
    if (rip != m_rip || m_delivery) done();
    m_rip = rip;
    m_delivery = false;
    m_cursor = 0;
    ++m_attempts;
  }
  // The same for an attempt to deliver an event, whose stack or tables may be outside of RAM.
  void begin_delivery() {
    if (!m_delivery) done();
    m_delivery = true;
    m_cursor = 0;
    ++m_attempts;
  }
  // How many of these two there have been.
  u64 attempts() const { return m_attempts; }
  // What is in progress is a delivery, not an instruction.
  bool delivering() const { return m_delivery && in_progress(); }
  // The instruction in progress began with an access to memory.
  bool repeats_memory_access() const {
    return !m_delivery && !m_log.empty() && m_log.front().where.is_memory();
  }
  // Of the last instruction that began.
  u64 rip() const { return m_rip; }

  // One access, in program order: from the log; else by the platform; else `exit` is filled and the result is
  // the stop for the client. `size` is 1 to 8 for memory; 1, 2 or 4 for ports.
  // Where `ahead` is above 1, the client is asked for so many items at once (KVM_EXIT_IO with a count): the
  // next reads of the same kind get them.
  Guest<void> read(BusAddress where, void* data, unsigned size, Platform& platform, Exit& exit,
                   unsigned ahead = 1);
  Guest<void> write(BusAddress where, const void* data, unsigned size, Platform& platform, Exit& exit);

  // The client carries out an access to an MSR: the value to write, or where the one read goes. False: it
  // refused.
  Guest<bool> msr(u32 index, bool write, u32 reason, u64* value, Exit& exit);

  // The client answers a hypercall of kind `code`.
  Guest<u64> call(u32 code, Exit& exit);

  // The client has answered this access already. Then it counts, whatever filters say by now.
  bool msr_answered(u32 index, bool write) const;
  // The kind of the hypercall that the client has answered already.
  std::optional<u32> answered_call() const;

  // The client's answer to the exit: what a read returned; null for writes. Without an open exit nothing
  // happens. `data` has as many items as the exit asked for.
  void complete(const void* data, bool refused = false);
  // An exit waits for complete().
  bool pending() const { return !m_log.empty() && !m_log.back().answered; }
  // The instruction has begun to act on the outside world: it must be finished (its next attempt started)
  // before any event is delivered to the guest, or its accesses would happen twice.
  bool in_progress() const { return !m_log.empty() || !m_ahead.empty(); }

  // The instruction completed, or its fault was delivered: forget.
  void done();
  // One element of a repeated instruction completed: what was read ahead is kept for the next.
  void element_done();

 private:
  struct Fragment {
    BusAddress where;
    bool write = false;
    bool answered = false;
    bool refused = false;
    u8 size = 0;
    std::array<u8, 8> data{};
  };

  Fragment* replayed(BusAddress where, bool write, unsigned size);
  const Fragment* next_answer() const;
  GuestStop leave(const Fragment& fragment, Exit& exit);
  bool take_ahead(BusAddress where, void* data, unsigned size);

  std::vector<Fragment> m_log;  // only the last one may be unanswered
  std::vector<u8> m_ahead;      // items that the client answered ahead, the next one last
  BusAddress m_ahead_where;
  u8 m_ahead_size = 0;
  unsigned m_asked = 1;  // items that the open exit asks for
  u64 m_rip = 0, m_attempts = 0;
  bool m_delivery = false;
  std::size_t m_cursor = 0;  // the next access of this attempt
};

}  // namespace anykvm::x86
