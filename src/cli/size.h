#pragma once
// Memory sizes as people write them: 512M, 2G, 65536K, 1073741824.
// Owner: nobody; a pure function. Any thread.

#include <optional>
#include <string_view>

#include "base/types.h"

namespace anykvm::cli {

// Nothing: not a size, or more than 64 bits hold.
std::optional<u64> parse_size(std::string_view text);

}  // namespace anykvm::cli
