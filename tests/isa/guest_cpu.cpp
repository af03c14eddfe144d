#include "guest_cpu.h"

#include <Zydis/Zydis.h>
#include <cpuid.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "user_descriptors.h"
#include "x86/mmu/code_pages.h"
#include "x86/state/xsave.h"
#include "x86/translate/code_cache.h"
#include "x86/translate/mode.h"

namespace anykvm::isa {
namespace {

using namespace x86;

// Guest-physical layout. The supervisor sees the first 2 MiB at kSystem.
constexpr u64 kSystem = 0xffff800000000000;
constexpr u64 kRamSize = 32u << 20;
constexpr u64 kPml4 = 0x1000, kPdpt = 0x2000, kDirectory = 0x3000, kDataTable = 0x4000;
constexpr u64 kSystemPdpt = 0x9000, kSystemDirectory = 0xa000;
constexpr u64 kGdt = 0x5000, kLdt = 0x5800, kIdt = 0x6000, kTss = 0x7000;
constexpr u64 kHandlers = 0x10000;  // a HLT for each vector, 16 bytes apart
constexpr u64 kHandlerStackTop = 0x20000;
constexpr u64 kDataRam = 0x200000, kCodeRam = 0x800000;
constexpr u64 kCodeTables = 0x30000;  // one page for every 2 MiB
constexpr u16 kKernelCs = 0x10, kTaskSelector = 0x40, kLdtSelector = 0x50;

constexpr u64 kUserPage = 7, kReadOnlyPage = 5, kLarge = 0x80, kNoExecute = u64{1} << 63;
constexpr u64 kEntriesPerGib = 512;
constexpr u64 kDataPages = kDataSize / 0x1000;
// Where the data's pages lie, side by side or apart. The last one's contents are always the same.
constexpr u64 kDataFrames[2][kDataPages] = {{kDataRam, kDataRam + 0x1000, kDataRam + 0x2000},
                                            {kDataRam + 0x4000, kDataRam, kDataRam + 0x2000}};

Segment user_data() {
  Segment s;
  s.limit = 0xffffffff;
  s.present = s.s = s.g = s.db = 1;
  s.type = 3;
  s.dpl = 3;
  s.selector = kUserDs;
  return s;
}

Segment user_code(unsigned code_bits) {
  Segment s = user_data();
  s.type = 11;
  s.selector = code_bits == 64 ? kUserCs64 : kUserCs32;
  s.l = code_bits == 64;
  s.db = code_bits == 32;
  return s;
}

bool has_error_code(unsigned vector) {
  switch (vector) {
    case kVectorDf:
    case kVectorTs:
    case kVectorNp:
    case kVectorSs:
    case kVectorGp:
    case kVectorPf:
    case kVectorAc:
      return true;
    default:
      return false;
  }
}

// What is carried out in software for guests must not show either: with 5-level paging, bases have 57 bits.
std::vector<CpuidEntry> host_cpuid() {
  constexpr u32 kFeatures = 7, kLa57 = 1u << 16;
  u32 eax = 0, ebx = 0, ecx = 0, edx = 0;
  __get_cpuid_count(kFeatures, 0, &eax, &ebx, &ecx, &edx);
  std::vector<CpuidEntry> entries = supported_cpuid();
  for (CpuidEntry& entry : entries) {
    bool features = entry.function == kFeatures && entry.index == 0;
    if (features && !(ecx & kLa57)) entry.ecx &= ~kLa57;
  }
  return entries;
}

}  // namespace

const char* name_of(Translation translation) {
  switch (translation) {
    case Translation::kBlocks:
      return "blocks";
    case Translation::kSteps:
      return "single instructions";
    case Translation::kSlowMemory:
      return "slow memory accesses";
  }
  return "";
}

template <class T>
void GuestCpu::write(u64 at, T value) {
  std::memcpy(m_ram + at, &value, sizeof value);
}
template <class T>
T GuestCpu::read(u64 at) const {
  T value;
  std::memcpy(&value, m_ram + at, sizeof value);
  return value;
}

GuestCpu::GuestCpu() {
  m_ram =
      static_cast<u8*>(mmap(nullptr, kRamSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  m_machine = std::move(Machine::create()).value();
  m_cpu = std::make_unique<Cpu>(*m_machine, m_platform);
  MemorySlot slot;
  slot.size = kRamSize;
  slot.host = m_ram;
  m_machine->set_slots({slot});
  m_cpu->model().set_entries(host_cpuid());
  build_tables();
  build_descriptors();
  fill_read_only_page(m_ram + kDataRam + kWritableSize);
  CpuState& s = m_cpu->state();
  s.cr0 = kCr0Pe | kCr0Pg | kCr0Wp | kCr0Ne | kCr0Et | kCr0Mp | kCr0Am;
  s.cr4 = kCr4Pae | kCr4Osfxsr | kCr4Osxmmexcpt | kCr4Osxsave | kCr4Fsgsbase;
  s.cr3 = kPml4;
  s.efer = kEferLme | kEferLma | kEferNx | kEferSce;
  s.xcr0 = host_xcr0_usable();
}

GuestCpu::~GuestCpu() {
  m_cpu.reset();
  m_machine.reset();
  munmap(m_ram, kRamSize);
}

void GuestCpu::build_tables() {
  write<u64>(kPml4, kPdpt | kUserPage);
  write<u64>(kPdpt, kDirectory | kUserPage);
  constexpr u64 kSupervisorPage = 3;
  write<u64>(kPml4 + 8 * 256, kSystemPdpt | kSupervisorPage);
  write<u64>(kSystemPdpt, kSystemDirectory | kSupervisorPage);
  write<u64>(kSystemDirectory, kSupervisorPage | kLarge);
  for (u64 at = 0; at < kCodeSize; at += 2u << 20)
    write<u64>(kDirectory + 8 * ((kCodeBase + at) >> 21 & (kEntriesPerGib - 1)),
               (kCodeTables + 8 * (at >> 12)) | kUserPage);
  for (u64 at = 0; at < kCodeSize; at += kPageSize)
    write<u64>(kCodeTables + 8 * (at >> 12), (kCodeRam + at) | kReadOnlyPage);
  write<u64>(kDirectory + 8 * (kDataBase >> 21 & (kEntriesPerGib - 1)), kDataTable | kUserPage);
  place_data(false);
}

// An entry of a page table, for a page that was mapped before.
void GuestCpu::map(u64 entry, u64 page, u64 frame, u64 rights) {
  write<u64>(entry, frame | rights);
  m_cpu->flush_tlb_page(Gva(page));
}

void GuestCpu::place_data(bool apart) {
  m_data_apart = apart;
  for (u64 i = 0; i < kDataPages; ++i) {
    const u64 page = kDataBase + i * kPageSize;
    const u64 rights = page < kReadOnlyBase ? kUserPage : kReadOnlyPage;
    map(kDataTable + 8 * i, page, kDataFrames[apart][i], rights | kNoExecute);
  }
}

void GuestCpu::build_descriptors() {
  write<u64>(kGdt + kKernelCs, 0x00af9b000000ffff);
  write<u64>(kGdt + (kUserCs32 & ~7), 0x00cffb000000ffff);
  write<u64>(kGdt + (kUserDs & ~7), 0x00cff3000000ffff);
  write<u64>(kGdt + (kUserCs64 & ~7), 0x00affb000000ffff);
  set_processor_node(0);
  for (u64 vector = 0; vector < 256; ++vector) {
    u64 handler = kSystem + kHandlers + 16 * vector;
    m_ram[handler - kSystem] = 0xf4;
    // As Linux has it: programs may use INT3, INTO and INT 80H.
    constexpr u64 kInterruptGate = 0x8e00, kUserInterruptGate = 0xee00, kStack1 = 1;
    bool user = vector == kVectorBp || vector == kVectorOf || vector == 0x80;
    u64 type = user ? kUserInterruptGate : kInterruptGate;
    u64 gate = (handler & 0xffff) | u64{kKernelCs} << 16 | kStack1 << 32 | type << 32 |
               (handler >> 16 & 0xffff) << 48;
    write<u64>(kIdt + 16 * vector, gate);
    write<u64>(kIdt + 16 * vector + 8, handler >> 32);
  }
  constexpr u64 kIst1 = 0x24;
  write<u64>(kTss + kIst1, kSystem + kHandlerStackTop);
  constexpr u64 kPortMap = 0x66;  // beyond the limit: no port is allowed
  write<u16>(kTss + kPortMap, 0xffff);
  CpuState& s = m_cpu->state();
  s.gdtr = {kSystem + kGdt, 8 * kGdtEntries - 1};
  s.idtr = {kSystem + kIdt, 0xfff};
  s.tr = Segment{};
  s.tr.base = kSystem + kTss;
  s.tr.limit = 0x67;
  s.tr.selector = kTaskSelector;
  s.tr.type = 11;
  s.tr.present = 1;
}

void GuestCpu::add_descriptors() {
  for (unsigned i = 0; i < kLdtEntries; ++i) write<u64>(kLdt + 8 * i, kLdtDescriptors[i].raw());
  Segment& ldtr = m_cpu->state().ldtr;
  ldtr = Segment{};
  ldtr.base = kSystem + kLdt;
  ldtr.limit = 8 * kLdtEntries - 1;
  ldtr.selector = kLdtSelector;
  ldtr.type = 2;
  ldtr.present = 1;
}

// Linux: arch/x86/entry/vdso/vma.c
void GuestCpu::set_processor_node(u32 limit) {
  write<u64>(kGdt + (kProcessorNode & ~7),
             u64{limit & 0xffff} | u64{0x40f5} << 40 | u64{limit >> 16 & 0xf} << 48);
}

// Of the byte at `address`. The pages of a pair that are apart have changed places.
u64 GuestCpu::code_frame(u64 address) const {
  const bool swapped = m_open_apart && code_pair(address) == m_open;
  return kCodeRam + ((address - kCodeBase) ^ (swapped ? kPageSize : 0));
}

void GuestCpu::open_code(u64 address, bool apart) {
  auto map_pair = [&](u64 rights) {
    for (u64 page = m_open; page < m_open + kCodePair; page += kPageSize)
      map(kCodeTables + 8 * ((page - kCodeBase) >> 12), page, code_frame(page), rights);
  };
  if (code_pair(address) == m_open && apart == m_open_apart) return;
  m_open_apart = false;
  if (m_open) map_pair(kReadOnlyPage);
  m_open = code_pair(address);
  m_open_apart = apart;
  map_pair(kUserPage);
}

// Calls part(where it lies in guest-physical memory, offset in the whole, size).
template <class Part>
void GuestCpu::each_code_part(u64 address, u64 size, Part part) {
  constexpr u64 kLine = 64;
  for (u64 done = 0; done < size;) {
    const u64 at = address + done, piece = std::min(size - done, kLine - at % kLine);
    part(code_frame(at), done, piece);
    done += piece;
  }
}

void GuestCpu::discard_code() {
  m_machine->discard_code();
  m_cpu->state_replaced();
}

void GuestCpu::put_code(u64 address, const u8* bytes, u64 size) {
  each_code_part(address, size, [&](u64 at, u64 offset, u64 piece) {
    if (std::memcmp(m_ram + at, bytes + offset, piece) == 0) return;
    // Pages that are watched for the client's writes would be noticed by a thread that has to be waited for.
    const MemorySlot& slot = *m_machine->memory().find(Gpa{at});
    if (slot.meta(Gpa{at}).has_code)
      code_pages::before_write(*m_cpu, slot, Gpa{at}, static_cast<unsigned>(piece));
    std::memcpy(m_ram + at, bytes + offset, piece);
  });
}

bool GuestCpu::has_code(u64 address, const u8* bytes, u64 size) {
  bool same = true;
  each_code_part(address, size, [&](u64 at, u64 offset, u64 piece) {
    same = same && std::memcmp(m_ram + at, bytes + offset, piece) == 0;
  });
  return same;
}

void GuestCpu::kick(bool for_good) {
  m_ended = for_good;
  m_cpu->request(kAttentionKick);
}

std::string GuestCpu::host_code(u64 address, unsigned code_bits, Translation translation) {
  enter_user_mode(code_bits);
  Mode mode = compute_mode(m_cpu->state());
  mode.step = mode.step || translation == Translation::kSteps;
  mode.slow = mode.slow || translation == Translation::kSlowMemory;
  Block* block = m_machine->code().find(Gpa{code_frame(address)}, address, mode);
  if (!block) return {};
  std::string text = fmt::format("host code of the block at {:x}:\n", address);
  for (u32 at = 0; at < block->host_bytes;) {
    ZydisDisassembledInstruction z;
    const u8* pc = block->code + at;
    bool valid = ZYAN_SUCCESS(ZydisDisassembleIntel(ZYDIS_MACHINE_MODE_LONG_64, reinterpret_cast<u64>(pc), pc,
                                                    block->host_bytes - at, &z));
    text += fmt::format("  {}: {}\n", fmt::ptr(pc), valid ? z.text : "?");
    at += valid ? z.info.length : 1;
  }
  return text;
}

void GuestCpu::flush_tlb() { m_cpu->flush_tlb(); }

void GuestCpu::enter_user_mode(unsigned code_bits) {
  CpuState& s = m_cpu->state();
  for (auto& segment : s.segments) segment = user_data();
  s.segments[kCs] = user_code(code_bits);
  s.cpl = 3;
  s.mp_state = MpState::kRunnable;
}

Outcome GuestCpu::run(const UserState& state, const Memory& memory, unsigned code_bits,
                      Translation translation) {
  const auto& frames = kDataFrames[m_data_apart];
  for (u64 i = 0; i < kWritableSize / kPageSize; ++i)
    std::memcpy(m_ram + frames[i], memory.data() + i * kPageSize, kPageSize);
  enter_user_mode(code_bits);
  CpuState& s = m_cpu->state();
  s.gpr = state.gpr;
  s.rip = state.rip;
  s.rflags = state.rflags;
  s.segments[kFs].base = state.fs_base;
  s.segments[kGs].base = state.gs_base;
  state.to_xsave(s.xsave.data());
  m_cpu->set_translation_limits(
      {translation == Translation::kSteps, translation == Translation::kSlowMemory});
  m_cpu->mode_changed();

  m_ended = false;
  Exit exit = m_cpu->run();
  while (exit.reason == Exit::Reason::kInterrupted && !m_ended) exit = m_cpu->run();
  Outcome outcome;
  u64 handler = s.rip - kSystem - kHandlers;
  bool handled = exit.reason == Exit::Reason::kHalt && handler < 16 * 256;
  if (exit.reason == Exit::Reason::kInterrupted) {
    outcome.vector = Outcome::kEndless;
    outcome.state.rip = s.rip;
    return outcome;
  }
  if (!handled) {
    std::fprintf(stderr, "the guest left with reason %u at rip %llx\n", static_cast<unsigned>(exit.reason),
                 static_cast<unsigned long long>(s.rip));
    outcome.vector = Outcome::kLost;
    outcome.state.rip = s.rip;
    return outcome;
  }
  outcome.vector = static_cast<u8>(handler / 16);
  outcome.cr2 = s.cr2;
  u64 frame = s.gpr[kRsp] - kSystem;
  if (has_error_code(outcome.vector)) {
    outcome.error = read<u32>(frame);
    frame += 8;
  }
  outcome.state.gpr = s.gpr;
  outcome.state.rip = read<u64>(frame);
  for (unsigned i = 0; i < outcome.state.selectors.size(); ++i)
    outcome.state.selectors[i] = s.segments[i].selector;
  outcome.state.selectors[kCs] = read<u16>(frame + 8);
  outcome.state.selectors[kSs] = read<u16>(frame + 32);
  outcome.state.rflags = read<u64>(frame + 16);
  outcome.state.gpr[kRsp] = read<u64>(frame + 24);
  outcome.state.fs_base = s.segments[kFs].base;
  outcome.state.gs_base = s.segments[kGs].base;
  outcome.state.from_xsave(s.xsave.data());
  for (u64 i = 0; i < kDataPages; ++i)
    std::memcpy(outcome.memory.data() + i * kPageSize, m_ram + frames[i], kPageSize);
  return outcome;
}

}  // namespace anykvm::isa
