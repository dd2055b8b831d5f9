// Life locks, forked children and their descriptors, with real processes.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "child.hpp"
#include "memory/descriptor.hpp"
#include "memory/futex.hpp"
#include "memory/life_lock.hpp"
#include "memory/remote.hpp"
#include "memory/segment.hpp"
#include "world.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

/// The lock of a child process, which holds it as long as it lives.
const LifeLock& live_as(const Segment& segment, std::vector<int> ranks, int rank) {
  static std::vector<std::unique_ptr<LifeLock>> held;
  held.push_back(std::make_unique<LifeLock>(segment.fd(), std::move(ranks), rank));
  return *held.back();
}

}  // namespace

TEST_CASE("a rank is dead once its process is killed, and not before") {
  const Segment segment = Segment::create(4096);
  const LifeLock mine(segment.fd(), {0, 1, 2}, 0);
  const auto lives_as = [&](int rank) {
    return [&segment, rank] {
      const LifeLock& lock = live_as(segment, {0, 1, 2}, rank);
      return lock.dead().empty() || rank == 1;  // rank 2 comes last and sees all
    };
  };
  Child one(lives_as(1));
  Child two(lives_as(2));
  CHECK(one.ok());
  CHECK(two.ok());
  CHECK_EQ(mine.dead(), std::vector<int>());
  one.end();
  CHECK_EQ(mine.dead(), std::vector<int>({1}));
  two.end();
  CHECK_EQ(mine.dead(), std::vector<int>({1, 2}));
}

TEST_CASE("only the ranks of the node are asked whether they live") {
  const Segment segment = Segment::create(4096);
  const LifeLock mine(segment.fd(), {3, 7}, 3);
  Child child([&] { return live_as(segment, {3, 7}, 7).dead().empty(); });
  CHECK(child.ok());
  CHECK_EQ(mine.dead(), std::vector<int>());
  child.end();
  CHECK_EQ(mine.dead(), std::vector<int>({7}));
}

TEST_CASE("a stopped rank is not dead") {
  const Segment segment = Segment::create(4096);
  const LifeLock mine(segment.fd(), {0, 1}, 0);
  const Child child([&] { return live_as(segment, {0, 1}, 1).dead().empty(); });
  CHECK(child.ok());
  kill(child.pid(), SIGSTOP);
  int status = 0;
  CHECK_EQ(waitpid(child.pid(), &status, WUNTRACED), child.pid());
  CHECK(WIFSTOPPED(status));
  CHECK_EQ(mine.dead(), std::vector<int>());
}

TEST_CASE("a killed rank is dead even while a child process of it lives on") {
  const Segment segment = Segment::create(4096);
  const LifeLock mine(segment.fd(), {0, 1}, 0);
  auto* worker = reinterpret_cast<std::atomic<pid_t>*>(segment.data());
  Child child([&] {
    live_as(segment, {0, 1}, 1);
    std::array<int, 2> ends{};
    if (pipe(ends.data()) != 0) return false;
    const pid_t grandchild = fork();
    char closed = 'y';
    if (grandchild == 0) {
      // fork() returns here after it has closed the descriptors of ours.
      if (write(ends[1], &closed, 1) != 1) _exit(1);
      for (;;) pause();
    }
    worker->store(grandchild);
    return read(ends[0], &closed, 1) == 1;
  });
  REQUIRE(child.ok());
  CHECK_EQ(mine.dead(), std::vector<int>());
  child.end();
  CHECK_EQ(kill(worker->load(), 0), 0);
  CHECK_EQ(mine.dead(), std::vector<int>({1}));
  kill(worker->load(), SIGKILL);
}

TEST_CASE("a rank that opens and closes every descriptor of its process once more lives on") {
  const Segment segment = Segment::create(4096);
  const LifeLock mine(segment.fd(), {0, 1}, 0);
  const Child child([&] {
    const LifeLock& lock = live_as(segment, {0, 1}, 1);
    for (int fd = 3; fd < 64; ++fd) {
      // NOLINTNEXTLINE(cppcoreguidelines-pro-type-vararg,hicpp-vararg)
      const int again = open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDWR | O_NONBLOCK);
      if (again >= 0) close(again);
    }
    return lock.dead().empty();
  });
  CHECK(child.ok());
  CHECK_EQ(mine.dead(), std::vector<int>());
}

TEST_CASE("what a forked child writes to shared memory stays with it, and it has no descriptor") {
  const Segment segment = Segment::create(3 * 4096);
  const Segment opened = Segment::open(segment.path(), 3 * 4096);
  segment.data()[5000] = byte(7);
  const int fd = segment.fd();
  const pid_t child = fork();
  if (child == 0) {
    const bool sees = segment.data()[5000] == byte(7) && opened.data()[5000] == byte(7);
    segment.data()[5000] = byte(8);
    opened.data()[5001] = byte(9);
    struct stat file{};
    const bool has_none = segment.fd() == -1 && opened.fd() == -1 && fstat(fd, &file) != 0;
    _exit(sees && has_none && segment.data()[5000] == byte(8) ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK_EQ(status, 0);
  CHECK(segment.data()[5000] == byte(7));
  CHECK(segment.data()[5001] == byte(0));
  opened.data()[5001] = byte(3);
  CHECK(segment.data()[5001] == byte(3));
}

TEST_CASE("a descriptor that was moved or closed is none that a child closes") {
  Descriptor first(memfd_create("a test", 0));
  const int fd = first.get();
  Descriptor second(std::move(first));
  CHECK_EQ(first.get(), -1);  // NOLINT(bugprone-use-after-move): that is what it is about
  first = Descriptor(memfd_create("a test", 0));
  first = std::move(second);
  CHECK_EQ(first.get(), fd);
  first = {};
  const int other = memfd_create("not ours", 0);  // takes the number that has become free
  CHECK_EQ(other, fd);
  const pid_t child = fork();
  struct stat file{};
  if (child == 0) _exit(fstat(other, &file) == 0 ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  CHECK_EQ(status, 0);
  close(other);
}

TEST_CASE("a path at which something else lies is no shared memory") {
  const Segment segment = Segment::create(4096);
  CHECK_THROWS_WITH_AS(Segment::open(segment.path(), 8192),
                       doctest::Contains("4096 bytes instead of 8192"), SystemError);
}

TEST_CASE("a life that is taken cannot be taken again") {
  const Segment segment = Segment::create(4096);
  const LifeLock mine(segment.fd(), {0, 1}, 0);
  const Child child([&] {
    try {
      LifeLock(segment.fd(), {0, 1}, 0);
    } catch (const SystemError& error) {
      return std::string(error.what()).find("life byte of rank 0") != std::string::npos;
    }
    return false;
  });
  CHECK(child.ok());
}
