// Between nodes: ranks that are missing, leave or die, and whom it is told.
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

Setup on_nodes(std::vector<int> node_of) {
  Setup setup;
  setup.node_of = std::move(node_of);
  return setup;
}

}  // namespace

TEST_CASE("the time-out of a rank names the ranks that are missing on other nodes") {
  Setup setup = on_nodes({0, 0, 1, 1, 2});
  setup.options.timeout = 400 * kMillisecond;
  World world(backup_workers(5, 1), setup);
  world.arrive(0);
  world.arrive(3);
  CHECK_THROWS_WITH_AS(
      world[3].wait(),
      doctest::Contains("2 of 4 contributions after 0.4 s; missing ranks 1, 2, 4; raise"),
      RoundTimeout);
}

TEST_CASE("ranks of another node that fill the window are named") {
  Setup setup = on_nodes({0, 1, 1});
  setup.window = 1;
  setup.options.timeout = kSecond;
  World world(backup_workers(3, 2), setup);
  std::string text;
  for (int i = 0; i < 20 && text.empty(); ++i) {
    try {
      world.arrive(0);
      world.finish(0);
    } catch (const RoundTimeout& error) {
      text = error.what();
    }
  }
  CHECK(text.find("the window of 1 results is full after 1.0 s; ranks 1, 2 have yet to load "
                  "round 0") != std::string::npos);
}

TEST_CASE("when so many ranks have left that a quorum cannot be, ranks of other nodes are told") {
  World world(full_sync(3), on_nodes({0, 1, 1}));
  world[2].leave();
  world.arrive(0);
  CHECK_THROWS_WITH_AS(world[0].wait(),
                       doctest::Contains("rank 2 has left, so 3 contributions cannot"), PeerFailed);
}

TEST_CASE("that a rank has left is told to the other nodes after its last words") {
  for (int turn = 0; turn < 30; ++turn) {
    World world(full_sync(3), on_nodes({0, 1, 1}));
    StatusBoard here = world.network().board(1);
    const StatusBoard there = world.network().board(0);
    const std::vector<std::byte> words(2000, std::byte{'w'});
    here.write(2, words.data(), words.size());
    here.tell(2);
    world[2].leave();  // rings the service for both
    const std::atomic<std::uint32_t>& left = world.arena_of(0).member(2).left;
    for (int i = 0; i < 20'000'000 && left.load() == 0; ++i) pause_briefly();
    CHECK(there.read(2) == words);
  }
}

TEST_CASE("a rank that dies is buried on every node, and the service is over when all have gone") {
  World world(backup_workers(3, 1), on_nodes({0, 1, 1}));
  world.network().dead = {2};
  world.network().dead_node = 1;
  for (const int rank : {0, 1}) {
    StatusBoard board = world.network().board(world.nodes().of(rank));
    world[rank].leave();
    board.set(rank, StatusBoard::kLeft);
    board.tell(rank);
    world.network().doorbell(world.nodes().of(rank))->ring();
  }
  for (const int node : {0, 1}) {
    CHECK(world.network().services[static_cast<std::size_t>(node)]->wait_until_over(20 * kSecond));
    const StatusBoard board = world.network().board(node);
    CHECK_EQ(board.with(StatusBoard::kDead), std::vector<int>({2}));
    CHECK_EQ(board.with(StatusBoard::kLeft), std::vector<int>({0, 1}));
  }
}

TEST_CASE("when node 0 is gone, waits on other nodes end with a reason") {
  World world(backup_workers(3, 1), on_nodes({0, 1, 1}));
  world.arrive(1);
  world.network().service(0)->close();
  CHECK_THROWS_WITH_AS(world[1].wait(),
                       doctest::Contains("the coordinator, in the process of rank 0"), PeerFailed);
  CHECK_EQ(world.network().board(1).with(StatusBoard::kDead), std::vector<int>({0}));
}

TEST_CASE("when another node is gone, its ranks are dead to all the others") {
  World world(backup_workers(4, 1), on_nodes({0, 1, 1, 2}));
  world.network().service(1)->close();
  for (const int node : {0, 2}) {
    const StatusBoard board = world.network().board(node);
    for (int i = 0; i < 2000 && board.with(StatusBoard::kDead).size() < 2; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    CHECK_EQ(board.with(StatusBoard::kDead), std::vector<int>({1, 2}));
  }
}
