// Layer engine: rounds whose first flats lie in device memory, on the twins and on a GPU.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "device_case.hpp"
#include "memory/descriptor.hpp"
#include "memory/segment.hpp"
#include "world.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

constexpr Nanoseconds kStall = 90 * kMillisecond;

/// Flats of all dtypes on the device, and one of the host, as the optimizer's marks are.
Setup on(int device) {
  Setup setup;
  setup.flats = {{DType::float32, 700}, {DType::float16, 301}, {DType::bfloat16, 0},
                 {DType::float64, 33},  {DType::bfloat16, 90}, {DType::float32, 77}};
  setup.device_flats = 5;
  setup.device = device;
  return setup;
}

void run(World& world, int rounds) {
  check::in_threads(world.size(), [&](int rank) {
    for (int i = 0; i < rounds; ++i) {
      const bool in_time = world.arrive(rank);
      CHECK_EQ(world.finish(rank).contributed, in_time);
    }
  });
}

/// A world by one thread in which a helper takes a chunk of round 0's first reduction, and stops.
struct Haunted {
  Haunted(const Policy& policy, Setup setup) : world(policy, haunted(std::move(setup))) {
    clock.on_look = [this] {
      const std::uint64_t attempt = world.arena().round(0).attempt.load();
      if (attempt != 0 && buffer < 0) {
        buffer = static_cast<int>(attempt & 0xFFFF);
        chunk = world.arena().result_control(buffer).next_chunk.fetch_add(1);
      }
      clock.advance(kStall / 3);
    };
  }
  Setup haunted(Setup setup) {
    setup.options.stall = kStall;
    setup.options.timeout = 1000 * kSecond;
    setup.clock = [this](int) -> const Clock& { return clock; };
    return setup;
  }

  WatchedClock clock;
  int buffer = -1;
  std::uint64_t chunk = 0;
  World world;
};

/// What the processes of a world tell each other.
struct Board {
  std::atomic<int> there;
  std::atomic<int> mapped;
  std::atomic<int> finished;
  std::array<std::array<char, 64>, 3> paths;
};

constexpr std::size_t kRoom = std::size_t{1} << 20;
constexpr int kRounds = 40;

void wait_for(const std::atomic<int>& count, int number) {
  while (count < number) std::this_thread::yield();
}

/// A rank that is a process: its device memory is its own, and it maps those of the others.
int live(int rank, const Segment& segment, const ArenaSpec& spec, int late) {
  auto& board = *reinterpret_cast<Board*>(segment.data() + kRoom - sizeof(Board));
  const Arena arena(spec, segment.data());
  auto mapped = std::make_shared<MappedArena>(kHost, arena.device_bytes(), spec.buffers);
  const auto i = static_cast<std::size_t>(rank);
  std::strncpy(board.paths[i].data(), mapped->handle().where.c_str(), 63);
  ++board.there;
  wait_for(board.there, 3);
  std::vector<MemoryHandle> handles(3, mapped->handle());
  for (std::size_t other = 0; other < 3; ++other) {
    if (other == i) continue;
    handles[other].pid = 0;
    handles[other].where = board.paths[other].data();
  }
  mapped->open(handles, rank);
  ++board.mapped;
  wait_for(board.mapped, 3);
  mapped->confirm();
  Options options = calm();
  options.policy = backup_workers(3, 1);
  options.stall = 2 * kMillisecond;
  options.mapped = mapped;
  Collective collective(arena, rank, std::move(options));
  bool good = true;
  for (int round = 0; round < kRounds; ++round) {
    const std::vector<float> mine(100, static_cast<float>(rank + round));
    collective.release();
    std::memcpy(mapped->slot(), mine.data(), 400);
    std::memcpy(collective.slot() + arena.flat_offset(1), mine.data(), 40);
    const RoundReport report = collective.arrive_and_wait();
    float sum = 0;
    for (const int one : report.contributors) sum += static_cast<float>(one + round);
    const float expected = sum / static_cast<float>(report.contributors.size());
    const auto* device = reinterpret_cast<const float*>(mapped->result(collective.result_buffer()));
    const auto* host = reinterpret_cast<const float*>(collective.result() + arena.flat_offset(1));
    for (int e = 0; e < 100; ++e) good = good && device[e] == expected;
    for (int e = 0; e < 10; ++e) good = good && host[e] == expected;
    if (rank == late) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  collective.leave();
  ++board.finished;
  wait_for(board.finished, 3);
  return good && collective.give_back() ? 0 : 1;
}

}  // namespace

DEVICE_CASE("every rank has the CPU's bits of all flats, for every world and b") {
  for (const int size : {1, 2, 3, 5}) {
    for (int backups = 0; backups < size; ++backups) {
      World world(backup_workers(size, backups), on(device));
      run(world, 6);
    }
  }
}

DEVICE_CASE("flats in device memory can be all there are, and chunks of any size") {
  for (const std::size_t chunk : {std::size_t{64}, std::size_t{4096}, std::size_t{1} << 20}) {
    Setup setup = on(device);
    setup.device_flats = setup.flats.size();
    setup.device_chunk_bytes = chunk;
    World world(backup_workers(3, 1), setup);
    run(world, 5);
  }
}

DEVICE_CASE("contributions in device memory count as their weights say, or abstain") {
  Setup setup = on(device);
  setup.weight = [](int rank, RoundNumber round) {
    return (static_cast<RoundNumber>(rank) + round) % 3 == 0 ? 0 : 0.25 * (rank + 1);
  };
  for (const bool sum : {false, true}) {
    setup.options.sum = sum;
    World world(full_sync(3), setup);
    run(world, 6);
  }
  setup.weight = [](int, RoundNumber) { return 0.0; };
  World nobody(full_sync(2), setup);
  run(nobody, 3);
}

DEVICE_CASE(
    "a late rank loads old results from its own device memory, in the order of the rounds") {
  World world(backup_workers(3, 1), on(device));
  for (int i = 0; i < 3; ++i) world.round({0, 2});
  for (int i = 0; i < 3; ++i) {
    CHECK(world[1].sealed_without_me());
    world.skip(1);
    world.finish(1);
  }
  world.round({1, 2});
}

DEVICE_CASE("a round is finished on the device without a helper that stopped amid a chunk") {
  Haunted house(backup_workers(3, 1), on(device));
  World& world = house.world;
  world.arrive(0);
  world.arrive(1);
  world.finish(0);
  REQUIRE(house.buffer >= 0);
  CHECK(world[0].result_buffer() != house.buffer);
  // It comes back, reads slots that have moved on, and writes nonsense where nobody reads.
  const Chunk& chunk = world.arena().chunks()[house.chunk];
  CHECK(chunk.flat < world.arena().spec().device_flats);
  const std::vector<std::byte> nonsense(chunk.count * sizeof(float), std::byte{0xFF});
  for (int rank = 0; rank < 3; ++rank) {
    std::byte* to = world.mapped(rank).result(house.buffer) + chunk.offset;
    Peek(device).write(to, nonsense.data(), nonsense.size());
  }
  world.finish(1);
  world.arrive(2);
  world.finish(2);
  world.round({0, 1});
}

DEVICE_CASE("nothing is written to the memory of a rank that has left, which is given back") {
  World world(backup_workers(3, 1), on(device));
  world.round({0, 1, 2});
  world[2].leave();
  CHECK(!world[2].give_back());  // the others map it still
  std::vector<std::byte> marks(world.arena().device_bytes(), std::byte{0xA5});
  for (int b = 0; b < world.arena().spec().buffers; ++b) {
    Peek(device).write(world.mapped(2).result(b), marks.data(), marks.size());
  }
  for (int i = 0; i < 8; ++i) world.round({0, 1});
  for (int b = 0; b < world.arena().spec().buffers; ++b) {
    std::vector<std::byte> seen(marks.size());
    Peek(device).read(seen.data(), world.mapped(2).result(b), seen.size());
    CHECK(same_bytes(seen, marks));
  }
  world[0].leave();
  world[0].leave();
  CHECK(!world[2].give_back());
  world[1].leave();
  for (int rank = 0; rank < 3; ++rank) CHECK(world[rank].give_back());
}

TEST_CASE("who leaves waits for a kernel that may use its memory, but not for ever") {
  World world(full_sync(2), on(kHost));
  world.round({0, 1});
  world.arena().member(1).adding.store(1);
  std::atomic<bool> over{false};
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    over = true;
    world.arena().member(1).adding.store(0);
  });
  world[0].leave();
  CHECK(over.load());
  other.join();
  world.arena().member(0).adding.store(1);  // as if it were stopped amid a chunk
  world[1].leave();
}

TEST_CASE("ranks that are processes map each other's memory, and are stopped at any instruction") {
  for (const bool disturbed : {false, true}) {
    const Segment segment = Segment::create(kRoom);
    ArenaSpec spec = Collective::spec(backup_workers(3, 1), 3,
                                      {{DType::float32, 100}, {DType::float32, 10}}, 4096);
    spec.device_flats = 1;
    spec.device_chunk_bytes = 64;
    REQUIRE(Arena::bytes(spec) + sizeof(Board) <= kRoom);
    const auto& board = *reinterpret_cast<Board*>(segment.data() + kRoom - sizeof(Board));
    std::array<pid_t, 3> children{};
    for (int rank = 0; rank < 3; ++rank) {
      const KeptByChildren keep;
      const pid_t child = fork();
      if (child == 0) _exit(live(rank, segment, spec, disturbed ? -1 : 2));
      children[static_cast<std::size_t>(rank)] = child;
    }
    wait_for(board.mapped, 3);
    for (unsigned i = 0; disturbed && board.finished < 3; ++i) {
      const pid_t one = children[i * 7 / 5 % 3];
      kill(one, SIGSTOP);
      std::this_thread::sleep_for(std::chrono::microseconds(137 * (i % 40)));
      kill(one, SIGCONT);
      std::this_thread::sleep_for(std::chrono::microseconds(300));
    }
    for (const pid_t child : children) {
      int status = 0;
      waitpid(child, &status, 0);
      CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
    }
  }
}

TEST_CASE("device memory that does not fit the arena is refused, and so is what it cannot do") {
  Setup setup = on(kHost);
  setup.adjust = [](int, Options& options) { options.mapped = nullptr; };
  CHECK_THROWS_WITH_AS(World(full_sync(2), setup),
                       doctest::Contains("the mapped memory does not fit"), InvalidArgument);
  setup.adjust = [](int, Options& options) { options.late = Late::carry; };
  CHECK_THROWS_WITH_AS(World(full_sync(2), setup), doctest::Contains("one node, and late=drop"),
                       InvalidArgument);
  setup.adjust = [](int, Options& options) {
    options.mapped = std::make_shared<MappedArena>(kHost, 64, 1);
  };
  CHECK_THROWS_WITH_AS(World(full_sync(2), setup),
                       doctest::Contains("5 flats, of 3968 bytes, and 5 results"), InvalidArgument);
  Setup one;
  one.device_flats = 1;
  World world(full_sync(1), one);
  std::vector<std::byte> data(world.arena().contribution_bytes());
  CHECK_THROWS_WITH_AS(world[0].allreduce(data.data(), data.data()),
                       doctest::Contains("this collective's is a device's"), InvalidArgument);
}
