// Stands in for one object file of the static AsmJit that Debian and Ubuntu ship: it is compiled for
// executables and refers to `stderr` in a way that a shared library cannot. Linked into libanykvm.so only,
// ahead of the archive.
#include <asmjit/core.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

ASMJIT_BEGIN_NAMESPACE
namespace DebugUtils {

const char* errorAsString(Error error) noexcept { return error == kErrorOk ? "Ok" : "AsmJit error"; }

void debugOutput(const char* text) noexcept {
  [[maybe_unused]] ssize_t written = write(STDERR_FILENO, text, strlen(text));
}

void assertionFailed(const char*, int, const char* message) noexcept {
  debugOutput(message);
  abort();
}

}  // namespace DebugUtils
ASMJIT_END_NAMESPACE
