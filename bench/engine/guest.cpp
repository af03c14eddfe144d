#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <x86intrin.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <random>
#include <thread>

#include "anykvm/anykvm.h"

namespace anykvm::bench {
namespace {

namespace x86 = asmjit::x86;

constexpr std::uint64_t kPresent = 1, kWritable = 2, kUser = 4, kLarge = 0x80;
constexpr std::uint64_t kAll = kPresent | kWritable | kUser;
constexpr std::uint64_t kPageSize = 0x1000, kLargePageSize = 0x200000, kGib = 0x40000000;

// Within at::kTables
constexpr std::uint64_t kPml4 = at::kTables, kPdpt = kPml4 + kPageSize, kLowDirectory = kPdpt + kPageSize,
                        kHighDirectory = kLowDirectory + kPageSize,
                        kPagesDirectory = kHighDirectory + kPageSize, kIdt = kPagesDirectory + kPageSize,
                        kGdt = kIdt + kPageSize, kPageTables = kGdt + kPageSize;
constexpr unsigned kHandlerSize = 128;
constexpr std::uint16_t kCodeSelector = 8, kDataSelector = 16;

[[noreturn]] void die(const char* what) {
  fprintf(stderr, "engine benchmark: %s: %s\n", what, strerror(errno));
  exit(1);
}

void set_cpuid(int system, int vcpu, unsigned index) {
  constexpr unsigned kEntries = 256;
  std::vector<std::uint8_t> buffer(sizeof(kvm_cpuid2) + kEntries * sizeof(kvm_cpuid_entry2));
  auto* cpuid = reinterpret_cast<kvm_cpuid2*>(buffer.data());
  cpuid->nent = kEntries;
  must_ioctl(system, KVM_GET_SUPPORTED_CPUID, cpuid);
  auto* entries = reinterpret_cast<kvm_cpuid_entry2*>(cpuid + 1);
  for (unsigned i = 0; i < cpuid->nent; ++i) {
    if (entries[i].function == 1) {
      entries[i].ebx = (entries[i].ebx & 0xffffff) | index << 24;
      entries[i].ecx |= 1u << 24;  // TSC deadlines, which the list of what is supported leaves to the client
    }
    if (entries[i].function == 0xb) entries[i].edx = index;
  }
  must_ioctl(vcpu, KVM_SET_CPUID2, cpuid);
}

kvm_segment flat(std::uint16_t selector, std::uint8_t type) {
  kvm_segment segment{};
  segment.selector = selector;
  segment.limit = 0xffffffff;
  segment.type = type;
  segment.present = segment.s = segment.g = 1;
  return segment;
}

void set_long_mode(int vcpu, bool boot_cpu, ApicMode apic) {
  kvm_sregs sregs{};
  must_ioctl(vcpu, KVM_GET_SREGS, &sregs);
  sregs.cs = flat(kCodeSelector, 11);
  sregs.cs.l = 1;
  sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = flat(kDataSelector, 3);
  sregs.idt.base = kIdt;
  sregs.idt.limit = kPageSize - 1;
  sregs.gdt.base = kGdt;
  sregs.gdt.limit = 23;
  sregs.cr0 = 0x80050033;  // PG, AM, WP, NE, ET, MP, PE
  sregs.cr3 = kPml4;
  sregs.cr4 = 0x620;  // OSXMMEXCPT, OSFXSR, PAE
  sregs.efer = 0x500;
  sregs.apic_base = at::kLapic | 0x800 | (boot_cpu ? 0x100 : 0) | (apic == ApicMode::kX2apic ? 0x400 : 0);
  must_ioctl(vcpu, KVM_SET_SREGS, &sregs);
}

}  // namespace

int must_ioctl(int fd, unsigned long request, unsigned long argument) {
  int result = anykvm_ioctl(fd, request, argument);
  if (result < 0) {
    char what[32];
    snprintf(what, sizeof what, "ioctl %#lx", request);
    die(what);
  }
  return result;
}

int must_ioctl(int fd, unsigned long request, void* argument) {
  return must_ioctl(fd, request, reinterpret_cast<unsigned long>(argument));
}

// --- Vcpu ---

Vcpu::Vcpu(int vm, unsigned index, std::size_t shared_size)
    : m_fd(must_ioctl(vm, KVM_CREATE_VCPU, index)), m_shared_size(shared_size) {
  void* shared = anykvm_mmap(nullptr, shared_size, PROT_READ | PROT_WRITE, MAP_SHARED, m_fd, 0);
  if (shared == MAP_FAILED) die("mmap of a vCPU");
  m_shared = static_cast<kvm_run*>(shared);
  kvm_mp_state runnable{KVM_MP_STATE_RUNNABLE};
  must_ioctl(m_fd, KVM_SET_MP_STATE, &runnable);
}

Vcpu::~Vcpu() {
  munmap(m_shared, m_shared_size);
  anykvm_close(m_fd);
}

void Vcpu::start_at(std::uint64_t rip) {
  kvm_regs regs{};
  must_ioctl(m_fd, KVM_GET_REGS, &regs);
  regs.rip = rip;
  must_ioctl(m_fd, KVM_SET_REGS, &regs);
}

void Vcpu::run(unsigned exit_reason) {
  must_ioctl(m_fd, KVM_RUN);
  if (m_shared->exit_reason != exit_reason) {
    kvm_regs regs{};
    must_ioctl(m_fd, KVM_GET_REGS, &regs);
    fprintf(stderr, "engine benchmark: exit %u instead of %u at %#llx\n", m_shared->exit_reason, exit_reason,
            regs.rip);
    exit(1);
  }
}

void Vcpu::run_to_end() {
  do run(KVM_EXIT_IO);
  while (m_shared->io.port != kExitPort);
}

// --- Guest ---

Guest::Guest(unsigned vcpus, ApicMode apic, RamKind kind) {
  // As the preload library does for its program: whatever is done to signals is reported, here nothing.
  anykvm_sigaction(0, nullptr, nullptr);
  anykvm_sigmask_changed();
  m_system = anykvm_open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (m_system < 0) die("open");
  m_vm = must_ioctl(m_system, KVM_CREATE_VM);
  must_ioctl(m_vm, KVM_CREATE_IRQCHIP);
  const int sharing = kind == RamKind::kShared ? MAP_SHARED : MAP_PRIVATE;
  void* ram = mmap(nullptr, at::kRamSize, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS, -1, 0);
  if (ram == MAP_FAILED) die("mmap");
  m_ram = static_cast<std::uint8_t*>(ram);
  set_slot(0, 0, at::kRamSize, m_ram);
  write_tables();
  auto shared_size = static_cast<std::size_t>(must_ioctl(m_system, KVM_GET_VCPU_MMAP_SIZE));
  for (unsigned i = 0; i < vcpus; ++i) {
    m_vcpus.push_back(std::make_unique<Vcpu>(m_vm, i, shared_size));
    set_cpuid(m_system, vcpu(i).fd(), i);
    set_long_mode(vcpu(i).fd(), i == 0, apic);
    kvm_regs regs{};
    regs.rsp = at::kStack + (i + 1) * kPageSize;
    regs.rflags = 2;
    must_ioctl(vcpu(i).fd(), KVM_SET_REGS, &regs);
  }
}

Guest::~Guest() {
  m_vcpus.clear();
  anykvm_close(m_vm);
  anykvm_close(m_system);
  munmap(m_ram, at::kRamSize);
}

void Guest::set_slot(unsigned slot, std::uint64_t address, std::uint64_t size, std::uint8_t* host) {
  kvm_userspace_memory_region region{};
  region.slot = slot;
  region.guest_phys_addr = address;
  region.memory_size = size;
  region.userspace_addr = reinterpret_cast<std::uint64_t>(host);
  must_ioctl(m_vm, KVM_SET_USER_MEMORY_REGION, &region);
}

void Guest::copy_root(std::uint64_t address) { memcpy(ram(address), ram(kPml4), kPageSize); }

void Guest::replace_ram() {
  set_slot(0, 0, 0, m_ram);
  set_slot(0, 0, at::kRamSize, m_ram);
}

void Guest::write_tables() {
  auto entry = [this](std::uint64_t table, std::uint64_t index) -> std::uint64_t& {
    return reinterpret_cast<std::uint64_t*>(ram(table))[index];
  };
  entry(kPml4, 0) = kPdpt | kAll;
  entry(kPdpt, 0) = kLowDirectory | kAll;
  entry(kPdpt, 1) = kPagesDirectory | kAll;
  entry(kPdpt, 3) = kHighDirectory | kAll;
  for (std::uint64_t i = 0; i < 512; ++i) {
    entry(kLowDirectory, i) = i * kLargePageSize | kAll | kLarge;
    entry(kHighDirectory, i) = (3 * kGib + i * kLargePageSize) | kAll | kLarge;
  }
  constexpr std::uint64_t kCount = at::kScatteredSize / kPageSize;
  std::vector<std::uint64_t> order(kCount);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(1));
  for (std::uint64_t i = 0; i < kCount; ++i) {
    entry(kPagesDirectory, i / 512) = (kPageTables + i / 512 * kPageSize) | kAll;
    entry(kPageTables, i) = (at::kScattered + order[i] * kPageSize) | kAll;
  }
  entry(kGdt, kCodeSelector / 8) = 0x00af9b000000ffff;
  entry(kGdt, kDataSelector / 8) = 0x00cf93000000ffff;
}

void Guest::assemble(std::uint64_t address, const std::function<void(Assembler&)>& write) {
  asmjit::CodeHolder code;
  code.init(asmjit::Environment::host(), address);
  Assembler assembler(&code);
  write(assembler);
  if (code.flatten() != asmjit::kErrorOk || code.resolveUnresolvedLinks() != asmjit::kErrorOk ||
      code.relocateToBase(address) != asmjit::kErrorOk ||
      code.copyFlattenedData(ram(address), code.codeSize()) != asmjit::kErrorOk) {
    die("guest code does not assemble");
  }
}

void Guest::on_vector(unsigned vector, const std::function<void(Assembler&)>& write) {
  const std::uint64_t handler = at::kHandlers + vector * kHandlerSize;
  assemble(handler, write);
  auto* gate = reinterpret_cast<std::uint64_t*>(ram(kIdt + vector * 16));
  constexpr std::uint64_t kInterruptGate = 0x8e00;
  gate[0] = (handler & 0xffff) | kCodeSelector << 16 | kInterruptGate << 32 | (handler >> 16) << 48;
  gate[1] = 0;
}

// --- Guest code ---

x86::Mem flag_operand(unsigned index) { return x86::qword_ptr(at::kFlags + index * 64); }

void write_msr(Assembler& a, std::uint32_t index, std::uint64_t value) {
  a.mov(x86::ecx, index);
  a.mov(x86::eax, static_cast<std::uint32_t>(value));
  a.mov(x86::edx, static_cast<std::uint32_t>(value >> 32));
  a.wrmsr();
}

void enable_x2apic(Assembler& a) { write_msr(a, 0x80f, 0x1ff); }
void end_of_interrupt(Assembler& a) { write_msr(a, 0x80b, 0); }
void exit_to_host(Assembler& a) { a.out(kExitPort, x86::al); }

void fill_with_code(Guest& guest, std::uint64_t begin, std::uint64_t size, std::uint64_t piece) {
  for (std::uint64_t page = begin; page < begin + size; page += kPageSize) {
    guest.assemble(page, [&](Assembler& a) {
      const bool last = (page + kPageSize - begin) % piece == 0;
      for (unsigned i = 0; i < kPageSize / kPatternSize - last; ++i) {
        asmjit::Label next = a.newLabel();
        a.mov(x86::rax, x86::qword_ptr(x86::rsi, 16));  // 4 bytes
        a.add(x86::rax, x86::rbx);                      // 3
        a.lea(x86::rbx, x86::ptr(x86::rax, 8));         // 4
        a.test(x86::rax, x86::rax);                     // 3
        a.short_().jz(next);                            // 2
        a.bind(next);
      }
      if (last) a.jmp(x86::rbp);
    });
  }
}

// --- Measuring ---

namespace {

double find_tsc_frequency() {
  using Clock = std::chrono::steady_clock;
  auto begin = Clock::now();
  std::uint64_t ticks = __rdtsc();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  ticks = __rdtsc() - ticks;
  return static_cast<double>(ticks) / std::chrono::duration<double>(Clock::now() - begin).count();
}

double tsc_frequency() {
  static const double kFrequency = find_tsc_frequency();
  return kFrequency;
}

}  // namespace

void measure(benchmark::State& state, std::uint64_t operations, const std::function<void()>& batch,
             const std::function<void()>& prepare) {
  if (prepare) prepare();
  batch();  // translated, touched
  for (auto _ : state) {
    if (prepare) {
      state.PauseTiming();
      prepare();
      state.ResumeTiming();
    }
    batch();
  }
  // Shown as time divided by the value.
  constexpr auto kEach = static_cast<benchmark::Counter::Flags>(
      int{benchmark::Counter::kIsIterationInvariantRate} | int{benchmark::Counter::kInvert});
  state.counters["per_op"] = {static_cast<double>(operations), kEach};
  state.counters["cycles"] = {static_cast<double>(operations) / tsc_frequency(), kEach};
}

void measure_events(benchmark::State& state, const std::function<void()>& prepare,
                    const std::function<void()>& event) {
  std::vector<double> seconds;
  for (auto _ : state) {
    prepare();
    auto begin = std::chrono::steady_clock::now();
    event();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    state.SetIterationTime(seconds.back());
  }
  auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  state.counters["per_op"] = *middle;
  state.counters["cycles"] = *middle * tsc_frequency();
}

void measure_loop(benchmark::State& state, Guest& guest, const Loop& loop) {
  guest.assemble(at::kCode, [&](Assembler& a) {
    asmjit::Label again = a.newLabel(), start = a.newLabel();
    if (loop.before) loop.before(a);
    a.bind(start);
    a.mov(x86::r12d, loop.count);
    a.bind(again);
    for (unsigned i = 0; i < loop.unroll; ++i) loop.body(a, i);
    a.dec(x86::r12d);
    a.jnz(again);
    exit_to_host(a);
    a.jmp(start);
  });
  guest.vcpu().start_at(at::kCode);
  measure(state, std::uint64_t{loop.count} * loop.unroll * loop.operations,
          [&guest] { guest.vcpu().run_to_end(); });
}

void measure_loop(benchmark::State& state, const Loop& loop) {
  Guest guest;
  measure_loop(state, guest, loop);
}

}  // namespace anykvm::bench
