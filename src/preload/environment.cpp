#include "preload/environment.h"

#include <stdlib.h>
#include <string.h>

namespace anykvm::preload {
namespace {

// Copies: programs overwrite their environment to show a title.
char g_preload[4096];  // "LD_PRELOAD=...", or empty
char g_hardware[64];   // "ANYKVM_PREFER_HARDWARE=...", or empty

template <std::size_t Size>
void keep(char (&copy)[Size], const char* name, const char* value) {
  if (!value || strlen(name) + strlen(value) + 2 > Size) return;
  strcpy(stpcpy(stpcpy(copy, name), "="), value);
}

// Before that, nobody has started a program.
[[gnu::constructor]] void remember() {
  const char* libraries = getenv("LD_PRELOAD");
  if (!libraries || !strstr(libraries, "libanykvm-preload")) return;
  keep(g_preload, "LD_PRELOAD", libraries);
  keep(g_hardware, "ANYKVM_PREFER_HARDWARE", getenv("ANYKVM_PREFER_HARDWARE"));
}

bool has(char* const* environment, const char* name) {
  const std::size_t length = strlen(name);
  for (; environment && *environment; ++environment)
    if (strncmp(*environment, name, length) == 0 && (*environment)[length] == '=') return true;
  return false;
}

}  // namespace

std::size_t room_for(char* const* environment) {
  std::size_t count = 0;
  while (environment && environment[count]) ++count;
  return count + 3;
}

char* const* with_library(char* const* environment, char** space) {
  if (!*g_preload || has(environment, "LD_PRELOAD")) return environment;
  char** end = space;
  *end++ = g_preload;
  if (*g_hardware && !has(environment, "ANYKVM_PREFER_HARDWARE")) *end++ = g_hardware;
  while (environment && *environment) *end++ = *environment++;
  *end = nullptr;
  return space;
}

}  // namespace anykvm::preload
