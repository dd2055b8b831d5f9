// Layer engine: what node 0 does for the others, with neither sockets nor a clock.
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "internode/coordinator_server.hpp"

using namespace hvd_backup;

namespace {

constexpr std::uint32_t kChannel = 7;

Frame arrival(RoundNumber round, int rank) {
  return make_frame(Message::report, kChannel, encode(NodeReport{round, {{rank, 1, 0}}}));
}

bool is(const Frame& frame, Message kind) {
  return frame.kind == static_cast<std::uint32_t>(kind) && frame.channel == kChannel;
}

}  // namespace

TEST_CASE("the report that completes the quorum is answered with a seal for all nodes") {
  CoordinatorServer coordination(3);
  coordination.add(kChannel, backup_workers(3, 1));
  CHECK(coordination.take(arrival(0, 2), 10).empty());
  const std::vector<Frame> told = coordination.take(arrival(0, 0), 20);
  REQUIRE(told.size() == 1);
  CHECK(is(told[0], Message::seal));
  const Seal seal = decode_seal(told[0].payload.data(), told[0].payload.size(), 3);
  CHECK_EQ(seal.contributors, std::vector<int>({0, 2}));
  CHECK(coordination.take(arrival(0, 1), 30).empty());  // late
  CHECK_EQ(coordination.wake_at(), 0);
}

TEST_CASE("a round that stays open is told about after 100 ms, and then ever more seldom") {
  CoordinatorServer coordination(2);
  coordination.add(kChannel, full_sync(2));
  coordination.take(arrival(0, 1), 0);
  std::vector<Nanoseconds> at;
  for (Nanoseconds now = 0; now < 2 * kSecond; now += kMillisecond) {
    for (const Frame& frame : coordination.tick(now)) {
      CHECK(is(frame, Message::so_far));
      const NodeReport so_far = decode_report(frame.payload.data(), frame.payload.size(), 2);
      REQUIRE(so_far.arrivals.size() == 1);
      CHECK_EQ(so_far.arrivals[0].rank, 1);
      at.push_back(now / kMillisecond);
    }
  }
  CHECK_EQ(at, std::vector<Nanoseconds>({100, 300, 700, 1500}));
  coordination.take(arrival(0, 0), 2 * kSecond);
  CHECK(coordination.tick(10 * kSecond).empty());
}

TEST_CASE("what all must know is passed on; what only the coordinator may say is refused") {
  CoordinatorServer coordination(2);
  coordination.add(kChannel, full_sync(2));
  for (const Message kind : {Message::lagging, Message::left, Message::status}) {
    CHECK_EQ(coordination.take(make_frame(kind, kChannel, {}), 0).size(), 1U);
  }
  for (const Message kind : {Message::seal, Message::so_far, static_cast<Message>(99)}) {
    CHECK_THROWS_WITH_AS(coordination.take(make_frame(kind, kChannel, {}), 0),
                         doctest::Contains("is not one for the coordinator"), InvalidMessage);
  }
  CHECK_THROWS_WITH_AS(coordination.take(make_frame(Message::report, kChannel, {}), 0),
                       doctest::Contains("ends too early"), InvalidMessage);
  CHECK(coordination.take(make_frame(Message::report, 8, {}), 0).empty());  // all have left it
}
