#include "base/guarded_memory.h"

#include <atomic>

extern "C" {
[[gnu::visibility("hidden")]] extern const anykvm::u8 anykvm_guarded_begin[], anykvm_guarded_end[],
    anykvm_guarded_landing[];
}

namespace anykvm {
namespace {

std::atomic<bool> g_ready{false};
[[gnu::tls_model("initial-exec")]] thread_local const u8* t_fault_address = nullptr;

}  // namespace

void guarded_memory_is_ready() { g_ready.store(true, std::memory_order_release); }
bool guarded_memory_ready() { return g_ready.load(std::memory_order_acquire); }

void note_guarded_fault(const void* address) { t_fault_address = static_cast<const u8*>(address); }
const u8* guarded_fault_address() { return t_fault_address; }

const u8* guarded_landing(const u8* pc) {
  return pc >= anykvm_guarded_begin && pc < anykvm_guarded_end ? anykvm_guarded_landing : nullptr;
}

}  // namespace anykvm
