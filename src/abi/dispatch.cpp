// From (descriptor, request, argument) to a handler of ioctls.def and back: copies, lock, trace line.
#include <errno.h>

#include <mutex>

#include "abi/handlers.h"
#include "abi/objects.h"
#include "base/trace.h"
#include "core/dirty_ring.h"
#include "core/vcpu.h"
#include "core/vm.h"

namespace anykvm::abi {
namespace {

// How one argument kind is carried to its handler.
template <class Argument>
struct Carrier;

template <>
struct Carrier<Value> {
  template <class Target, class Handler>
  static Result<long> call(Target& object, Handler handler, u64 argument) {
    return handler(object, argument);
  }
};

template <class T>
struct Carrier<In<T>> {
  template <class Target, class Handler>
  static Result<long> call(Target& object, Handler handler, u64 argument) {
    const T value = TRY(ClientPtr<T>(argument).read());
    return handler(object, value);
  }
};

template <class T>
struct Carrier<Out<T>> {
  template <class Target, class Handler>
  static Result<long> call(Target& object, Handler handler, u64 argument) {
    T value{};
    const long result = TRY(handler(object, value));
    TRY(ClientPtr<T>(argument).write(value));
    return result;
  }
};

template <class T>
struct Carrier<InOut<T>> {
  template <class Target, class Handler>
  static Result<long> call(Target& object, Handler handler, u64 argument) {
    T value = TRY(ClientPtr<T>(argument).read());
    const long result = TRY(handler(object, value));
    TRY(ClientPtr<T>(argument).write(value));
    return result;
  }
};

template <class T>
struct Carrier<Client<T>> {
  template <class Target, class Handler>
  static Result<long> call(Target& object, Handler handler, u64 argument) {
    return handler(object, ClientPtr<T>(argument));
  }
};

enum class Class : u8 { System, Vm, Vcpu };

const char* name_of(Class klass, unsigned long request) {
#define ANYKVM_IOCTL(row_class, row_request, handler, argument) \
  if (klass == Class::row_class && request == row_request) return #row_request;
#include "abi/ioctls.def"
#undef ANYKVM_IOCTL
  return "unknown";
}

Result<long> dispatch_system(System& object, unsigned long request, u64 argument) {
  switch (request) {
#define ANYKVM_ROW_System(request, handler, argument_kind) \
  case request:                                            \
    return Carrier<ANYKVM_ARGUMENT_##argument_kind>::call(object, system::handler, argument);
#define ANYKVM_ROW_Vm(request, handler, argument_kind)
#define ANYKVM_ROW_Vcpu(request, handler, argument_kind)
#define ANYKVM_IOCTL(klass, request, handler, argument_kind) \
  ANYKVM_ROW_##klass(request, handler, argument_kind)
#include "abi/ioctls.def"
#undef ANYKVM_ROW_System
#undef ANYKVM_ROW_Vm
    default:
      return Error{EINVAL, "no such request on the system descriptor"};
  }
}

Result<long> dispatch_vm(core::Vm& object, unsigned long request, u64 argument) {
  switch (request) {
#define ANYKVM_ROW_System(request, handler, argument_kind)
#define ANYKVM_ROW_Vm(request, handler, argument_kind) \
  case request:                                        \
    return Carrier<ANYKVM_ARGUMENT_##argument_kind>::call(object, vm::handler, argument);
#include "abi/ioctls.def"
#undef ANYKVM_ROW_Vm
#undef ANYKVM_ROW_Vcpu
    default:
      return Error{ENOTTY, "no such request on a VM descriptor"};
  }
}

Result<long> dispatch_vcpu(core::Vcpu& object, unsigned long request, u64 argument) {
  std::lock_guard lock(object.mutex());
  core::DirtyRing::Scope dirty_pages(object.dirty_ring());
  switch (request) {
#define ANYKVM_ROW_Vm(request, handler, argument_kind)
#define ANYKVM_ROW_Vcpu(request, handler, argument_kind) \
  case request:                                          \
    return Carrier<ANYKVM_ARGUMENT_##argument_kind>::call(object, vcpu::handler, argument);
#include "abi/ioctls.def"
#undef ANYKVM_IOCTL
    default:
      return Error{EINVAL, "no such request on a vCPU descriptor"};
  }
}

Result<long> dispatch_any(const Object& object, unsigned long request, u64 argument) {
  if (object.system) return dispatch_system(*object.system, request, argument);
  if (object.guest_memory) return Error{ENOTTY, "guest memory has no requests"};
  core::Vm& vm = object.vm ? *object.vm : object.vcpu->vm();
  if (!vm.belongs_to_this_process()) return Error{EIO, "the VM belongs to the process that made it"};
  return object.vm ? dispatch_vm(vm, request, argument) : dispatch_vcpu(*object.vcpu, request, argument);
}

Class class_of(const Object& object) {
  return object.system ? Class::System : object.vm ? Class::Vm : Class::Vcpu;
}

}  // namespace

Result<long> dispatch(const Object& object, unsigned long request, u64 argument) {
  Result<long> result = dispatch_any(object, request, argument);
  ANYKVM_TRACE(ioctl, "{}({:#x}, {:#x}) = {}{}{}", name_of(class_of(object), request), request, argument,
               result.ok() ? result.value() : -result.error().code, result.ok() ? "" : ": ",
               result.ok() ? "" : result.error().reason);
  return result;
}

}  // namespace anykvm::abi
