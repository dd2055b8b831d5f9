// Layer engine: contributions of weight 0, and sums instead of means.
#include <cstddef>
#include <functional>
#include <vector>

#include "check.hpp"
#include "world.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

constexpr int kWorlds[] = {1, 2, 3, 4, 5, 7};
constexpr int kRounds = 8;

/// In every round another rank abstains, in round 2 all do, in round 5 nobody.
double some_abstain(int rank, RoundNumber round) {
  const int one = static_cast<int>(round);
  if (one == 2) return 0;
  return one != 5 && (rank + one) % 3 == 0 ? 0 : 0.5 + rank;
}

/// Every rank in a thread of its own; finish() compares each bit with the mean of those that do not
/// abstain, whose slots hold NaN.
void run(World& world) {
  check::in_threads(world.size(), [&](int rank) {
    for (int round = 0; round < kRounds; ++round) {
      world.arrive(rank);
      CHECK_EQ(world.finish(rank).number, round);
    }
  });
}

Setup abstaining() {
  Setup setup;
  setup.flats = {{DType::float32, 301}, {DType::float16, 77}, {DType::float64, 5}};
  setup.weight = some_abstain;
  return setup;
}

/// One node, and nodes of one and of two ranks.
void in_all_worlds(const Setup& setup) {
  for (const int size : kWorlds) {
    for (const int backups : {0, 1, size - 1}) {
      if (backups >= size || (backups == 1 && size == 2)) continue;
      World together(backup_workers(size, backups), setup);
      run(together);
      for (const int per_node : {1, 2}) {
        if (per_node >= size) continue;
        Setup spread = setup;
        spread.node_of = split(size, per_node);
        World world(backup_workers(size, backups), spread);
        run(world);
      }
    }
  }
}

}  // namespace

TEST_CASE("who abstains counts for the quorum, and its slot is not read, in every world") {
  in_all_worlds(abstaining());
}

TEST_CASE("a sum is not divided, whoever abstains, in every world") {
  Setup setup = abstaining();
  setup.options.sum = true;
  in_all_worlds(setup);
}

TEST_CASE("if all contributors abstain, the result is zero and has no weight") {
  Setup setup;
  setup.weight = [](int rank, RoundNumber /*round*/) { return rank < 2 ? 0 : 1; };
  World world(backup_workers(3, 1), setup);
  world.arrive(0);
  world.arrive(1);
  for (const int rank : {0, 1, 2}) {
    if (rank == 2) CHECK(!world.arrive(2));
    const RoundReport report = world.finish(rank);
    CHECK_EQ(report.weight, 0.0);
    CHECK_EQ(report.contributors, std::vector<int>({0, 1}));
    for (std::size_t i = 0; i < 301; ++i) {
      CHECK_EQ(load(DType::float32, world[rank].result(), i), 0.0);
    }
  }
}

TEST_CASE("an all-reduce of weight 0 takes nothing of its memory") {
  Setup setup;
  setup.flats = {{DType::float32, 40000}};
  setup.options.remote_reads = true;
  World world(backup_workers(2, 0), setup);
  check::in_threads(2, [&](int rank) {
    std::vector<std::byte> data(40000 * sizeof(float), std::byte{0xFF});
    if (rank == 1) fill_with_noise(DType::float32, data.data(), 40000, 7);
    const std::vector<std::byte> before = data;
    CHECK_EQ(world[rank].allreduce(data.data(), data.data(), rank).weight, 1.0);
    if (rank == 1) CHECK(data == before);
    if (rank == 0) CHECK(load(DType::float32, data.data(), 39999) <= 1);
  });
}

TEST_CASE("what is carried is contributed by a rank that abstains, and nothing is carried of it") {
  Setup setup;
  setup.flats = {{DType::float32, 3}};
  setup.options.late = Late::carry;
  World world(backup_workers(3, 1), setup);
  const auto round_without_2 = [&] {
    for (const int rank : {0, 1}) {
      world[rank].release();
      store(DType::float32, world[rank].slot(), 0, 1);
      CHECK(world.contribute(rank, 1));
    }
    for (const int rank : {0, 1}) world[rank].wait();
  };
  const auto late = [&](double value, double weight) {
    world[2].release();
    store(DType::float32, world[2].slot(), 0, value);
    CHECK(!world.contribute(2, weight));
    world[2].wait();
  };
  round_without_2();
  round_without_2();
  late(8, 2);
  late(std::nan(""), 0);  // on top of the 8, which it carries on
  world[2].release();
  store(DType::float32, world[2].slot(), 0, std::nan(""));
  CHECK(world.contribute(2, 0));
  world[0].release();
  store(DType::float32, world[0].slot(), 0, 2);
  CHECK(world.contribute(0, 1));
  CHECK_EQ(world[0].wait().weight, 3.0);
  CHECK_EQ(load(DType::float32, world[0].result(), 0), 6.0);  // (2 * 8 + 1 * 2) / 3
}
