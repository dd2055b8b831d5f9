// Layer engine: which ranks are late too often for chance.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "check.hpp"
#include "round/shares.hpp"

using namespace hvd_backup;

namespace {

/// All ranks but the late one.
std::vector<int> without(int world, int late) {
  std::vector<int> ranks;
  for (int rank = 0; rank < world; ++rank) {
    if (rank != late) ranks.push_back(rank);
  }
  return ranks;
}

/// What was found in so many rounds without the rank `late`.
std::vector<LateRank> found_in(Shares& shares, int rounds, int world, int late) {
  std::vector<LateRank> found;
  for (int i = 0; i < rounds; ++i) {
    for (const LateRank& one : shares.add(without(world, late))) found.push_back(one);
  }
  return found;
}

}  // namespace

TEST_CASE("a rank that is in no round is found once, as soon as that is no chance") {
  Shares shares(3, 1);
  const std::vector<LateRank> found = found_in(shares, 20000, 3, 2);
  CHECK_EQ(found.size(), 1u);
  CHECK_EQ(found[0].rank, 2);
  CHECK_EQ(found[0].contributed, 0u);
  CHECK_EQ(found[0].rounds, Shares::kFirst);
}

TEST_CASE("of two ranks one must be away for longer to be found") {
  Shares shares(2, 1);
  const std::vector<LateRank> found = found_in(shares, 100, 2, 0);
  CHECK_EQ(found.size(), 1u);
  CHECK_EQ(found[0].rounds, 2 * Shares::kFirst);
}

TEST_CASE("a rank that falls behind after many good rounds is found") {
  Shares shares(4, 1);
  CHECK(found_in(shares, 100000, 4, -1).empty());
  const std::vector<LateRank> found = found_in(shares, 2 * Shares::kBlock, 4, 1);
  CHECK_EQ(found.size(), 1u);
  CHECK_EQ(found[0].rank, 1);
}

TEST_CASE("ranks that are late by chance are never found") {
  std::mt19937 random(7);
  for (const int world : {2, 3, 5, 16}) {
    for (const int backups : {1, world / 2, world - 1}) {
      Shares shares(world, backups);
      std::vector<int> order(static_cast<std::size_t>(world));
      std::iota(order.begin(), order.end(), 0);
      for (int round = 0; round < 3000; ++round) {
        std::shuffle(order.begin(), order.end(), random);
        CHECK(shares.add({order.begin(), order.end() - backups}).empty());
      }
    }
  }
}

TEST_CASE("a rank with half of its share is not far below chance") {
  Shares shares(4, 1);
  for (int round = 0; round < 5000; ++round) {
    CHECK(shares.add(without(4, round % 8 < 5 ? 3 : -1)).empty());
  }
}

TEST_CASE("a rank is found again if it is much worse much later") {
  Shares shares(3, 1);
  std::vector<LateRank> found;
  const auto run = [&](int rounds, int each) {
    for (int round = 0; round < rounds; ++round) {
      for (const LateRank& one : shares.add(without(3, round % each == 0 ? -1 : 2))) {
        found.push_back(one);
      }
    }
  };
  run(20 * 256, 8);  // an eighth of the rounds
  CHECK_EQ(found.size(), 1u);
  run(20 * 256, 9);  // hardly worse
  CHECK_EQ(found.size(), 1u);
  run(20 * 256, 64);
  CHECK_EQ(found.size(), 2u);
}

TEST_CASE("the binomial tail is that of the tables") {
  CHECK(std::abs(binomial_at_most(0, 10, 0.5) - 1.0 / 1024) < 1e-12);
  CHECK(std::abs(binomial_at_most(3, 10, 0.5) - 176.0 / 1024) < 1e-12);
  CHECK(std::abs(binomial_at_most(256, 256, 0.9) - 1) < 1e-9);
  CHECK(binomial_at_most(0, 256, 0.99) < 1e-300);
}
