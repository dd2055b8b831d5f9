// Calls and options that are refused.
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

TEST_CASE("calls in the wrong order are refused and do no harm") {
  World world(backup_workers(2, 0));
  CHECK_THROWS_WITH_AS(world[0].wait(), doctest::Contains("round 0: wait() before arrive()"),
                       InvalidArgument);
  world.arrive(0);
  CHECK_THROWS_WITH_AS(world.contribute(0),
                       doctest::Contains("round 0: wait() must follow arrive()"), InvalidArgument);
  CHECK_THROWS_WITH_AS(world.skip(0), doctest::Contains("wait() must follow arrive()"),
                       InvalidArgument);
  world[0].release();  // nothing to release yet
  world.arrive(1);
  world.finish(0);
  CHECK_THROWS_WITH_AS(world[0].wait(), doctest::Contains("wait() before arrive()"),
                       InvalidArgument);
  world[0].release();
  world[0].release();  // once is enough, twice is the same
  CHECK_EQ(world[0].number(), 1);
  world.finish(1);
  world.round({0, 1});
}

TEST_CASE("a weight that cannot be is refused before anything is contributed") {
  World world(backup_workers(2, 0));
  world.fill(0);
  for (const double weight : {-2.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    CHECK_THROWS_WITH_AS(world.contribute(0, weight),
                         doctest::Contains("must be 0 (to abstain) or between 1e-30 and 1e+30"),
                         InvalidArgument);
  }
  world.round({0, 1});
}

TEST_CASE("a collective that cannot be is refused with its numbers") {
  const std::vector<Flat> flats{{DType::float32, 10}};
  CHECK_THROWS_WITH_AS(Collective::spec(full_sync(2), 0, flats, 64),
                       doctest::Contains("window=0 is not between 1 and 4096"), InvalidArgument);
  CHECK_THROWS_WITH_AS(Collective::spec(full_sync(5000), 1, flats, 64), doctest::Contains("4096"),
                       InvalidArgument);
  CHECK_THROWS_WITH_AS(Collective::spec(full_sync(2), 1, flats, 0),
                       doctest::Contains("chunk_bytes=0 is less than an element"), InvalidArgument);
  CHECK_THROWS_AS(Collective::spec(full_sync(2), 1, flats, 7), InvalidArgument);
  const World world(full_sync(2));
  Options options = calm();
  options.policy = full_sync(2);
  CHECK_THROWS_WITH_AS(Collective(world.arena(), 2, options), doctest::Contains("rank 2"),
                       InvalidArgument);
  CHECK_THROWS_WITH_AS(Collective(world.arena(), -1, options), doctest::Contains("rank -1"),
                       InvalidArgument);
  options.policy = full_sync(3);
  CHECK_THROWS_WITH_AS(Collective(world.arena(), 0, options), doctest::Contains("for 2 ranks"),
                       InvalidArgument);
  options.policy = async(2);
  CHECK_THROWS_WITH_AS(Collective(world.arena(), 0, options), doctest::Contains("lockstep"),
                       InvalidArgument);
}
