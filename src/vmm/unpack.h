#pragma once
// Unpacks the compressed kernel inside a bzImage: LZ4 and Zstandard, which distributions use.
// Owner: nobody; pure functions. Any thread.

#include <span>
#include <vector>

#include "base/types.h"
#include "vmm/failure.h"

namespace anykvm::vmm {

// `packed` ends in the 32-bit size of the result, as the kernel's build appends it.
Outcome<std::vector<u8>> unpack_kernel(std::span<const u8> packed);

}  // namespace anykvm::vmm
