// Layer engine: whole rounds from private memory to private memory.
#include <cstring>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "world.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

/// How the rounds of a test go.
struct Way {
  std::size_t count = 0;
  bool remote = false;
  bool in_place = false;
  std::size_t shift = 0;  // bytes by which the buffers miss the start of a page
};

std::string describe(const Way& way) {
  return std::to_string(way.count) + " elements, " + (way.remote ? "remote, " : "staged, ") +
         (way.in_place ? "in place" : "to another buffer");
}

/// Each rank in a thread of its own, from its own memory to its own memory.
void run(World& world, const Way& way, int rounds) {
  const std::size_t bytes = way.count * sizeof(float);
  check::in_threads(world.size(), [&](int rank) {
    const Memory in(bytes + 64);
    const Memory out(bytes + 64);
    for (int i = 0; i < rounds; ++i) {
      std::byte* from = in.data() + way.shift;
      std::byte* to = way.in_place ? from : out.data() + way.shift;
      const std::vector<std::byte> mine = world.contribution(rank, static_cast<RoundNumber>(i));
      std::memcpy(from, mine.data(), bytes);
      const RoundReport report = world[rank].allreduce(from, to);
      CHECK_EQ(report.number, i);
      world.check(rank, report, to);
      if (!way.in_place && std::memcmp(from, mine.data(), bytes) != 0) {
        FAIL_CHECK("the input was written to: ", describe(way));
      }
      CHECK(to[bytes] == std::byte{0});
      std::memset(from, 0xFF, bytes);  // who still reads it would get NaN
    }
  });
}

Setup setup_for(const Way& way) {
  Setup setup;
  setup.flats = {{DType::float32, way.count}};
  setup.chunk_bytes = way.count < 1000 ? 128 : 16384;
  setup.options.remote_reads = way.remote;
  return setup;
}

}  // namespace

TEST_CASE("an all-reduce takes private memory to private memory, staged or read remotely") {
  for (const std::size_t count : {1U, 333U, 20'003U}) {
    for (const bool remote : {false, true}) {
      for (const bool in_place : {false, true}) {
        for (const std::size_t shift : {0U, 4U}) {
          const Way way{count, remote, in_place, shift};
          World world(backup_workers(4, 1), setup_for(way));
          run(world, way, 6);
        }
      }
    }
  }
}

TEST_CASE("an all-reduce works for every world and every number of backup workers") {
  for (const int size : {1, 2, 3, 5}) {
    for (int backups = 0; backups < size; ++backups) {
      const Way way{20'003, true, backups % 2 == 0, 0};
      World world(backup_workers(size, backups), setup_for(way));
      run(world, way, 4);
    }
  }
}

TEST_CASE("a result larger than the caches goes past them, with the same bits") {
  constexpr std::size_t kPeriod = 1024;
  constexpr std::size_t kRepeats = kStreamFrom / (kPeriod * sizeof(float)) + 1;
  const Way way{kPeriod * kRepeats, false, false, 0};
  Setup setup = setup_for(way);
  setup.window = 1;
  setup.chunk_bytes = 256 * 1024;
  World world(backup_workers(2, 0), setup);
  const std::size_t period_bytes = kPeriod * sizeof(float);
  std::vector<Memory> periods;
  for (const std::uint64_t seed : {1U, 2U}) {
    fill_with_noise(DType::float32, periods.emplace_back(period_bytes).data(), kPeriod, seed);
  }
  std::vector<std::byte> mean(period_bytes);
  reference_mean(DType::float32, {periods[0].data(), periods[1].data()}, {1, 1}, 2, kPeriod,
                 mean.data());
  check::in_threads(2, [&](int rank) {
    const Memory buffer(period_bytes * kRepeats + 64);
    std::byte* data = buffer.data() + (rank == 0 ? 0 : 8);  // aligned for streaming, and not
    for (std::size_t i = 0; i < kRepeats; ++i) {
      std::memcpy(data + i * period_bytes, periods[static_cast<std::size_t>(rank)].data(),
                  period_bytes);
    }
    world[rank].allreduce(data, data);
    bool right = true;
    for (std::size_t i = 0; i < kRepeats; ++i) {
      right = right && std::memcmp(data + i * period_bytes, mean.data(), period_bytes) == 0;
    }
    CHECK(right);
  });
}

TEST_CASE("a late all-reduce loads the result, and its input is not in it") {
  for (const bool remote : {false, true}) {
    const Way way{20'003, remote, true, 0};
    World world(backup_workers(3, 1), setup_for(way));
    for (int i = 0; i < 3; ++i) world.round({0, 1});
    std::vector<std::byte> data = world.contribution(2, 0);
    for (int i = 0; i < 3; ++i) {
      const RoundReport report = world[2].allreduce(data.data(), data.data());
      CHECK(!report.contributed);
      world.check(2, report, data.data());
    }
  }
}

TEST_CASE("a late all-reduce is carried to the next, however its input would be read") {
  for (const bool remote : {false, true}) {
    Way way{20'003, remote, false, 0};  // large enough not to be staged, were it not for carry
    Setup setup = setup_for(way);
    setup.options.late = Late::carry;
    World world(backup_workers(3, 1), setup);
    world.round({0, 1});
    std::vector<float> in(way.count, 8.0F);
    std::vector<float> out(way.count);
    const auto allreduce = [&](int rank, float value, double weight) {
      in.assign(way.count, value);
      return world[rank].allreduce(reinterpret_cast<const std::byte*>(in.data()),
                                   reinterpret_cast<std::byte*>(out.data()), weight);
    };
    CHECK(!allreduce(2, 8, 3).contributed);
    world[0].release();
    for (std::size_t i = 0; i < way.count; ++i) store(DType::float32, world[0].slot(), i, 2);
    CHECK(world.contribute(0, 1));
    const RoundReport report = allreduce(2, 4, 1);  // (3 * 8 + 1 * 4) / 4 = 7, counting 4
    CHECK(report.contributed);
    CHECK_EQ(report.weight, 5.0);
    CHECK_EQ(out[0], 6.0F);
    CHECK_EQ(out[way.count - 1], 6.0F);
    CHECK_EQ(in[0], 4.0F);  // the input is not written to
  }
}

TEST_CASE("staged and remote ranks meet in one round") {
  const Way way{20'003, true, false, 0};
  Setup setup = setup_for(way);
  setup.adjust = [](int rank, Options& options) { options.remote_reads = rank % 2 == 0; };
  World world(backup_workers(4, 0), setup);
  run(world, way, 5);
}

TEST_CASE("an all-reduce of several flats or of a bad weight is refused") {
  Setup setup;
  setup.flats = {{DType::float32, 3}, {DType::float16, 3}};
  World world(backup_workers(2, 0), setup);
  std::vector<std::byte> data(100);
  CHECK_THROWS_WITH_AS(world[0].allreduce(data.data(), data.data()),
                       doctest::Contains("one flat buffer, this collective has 2"),
                       InvalidArgument);
  CHECK_THROWS_WITH_AS(world[0].allreduce(data.data(), data.data(), -1),
                       doctest::Contains("to abstain"), InvalidArgument);
  world.round({0, 1});
}
