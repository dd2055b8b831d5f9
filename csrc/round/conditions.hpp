#pragma once

#include <string>
#include <vector>

#include "round/collective.hpp"
#include "round/copier.hpp"

namespace hvd_backup {

/// There is room in the window for a round.
class Collective::RoomCondition {
 public:
  RoomCondition(const Arena& arena, RoundNumber number) : arena_(arena), number_(number) {}

  static void work() {}
  bool ready() const;
  std::string missing(const std::string& after) const;
  static std::string hopeless() { return {}; }
  static Nanoseconds wake_at() { return 0; }

 private:
  std::vector<int> slowest_elsewhere(std::uint64_t& least) const;

  const Arena& arena_;
  RoundNumber number_;
};

/// A round is sealed and its result readable, and copied to `out` (may be nullptr). The referee
/// tells whether it is sealed, the worker does this rank's share, the copier takes the result out.
class Collective::ResultCondition {
 public:
  ResultCondition(Collective& owner, std::byte* out);

  void work();
  bool ready() const { return owner_.buffer_ >= 0; }
  std::string missing(const std::string& after) const;
  std::string hopeless() const;
  Nanoseconds wake_at() const;

  /// What is known of the round, once ready().
  RoundReport report(Nanoseconds waited) const;

 private:
  Collective& owner_;
  Copier copier_;
  bool sealed_ = false;
};

}  // namespace hvd_backup
