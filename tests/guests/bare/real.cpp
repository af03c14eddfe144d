#include "real.h"

namespace bare {

extern "C" {
extern const u8 real_begin[], real_end[];
void enter_real();
}

namespace {

void copy(u64 to, const u8* begin, const u8* end) {
  auto* at = reinterpret_cast<volatile u8*>(to);
  for (const u8* from = begin; from < end; ++from) *at++ = *from;
}

void clear(u64 from, u64 bytes) {
  for (u64 at = from; at < from + bytes; at += 8) *reinterpret_cast<volatile u64*>(at) = 0;
}

// The compiler takes what lies at address 0 for a mistake.
u64 vector_table() {
  u64 address = 0;
  asm("" : "+r"(address));
  return address;
}

}  // namespace

void run_real(const u8* begin, const u8* end) {
  clear(vector_table(), 0x400);
  clear(REAL_DATA, 64);
  copy(REAL_ENTRY, real_begin, real_end);
  copy(REAL_CODE, begin, end);
  enter_real();
}

}  // namespace bare
