#include "vmm/notice.h"

#include <fmt/format.h>
#include <unistd.h>

namespace anykvm::vmm {

// One write(), so that lines of several threads do not mix. Nobody can be told if standard error does not
// take it.
void notice(bool raw, std::string_view text) {
  std::string line = raw ? fmt::format("\r\nanykvm: {}\r\n", text) : fmt::format("anykvm: {}\n", text);
  [[maybe_unused]] ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace anykvm::vmm
