#include "internode/node_service.hpp"

#include <pthread.h>
#include <sched.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <exception>
#include <utility>

#include "base/error.hpp"

namespace hvd_backup {
namespace {

// The thread takes time from a rank that computes; a visitor is a rank that has nothing else to do.
constexpr NodeWork::SpinLimits kThread{100 * kMicrosecond, kMillisecond};
constexpr NodeWork::SpinLimits kVisitor{kMillisecond, 100 * kMicrosecond};

// The thread takes over from a rank after this, as that may soon be back.
constexpr Nanoseconds kRelief = kMillisecond;
constexpr Nanoseconds kAtOnce = 1;

// How long it sleeps while a rank does the work.
constexpr Nanoseconds kRest = 250 * kMillisecond;

constexpr std::uint64_t kAlarm = 0;
constexpr std::uint64_t kWork = 1;

/// Signals are for the threads of the process's owner.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_{};
};

}  // namespace

NodeService::NodeService(Parts parts)
    : process_(getpid()),
      alarm_(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)),
      work_(std::move(parts)) {
  if (alarm_.get() < 0) throw SystemError("cannot make a timer", errno);
  bed_.add(alarm_.get(), kAlarm);
  bed_.add(work_.fd(), kWork);
  const SignalsBlocked blocked;  // inherited by the thread
  thread_ = std::thread([this] { serve(); });
}

NodeService::~NodeService() {
  if (getpid() == process_) {
    close();
  } else if (thread_.joinable()) {
    thread_.detach();  // a forked process has this object, but not the thread
  }
}

void NodeService::close() {
  closed_ = true;
  wake(kAtOnce);
  if (thread_.joinable()) thread_.join();
  const std::lock_guard lock(turn_);
  work_.close();
}

void NodeService::add(std::uint32_t channel, const Arena& arena, const Options& options,
                      std::shared_ptr<void> owner) {
  const std::lock_guard lock(turn_);
  work_.add(channel, arena, options, std::move(owner));
}

bool NodeService::wait_until_over(Nanoseconds timeout) {
  const auto ended = [this] { return work_.is_over() || !work_.problem().empty(); };
  std::unique_lock lock(turn_);
  return changed_.wait_for(lock, std::chrono::nanoseconds(timeout), ended);
}

std::string NodeService::problem() const {
  const std::lock_guard lock(turn_);
  return work_.problem();
}

// The thread's life. What it throws would end the process, which is the user's.
void NodeService::serve() {
  try {
    serve_until_closed();
  } catch (const std::exception& error) {
    const std::lock_guard lock(turn_);
    work_.give_up(std::string("the thread between the nodes: ") + error.what());
    changed_.notify_all();
  }
}

void NodeService::serve_until_closed() {
  while (!closed_) {
    Nanoseconds rest = kRest;
    if (visitors_ == 0) {
      const std::lock_guard lock(turn_);
      rest = std::max<Nanoseconds>(takes_over_at_ - monotonic_clock().now(), 0);
      if (rest == 0) {
        rest = turn() ? 0 : work_.doze(kThread);
        listen();
      }
    }
    if (rest == 0) continue;
    // Without the lock: a rank may come meanwhile.
    for (const Poller::Ready& ready : bed_.wait(rest)) {
      std::uint64_t times = 0;
      if (ready.tag != kAlarm) continue;
      [[maybe_unused]] const auto n = read(alarm_.get(), &times, sizeof times);
      alarm_is_set_ = false;  // not before: a rank that found it set and left is no visitor now
    }
  }
}

bool NodeService::turn() {
  const bool moved = work_.turn();
  if (work_.is_over() || !work_.problem().empty()) changed_.notify_all();
  return moved;
}

void NodeService::start() {
  const bool is_first = visitors_.fetch_add(1) == 0;
  const std::lock_guard lock(turn_);
  if (!is_first || work_.fd() < 0) return;
  if (listens_) bed_.remove(work_.fd());
  listens_ = false;
}

void NodeService::run(Nanoseconds at_most) {
  Nanoseconds rest = 0;
  int fd = -1;
  {
    const std::lock_guard lock(turn_);
    if (turn() || at_most == 0) return;
    rest = std::min(work_.doze(kVisitor), at_most);
    fd = work_.fd();
  }
  rest > 0 ? Poller::sleep(fd, rest) : static_cast<void>(sched_yield());
}

void NodeService::stop() {
  const std::lock_guard lock(turn_);
  const bool is_last = visitors_.fetch_sub(1) == 1;
  turn();
  if (!is_last || work_.fd() < 0) return;
  takes_over_at_ = monotonic_clock().now() + kRelief;
  // To set the alarm and take it back is a good part of a small round, on a virtual machine. So it
  // stays set when a rank comes back, and wakes the thread for nothing once in a while.
  if (!alarm_is_set_.exchange(true)) wake(kRelief);
}

// From here on, whoever rings, or another node, wakes the thread. Not if a rank has come meanwhile.
void NodeService::listen() {
  if (listens_ || visitors_ != 0 || work_.fd() < 0) return;
  bed_.add(work_.fd(), kWork);
  listens_ = true;
}

void NodeService::wake(Nanoseconds after) const {
  itimerspec once{};
  once.it_value = {after / kSecond, after % kSecond};
  timerfd_settime(alarm_.get(), 0, &once, nullptr);
}

}  // namespace hvd_backup
