// include/anykvm/anykvm.h: the C functions. The one place where an error becomes -1 and errno.
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>

#include <new>
#include <system_error>

#include "abi/handlers.h"
#include "abi/objects.h"
#include "base/raw_syscall.h"
#include "core/cancellation.h"
#include "core/guest_memory.h"
#include "core/run_signals.h"
#include "core/vcpu.h"
#include "core/vm.h"
#include "program/virtualization.h"
#include "x86/translate/host_signals.h"

namespace anykvm::abi {
namespace {

constexpr char kDeviceName[] = "anykvm";

int fail(int code) {
  errno = code;
  return -1;
}

Result<int> open_system() {
  Fd fd = TRY(make_handle(kDeviceName));
  Object object;
  object.system = std::make_shared<System>();
  return add_object(std::move(fd), std::move(object));
}

// The standard library says by exceptions that there is no memory or no thread. They go no further than here;
// what they pass on their way is released.
Result<long> dispatch_with_little_memory(const Object& object, u32 request, u64 argument) {
  try {
    return dispatch(object, request, argument);
  } catch (const std::bad_alloc&) {
    return Error{ENOMEM, "no memory"};
  } catch (const std::system_error& error) {
    return Error{error.code().value(), "no thread"};
  }
}

int object_ioctl(int fd, u32 request, u64 argument) {
  const int saved_errno = errno;
  auto object = find_object(fd);
  if (!object) {
    if (fcntl(fd, F_GETFD) < 0) return fail(EBADF);
    const std::string name = handle_name(fd);
    if (!name.starts_with(kDeviceName)) return fail(ENOTTY);
    if (name != kDeviceName) return fail(EIO);  // a VM or vCPU that another process made
    object = adopt_device(fd);
    if (!object) return fail(EBADF);
  }
  auto result = request == KVM_RUN ? dispatch(*object, request, argument)
                                   : dispatch_with_little_memory(*object, request, argument);
  if (!result.ok()) return fail(result.error().code);
  errno = saved_errno;
  return static_cast<int>(result.value());
}

// KVM API 8.29: the dirty ring is mapped shared and not executable.
bool wrongly_maps_dirty_ring(const core::Vcpu& vcpu, std::size_t length, int protection, int flags,
                             off_t offset) {
  constexpr u64 kRingOffset = KVM_DIRTY_LOG_PAGE_OFFSET * kPageSize;
  if (!vcpu.has_dirty_ring() || static_cast<u64>(offset) + length <= kRingOffset) return false;
  return (protection & PROT_EXEC) || !(flags & MAP_SHARED);
}

// The VM has one coalesced ring, in the first vCPU's file: the mappings of other vCPUs get that page in place
// of their own.
void map_ring(core::Vcpu& vcpu, u8* mapping, std::size_t length, off_t offset) {
  constexpr u64 kRingOffset = KVM_COALESCED_MMIO_PAGE_OFFSET * kPageSize;
  void* ring = vcpu.vm().coalesced_io().ring();
  const u64 first = static_cast<u64>(offset);
  if (ring == vcpu.shared_page().ring() || first > kRingOffset || kRingOffset + kPageSize > first + length)
    return;
  // An old size of 0 makes a second mapping of shared pages (mremap(2)).
  mremap(ring, 0, kPageSize, MREMAP_MAYMOVE | MREMAP_FIXED, mapping + (kRingOffset - first));
}

}  // namespace
}  // namespace anykvm::abi

using namespace anykvm;

// A client's mistake must not look like ours: nothing below may throw, and errno is set last.

int anykvm_open(const char* path, int flags, ...) {
  if (path && strcmp(path, "/dev/kvm") != 0) return abi::fail(ENOENT);
  auto fd = abi::open_system();
  if (!fd.ok()) return abi::fail(fd.error().code);
  if (!(flags & O_CLOEXEC)) fcntl(fd.value(), F_SETFD, 0);
  return fd.value();
}

int anykvm_ioctl(int fd, unsigned long request, ...) {
  va_list arguments;
  va_start(arguments, request);
  const u64 argument = va_arg(arguments, unsigned long);
  va_end(arguments);
  // The kernel's requests have 32 bits; clients that keep them in an int sign-extend them.
  const u32 number = static_cast<u32>(request);
  if (number != KVM_RUN) return abi::object_ioctl(fd, number, argument);
  core::prepare_for_cancellation();
  const int result = abi::object_ioctl(fd, number, argument);
  // SAFETY: the stack is unwound from here, so nothing in this function needs a destructor.
  core::cancel_if_postponed();
  return result;
}

void* anykvm_mmap(void* address, size_t length, int protection, int flags, int fd, off_t offset) {
  auto object = abi::find_object(fd);
  if (object && !object->vcpu) {
    abi::fail(ENODEV);
    return MAP_FAILED;
  }
  if (!object) return mmap(address, length, protection, flags, fd, offset);
  if (abi::wrongly_maps_dirty_ring(*object->vcpu, length, protection, flags, offset)) {
    abi::fail(EINVAL);
    return MAP_FAILED;
  }
  const long mapped = raw_syscall(SYS_mmap, reinterpret_cast<long>(address), static_cast<long>(length),
                                  protection, flags, fd, offset);
  if (mapped < 0 && mapped >= -4095) {
    abi::fail(static_cast<int>(-mapped));
    return MAP_FAILED;
  }
  u8* mapping = reinterpret_cast<u8*>(mapped);
  abi::map_ring(*object->vcpu, mapping, length, offset);
  return mapping;
}

int anykvm_fallocate(int fd, int mode, off_t offset, off_t length) {
  auto object = abi::find_object(fd);
  if (!object) return fallocate(fd, mode, offset, length);
  if (!object->guest_memory) return abi::fail(ENODEV);
  auto done = object->guest_memory->allocate(fd, mode, offset, length);
  return done.ok() ? 0 : abi::fail(done.error().code);
}

int anykvm_close(int fd) {
  auto closed = abi::close_object(fd);
  if (!closed) return close(fd);
  return closed->ok() ? 0 : abi::fail(closed->error().code);
}

int anykvm_owns(int fd) { return abi::owns(fd); }

// Closing the last known descriptor of an object may bring up others of it.
void anykvm_close_range(unsigned first, unsigned last) {
  for (auto ours = abi::descriptors_in(first, last); !ours.empty(); ours = abi::descriptors_in(first, last))
    for (int fd : ours) abi::close_object(fd);
}

unsigned anykvm_first_held(unsigned first, unsigned last) {
  for (unsigned fd = first; fd <= last && fd < HeldFds::kLimit; ++fd)
    if (held_fds.has(fd)) return fd;
  return ~0u;
}

void anykvm_replaced(int fd) { abi::forget(fd); }

void anykvm_show_virtualization() { program::show_virtualization(program::main_program()); }
void anykvm_sigmask_changed() { core::signal_mask_changed(); }

int anykvm_sigaction(int signal, const struct sigaction* action, struct sigaction* old) {
  if (x86::change_fault_action(signal, action, old)) return 1;
  core::signal_disposition_changed(action ? signal : 0);
  return 0;
}
