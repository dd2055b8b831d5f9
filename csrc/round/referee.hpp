#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/clock.hpp"
#include "memory/arena.hpp"
#include "protocol/round_ledger.hpp"
#include "round/options.hpp"

namespace hvd_backup {

/// Decides, as one rank sees it, who counts for a round. The rule is RoundLedger's; a referee
/// brings it contributions, and knows where its words are: in the node's shared memory
/// (LocalReferee), or with the coordinator of several nodes (CoordinatedReferee).
///
/// One object per rank and collective, used by that rank's thread alone.
class Referee {
 public:
  Referee(const Policy& policy, int rank);
  Referee(const Referee&) = delete;
  Referee& operator=(const Referee&) = delete;
  virtual ~Referee() = default;

  /// This rank's contribution to `round`, computed at `version`, is complete. `joined` may turn out
  /// to be late where others decide: known() tells once is_sealed().
  virtual Arrival arrive(RoundNumber round, RoundNumber version, double weight) = 0;

  /// Looks again. True once the round is sealed; what is known() of it is final then. Seals a round
  /// whose grace is over, if it is this referee's to do.
  virtual bool is_sealed(RoundNumber round) = 0;

  /// When is_sealed() should be asked again though nobody rings; 0: no need.
  virtual Nanoseconds wake_at() const { return 0; }

  /// Whether `rank` is known to have arrived in `round`, in which the ledger's words are `seen`.
  virtual bool has_arrived(const RoundLedger& seen, RoundNumber round, int rank) const;

  /// Of a sealed round: the sum of the contributors' weights, with the same bits on every rank.
  virtual double weight() const = 0;
  /// Of a sealed round: whether it is known when each of the contributors arrived.
  virtual bool knows_arrivals() const { return true; }

  /// The ledger as of the last is_sealed().
  const RoundLedger& known() const { return known_; }
  /// When this rank arrived last, on the engine's clock.
  Nanoseconds arrived_at() const { return arrived_at_; }
  /// Whether this rank sealed the round that it arrived in last.
  bool sealed_it() const { return sealed_it_; }

  /// Ranks that are not known to have arrived in `round`, ascending.
  std::vector<int> missing(RoundNumber round) const;
  /// Whether `round` is sealed, and this rank is not in it. Does not change what is known().
  bool is_sealed_without_me(RoundNumber round) const;

 protected:
  /// Copies the words of `round`'s ledger to `words`.
  virtual void read(RoundNumber round, std::uint64_t* words) const = 0;
  void look(RoundNumber round) { read(round, words_.data()); }

  const Policy policy_;
  const int rank_;
  Nanoseconds arrived_at_ = 0;
  bool sealed_it_ = false;

 private:
  std::vector<std::uint64_t> words_;
  RoundLedger known_;
};

/// All ranks share memory: whoever arrives runs the rule on the ledger there, by compare-and-swap.
class LocalReferee final : public Referee {
 public:
  LocalReferee(const Arena& arena, const Policy& policy, int rank, const Clock& clock);

  Arrival arrive(RoundNumber round, RoundNumber version, double weight) override;
  bool is_sealed(RoundNumber round) override;
  Nanoseconds wake_at() const override;
  double weight() const override;

 protected:
  void read(RoundNumber round, std::uint64_t* words) const override;

 private:
  void expire(RoundNumber round);

  const Arena& arena_;
  const Clock& clock_;
};

/// There are other nodes: an arrival is announced to the node's service, which reports it to the
/// coordinator, and copies what that decides to the node's ledger.
class CoordinatedReferee final : public Referee {
 public:
  /// `service` wakes the node's service. With an `engine`, this rank does the service's work.
  CoordinatedReferee(const Arena& arena, const Policy& policy, int rank, const Clock& clock,
                     std::shared_ptr<const Doorbell> service,
                     std::shared_ptr<ProgressEngine> engine);

  Arrival arrive(RoundNumber round, RoundNumber version, double weight) override;
  bool is_sealed(RoundNumber round) override;
  /// The ledger is told of arrivals a little later than the node's ranks are.
  bool has_arrived(const RoundLedger& seen, RoundNumber round, int rank) const override;
  double weight() const override { return known().weight(); }
  /// Of large worlds, seals do not say it.
  bool knows_arrivals() const override;

 protected:
  void read(RoundNumber round, std::uint64_t* words) const override;

 private:
  const Arena& arena_;
  const Clock& clock_;
  std::shared_ptr<const Doorbell> service_;
  std::shared_ptr<ProgressEngine> engine_;
};

/// The referee of a rank of this arena.
std::unique_ptr<Referee> make_referee(const Arena& arena, int rank, const Options& options,
                                      const Clock& clock);

}  // namespace hvd_backup
