#pragma once

#include <memory>

#include "base/clock.hpp"
#include "memory/arena.hpp"
#include "round/chunk_reducer.hpp"
#include "round/options.hpp"
#include "round/referee.hpp"

namespace hvd_backup {

/// A rank's share of the work on the round it is in. A late rank has none.
///
/// One object per rank and collective, used by that rank's thread alone.
class Worker {
 public:
  Worker(const Arena& arena, int rank, const Options& options, const Clock& clock, Output output);
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  virtual ~Worker() = default;

  /// This rank is in `round` now.
  void enter(RoundNumber round);

  /// Does what work there is; `is_sealed` as the referee has just told.
  void work(const Referee& referee, bool is_sealed);

  /// When work() should be called again though nobody rings; 0: no need.
  Nanoseconds wake_at() const { return works_ ? reducer_.wake_at() : 0; }

  /// The buffer that the result is being written to, chunk by chunk; -1 if there is none yet.
  virtual int unfinished() const = 0;

 protected:
  /// Begins its share of the round if it is known. True if there is work to do for this rank.
  virtual bool begin(const Referee& referee, bool is_sealed) = 0;

  const Arena& arena_;
  const int rank_;
  ChunkReducer reducer_;
  RoundNumber round_ = 0;
  bool begun_ = false;  // what this rank's share is, is known
  bool works_ = false;  // it has a share
};

/// All ranks share memory: the contributors write the result.
class ResultWorker final : public Worker {
 public:
  ResultWorker(const Arena& arena, int rank, const Options& options, const Clock& clock);
  int unfinished() const override;

 protected:
  bool begin(const Referee& referee, bool is_sealed) override;
};

/// There are other nodes: the node's contributors add up the node's sum, which the service sends to
/// them; the service writes the result.
class SumWorker final : public Worker {
 public:
  SumWorker(const Arena& arena, int rank, const Options& options, const Clock& clock);
  int unfinished() const override;

 protected:
  bool begin(const Referee& referee, bool is_sealed) override;

 private:
  const Policy policy_;
};

/// The worker of a rank of this arena.
std::unique_ptr<Worker> make_worker(const Arena& arena, int rank, const Options& options,
                                    const Clock& clock);

}  // namespace hvd_backup
