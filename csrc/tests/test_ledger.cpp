// Layer protocol: who counts for which round, compared with a model written another way.
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "protocol/policy.hpp"
#include "protocol/round_ledger.hpp"

using namespace hvd_backup;

namespace {

constexpr int kWorlds[] = {1, 2, 3, 4, 5, 7, 64, 65, 200};

/// A ledger over words of its own.
struct Book {
  explicit Book(const Policy& policy)
      : words(RoundLedger::words(policy.world)), ledger(policy, words.data()) {}

  std::vector<std::uint64_t> words;
  RoundLedger ledger;
};

/// The rule as the design states it, with a map for the contributions and nothing packed.
struct Model {
  Policy policy;
  RoundNumber number = 0;
  std::map<int, double> in = {};  // rank -> weight
  Nanoseconds first_at = 0;
  std::optional<Nanoseconds> quorum_at = {};
  std::optional<Nanoseconds> sealed_at = {};

  void close_if_due(Nanoseconds now) {
    if (sealed_at || !quorum_at) return;
    const bool everybody = in.size() == static_cast<std::size_t>(policy.world);
    if (everybody || now >= *quorum_at + policy.grace) sealed_at = now;
  }

  Arrival arrive(int rank, RoundNumber version, double weight, Nanoseconds now) {
    close_if_due(now);
    const bool stale = version < number && number - version > policy.max_staleness;
    if (sealed_at || stale || in.count(rank) != 0) return Arrival::late;
    if (in.empty()) first_at = now;
    in[rank] = weight;
    if (in.size() == static_cast<std::size_t>(policy.quorum)) quorum_at = now;
    close_if_due(now);
    return sealed_at ? Arrival::sealed : Arrival::joined;
  }

  std::vector<int> contributors() const {
    std::vector<int> ranks;
    for (const auto& [rank, weight] : in) ranks.push_back(rank);
    return ranks;
  }

  double weight() const {
    double total = 0;
    for (const auto& [rank, weight] : in) total += weight;
    return total;
  }
};

void compare(const RoundLedger& ledger, const Model& model) {
  CHECK_EQ(ledger.number(), model.number);
  CHECK_EQ(ledger.is_sealed(), model.sealed_at.has_value());
  CHECK_EQ(ledger.count(), model.in.size());
  CHECK_EQ(ledger.has_quorum(), model.quorum_at.has_value());
  CHECK_EQ(ledger.contributors(), model.contributors());
  CHECK_EQ(ledger.weight(), model.weight());
  for (int rank = 0; rank < model.policy.world; ++rank) {
    CHECK_EQ(ledger.contains(rank), model.in.count(rank) != 0);
  }
  if (!model.in.empty()) CHECK_EQ(ledger.first_at(), model.first_at);
  if (model.quorum_at) CHECK_EQ(ledger.grace_ends_at(), *model.quorum_at + model.policy.grace);
  if (model.sealed_at) CHECK_EQ(ledger.sealed_at(), *model.sealed_at);
}

/// Random arrivals, duplicates, stale versions and pauses over `steps` events.
void drive(const Policy& policy, std::uint64_t seed, int steps) {
  std::mt19937_64 random(seed);
  const auto below = [&random](std::uint64_t n) { return random() % n; };
  Book book(policy);
  Model model{policy};
  Nanoseconds now = 1000;
  for (int step = 0; step < steps; ++step) {
    if (below(3) != 0) now += static_cast<Nanoseconds>(below(20));
    if (below(8) == 0) {
      const bool was_sealed = model.sealed_at.has_value();
      model.close_if_due(now);
      CHECK_EQ(book.ledger.expire(now), !was_sealed && model.sealed_at.has_value());
    } else {
      const int rank = static_cast<int>(below(static_cast<std::uint64_t>(policy.world)));
      const RoundNumber lag = below(2) == 0 ? 0 : below(6);
      const RoundNumber version = model.number - std::min(lag, model.number);
      const double weight = static_cast<double>(below(9)) / 4;  // exact in any order
      CHECK_EQ(book.ledger.arrive(rank, version, weight, now),
               model.arrive(rank, version, weight, now));
    }
    compare(book.ledger, model);
    if (model.sealed_at && below(3) == 0) {
      model = Model{policy, model.number + 1 + below(2)};
      book.ledger.open(model.number);
    }
  }
}

/// A policy of each of the six systems in the design's table, for a world.
std::map<std::string, Policy> systems(int world) {
  const int backups = (world - 1) / 2;
  return {
      {"full sync", full_sync(world)},
      {"backup workers", backup_workers(world, backups)},
      {"backup workers with grace", backup_workers(world, backups, 30)},
      {"softsync", softsync(world, (world + 1) / 2)},
      {"async", async(world)},
      {"async with cut-off", async(world, 2)},
  };
}

/// The contributors of the rounds that these arrivals, each (rank, version), seal one by one.
using Arrivals = std::vector<std::pair<int, RoundNumber>>;

std::vector<std::vector<int>> rounds_of(const Policy& policy, const Arrivals& arrivals) {
  Book book(policy);
  std::vector<std::vector<int>> rounds;
  Nanoseconds now = 0;
  for (const auto& [rank, version] : arrivals) {
    if (book.ledger.arrive(rank, version, 1, ++now) != Arrival::sealed) continue;
    rounds.push_back(book.ledger.contributors());
    book.ledger.open(book.ledger.number() + 1);
  }
  return rounds;
}

using Rounds = std::vector<std::vector<int>>;

}  // namespace

TEST_CASE("the ledger follows the rule in each of the six systems, whatever arrives") {
  for (const int world : kWorlds) {
    const int steps = world > 10 ? 1500 : 3000;
    for (const auto& [name, policy] : systems(world)) {
      drive(policy, static_cast<std::uint64_t>(world), steps);
    }
  }
}

TEST_CASE("the ledger follows the rule for every quorum, staleness and grace of a small world") {
  for (int world = 1; world <= 5; ++world) {
    for (int quorum = 1; quorum <= world; ++quorum) {
      for (const std::uint64_t staleness : {std::uint64_t{0}, std::uint64_t{1}, kUnbounded}) {
        for (const Nanoseconds grace : {0, 1, 25, 1000}) {
          drive({world, quorum, staleness, staleness == 0, grace}, 17, 400);
        }
      }
    }
  }
}

TEST_CASE("one sequence of arrivals makes six systems of distributed training") {
  // Rank 3 is slow: it works at version 0 until the others have seen three rounds.
  const Arrivals lockstep{{0, 0}, {1, 0}, {2, 0}, {3, 0}};
  CHECK_EQ(rounds_of(full_sync(4), lockstep), Rounds({{0, 1, 2, 3}}));
  CHECK_EQ(
      rounds_of(backup_workers(4, 1), {{2, 0}, {0, 0}, {1, 0}, {3, 0}, {3, 1}, {1, 1}, {0, 1}}),
      Rounds({{0, 1, 2}, {0, 1, 3}}));
  const Arrivals free{{0, 0}, {1, 0}, {0, 1}, {2, 1}, {1, 2}, {3, 0}, {0, 3}};
  CHECK_EQ(rounds_of(softsync(4, 2), free), Rounds({{0, 1}, {0, 2}, {1, 3}}));
  const Arrivals one_by_one{{0, 0}, {1, 0}, {2, 1}, {3, 0}, {0, 4}};
  CHECK_EQ(rounds_of(async(4), one_by_one), Rounds({{0}, {1}, {2}, {3}, {0}}));
  CHECK_EQ(rounds_of(async(4, 2), {{0, 0}, {1, 0}, {2, 1}, {3, 0}, {0, 3}}),
           Rounds({{0}, {1}, {2}, {0}}));
}

TEST_CASE("a round is sealed by the arrival that completes the quorum, and by none before") {
  for (const int world : kWorlds) {
    for (const int quorum : {1, (world + 1) / 2, world}) {
      Book book(backup_workers(world, world - quorum));
      for (int i = 0; i < world; ++i) {
        const int rank = world - 1 - i;  // from the last word of the set to the first
        const Arrival expected = i + 1 < quorum    ? Arrival::joined
                                 : i + 1 == quorum ? Arrival::sealed
                                                   : Arrival::late;
        CHECK_EQ(book.ledger.arrive(rank, 0, 1, i), expected);
      }
      CHECK_EQ(book.ledger.contributors().size(), quorum);
      CHECK_EQ(book.ledger.contributors().back(), world - 1);
      CHECK_EQ(book.ledger.sealed_at(), quorum - 1);
    }
  }
}

TEST_CASE("a rank counts once in a round, even if it arrives twice") {
  Book book(backup_workers(4, 1));
  CHECK_EQ(book.ledger.arrive(2, 0, 5, 10), Arrival::joined);
  CHECK_EQ(book.ledger.arrive(2, 0, 7, 11), Arrival::late);
  CHECK_EQ(book.ledger.count(), 1);
  CHECK_EQ(book.ledger.weight(), 5.0);
  CHECK_EQ(book.ledger.first_at(), 10);
}

TEST_CASE("a contribution that is too stale is late, the oldest that may count is not") {
  for (const std::uint64_t staleness : {0U, 1U, 5U}) {
    Book book(async(3, staleness));
    book.ledger.open(9);
    CHECK_EQ(book.ledger.arrive(0, 9 - staleness - 1, 1, 0), Arrival::late);
    CHECK_EQ(book.ledger.arrive(0, 9 - staleness, 1, 0), Arrival::sealed);
  }
  Book book(async(3));
  book.ledger.open(kUnbounded - 1);
  CHECK_EQ(book.ledger.arrive(0, 0, 1, 0), Arrival::sealed);
}

TEST_CASE("opening a round forgets all of the one before") {
  for (const int world : kWorlds) {
    Book book(full_sync(world));
    for (int rank = 0; rank < world; ++rank) book.ledger.arrive(rank, 0, 2, 5);
    CHECK(book.ledger.is_sealed());
    book.ledger.open(1);
    compare(book.ledger, Model{full_sync(world), 1});
  }
}

TEST_CASE("the weight of a round is the sum of its contributors' weights alone") {
  Book book(backup_workers(3, 1));
  book.ledger.arrive(0, 0, 0.25, 0);
  book.ledger.arrive(2, 0, 32, 0);
  book.ledger.arrive(1, 0, 1000, 0);
  CHECK_EQ(book.ledger.weight(), 32.25);
}

TEST_CASE("grace keeps a round open after its quorum, and ends at its last nanosecond") {
  for (const Nanoseconds at : {149, 150, 151}) {
    Book book(backup_workers(4, 2, 50));
    CHECK_EQ(book.ledger.arrive(0, 0, 1, 90), Arrival::joined);
    CHECK_EQ(book.ledger.arrive(1, 0, 1, 100), Arrival::joined);
    CHECK(!book.ledger.is_sealed());
    CHECK_EQ(book.ledger.grace_ends_at(), 150);
    const Arrival third = book.ledger.arrive(2, 0, 1, at);
    CHECK_EQ(third, at < 150 ? Arrival::joined : Arrival::late);
    CHECK_EQ(book.ledger.is_sealed(), at >= 150);
    CHECK_EQ(book.ledger.count(), at < 150 ? 3 : 2);
    if (at >= 150) CHECK_EQ(book.ledger.sealed_at(), at);
  }
}

TEST_CASE("grace begins with the quorum, and no later arrival prolongs it") {
  Book book(backup_workers(5, 3, 50));
  book.ledger.arrive(0, 0, 1, 0);
  CHECK(!book.ledger.expire(1000));  // no quorum: nothing to end
  book.ledger.arrive(1, 0, 1, 1000);
  book.ledger.arrive(2, 0, 1, 1049);
  CHECK_EQ(book.ledger.grace_ends_at(), 1050);
  CHECK(book.ledger.expire(1050));
  CHECK_EQ(book.ledger.contributors(), std::vector<int>({0, 1, 2}));
}

TEST_CASE("a round with grace is sealed at once when everybody is in") {
  Book book(backup_workers(3, 1, kSecond));
  book.ledger.arrive(0, 0, 1, 1);
  book.ledger.arrive(1, 0, 1, 2);
  CHECK_EQ(book.ledger.arrive(2, 0, 1, 3), Arrival::sealed);
  CHECK_EQ(book.ledger.sealed_at(), 3);
}

TEST_CASE("time seals a round once: to ask again changes nothing") {
  Book book(backup_workers(3, 1, 10));
  book.ledger.arrive(0, 0, 1, 1);
  book.ledger.arrive(1, 0, 1, 2);
  CHECK(!book.ledger.expire(11));
  CHECK(book.ledger.expire(12));
  const std::vector<std::uint64_t> words = book.words;
  CHECK(!book.ledger.expire(12));
  CHECK(!book.ledger.expire(99));
  CHECK_EQ(book.words, words);
}

TEST_CASE("the words of a ledger are its whole state") {
  const Policy policy = backup_workers(65, 3, 10);
  Book book(policy);
  for (int rank = 64; rank >= 3; --rank) book.ledger.arrive(rank, 0, 1.5, rank);
  std::vector<std::uint64_t> words = book.words;
  RoundLedger other(policy, words.data());
  CHECK_EQ(other.contributors(), book.ledger.contributors());
  CHECK_EQ(other.grace_ends_at(), book.ledger.grace_ends_at());
  CHECK_EQ(RoundLedger::words(64) + 1, RoundLedger::words(65));
  CHECK_EQ(RoundLedger::words(1), RoundLedger::words(64));
}

TEST_CASE("a contribution that cannot be is refused with its numbers, and changes nothing") {
  Book book(backup_workers(4, 1));
  book.ledger.open(6);
  const std::vector<std::uint64_t> words = book.words;
  CHECK_THROWS_WITH_AS(book.ledger.arrive(4, 6, 1, 0),
                       doctest::Contains("rank 4 is not in a world of 4"), InvalidArgument);
  CHECK_THROWS_WITH_AS(book.ledger.arrive(-1, 6, 1, 0), doctest::Contains("rank -1"),
                       InvalidArgument);
  CHECK_THROWS_WITH_AS(
      book.ledger.arrive(3, 7, 1, 0),
      doctest::Contains("rank 3 contributes at version 7, but the open round is 6"),
      InvalidArgument);
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double weight : {-1.0, infinity, -infinity, std::nan("")}) {
    const std::string refusal = "finite and not negative, not " + std::to_string(weight);
    CHECK_THROWS_WITH_AS(book.ledger.arrive(0, 6, weight, 0), doctest::Contains(refusal.c_str()),
                         InvalidArgument);
  }
  CHECK_EQ(book.words, words);
}

TEST_CASE("a policy that no world can follow is refused with its numbers") {
  CHECK_THROWS_WITH_AS(full_sync(0), doctest::Contains("at least 1 rank, not 0"), InvalidArgument);
  CHECK_THROWS_WITH_AS(
      backup_workers(4, 4),
      doctest::Contains("backup_workers=4 leaves a quorum of 0 in a world of 4 ranks; use 0 <= "
                        "backup_workers <= 3"),
      InvalidArgument);
  CHECK_THROWS_WITH_AS(backup_workers(4, -1), doctest::Contains("backup_workers=-1"),
                       InvalidArgument);
  CHECK_THROWS_WITH_AS(backup_workers(4, 1, -5), doctest::Contains("grace"), InvalidArgument);
  CHECK_THROWS_WITH_AS(softsync(3, 4), doctest::Contains("quorum of 4 in a world of 3"),
                       InvalidArgument);
  CHECK_THROWS_AS(async(0), InvalidArgument);
}
