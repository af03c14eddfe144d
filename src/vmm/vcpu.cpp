#include "vmm/vcpu.h"

#include <signal.h>
#include <sys/mman.h>

#include <cerrno>

namespace anykvm::vmm {
namespace {

constexpr int kKickSignal = SIGUSR1;

}  // namespace

Outcome<std::unique_ptr<Vcpu>> Vcpu::create(const KvmFd& vm, u32 index, size_t run_size) {
  KvmBackend& backend = vm.backend();
  KvmFd fd(backend, vm.ioctl(KVM_CREATE_VCPU, index));
  if (!fd.valid()) return failure("cannot create vCPU {}: {}", index, strerror(errno));
  void* run = backend.mmap(nullptr, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (run == MAP_FAILED) return failure("cannot map the state of vCPU {}: {}", index, strerror(errno));
  return std::unique_ptr<Vcpu>(new Vcpu(std::move(fd), index, static_cast<kvm_run*>(run), run_size));
}

Vcpu::~Vcpu() { munmap(m_run, m_run_size); }

// The signal only has to interrupt system calls, so without SA_RESTART.
void Vcpu::install_kick_signal() {
  struct sigaction action {};
  action.sa_handler = [](int) {};
  sigaction(kKickSignal, &action, nullptr);
}

void Vcpu::kick(pthread_t thread) {
  __atomic_store_n(&m_run->immediate_exit, 1, __ATOMIC_RELEASE);
  pthread_kill(thread, kKickSignal);
}

void Vcpu::run(ExitHandler& handler, Stop& stop) {
  while (!stop.requested()) {
    int result = m_fd.ioctl(KVM_RUN);
    m_exits.fetch_add(1, std::memory_order_relaxed);
    if (result == 0) {
      handle_exit(handler, stop);
    } else if (errno != EINTR && errno != EAGAIN) {
      const char* why = strerror(errno);
      stop.request({StopCause::kError, failure("vCPU {} cannot run: {}{}", m_index, why, where()).text});
    }
  }
}

// For error sentences: the guest's instruction pointer, if it can be had.
std::string Vcpu::where() const {
  kvm_regs regs{};
  if (m_fd.ioctl(KVM_GET_REGS, &regs) < 0) return "";
  return fmt::format(" (guest RIP {:#x})", regs.rip);
}

void Vcpu::handle_ports(ExitHandler& handler) {
  const auto& io = m_run->io;
  // SAFETY: the KVM places count * size bytes at data_offset inside the mapped run structure.
  u8* data = reinterpret_cast<u8*>(m_run) + io.data_offset;
  for (u32 i = 0; i < io.count; ++i, data += io.size) {
    std::span<u8> bytes(data, io.size);
    if (io.direction == KVM_EXIT_IO_IN) {
      handler.port_read(io.port, bytes);
    } else {
      handler.port_write(io.port, bytes);
    }
  }
}

void Vcpu::handle_memory(ExitHandler& handler) {
  auto& mmio = m_run->mmio;
  std::span<u8> bytes(mmio.data, mmio.len);
  if (mmio.is_write) {
    handler.memory_write(Gpa(mmio.phys_addr), bytes);
  } else {
    handler.memory_read(Gpa(mmio.phys_addr), bytes);
  }
}

void Vcpu::handle_system_event(Stop& stop) {
  switch (m_run->system_event.type) {
    case KVM_SYSTEM_EVENT_SHUTDOWN:
      return stop.request({.cause = StopCause::kPowerOff});
    case KVM_SYSTEM_EVENT_RESET:
      return stop.request({.cause = StopCause::kReset});
    default:
      return stop.request(
          {StopCause::kError,
           failure("vCPU {} reports system event {}", m_index, m_run->system_event.type).text});
  }
}

void Vcpu::handle_exit(ExitHandler& handler, Stop& stop) {
  auto error = [&](const Failure& what) { stop.request({StopCause::kError, what.text + where()}); };
  switch (m_run->exit_reason) {
    case KVM_EXIT_IO:
      return handle_ports(handler);
    case KVM_EXIT_MMIO:
      return handle_memory(handler);
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
      return;
    case KVM_EXIT_SHUTDOWN:
      return stop.request({.cause = StopCause::kTripleFault});
    case KVM_EXIT_SYSTEM_EVENT:
      return handle_system_event(stop);
    case KVM_EXIT_FAIL_ENTRY:
      return error(failure("vCPU {} cannot enter the guest: hardware reason {:#x}", m_index,
                           m_run->fail_entry.hardware_entry_failure_reason));
    case KVM_EXIT_INTERNAL_ERROR:
      return error(failure("vCPU {} met a KVM internal error {}", m_index, m_run->internal.suberror));
    default:
      return error(failure("vCPU {} stopped with exit reason {}, which the VMM does not know", m_index,
                           m_run->exit_reason));
  }
}

}  // namespace anykvm::vmm
