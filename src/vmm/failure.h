#pragma once
// What went wrong, as one sentence for the person at the terminal, and the value-or-failure type that carries
// it. Owner: nobody; plain values. Any thread.

#include <fmt/format.h>

#include <cstring>
#include <string>

#include "base/expected.h"

namespace anykvm::vmm {

struct Failure {
  std::string text;
};

template <class T = void>
using Outcome = Expected<T, Failure>;

template <class... Args>
Failure failure(fmt::format_string<Args...> format, Args&&... args) {
  return Failure{fmt::format(format, std::forward<Args>(args)...)};
}

}  // namespace anykvm::vmm
