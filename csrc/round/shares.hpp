#pragma once

#include <vector>

#include "base/types.hpp"

namespace hvd_backup {

/// A rank whose contributions are in far fewer rounds than chance would put them.
struct LateRank {
  int rank = 0;
  RoundNumber contributed = 0;  ///< of the last `rounds`
  RoundNumber rounds = 0;
};

/// Counts whose contributions are in the rounds, and finds ranks that are late too often for
/// chance.
///
/// If all ranks are equally fast, each is late in b of R rounds. A rank is found if its share is
/// below a quarter of what that leaves, and if chance would bring so few about less than once in a
/// million times. Rounds are counted in blocks, so that a rank that falls behind after many good
/// rounds is found, too. A rank is found again only if it is much worse, much later.
class Shares {
 public:
  Shares(int world, int backups);

  /// Ranks that this round, of these contributors, has shown to be late too often.
  std::vector<LateRank> add(const std::vector<int>& contributors);

  /// Of a block's rounds: when the ranks are judged first. Then after twice as many, and so on.
  static constexpr RoundNumber kFirst = 16;
  static constexpr RoundNumber kBlock = 256;
  /// Rounds after which a rank can be found again, with half the share or less.
  static constexpr RoundNumber kAgainAfter = 4096;

 private:
  struct Rank {
    RoundNumber contributed = 0;  // in this block
    RoundNumber found_at = 0;     // the round after it; 0: never
    double found_share = 0;
  };

  bool is_too_late(const Rank& rank) const;

  double chance_;  // to be in a round
  RoundNumber rounds_ = 0;
  RoundNumber in_block_ = 0;
  RoundNumber judge_at_ = kFirst;
  std::vector<Rank> ranks_;
};

/// How likely `most` successes or fewer are, of `trials` that succeed with probability `chance`.
double binomial_at_most(RoundNumber most, RoundNumber trials, double chance);

}  // namespace hvd_backup
