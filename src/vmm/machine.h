#pragma once
// The virtual machine: a KVM VM with in-kernel interrupt chips, RAM with a Linux kernel in it, the legacy
// devices, and one thread per vCPU. Owner: whoever created it. create() and run() from one thread, once each.

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "devices/legacy/acpi_pm.h"
#include "devices/legacy/i8042.h"
#include "devices/legacy/rtc.h"
#include "devices/legacy/serial.h"
#include "devices/port_device.h"
#include "vmm/console_output.h"
#include "vmm/guest_memory.h"
#include "vmm/kvm_backend.h"
#include "vmm/stop.h"
#include "vmm/terminal.h"
#include "vmm/vcpu.h"

namespace anykvm::vmm {

struct MachineConfig {
  std::string kernel;
  std::string initrd;  // empty: none
  std::string append;
  u64 memory = 0;
  u32 cpus = 1;
  Accelerator accelerator = Accelerator::kAnykvm;
  std::optional<std::chrono::nanoseconds> time_limit;
  std::chrono::steady_clock::time_point started;  // what the boot time counts from
};

struct RunReport {
  StopReason reason;
  u64 exits = 0;
  std::string engine;         // who really owns the VM: "anykvm" or "kvm"
  bool threads_ended = true;  // false: a vCPU thread is stuck, and the machine must not be destroyed
};

class Machine final : private ExitHandler {
 public:
  static Outcome<std::unique_ptr<Machine>> create(const MachineConfig& config, KvmBackend& backend);
  ~Machine();

  // Runs the guest with its console on standard input and output. `signal_fd`: see ConsoleLoop.
  RunReport run(const RawTerminal& terminal, int signal_fd);

 private:
  Machine(const MachineConfig& config, GuestMemory memory);

  Outcome<> open_kvm(KvmBackend& backend);
  Outcome<> check_cpus(u32 cpus) const;
  Outcome<> create_vm();
  Outcome<> check_engine();
  Outcome<> create_chips();
  Outcome<> map_memory();
  Outcome<> create_vcpus();
  Outcome<> load();
  devices::IrqLine irq_line(u32 gsi);
  void start_threads();
  bool end_threads();
  std::function<void()> stopper(StopCause cause);

  void port_read(u16 port, std::span<u8> data) override { m_ports.read(port, data); }
  void port_write(u16 port, std::span<const u8> data) override { m_ports.write(port, data); }
  void memory_read(Gpa address, std::span<u8> data) override;
  void memory_write(Gpa address, std::span<const u8> data) override;

  const MachineConfig m_config;
  GuestMemory m_memory;
  Gpa m_entry;
  Wakeup m_wakeup;
  Stop m_stop{m_wakeup};
  ConsoleOutput m_output;
  bool m_raw_terminal = false;

  KvmFd m_kvm;
  KvmFd m_vm;
  std::string m_engine;

  devices::Serial m_serial;
  devices::I8042 m_i8042;
  devices::Rtc m_rtc;
  devices::AcpiPm m_acpi_pm;
  devices::ResetControl m_reset;
  devices::PortBus m_ports;

  std::vector<std::unique_ptr<Vcpu>> m_vcpus;
  std::vector<std::thread> m_threads;
  std::atomic<u32> m_running{0};  // vCPU threads that have not ended
};

}  // namespace anykvm::vmm
