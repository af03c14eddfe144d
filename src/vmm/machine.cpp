#include "vmm/machine.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <ctime>
#include <numeric>

#include "vmm/acpi.h"
#include "vmm/boot_cpu.h"
#include "vmm/console_loop.h"
#include "vmm/cpuid.h"
#include "vmm/file.h"
#include "vmm/layout.h"
#include "vmm/linux_loader.h"
#include "vmm/notice.h"
#include "vmm/vcpu_setup.h"

namespace anykvm::vmm {
namespace {

constexpr int kApiVersion = 12;

i64 clock_ns(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return i64{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

}  // namespace

Machine::Machine(const MachineConfig& config, GuestMemory memory)
    : m_config(config),
      m_memory(std::move(memory)),
      m_output(STDOUT_FILENO, m_stop),
      m_serial(
          irq_line(kSerialIrq), [this](u8 byte) { m_output.put(byte); }, [this] { m_wakeup.signal(); }),
      m_i8042(stopper(StopCause::kReset)),
      m_rtc(
          irq_line(kRtcIrq), [] { return clock_ns(CLOCK_REALTIME); }, [this] { m_wakeup.signal(); }),
      m_acpi_pm(stopper(StopCause::kPowerOff), [] { return static_cast<u64>(clock_ns(CLOCK_MONOTONIC)); }),
      m_reset(stopper(StopCause::kReset)) {
  m_ports.add(kSerialPort, 8, m_serial);
  m_ports.add(kI8042Port, 5, m_i8042);  // 61H, in between, is answered by the KVM's PIT
  m_ports.add(kRtcPort, 2, m_rtc);
  m_ports.add(kAcpiPmPort, devices::AcpiPm::kSize, m_acpi_pm);
  m_ports.add(kResetPort, 1, m_reset);
}

Machine::~Machine() = default;

std::function<void()> Machine::stopper(StopCause cause) {
  return [this, cause] { m_stop.request({.cause = cause}); };
}

// An ioctl that cannot fail on a live VM with interrupt chips; on a dying one nobody needs the interrupt.
devices::IrqLine Machine::irq_line(u32 gsi) {
  return [this, gsi](bool level) {
    kvm_irq_level line{};
    line.irq = gsi;
    line.level = level;
    m_vm.ioctl(KVM_IRQ_LINE, &line);
  };
}

Outcome<std::unique_ptr<Machine>> Machine::create(const MachineConfig& config, KvmBackend& backend) {
  GuestMemory memory = TRY(GuestMemory::create(config.memory));
  std::unique_ptr<Machine> machine(new Machine(config, std::move(memory)));
  if (!machine->m_wakeup.valid()) return failure("cannot create an eventfd: {}", strerror(errno));
  TRY(machine->load());
  TRY(machine->open_kvm(backend));
  TRY(machine->create_vm());
  TRY(machine->create_chips());
  TRY(machine->map_memory());
  TRY(machine->create_vcpus());
  return machine;
}

Outcome<> Machine::load() {
  std::vector<u8> kernel = TRY(read_file(m_config.kernel, "kernel", m_memory.size()));
  std::vector<u8> initrd;
  if (!m_config.initrd.empty()) initrd = TRY(read_file(m_config.initrd, "initrd", m_memory.size()));
  BootImages images{kernel, initrd, command_line_with_defaults(m_config.append)};
  m_entry = TRY(load_linux(m_memory, images));
  write_boot_tables(m_memory);
  std::vector<u32> apic_ids(m_config.cpus);
  std::iota(apic_ids.begin(), apic_ids.end(), 0u);
  std::vector<u8> tables = build_acpi_tables(kAcpiAddress, apic_ids);
  if (tables.size() > kAcpiSize) return failure("the ACPI tables for {} CPUs do not fit", m_config.cpus);
  m_memory.write(kAcpiAddress, tables);
  return {};
}

Outcome<> Machine::open_kvm(KvmBackend& backend) {
  bool kernel = m_config.accelerator == Accelerator::kKernel;
  m_kvm = KvmFd(backend, backend.open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!m_kvm.valid() && kernel) return failure("cannot open /dev/kvm: {}", strerror(errno));
  if (!m_kvm.valid()) return failure("cannot start the anykvm engine: {}", strerror(errno));
  int version = m_kvm.ioctl(KVM_GET_API_VERSION);
  if (version != kApiVersion) return failure("the KVM API version is {}, not {}", version, kApiVersion);
  for (unsigned long capability : {KVM_CAP_IRQCHIP, KVM_CAP_USER_MEMORY, KVM_CAP_PIT2, KVM_CAP_EXT_CPUID,
                                   KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_SET_TSS_ADDR}) {
    if (m_kvm.ioctl(KVM_CHECK_EXTENSION, capability) > 0) continue;
    return failure("{} lacks KVM capability {}, which a Linux guest needs",
                   accelerator_name(m_config.accelerator), capability);
  }
  return check_cpus(m_config.cpus);
}

// KVM documentation 4.4: no answer to the maximum means that the recommended number is it, and no answer to
// that 4.
Outcome<> Machine::check_cpus(u32 cpus) const {
  int most = m_kvm.ioctl(KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS);
  if (most <= 0) most = m_kvm.ioctl(KVM_CHECK_EXTENSION, KVM_CAP_NR_VCPUS);
  if (most <= 0) most = 4;
  if (cpus <= static_cast<u32>(most)) return {};
  return failure("{} CPUs are too many: {} runs at most {}", cpus, accelerator_name(m_config.accelerator),
                 most);
}

Outcome<> Machine::create_vm() {
  m_vm = KvmFd(m_kvm.backend(), m_kvm.ioctl(KVM_CREATE_VM));
  if (!m_vm.valid()) return failure("cannot create a virtual machine: {}", strerror(errno));
  return check_engine();
}

// Looks at what the VM descriptor really is: the kernel's VMs are anonymous inodes called kvm-vm. So neither
// --accel can silently be served by the other.
Outcome<> Machine::check_engine() {
  std::array<char, 64> target{};
  std::string link = fmt::format("/proc/self/fd/{}", m_vm.get());
  ssize_t length = readlink(link.c_str(), target.data(), target.size());
  std::string_view name(target.data(), length > 0 ? static_cast<size_t>(length) : 0);
  Accelerator found = name == "anon_inode:kvm-vm" ? Accelerator::kKernel : Accelerator::kAnykvm;
  m_engine = accelerator_name(found);
  if (found == m_config.accelerator) return {};
  return failure("asked for {}, but the virtual machine belongs to {}",
                 accelerator_name(m_config.accelerator), m_engine);
}

Outcome<> Machine::create_chips() {
  if (m_vm.ioctl(KVM_SET_TSS_ADDR, kTssAddress) < 0)
    return failure("cannot set the TSS address: {}", strerror(errno));
  u64 identity_map = kIdentityMapAddress;
  if (m_kvm.ioctl(KVM_CHECK_EXTENSION, KVM_CAP_SET_IDENTITY_MAP_ADDR) > 0 &&
      m_vm.ioctl(KVM_SET_IDENTITY_MAP_ADDR, &identity_map) < 0) {
    return failure("cannot set the identity map address: {}", strerror(errno));
  }
  if (m_vm.ioctl(KVM_CREATE_IRQCHIP) < 0)
    return failure("cannot create the interrupt chips: {}", strerror(errno));
  kvm_pit_config pit{};
  pit.flags = KVM_PIT_SPEAKER_DUMMY;
  if (m_vm.ioctl(KVM_CREATE_PIT2, &pit) < 0)
    return failure("cannot create the timer chip: {}", strerror(errno));
  return {};
}

Outcome<> Machine::map_memory() {
  u32 slot = 0;
  for (const RamRange& range : m_memory.ranges()) {
    kvm_userspace_memory_region region{};
    region.slot = slot++;
    region.guest_phys_addr = range.start.value;
    region.memory_size = range.size;
    region.userspace_addr = reinterpret_cast<u64>(range.host);
    if (m_vm.ioctl(KVM_SET_USER_MEMORY_REGION, &region) < 0) {
      return failure("cannot give the guest {} MiB of memory: {}", range.size / kMiB, strerror(errno));
    }
  }
  return {};
}

Outcome<> Machine::create_vcpus() {
  int run_size = m_kvm.ioctl(KVM_GET_VCPU_MMAP_SIZE);
  if (run_size < static_cast<int>(sizeof(kvm_run))) return failure("the KVM reports no vCPU state size");
  VcpuSetup setup = TRY(VcpuSetup::create(m_kvm, m_config.cpus));
  for (u32 i = 0; i < m_config.cpus; ++i) {
    m_vcpus.push_back(TRY(Vcpu::create(m_vm, i, static_cast<size_t>(run_size))));
    TRY(setup.apply(*m_vcpus.back()));
  }
  return setup.apply_boot_state(*m_vcpus.front(), m_entry);
}

void Machine::memory_read(Gpa, std::span<u8> data) { std::fill(data.begin(), data.end(), u8{0xff}); }

// Nothing lives in the hole but the boot timer: the guest's first program writes there when it is up.
void Machine::memory_write(Gpa address, std::span<const u8>) {
  if (address != kBootTimerAddress) return;
  std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - m_config.started;
  notice(m_raw_terminal, fmt::format("the guest was up after {:.2f} s", elapsed.count()));
}

void Machine::start_threads() {
  Vcpu::install_kick_signal();
  m_running = static_cast<u32>(m_vcpus.size());
  for (auto& vcpu : m_vcpus) {
    m_threads.emplace_back([this, &vcpu] {
      vcpu->run(*this, m_stop);
      if (m_running.fetch_sub(1) == 1) m_wakeup.signal();
    });
  }
}

// False: some thread does not come back.
bool Machine::end_threads() {
  using namespace std::chrono_literals;
  auto deadline = std::chrono::steady_clock::now() + 3s;
  while (m_running > 0 && std::chrono::steady_clock::now() < deadline) {
    for (size_t i = 0; i < m_vcpus.size(); ++i) m_vcpus[i]->kick(m_threads[i].native_handle());
    m_wakeup.clear();
    pollfd ended{m_wakeup.fd(), POLLIN, 0};
    if (m_running > 0) poll(&ended, 1, 10);
  }
  bool all = m_running == 0;
  for (std::thread& thread : m_threads) all ? thread.join() : thread.detach();
  return all;
}

RunReport Machine::run(const RawTerminal& terminal, int signal_fd) {
  m_raw_terminal = terminal.active();
  start_threads();
  ConsoleLoop({m_serial, m_rtc, m_stop, m_wakeup, terminal, STDIN_FILENO, signal_fd}, m_config.time_limit)
      .run();
  RunReport report;
  report.threads_ended = end_threads();
  report.reason = m_stop.reason();
  report.engine = m_engine;
  for (const auto& vcpu : m_vcpus) report.exits += vcpu->exits();
  return report;
}

}  // namespace anykvm::vmm
