// Parts of streams that change segments, modes and flags, or save the FPU's state, as far as user code may.
#include "stream.h"
#include "user_descriptors.h"
#include "x86/state/cpu_state.h"
#include "x86/state/xsave.h"

namespace anykvm::isa {
namespace {

constexpr u32 kRax = 1u << 0, kRdx = 1u << 2, kRbx = 1u << 3, kR8 = 1u << 8, kR9 = 1u << 9;

u16 random_selector(Random& random) {
  static constexpr u16 kKnown[] = {kUserDs, kUserDs, kUserDs & ~3, kUserCs32, kUserCs64, 0, kProcessorNode};
  switch (random.below(12)) {
    case 0:
      return static_cast<u16>(random.next());
    case 1:
      return static_cast<u16>(8 * random.between(1, kGdtEntries) + 3);
    case 2:
    case 3:
    case 4:
    case 5:
    case 6:
      return static_cast<u16>(kFirstLdt + 8 * random.below(kLdtEntries));
    default:
      return random.pick(kKnown);
  }
}

bool is_code32(u16 selector) {
  unsigned entry = selector >> 3;
  if (!(selector & 4)) return entry == kUserCs32 >> 3;
  return entry < kLdtEntries && kLdtDescriptors[entry].contents == UserDescriptor::kCode;
}

u8 byte_of(u32 number, unsigned i) { return static_cast<u8>(number >> (8 * i)); }

std::vector<u8> joined(std::vector<u8> bytes, const std::vector<u8>& more) {
  bytes.insert(bytes.end(), more.begin(), more.end());
  return bytes;
}

std::vector<u8> as_bytes(u32 number, unsigned size) {
  std::vector<u8> bytes;
  for (unsigned i = 0; i < size; ++i) bytes.push_back(byte_of(number, i));
  return bytes;
}

}  // namespace

// An instruction with the memory operand [target]; `opcode` includes ModRM.
void StreamMaker::put_at(std::vector<u8> opcode, u64 target, const std::vector<u8>& immediate) {
  put(joined(joined(std::move(opcode), {0, 0, 0, 0}), immediate));
  auto behind = static_cast<unsigned>(immediate.size());
  put_address(size() - 4 - behind, behind, target);
}

void StreamMaker::put_number(u8 opcode, u32 number) { put(joined({opcode}, as_bytes(number, 4))); }

void StreamMaker::system_part(Random& random, const Wish& wish) {
  switch (random.below(m_segments ? 8 : 2)) {
    case 0:
      set_flags(random);
      break;
    case 1:
      save_image(random);
      break;
    case 2:
    case 3:
      load_segment(random, wish);
      break;
    case 4:
      inspect_segment(random);
      break;
    default:
      far_transfer(random, wish);
      break;
  }
}

// --- Segments ---

void StreamMaker::put_segment_load(Random& random, unsigned segment, u16 selector) {
  static constexpr u8 kPops[] = {0x07, 0, 0x17, 0x1f, 0xa1, 0xa9},
                      kFarLoads[] = {0xc4, 0, 0xb2, 0xc5, 0xb4, 0xb5};
  bool short_form = segment == x86::kEs || segment == x86::kDs;
  bool only_by_mov = segment == x86::kCs || (m_code_bits == 64 && segment < x86::kFs);
  switch (only_by_mov ? 0 : random.below(3)) {
    case 0:
      put_number(0xb8, selector);
      m_generator.wrote(kRax);
      put({0x8e, static_cast<u8>(0xc0 | segment << 3)});  // MOV Sreg, EAX
      break;
    case 1:
      put_number(0x68, selector);
      if (segment < x86::kFs) return put({kPops[segment]});
      put({0x0f, kPops[segment]});
      break;
    default: {
      u64 at = harmless_pointer(random);
      put_at({0xc7, 0x05}, at, as_bytes(static_cast<u32>(random.next()), 4));
      put_at({0x66, 0xc7, 0x05}, at + 4, as_bytes(selector, 2));
      std::vector<u8> opcode = {kFarLoads[segment], 0x05};  // LxS EAX, [at]
      put_at(short_form ? opcode : joined({0x0f}, opcode), at);
      m_generator.wrote(kRax);
      break;
    }
  }
}

void StreamMaker::load_segment(Random& random, const Wish& wish) {
  static constexpr u8 kOften[] = {x86::kEs, x86::kDs, x86::kFs, x86::kGs};
  unsigned segment = random.one_in(6) ? static_cast<unsigned>(random.below(6)) : random.pick(kOften);
  put_segment_load(random, segment, random_selector(random));
  straight(random, wish, static_cast<unsigned>(random.below(3)));
  if (!random.one_in(4)) put_segment_load(random, segment, kUserDs);
}

void StreamMaker::inspect_segment(Random& random) {
  static constexpr u8 kTargets[] = {0, 2, 3};
  u8 target = random.pick(kTargets);
  put_number(0xb8, static_cast<u32>(random.next() << 16 | random_selector(random)));
  m_generator.wrote(kRax);
  std::vector<u8> prefix;
  if (random.one_in(4)) prefix.push_back(0x66);
  if (m_code_bits == 64 && random.one_in(4)) prefix.push_back(0x48);
  switch (random.below(3)) {
    case 0:  // VERR, VERW
      put(joined(prefix, {0x0f, 0x00, static_cast<u8>(random.one_in(2) ? 0xe0 : 0xe8)}));
      break;
    default:  // LAR, LSL
      put(joined(prefix, {0x0f, static_cast<u8>(random.one_in(2) ? 0x02 : 0x03),
                          static_cast<u8>(0xc0 | target << 3)}));
      m_generator.wrote(1u << target);
      break;
  }
}

// --- Far transfers ---

bool StreamMaker::changes_mode(u16 selector) const {
  return m_code_bits == 64 ? is_code32(selector) : (selector & ~3) == (kUserCs64 & ~3);
}

// JMP or CALL to a far pointer. The offset's place goes to *target if it is in the instruction, and then it
// is absolute.
void StreamMaker::put_far_pointer_transfer(Random& random, u16 selector, unsigned* target) {
  bool call = random.one_in(2);
  if (call && changes_mode(selector)) {  // the stack is a plain one (docs/quirks.md)
    put_number(0xb8, kUserDs);
    put({0x8e, 0xd0});  // MOV SS, EAX
    m_generator.wrote(kRax);
  }
  if (m_code_bits == 32 && random.one_in(2)) {
    put(joined({static_cast<u8>(call ? 0x9a : 0xea), 0, 0, 0, 0}, as_bytes(selector, 2)));
    *target = size() - 6;
    return;
  }
  u64 at = harmless_pointer(random);
  put_at({0xc7, 0x05}, at, {0, 0, 0, 0});
  *target = size() - 4;
  put_at({0x66, 0xc7, 0x05}, at + 4, as_bytes(selector, 2));
  put_at({0xff, static_cast<u8>(call ? 0x1d : 0x2d)}, at);
}

// Returns where the absolute 32-bit offset of the target goes. `returning`: by IRET, else by RETF.
unsigned StreamMaker::put_far_transfer(Random& random, u16 selector, bool returning) {
  bool wide = m_code_bits == 64;
  if (returning && wide) {
    put({0x6a, kUserDs});
    put({0x54});  // PUSH RSP
  }
  if (returning) {
    put({0x9c});
    u32 odd = random.one_in(3) ? static_cast<u32>(random.next() & 0x254000) : 0;
    if (odd) put(joined({0x81, 0x0c, 0x24}, as_bytes(odd, 4)));  // OR dword [rSP], imm
  }
  put_number(0x68, selector);
  put_number(0x68, 0);
  unsigned target = size() - 4;
  std::vector<u8> leave = {static_cast<u8>(returning ? 0xcf : 0xcb)};
  if (!returning && random.one_in(3)) leave = {0xca, static_cast<u8>(8 * random.below(3)), 0};
  put(wide ? joined({0x48}, leave) : leave);
  return target;
}

// A few instructions of the other mode, and back.
void StreamMaker::other_mode(Random& random) {
  static constexpr u8 kNumbers[] = {0, 2, 3};
  bool wide = m_code_bits == 32;  // these are 64-bit code
  for (u64 left = 1 + random.below(3); left > 0; --left) {
    u8 number = random.pick(kNumbers);
    switch (random.below(4)) {
      case 0:
        if (wide) {
          put({0x48, 0xff, static_cast<u8>(0xc0 | number)});  // INC r64
        } else {
          put({static_cast<u8>(0x40 | number)});  // INC r32
        }
        break;
      case 1:
        put({static_cast<u8>(0x50 | number)});
        put({static_cast<u8>(0x58 | random.pick(kNumbers))});
        break;
      case 2:
        put(wide ? std::vector<u8>{0x4d, 0x01, 0xc1}
                 : std::vector<u8>{0x01, 0xc2});  // ADD R9, R8; ADD EDX, EAX
        break;
      default:
        put({0x0f, static_cast<u8>(0xc8 | number)});  // BSWAP r32
        break;
    }
  }
  m_generator.wrote(kRax | kRdx | kRbx | (wide ? kR8 | kR9 : 0));
  if (wide) {
    put({0x6a, kUserCs32});
    put_number(0x68, static_cast<u32>(here() + 7));
    put({0x48, 0xcb});
  } else {
    u32 behind = static_cast<u32>(here() + 7);
    put(joined(joined({0xea}, as_bytes(behind, 4)), as_bytes(kUserCs64, 2)));
  }
}

void StreamMaker::far_transfer(Random& random, const Wish& wish) {
  const u16 same = m_code_bits == 64 ? kUserCs64 : kUserCs32,
            other = m_code_bits == 64 ? kUserCs32 : kUserCs64;
  u16 selector = random.one_in(6) ? random_selector(random) : random.one_in(2) ? same : other;
  // What becomes of RSP's upper half in 32-bit code is undefined.
  if (m_code_bits == 64 && is_code32(selector)) put({0x89, 0xe4});  // MOV ESP, ESP
  unsigned target = 0;
  u64 kind = random.below(3);
  if (kind == 0) {
    put_far_pointer_transfer(random, selector, &target);
  } else {
    target = put_far_transfer(random, selector, kind == 1);
  }
  straight(random, wish, static_cast<unsigned>(random.below(2)));
  auto offset = static_cast<u32>(here());
  for (unsigned i = 0; i < 4; ++i) m_case.bytes[target + i] = byte_of(offset, i);
  // In the wrong mode the code would be any instructions, also those whose results are undefined.
  if (changes_mode(selector)) other_mode(random);
}

// --- Flags and the FPU ---

// TF, NT, AC, ID and what else is random.
void StreamMaker::set_flags(Random& random) {
  u32 flags = static_cast<u32>(random.next() & (random.one_in(4) ? 0x247fd5 : 0x2048d5));
  put({0x9c});
  put(joined({0x81, static_cast<u8>(random.one_in(2) ? 0x0c : 0x34), 0x24}, as_bytes(flags, 4)));  // OR, XOR
  put({0x9d});
}

// Saves to a place that is known, and clears what differs there (docs/quirks.md): the x87's pointers and
// opcode, and which components are in use.
void StreamMaker::save_image(Random& random) {
  u64 at = kDataBase + 64 * random.below(80);
  if (random.one_in(8)) at += random.below(64);
  // The stores behind it must not raise #AC.
  put({0x9c});
  put({0x81, 0x24, 0x24, 0xff, 0xff, 0xfb, 0xff});  // AND dword [rSP], ~AC
  put({0x9d});
  std::vector<u8> prefix;
  if (m_code_bits == 64 && random.one_in(2)) prefix.push_back(0x48);
  std::vector<unsigned> differing;
  switch (random.below(4)) {
    case 0:
    case 1: {
      bool small = random.one_in(3);
      if (small) prefix.insert(prefix.begin(), 0x66);
      put_at(joined(prefix, {static_cast<u8>(random.one_in(2) ? 0xd9 : 0xdd), 0x35}), at);  // FNSTENV, FNSAVE
      differing = {12, 16, 20, 24};
      if (small && prefix.size() == 1) differing = {6, 10};
      break;
    }
    case 2:
      put_at(joined(prefix, {0x0f, 0xae, 0x05}), at);  // FXSAVE
      differing = {6, 10, 14, 18, 20};
      break;
    default:
      put_number(0xb8, static_cast<u32>(random.below(256) & x86::host_xcr0_usable()));
      put_number(0xba, 0);
      m_generator.wrote(kRax | kRdx);
      put_at(joined(prefix, {0x0f, 0xae, 0x25}), at);  // XSAVE
      differing = {6, 10, 14, 18, 20, 512};
      break;
  }
  for (unsigned offset : differing) put_at({0xc7, 0x05}, at + offset, {0, 0, 0, 0});
}

}  // namespace anykvm::isa
