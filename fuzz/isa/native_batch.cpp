#include "native_batch.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <string>

#include "native_cpu.h"
#include "stream.h"

namespace anykvm::isa {
namespace {

[[noreturn]] void give_up(const char* what) {
  std::perror(what);
  std::abort();
}

void run_natively(Job& job) {
  NativeCpu& cpu = NativeCpu::instance();
  cpu.open_code(job.start.rip);
  u8* code = cpu.code(code_pair(job.start.rip));
  std::memcpy(code, job.code.data(), job.code.size());
  job.outcome = cpu.run(job.start, job.memory, job.code_bits);
  std::memcpy(job.code_after.data(), code, job.code.size());
  std::memset(code, kHlt, job.code.size());  // other code may read it: only what runs now is there
}

}  // namespace

NativeBatch::NativeBatch() {
  void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) give_up("memory for jobs");
  m_shared = new (memory) Shared;
  m_has_descriptors = NativeCpu::make_descriptors();  // the children inherit them
  start();
}

NativeBatch::~NativeBatch() {
  stop();
  munmap(m_shared, sizeof(Shared));
}

void NativeBatch::start() {
  int requests[2], answers[2];
  if (pipe2(requests, O_CLOEXEC) != 0 || pipe2(answers, O_CLOEXEC) != 0) give_up("pipes");
  m_child = fork();
  if (m_child < 0) give_up("fork");
  if (m_child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(requests[1]);
    close(answers[0]);
    serve(requests[0], answers[1]);
  }
  close(requests[0]);
  close(answers[1]);
  m_requests = requests[1];
  m_answers = answers[0];
}

void NativeBatch::stop() {
  close(m_requests);
  close(m_answers);
  kill(m_child, SIGKILL);
  waitpid(m_child, nullptr, 0);
  m_child = -1;
}

void NativeBatch::serve(int requests, int answers) {
  NativeCpu::instance().confine();
  std::memset(NativeCpu::instance().code(kCodeBase), kHlt, kCodeSize);
  unsigned request[2];
  while (read(requests, request, sizeof request) == sizeof request) {
    for (unsigned i = request[0]; i < request[0] + request[1]; ++i) {
      m_shared->begun = i;
      run_natively(m_shared->jobs[i]);
    }
    if (write(answers, request, 1) != 1) break;
  }
  _exit(0);
}

bool NativeBatch::ask(unsigned first, unsigned count) {
  unsigned request[2] = {first, count};
  char answer;
  bool sent = write(m_requests, request, sizeof request) == sizeof request;
  return sent && read(m_answers, &answer, 1) == 1;
}

void NativeBatch::run(unsigned count) {
  for (unsigned first = 0; first < count;) {
    if (ask(first, count - first)) return;
    unsigned killer = m_shared->begun;
    m_shared->jobs[killer].outcome.vector = Outcome::kLost;
    first = killer + 1;
    ++m_deaths;
    stop();
    start();
  }
}

bool NativeBatch::childs_own(u64 address) const {
  std::ifstream maps("/proc/" + std::to_string(m_child) + "/maps");
  for (std::string line; std::getline(maps, line);) {
    unsigned long long first = 0, last = 0;
    if (std::sscanf(line.c_str(), "%llx-%llx", &first, &last) != 2) continue;
    bool data = first >= kDataBase && last <= kDataEnd;
    data |= first >= kCodeBase && last <= kCodeBase + kCodeSize;
    if (address + 64 >= first && address < last + 64 && !data) return true;
  }
  return false;
}

}  // namespace anykvm::isa
