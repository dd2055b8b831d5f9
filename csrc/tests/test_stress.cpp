// Layer engine: ranks that arrive, help, skip and stall at random, thousands of rounds of them.
#include <atomic>
#include <chrono>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "world.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

/// One run: a world, and how its ranks behave.
struct Run {
  Policy policy;
  Setup setup;
  int rounds = 0;
  std::uint64_t seed = 0;
  bool private_memory = false;  // allreduce() rather than arrive() and wait()
};

/// A rank's life: every round once, at its own pace.
class Rank {
 public:
  Rank(World& world, int rank, const Run& run)
      : world_(world),
        rank_(rank),
        run_(run),
        random_(run.seed * 1000 + static_cast<unsigned>(rank)) {
    data_.resize(world.arena().contribution_bytes());
  }

  RoundReport round() {
    stall();
    if (world_[rank_].sealed_without_me() && below(2) == 0) return skip();
    if (run_.private_memory) return allreduce();
    const bool in_time = world_.arrive(rank_);
    stall();
    const RoundReport report = world_.finish(rank_);
    CHECK_EQ(report.contributed, in_time);
    return report;
  }

 private:
  std::uint64_t below(std::uint64_t n) { return random_() % n; }

  /// Mostly nothing, often a turn for another rank, at times a sleep, seldom a long one.
  void stall() {
    const std::uint64_t dice = below(400);
    if (dice < 60) std::this_thread::yield();
    if (dice < 20) std::this_thread::sleep_for(std::chrono::microseconds(below(200)));
    if (dice == 0) std::this_thread::sleep_for(std::chrono::milliseconds(4));
  }

  RoundReport skip() {
    world_.skip(rank_);
    const RoundReport report = world_.finish(rank_);
    CHECK(!report.contributed);
    return report;
  }

  RoundReport allreduce() {
    const std::vector<std::byte> mine = world_.contribution(rank_, world_[rank_].number());
    std::memcpy(data_.data(), mine.data(), mine.size());
    world_[rank_].release();
    const RoundReport report = world_[rank_].allreduce(data_.data(), data_.data());
    world_.check(rank_, report, data_.data());
    return report;
  }

  World& world_;
  int rank_;
  const Run& run_;
  std::mt19937_64 random_;
  std::vector<std::byte> data_;
};

/// Runs it, and compares the ranks' contributors of every round.
void live(const Run& run) {
  World world(run.policy, run.setup);
  std::vector<std::vector<std::vector<int>>> seen(static_cast<std::size_t>(world.size()));
  check::in_threads(world.size(), [&](int rank) {
    Rank me(world, rank, run);
    for (int i = 0; i < run.rounds; ++i) {
      const RoundReport report = me.round();
      CHECK_EQ(report.number, i);
      seen[static_cast<std::size_t>(rank)].push_back(report.contributors);
    }
    world[rank].leave();
  });
  for (const auto& mine : seen) CHECK(mine == seen[0]);
}

/// Worlds of 2 to 6 ranks, any b, windows of 1 to 4, small chunks, now and then several flats.
Run random_run(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto below = [&random](int n) {
    return static_cast<int>(random() % static_cast<unsigned>(n));
  };
  const int world = 2 + below(5);
  Run run;
  run.policy = backup_workers(world, below(world));
  run.setup.window = 1 + below(4);
  run.setup.chunk_bytes = below(2) == 0 ? 64 : 192;
  run.setup.flats = {{DType::float32, static_cast<std::size_t>(1 + below(200))}};
  if (below(3) == 0) run.setup.flats.push_back({DType::float64, 9});
  // Looks without sleep are rare, so that bells are rung and slept on.
  if (below(2) == 0) run.setup.options.spin_limits = {0, 0};
  run.seed = seed;
  return run;
}

}  // namespace

// Options::stall is large in these runs (calm()): who supersedes a helper that is slow, not dead,
// lets it read slots that their owners already write for the next round. What it makes of them
// goes to a buffer nobody reads, but for ThreadSanitizer it is a data race, and rightly so.

TEST_CASE("thousands of rounds at random paces have the right bits on every rank") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Run run = random_run(seed);
    run.rounds = kThreadSanitizer ? 150 : 400;
    live(run);
  }
}

TEST_CASE("so have rounds that stay open for a grace") {
  for (std::uint64_t seed = 20; seed < 24; ++seed) {
    Run run = random_run(seed);
    run.policy.grace = 100 * kMicrosecond;
    run.rounds = kThreadSanitizer ? 100 : 500;
    live(run);
  }
}

TEST_CASE("so have rounds from private memory to private memory") {
  for (std::uint64_t seed = 30; seed < 36; ++seed) {
    Run run = random_run(seed);
    run.private_memory = true;
    const bool large = seed % 2 == 0;  // read remotely rather than staged
    run.setup.flats = {{DType::float32, large ? 17'000U : 150U}};
    run.setup.chunk_bytes = large ? 8192 : 64;
    run.setup.options.remote_reads = true;
    run.rounds = large ? 30 : 300;
    live(run);
  }
}

TEST_CASE("so have rounds whose helpers supersede each other all the time") {
  if (kThreadSanitizer) SKIP("under ThreadSanitizer: superseded helpers race by design");
  for (std::uint64_t seed = 40; seed < 64; ++seed) {
    Run run = random_run(seed);
    run.setup.options.stall = static_cast<Nanoseconds>(seed % 3) * kMicrosecond;
    run.private_memory = seed % 2 == 0;
    if (run.private_memory) run.setup.flats.resize(1);
    run.rounds = 300;
    live(run);
  }
}

TEST_CASE("a rank that sleeps through many rounds catches up, again and again") {
  Setup setup;
  setup.window = 8;
  World world(backup_workers(3, 1), setup);
  check::in_threads(3, [&](int rank) {
    for (int i = 0; i < 400; ++i) {
      if (rank == 2 && i % 40 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(10));
      world.arrive(rank);
      world.finish(rank);
    }
  });
}
