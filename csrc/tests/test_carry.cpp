// Layer engine: what becomes of a gradient that is late.
#include <cstring>
#include <vector>

#include "check.hpp"
#include "world.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

/// A flat of `count` float32, all `value`.
void fill_slot(Collective& rank, std::size_t count, float value) {
  for (std::size_t i = 0; i < count; ++i) {
    store(DType::float32, rank.slot(), i, static_cast<double>(value));
  }
}

double element(Collective& rank, std::size_t i) { return load(DType::float32, rank.result(), i); }

Setup carrying() {
  Setup setup;
  setup.flats = {{DType::float32, 50}};
  setup.options.late = Late::carry;
  return setup;
}

}  // namespace

TEST_CASE("a late gradient is carried to the next contribution with its weight") {
  World world(backup_workers(3, 1), carrying());
  world.round({0, 1});
  fill_slot(world[2], 50, 8);
  CHECK(!world.contribute(2, 3));
  world[2].wait();
  world[2].release();
  fill_slot(world[2], 50, 4);
  CHECK(world.contribute(2, 1));  // (3 * 8 + 1 * 4) / 4 = 7, counting 4
  world[0].release();
  fill_slot(world[0], 50, 2);
  CHECK(world.contribute(0, 1));
  for (const int rank : {0, 2}) {
    const RoundReport report = world[rank].wait();
    CHECK_EQ(report.weight, 5.0);
    CHECK_EQ(element(world[rank], 49), 6.0);  // (1 * 2 + 4 * 7) / 5
  }
  CHECK_EQ(load(DType::float32, world[2].slot(), 0), 7.0);
}

TEST_CASE("gradients that are late again and again are carried together, and each once") {
  World world(backup_workers(3, 1), carrying());
  for (int i = 0; i < 3; ++i) world.round({0, 1});
  for (const float value : {1.0F, 2.0F, 9.0F}) {
    world[2].release();
    fill_slot(world[2], 50, value);
    CHECK(!world.contribute(2, 1));
    world[2].wait();
  }
  for (const double expected : {5.0, 3.0}) {  // (1 + 2 + 9 + 8) / 4; then nothing is left
    for (const int rank : {2, 0}) {
      world[rank].release();
      fill_slot(world[rank], 50,
                rank == 2 && expected == 5.0 ? 8.0F
                : expected == 5.0            ? 5.0F
                                             : 3.0F);
      CHECK(world.contribute(rank, 1));
    }
    world.skip(1);
    for (const int rank : {0, 1, 2}) {
      CHECK_EQ(world[rank].wait().weight, expected == 5.0 ? 5.0 : 2.0);
      CHECK_EQ(element(world[rank], 0), expected);
    }
  }
}

TEST_CASE("what is carried survives a skipped round") {
  World world(backup_workers(3, 1), carrying());
  world.round({0, 1});
  world.round({0, 1});
  fill_slot(world[2], 50, 10);
  CHECK(!world.contribute(2, 1));
  world[2].wait();
  world.skip(2);
  world[2].wait();
  world[2].release();
  fill_slot(world[2], 50, 20);
  CHECK(world.contribute(2, 1));
  world[0].release();
  fill_slot(world[0], 50, 0);
  CHECK(world.contribute(0, 1));
  CHECK_EQ(world[2].wait().weight, 3.0);
  CHECK_EQ(element(world[2], 7), 10.0);  // (10 + 20 + 0) / 3
}

TEST_CASE("without carry a late gradient is gone") {
  World world(backup_workers(3, 1));
  world.round({0, 1});
  world.arrive(2);
  world.finish(2);
  world.round({2, 1});  // finish() compares with the plain mean
}

TEST_CASE("a contribution of weight one that was carried by nobody keeps its bits") {
  World world(backup_workers(2, 0), carrying());
  world.round({0, 1});
  CHECK(std::memcmp(world[1].slot(), world.contribution(1, 0).data(), 200) == 0);
}
