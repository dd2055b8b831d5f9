// Layer engine: a node's service that cannot go on.
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "node_network.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

/// Nothing ever comes of it; from some time on, nobody can sleep on it any more.
class Sleepless final : public Control {
 public:
  Sleepless() {
    std::array<int, 2> ends{};
    if (pipe(ends.data()) != 0) throw SystemError("pipe", errno);
    sound_ = Descriptor(ends[0]);
    other_end_ = Descriptor(ends[1]);
    // NOLINTNEXTLINE(cppcoreguidelines-pro-type-vararg,hicpp-vararg)
    unsound_ = Descriptor(open("/proc/self/exe", O_RDONLY));  // epoll refuses plain files
  }

  std::vector<Event> poll(Nanoseconds /*timeout*/) override { return {}; }
  void send(int /*node*/, const Frame& /*frame*/) override {}
  void broadcast(const Frame& /*frame*/) override {}
  bool has_unsent() const override { return false; }
  void watch(int /*fd*/) override {}
  int fd() const override { return breaks ? unsound_.get() : sound_.get(); }

  std::atomic<bool> breaks{false};

 private:
  Descriptor sound_;
  Descriptor other_end_;
  Descriptor unsound_;
};

}  // namespace

TEST_CASE("a service whose thread cannot go on says why, and the process lives") {
  NodeNetwork network({0, 1, 1});
  auto control = std::make_unique<Sleepless>();
  Sleepless& breaking = *control;
  network.start(1, std::move(control));
  NodeService& service = *network.services.back();
  CHECK(service.problem().empty());
  service.start();
  breaking.breaks = true;
  service.stop();  // the thread takes over, and wants to sleep
  CHECK(service.wait_until_over(10 * kSecond));
  CHECK(service.problem().find("cannot watch a file descriptor") != std::string::npos);
  // Nobody waits any more for ranks that cannot be heard of.
  CHECK_EQ(network.board(1).with(StatusBoard::kCutOff), std::vector<int>({0}));
  service.start();  // a rank comes all the same
  service.run(kMillisecond);
  service.stop();
  service.close();
}

TEST_CASE("when the coordinator is gone, nothing is heard of third nodes any more") {
  NodeNetwork network({0, 1, 2});
  network.service(0)->close();
  while (network.board(1).with(StatusBoard::kDead).empty()) std::this_thread::yield();
  CHECK(network.service(1)->wait_until_over(10 * kSecond));
  CHECK_EQ(network.board(1).with(StatusBoard::kDead), std::vector<int>({0}));
  CHECK_EQ(network.board(1).with(StatusBoard::kCutOff), std::vector<int>({2}));
}
