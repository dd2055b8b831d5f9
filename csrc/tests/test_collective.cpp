// Layer engine: what a collective gives when nothing fails.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "world.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

constexpr int kWorlds[] = {1, 2, 3, 4, 5, 7};

/// Every rank of a world by a thread of its own, `rounds` rounds; returns [rank][round].
std::vector<std::vector<RoundReport>> run(World& world, int rounds) {
  std::vector<std::vector<RoundReport>> reports(static_cast<std::size_t>(world.size()));
  check::in_threads(world.size(), [&](int rank) {
    for (int i = 0; i < rounds; ++i) {
      const bool in_time = world.arrive(rank);
      const RoundReport report = world.finish(rank);
      CHECK_EQ(report.number, i);
      CHECK_EQ(report.contributed, in_time);
      reports[static_cast<std::size_t>(rank)].push_back(report);
    }
  });
  return reports;
}

void check_same(const std::vector<std::vector<RoundReport>>& reports) {
  for (const std::vector<RoundReport>& mine : reports) {
    REQUIRE(mine.size() == reports[0].size());
    for (std::size_t i = 0; i < mine.size(); ++i) {
      CHECK_EQ(mine[i].contributors, reports[0][i].contributors);
      CHECK_EQ(mine[i].arrived_at, reports[0][i].arrived_at);
      CHECK_EQ(mine[i].weight, reports[0][i].weight);
      CHECK_EQ(mine[i].first_at, reports[0][i].first_at);
      CHECK_EQ(mine[i].sealed_at, reports[0][i].sealed_at);
      const auto [first, last] =
          std::minmax_element(mine[i].arrived_at.begin(), mine[i].arrived_at.end());
      CHECK_EQ(*first, mine[i].first_at);
      CHECK(*last <= mine[i].sealed_at);
    }
  }
}

/// Time goes on, and something happens, between one reading and what is done with it.
class InterruptedClock final : public Clock {
 public:
  Nanoseconds now() const override {
    const Nanoseconds read = now_;
    if (after_reading) std::exchange(after_reading, nullptr)();
    return read;
  }
  void advance(Nanoseconds by) const { now_ += by; }

  mutable std::function<void()> after_reading;

 private:
  mutable Nanoseconds now_ = kSecond;
};

}  // namespace

TEST_CASE("every rank gets the same bits, the mean of the contributors, for every world and b") {
  for (const int size : kWorlds) {
    for (int backups = 0; backups < size; ++backups) {
      World world(backup_workers(size, backups));
      check_same(run(world, 12));
    }
  }
}

TEST_CASE("a round may have a window of one result, and chunks of one cache line") {
  Setup setup;
  setup.window = 1;
  setup.chunk_bytes = 64;
  World world(backup_workers(4, 1), setup);
  check_same(run(world, 40));
}

TEST_CASE("flats of several dtypes and sizes, empty ones among them, go in one round") {
  Setup setup;
  setup.flats = {{DType::float16, 1000},
                 {DType::float64, 33},
                 {DType::float32, 0},
                 {DType::bfloat16, 1},
                 {DType::float32, 4097}};
  World world(backup_workers(4, 2), setup);
  check_same(run(world, 10));
}

TEST_CASE("a round without any element is a round all the same") {
  Setup setup;
  setup.flats = {};
  World world(backup_workers(3, 1), setup);
  check_same(run(world, 5));
}

TEST_CASE("contributions count as much as their weights say") {
  Setup setup;
  setup.weight = [](int rank, RoundNumber round) {
    return 0.5 + rank + static_cast<double>(round % 3) / 3;
  };
  World world(backup_workers(5, 2), setup);
  check_same(run(world, 12));
}

TEST_CASE("the contributors finish alone, and a late rank gets the same bits rounds later") {
  World world(backup_workers(3, 1), with_window(5));
  for (int i = 0; i < 5; ++i) world.round({1, 0});
  for (int i = 0; i < 5; ++i) {
    CHECK(world[2].sealed_without_me());
    CHECK(!world.arrive(2));
    const RoundReport report = world.finish(2);
    CHECK_EQ(report.number, i);
    CHECK(!report.contributed);
    CHECK_EQ(report.contributors, std::vector<int>({0, 1}));
  }
  CHECK(!world[2].sealed_without_me());
  CHECK(world.arrive(2));  // it has caught up
  CHECK(world.arrive(0));
  CHECK(!world.arrive(1));
  for (const int rank : {0, 1, 2}) {
    CHECK_EQ(world.finish(rank).contributors, std::vector<int>({0, 2}));
  }
}

TEST_CASE("who skips a sealed round goes through it, and contributes to the next") {
  World world(backup_workers(3, 1));
  world.round({0, 1});
  CHECK_EQ(world[2].number(), 0);
  world.skip(2);
  const RoundReport report = world.finish(2);
  CHECK(!report.contributed);
  CHECK_EQ(report.my_arrival_at, 0);
  CHECK_EQ(world[2].number(), 1);
  CHECK(world.arrive(2));
  CHECK(world.arrive(1));
  for (const int rank : {2, 1}) CHECK_EQ(world.finish(rank).contributors, std::vector<int>({1, 2}));
}

TEST_CASE("a rank is told that the round is sealed without it, and only then") {
  World world(backup_workers(3, 1));
  CHECK(!world[2].sealed_without_me());
  world.arrive(0);
  CHECK(!world[0].sealed_without_me());
  CHECK(!world[2].sealed_without_me());
  world.arrive(1);
  CHECK(world[2].sealed_without_me());
  CHECK(!world[1].sealed_without_me());
  world.finish(0);
  CHECK(!world[0].sealed_without_me());  // its next round is open
  world.skip(2);
  CHECK(!world[2].sealed_without_me());  // it is in the round already, on its way out
  world.finish(2);
  CHECK(!world[2].sealed_without_me());
}

TEST_CASE("the reports give the times of the arrivals and of the seal on the engine's clock") {
  WatchedClock clock;
  Setup setup;
  setup.clock = [&clock](int) -> const Clock& { return clock; };
  World world(backup_workers(3, 1), setup);
  clock.advance(5);
  const Nanoseconds start = clock.now();
  world.arrive(2);
  clock.advance(7);
  world.arrive(0);
  clock.advance(100);
  world.arrive(1);
  world.finish(0);
  const RoundReport report = world.finish(1);
  CHECK_EQ(report.my_arrival_at, start + 107);
  CHECK_EQ(report.first_at, start);
  CHECK_EQ(report.sealed_at, start + 7);
  CHECK_EQ(report.arrived_at, std::vector<Nanoseconds>({start + 7, start}));
  CHECK_EQ(report.waited, 0);
  CHECK_EQ(report.waited_for_window, 0);
}

TEST_CASE("a rank that is overtaken between its clock and the round arrives after who overtook") {
  InterruptedClock clock;
  Setup setup;
  setup.clock = [&clock](int) -> const Clock& { return clock; };
  World world(backup_workers(3, 1), setup);
  // At one after another of its readings of the clock, of which it arrives with one.
  for (int skipped = 0;; ++skipped) {
    int readings = skipped;
    std::function<void()> overtake = [&] {
      if (readings-- > 0) {
        clock.after_reading = overtake;
        return;
      }
      clock.advance(5);
      world.arrive(1);
    };
    clock.after_reading = overtake;
    world.arrive(0);
    clock.after_reading = nullptr;
    if (readings >= 0) {
      CHECK(skipped > 0);
      break;  // it reads it no more often
    }
    const RoundReport report = world.finish(0);
    CHECK_EQ(report.first_at, std::min(report.arrived_at[0], report.arrived_at[1]));
    CHECK(std::max(report.arrived_at[0], report.arrived_at[1]) <= report.sealed_at);
    world.finish(1);
    world.arrive(2);
    world.finish(2);
  }
}

TEST_CASE("the report tells the wait for the window from the wait for the others") {
  World world(backup_workers(2, 1), with_window(1));
  check::in_threads(2, [&](int rank) {
    if (rank == 1) std::this_thread::sleep_for(std::chrono::milliseconds(30));
    for (int i = 0; i < 3; ++i) {
      world.arrive(rank);
      const RoundReport report = world.finish(rank);
      CHECK(report.waited >= report.waited_for_window);
      if (rank == 0 && i == 2) CHECK(report.waited_for_window >= 20 * kMillisecond);
      if (rank == 1 || i < 2) CHECK(report.waited_for_window < 20 * kMillisecond);
    }
  });
}

TEST_CASE("who is missing in a round, and how far each rank is, can be asked at any time") {
  World world(backup_workers(3, 1));
  CHECK_EQ(world[0].missing(), std::vector<int>({0, 1, 2}));
  world.arrive(2);
  CHECK_EQ(world[0].missing(), std::vector<int>({0, 1}));
  CHECK_EQ(world[2].missing(), std::vector<int>({0, 1}));
  world.arrive(0);
  CHECK_EQ(world[1].missing(), std::vector<int>({1}));
  world.finish(2);
  CHECK_EQ(world[2].missing(), std::vector<int>({0, 1, 2}));  // in its next round
  CHECK_EQ(world[1].progress(), std::vector<RoundNumber>({0, 0, 0}));
  world[2].release();
  CHECK_EQ(world[1].progress(), std::vector<RoundNumber>({0, 0, 1}));
  world[2].leave();
  CHECK_EQ(world[1].progress(), std::vector<RoundNumber>({0, 0, kUnbounded}));
}

TEST_CASE("grace lets in who arrives before its end, and seals the round when it is over") {
  WatchedClock clock;
  Setup setup;
  setup.clock = [&clock](int) -> const Clock& { return clock; };
  World world(backup_workers(4, 2, 100), setup);
  CHECK(world.arrive(3));
  CHECK(world.arrive(1));
  clock.advance(99);
  CHECK(!world[0].sealed_without_me());
  CHECK(world.arrive(0));
  clock.advance(1);
  CHECK(!world.arrive(2));
  clock.on_look = [&clock] { clock.advance(kMillisecond); };
  for (const int rank : {0, 1, 2, 3}) {
    CHECK_EQ(world.finish(rank).contributors, std::vector<int>({0, 1, 3}));
  }
}

TEST_CASE("a waiting rank seals the round itself when the grace is over") {
  World world(backup_workers(3, 1, 30 * kMillisecond));
  const Nanoseconds start = monotonic_clock().now();
  world.round({0, 1});
  CHECK(monotonic_clock().now() - start >= 30 * kMillisecond);
  world.skip(2);
  CHECK_EQ(world.finish(2).contributors, std::vector<int>({0, 1}));
}

TEST_CASE("with grace, too, all ranks agree on every round") {
  World world(backup_workers(4, 2, kMillisecond));
  check_same(run(world, 30));
}

TEST_CASE("everybody in ends a long grace at once" * doctest::timeout(20)) {
  World world(backup_workers(4, 2, 3600 * kSecond));
  for (const auto& reports : run(world, 5)) {
    for (const RoundReport& report : reports) CHECK_EQ(report.contributors.size(), 4);
  }
}

TEST_CASE("a full window holds the others back until the rank that was away loads" *
          doctest::timeout(40)) {
  World world(backup_workers(3, 1), with_window(2));
  std::atomic<int> rounds{0};
  check::in_threads(3, [&](int rank) {
    if (rank == 2) {
      while (rounds.load() < 6) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      CHECK_EQ(rounds.load(), 6);  // the round in use and a window of two, by two ranks
    }
    for (int i = 0; i < 20; ++i) {
      world.arrive(rank);
      world.finish(rank);
      if (rank != 2) rounds.fetch_add(1);
    }
  });
  CHECK_EQ(rounds.load(), 40);
}

TEST_CASE("whoever waits is woken when it can go on, and need not look again by the clock") {
  // The shortest of many delays: without the rings, each would be most of a nap of 20 ms.
  Setup setup = with_window(1);
  setup.options.spin_limits = {0, 0};
  World world(backup_workers(3, 1), setup);
  std::atomic<Nanoseconds> since{0};
  std::array<Nanoseconds, 3> shortest{kSecond, kSecond, kSecond};
  const auto act = [&](const std::function<void()>& what) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    since = monotonic_clock().now();
    what();
  };
  const auto note = [&](std::size_t i) {
    shortest[i] = std::min(shortest[i], monotonic_clock().now() - since.load());
  };
  for (int i = 0; i < 15; ++i) {
    world.arrive(0);
    std::thread contributor([&] {
      world.finish(0);
      note(0);
    });
    act([&] { world.arrive(1); });  // seals the round, and leaves the work to rank 0
    contributor.join();
    world.finish(1);
    world.arrive(0);
    world.arrive(1);
    world.skip(2);
    world.finish(2);
    std::thread late([&] {
      world.skip(2);
      world.finish(2);
      note(1);
    });
    act([&] { world.finish(0); });  // makes the result readable
    late.join();
    world.finish(1);
    world.round({0, 1});  // the window is full until rank 2 releases
    std::thread ahead([&] {
      world.arrive(0);
      note(2);
    });
    act([&] { world[2].release(); });
    ahead.join();
    world.arrive(1);
    for (const int rank : {0, 1}) world.finish(rank);
    for (int round = 0; round < 2; ++round) {
      world.skip(2);
      world.finish(2);
    }
    world[2].release();
  }
  for (const Nanoseconds delay : shortest) CHECK(delay < 12 * kMillisecond);
}
