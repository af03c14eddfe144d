/*
 * anykvm: the Linux KVM API (x86-64) in user space. Requests, structures, return values and errno are those of
 * <linux/kvm.h> and of the kernel's documentation, so these functions can stand in for open(2), ioctl(2), mmap(2),
 * close(2) and fallocate(2) on /dev/kvm and on what comes from it.
 */
#ifndef ANYKVM_ANYKVM_H
#define ANYKVM_ANYKVM_H

#include <stddef.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ANYKVM_VERSION "0.1.0"

/* KVM_CHECK_EXTENSION answers 1 to this number on anykvm, and 0 on every kernel: how a test proves where it runs. */
#define KVM_CAP_ANYKVM 0x616b766d

/* As open("/dev/kvm", flags): `path` is "/dev/kvm" or null. Only O_CLOEXEC of `flags` matters. */
int anykvm_open(const char *path, int flags, ...);
int anykvm_ioctl(int fd, unsigned long request, ...);
void *anykvm_mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset);
/* A VM or vCPU lives until its last descriptor is closed; close them with this, not with close(2). */
int anykvm_close(int fd);
/* As fallocate(2), on what KVM_CREATE_GUEST_MEMFD gave: gives memory back or takes it ahead of its use. */
int anykvm_fallocate(int fd, int mode, off_t offset, off_t length);

/*
 * For whoever interposes the C library's functions and so sees more than the above.
 */
struct sigaction;
/* 1 if the descriptor is one of ours now. */
int anykvm_owns(int fd);
/* Closes our descriptors among first...last; the others are the caller's business. */
void anykvm_close_range(unsigned first, unsigned last);
/* The lowest descriptor among first...last that anykvm has opened for itself and nobody else may close; ~0u if there is none. */
unsigned anykvm_first_held(unsigned first, unsigned last);
/* dup2(2) or the like has made `fd` name another file. */
void anykvm_replaced(int fd);
/* Call in place of sigaction(2). 1: done. 0: not done: call sigaction(2), then this again, so that a KVM_RUN in progress knows
 * the handler. */
int anykvm_sigaction(int signal, const struct sigaction *action, struct sigaction *old);
/* From now on the CPUID instructions of the main program say that the CPU has VMX or SVM. Before its own code runs, once. */
void anykvm_show_virtualization(void);
/* The calling thread has changed which signals it blocks. Who calls this once promises to do so after each such change, of any
 * thread; KVM_RUN then does not ask the kernel each time. */
void anykvm_sigmask_changed(void);

#ifdef __cplusplus
}
#endif

#endif
