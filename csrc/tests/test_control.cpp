// Layer transport: the control channel between nodes, over real sockets.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "transport/control.hpp"

using namespace hvd_backup;

namespace {

using Event = ControlHub::Event;

/// A clock that a test moves.
class SetClock final : public Clock {
 public:
  Nanoseconds now() const override { return now_; }
  void advance(Nanoseconds by) { now_ += by; }

 private:
  std::atomic<Nanoseconds> now_{kSecond};
};

Frame frame(std::uint32_t channel, const std::string& text) {
  Frame made;
  made.channel = channel;
  made.kind = 7;
  for (const char letter : text) made.payload.push_back(static_cast<std::byte>(letter));
  return made;
}

std::string text(const Frame& frame) {
  std::string letters;
  for (const std::byte one : frame.payload) letters += static_cast<char>(one);
  return letters;
}

/// Lets the hub work until `done`, or fails the test after a while.
std::vector<Event> poll_until(ControlHub& hub, const std::function<bool()>& done) {
  std::vector<Event> all;
  const Nanoseconds deadline = monotonic_clock().now() + 20 * kSecond;
  while (!done()) {
    REQUIRE(monotonic_clock().now() < deadline);
    for (Event& event : hub.poll(5 * kMillisecond)) all.push_back(std::move(event));
  }
  return all;
}

/// A node's link, made while the hub works.
std::unique_ptr<ControlLink> join(ControlHub& hub, const Token& token, int node,
                                  std::vector<Event>* events = nullptr) {
  std::unique_ptr<ControlLink> link;
  std::string problem;
  std::atomic<bool> done{false};
  std::thread thread([&] {
    try {
      link = std::make_unique<ControlLink>("localhost", hub.port(), token, node, 10 * kSecond);
    } catch (const PeerFailed& error) {
      problem = error.what();
    }
    done = true;
  });
  std::vector<Event> seen = poll_until(hub, [&] { return done.load(); });
  thread.join();
  if (events != nullptr) *events = std::move(seen);
  if (!problem.empty()) throw PeerFailed(problem);
  return link;
}

/// A connection of somebody who knows nothing.
class Stranger {
 public:
  explicit Stranger(std::uint16_t port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    REQUIRE(connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0);
  }
  Stranger(const Stranger&) = delete;
  Stranger& operator=(const Stranger&) = delete;
  ~Stranger() { close(fd_); }

  void say(const std::vector<std::uint32_t>& words) const {
    send(fd_, words.data(), words.size() * sizeof words[0], MSG_NOSIGNAL);
  }
  bool is_cut_off() const {
    char byte = 0;
    const ssize_t n = recv(fd_, &byte, 1, MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno == ECONNRESET);
  }

 private:
  int fd_;
};

}  // namespace

TEST_CASE("a node that shows the token joins, and frames go both ways in their order") {
  const Token token = make_token();
  ControlHub hub(token, 3);
  std::vector<Event> events;
  const auto link = join(hub, token, 2, &events);
  REQUIRE(events.size() == 1);
  CHECK(events[0].kind == Event::Kind::joined);
  CHECK_EQ(events[0].node, 2);

  const std::string large(3 << 20, 'x');  // more than a socket holds
  std::thread sender([&] {
    for (int i = 0; i < 100; ++i) link->send(0, frame(5, std::to_string(i)));
    link->send(0, frame(6, large));
    std::size_t got = 0;
    while (got < 101) {
      for (const Event& one : link->poll(kSecond)) {
        CHECK_EQ(text(one.frame).size(), got < 100 ? std::to_string(got).size() : large.size());
        ++got;
      }
    }
  });
  std::vector<Frame> frames;
  const Nanoseconds deadline = monotonic_clock().now() + 20 * kSecond;
  while (frames.size() < 101) {
    REQUIRE(monotonic_clock().now() < deadline);
    for (Event& event : hub.poll(10 * kMillisecond)) frames.push_back(std::move(event.frame));
  }
  for (std::size_t i = 0; i < 100; ++i) CHECK_EQ(text(frames[i]), std::to_string(i));
  CHECK_EQ(frames[0].channel, 5U);
  CHECK_EQ(frames[0].kind, 7U);
  CHECK(text(frames[100]) == large);
  for (const Frame& one : frames) hub.send(2, one);
  std::atomic<bool> done{false};
  std::thread waiter([&] {
    sender.join();
    done = true;
  });
  poll_until(hub, [&] { return done.load(); });
  waiter.join();
}

TEST_CASE("a broadcast reaches every node that is there") {
  const Token token = make_token();
  ControlHub hub(token, 4);
  std::vector<std::unique_ptr<ControlLink>> links;
  links.reserve(3);
  for (int node = 1; node < 4; ++node) links.push_back(join(hub, token, node));
  hub.broadcast(frame(1, "sealed"));
  hub.send(0, frame(1, "nobody is node 0"));
  for (const auto& link : links) {
    std::vector<Event> got;
    while (got.empty()) got = link->poll(kSecond);
    REQUIRE(got.size() == 1);
    CHECK_EQ(text(got[0].frame), "sealed");
  }
}

TEST_CASE("a wrong token, a node outside of the world and a node twice are refused") {
  const Token token = make_token();
  Token wrong = token;
  wrong[31] ^= std::byte{1};
  ControlHub hub(token, 2);
  const auto link = join(hub, token, 1);
  CHECK_THROWS_WITH_AS(join(hub, wrong, 0), doctest::Contains("refused node 0"), PeerFailed);
  CHECK_THROWS_WITH_AS(join(hub, token, 2), doctest::Contains("refused node 2"), PeerFailed);
  CHECK_THROWS_WITH_AS(join(hub, token, -1), doctest::Contains("refused node -1"), PeerFailed);
  CHECK_THROWS_WITH_AS(join(hub, token, 1), doctest::Contains("refused node 1"), PeerFailed);
  hub.send(1, frame(0, "still here"));
  std::vector<Event> got;
  while (got.empty()) got = link->poll(kSecond);
  CHECK_EQ(text(got[0].frame), "still here");
}

TEST_CASE("a stranger who sends rubbish is cut off and changes nothing") {
  const Token token = make_token();
  ControlHub hub(token, 2);
  const auto link = join(hub, token, 1);
  std::mt19937 random(3);
  for (int turn = 0; turn < 50; ++turn) {
    const Stranger stranger(hub.port());
    std::vector<std::uint32_t> words(1 + random() % 40);
    for (std::uint32_t& word : words) word = static_cast<std::uint32_t>(random());
    if (turn % 3 == 0) words[0] = 0;           // a frame without payload
    if (turn % 3 == 1) words[0] = 0xFFFFFFFF;  // a frame of 4 GB
    words.resize(std::max<std::size_t>(words.size(), 3));
    if (turn % 3 == 2) words[0] = 4 * static_cast<std::uint32_t>(words.size() - 3);
    stranger.say(words);
    const auto events = poll_until(hub, [&] { return stranger.is_cut_off(); });
    CHECK(events.empty());
  }
  link->send(0, frame(0, "unmoved"));
  std::vector<Event> events;
  while (events.empty()) events = hub.poll(kSecond);
  CHECK_EQ(text(events[0].frame), "unmoved");
}

TEST_CASE("strangers who say nothing are cut off, the oldest first when they are many") {
  const Token token = make_token();
  SetClock clock;
  ControlHub hub(token, 2, kSilence, clock);
  std::vector<std::unique_ptr<Stranger>> strangers;
  strangers.reserve(80);
  for (int i = 0; i < 80; ++i) {
    strangers.push_back(std::make_unique<Stranger>(hub.port()));
    hub.poll(0);
  }
  poll_until(hub, [&] { return strangers[15]->is_cut_off(); });
  CHECK(!strangers[79]->is_cut_off());
  const auto link = join(hub, token, 1);  // among them
  clock.advance(11 * kSecond);
  poll_until(hub, [&] { return strangers[79]->is_cut_off(); });
  link->send(0, frame(0, "I stay"));
  std::vector<Event> events;
  while (events.empty()) events = hub.poll(kSecond);
  CHECK_EQ(text(events[0].frame), "I stay");
}

TEST_CASE("each end learns that the other is gone") {
  const Token token = make_token();
  auto hub = std::make_unique<ControlHub>(token, 3);
  auto first = join(*hub, token, 1);
  const auto second = join(*hub, token, 2);
  first.reset();
  std::vector<Event> events;
  while (events.empty()) events = hub->poll(kSecond);
  CHECK(events[0].kind == Event::Kind::lost);
  CHECK_EQ(events[0].node, 1);
  hub->send(1, frame(0, "into the void"));
  first = join(*hub, token, 1);  // and may come back
  const std::uint16_t port = hub->port();
  hub.reset();
  events = second->poll(10 * kSecond);
  REQUIRE(events.size() == 1);
  CHECK(events[0].kind == Event::Kind::lost);
  second->send(0, frame(0, "into the void"));
  CHECK(!second->has_unsent());
  CHECK(second->poll(0).empty());  // told once
  const std::string unreachable =
      "cannot reach the coordinator at localhost:" + std::to_string(port);
  CHECK_THROWS_WITH_AS(ControlLink("localhost", port, token, 2, kSecond),
                       doctest::Contains(unreachable.c_str()), PeerFailed);
  CHECK_THROWS_WITH_AS(ControlLink("no.such.host.invalid", port, token, 2, kSecond),
                       doctest::Contains("cannot find the coordinator at no.such.host.invalid"),
                       PeerFailed);
}

TEST_CASE("a frame that is too long is refused before it is sent") {
  const Token token = make_token();
  ControlHub hub(token, 2);
  const auto link = join(hub, token, 1);
  CHECK_THROWS_WITH_AS(link->send(0, frame(0, std::string((1 << 24) + 1, 'x'))),
                       doctest::Contains("16777217 bytes"), InvalidArgument);
}
