#include "base/optimizations.h"

#include <stdlib.h>

namespace anykvm {
namespace {

struct Row {
  std::string_view name;
  bool Optimizations::*member;
};

constexpr Row kRows[] = {
#define ANYKVM_OPTIMIZATION(name, description) {#name, &Optimizations::name},
#include "base/optimizations.def"
#undef ANYKVM_OPTIMIZATION
};

void change(Optimizations& o, std::string_view name) {
  const bool on = !name.starts_with('-');
  if (name.starts_with('-') || name.starts_with('+')) name.remove_prefix(1);
  for (const Row& row : kRows) {
    if (name == row.name) o.*row.member = on;
    if (name == "none") o.*row.member = false;
    if (name == "all") o.*row.member = true;
  }
}

}  // namespace

Optimizations parse_optimizations(std::string_view list) {
  Optimizations parsed;
  while (!list.empty()) {
    const std::size_t comma = list.find(',');
    change(parsed, list.substr(0, comma));
    list = comma == std::string_view::npos ? std::string_view() : list.substr(comma + 1);
  }
  return parsed;
}

const Optimizations& optimizations() {
  static const Optimizations kChosen = [] {
    const char* list = secure_getenv("ANYKVM_OPTIMIZE");
    return parse_optimizations(list ? list : "");
  }();
  return kChosen;
}

}  // namespace anykvm
