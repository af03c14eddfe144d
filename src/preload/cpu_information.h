#pragma once
// /proc/cpuinfo as it is on a machine with KVM: "vmx" or "svm" among the flags, for programs and scripts that
// look there before they look for /dev/kvm. Owner: nobody; functions without state, async-signal-safe. Any
// thread.

namespace anykvm::preload {

// The file is opened for reading, by its usual name.
bool names_cpu_information(const char* path, int flags);

// A file with the machine's text, the flag in each line of flags that lacks it; the machine's own if that
// cannot be made. -1 and errno if there is none.
int open_cpu_information(int flags);

// The CPU has VMX or SVM and says so.
bool cpu_shows_virtualization();

}  // namespace anykvm::preload
