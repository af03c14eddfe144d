#pragma once
// Threads that touch pages of guest memory until the host has them, so that vCPUs need not wait for them.
// They are made when there is something to fetch and end when there has not been for a while. One may be
// stuck for as long as nobody fills the page of a userfaultfd; so they share what they need with the owner
// and are not waited for. Owner: Vm. Any thread.

#include <functional>
#include <memory>

#include "base/types.h"

namespace anykvm::core {

class PageFetcher {
 public:
  PageFetcher();
  // What is not fetched yet is dropped; its `arrived` may still be called once more.
  ~PageFetcher();
  PageFetcher(const PageFetcher&) = delete;
  PageFetcher& operator=(const PageFetcher&) = delete;

  // Calls `arrived` from a thread of ours when the page at `host` is there, or will never be. False: there is
  // no thread to be had.
  bool fetch(const u8* host, std::function<void()> arrived);

 private:
  struct Work;
  std::shared_ptr<Work> m_work;
};

}  // namespace anykvm::core
