#include "base/guarded_memory.h"

extern "C" {
[[gnu::visibility("hidden")]] extern const anykvm::u8 anykvm_guarded_begin[], anykvm_guarded_end[],
    anykvm_guarded_landing[];
}

namespace anykvm {

const u8* guarded_landing(const u8* pc) {
  return pc >= anykvm_guarded_begin && pc < anykvm_guarded_end ? anykvm_guarded_landing : nullptr;
}

}  // namespace anykvm
