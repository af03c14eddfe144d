#include "session.h"

#include <anykvm/anykvm.h>
#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "arguments.h"

namespace anykvm::fuzz {
namespace {

constexpr std::size_t kMostVms = 5, kMostVcpus = 10, kMostOthers = 24;
constexpr u64 kRunMilliseconds = 1, kCallMilliseconds = 5000;

void close_any(int fd) {
  if (anykvm_owns(fd)) {
    anykvm_close(fd);
  } else {
    close(fd);
  }
}

}  // namespace

// One thread's calls.
class Session::Caller {
 public:
  Caller(Session& session, u64 seed) : m_session(session), m_random(seed), m_arguments(session.m_ram) {}

  void call() {
    switch (m_random.below(64)) {
      case 0:
      case 1:
        return create_vm();
      case 2:
      case 3:
      case 4:
        return create_vcpu();
      case 5:
        return m_session.remove(m_random);
      case 6:
        return m_session.add(Kind::kOther, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
      case 7:
        return duplicate();
      case 8:
        return start_program();
      default:
        return m_random.one_in(40) ? run_cpu(m_session.pick(m_random, Kind::kVcpu)) : any_request();
    }
  }

 private:
  long note(long result) {
    m_session.m_totals.calls++;
    if (result >= 0) {
      m_session.m_totals.good++;
    } else {
      m_session.m_totals.by_error[static_cast<unsigned>(errno) % 160]++;
    }
    return result;
  }

  void create_vm() {
    if (m_session.count(Kind::kVm) >= kMostVms) return;
    Descriptor system = m_session.pick(m_random, Kind::kSystem);
    int vm = static_cast<int>(
        note(anykvm_ioctl(system.fd, KVM_CREATE_VM, m_random.one_in(16) ? m_random.next() : 0)));
    if (vm < 0) return;
    if (m_random.one_in(2)) note(anykvm_ioctl(vm, KVM_CREATE_IRQCHIP, 0));
    kvm_userspace_memory_region region{0, 0, 0, Arguments::kRamSize / 2,
                                       reinterpret_cast<u64>(m_session.m_ram)};
    note(anykvm_ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
    m_session.add(Kind::kVm, vm);
  }

  void create_vcpu() {
    if (m_session.count(Kind::kVcpu) >= kMostVcpus) return;
    Descriptor vm = m_session.pick(m_random, Kind::kVm);
    int cpu = static_cast<int>(note(anykvm_ioctl(vm.fd, KVM_CREATE_VCPU, m_random.below(6))));
    if (cpu >= 0) m_session.add(Kind::kVcpu, cpu);
  }

  void duplicate() {
    Descriptor other = m_session.pick(m_random, static_cast<Kind>(m_random.below(4)));
    if (m_session.count(Kind::kOther) < kMostOthers) m_session.add(Kind::kOther, dup(other.fd));
  }

  // So that some vCPUs run code.
  void start_program() {
    Descriptor cpu = m_session.pick(m_random, Kind::kVcpu);
    kvm_sregs sregs{};
    kvm_regs regs{};
    auto mode = static_cast<CpuMode>(m_random.below(kCpuModes));
    if (note(anykvm_ioctl(cpu.fd, KVM_GET_SREGS, &sregs)) < 0) return;
    if (m_random.one_in(8)) write_program(m_random, mode, m_session.m_ram);
    random_state(m_random, mode, &sregs, &regs);
    note(anykvm_ioctl(cpu.fd, KVM_SET_SREGS, &sregs));
    note(anykvm_ioctl(cpu.fd, KVM_SET_REGS, &regs));
    run_cpu(cpu);
  }

  void run_cpu(const Descriptor& cpu) {
    if (!cpu.run) return;
    Watchdog::Turn turn(m_session.m_watchdog, cpu.run, kRunMilliseconds, name("KVM_RUN"));
    m_session.m_totals.runs++;
    note(anykvm_ioctl(cpu.fd, KVM_RUN, 0));
  }

  void any_request() {
    const Request& request = m_arguments.request(m_random);
    bool fits = !m_random.one_in(8);
    Descriptor to = m_session.pick(m_random, fits ? request.kind : static_cast<Kind>(m_random.below(4)));
    if (request.number == KVM_RUN) return run_cpu(to);
    unsigned long argument = m_arguments.argument(m_random, request.number);
    unsigned long number = m_arguments.number(m_random, request.number);
    // Those that make VMs and vCPUs have their own functions.
    if (number == KVM_CREATE_VM || number == KVM_CREATE_VCPU) return;
    long result = 0;
    {
      Watchdog::Turn turn(m_session.m_watchdog, nullptr, kCallMilliseconds, name(request.name));
      result = note(anykvm_ioctl(to.fd, number, argument));
    }
    bool makes_descriptor = number == KVM_GET_STATS_FD || number == KVM_CREATE_GUEST_MEMFD;
    if (result >= 0 && makes_descriptor) m_session.add(Kind::kOther, static_cast<int>(result));
  }

  std::string name(const char* what) const { return fmt::format("{}, session {}", what, m_session.m_seed); }

  Session& m_session;
  Random m_random;
  Arguments m_arguments;
};

Session::Session(u64 seed, Watchdog& watchdog, Totals& totals)
    : m_seed(seed), m_watchdog(watchdog), m_totals(totals) {
  void* ram = mmap(nullptr, Arguments::kRamSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (ram == MAP_FAILED) {
    std::perror("guest memory");
    std::abort();
  }
  m_ram = static_cast<u8*>(ram);
  int system = anykvm_open("/dev/kvm", O_CLOEXEC);
  m_run_size = static_cast<std::size_t>(anykvm_ioctl(system, KVM_GET_VCPU_MMAP_SIZE, 0));
  add(Kind::kSystem, system);
  add(Kind::kVm, anykvm_ioctl(system, KVM_CREATE_VM, 0));
}

Session::~Session() {
  for (const Descriptor& d : m_open) close_any(d.fd);
  for (kvm_run* run : m_mapped) munmap(run, m_run_size);
  munmap(m_ram, Arguments::kRamSize);
}

void Session::run(unsigned threads, u64 calls) {
  auto work = [&](unsigned number) {
    Caller caller(*this, m_seed * 64 + number);
    for (u64 left = calls / threads; left > 0; --left) caller.call();
  };
  std::vector<std::thread> others;
  for (unsigned i = 1; i < threads; ++i) others.emplace_back(work, i);
  work(0);
  for (auto& thread : others) thread.join();
}

// One of this kind, closed or not; some other number if there is none.
Session::Descriptor Session::pick(Random& random, Kind kind) {
  std::lock_guard lock(m_mutex);
  if (!m_closed.empty() && random.one_in(40)) return {kind, m_closed[random.below(m_closed.size())]};
  std::size_t some = random.below(m_open.size());
  for (std::size_t i = 0; i < m_open.size(); ++i) {
    const Descriptor& d = m_open[(some + i) % m_open.size()];
    if (d.kind == kind) return d;
  }
  return {kind, random.one_in(2) ? -1 : 1000};
}

void Session::add(Kind kind, int fd) {
  if (fd < 0) return;
  Descriptor d{kind, fd};
  if (kind == Kind::kVcpu) {
    void* run = anykvm_mmap(nullptr, m_run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (run != MAP_FAILED) d.run = static_cast<kvm_run*>(run);
  }
  std::lock_guard lock(m_mutex);
  if (d.run) m_mapped.push_back(d.run);
  m_open.push_back(d);
}

// Closes something that others may be using.
void Session::remove(Random& random) {
  int fd = -1;
  {
    std::lock_guard lock(m_mutex);
    auto i = static_cast<std::ptrdiff_t>(random.below(m_open.size()));
    if (m_open[static_cast<std::size_t>(i)].kind == Kind::kSystem) return;
    fd = m_open[static_cast<std::size_t>(i)].fd;
    m_open.erase(m_open.begin() + i);
    if (m_closed.size() > 64) m_closed.erase(m_closed.begin());
    m_closed.push_back(fd);
  }
  close_any(fd);
}

std::size_t Session::count(Kind kind) {
  std::lock_guard lock(m_mutex);
  return static_cast<std::size_t>(
      std::count_if(m_open.begin(), m_open.end(), [&](const Descriptor& d) { return d.kind == kind; }));
}

}  // namespace anykvm::fuzz
