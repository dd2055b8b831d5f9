// Layer protocol: the coordinator of several nodes, and what it exchanges with them.
#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "protocol/coordinator.hpp"

using namespace hvd_backup;

namespace {

constexpr int kWorlds[] = {1, 2, 3, 4, 5, 7, 64, 65, 1024, 1025};

NodeReport report(RoundNumber round, const std::vector<int>& ranks) {
  NodeReport all{round, {}};
  for (const int rank : ranks) all.arrivals.push_back({rank, 1, 0});
  return all;
}

std::vector<int> in_random_order(int world, std::mt19937& random) {
  std::vector<int> ranks(static_cast<std::size_t>(world));
  std::iota(ranks.begin(), ranks.end(), 0);
  std::shuffle(ranks.begin(), ranks.end(), random);
  return ranks;
}

/// What a message looks like at the other end.
Seal sent(const Seal& seal, int world) {
  const std::vector<std::byte> bytes = encode(seal, world);
  return decode_seal(bytes.data(), bytes.size(), world);
}

NodeReport sent(const NodeReport& original, int world) {
  const std::vector<std::byte> bytes = encode(original);
  return decode_report(bytes.data(), bytes.size(), world);
}

}  // namespace

TEST_CASE("the reports that complete the quorum seal the round, whatever the order of the ranks") {
  std::mt19937 random(1);
  for (const int world : kWorlds) {
    for (const int backups : {0, 1, world / 3, world - 1}) {
      if (backups >= world) continue;
      Coordinator coordinator(backup_workers(world, backups));
      for (RoundNumber round = 0; round < 3; ++round) {
        const std::vector<int> order = in_random_order(world, random);
        std::vector<int> first(order.begin(), order.end() - backups);
        std::size_t at = 0;
        bool sealed = false;
        while (at < order.size()) {  // nodes report one to three ranks at a time
          const std::size_t n = std::min<std::size_t>(1 + random() % 3, order.size() - at);
          const std::vector<int> some(order.begin() + static_cast<std::ptrdiff_t>(at),
                                      order.begin() + static_cast<std::ptrdiff_t>(at + n));
          const NodeReport next = sent(report(round, some), world);
          const bool now = coordinator.take(next, static_cast<Nanoseconds>(at));
          CHECK(!(sealed && now));
          sealed = sealed || now;
          at += n;
        }
        REQUIRE(sealed);
        const Seal seal = sent(coordinator.seal(), world);
        CHECK_EQ(seal.round, round);
        CHECK_EQ(seal.contributors.size(), static_cast<std::size_t>(world - backups));
        CHECK_EQ(seal.weight, static_cast<double>(world - backups));
        CHECK(std::is_sorted(seal.contributors.begin(), seal.contributors.end()));
        if (backups == 0) {
          std::sort(first.begin(), first.end());
          CHECK_EQ(seal.contributors, first);
        }
        CHECK_EQ(seal.offsets.size(), world <= kTellArrivalsUpTo ? seal.contributors.size() : 0);
        CHECK_EQ(coordinator.open(), round + 1);
      }
    }
  }
}

TEST_CASE("of one report, those that arrived first count") {
  Coordinator coordinator(backup_workers(4, 2));
  NodeReport all{0, {{0, 1, 10}, {1, 2, 40}, {2, 4, 20}, {3, 8, 30}}};
  CHECK(coordinator.take(all, 100));
  CHECK_EQ(coordinator.seal().contributors, std::vector<int>({1, 3}));
  CHECK_EQ(coordinator.seal().weight, 10.0);
  CHECK_EQ(coordinator.seal().offsets, std::vector<Nanoseconds>({0, 10}));
  CHECK_EQ(coordinator.seal().open_for, 40);
}

TEST_CASE("a report for a round that is sealed changes nothing, one for the future is refused") {
  Coordinator coordinator(backup_workers(3, 1));
  CHECK(coordinator.take(report(0, {0, 1}), 1));
  CHECK(!coordinator.take(report(0, {2}), 2));
  CHECK_EQ(coordinator.missing(), std::vector<int>({0, 1, 2}));
  CHECK_THROWS_WITH_AS(coordinator.take(report(2, {0}), 3),
                       doctest::Contains("round 2, but the open round is 1"), InvalidArgument);
  CHECK(!coordinator.take(report(1, {2}), 4));
  CHECK(!coordinator.take(report(1, {2}), 5));  // told twice
  CHECK_EQ(coordinator.missing(), std::vector<int>({0, 1}));
  CHECK(coordinator.take(report(1, {0}), 6));
  CHECK_EQ(coordinator.seal().contributors, std::vector<int>({0, 2}));
}

TEST_CASE("with grace a round is sealed by the last rank or at the end of the grace") {
  Coordinator coordinator(backup_workers(3, 1, 100));
  CHECK_EQ(coordinator.wake_at(), 0);
  CHECK(!coordinator.take(report(0, {0, 1}), 10));
  CHECK_EQ(coordinator.wake_at(), 110);
  CHECK(!coordinator.expire(109));
  CHECK(coordinator.expire(110));
  CHECK_EQ(coordinator.seal().contributors, std::vector<int>({0, 1}));
  CHECK(!coordinator.take(report(1, {0, 1}), 200));
  CHECK(coordinator.take(report(1, {2}), 250));
  CHECK_EQ(coordinator.seal().contributors, std::vector<int>({0, 1, 2}));
  CHECK_EQ(coordinator.wake_at(), 0);
}

TEST_CASE("a grace that ended before a report came closes the round without it") {
  Coordinator coordinator(backup_workers(3, 1, 100));
  CHECK(!coordinator.take(report(0, {0, 1}), 10));
  CHECK(coordinator.take(report(0, {2}), 500));
  CHECK_EQ(coordinator.seal().contributors, std::vector<int>({0, 1}));
}

TEST_CASE("a coordinator refuses policies that do not run in lockstep") {
  CHECK_THROWS_WITH_AS(Coordinator(async(3)), doctest::Contains("lockstep"), InvalidArgument);
  CHECK_THROWS_WITH_AS(Coordinator(softsync(3, 2)), doctest::Contains("lockstep"), InvalidArgument);
}

TEST_CASE("messages that no node could have sent are refused") {
  const auto decode = [](const std::vector<std::byte>& bytes, int world) {
    return decode_report(bytes.data(), bytes.size(), world);
  };
  CHECK_THROWS_WITH_AS(decode(encode(report(0, {3})), 3),
                       doctest::Contains("rank 3 in a world of 3"), InvalidMessage);
  CHECK_THROWS_WITH_AS(decode(encode(report(0, {-1})), 3), doctest::Contains("rank -1"),
                       InvalidMessage);
  CHECK_THROWS_WITH_AS(decode(encode(NodeReport{0, {{0, -1, 0}}}), 3), doctest::Contains("weight"),
                       InvalidMessage);
  CHECK_THROWS_WITH_AS(decode(encode(NodeReport{0, {{0, 1, -5}}}), 3), doctest::Contains("to come"),
                       InvalidMessage);
  const std::vector<std::byte> seal = encode(Seal{0, 2, 0, {0, 2}, {0, 0}}, 3);
  CHECK_THROWS_WITH_AS(decode_seal(seal.data(), seal.size(), 2), doctest::Contains("contributor 2"),
                       InvalidMessage);
  CHECK_THROWS_WITH_AS(decode_seal(seal.data(), seal.size() - 1, 3), doctest::Contains("too early"),
                       InvalidMessage);
  std::vector<std::byte> longer = seal;
  longer.resize(longer.size() + 4);
  CHECK_THROWS_WITH_AS(decode_seal(longer.data(), longer.size(), 3),
                       doctest::Contains("4 bytes too"), InvalidMessage);
  const std::vector<std::byte> empty = encode(Seal{0, 2, 0, {}, {}}, 3);
  CHECK_THROWS_WITH_AS(decode_seal(empty.data(), empty.size(), 3),
                       doctest::Contains("contributors"), InvalidMessage);
}

TEST_CASE("rubbish is decoded to something possible, or refused") {
  std::mt19937 random(7);
  int refused = 0;
  for (int turn = 0; turn < 20000; ++turn) {
    std::vector<std::byte> bytes(random() % 80);
    for (std::byte& one : bytes) one = static_cast<std::byte>(random() % 3 == 0 ? random() : 0);
    try {
      const NodeReport decoded = decode_report(bytes.data(), bytes.size(), 5);
      for (const ReportedArrival& arrival : decoded.arrivals) CHECK(arrival.weight >= 0);
    } catch (const InvalidMessage&) {
      ++refused;
    }
    try {
      const Seal decoded = decode_seal(bytes.data(), bytes.size(), 5);
      CHECK_EQ(decoded.offsets.size(), decoded.contributors.size());
      CHECK(!decoded.contributors.empty());
    } catch (const InvalidMessage&) {
      ++refused;
    }
  }
  CHECK(refused > 20000);
}
