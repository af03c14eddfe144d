#pragma once
// A tiny 64-bit guest for measuring one thing at a time, made through the public API only: paging on, an
// interrupt table, an in-kernel irqchip with x2APIC, and code that the benchmark assembles into it. Owner:
// each benchmark makes its own. Each vCPU is run by one thread. Whatever fails ends the program: a benchmark
// has no other use for errors.

#include <asmjit/x86.h>
#include <benchmark/benchmark.h>
#include <linux/kvm.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace anykvm::bench {

using Assembler = asmjit::x86::Assembler;

// Linear addresses. The first GiB is RAM as far as it goes, mapped to itself by 2 MiB pages, and so is the
// fourth, where the interrupt controllers are. The second GiB maps the RAM from kScattered on by 4 KiB pages
// in a random order.
namespace at {
inline constexpr std::uint64_t kFlags = 0x10000;   // for guest and host to watch
inline constexpr std::uint64_t kStack = 0x20000;   // downwards; one page for each vCPU
inline constexpr std::uint64_t kTables = 0x40000;  // 256 KiB
inline constexpr std::uint64_t kHandlers = 0x80000;
inline constexpr std::uint64_t kCode = 0x100000;
inline constexpr std::uint64_t kData = 0x800000;
inline constexpr std::uint64_t kScattered = 0x4000000;
inline constexpr std::uint64_t kScatteredSize = 0x4000000;
inline constexpr std::uint64_t kRamSize = kScattered + kScatteredSize;
inline constexpr std::uint64_t kPages = 0x40000000;    // the 4 KiB mapping
inline constexpr std::uint64_t kNothing = 0xd0000000;  // in no slot
inline constexpr std::uint64_t kIoapic = 0xfec00000;
inline constexpr std::uint64_t kLapic = 0xfee00000;
}  // namespace at

inline constexpr unsigned kExitPort = 0xf4;    // OUT ends run_to_end()
inline constexpr unsigned kUnusedPort = 0x10;  // no device, no end
enum class ApicMode { kXapic, kX2apic };
enum class RamKind { kPrivate, kShared };  // anonymous memory: others cannot, or could, map it too

class Vcpu {
 public:
  Vcpu(int vm, unsigned index, std::size_t shared_size);
  ~Vcpu();
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;

  int fd() const { return m_fd; }
  kvm_run* shared() const { return m_shared; }
  void start_at(std::uint64_t rip);
  // One KVM_RUN, which must succeed with this exit.
  void run(unsigned exit_reason);
  // Until the guest writes to kExitPort.
  void run_to_end();

 private:
  int m_fd;
  kvm_run* m_shared;
  std::size_t m_shared_size;
};

class Guest {
 public:
  explicit Guest(unsigned vcpus = 1, ApicMode apic = ApicMode::kX2apic, RamKind ram = RamKind::kPrivate);
  ~Guest();
  Guest(const Guest&) = delete;
  Guest& operator=(const Guest&) = delete;

  int vm() const { return m_vm; }
  Vcpu& vcpu(unsigned index = 0) { return *m_vcpus[index]; }
  std::uint8_t* ram(std::uint64_t address) { return m_ram + address; }
  volatile std::uint64_t& flag(unsigned index) {
    return reinterpret_cast<volatile std::uint64_t*>(ram(at::kFlags))[index * 8];
  }

  // Puts what `write` assembles at this address.
  void assemble(std::uint64_t address, const std::function<void(Assembler&)>& write);
  // Interrupt or exception `vector` is handled by what `write` assembles; it ends with IRETQ itself.
  void on_vector(unsigned vector, const std::function<void(Assembler&)>& write);
  // KVM_SET_USER_MEMORY_REGION; slot 0 is the RAM. Size 0 takes the slot away.
  void set_slot(unsigned slot, std::uint64_t address, std::uint64_t size, std::uint8_t* host);
  // A page table of the highest level with the same contents as the one in use.
  void copy_root(std::uint64_t address);
  // Takes the RAM away and gives it back, which drops all code translated from it.
  void replace_ram();

 private:
  void write_tables();

  int m_system, m_vm;
  std::uint8_t* m_ram;
  std::vector<std::unique_ptr<Vcpu>> m_vcpus;
};

// A request that must succeed; returns its value.
int must_ioctl(int fd, unsigned long request, void* argument);
int must_ioctl(int fd, unsigned long request, unsigned long argument = 0);

// --- Guest code for many benchmarks ---

// flag(index) as an operand
asmjit::x86::Mem flag_operand(unsigned index);
void write_msr(Assembler& a, std::uint32_t index, std::uint64_t value);  // clobbers RAX, RCX, RDX
void enable_x2apic(Assembler& a);                                        // software enable; the same
void end_of_interrupt(Assembler& a);                                     // x2APIC; the same
void exit_to_host(Assembler& a);

// Straight code by 4 KiB pages that end on an instruction. The 16 bytes of a pattern are five instructions,
// one of them a load from RSI and one a jump to the next. Each piece of `piece` bytes ends with a jump to
// RBP.
inline constexpr unsigned kPatternSize = 16, kPatternInstructions = 5;
void fill_with_code(Guest& guest, std::uint64_t begin, std::uint64_t size, std::uint64_t piece);

// --- Measuring. Counters: per_op in seconds, cycles of the host's TSC per operation. ---

// Runs `batch`, which performs `operations`, once for each iteration; before each, untimed, `prepare`.
void measure(benchmark::State& state, std::uint64_t operations, const std::function<void()>& batch,
             const std::function<void()>& prepare = {});
// For single events that another thread can delay: the counters are medians. Needs UseManualTime().
void measure_events(benchmark::State& state, const std::function<void()>& prepare,
                    const std::function<void()>& event);

// Guest loop for measure(): `body` is assembled `unroll` times; each KVM_RUN goes `count` times round. RSI is
// left alone by all of it, the loop counts in R12.
struct Loop {
  unsigned count = 1000, unroll = 16, operations = 1;  // the last: in one body
  std::function<void(Assembler&)> before = {};
  std::function<void(Assembler&, unsigned)> body;
};
void measure_loop(benchmark::State& state, const Loop& loop);
void measure_loop(benchmark::State& state, Guest& guest, const Loop& loop);

}  // namespace anykvm::bench
