// Layer memory: the table of messages that nodes copy from one another.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "memory/rows.hpp"
#include "world.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

std::vector<std::byte> message(const std::string& text) {
  std::vector<std::byte> data;
  for (const char c : text) data.push_back(static_cast<std::byte>(c));
  return data;
}

void write(Rows& rows, int row, const std::vector<std::byte>& data) {
  rows.write(row, data.data(), data.size());
}

/// A message that tells its length and content from its number.
std::vector<std::byte> numbered(std::uint64_t number) {
  std::vector<std::byte> data(8 + mix(number) % (Rows::kMostBytes - 7));
  std::memcpy(data.data(), &number, sizeof number);
  for (std::size_t i = 8; i < data.size(); ++i) data[i] = static_cast<std::byte>(mix(number + i));
  return data;
}

std::uint64_t number_of(const std::vector<std::byte>& data) {
  std::uint64_t number = 0;
  std::memcpy(&number, data.data(), sizeof number);
  return number;
}

}  // namespace

TEST_CASE("a table of zeroed memory is empty, untold and without flags") {
  const Memory memory(Rows::bytes(3));
  Rows rows(memory.data(), 3);
  CHECK_EQ(rows.count(), 3);
  CHECK(rows.written().empty());
  for (int row = 0; row < 3; ++row) {
    CHECK(rows.read(row).empty());
    CHECK(!rows.take_untold(row));
    CHECK_EQ(rows.flags(row), 0);
  }
}

TEST_CASE("a message is read as it was written last, whatever its length") {
  const Memory memory(Rows::bytes(2));
  Rows rows(memory.data(), 2);
  for (const std::size_t length :
       {std::size_t{7}, Rows::kMostBytes, std::size_t{0}, std::size_t{9}}) {
    write(rows, 0, message(std::string(length, 'a')));
    write(rows, 1, message(std::string(length, 'b')));
    CHECK_EQ(rows.read(0), message(std::string(length, 'a')));
    CHECK_EQ(rows.read(1), message(std::string(length, 'b')));
  }
}

TEST_CASE("rows share no byte with one another, nor with what follows the table") {
  constexpr int kCount = 5;
  const std::size_t bytes = Rows::bytes(kCount);
  const Memory memory(bytes + 64);
  std::fill_n(memory.data() + bytes, 64, std::byte{0xA5});
  Rows rows(memory.data(), kCount);
  for (int turn = 0; turn < 3; ++turn) {  // into both copies of every row
    for (int row = 0; row < kCount; ++row) {
      write(rows, row,
            std::vector<std::byte>(Rows::kMostBytes, static_cast<std::byte>(row + turn)));
      if (row % 2 == 0) rows.set(row, Rows::kLeft);
      if (row % 2 == 1) rows.tell(row);
    }
  }
  for (int row = 0; row < kCount; ++row) {
    CHECK_EQ(rows.read(row),
             std::vector<std::byte>(Rows::kMostBytes, static_cast<std::byte>(row + 2)));
    CHECK_EQ(rows.flags(row) == Rows::kLeft, row % 2 == 0);
    CHECK_EQ(rows.take_untold(row), row % 2 == 1);
  }
  CHECK(std::all_of(memory.data() + bytes, memory.data() + bytes + 64,
                    [](std::byte b) { return b == std::byte{0xA5}; }));
}

TEST_CASE("what is no row, or no message, is refused and changes nothing") {
  const Memory memory(Rows::bytes(2));
  Rows rows(memory.data(), 2);
  write(rows, 1, message("kept"));
  CHECK_THROWS_WITH(write(rows, 1, std::vector<std::byte>(2033)), InvalidArgument,
                    "row 1 cannot hold 2033 bytes; at most 2032");
  for (const int row : {-1, 2}) {
    const std::string words = "no row " + std::to_string(row) + " among 2";
    CHECK_THROWS_WITH(write(rows, row, {}), InvalidArgument, words);
    CHECK_THROWS_WITH(rows.read(row), InvalidArgument, words);
    CHECK_THROWS_WITH(rows.tell(row), InvalidArgument, words);
    CHECK_THROWS_WITH(rows.take_untold(row), InvalidArgument, words);
    CHECK_THROWS_WITH(rows.set(row, Rows::kLeft), InvalidArgument, words);
    CHECK_THROWS_WITH(rows.flags(row), InvalidArgument, words);
  }
  CHECK_THROWS_AS(Rows::bytes(-1), InvalidArgument);
  CHECK_EQ(rows.read(1), message("kept"));
}

TEST_CASE("every reader is shown once what was written since it last looked") {
  const Memory memory(Rows::bytes(4));
  Rows writer(memory.data(), 4);
  Rows early(memory.data(), 4);
  write(writer, 2, message("first"));
  CHECK_EQ(early.written(), std::vector<int>({2}));
  CHECK(early.written().empty());
  write(writer, 2, message("second"));
  write(writer, 2, message("third"));
  write(writer, 0, message(""));
  CHECK_EQ(early.written(), std::vector<int>({0, 2}));
  Rows late(memory.data(), 4);
  CHECK_EQ(late.written(), std::vector<int>({0, 2}));
}

TEST_CASE("flags stay, and are listed") {
  const Memory memory(Rows::bytes(3));
  Rows rows(memory.data(), 3);
  rows.set(2, Rows::kDead);
  rows.set(0, Rows::kLeft);
  rows.set(2, Rows::kLeft);
  CHECK_EQ(rows.flags(2), Rows::kLeft | Rows::kDead);
  CHECK_EQ(rows.with(Rows::kLeft), std::vector<int>({0, 2}));
  CHECK_EQ(rows.with(Rows::kDead), std::vector<int>({2}));
}

TEST_CASE("to be told is taken once, however often it was asked for") {
  const Memory memory(Rows::bytes(2));
  Rows rows(memory.data(), 2);
  rows.tell(1);
  rows.tell(1);
  CHECK(!rows.take_untold(0));
  CHECK(rows.take_untold(1));
  CHECK(!rows.take_untold(1));
  rows.tell(1);
  CHECK(rows.take_untold(1));
}

TEST_CASE("no reader sees a torn message, or an older one after a younger") {
  constexpr int kWriters = 2;
  constexpr int kReaders = 2;
  constexpr std::uint64_t kWrites = kThreadSanitizer ? 1000 : 10'000;
  const Memory memory(Rows::bytes(kWriters));
  std::atomic<int> writing{kWriters};
  check::in_threads(kWriters + kReaders, [&](int me) {
    Rows rows(memory.data(), kWriters);
    if (me < kWriters) {
      for (std::uint64_t i = 1; i <= kWrites; ++i) write(rows, me, numbered(i));
      writing.fetch_sub(1);
      return;
    }
    std::vector<std::uint64_t> last(kWriters);
    while (writing.load() > 0) {
      for (int row = 0; row < kWriters; ++row) {
        const std::vector<std::byte> seen = rows.read(row);
        if (seen.empty()) continue;
        const std::uint64_t number = number_of(seen);
        if (seen != numbered(number)) check::fail(__FILE__, __LINE__, "a torn message");
        CHECK(number >= last[static_cast<std::size_t>(row)]);
        last[static_cast<std::size_t>(row)] = number;
      }
    }
  });
}

TEST_CASE_WITHIN(20, "nothing that was to be told is lost: the last message and flag get over") {
  constexpr std::uint64_t kWrites = kThreadSanitizer ? 1000 : 20'000;
  const Memory memory(Rows::bytes(1));
  const Memory far(Rows::bytes(1));
  check::in_threads(2, [&](int me) {
    Rows here(memory.data(), 1);
    if (me == 0) {
      for (std::uint64_t i = 1; i <= kWrites; ++i) {
        write(here, 0, numbered(i));
        if (i == kWrites) here.set(0, Rows::kLeft);
        here.tell(0);
      }
      return;
    }
    Rows there(far.data(), 1);
    while ((there.flags(0) & Rows::kLeft) == 0) {
      if (!here.take_untold(0)) {
        std::this_thread::yield();
        continue;
      }
      const std::uint32_t flags = here.flags(0);
      write(there, 0, here.read(0));
      if ((flags & Rows::kLeft) != 0) there.set(0, Rows::kLeft);
    }
    CHECK_EQ(number_of(there.read(0)), kWrites);
  });
}
