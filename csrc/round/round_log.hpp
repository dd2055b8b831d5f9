#pragma once

#include <cstddef>
#include <deque>

#include "round/collective.hpp"

namespace hvd_backup {

/// A round in a rank's history. Times are points on the engine's clock.
struct RoundRecord {
  RoundNumber number = 0;
  Nanoseconds arrived_at = 0;  ///< when this rank's gradient was complete; 0: it skipped the round
  Nanoseconds sealed_at = 0;
  Nanoseconds stepped_at = 0;  ///< when this rank had the result
  Nanoseconds waited = 0;
  bool contributed = false;
};

/// What became of a rank's rounds: sums over all of them, records of the last `capacity`.
class RoundLog {
 public:
  explicit RoundLog(std::size_t capacity) : capacity_(capacity) {}

  void add(const RoundReport& round, Nanoseconds stepped_at);

  RoundNumber rounds() const { return rounds_; }
  RoundNumber contributed() const { return contributed_; }
  RoundNumber skipped() const { return skipped_; }
  /// The oldest first.
  const std::deque<RoundRecord>& records() const { return records_; }

 private:
  std::size_t capacity_;
  RoundNumber rounds_ = 0;
  RoundNumber contributed_ = 0;
  RoundNumber skipped_ = 0;
  std::deque<RoundRecord> records_;
};

}  // namespace hvd_backup
