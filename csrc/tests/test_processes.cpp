// Layer memory, between processes: segments, private views, life locks, remote reads.
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

TEST_CASE("a segment begins as zero, and two mappings of it are one memory") {
  const Segment mine = Segment::create(10'000);
  const Segment theirs = Segment::open(mine.path(), 10'000);
  CHECK_EQ(mine.size(), 10'000);
  CHECK(mine.data() != theirs.data());
  for (std::size_t i = 0; i < mine.size(); ++i) CHECK(theirs.data()[i] == byte(0));
  mine.data()[9'999] = byte(7);
  CHECK(theirs.data()[9'999] == byte(7));
  theirs.data()[0] = byte(3);
  CHECK(mine.data()[0] == byte(3));
}

TEST_CASE("of a segment's own part others see nothing, and of all the rest everything") {
  const Range own{kHugePage, 3 * kHugePage};
  const std::size_t bytes = 3 * kHugePage + 10'000;
  for (const Range part : {own, Range{0, kHugePage}, Range{own.begin, own.begin}}) {
    Segment first = Segment::create(bytes, part);
    const Segment mine = std::move(first);
    const Segment theirs = Segment::open(mine.path(), bytes);
    for (std::size_t i = 0; i < bytes; i += 1000) {
      CHECK(mine.data()[i] == byte(0));
      mine.data()[i] = byte(7);
      CHECK(theirs.data()[i] == byte(i >= part.begin && i < part.end ? 0 : 7));
    }
    const bool aligned = reinterpret_cast<std::uintptr_t>(mine.data()) % kHugePage == 0;
    CHECK((part.is_empty() || aligned));
  }
  CHECK_THROWS_WITH_AS(Segment::create(std::size_t{1} << 60, own),
                       doctest::Contains("1099511627777 MiB"), SystemError);
}

TEST_CASE("a segment lives as long as somebody maps it, and no longer by any name") {
  std::string path;
  Segment moved = [&path] {
    Segment first = Segment::create(4096);
    path = first.path();
    first.data()[5] = byte(5);
    return Segment::open(first.path(), 4096);
  }();
  CHECK(moved.data()[5] == byte(5));
  Segment other = std::move(moved);
  CHECK(other.data()[5] == byte(5));
  moved = Segment::create(4096);
  CHECK(moved.data()[5] == byte(0));
  other = std::move(moved);
  CHECK(other.data()[5] == byte(0));
  CHECK_THROWS_WITH_AS(Segment::open("/proc/self/fd/9999", 4096),
                       doctest::Contains("/proc/self/fd/9999"), SystemError);
  CHECK_THROWS_WITH_AS(Segment::open("/proc/self/fd/9999", 4096),
                       doctest::Contains("PID namespace"), SystemError);
}

TEST_CASE("too large a segment is refused with its size") {
  CHECK_THROWS_WITH_AS(Segment::create(std::size_t{1} << 60),
                       doctest::Contains("1099511627777 MiB"), SystemError);
}

TEST_CASE("another process maps a segment, writes to it, and is woken through it" *
          doctest::timeout(20)) {
  const Segment segment = Segment::create(4096);
  auto& bell = *reinterpret_cast<Bell*>(segment.data());
  const std::uint32_t ticket = bell.ticket();
  const std::string path = segment.path();
  const Child child([&] {
    const Segment theirs = Segment::open(path, 4096);
    theirs.data()[100] = byte(42);
    reinterpret_cast<Bell*>(theirs.data())->ring();
    return true;
  });
  bell.sleep(ticket, 30 * kSecond);
  CHECK(child.ok());
  CHECK(segment.data()[100] == byte(42));
}

TEST_CASE("a private view shows what is shared, and keeps what is written to it") {
  const Segment segment = Segment::create(4 * 4096);
  segment.data()[4096] = byte(1);
  const PrivateView view(segment, 4096, 2 * 4096);
  CHECK_EQ(view.size(), 2 * 4096);
  CHECK(view.data()[0] == byte(1));
  segment.data()[4096] = byte(2);
  CHECK(view.data()[0] == byte(2));
  view.data()[0] = byte(9);
  CHECK(view.data()[0] == byte(9));
  CHECK(segment.data()[4096] == byte(2));
  segment.data()[std::size_t{2} * 4096] =
      byte(4);  // its second page is untouched, hence still shared
  CHECK(view.data()[4096] == byte(4));
}

TEST_CASE("a private view that is reset shows what is shared again, as often as one likes") {
  const Segment segment = Segment::create(4096);
  PrivateView first(segment, 0, 4096);
  PrivateView view = std::move(first);
  for (int i = 1; i < 20; ++i) {
    view.data()[7] = byte(100);
    segment.data()[7] = byte(i);
    CHECK(view.data()[7] == byte(100));
    view.reset();
    CHECK(view.data()[7] == byte(i));
  }
}

TEST_CASE("of a large private view only what was written is forgotten, wherever it lies") {
  constexpr std::size_t kPages = 300;
  const Segment segment = Segment::create(kPages * 4096);
  const PrivateView& untouched = PrivateView(segment, 0, kPages * 4096);
  PrivateView view(segment, 0, kPages * 4096 - 100);
  for (int turn = 1; turn < 5; ++turn) {
    for (std::size_t page = 0; page < kPages; ++page) segment.data()[page * 4096] = byte(turn);
    for (std::size_t page = 0; page < kPages; ++page) {
      CHECK(view.data()[page * 4096] == byte(turn));
    }
    for (const std::size_t page : {0, 1, 2, 99, 150, 151, 299}) {
      view.data()[page * 4096 + 5] = byte(77);
    }
    for (std::size_t page = 0; page < kPages; ++page) segment.data()[page * 4096] = byte(50);
    CHECK(view.data()[std::size_t{99} * 4096] == byte(turn));
    view.reset();
    for (std::size_t page = 0; page < kPages; ++page) {
      CHECK(view.data()[page * 4096] == byte(50));
      CHECK(view.data()[page * 4096 + 5] == byte(0));
      CHECK(untouched.data()[page * 4096] == byte(50));
    }
  }
}

TEST_CASE("the memory of another process is read without its help") {
  std::vector<unsigned char> data(3'000'000, 1);
  const Child child([&] {
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<unsigned char>(mix(i));
    return true;
  });
  REQUIRE(child.ok());
  const auto address = reinterpret_cast<std::uint64_t>(data.data());
  if (!can_read_remote(child.pid(), address)) {
    SKIP("the kernel does not let this process read its child");
  }
  kill(child.pid(), SIGSTOP);  // no help at all
  std::vector<std::byte> copy(data.size() - 1);
  read_remote(child.pid(), address + 1, copy.data(), copy.size());
  bool right = true;
  for (std::size_t i = 0; i < copy.size(); ++i) {
    right = right && copy[i] == static_cast<std::byte>(mix(i + 1));
  }
  CHECK(right);
  CHECK(data[5] == 1);
}

TEST_CASE("to read on into memory that is not there is an error, not half an answer") {
  constexpr std::size_t kPages = 2 * std::size_t{4096};
  void* pages = mmap(nullptr, kPages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(pages != MAP_FAILED);
  munmap(static_cast<std::byte*>(pages) + kPages / 2, kPages / 2);
  std::vector<std::byte> to(kPages);
  const auto address = reinterpret_cast<std::uint64_t>(pages);
  read_remote(getpid(), address, to.data(), kPages / 2);
  CHECK_THROWS_AS(read_remote(getpid(), address, to.data(), kPages), SystemError);
  munmap(pages, kPages / 2);
}

TEST_CASE("to read from a process that is gone, or where it has nothing, is an error") {
  Child child([] { return true; });
  const pid_t pid = child.pid();
  std::array<std::byte, 16> to{};
  const auto address = reinterpret_cast<std::uint64_t>(to.data());
  CHECK(!can_read_remote(getpid(), 8));
  CHECK(can_read_remote(getpid(), address));
  CHECK_THROWS_WITH_AS(read_remote(getpid(), 8, to.data(), 16),
                       doctest::Contains(std::to_string(getpid()).c_str()), SystemError);
  child.end();
  CHECK(!can_read_remote(pid, address));
  CHECK_THROWS_WITH_AS(read_remote(pid, address, to.data(), 16),
                       doctest::Contains(std::to_string(pid).c_str()), SystemError);
}
