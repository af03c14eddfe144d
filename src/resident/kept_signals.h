#pragma once
// KVM_SET_SIGNAL_MASK for the resident program: signals that are open in KVM_RUN only end it and stay
// pending. Owner: the process. In a trap, on a thread of the program's.

#include <linux/kvm.h>

#include "resident/companion.h"

namespace anykvm::resident {

// The ioctl's result. Null: no mask from here on.
long keep_signal_mask(int vcpu_fd, const kvm_signal_mask* mask);
void forget_signal_mask(int fd);

// KVM_RUN for a thread whose mask is `mask`.
long run_with_signals(Companion& companion, const Request& request, int vcpu_fd, u64 mask);

}  // namespace anykvm::resident
