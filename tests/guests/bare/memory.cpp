#include "memory.h"

#include "report.h"

namespace bare {

extern "C" u64 boot_pml4[], boot_pdpt[];

namespace {

// Frames lie far above the image.
constexpr u64 kFirstFrame = 16 << 20, kLastFrame = 48 << 20;
u64 s_next_frame = kFirstFrame;

}  // namespace

u64 allocate_frame() {
  if (s_next_frame == kLastFrame) {
    print("FAILED: no frames left\n");
    shut_down();
  }
  u64 frame = s_next_frame;
  s_next_frame += kPageSize;
  for (u64 i = 0; i < 512; ++i) at_physical(frame)[i] = 0;
  return frame;
}

void release_frames() { s_next_frame = kFirstFrame; }

AddressSpace::AddressSpace(unsigned levels) : m_levels(levels), m_root(allocate_frame()) {
  u64 top = m_root;
  if (levels == 5) {
    top = allocate_frame();
    at_physical(m_root)[0] = top | kPresent | kWritable | kUser;
  }
  u64 first = allocate_frame();
  at_physical(top)[0] = first | kPresent | kWritable | kUser;
  for (unsigned i = 0; i < 4; ++i) at_physical(first)[i] = boot_pdpt[i];
}

u64& AddressSpace::entry(u64 address, unsigned level) {
  u64 table = m_root;
  for (unsigned now = m_levels;; --now) {
    u64& found = at_physical(table)[address >> (12 + (now - 1) * 9) & 511];
    if (now == level) return found;
    if (!(found & kPresent)) found = allocate_frame() | kPresent | kWritable | kUser;
    table = found & 0xffffffffff000;
  }
}

void AddressSpace::leave() { write_cr3(reinterpret_cast<u64>(boot_pml4)); }

u64 VirtualSpace::allocate(size_t pages) {
  u64 address = m_next;
  m_next += (pages + 1) * kPageSize;  // one page stays unmapped behind each
  return address;
}

}  // namespace bare
