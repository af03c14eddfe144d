#pragma once
// A guest that is a hypervisor by AMD's SVM (APM 2 chapter 15), and the guest that it has. Owner: each test
// makes its own. One thread.

#include "kvm.h"

namespace anykvm::test {

// Where the VMCB has what (APM 2 appendix B). Those of the state save area count from the VMCB's begin, too.
namespace vmcb {
inline constexpr unsigned kCrReads = 0x00, kCrWrites = 0x02, kDrReads = 0x04, kDrWrites = 0x06,
                          kExceptions = 0x08, kIntercepts1 = 0x0c, kIntercepts2 = 0x10, kIopm = 0x40,
                          kMsrpm = 0x48, kTscOffset = 0x50, kAsid = 0x58, kIntControl = 0x60,
                          kIntVector = 0x64, kIntState = 0x68, kExitCode = 0x70, kExitInfo1 = 0x78,
                          kExitInfo2 = 0x80, kExitIntInfo = 0x88, kNestedControl = 0x90,
                          kEventInjection = 0xa8, kNestedCr3 = 0xb0, kClean = 0xc0, kNextRip = 0xc8, kSoftware = 0x3e0;
inline constexpr unsigned kEs = 0x400, kCs = 0x410, kSs = 0x420, kDs = 0x430, kFs = 0x440, kGdtr = 0x460,
                          kIdtr = 0x480, kEfer = 0x4d0, kCr4 = 0x548, kCr3 = 0x550, kCr0 = 0x558,
                          kDr7 = 0x560, kDr6 = 0x568, kRflags = 0x570, kRip = 0x578, kRsp = 0x5d8,
                          kRax = 0x5f8, kLstar = 0x608, kKernelGsBase = 0x620, kCr2 = 0x640, kPat = 0x668;

// Bits of kIntercepts1 and kIntercepts2: the exit's code less 60H.
enum Intercept : unsigned {
  kIntr = 0,
  kNmi = 1,
  kVintr = 4,
  kCr0Selective = 5,
  kSidt = 6,
  kSgdt = 7,
  kSldt = 8,
  kStr = 9,
  kLidt = 10,
  kLgdt = 11,
  kRdtsc = 14,
  kRdpmc = 15,
  kPushf = 16,
  kPopf = 17,
  kCpuid = 18,
  kRsm = 19,
  kIret = 20,
  kIntN = 21,
  kInvd = 22,
  kPause = 23,
  kHlt = 24,
  kInvlpg = 25,
  kIoio = 27,
  kMsr = 28,
  kShutdown = 31,
  kVmrun = 32,
  kVmmcall = 33,
  kVmload = 34,
  kVmsave = 35,
  kStgi = 36,
  kClgi = 37,
  kRdtscp = 39,
  kIcebp = 40,
  kWbinvd = 41,
  kXsetbv = 45,
  kInvpcid = 66
};
}  // namespace vmcb

enum ExitCode : std::uint64_t {
  kExitException = 0x40,
  kExitIntercept = 0x60,  // and the Intercept
  kExitIntr = 0x60,
  kExitNmi = 0x61,
  kExitVintr = 0x64,
  kExitIoio = 0x7b,
  kExitMsr = 0x7c,
  kExitShutdown = 0x7f,
  kExitVmmcall = 0x81,
  kExitNpf = 0x400,
  kExitInvalid = ~std::uint64_t{0}
};

inline constexpr std::uint32_t kHostSaveMsr = 0xc0010117;

// Both run in 64-bit mode at CPL 0 with the first 2 MiB mapped as they are. The hypervisor clears GIF, sets
// IF, and then runs its guest again and again; after each exit it writes to kExitPort. What the VMCB says is
// the test's. An exception or interrupt makes the hypervisor write its vector to kHypervisorVectorPort and
// halt, and the guest write it to kGuestVectorPort and execute VMMCALL.
struct Hypervisor : Guest {
  using Code = std::initializer_list<std::uint8_t>;
  static constexpr std::uint64_t kGuestCode = 0x2000, kGuestStack = 0x7000, kSpare = 0x3000;
  // In the memory at 1 MiB:
  static constexpr std::uint64_t kFar = 0x100000, kVmcb = kFar, kHostSave = kFar + 0x1000,
                                 kIopm = kFar + 0x2000, kMsrpm = kFar + 0x5000, kNestedTables = kFar + 0x8000,
                                 kLastNestedTable = kFar + 0xb000, kGdt = kFar + 0xc000, kIdt = kFar + 0xd000,
                                 kGuestIdt = kFar + 0xe000;
  static constexpr std::uint64_t kUnmapped = 0x200000;  // in neither's page tables
  static constexpr int kExitPort = 0x10, kGuestVectorPort = 0x50, kHypervisorVectorPort = 0x58;
  static constexpr std::uint64_t kSvme = 0x1000;
  enum class State { kReady, kBlank };  // kBlank: another VM's is going to be loaded

  explicit Hypervisor(Code guest_code = {0x0f, 0x01, 0xd9}, Chips chips = Chips::kNone,
                      State state = State::kReady);

  // The VMCB, and everything else of the memory at 1 MiB.
  template <class T>
  T get(unsigned offset) const {
    return at<T>(kVmcb + offset);
  }
  template <class T>
  void set(unsigned offset, T value) {
    put(kVmcb + offset, value);
  }
  template <class T>
  T at(std::uint64_t address) const {
    T value;
    std::memcpy(&value, host(address), sizeof value);
    return value;
  }
  template <class T>
  void put(std::uint64_t address, T value) {
    std::memcpy(host(address), &value, sizeof value);
  }
  void intercept(unsigned which);
  void intercept_exception(unsigned vector) { set<std::uint32_t>(vmcb::kExceptions, 1u << vector); }
  // The page of the guest's physical address `gpa` is what `entry` says.
  void set_nested_page(std::uint64_t gpa, std::uint64_t entry) {
    put(kLastNestedTable + gpa / 0x1000 * 8, entry);
  }
  void use_nested_paging();
  void set_guest_code(Code code, std::uint64_t address = kGuestCode);
  void add_efer(std::uint64_t bits);
  void send(std::uint8_t vector) const;  // an interrupt, by the local APIC

  // Runs to the next write to a port; which one. The vector that was written.
  int run_to_port();
  std::uint8_t written() const;
  // The code of the guest's next exit.
  std::uint64_t exit();
  // That of a guest that runs `code`, with `which` intercepted.
  static std::uint64_t exit_of(unsigned which, Code code);
  // With `value` in the VMCB.
  template <class T>
  std::uint64_t exit_with(unsigned offset, T value) {
    const T before = get<T>(offset);
    set(offset, value);
    const std::uint64_t code = exit();
    set(offset, before);
    return code;
  }

  Pages far{0x10000};

 private:
  std::uint8_t* host(std::uint64_t address) const {
    return address >= kFar ? far.data() + (address - kFar) : memory.data() + address;
  }
  void make_tables();
  void make_vmcb();
};

}  // namespace anykvm::test
