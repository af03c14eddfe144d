// Before the program starts: one that is going to look for KVM may ask the CPU first (CPUID), which no hook
// sees. Programs that do not so much as name the device are left alone.
#include <elf.h>
#include <link.h>
#include <string.h>

#include "preload/cpu_information.h"
#include "preload/doors.h"

namespace anykvm::preload {
namespace {

bool mentions_device(const dl_phdr_info& program) {
  constexpr char kDevice[] = "/dev/kvm";
  for (unsigned i = 0; i < program.dlpi_phnum; ++i) {
    const auto& segment = program.dlpi_phdr[i];
    if (segment.p_type != PT_LOAD || (segment.p_flags & (PF_R | PF_W)) != PF_R) continue;
    if (memmem(reinterpret_cast<const void*>(program.dlpi_addr + segment.p_vaddr), segment.p_filesz, kDevice,
               sizeof kDevice - 1))
      return true;
  }
  return false;
}

bool main_program_mentions_device() {
  // The main program is the first; what is returned ends the walk.
  const auto look = [](dl_phdr_info* info, std::size_t, void*) { return mentions_device(*info) ? 1 : -1; };
  return dl_iterate_phdr(look, nullptr) == 1;
}

[[gnu::constructor]] void look_at_program() {
  if (cpu_shows_virtualization() || !main_program_mentions_device() || hardware_wanted_and_working()) return;
  if (const Engine* loaded = engine_for_this_process()) loaded->show_virtualization();
}

}  // namespace
}  // namespace anykvm::preload
