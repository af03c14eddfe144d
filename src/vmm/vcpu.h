#pragma once
// One virtual CPU: its descriptor, its run structure, and the loop that its thread is in.
// Owner: the machine. set_up() before the thread starts; run() only on that thread; kick() from any.

#include <linux/kvm.h>
#include <pthread.h>

#include <atomic>
#include <memory>
#include <span>

#include "vmm/failure.h"
#include "vmm/kvm_backend.h"
#include "vmm/stop.h"

namespace anykvm::vmm {

// Answers the exits that a vCPU cannot handle itself. Called from vCPU threads, several at once.
class ExitHandler {
 public:
  virtual ~ExitHandler() = default;
  virtual void port_read(u16 port, std::span<u8> data) = 0;
  virtual void port_write(u16 port, std::span<const u8> data) = 0;
  virtual void memory_read(Gpa address, std::span<u8> data) = 0;
  virtual void memory_write(Gpa address, std::span<const u8> data) = 0;
};

class Vcpu {
 public:
  static Outcome<std::unique_ptr<Vcpu>> create(const KvmFd& vm, u32 index, size_t run_size);
  ~Vcpu();
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;

  const KvmFd& fd() const { return m_fd; }
  u32 index() const { return m_index; }
  u64 exits() const { return m_exits.load(std::memory_order_relaxed); }

  // Runs guest code until `stop` is requested, or requests it itself.
  void run(ExitHandler& handler, Stop& stop);
  // Makes KVM_RUN return on `thread`, which is in run(), now or as soon as it is entered.
  void kick(pthread_t thread);

  // Installs the handler of the signal that kick() sends. Once, before the first thread starts.
  static void install_kick_signal();

 private:
  Vcpu(KvmFd fd, u32 index, kvm_run* run, size_t run_size)
      : m_fd(std::move(fd)), m_index(index), m_run(run), m_run_size(run_size) {}

  void handle_exit(ExitHandler& handler, Stop& stop);
  void handle_ports(ExitHandler& handler);
  void handle_memory(ExitHandler& handler);
  void handle_system_event(Stop& stop);
  std::string where() const;

  KvmFd m_fd;
  u32 m_index;
  kvm_run* m_run;
  size_t m_run_size;
  std::atomic<u64> m_exits{0};
};

}  // namespace anykvm::vmm
