#pragma once
// Trace lines on standard error, switched by ANYKVM_TRACE=ioctl,exit,... (or "all"); the rows are in
// trace.def. Owner: the process. Any thread; a line is one write(2). A trace that is off costs one load and a
// branch.

#include <fmt/format.h>

#include <string_view>

#include "base/types.h"

namespace anykvm::trace {

enum class Category : u8 {
#define ANYKVM_TRACE_CATEGORY(name, description) name,
#include "base/trace.def"
#undef ANYKVM_TRACE_CATEGORY
};

// Bits by Category, from the environment at start.
extern u32 g_enabled;

u32 parse_categories(std::string_view list);
inline bool enabled(Category category) { return (g_enabled >> static_cast<unsigned>(category)) & 1; }
void write_line(Category category, std::string_view text);

}  // namespace anykvm::trace

#define ANYKVM_TRACE(category, ...)                                                                 \
  do {                                                                                              \
    if (::anykvm::trace::enabled(::anykvm::trace::Category::category)) [[unlikely]]                 \
      ::anykvm::trace::write_line(::anykvm::trace::Category::category, ::fmt::format(__VA_ARGS__)); \
  } while (0)
