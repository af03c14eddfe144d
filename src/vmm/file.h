#pragma once
// Reads a whole file, or maps why not to a sentence.
// Owner: nobody. Any thread.

#include <string>
#include <vector>

#include "base/types.h"
#include "vmm/failure.h"

namespace anykvm::vmm {

// `what` names the file's purpose in the sentence: "kernel", "initrd". Files larger than `limit` are refused
// unread.
Outcome<std::vector<u8>> read_file(const std::string& path, const char* what, u64 limit);

}  // namespace anykvm::vmm
