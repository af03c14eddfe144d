// The guest's main program. Its command line: "cpus=N" (how many CPUs to wait for), "only=PREFIX" (of
// "group.name"), "end=triple" (by a triple fault).

#include "apic.h"
#include "memory.h"
#include "report.h"
#include "traps.h"

namespace bare {

extern "C" {
extern u32 boot_information, boot_by_linux_protocol;
void bare_main();
}

namespace {

// Linux: Documentation/arch/x86/zero-page.rst; Xen: docs/misc/pvh, struct hvm_start_info.
const char* command_line() {
  u64 information = boot_information;
  if (boot_by_linux_protocol) return at_physical<const char>(*at_physical<u32>(information + 0x228));
  u64 address = *at_physical<u64>(information + 24);
  return address ? at_physical<const char>(address) : "";
}

// What follows `key` in `text` up to the next blank, as a string of its own.
const char* value_of(const char* text, const char* key) {
  static char value[80];
  value[0] = 0;
  for (; *text; ++text) {
    const char *at = text, *wanted = key;
    while (*wanted && *at == *wanted) ++at, ++wanted;
    if (*wanted) continue;
    unsigned length = 0;
    while (*at && *at != ' ' && length + 1 < sizeof value) value[length++] = *at++;
    value[length] = 0;
  }
  return value;
}

// No gate for the #UD, none for the #GP that this is, none for the #DF (SDM 3A 6.15, vector 8).
[[noreturn]] void triple_fault() {
  const TablePointer none{0, 0};
  asm volatile("lidt %0; ud2" : : "m"(none));
  __builtin_unreachable();
}

}  // namespace

void bare_main() {
  init_traps(0);
  init_apic();
  const char* text = command_line();
  unsigned cpus = static_cast<unsigned>(value_of(text, "cpus=")[0] - '0');
  if (cpus > 1 && cpus <= MAX_CPUS) start_cpus(cpus);
  const bool by_fault = value_of(text, "end=")[0] == 't';
  run_tests(value_of(text, "only="));
  if (by_fault) triple_fault();
  shut_down();
}
}  // namespace bare
