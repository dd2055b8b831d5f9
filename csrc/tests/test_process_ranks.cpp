// Layer engine, with processes for ranks: what happens to them when some are stopped or killed.
#include <linux/capability.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <functional>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "memory/descriptor.hpp"
#include "memory/life_lock.hpp"
#include "memory/segment.hpp"
#include "world.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

constexpr std::size_t kRoom = std::size_t{8} << 20;

/// A world whose ranks are forked children, and a segment for its arena.
class Family {
 public:
  Family(const Policy& policy, Setup setup)
      : segment_(Segment::create(kRoom)), world_(policy, inside(std::move(setup), segment_)) {
    REQUIRE(Arena::bytes(world_.arena().spec()) + sizeof(Board) <= kRoom);
  }
  Family(const Family&) = delete;
  Family& operator=(const Family&) = delete;
  ~Family() {
    for (const pid_t child : children_) {
      kill(child, SIGKILL);
      waitpid(child, nullptr, 0);
    }
  }

  /// What the ranks and the parent tell each other.
  struct Board {
    std::atomic<int> there;     // ranks that have taken their life lock
    std::atomic<int> finished;  // ranks whose life is over
    std::atomic<int> rounds;    // of all ranks together
  };

  World& world() { return world_; }
  /// In a child: the ranks whose process is gone.
  std::vector<int> dead() const { return lock_ ? lock_->dead() : std::vector<int>{}; }
  Board& board() const { return *reinterpret_cast<Board*>(segment_.data() + kRoom - 4096); }

  /// Forks the ranks and waits until all are there; each lives `life(rank)`, and fails the case if
  /// a check in it fails.
  void start(const std::function<void(int)>& life) {
    for (int rank = 0; rank < world_.size(); ++rank) {
      pid_t child = -1;
      {
        const KeptByChildren keep;
        child = fork();
      }
      REQUIRE(child >= 0);
      if (child == 0) be(rank, life);
      children_.push_back(child);
    }
    while (board().there < world_.size()) std::this_thread::yield();
  }

  void signal(int rank, int number) { kill(children_[static_cast<std::size_t>(rank)], number); }

  /// SIGSTOP, and waits until it is in effect.
  void stop(int rank) {
    signal(rank, SIGSTOP);
    waitpid(children_[static_cast<std::size_t>(rank)], nullptr, WUNTRACED);
  }

  /// Waits for the ranks; all but `killed` must have ended well.
  void join(int killed = -1) {
    for (int rank = 0; rank < world_.size(); ++rank) {
      int status = 0;
      waitpid(children_[static_cast<std::size_t>(rank)], &status, 0);
      if (rank == killed) {
        CHECK(WIFSIGNALED(status));
      } else {
        CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
      }
    }
    children_.clear();
  }

 private:
  static Setup inside(Setup setup, const Segment& segment) {
    setup.memory = segment.data();
    return setup;
  }

  [[noreturn]] void be(int rank, const std::function<void(int)>& life) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // or a time limit would leave stopped ranks behind
    INFO("rank ", rank);
    check::noting_exceptions([&] {
      std::vector<int> ranks(static_cast<std::size_t>(world_.size()));
      std::iota(ranks.begin(), ranks.end(), 0);
      lock_.emplace(segment_.fd(), std::move(ranks), rank);
      world_.arena().member(rank).pid.store(getpid());
      board().there.fetch_add(1);
      while (board().there < world_.size()) std::this_thread::yield();
      life(rank);
    });
    board().finished.fetch_add(1);
    _exit(check::failures() == 0 ? 0 : 1);
  }

  Segment segment_;
  std::optional<LifeLock> lock_;
  World world_;
  std::vector<pid_t> children_;
};

void pause_for(std::chrono::microseconds time) { std::this_thread::sleep_for(time); }

}  // namespace

TEST_CASE("ranks that are stopped and continued at any instruction get the right bits") {
  Setup setup;
  setup.window = 2;
  setup.chunk_bytes = 64;
  setup.options.stall = 200 * kMicrosecond;
  const int rounds = kThreadSanitizer ? 200 : 1500;
  for (const int backups : {0, 1, 2}) {
    Family family(backup_workers(4, backups), setup);
    World& world = family.world();
    family.start([&](int rank) {
      for (int i = 0; i < rounds; ++i) {
        if (world[rank].sealed_without_me()) {
          world.skip(rank);
        } else {
          world.arrive(rank);
        }
        CHECK_EQ(world.finish(rank).number, i);
      }
    });
    std::mt19937_64 random(3);
    while (family.board().finished < world.size()) {
      const int rank = static_cast<int>(random() % 4);
      family.signal(rank, SIGSTOP);
      pause_for(std::chrono::microseconds(random() % 2000));
      family.signal(rank, SIGCONT);
      pause_for(std::chrono::microseconds(random() % 500));
    }
    family.join();
  }
}

TEST_CASE("a rank that is stopped for long delays nobody until the window is full") {
  constexpr std::uint64_t kRounds = 200;
  Setup setup;
  setup.window = 20;
  setup.options.stall = 5 * kMillisecond;
  Family family(backup_workers(3, 1), setup);
  World& world = family.world();
  family.start([&](int rank) {
    for (std::uint64_t i = 0; i < kRounds; ++i) {
      world.arrive(rank);
      world.finish(rank);
    }
  });
  const auto released = [&world](int rank) { return world.arena().member(rank).released.load(); };
  for (int i = 0; i < 3; ++i) {
    while (released(2) < std::uint64_t{30} * static_cast<std::uint64_t>(i))
      std::this_thread::yield();
    family.stop(2);
    // The round it is in, and a window of twenty; the last round of all is not released.
    const std::uint64_t limit = std::min(released(2) + 21, kRounds - 1);
    while (released(0) != limit || released(1) != limit) std::this_thread::yield();
    pause_for(std::chrono::milliseconds(5));
    CHECK_EQ(released(0), limit);
    CHECK_EQ(released(1), limit);
    family.signal(2, SIGCONT);
  }
  family.join();
  CHECK_EQ(released(2), kRounds - 1);
}

TEST_CASE("a rank that is killed at any instruction is named to all others, whose bits are right") {
  for (int trial = 0; trial < 8; ++trial) {
    Family* self = nullptr;
    Setup setup;
    setup.window = 3;
    setup.chunk_bytes = 64;
    setup.options.stall = kMillisecond;
    setup.options.patrol = [&self] { return self->dead(); };
    Family family(backup_workers(4, 1 + trial % 2), setup);
    self = &family;
    World& world = family.world();
    family.start([&](int rank) {
      // No end: the window fills up, since the killed rank loads nothing any more.
      const auto live = [&] {
        for (;;) {
          world.arrive(rank);
          world.finish(rank);
          family.board().rounds.fetch_add(1);
        }
      };
      CHECK_THROWS_WITH_AS(live(), doctest::Contains("rank 3 has died; start again"), PeerFailed);
    });
    while (family.board().rounds < 100) std::this_thread::yield();
    pause_for(std::chrono::microseconds(37 * trial));
    family.signal(3, SIGKILL);
    family.join(3);
  }
}

namespace {

/// From now on other processes of this user may not read this one's memory, nor this one theirs
/// if they do the same. False if that cannot be had here.
bool forbid_reading() {
  __user_cap_header_struct head{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, 2> none{};
  return syscall(SYS_capset, &head, none.data()) == 0 && prctl(PR_SET_DUMPABLE, 0) == 0;
}

}  // namespace

TEST_CASE("ranks that may not be read any more, amid their rounds, are read from their slots") {
  constexpr int kRounds = 60;
  constexpr std::size_t kCount = 40'000;  // more than what is staged anyway
  for (const int who : {0, 1, 7}) {       // one of them; or all, at different times
    Setup setup;
    setup.flats = {{DType::float32, kCount}};
    setup.chunk_bytes = 4096;
    setup.options.remote_reads = true;
    setup.options.timeout = 20 * kSecond;
    Family family(backup_workers(3, who == 1 ? 1 : 0), setup);
    World& world = family.world();
    family.start([&](int rank) {
      std::vector<float> mine(kCount);
      std::vector<float> mean(kCount);
      for (int i = 0; i < kRounds; ++i) {
        if ((rank == who && i == 20) || (who == 7 && i == 20 + rank)) REQUIRE(forbid_reading());
        std::fill(mine.begin(), mine.end(), static_cast<float>(rank + i));
        const RoundReport report =
            world[rank].allreduce(reinterpret_cast<const std::byte*>(mine.data()),
                                  reinterpret_cast<std::byte*>(mean.data()));
        float sum = 0;
        for (const int from : report.contributors) sum += static_cast<float>(from + i);
        const float right = sum / static_cast<float>(report.contributors.size());
        CHECK(std::all_of(mean.begin(), mean.end(), [&](float x) { return x == right; }));
      }
    });
    family.join();
    const bool asked = world.arena().member(0).stages.load() != 0;
    CHECK(asked);
  }
}
