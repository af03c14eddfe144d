#include "stream.h"

#include <Zydis/Zydis.h>

#include <algorithm>
#include <cstring>

namespace anykvm::isa {
namespace {

using x86::Decoded;

constexpr u32 kRax = 1u << 0, kRcx = 1u << 1, kRsp = 1u << 4, kRdi = 1u << 7;
constexpr unsigned kRoom = kMaxStreamCode - 200;  // where a stream gets no more parts

// Asks what the host is, when it is, or for its services.
bool depends_on_the_machine(u16 mnemonic) {
  switch (mnemonic) {
    case ZYDIS_MNEMONIC_CPUID:
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDTSCP:
    case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_RDPID:
    case ZYDIS_MNEMONIC_RDPRU:
    case ZYDIS_MNEMONIC_RDRAND:
    case ZYDIS_MNEMONIC_RDSEED:
    case ZYDIS_MNEMONIC_XGETBV:
    case ZYDIS_MNEMONIC_SYSCALL:
    case ZYDIS_MNEMONIC_SYSENTER:
    case ZYDIS_MNEMONIC_VMCALL:
    case ZYDIS_MNEMONIC_VMMCALL:
    // Some hypervisors show the programs under them the trap at the instruction itself.
    case ZYDIS_MNEMONIC_INT1:
    // Whether virtualization is on beneath us.
    case ZYDIS_MNEMONIC_VMRUN:
    case ZYDIS_MNEMONIC_VMLOAD:
    case ZYDIS_MNEMONIC_VMSAVE:
    case ZYDIS_MNEMONIC_STGI:
    case ZYDIS_MNEMONIC_CLGI:
    case ZYDIS_MNEMONIC_SKINIT:
    case ZYDIS_MNEMONIC_INVLPGA:
    case ZYDIS_MNEMONIC_INVLPGB:
    case ZYDIS_MNEMONIC_TLBSYNC:
    case ZYDIS_MNEMONIC_PVALIDATE:
    case ZYDIS_MNEMONIC_PSMASH:
    case ZYDIS_MNEMONIC_RMPADJUST:
    case ZYDIS_MNEMONIC_RMPUPDATE:
    // UMIP: the kernel answers these for programs.
    case ZYDIS_MNEMONIC_SGDT:
    case ZYDIS_MNEMONIC_SIDT:
    case ZYDIS_MNEMONIC_SLDT:
    case ZYDIS_MNEMONIC_STR:
    case ZYDIS_MNEMONIC_SMSW:
    // far_transfer() has those whose frame is one.
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
      return true;
    default:
      return false;
  }
}

// Known not to be as the host has it (docs/quirks.md): x87 pointers and XSAVE's in-use bits, which
// save_image() leaves out, and what guests are not offered.
bool known_to_differ(u16 mnemonic) {
  switch (mnemonic) {
    case ZYDIS_MNEMONIC_FNSTENV:
    case ZYDIS_MNEMONIC_FNSAVE:
    case ZYDIS_MNEMONIC_FXSAVE:
    case ZYDIS_MNEMONIC_FXSAVE64:
    case ZYDIS_MNEMONIC_XSAVE:
    case ZYDIS_MNEMONIC_XSAVE64:
    case ZYDIS_MNEMONIC_XSAVEC:
    case ZYDIS_MNEMONIC_XSAVEC64:
    case ZYDIS_MNEMONIC_XSAVEOPT:
    case ZYDIS_MNEMONIC_XSAVEOPT64:
    case ZYDIS_MNEMONIC_XBEGIN:
    case ZYDIS_MNEMONIC_XEND:
    case ZYDIS_MNEMONIC_XABORT:
    case ZYDIS_MNEMONIC_XTEST:
    case ZYDIS_MNEMONIC_MONITORX:
    case ZYDIS_MNEMONIC_MWAITX:
    case ZYDIS_MNEMONIC_CLZERO:
    case ZYDIS_MNEMONIC_MOVDIR64B:
    case ZYDIS_MNEMONIC_SERIALIZE:
      return true;
    default:
      return false;
  }
}

// Where it goes is part of a stream's grammar.
bool changes_rip(const Decoded& d) {
  switch (d.category) {
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_RET:
    case ZYDIS_CATEGORY_COND_BR:
    case ZYDIS_CATEGORY_UNCOND_BR:
      return true;
    default:
      return false;
  }
}

bool loads_segment(const Decoded& d) {
  const x86::Insn& i = d.insn;
  bool one_byte = i.opcode_map == 0;
  switch (i.mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
      return one_byte && i.opcode == 0x8e;
    case ZYDIS_MNEMONIC_POP:
      return one_byte ? i.opcode < 0x50 : (i.opcode & 0xf7) == 0xa1;
    case ZYDIS_MNEMONIC_LDS:
    case ZYDIS_MNEMONIC_LES:
    case ZYDIS_MNEMONIC_LFS:
    case ZYDIS_MNEMONIC_LGS:
    case ZYDIS_MNEMONIC_LSS:
      return true;
    default:
      return false;
  }
}

bool looks_at_segments(const Decoded& d) {
  const x86::Insn& i = d.insn;
  bool one_byte = i.opcode_map == 0;
  switch (i.mnemonic) {
    case ZYDIS_MNEMONIC_MOV:
      return one_byte && i.opcode == 0x8c;
    case ZYDIS_MNEMONIC_PUSH:
      return one_byte ? i.opcode < 0x50 : (i.opcode & 0xf7) == 0xa0;
    case ZYDIS_MNEMONIC_LAR:
    case ZYDIS_MNEMONIC_LSL:
    case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW:
      return true;
    default:
      return false;
  }
}

bool decodes(const u8* bytes, unsigned size, unsigned code_bits, u64 rip, Decoded* out) {
  return x86::decode(bytes, size, code_bits, code_bits / 8, rip, out) == x86::DecodeStatus::kOk;
}

// Undefined here, as the manual has it, but not on every CPU that looks like this one (--undefined lists
// them, docs/conformance.md): VPERMQ and VPERMPD without W; outside 64-bit mode conversions from general
// registers with W and rounding. And VMCALL with prefixes.
bool only_the_host_has_it(const u8* bytes, unsigned size) {
  static constexpr u8 kPrefixes[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf2, 0xf3};
  const u8* at = bytes;
  while (size > 5 && std::find(std::begin(kPrefixes), std::end(kPrefixes), *at) != std::end(kPrefixes))
    ++at, --size;
  if (size < 6) return false;
  const bool permutes = at[0] == 0xc4 && (at[1] & 31) == 3 && (at[2] & 3) == 1 && at[3] <= 1;
  const bool converts =
      at[0] == 0x62 && (at[1] & 7) == 1 && (at[2] & 3) == 3 && (at[4] == 0x2a || at[4] == 0x7b);
  // With prefixes that it must not have; what the hypervisor beneath us makes of that is its own.
  const bool calls_hypervisor = at[0] == 0x0f && at[1] == 0x01 && (at[2] == 0xc1 || at[2] == 0xd9);
  return permutes || converts || calls_hypervisor;
}

// One byte long, and without effects beyond registers and flags.
constexpr u8 kShort[] = {0x90, 0xf8, 0xf9, 0xf5, 0xfc, 0x98, 0x99, 0x9e, 0x9f, 0x93, 0x92};

}  // namespace

bool comparable(const Decoded& d) {
  constexpr u64 kLinuxSystemCall = 0x80;
  u16 mnemonic = d.insn.mnemonic;
  if (depends_on_the_machine(mnemonic) || known_to_differ(mnemonic) || changes_rip(d)) return false;
  if (mnemonic == ZYDIS_MNEMONIC_INT && (d.insn.immediate & 0xff) == kLinuxSystemCall) return false;
  // What it leaves undefined must not reach other instructions: decimal() has it.
  if (d.category == ZYDIS_CATEGORY_DECIMAL) return false;
  // A Zen 5 CPU converts a stale ESP right after CALL; it is right without EVEX.
  constexpr u8 kRspNumber = 4;
  if (d.encoding == x86::Encoding::kEvex && d.rm_is_gpr && d.insn.rm == kRspNumber) return false;
  if (d.insn.code_bits != 64 && differs_among_vendors(d)) return false;
  // Far pointers with a 64-bit offset are Intel's.
  return !(d.insn.operand_size == 8 && d.insn.has_memory && loads_segment(d));
}

// Arbitrary selectors would end most streams: load_segment() has better ones.
// The machine's own services are none of them, nor are 66H and near branches in 64-bit code, which differ
// among vendors (SDM 2A JMP).
bool may_leap(const Decoded& d) {
  if (!changes_rip(d) || depends_on_the_machine(d.insn.mnemonic)) return false;
  // Some CPUs take the condition from REPE and REPNE (docs/quirks.md).
  const bool loops = d.insn.mnemonic == ZYDIS_MNEMONIC_LOOPE || d.insn.mnemonic == ZYDIS_MNEMONIC_LOOPNE;
  const bool repeats = std::any_of(d.insn.bytes, d.insn.bytes + d.opcode_at,
                                   [](u8 byte) { return byte == 0xf2 || byte == 0xf3; });
  if (loops && repeats) return false;
  return !(d.insn.code_bits == 64 && (d.insn.operand_size_prefix || d.insn.rex_w));
}

StreamMaker::StreamMaker(unsigned code_bits, bool segments)
    : m_code_bits(code_bits),
      m_segments(segments),
      m_generator(code_bits,
                  [segments](const Decoded& d) {
                    return comparable(d) && !loads_segment(d) && (segments || !looks_at_segments(d));
                  }),
      m_branches(code_bits, may_leap) {}

// --- Parts ---

void StreamMaker::put(const std::vector<u8>& bytes) {
  begin_instruction();
  m_case.bytes.insert(m_case.bytes.end(), bytes.begin(), bytes.end());
}

// Relative to the instruction's end in 64-bit code, absolute in 32-bit code.
void StreamMaker::put_address(unsigned at, unsigned behind, u64 target) {
  u64 next = m_case.start.rip + at + 4 + behind;
  u32 value = static_cast<u32>(m_code_bits == 64 ? target - next : target);
  std::memcpy(&m_case.bytes[at], &value, sizeof value);
}

void StreamMaker::put_distance(unsigned at, u64 target) {
  u32 value = static_cast<u32>(target - (m_case.start.rip + at + 4));
  std::memcpy(&m_case.bytes[at], &value, sizeof value);
}

unsigned StreamMaker::load_address(unsigned number) {
  m_stream.modifies_itself = true;  // something may store by this register
  u8 reg = static_cast<u8>(number);
  if (m_code_bits == 64) {
    put({0x48, 0x8d, static_cast<u8>(0x05 | reg << 3), 0, 0, 0, 0});
  } else {
    put({static_cast<u8>(0xb8 | reg), 0, 0, 0, 0});
  }
  m_generator.wrote(1u << number);
  return size() - 4;
}

// No store to the code by rAX. A string instruction that overwrites itself goes as far as it gets.
void StreamMaker::forget_address() { put({0xb8, 1, 2, 3, 4}); }

void StreamMaker::straight(Random& random, const Wish& wish, unsigned count) {
  for (unsigned i = 0; i < count && size() < kRoom; ++i) {
    begin_instruction();
    m_generator.append(random, wish, &m_case);
  }
}

void StreamMaker::forward_jump(Random& random, const Wish& wish) {
  u8 condition = static_cast<u8>(random.below(16));
  unsigned at = 0;
  switch (random.below(4)) {
    case 0:
      put({0x0f, static_cast<u8>(0x80 | condition), 0, 0, 0, 0});
      at = size() - 4;
      break;
    case 1: {
      unsigned target = load_address(0);
      put({0xff, 0xe0});  // JMP rAX
      straight(random, wish, 1 + static_cast<unsigned>(random.below(3)));
      put_address(target, 0, here());
      forget_address();
      return;
    }
    default: {
      u8 opcode = static_cast<u8>(random.one_in(8) ? 0xe3 : 0x70 | condition);
      put({opcode, 0});
      unsigned from = size();
      straight(random, wish, 1 + static_cast<unsigned>(random.below(3)));
      m_case.bytes[from - 1] = static_cast<u8>(size() - from);
      return;
    }
  }
  straight(random, wish, 1 + static_cast<unsigned>(random.below(3)));
  put_distance(at, here());
}

void StreamMaker::call(Random& random, const Wish& wish) {
  bool by_register = random.one_in(3);
  unsigned function = 0;
  if (by_register) {
    function = load_address(0);
    put({0xff, 0xd0});  // CALL rAX
  } else {
    put({0xe8, 0, 0, 0, 0});
    function = size() - 4;
  }
  straight(random, wish, static_cast<unsigned>(random.below(2)));
  put({0xe9, 0, 0, 0, 0});
  unsigned over = size() - 4;
  if (by_register) {
    put_address(function, 0, here());
  } else {
    put_distance(function, here());
  }
  if (by_register) forget_address();
  Wish body = wish;
  body.keep |= kRsp;
  straight(random, body, 1 + static_cast<unsigned>(random.below(3)));
  if (random.one_in(3)) {
    put({0xc2, static_cast<u8>(8 * random.below(3)), 0});
  } else {
    put({0xc3});
  }
  put_distance(over, here());
}

void StreamMaker::loop(Random& random, const Wish& wish) {
  put({0xb9, static_cast<u8>(2 + random.below(4)), 0, 0, 0});
  m_generator.wrote(kRcx);
  unsigned head = size();
  Wish body = wish;
  body.keep |= kRcx;
  straight(random, body, 1 + static_cast<unsigned>(random.below(4)));
  close_loop(random, head);
}

void StreamMaker::close_loop(Random& random, unsigned head) {
  unsigned distance = size() + 2 - head;
  if (distance <= 128 && random.one_in(2)) {
    // LOOPNE, LOOPE, LOOP
    put({static_cast<u8>(random.one_in(3) ? 0xe0 + random.below(2) : 0xe2), static_cast<u8>(-distance)});
    return;
  }
  put({0xff, 0xc9});  // DEC ECX
  put({0x0f, 0x85, 0, 0, 0, 0});
  put_distance(size() - 4, m_case.start.rip + head);
}

void StreamMaker::decimal(Random& random) {
  static constexpr u8 kOpcodes[] = {0x27, 0x2f, 0x37, 0x3f, 0xd4, 0xd5};
  u8 opcode = random.pick(kOpcodes);
  if (opcode >= 0xd4) {
    put({opcode, static_cast<u8>(random.one_in(4) ? 10 : random.next())});
  } else {
    put({opcode});
  }
  m_generator.wrote(kRax);
  define_flags();
}

// --- Kinds of streams ---

void StreamMaker::ordinary(Random& random) {
  Wish wish;
  wish.calm = true;
  for (u64 parts = 6 + random.below(12); parts > 0 && size() < kRoom; --parts) {
    wish.common = random.one_in(2);
    switch (random.below(16)) {
      case 0:
        forward_jump(random, wish);
        break;
      case 1:
        if (random.one_in(2)) loop(random, wish);
        break;
      case 2:
        if (random.one_in(2)) call(random, wish);
        break;
      case 3:
        if (m_code_bits == 32 && random.one_in(3)) decimal(random);
        break;
      case 4:
        if (random.one_in(4)) system_part(random, wish);
        break;
      default:
        straight(random, wish, 1);
        break;
    }
  }
  if (random.one_in(8)) leap(random, true);
}

void StreamMaker::wild(Random& random) {
  Wish wish;
  for (u64 parts = 1 + random.below(5); parts > 0; --parts) {
    wish.common = random.one_in(2);
    straight(random, wish, 1);
  }
  if (random.one_in(2)) leap(random, false);
}

// A branch of any form to anywhere, as the last instruction of all: short ones lead over what there is.
void StreamMaker::leap(Random& random, bool calm) {
  Wish wish;
  wish.calm = calm;
  begin_instruction();
  const unsigned before = size();
  m_branches.append(random, wish, &m_case);
  Decoded d;
  const bool known =
      decodes(&m_case.bytes[before], size() - before, m_code_bits, m_case.start.rip + before, &d);
  if (known && d.immediate_bytes == 2) m_case.bytes.back() = 0;  // RET releases less than a page
  if (known && d.immediate_bytes == 1) m_case.bytes.back() &= 0x7f;
}

// Appends bytes that may be no instructions at all. False: nothing comparable can follow.
bool StreamMaker::put_if_comparable(const u8* bytes, unsigned available) {
  Decoded d;
  if (!decodes(bytes, available, m_code_bits, here(), &d)) {
    if (only_the_host_has_it(bytes, available)) return false;
    put({bytes, bytes + available});
    return false;
  }
  if (!comparable(d) || (!m_segments && (loads_segment(d) || looks_at_segments(d)))) return false;
  m_generator.wrote(written_registers(bytes, d.insn.length, m_code_bits));
  put({bytes, bytes + d.insn.length});
  return true;
}

void StreamMaker::raw(Random& random) {
  static constexpr u8 kOpenings[] = {0x0f, 0x66, 0xf2, 0xf3, 0xc4, 0xc5, 0x62, 0x8f, 0xd8, 0xdd, 0xdf, 0x48};
  for (unsigned i = 0; i < 3; ++i) {
    u8 bytes[16];
    for (u8& byte : bytes) byte = static_cast<u8>(random.next());
    if (random.one_in(2)) bytes[0] = random.pick(kOpenings);
    if (random.one_in(4)) bytes[1] = 0x0f;
    if (!put_if_comparable(bytes, 15)) return;
  }
}

void StreamMaker::redundant_prefixes(Random& random) {
  static constexpr u8 kPrefixes[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67,
                                     0xf2, 0xf3, 0xf0, 0x66, 0x3e, 0x48, 0x41};
  Wish wish;
  wish.common = true;
  for (unsigned i = 0; i < 4; ++i) {
    unsigned before = size();
    m_generator.append(random, wish, &m_case);
    std::vector<u8> plain(m_case.bytes.begin() + before, m_case.bytes.end());
    m_case.bytes.resize(before);
    std::vector<u8> bytes;
    for (u64 left = 1 + random.below(random.one_in(4) ? 14 : 3); left > 0; --left)
      bytes.push_back(random.pick(kPrefixes));
    bytes.insert(bytes.end(), plain.begin(), plain.end());
    bytes.resize(std::max<std::size_t>(bytes.size(), 16));
    if (!put_if_comparable(bytes.data(), 15)) return;
  }
}

// An instruction with an immediate of 32 bits at its end.
void StreamMaker::put_with_immediate(Random& random) {
  static constexpr u8 kNumbers[] = {0, 2, 3, 5};
  u8 number = random.pick(kNumbers);
  u8 operation = static_cast<u8>(random.below(8) << 3);
  switch (random.below(3)) {
    case 0:
      put({static_cast<u8>(0xb8 | number), 1, 2, 3, 4});
      break;
    case 1:
      put({0x81, static_cast<u8>(0xc0 | operation | number), 1, 2, 3, 4});
      break;
    default:
      put({0x69, static_cast<u8>(0xc0 | number << 3 | number), 1, 2, 3, 4});
      break;
  }
  m_generator.wrote(1u << number);
}

// A store that stays within four bytes, to an address that is filled in later.
StreamMaker::Store StreamMaker::put_store(Random& random) {
  auto byte = [&] { return static_cast<u8>(random.next()); };
  u8 modrm = static_cast<u8>(0x05 | random.below(8) << 3);
  unsigned slack = static_cast<unsigned>(random.below(4));
  switch (random.below(9)) {
    case 0:
      put({0xc7, 0x05, 0, 0, 0, 0, byte(), byte(), byte(), byte()});
      return {size() - 8, 4, 0};
    case 1:
      put({0xc6, 0x05, 0, 0, 0, 0, byte()});
      return {size() - 5, 1, slack};
    case 2:
      put({0x89, modrm, 0, 0, 0, 0});
      return {size() - 4, 0, 0};
    case 3:
      put({static_cast<u8>(random.below(8) << 3 | 1), modrm, 0, 0, 0, 0});  // ADD, OR ... CMP
      return {size() - 4, 0, 0};
    case 4:
      put({0xf0, 0xff, 0x05, 0, 0, 0, 0});  // LOCK INC
      return {size() - 4, 0, 0};
    case 5:
      put({0x66, 0x0f, 0x7e, modrm, 0, 0, 0, 0});  // MOVD
      return {size() - 4, 0, 0};
    case 6:
      put({0x66, 0x89, modrm, 0, 0, 0, 0});
      return {size() - 4, 0, std::min(slack, 2u)};
    case 7:
      put({0xf0, 0x0f, 0xb1, modrm, 0, 0, 0, 0});  // LOCK CMPXCHG
      m_generator.wrote(kRax);
      return {size() - 4, 0, 0};
    default:
      put({0xd9, 0x1d, 0, 0, 0, 0});  // FSTP m32
      return {size() - 4, 0, 0};
  }
}

void StreamMaker::modify_operand(Random& random, const Wish& wish) {
  bool again = random.one_in(2);
  Wish body = wish;
  body.keep |= kRcx;
  if (again) {
    put({0xb9, static_cast<u8>(2 + random.below(4)), 0, 0, 0});
    m_generator.wrote(kRcx);
  }
  unsigned head = size();
  bool target_first = again && random.one_in(2);
  if (target_first) put_with_immediate(random);
  unsigned target = size() - 4;
  if (target_first) straight(random, body, static_cast<unsigned>(random.below(3)));
  Store store = put_store(random);
  straight(random, body, static_cast<unsigned>(random.below(3)));
  if (!target_first) {
    put_with_immediate(random);
    target = size() - 4;
  }
  put_address(store.at, store.behind, m_case.start.rip + target + store.offset);
  if (again) close_loop(random, head);
}

// What is overwritten may have hidden flags from the translator that what it becomes needs (docs/quirks.md).
void StreamMaker::define_flags() { put({0x39, 0xc0}); }  // CMP EAX, EAX

void StreamMaker::modify_opcode(Random& random, const Wish& wish) {
  put({0xc7, 0x05, 0, 0, 0, 0, random.pick(kShort), random.pick(kShort), random.pick(kShort),
       random.pick(kShort)});
  unsigned at = size() - 8;
  straight(random, wish, static_cast<unsigned>(random.below(3)));
  define_flags();
  put_address(at, 4, here());
  for (unsigned i = 0; i < 4; ++i) put({random.pick(kShort)});
  m_generator.wrote(0xf);
}

// A row of short instructions, overwritten by a string instruction.
void StreamMaker::modify_row(Random& random) {
  unsigned length = 3 + static_cast<unsigned>(random.below(20));
  unsigned target = load_address(7);
  put({0xb0, random.pick(kShort)});
  put({0xb9, static_cast<u8>(random.below(length + 1)), 0, 0, 0});
  put({0xfc});
  m_generator.wrote(0xf | kRdi);
  put({0xf3, 0xaa});  // REP STOSB
  define_flags();
  put_address(target, 0, here());
  for (unsigned i = 0; i < length; ++i) put({random.pick(kShort)});
  u64 data = harmless_pointer(random);  // no more stores to the code by this register
  put({0xbf, static_cast<u8>(data), static_cast<u8>(data >> 8), static_cast<u8>(data >> 16),
       static_cast<u8>(data >> 24)});
}

void StreamMaker::self_modifying(Random& random) {
  m_stream.modifies_itself = true;
  Wish wish;
  wish.calm = true;
  wish.common = true;
  wish.keep = kRdi;  // no string instruction overwrites itself: how far it then gets is nobody's promise
  for (u64 parts = 1 + random.below(4); parts > 0 && size() < kRoom; --parts) {
    straight(random, wish, static_cast<unsigned>(random.below(3)));
    switch (random.below(4)) {
      case 0:
        modify_opcode(random, wish);
        break;
      case 1:
        modify_row(random);
        break;
      default:
        modify_operand(random, wish);
        break;
    }
  }
}

void StreamMaker::system(Random& random) {
  Wish wish;
  wish.calm = true;
  for (u64 parts = 2 + random.below(5); parts > 0 && size() < kRoom; --parts) {
    wish.common = random.one_in(2);
    straight(random, wish, static_cast<unsigned>(random.below(3)));
    system_part(random, wish);
  }
}

// --- The whole ---

u64 StreamMaker::place(Random& random, u64 page) const {
  if (random.one_in(4)) return page + 0x1000 - random.below(120);
  return page + random.below(0x1000 - kMaxStreamCode);
}

// Other states for the same code: what addresses memory keeps its value, or moves a little.
void StreamMaker::more_starts(Random& random) {
  const Start first = m_stream.starts.front();
  for (unsigned i = 1; i < kStarts; ++i) {
    Start& start = m_stream.starts.emplace_back();
    start.state = random_state(random, m_code_bits);
    start.state.rip = first.state.rip;
    start.state.fs_base = first.state.fs_base;
    start.state.gs_base = first.state.gs_base;
    for (unsigned number = 0; number < 16; ++number) {
      if (!(m_generator.aimed() >> number & 1)) continue;
      u64 value = first.state.gpr[number];
      if (value >= kDataBase && value < kDataEnd && random.one_in(4)) value ^= 64 << random.below(5);
      start.state.gpr[number] = value;
    }
    for (unsigned number = 0; number < 32; ++number) {
      if (m_generator.aimed_vectors() >> number & 1) start.state.zmm[number] = first.state.zmm[number];
    }
    start.memory = first.memory;
    for (u64 left = 16; left > 0; --left)
      random_vector(random, &start.memory[64 * random.below(kWritableSize / 64)], 64);
  }
}

Stream StreamMaker::make(u64 seed, u64 page) {
  Random random(seed);
  m_stream = {};
  m_case = {};
  m_stream.seed = seed;
  m_stream.code_bits = m_code_bits;
  m_stream.rip = place(random, page);
  m_generator.begin(random, &m_case, m_stream.rip);
  u64 kind = random.below(32);
  if (kind < 20) {
    ordinary(random);
  } else if (kind < 23) {
    wild(random);
  } else if (kind < 25) {
    raw(random);
  } else if (kind < 27) {
    redundant_prefixes(random);
  } else if (kind < 29) {
    system(random);
  } else {
    self_modifying(random);
  }
  begin_instruction();  // the end
  m_stream.bytes = m_case.bytes;
  m_stream.starts.push_back({m_case.start, m_case.memory});
  more_starts(random);
  return std::move(m_stream);
}

}  // namespace anykvm::isa
