#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "base/types.hpp"
#include "device/mapped_arena.hpp"
#include "memory/doorbell.hpp"
#include "protocol/policy.hpp"
#include "round/shares.hpp"

namespace hvd_backup {

/// What a rank does with a gradient that came too late.
enum class Late {
  drop,   ///< forgets it (Chen et al. 2016)
  carry,  ///< adds it, weight counted, to its next contribution (as eager-SGD, Li et al. 2020)
};

/// How long to look before sleeping. Looking pays when every rank has a core of its own.
struct SpinLimits {
  int spins = 20;   ///< looks one after another
  int yields = 50;  ///< then looks with sched_yield between them
};

/// Work that a rank does for all while it waits, instead of another thread that would have to be
/// woken for it: see NodeService. Between start() and stop() that thread rests.
class ProgressEngine {
 public:
  ProgressEngine() = default;
  ProgressEngine(const ProgressEngine&) = delete;
  ProgressEngine& operator=(const ProgressEngine&) = delete;
  virtual ~ProgressEngine() = default;

  virtual void start() = 0;
  /// Does what there is to do, or else sleeps, for at most so long.
  virtual void run(Nanoseconds at_most) = 0;
  virtual void stop() = 0;
};

/// How a rank takes part in a collective.
struct Options {
  Policy policy;
  Late late = Late::drop;
  /// Whether the result is the weighted sum over the contributors, not their mean.
  bool sum = false;
  /// After this long in one wait: RoundTimeout.
  Nanoseconds timeout = 600 * kSecond;
  SpinLimits spin_limits;
  /// Whether ranks may read each other's private memory (process_vm_readv).
  bool remote_reads = false;
  /// A helper that makes no progress for this long is taken for stopped; its work is done again.
  Nanoseconds stall = 100 * kMillisecond;
  /// Looks around, now and then, while this rank waits: returns the ranks whose process is gone;
  /// what it throws (Ctrl-C, say) ends the wait.
  std::function<std::vector<int>()> patrol;
  /// Is told, after a round, which ranks are late too often for chance. Empty: nobody counts.
  std::function<void(const LateRank&)> late_rank;
  /// Wakes the node's service thread; needed if the world has other nodes.
  std::shared_ptr<const Doorbell> service;
  /// Of the rank in whose process that thread is.
  std::shared_ptr<ProgressEngine> progress_engine;
  /// Where the arena's device_flats are: this rank's, open. Only in worlds of one node.
  std::shared_ptr<MappedArena> mapped;
};

}  // namespace hvd_backup
