#include "round/referee.hpp"

#include <atomic>
#include <utility>

#include "protocol/messages.hpp"
#include "round/waiter.hpp"

namespace hvd_backup {

Referee::Referee(const Policy& policy, int rank)
    : policy_(policy),
      rank_(rank),
      words_(RoundLedger::words(policy.world)),
      known_(policy_, words_.data()) {}

bool Referee::has_arrived(const RoundLedger& seen, RoundNumber round, int rank) const {
  return seen.number() == round && seen.contains(rank);
}

std::vector<int> Referee::missing(RoundNumber round) const {
  std::vector<std::uint64_t> words(RoundLedger::words(policy_.world));
  read(round, words.data());
  const RoundLedger seen(policy_, words.data());
  std::vector<int> ranks;
  for (int rank = 0; rank < policy_.world; ++rank) {
    if (!has_arrived(seen, round, rank)) ranks.push_back(rank);
  }
  return ranks;
}

bool Referee::is_sealed_without_me(RoundNumber round) const {
  std::vector<std::uint64_t> words(RoundLedger::words(policy_.world));
  read(round, words.data());
  const RoundLedger seen(policy_, words.data());
  return seen.number() == round && seen.is_sealed() && !seen.contains(rank_);
}

LocalReferee::LocalReferee(const Arena& arena, const Policy& policy, int rank, const Clock& clock)
    : Referee(policy, rank), arena_(arena), clock_(clock) {}

void LocalReferee::read(RoundNumber round, std::uint64_t* words) const {
  arena_.ledger(round).read(words);
}

Arrival LocalReferee::arrive(RoundNumber round, RoundNumber version, double weight) {
  bool ring = false;
  const Arrival outcome =
      arena_.ledger(round).update(rank_, [&](std::uint64_t* words, bool& modified) {
        RoundLedger ledger(policy_, words);
        if (ledger.number() != round) ledger.open(round);
        const bool was_sealed = ledger.is_sealed();
        // After the arrivals that this one follows: the ledger's times are in their order.
        arrived_at_ = clock_.now();
        arena_.entry(round, rank_).arrived_at.store(arrived_at_, std::memory_order_relaxed);
        const Arrival arrival = ledger.arrive(rank_, version, weight, arrived_at_);
        modified = arrival != Arrival::late || was_sealed != ledger.is_sealed();
        ring = modified && ledger.has_quorum();
        return arrival;
      });
  if (ring) arena_.round(round).bell.ring();
  sealed_it_ = outcome == Arrival::sealed;
  return outcome;
}

bool LocalReferee::is_sealed(RoundNumber round) {
  look(round);
  if (known().number() != round) return false;
  if (known().is_sealed()) return true;
  if (!known().has_quorum() || clock_.now() < known().grace_ends_at()) return false;
  expire(round);
  return is_sealed(round);
}

void LocalReferee::expire(RoundNumber round) {
  const Nanoseconds now = clock_.now();
  const bool sealed = arena_.ledger(round).update(rank_, [&](std::uint64_t* words, bool& modified) {
    return modified = RoundLedger(policy_, words).expire(now);
  });
  if (sealed) arena_.round(round).bell.ring();
  sealed_it_ = sealed_it_ || sealed;
}

Nanoseconds LocalReferee::wake_at() const {
  const bool in_grace = !known().is_sealed() && known().has_quorum();
  return in_grace ? known().grace_ends_at() : 0;
}

// Ascending, as the divisor of the mean is summed: the ledger has added them as they came.
double LocalReferee::weight() const {
  double total = 0;
  for (const int rank : known().contributors()) {
    total += arena_.entry(known().number(), rank).weight.load(std::memory_order_relaxed);
  }
  return total;
}

CoordinatedReferee::CoordinatedReferee(const Arena& arena, const Policy& policy, int rank,
                                       const Clock& clock, std::shared_ptr<const Doorbell> service,
                                       std::shared_ptr<ProgressEngine> engine)
    : Referee(policy, rank),
      arena_(arena),
      clock_(clock),
      service_(std::move(service)),
      engine_(std::move(engine)) {}

void CoordinatedReferee::read(RoundNumber round, std::uint64_t* words) const {
  arena_.ledger(round).read(words);
}

Arrival CoordinatedReferee::arrive(RoundNumber round, RoundNumber /*version*/, double /*weight*/) {
  const bool late = is_sealed_without_me(round);
  arrived_at_ = clock_.now();
  arena_.entry(round, rank_).arrived_at.store(arrived_at_, std::memory_order_relaxed);
  const ProgressTurn turn(engine_.get());
  arena_.member(rank_).arrived.store(round + 1, std::memory_order_release);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // of two at a time, one sees the other
  const bool begins = policy_.needs_every_rank() && arena_.all_arrived(round);
  if (begins) arena_.round(round).bell.ring();
  if (engine_ != nullptr) {
    engine_->run(0);
  } else {
    service_->ring();
  }
  return late ? Arrival::late : Arrival::joined;
}

bool CoordinatedReferee::is_sealed(RoundNumber round) {
  look(round);
  return known().number() == round && known().is_sealed();
}

bool CoordinatedReferee::has_arrived(const RoundLedger& seen, RoundNumber round, int rank) const {
  return Referee::has_arrived(seen, round, rank) || arena_.member(rank).arrived.load() == round + 1;
}

bool CoordinatedReferee::knows_arrivals() const { return policy_.world <= kTellArrivalsUpTo; }

std::unique_ptr<Referee> make_referee(const Arena& arena, int rank, const Options& options,
                                      const Clock& clock) {
  if (!arena.spans_nodes()) {
    return std::make_unique<LocalReferee>(arena, options.policy, rank, clock);
  }
  return std::make_unique<CoordinatedReferee>(arena, options.policy, rank, clock, options.service,
                                              options.progress_engine);
}

}  // namespace hvd_backup
