// Layer engine: worlds whose ranks are spread over several nodes.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "world.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

constexpr int kWorlds[] = {2, 3, 4, 5, 7};

Setup on_nodes(std::vector<int> node_of) {
  Setup setup;
  setup.node_of = std::move(node_of);
  return setup;
}

/// Nodes of one, two and three ranks, uneven ones, and ranks that are dealt out in turn.
std::vector<std::vector<int>> splits(int world) {
  std::vector<std::vector<int>> all;
  for (const int per_node : {1, 2, 3}) {
    if (per_node >= world) continue;
    all.push_back(split(world, per_node));
    all.push_back(split(world, per_node, true));
  }
  std::vector<int> uneven(static_cast<std::size_t>(world), 1);
  uneven[0] = 0;
  all.push_back(uneven);  // one rank here, the others there
  uneven.assign(static_cast<std::size_t>(world), 0);
  uneven.back() = 1;
  all.push_back(uneven);
  return all;
}

/// Every rank in a thread of its own; every rank must see the same contributors.
void run(World& world, int rounds, const std::function<void(int rank, int round)>& before = {}) {
  std::vector<std::vector<RoundReport>> reports(static_cast<std::size_t>(world.size()));
  check::in_threads(world.size(), [&](int rank) {
    for (int i = 0; i < rounds; ++i) {
      if (before) before(rank, i);
      const bool maybe = world.arrive(rank);
      const RoundReport report = world.finish(rank);
      CHECK_EQ(report.number, i);
      CHECK((maybe || !report.contributed));
      reports[static_cast<std::size_t>(rank)].push_back(report);
    }
  });
  for (const auto& mine : reports) {
    REQUIRE(mine.size() == reports[0].size());
    for (std::size_t i = 0; i < mine.size(); ++i) {
      CHECK_EQ(mine[i].contributors, reports[0][i].contributors);
      CHECK_EQ(mine[i].weight, reports[0][i].weight);
      CHECK_EQ(mine[i].sealed_at - mine[i].first_at,
               reports[0][i].sealed_at - reports[0][i].first_at);
    }
  }
}

}  // namespace

TEST_CASE("every rank of every node gets the same bits, for every world, split and b") {
  for (const int size : kWorlds) {
    for (const std::vector<int>& node_of : splits(size)) {
      for (const int backups : {0, 1, size - 1}) {
        if (backups >= size) continue;
        for (const bool errands : {true, false}) {
          Setup setup = on_nodes(node_of);
          setup.errands = errands;
          World world(backup_workers(size, backups), setup);
          run(world, 6);
        }
      }
    }
  }
}

TEST_CASE("between nodes: flats of several dtypes, empty ones among them, go in one round") {
  Setup setup = on_nodes({0, 0, 1, 2, 2});
  setup.flats = {{DType::float16, 1000},
                 {DType::float64, 33},
                 {DType::float32, 0},
                 {DType::bfloat16, 1},
                 {DType::float32, 4097}};
  World world(backup_workers(5, 1), setup);
  run(world, 10);
}

TEST_CASE("between nodes: a round without any element is a round all the same") {
  Setup setup = on_nodes({0, 1, 1});
  setup.flats = {};
  World world(backup_workers(3, 1), setup);
  run(world, 5);
}

TEST_CASE("between nodes: contributions count as much as their weights say") {
  Setup setup = on_nodes({0, 0, 1, 1, 2});
  setup.weight = [](int rank, RoundNumber round) {
    return 0.5 + rank + static_cast<double>(round % 3) / 3;
  };
  World world(backup_workers(5, 2), setup);
  run(world, 12);
}

TEST_CASE(
    "between nodes: a window of one, chunks of a cache line, more of them than fit at a time") {
  Setup setup = on_nodes({0, 1, 1, 2});
  setup.window = 1;
  setup.chunk_bytes = 64;
  setup.flats = {{DType::float32, 3001}};
  World world(backup_workers(4, 1), setup);
  run(world, 20);
}

TEST_CASE("sums travel before the seal if every rank must contribute, and only then") {
  for (const int backups : {0, 1}) {
    World world(backup_workers(4, backups), on_nodes({0, 0, 1, 2}));
    const auto sent_by = [&world](int node) { return world.network().data.sent_by(node) > 0; };
    world.arrive(0);
    world.arrive(2);
    for (int i = 0; i < (backups == 0 ? 2000 : 10) && !sent_by(1); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    CHECK_EQ(sent_by(1), backups == 0);
    CHECK(!sent_by(0));  // a rank of it is missing
    world.arrive(1);
    world.arrive(3);
    for (const int rank : {0, 1, 2, 3}) world.finish(rank);
  }
}

TEST_CASE("a round that has begun and is never sealed keeps nobody from ending") {
  World world(full_sync(2), on_nodes({0, 1}));
  world.arrive(1);
  world[0].leave();
  CHECK_THROWS_WITH_AS(world[1].wait(), doctest::Contains("rank 0 has left"), PeerFailed);
  world[1].leave();
  for (const int rank : {0, 1}) {
    StatusBoard board = world.network().board(rank);
    board.set(rank, StatusBoard::kLeft);
    board.tell(rank);
    world.network().doorbell(rank)->ring();
  }
  for (const int node : {0, 1}) {
    CHECK(world.network().service(node)->wait_until_over(1500 * kMillisecond));
  }
}

TEST_CASE("a node that is late gets the same bits rounds later, and sends nothing") {
  Setup setup = on_nodes({0, 1, 2});
  setup.window = 5;
  World world(backup_workers(3, 1), setup);
  for (int i = 0; i < 5; ++i) world.round({1, 0});
  for (int i = 0; i < 5; ++i) {
    CHECK(world[2].sealed_without_me());
    CHECK(!world.arrive(2));
    const RoundReport report = world.finish(2);
    CHECK_EQ(report.number, i);
    CHECK_EQ(report.contributors, std::vector<int>({0, 1}));
  }
  CHECK_EQ(world.network().data.sent_by(2), 0U);
  CHECK(!world[2].sealed_without_me());
}

TEST_CASE("a node cut off from the others delays them only when the window is full") {
  Setup setup = on_nodes({0, 1, 2});
  setup.window = 4;
  World world(backup_workers(3, 1), setup);
  world.round({0, 1, 2});
  world.network().data.cut(2);
  for (int i = 0; i < 4; ++i) world.round({0, 1});
  world.network().data.connect(2);
  for (int i = 0; i < 4; ++i) {
    world.arrive(2);
    world.finish(2);
  }
  world.round({2, 1});
}

TEST_CASE("two threads of a process may go through rounds of two collectives at a time") {
  std::vector<Memory> memory;  // outlives the services
  NodeNetwork network({0, 1});
  const Policy policy = full_sync(2);
  std::vector<std::unique_ptr<Collective>> ranks;
  for (std::uint32_t channel = 1; channel <= 2; ++channel) {
    for (int rank = 0; rank < 2; ++rank) {
      const ArenaSpec spec = Collective::spec(policy, 1, {{DType::float32, 100}}, 4096, {rank});
      memory.emplace_back(Arena::bytes(spec));
      const Arena arena(spec, memory.back().data());
      Options options = calm();
      options.policy = policy;
      options.service = network.doorbell(rank);
      options.progress_engine = network.service(rank);
      network.service(rank)->add(channel, arena, options, nullptr);
      ranks.push_back(std::make_unique<Collective>(arena, rank, options));
    }
  }
  check::in_threads(4, [&](int i) {
    Collective& mine = *ranks[static_cast<std::size_t>(i)];
    for (int round = 0; round < 100; ++round) {
      CHECK_EQ(mine.arrive_and_wait().weight, 2.0);
      mine.release();
    }
  });
  ranks.clear();
}

TEST_CASE("a late gradient that is carried on counts in the next round, between nodes too") {
  Setup setup = on_nodes({0, 1});
  setup.options.late = Late::carry;
  setup.flats = {{DType::float64, 100}};
  World world(backup_workers(2, 1), setup);
  world.arrive(0);
  world.finish(0);
  world.arrive(1);  // late
  world.finish(1);
  world.arrive(1);
  const RoundReport report = world[1].wait();
  CHECK_EQ(report.contributors, std::vector<int>({1}));
  CHECK_EQ(report.weight, 2.0);
}

TEST_CASE("the grace keeps a round open between nodes until all are in, or it is over") {
  Setup setup = on_nodes({0, 1, 1});
  World patient(backup_workers(3, 1, 30 * kSecond), setup);
  patient.arrive(0);
  patient.arrive(1);
  CHECK(patient.arrive(2));
  for (const int rank : {0, 1, 2}) {
    CHECK_EQ(patient.finish(rank).contributors, std::vector<int>({0, 1, 2}));
  }
  World brief(backup_workers(3, 1, 5 * kMillisecond), setup);
  brief.arrive(0);
  brief.arrive(2);
  CHECK_EQ(brief.finish(0).contributors, std::vector<int>({0, 2}));
  CHECK(!brief.arrive(1));
  brief.finish(1);
  brief.finish(2);
}

TEST_CASE("statuses reach the other nodes when they are told, whole and in their order") {
  World world(full_sync(2), on_nodes({0, 1}));
  StatusBoard here = world.network().board(1);
  const StatusBoard there = world.network().board(0);
  std::vector<std::byte> last;
  for (int i = 1; i <= 200; ++i) {
    last.assign(static_cast<std::size_t>(i), static_cast<std::byte>(i));
    here.write(1, last.data(), last.size());
    here.tell(1);
    world.network().doorbell(1)->ring();
  }
  for (int i = 0; i < 2000 && there.read(1) != last; ++i) {
    const std::vector<std::byte> seen = there.read(1);
    for (const std::byte one : seen) CHECK(one == static_cast<std::byte>(seen.size()));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  CHECK(there.read(1) == last);
}

TEST_CASE("what has come of a result is copied out while the rest is on its way") {
  Setup setup = on_nodes({0, 1});
  setup.flats = {{DType::float32, 128}};  // two chunks: each node owns one
  setup.options.timeout = 400 * kMillisecond;
  World world(full_sync(2), setup);
  world.network().data.hold(3);  // the results of collective 1: each node has but its own chunk
  check::in_threads(2, [&](int rank) {
    const std::vector<float> in(128, static_cast<float>(rank));
    std::vector<float> out(128, -1);
    CHECK_THROWS_WITH_AS(world[rank].allreduce(reinterpret_cast<const std::byte*>(in.data()),
                                               reinterpret_cast<std::byte*>(out.data())),
                         doctest::Contains("sealed, but no result"), RoundTimeout);
    std::vector<float> expected(128, -1);
    // Copied out in their order: what lies after a missing chunk has to wait.
    if (rank == 0) std::fill_n(expected.begin(), 64, 0.5F);
    CHECK(out == expected);
  });
}

TEST_CASE("large results reach a node that was cut off, those in memory apart and the others") {
  Setup setup = on_nodes({0, 1, 2});
  setup.flats = {{DType::float32, 100'000}};
  setup.chunk_bytes = 64 * 1024;
  setup.window = 4;
  World world(backup_workers(3, 1), setup);
  for (int turn = 0; turn < 2; ++turn) {
    world.network().data.cut(2);
    for (int i = 0; i < 4; ++i) world.round({0, 1});
    world.network().data.connect(2);
    for (int i = 0; i < 4; ++i) {
      world.skip(2);
      CHECK(!world.finish(2).contributed);
    }
  }
}

TEST_CASE("random sleeps, skips and private memory on nodes of all sizes leave all with one mean") {
  std::mt19937_64 random(11);
  for (int turn = 0; turn < (kThreadSanitizer ? 4 : 12); ++turn) {
    const int size = kWorlds[random() % 5];
    const auto all = splits(size);
    Setup setup = on_nodes(all[random() % all.size()]);
    setup.flats = {{random() % 2 == 0 ? DType::float32 : DType::bfloat16, 1 + random() % 5000}};
    setup.window = 1 + static_cast<int>(random() % 4);
    setup.options.remote_reads = random() % 2 == 0;
    setup.errands = random() % 2 == 0;
    const int backups = static_cast<int>(random() % static_cast<std::uint64_t>(size));
    World world(backup_workers(size, backups), setup);
    const bool in_private = random() % 2 == 0;
    const std::uint64_t seed = random();
    check::in_threads(size, [&](int rank) {
      std::mt19937_64 dice(seed + static_cast<unsigned>(rank));
      std::vector<std::byte> data;
      for (int i = 0; i < 30; ++i) {
        if (dice() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(dice() % 800));
        if (world[rank].sealed_without_me() && dice() % 2 == 0) {
          world.skip(rank);
          CHECK(!world.finish(rank).contributed);
        } else if (in_private) {
          data = world.contribution(rank, world[rank].number());
          world[rank].release();
          const RoundReport report = world[rank].allreduce(data.data(), data.data());
          world.check(rank, report, data.data());
        } else {
          world.arrive(rank);
          world.finish(rank);
        }
      }
    });
  }
}
