#include "arguments.h"

#include <anykvm/ioregion.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace anykvm::fuzz {
namespace {

constexpr u64 kPage = 4096, kWritablePages = 4, kPages = kWritablePages + 2;

constexpr Kind kSystemKind = Kind::kSystem, kVmKind = Kind::kVm, kVcpuKind = Kind::kVcpu;
const Request kRequests[] = {
#define ANYKVM_IOCTL(kind, request, handler, argument) {k##kind##Kind, request, #request},
#include "abi/ioctls.def"
#undef ANYKVM_IOCTL
    {Kind::kVcpu, KVM_GET_NESTED_STATE, "KVM_GET_NESTED_STATE"},
    {Kind::kOther, 0xae00, "none"},
};

// Bytes of arrays behind the structure, so that some calls get far.
constexpr u64 kTail = 2048;

}  // namespace

Arguments::Arguments(u8* ram) : m_ram(ram) {
  void* area = mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (area == MAP_FAILED) {
    std::perror("memory for arguments");
    std::abort();
  }
  m_area = static_cast<u8*>(area);
  mprotect(m_area + kWritablePages * kPage, kPage, PROT_READ);
  mprotect(m_area + (kWritablePages + 1) * kPage, kPage, PROT_NONE);
}

Arguments::~Arguments() { munmap(m_area, kPages * kPage); }

const Request& Arguments::request(Random& random) const {
  return kRequests[random.below(std::size(kRequests))];
}

unsigned long Arguments::number(Random& random, unsigned long request) const {
  switch (random.below(48)) {
    case 0:
      return request ^ (u64{1} << (16 + random.below(14)));  // size
    case 1:
      return request ^ (u64{1} << (30 + random.below(2)));  // direction
    case 2:
      return 0xae00 | random.below(256);
    default:
      return request;
  }
}

u64 Arguments::value(Random& random) const {
  switch (random.below(10)) {
    case 0:
    case 1:
    case 2:
      return random.below(8);
    case 3:
      return u64{1} << random.below(64);
    case 4:
      return random.below(64) << 12;
    case 5:
      return random.next();
    case 6:
      return random.next() & 0xffffffff;
    case 7:
      return reinterpret_cast<u64>(m_area) + random.below(kWritablePages * kPage);
    case 8:
      return random_msr(random);
    default:
      return 0;
  }
}

u64 Arguments::bad_pointer(Random& random) const {
  static constexpr u64 kBad[] = {
      0, 8, 0xffffffffffffffff, 0xffff800000000000, 0x800000000000, 0x7ffffffff000};
  u64 end = reinterpret_cast<u64>(m_area) + kWritablePages * kPage;
  switch (random.below(4)) {
    case 0:
      return end - random.below(64);  // goes on where it may only be read
    case 1:
      return end + kPage - random.below(64);  // goes on where it may not
    case 2:
      return end + kPage;
    default:
      return random.pick(kBad);
  }
}

void Arguments::fill(Random& random, unsigned long request, u8* to, u64 size) const {
  u64 density = 1 + random.below(4);
  for (u64 at = 0; at + 4 <= size; at += 4) {
    u64 word = random.one_in(density) ? value(random) : 0;
    std::memcpy(to + at, &word, at + 8 <= size && at % 8 == 0 ? 8 : 4);
  }
  // Counts of entries come first in those with arrays.
  bool counted = _IOC_SIZE(request) == 8 || _IOC_SIZE(request) == 4;
  if (counted) {
    u32 entries = static_cast<u32>(random.one_in(8) ? random.next() : random.below(40));
    std::memcpy(to, &entries, sizeof entries);
  }
}

// The engine gives guests what these name, and they write there: only memory that is theirs, or nobody's. And
// no descriptor of ours that something else uses.
void Arguments::restrict_host_memory(Random& random, unsigned long request, u8* structure, u64 size) const {
  auto put = [&](u64 at, auto number) {
    if (at + sizeof number <= size) std::memcpy(structure + at, &number, sizeof number);
  };
  switch (request) {
    case KVM_SET_USER_MEMORY_REGION:
    case KVM_SET_USER_MEMORY_REGION2: {
      u64 begin = random.below(kRamSize / kPage) * kPage;
      u64 length = random.one_in(8) ? 0 : random.below((kRamSize - begin) / kPage + 1) * kPage;
      bool nowhere = random.one_in(8);
      put(0, static_cast<u32>(random.below(6)));
      if (random.one_in(2))
        put(offsetof(kvm_userspace_memory_region, guest_phys_addr), random.below(1024) * kPage);
      put(offsetof(kvm_userspace_memory_region, memory_size), length);
      put(offsetof(kvm_userspace_memory_region, userspace_addr),
          nowhere ? bad_pointer(random) & ~(kPage - 1) & ~u64{0x7fffffffffff}
                  : reinterpret_cast<u64>(m_ram) + begin);
      break;
    }
    case KVM_SET_SIGNAL_MASK:
      // A kick that KVM_RUN has to keep blocked ends no KVM_RUN, on a kernel as here.
      structure[offsetof(kvm_signal_mask, sigset) + (Watchdog::kSignal - 1) / 8] &=
          static_cast<u8>(~(1u << (Watchdog::kSignal - 1) % 8));
      break;
    case KVM_SET_IOREGION: {
      constexpr u32 kNobodys = 100000;
      for (u64 at = 0; at < size; at += 4) {
        u32 word;
        std::memcpy(&word, structure + at, sizeof word);
        if (word < 1024) put(at, kNobodys);
      }
      break;
    }
    default:
      break;
  }
}

unsigned long Arguments::argument(Random& random, unsigned long request) {
  bool takes_value = _IOC_DIR(request) == _IOC_NONE;
  if (takes_value || random.one_in(32)) return value(random) & 0xffff;
  if (random.one_in(10)) return bad_pointer(random);
  u64 size = std::min<u64>(_IOC_SIZE(request) + kTail, kWritablePages * kPage);
  u8* at = m_area;
  if (random.one_in(3)) at += kWritablePages * kPage - size;  // nothing may be written behind it
  if (random.one_in(8)) at += random.below(8) - 4;
  at = std::max(at, m_area);
  u64 room = static_cast<u64>(m_area + kWritablePages * kPage - at);
  fill(random, request, at, std::min(size, room));
  restrict_host_memory(random, request, at, std::min(size, room));
  return reinterpret_cast<unsigned long>(at);
}

}  // namespace anykvm::fuzz
