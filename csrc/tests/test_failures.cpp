// Layer engine: time-outs, ranks that leave, die or raise, and what the others are told.
#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "world.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

/// Time that passes only when looked at, 10 s a time: a time-out of 60 s comes after six looks.
struct FastTime {
  TickingClock clock{10 * kSecond};

  Setup setup() {
    Setup setup;
    setup.options.timeout = 60 * kSecond;
    setup.options.stall = 1000 * kSecond;
    setup.clock = [this](int) -> const Clock& { return clock; };
    return setup;
  }
};

/// Options without looks before sleep, so that a test knows when the engine looks at its clock.
Setup impatient(const WatchedClock& clock, int watched_rank) {
  Setup setup;
  setup.options.spin_limits = {0, 0};
  setup.clock = [&clock, watched_rank](int rank) -> const Clock& {
    return rank == watched_rank ? static_cast<const Clock&>(clock) : monotonic_clock();
  };
  return setup;
}

}  // namespace

TEST_CASE("a time-out tells what is there, who is missing, and the way out") {
  FastTime time;
  World world(full_sync(4), time.setup());
  for (const int rank : {0, 1, 3}) world.arrive(rank);
  CHECK_THROWS_WITH_AS(
      world[0].wait(),
      doctest::Contains("round 0, rank 0: 3 of 4 contributions after 60.0 s; missing rank 2; raise "
                        "timeout= or backup_workers="),
      RoundTimeout);
}

TEST_CASE("a time-out with backup workers counts up to the quorum and names all missing ranks") {
  FastTime time;
  World world(backup_workers(5, 2), time.setup());
  for (int i = 0; i < 2; ++i) world.round({4, 2, 0});
  for (const int rank : {4, 0}) world.arrive(rank);
  CHECK_THROWS_WITH_AS(world[4].wait(),
                       doctest::Contains("round 2, rank 4: 2 of 3 contributions after"),
                       RoundTimeout);
  CHECK_THROWS_WITH_AS(world[0].wait(), doctest::Contains("missing ranks 1, 2, 3; raise"),
                       RoundTimeout);
}

TEST_CASE("a rank that waits for a round nobody has entered times out, too") {
  FastTime time;
  World world(backup_workers(3, 1), time.setup());
  world.round({0, 1});
  world.skip(2);
  world.finish(2);
  world.skip(2);
  CHECK_THROWS_WITH_AS(world[2].wait(), doctest::Contains("0 of 2 contributions after"),
                       RoundTimeout);
}

TEST_CASE("a record that was used before is not taken for the round that is waited for") {
  FastTime time;
  Setup setup = time.setup();
  setup.window = 1;  // two records: round 2 has that of round 0
  World world(backup_workers(3, 1), setup);
  for (int i = 0; i < 2; ++i) world.round({0, 1, 2});
  world.skip(2);
  CHECK_THROWS_WITH_AS(
      world[2].wait(),
      doctest::Contains(
          "round 2, rank 2: 0 of 2 contributions after 60.0 s; missing ranks 0, 1, 2"),
      RoundTimeout);
}

TEST_CASE("after a time-out every rank gets its text, whatever it does next") {
  FastTime time;
  World world(full_sync(4), time.setup());
  for (const int rank : {0, 1, 3}) world.arrive(rank);
  CHECK_THROWS_AS(world[1].wait(), RoundTimeout);
  const char* text = "rank 1 failed: round 0, rank 1: 3 of 4 contributions";
  CHECK_THROWS_WITH_AS(world[0].wait(), doctest::Contains(text), RoundTimeout);
  CHECK_THROWS_WITH_AS(world.contribute(2), doctest::Contains(text), RoundTimeout);
  CHECK_THROWS_WITH_AS(world[3].wait(), doctest::Contains(text), RoundTimeout);
  CHECK_THROWS_WITH_AS(world[1].wait(), doctest::Contains("round 0, rank 1: 3 of 4"), RoundTimeout);
  CHECK_THROWS_WITH_AS(world.skip(2), doctest::Contains(text), RoundTimeout);
}

TEST_CASE("a rank that times out wakes all who wait, at once" * doctest::timeout(20)) {
  Setup setup;
  setup.adjust = [](int rank, Options& options) {
    if (rank == 0) options.timeout = 50 * kMillisecond;
  };
  World world(full_sync(4), setup);
  check::in_threads(3, [&](int rank) {
    world.arrive(rank);
    CHECK_THROWS_WITH_AS(world[rank].wait(), doctest::Contains("3 of 4 contributions after 0.0 s"),
                         RoundTimeout);
  });
}

TEST_CASE("with a rank away the others go exactly a window further, and then name it") {
  for (const int window : {1, 2, 5}) {
    FastTime time;
    Setup setup = time.setup();
    setup.window = window;
    World world(backup_workers(4, 2), setup);
    world.round({0, 3, 1, 2});
    for (const int rank : {1, 2}) world[rank].release();  // until then round 0 counts as unloaded
    for (int i = 0; i <= window; ++i) world.round({0, 3});
    CHECK_EQ(world[0].number(), window + 2);
    const std::string text =
        "round " + std::to_string(window + 2) + ", rank 0: the window of " +
        std::to_string(window) + " results is full after 60.0 s; ranks 1, 2 " +
        "have yet to load round 1; use attempt(), or raise window= or timeout=";
    CHECK_THROWS_WITH_AS(world.arrive(0), doctest::Contains(text.c_str()), RoundTimeout);
    CHECK_THROWS_AS(world.arrive(3), RoundTimeout);
  }
}

TEST_CASE("a round that is complete is no time-out, however long this rank was stopped") {
  // Stopped whenever the engine asks the time, so also between "is it ready?" and "how late is it?"
  for (int stop = 1; stop <= 5; ++stop) {
    WatchedClock clock;
    World world(full_sync(2), impatient(clock, 0));
    world.arrive(0);
    int looks = 0;
    clock.on_look = [&] {
      if (++looks != stop) return;
      world.arrive(1);
      world.finish(1);
      clock.advance(1000 * kSecond);
    };
    world.finish(0);
    CHECK(looks >= stop);
  }
}

TEST_CASE("a rank that died is named to all, once the patrol has found it") {
  Setup setup;
  setup.adjust = [](int rank, Options& options) {
    if (rank == 1) options.patrol = [] { return std::vector<int>{2, 3}; };
  };
  World world(full_sync(4), setup);
  world.arrive(0);
  world.arrive(1);
  CHECK_THROWS_WITH_AS(
      world[1].wait(),
      doctest::Contains("rank 1: ranks 2, 3 have died; start again from the last checkpoint"),
      PeerFailed);
  CHECK_THROWS_WITH_AS(world[0].wait(),
                       doctest::Contains("rank 1 failed: round 0, rank 1: ranks 2, 3"), PeerFailed);
}

TEST_CASE("a rank that dies while the others wait ends their waits" * doctest::timeout(20)) {
  std::atomic<bool> alive{true};
  Setup setup;
  setup.options.patrol = [&alive] { return alive ? std::vector<int>{} : std::vector<int>{2}; };
  World world(full_sync(3), setup);
  check::in_threads(3, [&](int rank) {
    if (rank == 2) {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      alive = false;
      return;
    }
    world.arrive(rank);
    CHECK_THROWS_WITH_AS(world[rank].wait(), doctest::Contains("rank 2 has died"), PeerFailed);
  });
}

TEST_CASE("an interrupt ends this rank's wait with what it throws, and no other rank's") {
  Setup setup;
  setup.adjust = [](int rank, Options& options) {
    if (rank == 0)
      options.patrol = []() -> std::vector<int> { throw std::runtime_error("Ctrl-C"); };
  };
  World world(full_sync(2), setup);
  world.arrive(0);
  CHECK_THROWS_WITH_AS(world[0].wait(), doctest::Contains("Ctrl-C"), std::runtime_error);
  CHECK(!world.arena().failure());
  world.arrive(1);
  world.finish(1);
}

TEST_CASE("fail() ends every rank's waits with its text") {
  World world(full_sync(3));
  world.arrive(0);
  world[2].fail("ValueError: no such batch");
  CHECK_THROWS_WITH_AS(world[0].wait(),
                       doctest::Contains("rank 2 failed: ValueError: no such batch"), PeerFailed);
  CHECK_THROWS_WITH_AS(world.contribute(1),
                       doctest::Contains("rank 2 failed: ValueError: no such batch"), PeerFailed);
  CHECK_THROWS_WITH_AS(world.contribute(2), doctest::Contains("ValueError"), PeerFailed);
}

TEST_CASE("a result that is there can be loaded even after a failure") {
  World world(backup_workers(3, 1));
  world.arrive(0);
  world.arrive(1);
  world.arrive(2);
  world.finish(0);
  world[0].fail("crash");
  world.finish(1);
  world.finish(2);
  CHECK_THROWS_AS(world.arrive(1), PeerFailed);
}

TEST_CASE("when a rank leaves, the others fail if they need it") {
  World world(backup_workers(4, 1));
  world.round({0, 1, 2, 3});
  world[3].leave();
  world.round({0, 1, 2});  // three of four are a quorum
  world[1].leave();
  world.arrive(0);
  world.arrive(2);
  CHECK_THROWS_WITH_AS(
      world[0].wait(),
      doctest::Contains("round 2, rank 0: ranks 1, 3 have left, so 3 contributions cannot come "
                        "together; every rank must make the same number of steps"),
      PeerFailed);
  CHECK_THROWS_WITH_AS(world[2].wait(), doctest::Contains("rank 0 failed: "), PeerFailed);
}

TEST_CASE("a rank that leaves wakes the others who wait for it in vain" * doctest::timeout(20)) {
  World world(full_sync(3));
  check::in_threads(3, [&](int rank) {
    if (rank == 2) {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      world[2].leave();
      return;
    }
    world.arrive(rank);
    CHECK_THROWS_WITH_AS(world[rank].wait(), doctest::Contains("rank 2 has left"), PeerFailed);
  });
}

TEST_CASE("nobody waits for a rank that left, also when its window is full") {
  World world(backup_workers(3, 1), with_window(1));
  world[2].leave();
  for (int i = 0; i < 10; ++i) world.round({0, 1});
}

TEST_CASE("a rank that contributed and then left is still in the round") {
  World world(full_sync(3));
  world.arrive(2);
  world[2].leave();
  world.arrive(0);
  world.arrive(1);
  for (const int rank : {0, 1}) CHECK_EQ(world.finish(rank).contributors.size(), 3);
}

TEST_CASE("ranks that complete the last round and leave fail nobody, however they race") {
  for (int stop = 1; stop <= 5; ++stop) {
    WatchedClock clock;
    World world(full_sync(3), impatient(clock, 0));
    world.arrive(0);
    int looks = 0;
    clock.on_look = [&] {
      // At the third look rank 0 has seen an open round, and is about to see who has left.
      if (++looks != stop) return;
      for (const int rank : {1, 2}) world.arrive(rank);
      for (const int rank : {1, 2}) world.finish(rank);
      for (const int rank : {1, 2}) world[rank].leave();
    };
    world.finish(0);
    CHECK(looks >= stop);
  }
}

TEST_CASE("a rank that has left takes no further part") {
  World world(full_sync(2));
  world.round({0, 1});
  world[1].leave();
  CHECK_THROWS_WITH_AS(world.contribute(1), doctest::Contains("left"), InvalidArgument);
  CHECK_THROWS_WITH_AS(world.skip(1), doctest::Contains("left"), InvalidArgument);
  world[1].leave();  // twice is the same as once
  world[1].release();
  CHECK_EQ(world.arena().member(1).released.load(), kUnbounded);  // and nobody waits for it
}
