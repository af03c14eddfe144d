#include "abi/objects.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "base/raw_syscall.h"
#include "base/types.h"

namespace anykvm::abi {
namespace {

// A file, whatever descriptor names it: every handle is a memfd of its own and so has an inode of its own.
using FileId = std::pair<dev_t, ino_t>;

// Past the preload library, which asks here what a descriptor is.
std::optional<FileId> file_of(int fd) {
  struct stat status {};
  if (raw_syscall(SYS_fstat, fd, reinterpret_cast<long>(&status)) != 0) return std::nullopt;
  return FileId(status.st_dev, status.st_ino);
}

struct Entry {
  std::shared_ptr<const Object> object;
  std::set<int> descriptors;
};

struct Map {
  std::shared_mutex mutex;
  std::map<FileId, Entry> files;
  std::unordered_map<int, FileId> descriptors;
  std::atomic<u64> changes{1};  // of what descriptors stand for, counted before each under the lock
};

// What the thread looked up last: a vCPU's thread asks for the same descriptor all the time. It keeps no
// object alive.
struct Lately {
  int fd = -1;
  u64 changes = 0;
  std::weak_ptr<const Object> object;
};
[[gnu::tls_model("initial-exec")]] thread_local Lately t_lately;

Map& map();

// fork(2): the child gets the map in a state of rest.
void lock_for_fork() { map().mutex.lock(); }
void unlock_in_parent() { map().mutex.unlock(); }

// The child has copies of VMs whose threads stayed behind: they can neither run nor be taken down, so each is
// held for ever, and what they had open may be closed. The lock belongs to a thread of the parent; it is made
// anew.
void settle_in_child() {
  held_fds.forget_all();
  Map& all = map();
  new (&all.mutex) std::shared_mutex;
  for (auto& [file, entry] : all.files)
    if (!entry.object->system) new std::shared_ptr<const Object>(entry.object);
}

Map& map() {
  // Never destroyed: threads may still use it while the process exits.
  static Map& instance = *[] {
    Map* made = new Map;
    pthread_atfork(lock_for_fork, unlock_in_parent, settle_in_child);
    return made;
  }();
  return instance;
}

// `mutex` is held for writing. The object to destroy once it is released, if `fd` was its last descriptor.
std::shared_ptr<const Object> forget_descriptor(Map& all, int fd) {
  auto known = all.descriptors.find(fd);
  if (known == all.descriptors.end()) return nullptr;
  ++all.changes;
  const FileId file = known->second;
  all.descriptors.erase(known);
  auto entry = all.files.find(file);
  entry->second.descriptors.erase(fd);
  if (!entry->second.descriptors.empty()) return nullptr;
  auto object = std::move(entry->second.object);
  all.files.erase(entry);
  return object;
}

void remember_descriptor(Map& all, int fd, const FileId& file) {
  ++all.changes;
  all.descriptors[fd] = file;
  all.files[file].descriptors.insert(fd);
}

// After `fd` is closed: does the file still have a descriptor anywhere? A lock on the open file description,
// taken when the handle was made, lives as long as there is a duplicate; `probe` is another description of
// the same file.
bool has_duplicates(const Fd& probe) { return !probe.valid() || flock(probe.get(), LOCK_EX | LOCK_NB) != 0; }

Fd open_again(int fd) {
  char path[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return Fd(
      static_cast<int>(raw_syscall(SYS_openat, AT_FDCWD, reinterpret_cast<long>(path), O_RDWR | O_CLOEXEC)));
}

// Those that were closed behind our back do not.
void forget_closed(Map& all, const FileId& file, int except) {
  std::erase_if(all.files[file].descriptors, [&](int fd) {
    const bool gone = fd != except && file_of(fd) != file;
    if (gone) all.descriptors.erase(fd);
    return gone;
  });
}

// Duplicates made behind our back keep an object alive too. Not the engine's own: a client may give us a
// handle where an eventfd or a pipe is due.
void adopt_duplicates(Map& all, const FileId& file, int except) {
  DIR* directory = opendir("/proc/self/fd");
  if (!directory) return;
  while (const dirent* entry = readdir(directory)) {
    char* end = nullptr;
    const int fd = static_cast<int>(strtol(entry->d_name, &end, 10));
    if (end == entry->d_name || *end || fd == except || fd == dirfd(directory)) continue;
    if (file_of(fd) == file && !held_fds.has(static_cast<unsigned>(fd))) remember_descriptor(all, fd, file);
  }
  closedir(directory);
}

}  // namespace

Result<Fd> make_handle(const char* name) {
  Fd fd(memfd_create(name, MFD_CLOEXEC));
  if (!fd.valid()) return Error{errno, "no descriptor for a handle"};
  return fd;
}

int add_object(Fd fd, Object object) {
  const int number = fd.release();
  const FileId file = file_of(number).value_or(FileId{});
  flock(number, LOCK_EX | LOCK_NB);
  Map& all = map();
  std::shared_ptr<const Object> stale;  // its number was closed without us and is used again
  std::unique_lock lock(all.mutex);
  stale = forget_descriptor(all, number);
  all.files[file].object = std::make_shared<const Object>(std::move(object));
  remember_descriptor(all, number, file);
  lock.unlock();
  return number;
}

std::shared_ptr<const Object> find_object(int fd) {
  Map& all = map();
  if (t_lately.fd == fd && t_lately.changes == all.changes.load()) {
    if (auto object = t_lately.object.lock()) return object;
  }
  {
    std::shared_lock lock(all.mutex);
    auto known = all.descriptors.find(fd);
    if (known != all.descriptors.end()) {
      auto& object = all.files.find(known->second)->second.object;
      t_lately = {fd, all.changes.load(), object};
      return object;
    }
    if (all.files.empty()) return nullptr;
  }
  // Under the lock: what is closed meanwhile must not be remembered, it would keep the object for ever.
  std::unique_lock lock(all.mutex);
  auto file = file_of(fd);
  if (!file) return nullptr;
  auto entry = all.files.find(*file);
  if (entry == all.files.end()) return nullptr;
  remember_descriptor(all, fd, *file);
  return entry->second.object;
}

std::shared_ptr<const Object> adopt_device(int fd) {
  Object device;
  device.system = std::make_shared<System>();
  Map& all = map();
  std::unique_lock lock(all.mutex);
  auto file = file_of(fd);
  if (!file) return nullptr;
  Entry& entry = all.files[*file];
  if (!entry.object) entry.object = std::make_shared<const Object>(std::move(device));
  remember_descriptor(all, fd, *file);
  return entry.object;
}

std::string handle_name(int fd) {
  constexpr std::string_view kBefore = "/memfd:", kAfter = " (deleted)";
  char path[32], target[128];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  const long size =
      raw_syscall(SYS_readlink, reinterpret_cast<long>(path), reinterpret_cast<long>(target), sizeof target);
  std::string_view name(target, size < 0 ? 0 : static_cast<std::size_t>(size));
  if (!name.starts_with(kBefore) || !name.ends_with(kAfter)) return {};
  return std::string(name.substr(kBefore.size(), name.size() - kBefore.size() - kAfter.size()));
}

std::optional<Result<int>> close_object(int fd) {
  if (!find_object(fd)) return std::nullopt;
  Map& all = map();
  std::shared_ptr<const Object> last;  // both are destroyed after the lock is released
  Fd probe;
  std::unique_lock lock(all.mutex);
  auto known = all.descriptors.find(fd);
  if (known == all.descriptors.end()) return Error{EBADF, "closed meanwhile"};
  const FileId file = known->second;
  forget_closed(all, file, fd);
  const bool last_known = all.files[file].descriptors.size() == 1;
  if (last_known) probe = open_again(fd);
  const long result = raw_syscall(SYS_close, fd);
  if (last_known && has_duplicates(probe)) adopt_duplicates(all, file, probe.valid() ? probe.get() : -1);
  last = forget_descriptor(all, fd);
  lock.unlock();
  if (result < 0) return Error{static_cast<int>(-result), "close failed"};
  return 0;
}

bool owns(int fd) {
  Map& all = map();
  {
    std::shared_lock lock(all.mutex);
    if (all.files.empty()) return false;
  }
  const auto file = file_of(fd);
  if (!file) return forget(fd), false;
  {
    std::shared_lock lock(all.mutex);
    if (all.files.contains(*file)) return true;
  }
  forget(fd);
  return false;
}

std::vector<int> descriptors_in(unsigned first, unsigned last) {
  Map& all = map();
  std::vector<int> found;
  std::shared_lock lock(all.mutex);
  for (const auto& [fd, file] : all.descriptors)
    if (static_cast<unsigned>(fd) >= first && static_cast<unsigned>(fd) <= last) found.push_back(fd);
  return found;
}

void forget(int fd) {
  Map& all = map();
  std::shared_ptr<const Object> last;  // destroyed after the lock is released
  {
    std::shared_lock lock(all.mutex);
    if (!all.descriptors.contains(fd)) return;
  }
  std::unique_lock lock(all.mutex);
  const auto now = file_of(fd);
  auto known = all.descriptors.find(fd);
  if (known == all.descriptors.end() || known->second == now) return;
  const FileId file = known->second;
  if (all.files[file].descriptors.size() == 1) adopt_duplicates(all, file, fd);
  last = forget_descriptor(all, fd);
}

}  // namespace anykvm::abi
