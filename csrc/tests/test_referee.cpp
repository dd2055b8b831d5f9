// The same cases for every referee: what it decides is the rule's business, not the place's.
#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "check.hpp"
#include "protocol/coordinator.hpp"
#include "protocol/nodes.hpp"
#include "round/collective.hpp"
#include "round/referee.hpp"
#include "world.hpp"

namespace hvd_backup::testing {
namespace {

constexpr Nanoseconds kStart = kSecond;

class SetClock final : public Clock {
 public:
  Nanoseconds now() const override { return now_; }
  void set(Nanoseconds now) { now_ = now; }

 private:
  Nanoseconds now_ = kStart;
};

/// The ledger on plain words: the referee of a simulated world, in one thread and virtual time.
class MemoryReferee final : public Referee {
 public:
  MemoryReferee(std::vector<std::uint64_t>& words, const Policy& policy, int rank,
                const Clock& clock)
      : Referee(policy, rank), shared_(words), clock_(clock) {}

  Arrival arrive(RoundNumber round, RoundNumber version, double weight) override {
    RoundLedger ledger(policy_, shared_.data());
    if (ledger.number() != round) ledger.open(round);
    arrived_at_ = clock_.now();
    const Arrival outcome = ledger.arrive(rank_, version, weight, arrived_at_);
    sealed_it_ = outcome == Arrival::sealed;
    return outcome;
  }
  bool is_sealed(RoundNumber round) override {
    RoundLedger ledger(policy_, shared_.data());
    if (ledger.number() == round) ledger.expire(clock_.now());
    look(round);
    return known().number() == round && known().is_sealed();
  }
  double weight() const override { return known().weight(); }

 protected:
  void read(RoundNumber /*round*/, std::uint64_t* words) const override {
    std::copy(shared_.begin(), shared_.end(), words);
  }

 private:
  std::vector<std::uint64_t>& shared_;
  const Clock& clock_;
};

/// The referees of all ranks of a world, and how what one decides gets to the others.
class Court {
 public:
  explicit Court(const Policy& policy) : policy_(policy) {}
  Court(const Court&) = delete;
  Court& operator=(const Court&) = delete;
  virtual ~Court() = default;

  Referee& operator[](int rank) { return *referees_[static_cast<std::size_t>(rank)]; }
  virtual void write_entry(RoundNumber /*round*/, int /*rank*/, double /*weight*/) {}
  /// Lets news travel.
  virtual void travel() {}

  SetClock clock;

 protected:
  Policy policy_;
  std::vector<std::unique_ptr<Referee>> referees_;
};

class MemoryCourt final : public Court {
 public:
  explicit MemoryCourt(const Policy& policy)
      : Court(policy), words_(RoundLedger::words(policy.world)) {
    for (int rank = 0; rank < policy.world; ++rank) {
      referees_.push_back(std::make_unique<MemoryReferee>(words_, policy_, rank, clock));
    }
  }

 private:
  std::vector<std::uint64_t> words_;
};

/// With an arena per node: one node, or each rank on its own behind a coordinator.
class ArenaCourt final : public Court {
 public:
  ArenaCourt(const Policy& policy, bool is_split) : Court(policy), coordinator_(policy) {
    const int nodes = is_split ? policy.world : 1;
    for (int node = 0; node < nodes; ++node) {
      const ArenaSpec spec =
          Collective::spec(policy, 3, {{DType::float32, 4}}, 64,
                           is_split ? std::vector<int>{node} : std::vector<int>{});
      memory_.emplace_back(Arena::bytes(spec));
      arenas_.push_back(std::make_unique<Arena>(spec, memory_.back().data()));
    }
    bell_.emplace_back(Doorbell::kBytes);
    Options options = calm();
    options.policy = policy;
    options.service = std::make_shared<const Doorbell>(Doorbell::create(bell_.back().data()));
    for (int rank = 0; rank < policy.world; ++rank) {
      referees_.push_back(make_referee(arena(rank), rank, options, clock));
    }
  }

  void write_entry(RoundNumber round, int rank, double weight) override {
    arena(rank).entry(round, rank).weight.store(weight);
  }

  void travel() override {
    if (arenas_.size() == 1) return;
    NodeReport report{coordinator_.open(), {}};
    for (int rank = 0; rank < policy_.world; ++rank) {
      if (arena(rank).member(rank).arrived.load() != report.round + 1) continue;
      const std::vector<int> missing = coordinator_.missing();
      if (std::find(missing.begin(), missing.end(), rank) == missing.end()) continue;
      const Nanoseconds age = clock.now() - arena(rank).entry(report.round, rank).arrived_at.load();
      report.arrivals.push_back({rank, arena(rank).entry(report.round, rank).weight.load(), age});
    }
    const bool sealed = (!report.arrivals.empty() && coordinator_.take(report, clock.now())) ||
                        coordinator_.expire(clock.now());
    if (!sealed) return;
    for (const auto& one : arenas_) {
      one->ledger(report.round).update(0, [&](std::uint64_t* words, bool& /*modified*/) {
        RoundLedger(policy_, words).adopt(coordinator_.seal(), clock.now());
        return true;
      });
    }
  }

 private:
  const Arena& arena(int rank) const {
    return *arenas_[arenas_.size() == 1 ? 0 : static_cast<std::size_t>(rank)];
  }

  std::vector<Memory> memory_;
  std::vector<Memory> bell_;
  std::vector<std::unique_ptr<Arena>> arenas_;
  Coordinator coordinator_;
};

using MakeCourt = std::function<std::unique_ptr<Court>(const Policy&)>;

std::vector<std::pair<const char*, MakeCourt>> courts() {
  return {
      {"in memory", [](const Policy& policy) { return std::make_unique<MemoryCourt>(policy); }},
      {"local", [](const Policy& policy) { return std::make_unique<ArenaCourt>(policy, false); }},
      {"coordinated",
       [](const Policy& policy) { return std::make_unique<ArenaCourt>(policy, true); }},
  };
}

struct Contribution {
  int rank = 0;
  Nanoseconds at = 0;
  double weight = 1;
};

/// The paper's rule, and grace, by hand: who counts of contributions in the order of their times.
std::vector<int> expected(const Policy& policy, const std::vector<Contribution>& order) {
  std::vector<int> ranks;
  const auto quorum = static_cast<std::size_t>(policy.quorum);
  const Nanoseconds ends = order[quorum - 1].at + policy.grace;
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (i < quorum || order[i].at < ends) ranks.push_back(order[i].rank);
  }
  std::sort(ranks.begin(), ranks.end());
  return ranks;
}

std::vector<Contribution> in_random_order(int world, std::mt19937_64& random) {
  std::vector<Contribution> order;
  for (int rank = 0; rank < world; ++rank) {
    order.push_back({rank, 0, std::vector<double>{0, 0.5, 1, 3}[random() % 4]});
  }
  std::shuffle(order.begin(), order.end(), random);
  for (std::size_t i = 0; i < order.size(); ++i) {
    order[i].at =
        kStart + static_cast<Nanoseconds>(i) * 10 + static_cast<Nanoseconds>(random() % 9);
  }
  return order;
}

/// One round in which all contribute; checks what every rank is told.
void play(Court& court, const Policy& policy, RoundNumber round, std::vector<Contribution> order,
          const char* kind) {
  const Nanoseconds base = court.clock.now() - kStart;
  for (Contribution& one : order) one.at += base;
  for (const Contribution& one : order) {
    court.clock.set(one.at);
    court.travel();
    for (int rank = 0; rank < policy.world; ++rank) court[rank].is_sealed(round);
    court.write_entry(round, one.rank, one.weight);
    court[one.rank].arrive(round, round, one.weight);
    court.travel();
  }
  court.clock.set(order.back().at + policy.grace + 1);
  court.travel();
  const std::vector<int> right = expected(policy, order);
  double weight = 0;
  for (const Contribution& one : order) {
    if (std::binary_search(right.begin(), right.end(), one.rank)) weight += one.weight;
  }
  for (int rank = 0; rank < policy.world; ++rank) {
    INFO(kind, " rank ", rank, " of ", policy.world, ", quorum ", policy.quorum, ", round ", round);
    const bool late = !std::binary_search(right.begin(), right.end(), rank);
    REQUIRE(court[rank].is_sealed(round));
    CHECK_EQ(court[rank].known().contributors(), right);
    CHECK_EQ(court[rank].weight(), weight);
    CHECK_EQ(court[rank].is_sealed_without_me(round), late);
    CHECK_EQ(court[rank].wake_at(), 0);
  }
}

}  // namespace

TEST_CASE("every referee counts the first of the quorum, and who comes within the grace") {
  std::mt19937_64 random(5);
  for (const auto& [kind, make] : courts()) {
    for (const int world : {1, 2, 3, 4, 5, 7}) {
      for (int backups = 0; backups < world; ++backups) {
        for (const Nanoseconds grace : {0, 25}) {
          const Policy policy = backup_workers(world, backups, grace);
          const std::unique_ptr<Court> court = make(policy);
          for (RoundNumber round = 0; round < 3; ++round) {
            play(*court, policy, round, in_random_order(world, random), kind);
          }
        }
      }
    }
  }
}

TEST_CASE("before the quorum every referee names the ranks that are missing") {
  for (const auto& [kind, make] : courts()) {
    INFO(kind);
    const Policy policy = backup_workers(5, 1);
    const std::unique_ptr<Court> court = make(policy);
    for (const int rank : {3, 1}) {
      court->write_entry(0, rank, 1);
      CHECK(((*court)[rank].arrive(0, 0, 1) == Arrival::joined));
      CHECK(!(*court)[rank].sealed_it());
    }
    CHECK(!(*court)[0].is_sealed(0));
    CHECK(!(*court)[0].is_sealed_without_me(0));
    const std::vector<int> by_itself = (*court)[3].missing(0);
    CHECK((std::find(by_itself.begin(), by_itself.end(), 3) == by_itself.end()));
    CHECK_EQ(by_itself.size(), kind == std::string("coordinated") ? 4 : 3);
  }
}

}  // namespace hvd_backup::testing
