#include "report.h"

#include "memory.h"

extern "C" {
extern const bare::Test tests_begin[], tests_end[];

// The compiler calls these by name.
void* memcpy(void* to, const void* from, bare::size_t size) {
  void* start = to;
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
  return start;
}
void* memset(void* to, int value, bare::size_t size) {
  void* start = to;
  asm volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
  return start;
}
}

namespace bare {
namespace {

constexpr u16 kSerial = 0x3f8, kResetPort = 0xcf9;

const char* s_group;
const char* s_name;
unsigned s_failed_checks = 0;
bool s_skipped = false;

void print_character(char c) {
  while (!(inb(kSerial + 5) & 0x20)) {
  }
  outb(kSerial, static_cast<u8>(c));
}

void print_name() {
  print(s_group);
  print(".");
  print(s_name);
}

bool begins_with(const char*& text, const char* prefix_part) {
  while (*prefix_part && *text == *prefix_part) ++text, ++prefix_part;
  return !*prefix_part;
}

bool chosen(const Test& test, const char* filter) {
  // The filter ends where the test's name may go on.
  for (const char* part : {test.group, ".", test.name}) {
    const char* rest = filter;
    if (begins_with(rest, part)) {
      filter = rest;
      continue;
    }
    const char* text = part;
    return begins_with(text, filter);
  }
  return !*filter;
}

const char* file_name(const char* path) {
  const char* name = path;
  for (; *path; ++path)
    if (*path == '/') name = path + 1;
  return name;
}

}  // namespace

void print(const char* text) {
  for (; *text; ++text) {
    if (*text == '\n') print_character('\r');
    print_character(*text);
  }
}

void print_hex(u64 value) {
  print("0x");
  bool begun = false;
  for (int shift = 60; shift >= 0; shift -= 4) {
    unsigned digit = value >> shift & 15;
    begun = begun || digit || shift == 0;
    if (begun) print_character("0123456789abcdef"[digit]);
  }
}

void print_decimal(u64 value) {
  if (value >= 10) print_decimal(value / 10);
  print_character(static_cast<char>('0' + value % 10));
}

void check_failed(const char* file, int line, const char* what, u64 value, u64 wanted) {
  if (++s_failed_checks > 20) return;  // a matrix that fails as a whole need not tell it all
  print("FAILED ");
  print_name();
  print(" ");
  print(file_name(file));
  print(":");
  print_decimal(static_cast<u64>(line));
  print(": ");
  print(what);
  print(" is ");
  print_hex(value);
  print(", not ");
  print_hex(wanted);
  print("\n");
}

void skip(const char* why) {
  s_skipped = true;
  print("skipped ");
  print_name();
  print(": ");
  print(why);
  print("\n");
}

unsigned run_tests(const char* filter) {
  unsigned failed = 0, run = 0;
  for (const Test* test = tests_begin; test < tests_end; ++test) {
    if (!chosen(*test, filter)) continue;
    s_group = test->group;
    s_name = test->name;
    s_failed_checks = 0;
    s_skipped = false;
    release_frames();
    test->body();
    ++run;
    if (s_failed_checks) ++failed;
    if (s_failed_checks || s_skipped) continue;
    print("ok ");
    print_name();
    print("\n");
  }
  print("bare: ");
  print_decimal(run);
  print(" tests, ");
  print_decimal(failed);
  print(" failed\n");
  return failed;
}

void shut_down() {
  cli();
  outb(kResetPort, 2);
  outb(kResetPort, 6);
  for (;;) asm volatile("hlt");
}

}  // namespace bare
