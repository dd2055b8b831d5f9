#include "memory/status_board.hpp"

#include <array>
#include <atomic>
#include <cstring>
#include <string>

#include "base/error.hpp"

namespace hvd_backup {
namespace {

// The length, then the bytes.
constexpr std::size_t kWords = 1 + StatusBoard::kMostBytes / sizeof(std::uint64_t);
constexpr int kWriters = 1;

}  // namespace

struct StatusBoard::Control {
  alignas(64) std::atomic<std::uint32_t> flags;
  std::atomic<std::uint32_t> untold;
  std::atomic<std::uint32_t> claimed;  // of the first rank, for the table
};

std::size_t StatusBoard::bytes(int count) {
  if (count < 0) throw InvalidArgument("a table cannot have " + std::to_string(count) + " rows");
  return static_cast<std::size_t>(count) * (sizeof(Control) + SharedState::bytes(kWriters, kWords));
}

StatusBoard::StatusBoard(std::byte* memory, int count)
    : memory_(memory), count_(count), seen_(static_cast<std::size_t>(count)) {}

void StatusBoard::write(int rank, const std::byte* data, std::size_t bytes) {
  SharedState to = message(rank);
  if (bytes > kMostBytes) {
    throw InvalidArgument("rank " + std::to_string(rank) + " cannot hold " + std::to_string(bytes) +
                          " bytes; at most " + std::to_string(kMostBytes));
  }
  to.update(kWriters - 1, [&](std::uint64_t* words, bool&) {
    words[0] = bytes;
    if (bytes > 0) std::memcpy(words + 1, data, bytes);
    return true;
  });
}

std::vector<std::byte> StatusBoard::read(int rank) const {
  std::array<std::uint64_t, kWords> words{};
  message(rank).read(words.data());
  const auto* data = reinterpret_cast<const std::byte*>(words.data() + 1);
  return {data, data + words[0]};
}

std::vector<int> StatusBoard::written() {
  std::vector<int> rows;
  for (int rank = 0; rank < count_; ++rank) {
    const std::uint64_t changes = message(rank).changes();
    std::uint64_t& seen = seen_[static_cast<std::size_t>(rank)];
    if (changes != seen) rows.push_back(rank);
    seen = changes;
  }
  return rows;
}

// Read-modify-write, not a store: the service that takes the second of two requests then also sees
// the writes before the first.
void StatusBoard::tell(int rank) { control(rank).untold.fetch_or(1, std::memory_order_release); }

bool StatusBoard::take_untold(int rank) {
  return control(rank).untold.exchange(0, std::memory_order_acq_rel) != 0;
}

bool StatusBoard::is_untold(int rank) const {
  return control(rank).untold.load(std::memory_order_acquire) != 0;
}

bool StatusBoard::claim() { return control(0).claimed.exchange(1, std::memory_order_acq_rel) == 0; }

void StatusBoard::set(int rank, Flag flag) {
  control(rank).flags.fetch_or(flag, std::memory_order_release);
}

std::uint32_t StatusBoard::flags(int rank) const {
  return control(rank).flags.load(std::memory_order_acquire);
}

std::vector<int> StatusBoard::with(Flag flag) const {
  std::vector<int> rows;
  for (int rank = 0; rank < count_; ++rank) {
    if ((flags(rank) & flag) != 0) rows.push_back(rank);
  }
  return rows;
}

std::byte* StatusBoard::entry(int rank) const {
  if (rank < 0 || rank >= count_) {
    throw InvalidArgument("there is no rank " + std::to_string(rank) + " among " +
                          std::to_string(count_));
  }
  return memory_ + bytes(rank);
}

StatusBoard::Control& StatusBoard::control(int rank) const {
  return *reinterpret_cast<Control*>(entry(rank));
}

SharedState StatusBoard::message(int rank) const {
  return {entry(rank) + sizeof(Control), kWriters, kWords};
}

}  // namespace hvd_backup
