#include "memory/rows.hpp"

#include <array>
#include <atomic>
#include <cstring>
#include <string>

#include "base/error.hpp"

namespace hvd_backup {
namespace {

// The length, then the bytes.
constexpr std::size_t kWords = 1 + Rows::kMostBytes / sizeof(std::uint64_t);
constexpr int kWriters = 1;

}  // namespace

struct Rows::Control {
  alignas(64) std::atomic<std::uint32_t> flags;
  std::atomic<std::uint32_t> untold;
};

std::size_t Rows::bytes(int count) {
  if (count < 0) throw InvalidArgument("a table cannot have " + std::to_string(count) + " rows");
  return static_cast<std::size_t>(count) * (sizeof(Control) + SharedState::bytes(kWriters, kWords));
}

Rows::Rows(std::byte* memory, int count)
    : memory_(memory), count_(count), seen_(static_cast<std::size_t>(count)) {}

void Rows::write(int row, const std::byte* data, std::size_t bytes) {
  SharedState to = message(row);
  if (bytes > kMostBytes) {
    throw InvalidArgument("row " + std::to_string(row) + " cannot hold " + std::to_string(bytes) +
                          " bytes; at most " + std::to_string(kMostBytes));
  }
  to.update(kWriters - 1, [&](std::uint64_t* words, bool&) {
    words[0] = bytes;
    if (bytes > 0) std::memcpy(words + 1, data, bytes);
    return true;
  });
}

std::vector<std::byte> Rows::read(int row) const {
  std::array<std::uint64_t, kWords> words{};
  message(row).read(words.data());
  const auto* data = reinterpret_cast<const std::byte*>(words.data() + 1);
  return {data, data + words[0]};
}

std::vector<int> Rows::written() {
  std::vector<int> rows;
  for (int row = 0; row < count_; ++row) {
    const std::uint64_t changes = message(row).changes();
    std::uint64_t& seen = seen_[static_cast<std::size_t>(row)];
    if (changes != seen) rows.push_back(row);
    seen = changes;
  }
  return rows;
}

// Read-modify-write, not a store: who takes the second of two askings also sees what the first was
// for.
void Rows::tell(int row) { control(row).untold.fetch_or(1, std::memory_order_release); }

bool Rows::take_untold(int row) {
  return control(row).untold.exchange(0, std::memory_order_acq_rel) != 0;
}

bool Rows::is_untold(int row) const {
  return control(row).untold.load(std::memory_order_acquire) != 0;
}

void Rows::set(int row, Flag flag) { control(row).flags.fetch_or(flag, std::memory_order_release); }

std::uint32_t Rows::flags(int row) const {
  return control(row).flags.load(std::memory_order_acquire);
}

std::vector<int> Rows::with(Flag flag) const {
  std::vector<int> rows;
  for (int row = 0; row < count_; ++row) {
    if ((flags(row) & flag) != 0) rows.push_back(row);
  }
  return rows;
}

std::byte* Rows::place(int row) const {
  if (row < 0 || row >= count_) {
    throw InvalidArgument("there is no row " + std::to_string(row) + " among " +
                          std::to_string(count_));
  }
  return memory_ + bytes(row);
}

Rows::Control& Rows::control(int row) const { return *reinterpret_cast<Control*>(place(row)); }

SharedState Rows::message(int row) const {
  return {place(row) + sizeof(Control), kWriters, kWords};
}

}  // namespace hvd_backup
