#include "virtual_machine.h"

#include <anykvm/anykvm.h>
#include <errno.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

namespace anykvm::fuzz {
namespace {

constexpr u64 kProgramMilliseconds = 4;
constexpr unsigned kMostExits = 400;

[[noreturn]] void give_up(const char* what) {
  std::perror(what);
  std::abort();
}

struct Cpuid {
  kvm_cpuid2 head;
  kvm_cpuid_entry2 entries[128];
};

}  // namespace

VirtualMachine::VirtualMachine(u64 seed, unsigned cpus, Watchdog& watchdog, Counts& counts)
    : m_seed(seed), m_watchdog(watchdog), m_counts(counts), m_random(seed) {
  m_memory.fill(m_random);
  m_system = anykvm_open("/dev/kvm", 0);
  m_vm = anykvm_ioctl(m_system, KVM_CREATE_VM, 0);
  if (m_vm < 0) give_up("KVM_CREATE_VM");
  m_irqchip = !m_random.one_in(4);
  if (m_irqchip) {
    if (anykvm_ioctl(m_vm, KVM_CREATE_IRQCHIP, 0) != 0) give_up("KVM_CREATE_IRQCHIP");
    kvm_pit_config pit{};
    anykvm_ioctl(m_vm, KVM_CREATE_PIT2, &pit);
  }
  create_slots();
  m_run_size = static_cast<std::size_t>(anykvm_ioctl(m_system, KVM_GET_VCPU_MMAP_SIZE, 0));
  Cpuid cpuid{};
  cpuid.head.nent = 128;
  anykvm_ioctl(m_system, KVM_GET_SUPPORTED_CPUID, &cpuid);
  for (unsigned i = 0; i < cpus; ++i) {
    auto cpu = std::make_unique<Cpu>();
    cpu->fd = anykvm_ioctl(m_vm, KVM_CREATE_VCPU, i);
    if (cpu->fd < 0) give_up("KVM_CREATE_VCPU");
    void* run = anykvm_mmap(nullptr, m_run_size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu->fd, 0);
    if (run == MAP_FAILED) give_up("kvm_run");
    cpu->run = static_cast<kvm_run*>(run);
    cpu->random = Random(seed * 64 + i);
    anykvm_ioctl(cpu->fd, KVM_SET_CPUID2, &cpuid);
    m_cpus.push_back(std::move(cpu));
  }
}

VirtualMachine::~VirtualMachine() {
  for (auto& cpu : m_cpus) {
    munmap(cpu->run, m_run_size);
    anykvm_close(cpu->fd);
  }
  anykvm_close(m_vm);
  anykvm_close(m_system);
}

void VirtualMachine::create_slots() {
  for (const GuestMemory::Slot& slot : m_memory.slots()) {
    u32 flags = (slot.read_only ? KVM_MEM_READONLY : 0) | (slot.logged ? KVM_MEM_LOG_DIRTY_PAGES : 0);
    kvm_userspace_memory_region region{slot.number, flags, slot.base, slot.size,
                                       reinterpret_cast<u64>(slot.host)};
    if (anykvm_ioctl(m_vm, KVM_SET_USER_MEMORY_REGION, &region) != 0) give_up("KVM_SET_USER_MEMORY_REGION");
  }
}

// Takes a slot away and brings it back, perhaps elsewhere, while CPUs run.
void VirtualMachine::change_slot(Random& random) {
  const auto& slots = m_memory.slots();
  const GuestMemory::Slot& slot = slots[1 + random.below(slots.size() - 1)];
  u32 flags = slot.read_only ? KVM_MEM_READONLY : 0;
  kvm_userspace_memory_region region{slot.number, flags, slot.base, 0, reinterpret_cast<u64>(slot.host)};
  anykvm_ioctl(m_vm, KVM_SET_USER_MEMORY_REGION, &region);
  region.memory_size = slot.size;
  if (slot.logged && random.one_in(2)) region.flags |= KVM_MEM_LOG_DIRTY_PAGES;
  if (anykvm_ioctl(m_vm, KVM_SET_USER_MEMORY_REGION, &region) != 0) m_counts.refused++;
}

std::string VirtualMachine::run(unsigned programs) {
  if (m_cpus.size() == 1) {
    run_programs(*m_cpus[0], programs);
  } else {
    std::vector<std::thread> threads;
    for (auto& cpu : m_cpus) threads.emplace_back([this, &cpu, programs] { run_programs(*cpu, programs); });
    for (auto& thread : threads) thread.join();
  }
  std::string text = m_memory.damage();
  for (auto& cpu : m_cpus) text += cpu->failure;
  return text.empty() ? text : fmt::format("seed {}: {}", m_seed, text);
}

void VirtualMachine::run_programs(Cpu& cpu, unsigned programs) {
  for (unsigned i = 0; i < programs && cpu.failure.empty(); ++i) {
    auto mode = static_cast<CpuMode>(cpu.random.below(kCpuModes));
    write_program(cpu.random, mode, m_memory.low());
    if (!set_state(cpu, mode)) {
      ++m_counts.refused;
      continue;
    }
    ++m_counts.programs;
    run_program(cpu, mode);
  }
}

bool VirtualMachine::set_state(Cpu& cpu, CpuMode mode) {
  kvm_sregs sregs{};
  kvm_regs regs{};
  if (anykvm_ioctl(cpu.fd, KVM_GET_SREGS, &sregs) != 0) return false;
  random_state(cpu.random, mode, &sregs, &regs);
  kvm_vcpu_events no_events{};
  anykvm_ioctl(cpu.fd, KVM_SET_VCPU_EVENTS, &no_events);
  if (anykvm_ioctl(cpu.fd, KVM_SET_SREGS, &sregs) != 0) return false;
  anykvm_ioctl(cpu.fd, KVM_SET_REGS, &regs);
  kvm_mp_state runnable{KVM_MP_STATE_RUNNABLE};
  anykvm_ioctl(cpu.fd, KVM_SET_MP_STATE, &runnable);
  return true;
}

// Until the time is over, the CPU is past help, or something is wrong (false).
bool VirtualMachine::run_program(Cpu& cpu, CpuMode mode) {
  Watchdog::Turn turn(m_watchdog, cpu.run, kProgramMilliseconds,
                      fmt::format("KVM_RUN, seed {}, mode {}", m_seed, static_cast<unsigned>(mode)));
  for (unsigned exits = 0; exits < kMostExits && !turn.over(); ++exits) {
    if (anykvm_ioctl(cpu.fd, KVM_RUN, 0) != 0) {
      if (errno == EINTR || errno == EAGAIN) {
        ++m_counts.kicks;
        continue;
      }
      cpu.failure = fmt::format("KVM_RUN: {}\n", std::strerror(errno));
      return false;
    }
    ++m_counts.exits;
    if (!one_exit(cpu)) return true;
    if (cpu.random.one_in(16)) interfere(cpu);
  }
  return true;
}

// False: this program is over.
bool VirtualMachine::one_exit(Cpu& cpu) {
  switch (cpu.run->exit_reason) {
    case KVM_EXIT_IO:
    case KVM_EXIT_MMIO:
      answer(cpu);
      return true;
    case KVM_EXIT_HLT: {
      kvm_interrupt interrupt{static_cast<u32>(cpu.random.below(256))};
      if (cpu.random.one_in(2)) anykvm_ioctl(cpu.fd, KVM_INTERRUPT, &interrupt);
      anykvm_ioctl(cpu.fd, KVM_NMI, 0);
      return !cpu.random.one_in(8);
    }
    case KVM_EXIT_SHUTDOWN:
      ++m_counts.shutdowns;
      return false;
    case KVM_EXIT_INTERNAL_ERROR:
    case KVM_EXIT_FAIL_ENTRY:
      ++m_counts.errors;
      return false;
    default:
      return true;
  }
}

void VirtualMachine::answer(Cpu& cpu) {
  kvm_run* run = cpu.run;
  if (run->exit_reason == KVM_EXIT_MMIO) {
    u64 value = cpu.random.next();
    if (!run->mmio.is_write) std::memcpy(run->mmio.data, &value, sizeof value);
    return;
  }
  if (run->io.direction != KVM_EXIT_IO_IN) return;
  u8* data = reinterpret_cast<u8*>(run) + run->io.data_offset;
  for (u32 i = 0; i < run->io.size * run->io.count; ++i) data[i] = static_cast<u8>(cpu.random.next());
}

// What a client may do between two exits.
void VirtualMachine::interfere(Cpu& cpu) {
  Random& random = cpu.random;
  kvm_regs regs{};
  kvm_sregs sregs{};
  kvm_vcpu_events events{};
  kvm_irq_level line{{static_cast<u32>(random.below(24))}, static_cast<u32>(random.below(2))};
  kvm_guest_debug debug{};
  switch (random.below(9)) {
    case 0:
      anykvm_ioctl(cpu.fd, KVM_GET_REGS, &regs);
      regs.rip += random.below(4);
      anykvm_ioctl(cpu.fd, KVM_SET_REGS, &regs);
      break;
    case 1:
      anykvm_ioctl(cpu.fd, KVM_GET_SREGS, &sregs);
      if (random.one_in(2)) sregs.cr3 = kTablesAt + (random.below(16) << 12);
      anykvm_ioctl(cpu.fd, KVM_SET_SREGS, &sregs);
      break;
    case 2:
      anykvm_ioctl(m_vm, KVM_IRQ_LINE, &line);
      break;
    case 3:
      anykvm_ioctl(cpu.fd, KVM_NMI, 0);
      break;
    case 4:
      change_slot(random);
      break;
    case 5: {
      u64 word = random.next();
      std::memcpy(m_memory.low() + 8 * random.below(m_memory.low_size() / 8), &word, sizeof word);
      break;
    }
    case 6:
      anykvm_ioctl(cpu.fd, KVM_GET_VCPU_EVENTS, &events);
      events.exception.injected = 1;
      events.exception.nr = static_cast<u8>(random.below(32));
      events.exception.has_error_code = static_cast<u8>(random.below(2));
      anykvm_ioctl(cpu.fd, KVM_SET_VCPU_EVENTS, &events);
      break;
    case 7:
      debug.control = KVM_GUESTDBG_ENABLE;
      if (random.one_in(2)) debug.control |= KVM_GUESTDBG_SINGLESTEP;
      if (random.one_in(2)) debug.control = 0;
      anykvm_ioctl(cpu.fd, KVM_SET_GUEST_DEBUG, &debug);
      break;
    default: {
      struct {
        kvm_msrs head;
        kvm_msr_entry entry;
      } one{};
      one.head.nmsrs = 1;
      one.entry.index = random_msr(random);
      one.entry.data = random.next();
      anykvm_ioctl(cpu.fd, random.one_in(2) ? KVM_GET_MSRS : KVM_SET_MSRS, &one);
      break;
    }
  }
}

}  // namespace anykvm::fuzz
