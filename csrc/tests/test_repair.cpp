// Layer engine: helpers that stop amid the work, whose work is done again by the others.
#include <cstring>
#include <functional>
#include <vector>

#include "check.hpp"
#include "engine/reduction.hpp"
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
  Haunted(const Policy& policy, int window) : world(policy, setup(window)) {
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
    std::vector<const std::byte*> operands;
    for (const int rank : contributors) {
      operands.push_back(world.arena().slot(rank) + chunk.offset);
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
  Setup setup(int window) {
    Setup setup;
    setup.window = window;
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
  const ArenaSpec spec = Collective::spec(full_sync(3), 1, {{DType::float32, 10}}, 4096);
  const Memory memory(Arena::bytes(spec));
  const Arena arena(spec, memory.data());
  for (int rank = 0; rank < 3; ++rank) arena.entry(0, rank).weight.store(1);
  WatchedClock clock;
  Options options;
  options.stall = kStall;
  Reduction first(arena, options, clock, 0);
  Reduction second(arena, options, clock, 1);
  // Takes the only chunk of whatever is being worked on.
  const auto take_chunk = [&arena](int buffer) {
    if (buffer >= 0) arena.result_control(buffer).next_chunk.store(1);
  };
  clock.on_look = [&] { take_chunk(first.current()); };
  first.begin(0, {0, 1, 2});
  second.begin(0, {0, 1, 2});
  CHECK(!first.help());
  CHECK(!second.help());
  const int given_up = first.current();
  clock.advance(kStall + 1);
  CHECK(!first.help());  // begins again
  CHECK(first.current() != given_up);
  const int again = first.current();
  take_chunk(again);
  CHECK(!second.help());
  CHECK_EQ(second.current(), again);
  clock.advance(kStall + 1);
  CHECK(!second.help());
  CHECK(second.current() != again);
}
