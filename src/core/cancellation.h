#pragma once
// pthread_cancel(3) of a thread that may be cancelled at any moment, while it is inside KVM_RUN: the thread
// leaves KVM_RUN first, as it does for a signal, and is then cancelled where nothing of ours is on its stack
// (docs/decisions/signals.md). Owner: the process. Only the thread that it is about.

namespace anykvm::core {

class SignalListener;

// Before KVM_RUN takes anything that it has to give back.
void prepare_for_cancellation();

// After KVM_RUN has given back everything. Does not return if the thread was cancelled meanwhile.
void cancel_if_postponed();

// Exists while the thread is inside KVM_RUN: a cancellation is reported to `listener` and postponed.
class PostponedCancellation {
 public:
  explicit PostponedCancellation(SignalListener& listener);
  ~PostponedCancellation();
  PostponedCancellation(const PostponedCancellation&) = delete;
  PostponedCancellation& operator=(const PostponedCancellation&) = delete;
};

}  // namespace anykvm::core
