// Layer engine: private memory is read only as long as the call that lent it.
#include <cstring>
#include <stdexcept>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "world.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

TEST_CASE("the input of an all-reduce that was interrupted is not read after the call has ended") {
  Setup setup;
  setup.flats = {{DType::float32, 20'000}};
  setup.options.remote_reads = true;
  setup.adjust = [](int rank, Options& options) {
    if (rank == 1)
      options.patrol = []() -> std::vector<int> { throw std::runtime_error("Ctrl-C"); };
  };
  World world(full_sync(2), setup);
  std::vector<std::byte> one = world.contribution(1, 0);
  CHECK_THROWS_WITH_AS(world[1].allreduce(one.data(), one.data()), doctest::Contains("Ctrl-C"),
                       std::runtime_error);
  std::memset(one.data(), 0xFF, one.size());  // the caller's memory is its own again
  std::vector<std::byte> zero = world.contribution(0, 0);
  try {
    const RoundReport report = world[0].allreduce(zero.data(), zero.data());
    world.check(0, report, zero.data());  // right, or
  } catch (const PeerFailed& error) {     // an error; but not NaN
    CHECK(std::strstr(error.what(), "interrupted") != nullptr);
  }
}

TEST_CASE("a rank that found another dead amid the round tells the others so") {
  Setup setup;
  setup.flats = {{DType::float32, 20'000}};
  setup.options.remote_reads = true;
  World world(backup_workers(3, 1), setup);
  std::vector<std::byte> data = world.contribution(0, 0);
  world.arrive(2);
  bury(world.arena(), 2, data.data());
  CHECK_THROWS_WITH_AS(world[0].allreduce(data.data(), data.data()),
                       doctest::Contains("round 0, rank 0: rank 2 has died amid the round"),
                       PeerFailed);
  CHECK_THROWS_WITH_AS(
      world.contribute(1),
      doctest::Contains("rank 0 failed: round 0, rank 0: rank 2 has died amid the round"),
      PeerFailed);
}
