// Layer engine: helpers that stop amid the work, whose work is done again by the others.
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "round/chunk_reducer.hpp"
#include "world.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

constexpr Nanoseconds kStall = 90 * kMillisecond;

/// A chunk that somebody has taken and has not finished.
struct Seat {
  int buffer;
  std::size_t chunk;
};

/// A world by one thread, with ghosts: helpers that take a chunk and stop.
///
/// The engine asks the time after it has begun a reduction and before it takes a first chunk: that
/// is where the ghosts take theirs. Each look at the clock takes a third of a stall.
class Haunted {
 public:
  Haunted(const Policy& policy, int window) : Haunted(policy, with_window(window)) {}
  Haunted(const Policy& policy, Setup setup) : world(policy, haunted(std::move(setup))) {
    clock.on_look = [this] {
      haunt();
      if (on_look) on_look();
      clock.advance(kStall / 3);
    };
  }

  /// From now on, the next `reductions` of round `number` each lose `helpers`.
  void ghosts_in(RoundNumber number, int reductions = 1, int helpers = 1) {
    number_ = number;
    left_ = reductions;
    helpers_ = helpers;
    known_ = attempt();
  }

  /// A ghost writes what it read after the slots had changed.
  void write_nonsense(const Seat& seat) {
    const Chunk& chunk = world.arena().chunks()[seat.chunk];
    std::memset(world.arena().result(seat.buffer) + chunk.offset, 0xFF,
                chunk.count * sizeof(float));
    world.arena().chunk_done(seat.buffer, seat.chunk).store(number_ + 1);
  }

  /// A ghost was slow, not dead: it ends its chunk, with the right bits.
  void finish(const Seat& seat, const std::vector<int>& contributors) {
    const Chunk& chunk = world.arena().chunks()[seat.chunk];
    std::vector<std::vector<std::byte>> contributions;
    std::vector<const std::byte*> operands;
    for (const int rank : contributors) {
      contributions.push_back(world.contribution(rank, number_));
      operands.push_back(contributions.back().data() + chunk.offset);
    }
    const std::vector<double> weights(operands.size(), 1);
    reference_mean(DType::float32, operands, weights, static_cast<double>(operands.size()),
                   chunk.count, world.arena().result(seat.buffer) + chunk.offset);
    world.arena().chunk_done(seat.buffer, seat.chunk).store(number_ + 1);
    world.arena().result_control(seat.buffer).chunks_done.fetch_add(1);
  }

  WatchedClock clock;
  World world;
  std::vector<Seat> seats;        // of the ghosts
  std::function<void()> on_look;  // what else happens when the engine asks the time

 private:
  Setup haunted(Setup setup) {
    setup.options.stall = kStall;
    setup.options.timeout = 1000 * kSecond;
    setup.clock = [this](int) -> const Clock& { return clock; };
    return setup;
  }

  std::uint64_t attempt() const { return world.arena().round(number_).attempt.load(); }

  void haunt() {
    if (left_ == 0 || attempt() == known_) return;
    known_ = attempt();
    --left_;
    const auto buffer = static_cast<int>(known_ & 0xFFFF);
    for (int i = 0; i < helpers_; ++i) {
      seats.push_back({buffer, world.arena().result_control(buffer).next_chunk.fetch_add(1)});
    }
  }

  RoundNumber number_ = 0;
  int left_ = 0;
  int helpers_ = 1;
  std::uint64_t known_ = 0;
};

/// Two contributors of round 0, which has one chunk; `first` has sealed it.
struct Pair {
  Pair() {
    for (int rank = 0; rank < 3; ++rank) arena.entry(0, rank).weight.store(1);
    options.stall = kStall;
    first.begin(0, {0, 1, 2}, true);
    second.begin(0, {0, 1, 2}, false);
  }

  /// Rank `rank` contributed from private memory, and its process is gone.
  void give_to_the_dead(int rank) {
    bury(arena, rank, this);
    first.begin(0, {0, 1, 2}, true);
  }

  ArenaSpec spec = Collective::spec(full_sync(3), 1, {{DType::float32, 10}}, 4096);
  Memory memory{Arena::bytes(spec)};
  Arena arena{spec, memory.data()};
  WatchedClock clock;
  Options options;
  ChunkReducer first{arena, options, clock, 0, Output::result};
  ChunkReducer second{arena, options, clock, 1, Output::result};
};

}  // namespace

TEST_CASE("a round is finished without a helper that stopped amid a chunk") {
  Haunted house(backup_workers(3, 1), 3);
  World& world = house.world;
  house.ghosts_in(0);
  world.arrive(0);
  world.arrive(1);
  world.finish(0);
  REQUIRE(house.seats.size() == 1);
  CHECK_EQ(house.seats[0].chunk, 0);
  CHECK(world[0].result_buffer() != house.seats[0].buffer);
  world.finish(1);
  CHECK_EQ(world[0].result_buffer(), world[1].result_buffer());
}

TEST_CASE("what the stopped helper writes later is read by nobody") {
  Haunted house(backup_workers(3, 1), 3);
  World& world = house.world;
  house.ghosts_in(0);
  world.arrive(0);
  world.arrive(1);
  world.finish(0);
  house.write_nonsense(house.seats.at(0));
  world.arena().result_control(house.seats[0].buffer).chunks_done.fetch_add(1);
  world.finish(1);
  world.arrive(2);
  world.finish(2);
  CHECK_EQ(world[2].result_buffer(), world[0].result_buffer());
}

TEST_CASE("a buffer given up is used again after every rank has released its round, not before") {
  Haunted house(backup_workers(3, 1), 3);
  World& world = house.world;
  house.ghosts_in(0);
  world.round({0, 1});
  const int given_up = house.seats.at(0).buffer;
  for (int i = 0; i < 3; ++i) {
    world.round({0, 1});
    CHECK(world[0].result_buffer() != given_up);
  }
  for (int i = 0; i < 4; ++i) {
    world.arrive(2);
    world.finish(2);
  }
  world.round({0, 1});
  CHECK_EQ(world[0].result_buffer(), given_up);  // the lowest that is free
}

TEST_CASE("a round survives as many stopped helpers as there are backup workers") {
  Haunted house(backup_workers(5, 3), 2);
  World& world = house.world;
  house.ghosts_in(0, 3);
  world.arrive(3);
  world.arrive(4);
  world.finish(3);
  CHECK_EQ(house.seats.size(), 3);
  world.finish(4);
  for (int i = 0; i < 2; ++i) world.round({3, 4});  // the whole window is still there
  for (const int rank : {0, 1, 2}) {
    world.arrive(rank);
    world.finish(rank);
  }
}

TEST_CASE("when no buffer is left, a slow helper still ends the round") {
  Haunted house(backup_workers(2, 0), 1);  // two records and one spare buffer
  World& world = house.world;
  house.ghosts_in(0, 3);
  world.arrive(0);
  world.arrive(1);
  int looks = 0;
  house.on_look = [&] {
    if (house.seats.size() == 3 && ++looks == 10) house.finish(house.seats.back(), {0, 1});
  };
  world.finish(0);
  CHECK(looks >= 10);
  world.finish(1);
  world.round({0, 1});
}

TEST_CASE("an all-reduce that had begun to copy from a buffer given up ends with the right bits") {
  Haunted house(backup_workers(2, 0), 2);
  World& world = house.world;
  house.ghosts_in(0);
  world.arrive(0);
  std::vector<std::byte> data = world.contribution(1, 0);
  bool awake = false;
  house.on_look = [&] {
    // Chunk 0 of the first reduction is final, and wrong: its helper read slots that belong to the
    // next round already, while this rank was stopped between two looks.
    if (!house.seats.empty() && !std::exchange(awake, true)) house.write_nonsense(house.seats[0]);
  };
  const RoundReport report = world[1].allreduce(data.data(), data.data());
  CHECK(awake);
  world.check(1, report, data.data());
  world.finish(0);
}

TEST_CASE("an input that is read remotely is not replaced before its round is done for good") {
  Setup setup = with_window(2);
  setup.flats = {{DType::float32, 20'000}};
  setup.chunk_bytes = 16384;
  setup.options.remote_reads = true;
  Haunted house(backup_workers(2, 0), setup);
  World& world = house.world;
  house.ghosts_in(0, 1, 2);
  world.arrive(0);
  std::vector<std::byte> data = world.contribution(1, 0);
  bool half = false;
  house.on_look = [&] {
    // Chunk 0 could be copied out now; then the work begins again, and reads the input again.
    if (!house.seats.empty() && !std::exchange(half, true)) house.finish(house.seats[0], {0, 1});
  };
  const RoundReport report = world[1].allreduce(data.data(), data.data());
  CHECK(half);
  world.check(1, report, data.data());
  world.finish(0);
}

TEST_CASE("work that goes on is not begun again, even when each chunk takes most of a stall") {
  Haunted house(backup_workers(3, 1), 1);
  World& world = house.world;
  house.ghosts_in(0, 1, 4);
  world.arrive(0);
  world.arrive(1);
  int looks = 0;
  std::size_t finished = 0;
  house.on_look = [&] {
    if (!house.seats.empty() && ++looks % 2 == 0 && finished < 4) {
      house.finish(house.seats[finished++], {0, 1});
    }
  };
  world.finish(0);
  CHECK_EQ(finished, 4);
  CHECK_EQ(world[0].result_buffer(), house.seats.at(0).buffer);
  world.finish(1);
}

TEST_CASE("a reduction begun again has the time of a whole stall before it is given up, too") {
  Pair pair;
  // Takes the only chunk of whatever is being worked on.
  const auto take_chunk = [&pair] {
    const int buffer = pair.first.current();
    if (buffer >= 0) pair.arena.result_control(buffer).next_chunk.store(1);
  };
  pair.clock.on_look = take_chunk;
  CHECK(!pair.first.help());
  CHECK(!pair.second.help());
  const int given_up = pair.first.current();
  pair.clock.advance(kStall + 1);
  CHECK(!pair.first.help());  // begins again
  const int again = pair.first.current();
  CHECK(again != given_up);
  take_chunk();
  CHECK(!pair.second.help());
  CHECK_EQ(pair.second.current(), again);
  pair.clock.advance(kStall + 1);
  CHECK(!pair.second.help());
  CHECK(pair.second.current() != again);
}

TEST_CASE("the rank that sealed a round chooses the buffer, and the others wait a little for it") {
  Pair pair;
  CHECK(!pair.second.help());
  CHECK_EQ(pair.second.current(), -1);
  CHECK(pair.second.wake_at() > pair.clock.now());
  CHECK(pair.first.help());
  CHECK(pair.second.help());
}

TEST_CASE("when the rank that sealed a round is stopped, the others begin without it") {
  Pair pair;
  CHECK(!pair.second.help());
  pair.clock.advance(pair.second.wake_at() - pair.clock.now() + 1);
  CHECK(pair.second.help());
  CHECK(pair.first.help());
}

TEST_CASE("a rank that finds no free buffer does not ask to be woken in the past") {
  Pair pair;
  for (int i = 0; i < pair.arena.spec().buffers; ++i) {
    pair.arena.result_control(i).owner.store(99);  // of rounds that somebody has yet to load
  }
  CHECK(!pair.second.help());
  pair.clock.advance(kSecond);
  CHECK(!pair.second.help());
  CHECK_EQ(pair.second.wake_at(), 0);
}

TEST_CASE("a contributor that died before its memory was read is named") {
  Pair pair;
  pair.give_to_the_dead(2);
  CHECK_THROWS_WITH_AS(pair.first.help(),
                       doctest::Contains("round 0, rank 0: rank 2 has died amid the round"),
                       PeerFailed);
}

TEST_CASE("a contributor that died after the round was done is no failure for a slow helper") {
  Pair pair;
  pair.give_to_the_dead(2);
  pair.clock.on_look = [&] {
    // While this rank was on its way to its first chunk, the others made the result readable.
    const std::uint64_t attempt = pair.arena.round(0).attempt.load();
    if (attempt != 0) pair.arena.round(0).published.store(attempt);
  };
  CHECK(pair.first.help());
}
