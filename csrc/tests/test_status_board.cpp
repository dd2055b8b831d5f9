// Layer memory: the table of messages that nodes copy from one another.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "memory/status_board.hpp"
#include "world.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

std::vector<std::byte> message(const std::string& text) {
  std::vector<std::byte> data;
  for (const char c : text) data.push_back(static_cast<std::byte>(c));
  return data;
}

void write(StatusBoard& board, int rank, const std::vector<std::byte>& data) {
  board.write(rank, data.data(), data.size());
}

/// A message that tells its length and content from its number.
std::vector<std::byte> numbered(std::uint64_t number) {
  std::vector<std::byte> data(8 + mix(number) % (StatusBoard::kMostBytes - 7));
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
  const Memory memory(StatusBoard::bytes(3));
  StatusBoard board(memory.data(), 3);
  CHECK_EQ(board.count(), 3);
  CHECK(board.written().empty());
  for (int rank = 0; rank < 3; ++rank) {
    CHECK(board.read(rank).empty());
    CHECK(!board.take_untold(rank));
    CHECK_EQ(board.flags(rank), 0);
  }
}

TEST_CASE("a message is read as it was written last, whatever its length") {
  const Memory memory(StatusBoard::bytes(2));
  StatusBoard board(memory.data(), 2);
  for (const std::size_t length :
       {std::size_t{7}, StatusBoard::kMostBytes, std::size_t{0}, std::size_t{9}}) {
    write(board, 0, message(std::string(length, 'a')));
    write(board, 1, message(std::string(length, 'b')));
    CHECK_EQ(board.read(0), message(std::string(length, 'a')));
    CHECK_EQ(board.read(1), message(std::string(length, 'b')));
  }
}

TEST_CASE("statuses share no byte with one another, nor with what follows the table") {
  constexpr int kCount = 5;
  const std::size_t bytes = StatusBoard::bytes(kCount);
  const Memory memory(bytes + 64);
  std::fill_n(memory.data() + bytes, 64, std::byte{0xA5});
  StatusBoard board(memory.data(), kCount);
  for (int turn = 0; turn < 3; ++turn) {  // into both copies of every rank
    for (int rank = 0; rank < kCount; ++rank) {
      write(board, rank,
            std::vector<std::byte>(StatusBoard::kMostBytes, static_cast<std::byte>(rank + turn)));
      if (rank % 2 == 0) board.set(rank, StatusBoard::kLeft);
      if (rank % 2 == 1) board.tell(rank);
    }
  }
  for (int rank = 0; rank < kCount; ++rank) {
    CHECK_EQ(board.read(rank),
             std::vector<std::byte>(StatusBoard::kMostBytes, static_cast<std::byte>(rank + 2)));
    CHECK_EQ(board.flags(rank) == StatusBoard::kLeft, rank % 2 == 0);
    CHECK_EQ(board.take_untold(rank), rank % 2 == 1);
  }
  CHECK(std::all_of(memory.data() + bytes, memory.data() + bytes + 64,
                    [](std::byte b) { return b == std::byte{0xA5}; }));
}

TEST_CASE("what is no rank, or no message, is refused and changes nothing") {
  const Memory memory(StatusBoard::bytes(2));
  StatusBoard board(memory.data(), 2);
  write(board, 1, message("kept"));
  CHECK_THROWS_WITH_AS(write(board, 1, std::vector<std::byte>(2033)),
                       doctest::Contains("rank 1 cannot hold 2033 bytes; at most 2032"),
                       InvalidArgument);
  for (const int rank : {-1, 2}) {
    const std::string words = "no rank " + std::to_string(rank) + " among 2";
    CHECK_THROWS_WITH_AS(write(board, rank, {}), doctest::Contains(words.c_str()), InvalidArgument);
    CHECK_THROWS_WITH_AS(board.read(rank), doctest::Contains(words.c_str()), InvalidArgument);
    CHECK_THROWS_WITH_AS(board.tell(rank), doctest::Contains(words.c_str()), InvalidArgument);
    CHECK_THROWS_WITH_AS(board.take_untold(rank), doctest::Contains(words.c_str()),
                         InvalidArgument);
    CHECK_THROWS_WITH_AS(board.set(rank, StatusBoard::kLeft), doctest::Contains(words.c_str()),
                         InvalidArgument);
    CHECK_THROWS_WITH_AS(board.flags(rank), doctest::Contains(words.c_str()), InvalidArgument);
  }
  CHECK_THROWS_AS(StatusBoard::bytes(-1), InvalidArgument);
  CHECK_EQ(board.read(1), message("kept"));
}

TEST_CASE("every reader is shown once what was written since it last looked") {
  const Memory memory(StatusBoard::bytes(4));
  StatusBoard writer(memory.data(), 4);
  StatusBoard early(memory.data(), 4);
  write(writer, 2, message("first"));
  CHECK_EQ(early.written(), std::vector<int>({2}));
  CHECK(early.written().empty());
  write(writer, 2, message("second"));
  write(writer, 2, message("third"));
  write(writer, 0, message(""));
  CHECK_EQ(early.written(), std::vector<int>({0, 2}));
  StatusBoard late(memory.data(), 4);
  CHECK_EQ(late.written(), std::vector<int>({0, 2}));
}

TEST_CASE("flags stay, and are listed") {
  const Memory memory(StatusBoard::bytes(3));
  StatusBoard board(memory.data(), 3);
  board.set(2, StatusBoard::kDead);
  board.set(0, StatusBoard::kLeft);
  board.set(2, StatusBoard::kLeft);
  CHECK_EQ(board.flags(2), StatusBoard::kLeft | StatusBoard::kDead);
  CHECK_EQ(board.with(StatusBoard::kLeft), std::vector<int>({0, 2}));
  CHECK_EQ(board.with(StatusBoard::kDead), std::vector<int>({2}));
}

TEST_CASE("to be told is taken once, however often it was asked for") {
  const Memory memory(StatusBoard::bytes(2));
  StatusBoard board(memory.data(), 2);
  board.tell(1);
  board.tell(1);
  CHECK(!board.take_untold(0));
  CHECK(board.take_untold(1));
  CHECK(!board.take_untold(1));
  board.tell(1);
  CHECK(board.take_untold(1));
}

TEST_CASE("no reader sees a torn message, or an older one after a younger") {
  constexpr int kWriters = 2;
  constexpr int kReaders = 2;
  constexpr std::uint64_t kWrites = kThreadSanitizer ? 1000 : 10'000;
  const Memory memory(StatusBoard::bytes(kWriters));
  std::atomic<int> writing{kWriters};
  check::in_threads(kWriters + kReaders, [&](int me) {
    StatusBoard board(memory.data(), kWriters);
    if (me < kWriters) {
      for (std::uint64_t i = 1; i <= kWrites; ++i) write(board, me, numbered(i));
      writing.fetch_sub(1);
      return;
    }
    std::vector<std::uint64_t> last(kWriters);
    while (writing.load() > 0) {
      for (int rank = 0; rank < kWriters; ++rank) {
        const std::vector<std::byte> seen = board.read(rank);
        if (seen.empty()) continue;
        const std::uint64_t number = number_of(seen);
        if (seen != numbered(number)) FAIL_CHECK("a torn message");
        CHECK(number >= last[static_cast<std::size_t>(rank)]);
        last[static_cast<std::size_t>(rank)] = number;
      }
    }
  });
}

TEST_CASE("nothing that was to be told is lost: the last message and flag get over" *
          doctest::timeout(20)) {
  constexpr std::uint64_t kWrites = kThreadSanitizer ? 1000 : 20'000;
  const Memory memory(StatusBoard::bytes(1));
  const Memory far(StatusBoard::bytes(1));
  check::in_threads(2, [&](int me) {
    StatusBoard here(memory.data(), 1);
    if (me == 0) {
      for (std::uint64_t i = 1; i <= kWrites; ++i) {
        write(here, 0, numbered(i));
        if (i == kWrites) here.set(0, StatusBoard::kLeft);
        here.tell(0);
      }
      return;
    }
    StatusBoard there(far.data(), 1);
    while ((there.flags(0) & StatusBoard::kLeft) == 0) {
      if (!here.take_untold(0)) {
        std::this_thread::yield();
        continue;
      }
      const std::uint32_t flags = here.flags(0);
      write(there, 0, here.read(0));
      if ((flags & StatusBoard::kLeft) != 0) there.set(0, StatusBoard::kLeft);
    }
    CHECK_EQ(number_of(there.read(0)), kWrites);
  });
}

TEST_CASE("of all that claim a table at the same time, exactly one gets it") {
  for (int repeat = 0; repeat < 200; ++repeat) {
    const Memory memory(StatusBoard::bytes(2));
    std::atomic<int> winners = 0;
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < 4; ++rank) {
      ranks.emplace_back([&] {
        StatusBoard board(memory.data(), 2);
        if (board.claim()) ++winners;
      });
    }
    for (std::thread& rank : ranks) rank.join();
    CHECK_EQ(winners.load(), 1);
    CHECK(!StatusBoard(memory.data(), 2).claim());
  }
}
