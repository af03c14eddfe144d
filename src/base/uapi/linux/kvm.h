#pragma once
// The kernel's <linux/kvm.h>, usable from C++: up to Linux 6.6 its flexible arrays drag in an empty struct,
// which takes a byte in C++ and none in C, so that sizes, offsets and with them ioctl numbers come out wrong.
// (Those of Linux 6.8 are mended by CMakeLists.txt.)
// Owner: nobody; this folder stands before the system's in the include path. Any thread.

#include <linux/stddef.h>

#undef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(TYPE, NAME) TYPE NAME[0]
#include_next <linux/kvm.h>

static_assert(KVM_GET_SUPPORTED_CPUID == 0xc008ae05, "not the number of the C ABI");
static_assert(KVM_SET_PMU_EVENT_FILTER == 0x4020aeb2, "not the number of the C ABI");
static_assert(KVM_SET_SIGNAL_MASK == 0x4004ae8b, "not the number of the C ABI");
static_assert(sizeof(struct kvm_xsave) == 4096, "not the size of the C ABI");

// Interfaces newer than the oldest headers we build with (Linux 6.1), by the numbers of Linux 6.12.
#ifndef KVM_CAP_PMU_EVENT_MASKED_EVENTS
#define KVM_CAP_PMU_EVENT_MASKED_EVENTS 226
#endif
// Linux 6.8 says it with a macro BIT that its headers for programs lack.
#undef KVM_PMU_EVENT_FLAG_MASKED_EVENTS
#define KVM_PMU_EVENT_FLAG_MASKED_EVENTS (1u << 0)
#ifndef KVM_SET_USER_MEMORY_REGION2
struct kvm_userspace_memory_region2 {
  __u32 slot;
  __u32 flags;
  __u64 guest_phys_addr;
  __u64 memory_size;
  __u64 userspace_addr;
  __u64 guest_memfd_offset;
  __u32 guest_memfd;
  __u32 pad1;
  __u64 pad2[14];
};
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
#define KVM_CAP_USER_MEMORY2 231
#endif

static_assert(KVM_SET_USER_MEMORY_REGION2 == 0x40a0ae49, "not the number of the C ABI");

#ifndef KVM_PRE_FAULT_MEMORY
struct kvm_pre_fault_memory {
  __u64 gpa;
  __u64 size;
  __u64 flags;
  __u64 padding[5];
};
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#define KVM_CAP_PRE_FAULT_MEMORY 236
#define KVM_CAP_X86_APIC_BUS_CYCLES_NS 237
#endif

#ifndef KVM_CAP_X86_GUEST_MODE
#define KVM_CAP_X86_GUEST_MODE 238
#define KVM_RUN_X86_GUEST_MODE (1 << 2)
#endif

#ifndef KVM_CREATE_GUEST_MEMFD
#define KVM_MEM_GUEST_MEMFD (1UL << 2)
#define KVM_EXIT_MEMORY_FAULT 39
#define KVM_MEMORY_EXIT_FLAG_PRIVATE (1ULL << 3)
#define KVM_CAP_MEMORY_FAULT_INFO 232
#define KVM_CAP_MEMORY_ATTRIBUTES 233
#define KVM_CAP_GUEST_MEMFD 234
#define KVM_CAP_VM_TYPES 235
struct kvm_memory_attributes {
  __u64 address;
  __u64 size;
  __u64 attributes;
  __u64 flags;
};
#define KVM_SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xd2, struct kvm_memory_attributes)
#define KVM_MEMORY_ATTRIBUTE_PRIVATE (1ULL << 3)
struct kvm_create_guest_memfd {
  __u64 size;
  __u64 flags;
  __u64 reserved[6];
};
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
#endif
#ifndef KVM_X86_SW_PROTECTED_VM
#define KVM_X86_DEFAULT_VM 0
#define KVM_X86_SW_PROTECTED_VM 1
#endif

// kvm_run::memory_fault, which the older headers lack: at the beginning of the exits' union.
struct anykvm_memory_fault {
  __u64 flags;
  __u64 gpa;
  __u64 size;
};
