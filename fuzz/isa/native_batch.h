#pragma once
// Runs many cases on the host CPU in a child process, which may neither call the kernel from their code nor
// harm this process. A child that dies is replaced; the case that killed it ends by Outcome::kLost.
// Owner: one fuzzer. One thread.

#include <sys/types.h>

#include "user_state.h"

namespace anykvm::isa {

// A pair of pages: code is in it, and nothing else.
using CodePair = std::array<u8, kCodePair>;

// One run of some code: lies in memory that both processes share.
struct Job {
  unsigned code_bits = 64;
  CodePair code{};
  UserState start;
  Memory memory{};
  // Filled by the child.
  Outcome outcome;
  CodePair code_after{};
};

class NativeBatch {
 public:
  static constexpr unsigned kJobs = 64;

  NativeBatch();
  ~NativeBatch();
  NativeBatch(const NativeBatch&) = delete;
  NativeBatch& operator=(const NativeBatch&) = delete;

  Job& job(unsigned i) { return m_shared->jobs[i]; }
  void run(unsigned count);
  // Is there memory of the child's own at `address`? What code reads there is nobody's business.
  bool childs_own(u64 address) const;
  u64 deaths() const { return m_deaths; }
  // There are the descriptors of user_descriptors.h.
  bool has_descriptors() const { return m_has_descriptors; }

 private:
  struct Shared {
    volatile unsigned begun = 0;  // the job that is running
    Job jobs[kJobs];
  };

  void start();
  void stop();
  [[noreturn]] void serve(int requests, int answers);
  bool ask(unsigned first, unsigned count);

  Shared* m_shared = nullptr;
  pid_t m_child = -1;
  int m_requests = -1, m_answers = -1;  // our ends of two pipes
  u64 m_deaths = 0;
  bool m_has_descriptors = false;
};

}  // namespace anykvm::isa
