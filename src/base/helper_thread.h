#pragma once
// Starts one of our few helper threads: named, and with every signal blocked so that the client's signals go
// to the client's own threads. Owner: nobody. Any thread.

#include <thread>
#include <utility>

namespace anykvm {

// Blocks all signals in the calling thread for its lifetime; a thread started meanwhile inherits that.
class BlockSignals {
 public:
  BlockSignals();
  ~BlockSignals();
  BlockSignals(const BlockSignals&) = delete;
  BlockSignals& operator=(const BlockSignals&) = delete;

 private:
  alignas(8) unsigned char m_saved[128];  // sigset_t
};

void name_this_thread(const char* name);

template <class Body>
std::thread start_helper_thread(const char* name, Body body) {
  BlockSignals blocked;
  return std::thread([name, body = std::move(body)]() mutable {
    name_this_thread(name);
    body();
  });
}

}  // namespace anykvm
