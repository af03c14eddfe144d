#pragma once
// One switch for each optimization, to measure what it gives and to find the one that a bug is in. The rows
// are in optimizations.def. All are on; ANYKVM_OPTIMIZE is a list like "-slots,-links", and "none" switches
// all off ("none,links": all but one). Owner: the process. Any thread; read once, from the environment.

#include <string_view>

namespace anykvm {

struct Optimizations {
#define ANYKVM_OPTIMIZATION(name, description) bool name = true;
#include "base/optimizations.def"
#undef ANYKVM_OPTIMIZATION

  bool operator==(const Optimizations&) const = default;
};

// Names that it does not know are skipped.
Optimizations parse_optimizations(std::string_view list);

const Optimizations& optimizations();

}  // namespace anykvm
