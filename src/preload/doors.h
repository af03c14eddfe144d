#pragma once
// What the hooks of libc functions and of syscall(2) have in common: one function per door to KVM.
// Owner: nobody. Any thread; nothing here locks or allocates unless KVM is in use.

#include <sys/types.h>

#include <cstddef>

#include "preload/device_path.h"
#include "preload/engine.h"

namespace anykvm::preload {

// We answer for /dev/kvm: always, but for hardware that the user prefers.
inline bool is_our_device(int directory, const char* path) {
  return names_device(directory, path) && !hardware_wanted_and_working();
}

// Opens a file that we answer for, /dev/kvm or /proc/cpuinfo: a descriptor, or -1 and errno. False: it is
// none of these.
bool open_ours(int directory, const char* path, int flags, int* fd);

// The engine, for a program that is going to use it. Null if it cannot be loaded.
const Engine* engine_for_this_process();

// The request is one of KVM's (linux/kvm.h: KVMIO).
inline bool is_kvm_request(unsigned long request) { return (request >> 8 & 0xff) == 0xae; }

// A KVM request on a descriptor. False: it is none of ours, the kernel shall answer.
bool device_ioctl(int fd, unsigned long request, unsigned long argument, int* result);

// The engine, if `fd` is one of its descriptors and this is the process that it works in. After vfork(2) the
// child shares our memory but not our descriptors.
const Engine* owner_of(int fd);

// `fd` stands for the device itself, not for a VM or a vCPU.
bool is_device(int fd);

// What a call with AT_* flags is about.
bool is_device_at(int directory, const char* path, int flags);

}  // namespace anykvm::preload
