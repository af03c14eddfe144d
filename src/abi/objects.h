#pragma once
// The process-wide map from descriptors to what they stand for.
// Owner: the process. Any thread. An object lives until its last known descriptor is closed with
// close_object().

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/expected.h"
#include "base/fd.h"

namespace anykvm::core {
class Vm;
class Vcpu;
class GuestMemory;
}  // namespace anykvm::core

namespace anykvm::abi {

struct System {};

// What a descriptor stands for: exactly one of the four.
struct Object {
  std::shared_ptr<System> system;
  std::shared_ptr<core::Vm> vm;
  std::shared_ptr<core::Vcpu> vcpu;
  std::shared_ptr<core::GuestMemory> guest_memory;
};

// A descriptor without content whose name shows in /proc/self/fd. For the system and VM objects.
Result<Fd> make_handle(const char* name);

// Takes the descriptor over and returns its number.
int add_object(Fd fd, Object object);

// Null if the descriptor is not ours. Also finds descriptors that were duplicated behind our back.
std::shared_ptr<const Object> find_object(int fd);

// What make_handle() named the descriptor's file, perhaps in another process; empty for files that are none.
std::string handle_name(int fd);

// The device, opened in another process and brought here by an exec(2) or a socket: it has no state, so it
// works here too.
std::shared_ptr<const Object> adopt_device(int fd);

// As find_object(), and the file behind the number is looked at: numbers can change hands unseen.
bool owns(int fd);

// The known descriptors among first...last.
std::vector<int> descriptors_in(unsigned first, unsigned last);

// The descriptor was closed, or names another file, without close_object().
void forget(int fd);

// Closes the descriptor if it is ours; nothing if it is not (the caller closes it).
std::optional<Result<int>> close_object(int fd);

}  // namespace anykvm::abi
