#pragma once
// A line of our own on standard error, between the guest's output.
// Owner: nobody. Any thread.

#include <string_view>

namespace anykvm::vmm {

// `raw`: the terminal is in raw mode, where a line feed alone does not return to column one.
void notice(bool raw, std::string_view text);

}  // namespace anykvm::vmm
