#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/types.hpp"
#include "protocol/messages.hpp"
#include "protocol/policy.hpp"

namespace hvd_backup {

/// What became of a contribution.
enum class Arrival {
  joined,  ///< it is in the round, which stays open
  sealed,  ///< it is in the round and closed it
  late,    ///< it is not in the round
};

/// Who counts for which round: the whole rule, and nothing else.
///
/// Pure: no input or output, no thread, no clock (time is passed in). The state lies in words that
/// the owner provides, so that the engine can run the rule on a copy of shared memory and publish
/// it by one compare-and-swap, and the simulator on a plain vector.
class RoundLedger {
 public:
  /// How many words the state of one round takes.
  static std::size_t words(int world);

  /// Looks at `state` (words(policy.world) of them); all zero is round 0, open and empty.
  RoundLedger(const Policy& policy, std::uint64_t* state);

  /// Starts round `number`, empty.
  void open(RoundNumber number);

  /// A contribution of `rank`, computed at `version`, arrives. One of weight 0 abstains: it counts
  /// for the quorum, so that nobody waits for a rank that has nothing to give, but not in the mean.
  /// Throws InvalidArgument for a rank outside the world, a version that is still to come, or a
  /// weight that is negative or not finite.
  Arrival arrive(int rank, RoundNumber version, double weight, Nanoseconds now);

  /// Time has passed: seals the round if its grace is over. True if this call sealed it.
  bool expire(Nanoseconds now);

  /// Takes over what a coordinator decided, as of `now` on this node's clock.
  void adopt(const Seal& decided, Nanoseconds now);
  /// Takes over what a coordinator knows of a round that is open still: who has arrived.
  void adopt(const NodeReport& so_far);

  RoundNumber number() const { return state_[kNumber]; }
  bool is_sealed() const { return state_[kSealed] != 0; }
  int count() const { return static_cast<int>(state_[kCount]); }
  bool has_quorum() const { return count() >= policy_.quorum; }
  bool contains(int rank) const;
  /// Ranks in the round, ascending.
  std::vector<int> contributors() const;
  /// Sum of the contributors' weights.
  double weight() const;
  Nanoseconds first_at() const { return static_cast<Nanoseconds>(state_[kFirstAt]); }
  Nanoseconds sealed_at() const { return static_cast<Nanoseconds>(state_[kSealedAt]); }
  /// When the grace ends; meaningful once the quorum is there.
  Nanoseconds grace_ends_at() const;

 private:
  enum Word : std::size_t {
    kNumber,
    kCount,
    kSealed,
    kFirstAt,
    kQuorumAt,
    kSealedAt,
    kWeight,
    kMembers
  };

  void seal(Nanoseconds now);

  Policy policy_;
  std::uint64_t* state_;
};

}  // namespace hvd_backup
