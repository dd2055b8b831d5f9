#pragma once

#include <sched.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "memory/arena.hpp"
#include "round/options.hpp"

namespace hvd_backup {

/// "2, 7" of {2, 7}.
std::string join(const std::vector<int>& ranks);

/// "ranks 2, 7 have", "rank 2 has".
std::string ranks_have(const std::vector<int>& ranks);

/// Tells a processor that this is a loop of looks.
inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/// From start() to stop(), however that comes.
class ProgressTurn {
 public:
  explicit ProgressTurn(ProgressEngine* progress_engine) : progress_engine_(progress_engine) {
    if (progress_engine_ != nullptr) progress_engine_->start();
  }
  ProgressTurn(const ProgressTurn&) = delete;
  ProgressTurn& operator=(const ProgressTurn&) = delete;
  ~ProgressTurn() {
    if (progress_engine_ != nullptr) progress_engine_->stop();
  }

 private:
  ProgressEngine* progress_engine_;
};

/// Waiting that always ends: with the condition, a failed peer, Ctrl-C or the time-out.
class Waiter {
 public:
  Waiter(const Arena& arena, const Options& options, const Clock& clock, int rank)
      : arena_(arena), options_(options), clock_(clock), rank_(rank) {}

  /// Waits until `condition.ready()`, asleep on `bell` most of the time.
  ///
  /// A condition has five members. `work()` looks, and does what is due; it is called after every
  /// ring and every nap. `ready()` tells what that has led to. `missing()` is the text of a
  /// time-out. `hopeless()` tells why the wait cannot end any more, or nothing. `wake_at()` is a
  /// time to look again, or 0. With a `progress_engine`, the rank runs that instead of sleeping on
  /// the bell.
  template <class Condition>
  void wait(RoundNumber round, Bell& bell, Condition& condition,
            ProgressEngine* progress_engine = nullptr) {
    const ProgressTurn turn(progress_engine);
    if (progress_engine == nullptr && look(condition)) return;
    const Nanoseconds start = clock_.now();
    for (;;) {
      const std::uint32_t ticket = bell.ticket();
      if (is_over(condition)) return;
      const Nanoseconds now = clock_.now();
      check(round, now);
      if (const std::string why = condition.hopeless(); !why.empty()) {
        patrol(round, now);  // who left may have told the reason
        fail(round, FailureKind::peer, why);
      }
      if (now - start >= options_.timeout) {
        if (is_over(condition))
          return;  // this rank was stopped between looking and asking the time
        fail(round, FailureKind::timeout, condition.missing(after(now - start)));
      }
      const Nanoseconds rest = nap(now, start + options_.timeout, condition.wake_at());
      progress_engine == nullptr ? bell.sleep(ticket, rest) : progress_engine->run(rest);
    }
  }

  /// Throws if another rank has failed.
  void check_failure() const;

  /// Ends every rank's waits with this text, and throws it here.
  [[noreturn]] void fail(RoundNumber round, FailureKind kind, const std::string& text);

 private:
  /// Throws if another rank has failed or died, or the user interrupts. Cheap when called often.
  /// What the patrol sees may be younger than what it was called for: first look at the condition.
  void check(RoundNumber round, Nanoseconds now);
  void patrol(RoundNumber round, Nanoseconds now);

  template <class Condition>
  static bool is_over(Condition& condition) {
    condition.work();
    return condition.ready();
  }

  template <class Condition>
  bool look(Condition& condition) {
    for (int i = 0; i < options_.spin_limits.spins; ++i) {
      if (is_over(condition)) return true;
      pause_briefly();
    }
    if (waits_without_yield_ > 0) {
      --waits_without_yield_;
      return false;
    }
    for (int i = 0; i < options_.spin_limits.yields; ++i) {
      const Nanoseconds yielded_at = clock_.now();
      sched_yield();
      const bool costly = clock_.now() - yielded_at > kCostlyYield;
      if (costly) {
        waits_without_yield_ = penalty_;
        penalty_ = std::min(2 * penalty_, kLargestPenalty);
      }
      if (is_over(condition)) return true;
      if (costly) return false;
    }
    return false;
  }

  static Nanoseconds nap(Nanoseconds now, Nanoseconds deadline, Nanoseconds wake_at);
  static std::string after(Nanoseconds waited);
  std::string prefix(RoundNumber round) const;
  void rethrow(const Failure& failure) const;

  // To yield to a rank that burns the core costs a slice of the scheduler. Sleep at once for a
  // number of waits then, twice as many each time it is tried again in vain.
  static constexpr Nanoseconds kCostlyYield = 200 * kMicrosecond;
  static constexpr int kSmallestPenalty = 64;
  static constexpr int kLargestPenalty = 1 << 13;

  const Arena& arena_;
  const Options& options_;
  const Clock& clock_;
  int rank_;
  Nanoseconds checked_at_ = 0;
  int waits_without_yield_ = 0;
  int penalty_ = kSmallestPenalty;
};

}  // namespace hvd_backup
