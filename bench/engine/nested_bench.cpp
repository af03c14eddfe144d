// Nested guests: from a hypervisor that is a guest to its own guest and back, and what memory costs there.

#include <cstring>

#include "guest.h"

namespace anykvm::bench {
namespace {

namespace x86 = asmjit::x86;

constexpr std::uint64_t kVmcb = at::kData, kHostSave = at::kData + 0x1000, kNestedCode = at::kCode + 0x10000;
constexpr std::uint64_t kNestedTables = at::kData + 0x2000;
constexpr std::uint32_t kEfer = 0xc0000080, kHostSaveMsr = 0xc0010117;
constexpr std::uint64_t kEferSvme = 1 << 12;

void vmrun(Assembler& a) { a.db(0x0f), a.db(0x01), a.db(0xd8); }
void vmmcall(Assembler& a) { a.db(0x0f), a.db(0x01), a.db(0xd9); }

template <class T>
void put(Guest& guest, std::uint64_t address, T value) {
  std::memcpy(guest.ram(address), &value, sizeof value);
}

// APM 2 table B-2: selector, attributes, limit, base.
void put_segment(Guest& guest, unsigned offset, const kvm_segment& s) {
  const unsigned attributes =
      s.type | s.s << 4 | s.dpl << 5 | s.present << 7 | s.avl << 8 | s.l << 9 | s.db << 10 | s.g << 11;
  put<std::uint16_t>(guest, kVmcb + offset, s.selector);
  put<std::uint16_t>(guest, kVmcb + offset + 2, static_cast<std::uint16_t>(attributes));
  put<std::uint32_t>(guest, kVmcb + offset + 4, s.limit);
  put<std::uint64_t>(guest, kVmcb + offset + 8, s.base);
}

// The first GiB and the second as they are, by 2 MiB pages.
void write_nested_tables(Guest& guest) {
  constexpr std::uint64_t kPresentWriteUser = 7, kLarge = 0x80;
  const std::uint64_t middle = kNestedTables + 0x1000;
  put(guest, kNestedTables, middle | kPresentWriteUser);
  for (std::uint64_t gib = 0; gib < 2; ++gib) {
    const std::uint64_t table = middle + 0x1000 * (gib + 1);
    put(guest, middle + 8 * gib, table | kPresentWriteUser);
    for (std::uint64_t i = 0; i < 512; ++i)
      put(guest, table + 8 * i, (gib << 30 | i << 21) | kPresentWriteUser | kLarge);
  }
}

// A guest in the mode of its hypervisor, with `write` for code and nested paging.
void write_vmcb(Guest& guest, const std::function<void(Assembler&)>& write) {
  kvm_sregs sregs;
  must_ioctl(guest.vcpu().fd(), KVM_GET_SREGS, &sregs);
  constexpr std::uint32_t kVmrun = 1, kVmmcall = 2;
  put<std::uint32_t>(guest, kVmcb + 0x10, kVmrun | kVmmcall);
  put<std::uint32_t>(guest, kVmcb + 0x58, 1);  // ASID
  put<std::uint64_t>(guest, kVmcb + 0x90, 1);  // nested paging
  put<std::uint64_t>(guest, kVmcb + 0xb0, kNestedTables);
  put_segment(guest, 0x400, sregs.es);
  put_segment(guest, 0x410, sregs.cs);
  put_segment(guest, 0x420, sregs.ss);
  put_segment(guest, 0x430, sregs.ds);
  put<std::uint64_t>(guest, kVmcb + 0x4d0, sregs.efer | kEferSvme);
  put<std::uint64_t>(guest, kVmcb + 0x548, sregs.cr4);
  put<std::uint64_t>(guest, kVmcb + 0x550, sregs.cr3);
  put<std::uint64_t>(guest, kVmcb + 0x558, sregs.cr0);
  put<std::uint64_t>(guest, kVmcb + 0x560, 0x400);
  put<std::uint64_t>(guest, kVmcb + 0x568, 0xffff0ff0);
  put<std::uint64_t>(guest, kVmcb + 0x570, 2);
  put<std::uint64_t>(guest, kVmcb + 0x578, kNestedCode);
  put<std::uint64_t>(guest, kVmcb + 0x5d8, at::kStack - 0x100);
  put<std::uint64_t>(guest, kVmcb + 0x668, 0x0007040600070406);
  guest.assemble(kNestedCode, write);
  write_nested_tables(guest);
}

void measure_nested(benchmark::State& state, unsigned count, unsigned operations,
                    const std::function<void(Assembler&)>& write) {
  Guest guest;
  kvm_sregs sregs;
  must_ioctl(guest.vcpu().fd(), KVM_GET_SREGS, &sregs);
  write_vmcb(guest, write);
  measure_loop(state, guest,
               {.count = count,
                .unroll = 1,
                .operations = operations,
                .before =
                    [&](Assembler& a) {
                      write_msr(a, kEfer, sregs.efer | kEferSvme);
                      write_msr(a, kHostSaveMsr, kHostSave);
                      a.mov(x86::rax, kVmcb);
                    },
                .body =
                    [](Assembler& a, unsigned) {
                      a.mov(x86::qword_ptr(kVmcb + 0x578), kNestedCode);  // RIP
                      vmrun(a);
                    }});
}

void vmrun_and_vmexit(benchmark::State& state) { measure_nested(state, 1000, 1, vmmcall); }
BENCHMARK(vmrun_and_vmexit);

void nested_tlb_miss_4k_pages(benchmark::State& state) {
  static constexpr unsigned kPageCount = at::kScatteredSize / 4096;
  measure_nested(state, 10, kPageCount, [](Assembler& a) {
    asmjit::Label next = a.newLabel();
    a.mov(x86::rsi, at::kPages);
    a.mov(x86::ecx, kPageCount);
    a.bind(next);
    a.mov(x86::rdx, x86::ptr(x86::rsi));
    a.add(x86::rsi, 4096);
    a.dec(x86::ecx);
    a.jnz(next);
    vmmcall(a);
  });
}
BENCHMARK(nested_tlb_miss_4k_pages);

}  // namespace
}  // namespace anykvm::bench
