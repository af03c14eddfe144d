#include "core/page_fetcher.h"

#include <pthread.h>
#include <signal.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>

#include "base/guarded_memory.h"
#include "base/helper_thread.h"

namespace anykvm::core {
namespace {

constexpr unsigned kMostThreads = 64;
constexpr auto kIdle = std::chrono::seconds(1);

// Touching memory that the client has taken away must not end the process.
void open_memory_signals() {
  sigset_t memory;
  sigemptyset(&memory);
  sigaddset(&memory, SIGSEGV);
  sigaddset(&memory, SIGBUS);
  pthread_sigmask(SIG_UNBLOCK, &memory, nullptr);
}

}  // namespace

struct PageFetcher::Work {
  struct Job {
    const u8* host;
    std::function<void()> arrived;
  };

  bool start_thread(const std::shared_ptr<Work>& self);
  void serve();

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Job> jobs;               // mutex
  unsigned threads = 0, waiting = 0;  // mutex
  bool ends = false;                  // mutex
};

PageFetcher::PageFetcher() : m_work(std::make_shared<Work>()) {}

PageFetcher::~PageFetcher() {
  std::lock_guard lock(m_work->mutex);
  m_work->ends = true;
  m_work->jobs.clear();
  m_work->changed.notify_all();
}

bool PageFetcher::fetch(const u8* host, std::function<void()> arrived) {
  std::lock_guard lock(m_work->mutex);
  const bool enough = m_work->waiting > m_work->jobs.size();
  if (!enough && !m_work->start_thread(m_work) && !m_work->threads) return false;
  m_work->jobs.push_back({host, std::move(arrived)});
  m_work->changed.notify_one();
  return true;
}

// mutex.
bool PageFetcher::Work::start_thread(const std::shared_ptr<Work>& self) {
  if (threads == kMostThreads) return false;
  BlockSignals blocked;
  auto* const argument = new std::shared_ptr<Work>(self);
  auto body = [](void* shared) -> void* {
    const std::unique_ptr<std::shared_ptr<Work>> work(static_cast<std::shared_ptr<Work>*>(shared));
    name_this_thread("anykvm-pages");
    open_memory_signals();
    (*work)->serve();
    return nullptr;
  };
  pthread_t thread;
  if (pthread_create(&thread, nullptr, body, argument) != 0) {
    delete argument;
    return false;
  }
  pthread_detach(thread);
  ++threads;
  return true;
}

void PageFetcher::Work::serve() {
  std::unique_lock lock(mutex);
  for (;;) {
    ++waiting;
    const bool called = changed.wait_for(lock, kIdle, [&] { return ends || !jobs.empty(); });
    --waiting;
    if (!called || ends) break;
    const Job job = std::move(jobs.front());
    jobs.pop_front();
    lock.unlock();
    u8 byte = 0;
    guarded_copy(&byte, job.host, sizeof byte);
    job.arrived();
    lock.lock();
  }
  --threads;
}

}  // namespace anykvm::core
