#pragma once

#include <string>
#include <vector>

#include "round/collective.hpp"

namespace hvd_backup {

/// There is room in the window for a round.
class Collective::RoomCondition {
 public:
  RoomCondition(const Arena& arena, RoundNumber number) : arena_(arena), number_(number) {}

  bool ready() const;
  std::string missing(const std::string& after) const;
  static std::string hopeless() { return {}; }
  static Nanoseconds wake_at() { return 0; }

 private:
  std::vector<int> slowest_elsewhere(std::uint64_t& least) const;

  const Arena& arena_;
  RoundNumber number_;
};

/// A round is sealed and its result readable. Does this rank's share of the work, and copies the
/// result to `out` (may be nullptr) chunk by chunk as it becomes final.
class Collective::ResultCondition {
 public:
  ResultCondition(Collective& owner, std::byte* out);

  bool ready();
  std::string missing(const std::string& after) const;
  std::string hopeless() const;
  Nanoseconds wake_at() const;

  /// What is known of the round, once ready().
  RoundReport report(Nanoseconds waited) const;

 private:
  bool seal_seen();
  bool has_work() const;
  void start_helping();
  int unfinished() const;
  void copy_out(int buffer, bool all);

  Collective& owner_;
  std::byte* out_;
  std::vector<std::uint64_t> words_;
  RoundLedger ledger_;
  bool sealed_ = false;
  bool begun_ = false;  // this rank knows what its node's share of the work is
  bool helping_ = false;
  int copied_from_ = -1;    // the result buffer
  std::size_t copied_ = 0;  // chunks of it
};

}  // namespace hvd_backup
