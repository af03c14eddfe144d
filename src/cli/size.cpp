#include "cli/size.h"

#include <charconv>

namespace anykvm::cli {
namespace {

// 1024 to the power of the suffix's place; 1 for none; nothing for an unknown one.
std::optional<u64> unit(std::string_view suffix) {
  if (suffix.empty() || suffix == "B" || suffix == "b") return 1;
  std::string_view tail = suffix.substr(1);
  if (!tail.empty() && tail != "B" && tail != "iB" && tail != "b" && tail != "ib") return std::nullopt;
  switch (suffix[0]) {
    case 'k':
    case 'K':
      return u64{1} << 10;
    case 'm':
    case 'M':
      return u64{1} << 20;
    case 'g':
    case 'G':
      return u64{1} << 30;
    case 't':
    case 'T':
      return u64{1} << 40;
    default:
      return std::nullopt;
  }
}

}  // namespace

std::optional<u64> parse_size(std::string_view text) {
  u64 number = 0;
  const char* end = text.data() + text.size();
  auto [rest, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || rest == text.data()) return std::nullopt;
  auto factor = unit({rest, static_cast<size_t>(end - rest)});
  u64 bytes = 0;
  if (!factor || __builtin_mul_overflow(number, *factor, &bytes)) return std::nullopt;
  return bytes;
}

}  // namespace anykvm::cli
