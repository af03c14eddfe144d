#pragma once
// The kernel's <linux/kvm.h>, usable from C++: up to Linux 6.6 its flexible arrays drag in an empty struct, which takes
// a byte in C++ and none in C, so that sizes, offsets and with them ioctl numbers come out wrong.
// Owner: nobody; this folder stands before the system's in the include path. Any thread.

#include <linux/stddef.h>

#undef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(TYPE, NAME) TYPE NAME[0]
#include_next <linux/kvm.h>

static_assert(KVM_GET_SUPPORTED_CPUID == 0xc008ae05, "not the number of the C ABI");
static_assert(KVM_SET_SIGNAL_MASK == 0x4004ae8b, "not the number of the C ABI");
static_assert(sizeof(struct kvm_xsave) == 4096, "not the size of the C ABI");
