#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "base/clock.hpp"
#include "memory/arena.hpp"
#include "round/options.hpp"
#include "round/referee.hpp"
#include "round/shares.hpp"
#include "round/waiter.hpp"
#include "round/worker.hpp"

namespace hvd_backup {

/// What a rank knows of a round it has been through. Times are points on the engine's clock.
struct RoundReport {
  RoundNumber number = 0;
  std::vector<int> contributors;        ///< ascending
  std::vector<Nanoseconds> arrived_at;  ///< of each contributor
  bool contributed = false;             ///< this rank is one of them
  double weight = 0;                    ///< sum of their weights
  Nanoseconds first_at = 0;             ///< the first arrival
  Nanoseconds sealed_at = 0;
  Nanoseconds my_arrival_at = 0;      ///< in time or late; 0 if this rank skipped the round
  Nanoseconds waited = 0;             ///< how long this rank was blocked
  Nanoseconds waited_for_window = 0;  ///< of this: because the window was full
};

/// The partial all-reduce: one rank's end of it.
///
/// A round goes: `arrive` (or `skip`), `wait`, read `result()`, `release`. Every rank goes through
/// every round, and gets the same bits, whether its contribution was in time or not. From the
/// arrival that completes the quorum on, the contributors finish alone.
///
/// If the world has other nodes, the arena is the node's, and the node's NodeService decides, lets
/// sums and results travel, and must know the arena before the first arrival.
///
/// Not thread-safe: one thread per rank. No thread of its own, no global state.
class Collective {
 public:
  /// Most ranks of one node (an index of SharedState has 16 bits).
  static constexpr int kMaxRanks = 4096;

  /// What an arena must have room for: a window of `window` results and what repairs need. `ranks`
  /// are those of the node; empty: all.
  static ArenaSpec spec(const Policy& policy, int window, std::vector<Flat> flats,
                        std::size_t chunk_bytes, std::vector<int> ranks = {});

  Collective(const Arena& arena, int rank, Options options, const Clock& clock = monotonic_clock());
  Collective(const Collective&) = delete;
  Collective& operator=(const Collective&) = delete;

  /// The round that the next arrive() or skip() is for, or that is being waited for.
  RoundNumber number() const { return phase_ == Phase::loaded ? number_ + 1 : number_; }
  /// This rank's contribution: its own to write from release() to arrive().
  std::byte* slot() const { return arena_.slot(rank_); }

  /// The slot is complete: contributes it. Blocks only while the window is full. False if it is
  /// known to be late; on one node, without grace, true means that it is in the round. With weight
  /// 0 this rank abstains: it counts for the quorum, and its slot, whatever is in it, is not read.
  bool arrive(double weight = 1);
  /// Goes through the round without a contribution.
  void skip();
  /// Whether the next round is sealed already, without this rank.
  bool sealed_without_me() const;
  /// Ranks that have not arrived in the round that is open, or being waited for.
  std::vector<int> missing() const;
  /// Whether an exception has ended a wait of this rank's. Only leave() is possible then.
  bool is_interrupted() const { return phase_ == Phase::waiting; }
  /// For every rank: rounds it has released, as far as is known; kUnbounded if it has left.
  std::vector<RoundNumber> progress() const;
  /// Helps, and blocks until the result can be read.
  RoundReport wait();
  /// arrive() and wait().
  RoundReport arrive_and_wait(double weight = 1);
  /// The buffer with the result, from wait() to release().
  int result_buffer() const { return buffer_; }
  const std::byte* result() const { return arena_.result(buffer_); }
  /// This rank no longer reads the result, and may write its slot. Follows wait(); between rounds
  /// it does nothing. Sleeps while a stream reads the result in device memory.
  void release();

  /// One whole round of a single flat, from private memory to private memory; `in` and `out` may
  /// be the same, but must not overlap otherwise.
  RoundReport allreduce(const std::byte* in, std::byte* out, double weight = 1);

  /// Leaves in good order: nobody waits for this rank any more. Maps no device memory of others
  /// any more, and no running rank's kernel uses this one's.
  void leave();
  /// After leave(): frees this rank's device memory if no other rank maps it. True if it is free.
  bool give_back();
  /// Makes every rank's waits end with PeerFailed and this text.
  void fail(const std::string& text);

 private:
  /// `waiting` is left by the wait's end. An exception that ends the wait leaves it there: the
  /// round is interrupted, and cannot be taken up again.
  enum class Phase { computing, waiting, arrived, loaded, left };
  class RoomCondition;
  class ResultCondition;

  void start_round();
  void contribute(double weight, const std::byte* in);
  void stage_if_asked();
  void ring_service() const;
  RoundReport finish(std::byte* out);
  RoundReport finish_unstaged(std::byte* out);
  void fold_carried(double& weight);
  void keep(double weight);
  void check_device_flats() const;
  void leave_device_memory();
  void check_not_interrupted() const;
  void count(const std::vector<int>& contributors);

  Arena arena_;
  int rank_;
  Options options_;
  const Clock& clock_;
  Waiter waiter_;
  std::unique_ptr<Referee> referee_;
  std::unique_ptr<Worker> worker_;
  Shares shares_;
  Phase phase_ = Phase::computing;
  RoundNumber number_ = 0;
  Nanoseconds blocked_ = 0;              // in this round, before it arrived
  Nanoseconds arrived_at_ = 0;           // in this round; 0: skipped
  bool lost_ = false;                    // this round's contribution is known to be late
  double weight_ = 0;                    // of this round's contribution
  const std::byte* unstaged_ = nullptr;  // where that is, if others read it where it is
  int buffer_ = -1;
  std::vector<std::byte> carried_;
  double carried_weight_ = 0;
};

}  // namespace hvd_backup
