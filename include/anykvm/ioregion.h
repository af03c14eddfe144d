/*
 * ioregionfd: guest accesses to a region of memory or ports go to a server over a file descriptor, without leaving
 * KVM_RUN. Names, numbers and layouts are those of the third proposal to Linux ("Introduce MMIO/PIO dispatch file
 * descriptors", February 2021), which no kernel has taken; docs/ioregionfd.md says what holds here.
 */
#ifndef ANYKVM_IOREGION_H
#define ANYKVM_IOREGION_H

#include <linux/ioctl.h>
#include <linux/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* KVM_CHECK_EXTENSION answers 1 where KVM_SET_IOREGION works: on anykvm, and on no kernel. */
#define KVM_CAP_ANYKVM_IOREGIONFD 0x616b766e

struct kvm_ioregion {
  __u64 guest_paddr; /* or the first port */
  __u64 memory_size; /* bytes */
  __u64 user_data;   /* in each command */
  __s32 read_fd;     /* where responses come from */
  __s32 write_fd;    /* where commands go; may be the same */
  __u32 flags;
  __u8 pad[28];
};

#define KVM_IOREGION_PIO (1u << 0)
#define KVM_IOREGION_POSTED_WRITES (1u << 1) /* the guest goes on without a response to its writes */
#define KVM_IOREGION_DEASSIGN (1u << 2)

/* On the VM's descriptor. */
#define KVM_SET_IOREGION _IOW(0xae, 0x49, struct kvm_ioregion)

/* What the server reads ... */
struct ioregionfd_cmd {
  __u8 cmd;
  __u8 size_exponent : 4; /* the access has 1 << size_exponent bytes */
  __u8 resp : 1;          /* a response is awaited; always so for reads */
  __u8 padding[6];
  __u64 user_data;
  __u64 offset; /* from the start of the region */
  __u64 data;   /* of a write */
};

#define IOREGIONFD_CMD_READ 0
#define IOREGIONFD_CMD_WRITE 1

#define IOREGIONFD_SIZE_8BIT 0
#define IOREGIONFD_SIZE_16BIT 1
#define IOREGIONFD_SIZE_32BIT 2
#define IOREGIONFD_SIZE_64BIT 3

/* ... and what it writes. */
struct ioregionfd_resp {
  __u64 data; /* of a read */
  __u8 pad[24];
};

#ifdef __cplusplus
}
#endif

#endif
