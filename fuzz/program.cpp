#include "program.h"

#include <cstring>

namespace anykvm::fuzz {
namespace {

constexpr u64 kPresent = 1, kWritable = 2, kUser = 4, kLarge = 0x80, kNoExecute = u64{1} << 63;
constexpr u64 kCr0Pe = 1, kCr0Pg = u64{1} << 31, kCr0Wp = 1 << 16, kCr0Et = 1 << 4, kCr0Ne = 1 << 5;
constexpr u64 kCr4Pae = 1 << 5, kCr4Osfxsr = 1 << 9, kCr4Osxmmexcpt = 1 << 10, kCr4Osxsave = 1 << 18;
constexpr u64 kEferSce = 1, kEferLme = 1 << 8, kEferLma = 1 << 10, kEferNx = 1 << 11, kEferSvme = 1 << 12;

template <class T>
void put(u8* memory, u64 at, T value) {
  std::memcpy(memory + at, &value, sizeof value);
}

// --- Page tables ---

// An address with memory, most of the time.
u64 random_page(Random& random) {
  switch (random.below(16)) {
    case 0:
      return random.next() & 0x000ffffffffff000;
    case 1:
      return 0xfee00000;  // local APIC
    case 2:
      return 0xfec00000;  // IOAPIC
    case 3:
      return 0x100000 + (random.below(0x100) << 12);
    case 4:
      return 0x300000 + (random.below(0x10) << 12);
    case 5:
      return (u64{1} << 32) + (random.below(0x40) << 12);
    case 6:
      return 0x200000 + (random.below(0x100) << 12);  // the hole
    default:
      return random.below(0x100) << 12;
  }
}

u64 random_entry(Random& random, u64 next_table) {
  u64 flags = kPresent | kWritable | (random.one_in(3) ? kUser : 0);
  if (random.one_in(4)) flags ^= random.next() & 0xfff;
  if (random.one_in(16)) flags |= kNoExecute;
  if (random.one_in(64)) flags |= random.next() & 0x7ff0000000000000;
  u64 page = next_table && !random.one_in(6) ? next_table : random_page(random);
  return page | flags;
}

// Sixteen pages of tables that refer to each other; the first levels map the low megabyte to itself, so that
// programs get somewhere.
void write_tables(Random& random, CpuMode mode, u8* memory) {
  bool wide = mode != CpuMode::kProtected32;
  for (u64 at = kTablesAt; at < kTablesAt + kTablesSize; at += wide ? 8 : 4) {
    u64 table = kTablesAt + (random.below(kTablesSize >> 12) << 12);
    u64 entry = random_entry(random, random.one_in(2) ? table : 0);
    if (wide) {
      put(memory, at, entry);
    } else {
      put(memory, at, static_cast<u32>(entry));
    }
  }
  if (random.one_in(8)) return;  // nothing but noise
  constexpr u64 kFirst = kTablesAt, kSecond = kTablesAt + 0x1000, kThird = kTablesAt + 0x2000,
                kFourth = kTablesAt + 0x3000;
  constexpr u64 kAll = kPresent | kWritable | kUser;
  switch (mode) {
    case CpuMode::kProtected32:
      put(memory, kFirst, static_cast<u32>(kSecond | kAll));
      for (u64 page = 0; page < 0x100; ++page)
        put(memory, kSecond + 4 * page,
            static_cast<u32>(page << 12 | (page < 0x60 ? kAll : kAll ^ random.below(8))));
      break;
    case CpuMode::kPae:
      put(memory, kFirst, kSecond | kPresent);
      put(memory, kSecond, random.one_in(4) ? u64{kAll | kLarge} : kThird | kAll);
      break;
    default:
      put(memory, kFirst, kSecond | kAll);
      put(memory, kSecond, kThird | kAll);
      put(memory, kThird, random.one_in(4) ? u64{kAll | kLarge} : kFourth | kAll);
      break;
  }
  u64 last = mode == CpuMode::kPae ? kThird : kFourth;
  if (!wide) return;
  for (u64 page = 0; page < 0x100; ++page)
    put(memory, last + 8 * page, page << 12 | (page < 0x60 ? kAll : kAll ^ random.below(8)));
}

// --- Descriptors ---

u64 code_or_data(u64 base, u64 access, u64 flags) {
  return 0xffff | (base & 0xffffff) << 16 | access << 40 | u64{0xf} << 48 | flags << 52 | (base >> 24) << 56;
}

void write_descriptors(Random& random, CpuMode mode, u8* memory) {
  static constexpr u64 kAccess[] = {0x9b, 0x93, 0xfb, 0xf3, 0x9f, 0x97, 0x91, 0x99};
  static constexpr u64 kFlags[] = {0xc, 0xa, 0x0, 0x8, 0x4};
  for (u64 i = 0; i < 32; ++i) {
    u64 base = random.one_in(3) ? random.below(0x80000) : 0;
    u64 descriptor = code_or_data(base, random.pick(kAccess), random.pick(kFlags));
    if (random.one_in(4)) {  // a gate or a TSS
      u64 type = 0x80 | random.below(16) | random.below(4) << 5;
      descriptor = (kCodeAt + random.below(kCodeSize)) % 0x10000 | random.below(32) << 19 | type << 40 |
                   u64{kCodeAt >> 16} << 48;
    }
    if (random.one_in(16)) descriptor ^= u64{1} << random.below(64);
    put(memory, kGdtAt + 8 * i, descriptor);
  }
  put(memory, kGdtAt + 8, code_or_data(0, 0x9b, mode == CpuMode::kLong ? 0xa : 0xc));
  put(memory, kGdtAt + 16, code_or_data(0, 0x93, 0xc));
  put(memory, kGdtAt + 24, code_or_data(0, 0x9b, 0x0));
  bool wide = mode == CpuMode::kLong || mode == CpuMode::kCompatibility;
  for (u64 vector = 0; vector < 256; ++vector) {
    u64 handler = kCodeAt + random.below(kCodeSize);
    static constexpr u64 kTypes[] = {0x8e, 0x8f, 0xee, 0x86, 0x85};
    u64 type = random.one_in(8) ? random.below(256) : random.pick(kTypes);
    u64 selector = random.one_in(8) ? random.next() & 0xff : 8;
    u64 gate = (handler & 0xffff) | selector << 16 | type << 40 | (handler >> 16 & 0xffff) << 48;
    if (wide && random.one_in(4)) gate |= random.below(8) << 32;
    if (wide) {
      put(memory, kIdtAt + 16 * (vector % 0x100), gate);
      put(memory, kIdtAt + 16 * (vector % 0x100) + 8, random.one_in(16) ? random.next() : 0);
    } else {
      put(memory, kIdtAt + 8 * vector, gate);
    }
  }
  // Real mode has its vectors at 0.
  for (u64 vector = 0; vector < 256; ++vector)
    put(memory, 4 * vector, static_cast<u32>((kCodeAt >> 4) << 16 | random.below(0x10000)));
  for (u64 at = 0; at < 0x1000; at += 8)
    put(memory, kTssAt + at, random.one_in(2) ? kStackTop : random.next());
}

// --- Code ---

class Writer {
 public:
  Writer(Random& random, CpuMode mode, u8* to, u64 size)
      : m_random(random), m_mode(mode), m_to(to), m_size(size) {}

  void run() {
    while (m_at + 32 < m_size) piece();
  }

 private:
  void byte(u64 value) { m_to[m_at++] = static_cast<u8>(value); }
  void bytes(std::initializer_list<int> values) {
    for (int value : values) byte(static_cast<u64>(value));
  }
  void number(u64 value, unsigned size) {
    for (unsigned i = 0; i < size; ++i) byte(value >> (8 * i));
  }
  bool wide() const { return m_mode == CpuMode::kLong; }
  bool small() const {
    return m_mode == CpuMode::kReal || m_mode == CpuMode::kProtected16 || m_mode == CpuMode::kVirtual8086;
  }
  // MOV r32, imm32, whatever the operand size of the code.
  void load(unsigned reg, u64 value) {
    if (small()) byte(0x66);
    byte(0xb8 + reg);
    number(value, 4);
  }

  void device_register() {
    static constexpr u64 kPages[] = {0xfee00000, 0xfec00000, 0xfed00000, 0x200000};
    u64 address = m_random.pick(kPages) + (m_random.below(0x40) << 4);
    load(3, address);
    load(0, m_random.one_in(2) ? m_random.next() : m_random.below(0x1000));
    if (small()) byte(0x67);
    // MOV [EBX], EAX or back, of any size; XCHG; MOVS and PUSH reach there as well.
    static constexpr int kOpcodes[] = {0x89, 0x88, 0x8b, 0x8a, 0x87, 0x01, 0x31, 0x39, 0xff};
    byte(static_cast<u64>(m_random.pick(kOpcodes)));
    byte(0x03);
  }
  void port() {
    load(2, random_port(m_random));
    load(0, m_random.next());
    static constexpr int kOpcodes[] = {0xec, 0xed, 0xee, 0xef, 0x6c, 0x6d, 0x6e, 0x6f};
    if (m_random.one_in(8)) byte(0xf3);
    byte(static_cast<u64>(m_random.pick(kOpcodes)));
  }
  void msr() {
    load(1, random_msr(m_random));
    load(0, m_random.one_in(2) ? m_random.next() : u64{1} << m_random.below(32));
    load(2, m_random.one_in(2) ? 0 : m_random.next());
    bytes({0x0f, m_random.one_in(3) ? 0x32 : 0x30});
  }
  void control_register() {
    static constexpr int kNumbers[] = {0, 2, 3, 4, 8, 0, 3, 4};
    int number = m_random.pick(kNumbers);
    bool debug = m_random.one_in(4);
    if (debug) number = static_cast<int>(m_random.below(8));
    // Read, change a bit, write back: else nearly all of it is #GP.
    if (number == 8 && wide()) byte(0x44);
    bytes({0x0f, debug ? 0x21 : 0x20, 0xc0 | (number & 7) << 3});
    if (m_random.one_in(3)) {
      load(0, m_random.next());
    } else {
      bytes({0x0f, 0xba, 0xf8, static_cast<int>(m_random.below(32))});  // BTC EAX, n
    }
    if (number == 8 && wide()) byte(0x44);
    bytes({0x0f, debug ? 0x23 : 0x22, 0xc0 | (number & 7) << 3});
  }
  void system() {
    switch (m_random.below(14)) {
      case 0:
        bytes({0xfb});  // STI
        break;
      case 1:
        bytes({0xfa});
        break;
      case 2:
        bytes({0xf4});  // HLT
        break;
      case 3:
        bytes({0xcd, static_cast<int>(m_random.below(256))});
        break;
      case 4:
        bytes({0xcf});  // IRET
        break;
      case 5:
        bytes({0x48, 0xcf});
        break;
      case 6:
        bytes({0x0f, 0x01, static_cast<int>(m_random.next() & 0xff)});  // LGDT, LIDT, LMSW, INVLPG ...
        break;
      case 7:
        bytes({0x0f, 0x00, static_cast<int>(m_random.next() & 0xff)});  // LLDT, LTR, VERR ...
        break;
      case 8:
        bytes({0x8e, static_cast<int>(m_random.next() & 0xff)});  // MOV to a segment register
        break;
      case 9:
        bytes({0xea});  // far JMP
        number(kCodeAt % 0x10000 + m_random.below(0x8000), small() ? 2 : 4);
        number(m_random.below(20) << 3 | m_random.below(4), 2);
        break;
      case 10:
        bytes({0x0f, 0x05 + static_cast<int>(m_random.below(3))});  // SYSCALL, CLTS, SYSRET
        break;
      case 11:
        bytes({0x0f, 0x34 + static_cast<int>(m_random.below(2))});  // SYSENTER, SYSEXIT
        break;
      case 12:
        bytes({0x0f, 0x01, 0xc0 + static_cast<int>(m_random.below(64))});  // VMCALL, XSETBV, SWAPGS ...
        break;
      default:
        bytes({0x9d});  // POPF
        break;
    }
  }
  // As a hypervisor: VMRUN most of the time, of a VMCB that write_vmcbs() has made or that is none.
  void hypervisor() {
    const u64 vmcb = kVmcbsAt + (m_random.below(kVmcbs) << 12);
    load(0, m_random.one_in(16) ? m_random.next() : vmcb);
    static constexpr int kOpcodes[] = {0xd8, 0xd8, 0xd8, 0xd8, 0xda, 0xdb, 0xdc, 0xdd, 0xdf};
    bytes({0x0f, 0x01, m_random.pick(kOpcodes)});
  }
  void noise() {
    for (u64 left = 1 + m_random.below(12); left > 0; --left) byte(m_random.next());
  }
  void store() {
    // To anywhere in the low megabyte: tables, descriptors, code.
    load(3, m_random.below(0x100000));
    if (small()) byte(0x67);
    bytes({0x89, 0x03});
  }
  void jump() { bytes({0xeb, static_cast<int>(m_random.below(64)) - 16}); }

  void piece() {
    if (m_random.one_in(m_hypervisor ? 3 : 32)) return hypervisor();
    switch (m_random.below(12)) {
      case 0:
        return device_register();
      case 1:
        return port();
      case 2:
        return msr();
      case 3:
        return control_register();
      case 4:
      case 5:
        return system();
      case 6:
        return store();
      case 7:
        return jump();
      default:
        return noise();
    }
  }

  Random& m_random;
  CpuMode m_mode;
  u8* m_to;
  u64 m_size, m_at = 0;
  const bool m_hypervisor = m_random.one_in(3);  // many VMRUNs
};

// --- State ---

kvm_segment flat(u16 selector, u8 type) {
  kvm_segment s{};
  s.limit = 0xffffffff;
  s.selector = selector;
  s.type = type;
  s.present = s.s = s.g = s.db = 1;
  return s;
}

kvm_segment real_segment(u16 selector) {
  kvm_segment s{};
  s.selector = selector;
  s.base = static_cast<u64>(selector) << 4;
  s.limit = 0xffff;
  s.type = 3;
  s.present = s.s = 1;
  return s;
}

void set_segments(CpuMode mode, kvm_sregs* s) {
  kvm_segment data = flat(0x10, 3), code = flat(8, 11);
  bool real = mode == CpuMode::kReal || mode == CpuMode::kVirtual8086;
  if (mode == CpuMode::kLong) code.l = 1, code.db = 0;
  if (mode == CpuMode::kProtected16) code.db = data.db = 0;
  if (real) data = real_segment(0), code = real_segment(kCodeAt >> 4);
  if (mode == CpuMode::kVirtual8086) data.dpl = code.dpl = 3;
  s->cs = code;
  s->ds = s->es = s->fs = s->gs = s->ss = data;
  s->tr = {};
  s->tr.base = kTssAt;
  s->tr.limit = 0xfff;
  s->tr.type = 11;
  s->tr.present = 1;
  s->tr.selector = 0x40;
  s->ldt = {};
  s->ldt.unusable = 1;
}

// --- Nested guests: APM 2 appendix B ---

void put_segment(u8* vmcb, u64 at, const kvm_segment& s) {
  const unsigned attributes =
      s.type | s.s << 4 | s.dpl << 5 | s.present << 7 | s.avl << 8 | s.l << 9 | s.db << 10 | s.g << 11;
  put(vmcb, at, s.selector);
  put(vmcb, at + 2, static_cast<u16>(attributes));
  put(vmcb, at + 4, s.limit);
  put(vmcb, at + 8, s.base);
}

u64 random_event(Random& random) {
  static constexpr u64 kTypes[] = {0, 2, 3, 3, 4, 1};
  const u64 vector = random.below(random.one_in(4) ? 256 : 32), has_error = random.below(2) << 11;
  return random.next() << 32 | u64{1} << 31 | has_error | random.pick(kTypes) << 8 | vector;
}

void write_control_area(Random& random, u8* vmcb) {
  for (u64 at = 0; at < 0x18; at += 4)
    put(vmcb, at, static_cast<u32>(random.one_in(2) ? 0 : random.next() & random.next()));
  const auto second = static_cast<u32>(random.next() & random.next());
  put(vmcb, 0x10, second | !random.one_in(32));  // VMRUN
  // Permission maps.
  put(vmcb, 0x40, random.below(0x100) << 12);
  put(vmcb, 0x48, random.one_in(8) ? random_page(random) : random.below(0x100) << 12);
  put(vmcb, 0x50, random.next());
  put(vmcb, 0x58, static_cast<u32>(random.one_in(32) ? 0 : 1 + random.below(3)));  // ASID
  put(vmcb, 0x5c, static_cast<u8>(random.below(8)));                               // TLB control
  put(vmcb, 0x60, static_cast<u32>(random.next() & random.next()));
  put(vmcb, 0x64, static_cast<u32>(random.below(256)));
  put(vmcb, 0x68, random.below(2));
  put(vmcb, 0x90, random.below(2));  // nested paging
  put(vmcb, 0xa8, random.one_in(2) ? 0 : random_event(random));
  put(vmcb, 0xb0, kTablesAt + (random.below(16) << 12));
  put(vmcb, 0xc8, kCodeAt + random.below(kCodeSize));
}

void write_save_area(Random& random, u8* vmcb) {
  kvm_sregs s{};
  kvm_regs r{};
  random_state(random, static_cast<CpuMode>(random.below(kCpuModes)), &s, &r);
  put_segment(vmcb, 0x400, s.es);
  put_segment(vmcb, 0x410, s.cs);
  put_segment(vmcb, 0x420, s.ss);
  put_segment(vmcb, 0x430, s.ds);
  put_segment(vmcb, 0x440, s.fs);
  put_segment(vmcb, 0x450, s.gs);
  put(vmcb, 0x464, u32{s.gdt.limit});
  put(vmcb, 0x468, s.gdt.base);
  put_segment(vmcb, 0x470, s.ldt);
  put(vmcb, 0x484, u32{s.idt.limit});
  put(vmcb, 0x488, s.idt.base);
  put_segment(vmcb, 0x490, s.tr);
  put(vmcb, 0x4cb, static_cast<u8>(random.one_in(4) ? 3 : 0));
  put(vmcb, 0x4d0, s.efer | kEferSvme);
  put(vmcb, 0x548, s.cr4);
  put(vmcb, 0x550, s.cr3);
  put(vmcb, 0x558, s.cr0);
  put(vmcb, 0x560, random.one_in(4) ? random.next() & 0xffffffff : u64{0x400});
  put(vmcb, 0x568, u64{0xffff0ff0});
  put(vmcb, 0x570, r.rflags);
  put(vmcb, 0x578, r.rip);
  put(vmcb, 0x5d8, r.rsp);
  put(vmcb, 0x5f8, r.rax);
}

void write_vmcbs(Random& random, u8* memory) {
  for (u64 i = 0; i < kVmcbs; ++i) {
    u8* vmcb = memory + kVmcbsAt + (i << 12);
    write_control_area(random, vmcb);
    write_save_area(random, vmcb);
    if (random.one_in(4)) put(vmcb, 8 * random.below(0x700 / 8), random.next());
  }
}

}  // namespace

u32 random_msr(Random& random) {
  static constexpr u32 kKnown[] = {
      0x10,       0x1b,       0x3a,       0x3b,       0x48,       0x49,       0x174,      0x175,
      0x176,      0x179,      0x17a,      0x1a0,      0x1d9,      0x277,      0x2ff,      0x200,
      0x250,      0x400,      0x6e0,      0xc0000080, 0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084,
      0xc0000100, 0xc0000101, 0xc0000102, 0xc0000103, 0x4b564d00, 0x4b564d01, 0x4b564d02, 0x4b564d03,
      0x4b564d04, 0x40000000, 0x40000001, 0xc0010015, 0xc0010114, 0xc0010117, 0x4b564d05, 0x4b564d06,
      0x4b564d07, 0xda0,      0x140,      0xce};
  switch (random.below(8)) {
    case 0:
      return static_cast<u32>(random.next());
    case 1:
      return 0x800 + static_cast<u32>(random.below(0x40));  // x2APIC
    case 2:
      return 0x400 + static_cast<u32>(random.below(0x80));
    default:
      return random.pick(kKnown);
  }
}

u16 random_port(Random& random) {
  static constexpr u16 kKnown[] = {0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x4d0, 0x4d1, 0x92};
  return random.one_in(6) ? static_cast<u16>(random.next()) : random.pick(kKnown);
}

void write_program(Random& random, CpuMode mode, u8* memory) {
  write_tables(random, mode, memory);
  write_descriptors(random, mode, memory);
  Writer(random, mode, memory + kCodeAt, kCodeSize).run();
  write_vmcbs(random, memory);
}

void random_state(Random& random, CpuMode mode, kvm_sregs* s, kvm_regs* r) {
  set_segments(mode, s);
  s->gdt = {kGdtAt, 0xff, {}};
  s->idt = {mode == CpuMode::kReal ? 0 : kIdtAt, 0xfff, {}};
  s->cr0 = kCr0Et | kCr0Ne | (random.one_in(2) ? kCr0Wp : 0);
  s->cr2 = s->cr8 = 0;
  s->cr3 = kTablesAt;
  s->cr4 = kCr4Osfxsr | kCr4Osxmmexcpt | (random.one_in(2) ? kCr4Osxsave : 0);
  s->efer = 0;
  bool paged = false;
  switch (mode) {
    case CpuMode::kReal:
      break;
    case CpuMode::kProtected16:
      s->cr0 |= kCr0Pe;
      break;
    case CpuMode::kProtected32:
    case CpuMode::kVirtual8086:
      s->cr0 |= kCr0Pe;
      paged = mode == CpuMode::kProtected32 && !random.one_in(3);
      break;
    case CpuMode::kPae:
      s->cr0 |= kCr0Pe;
      s->cr4 |= kCr4Pae;
      paged = true;
      break;
    case CpuMode::kLong:
    case CpuMode::kCompatibility:
      s->cr0 |= kCr0Pe;
      s->cr4 |= kCr4Pae;
      s->efer = kEferSce | kEferLme | kEferLma | kEferNx;
      paged = true;
      break;
  }
  if (paged) s->cr0 |= kCr0Pg;
  if (!random.one_in(3)) s->efer |= kEferSvme;
  // Optional features, one by one: SMEP, SMAP, PCE, TSD, VME, PSE ...
  static constexpr u64 kOptional[] = {1, 2, 4, 8, 0x10, 0x80, 0x100, 0x10000, 0x20000, 0x100000, 0x200000};
  for (u64 left = random.below(4); left > 0; --left) s->cr4 ^= random.pick(kOptional);
  if (random.one_in(16)) s->cr0 ^= u64{1} << random.below(32);
  if (random.one_in(32)) s->cr3 = random.next() & 0x000ffffffffff000;

  auto any = [&] { return random.one_in(2) ? random.below(0x100000) : random.next(); };
  r->rax = any(), r->rbx = any(), r->rcx = any(), r->rdx = any(), r->rsi = any(), r->rdi = any();
  r->rbp = any(), r->r8 = any(), r->r9 = any(), r->r10 = any(), r->r11 = any(), r->r12 = any();
  r->r13 = any(), r->r14 = any(), r->r15 = any();
  r->rsp = random.one_in(16) ? random.next() : kStackTop - 8 * random.below(64);
  bool real = mode == CpuMode::kReal || mode == CpuMode::kVirtual8086;
  if (real) r->rsp = 0xf000 - 8 * random.below(64);
  r->rip = (real ? 0 : kCodeAt) + random.below(real ? 0x10000 : kCodeSize);
  r->rflags = 2 | (random.next() & 0x243ed5 & (random.one_in(8) ? ~u64{0} : ~u64{0x100}));
  if (mode == CpuMode::kVirtual8086) r->rflags |= 1 << 17;
}

}  // namespace anykvm::fuzz
