#pragma once
// The KVM that libanykvm implements in this process.
// Owner: the caller. Thread-safe.

#include <memory>

#include "vmm/kvm_backend.h"

namespace anykvm::cli {

std::unique_ptr<vmm::KvmBackend> make_anykvm_backend();

}  // namespace anykvm::cli
