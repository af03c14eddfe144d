#pragma once
// Tests of the bare-metal guest: BARE_TEST registers one, CHECK_* judge, the serial port tells. The CPU that
// runs main().

#include "cpu.h"

namespace bare {

// Of a size to which the compiler need not add anything between two of them.
struct alignas(32) Test {
  const char* group;
  const char* name;
  void (*body)();
};

// To COM1.
void print(const char* text);
void print_hex(u64 value);
void print_decimal(u64 value);

void check_failed(const char* file, int line, const char* what, u64 value, u64 wanted);
void skip(const char* why);  // what the CPU lacks; the test goes on or returns

// Runs all whose "group.name" begins with `filter`. Returns the number of failed ones.
unsigned run_tests(const char* filter);

// Resets the machine, which ends it.
[[noreturn]] void shut_down();

#define BARE_TEST(group, name)                                                                 \
  static void group##_##name();                                                                \
  [[gnu::section(".tests"), gnu::used]] static const ::bare::Test test_of_##group##_##name = { \
      #group, #name, group##_##name};                                                          \
  static void group##_##name()

#define CHECK_EQ(value, wanted)                                                                              \
  do {                                                                                                       \
    auto check_value = (value);                                                                              \
    decltype(check_value) check_wanted = (wanted);                                                           \
    if (!(check_value == check_wanted))                                                                      \
      ::bare::check_failed(__FILE__, __LINE__, #value, (::bare::u64)check_value, (::bare::u64)check_wanted); \
  } while (0)
#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) ::bare::check_failed(__FILE__, __LINE__, #condition, 0, 1); \
  } while (0)

}  // namespace bare
