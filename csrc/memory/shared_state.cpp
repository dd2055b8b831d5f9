#include "memory/shared_state.hpp"

namespace hvd_backup {
namespace {

constexpr unsigned kIndexBits = 16;
constexpr std::uint64_t kIndexMask = (std::uint64_t{1} << kIndexBits) - 1;
constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kWordsPerLine = kCacheLine / sizeof(std::uint64_t);

std::size_t padded(std::size_t words) {
  return (words + kWordsPerLine - 1) / kWordsPerLine * kWordsPerLine;
}

}  // namespace

std::size_t SharedState::bytes(int writers, std::size_t words) {
  return kCacheLine + 2 * static_cast<std::size_t>(writers) * padded(words) * sizeof(std::uint64_t);
}

SharedState::SharedState(void* memory, int /*writers*/, std::size_t words)
    : current_(static_cast<std::atomic<std::uint64_t>*>(memory)),
      copies_(current_ + kWordsPerLine),
      words_(words) {}

void SharedState::read(std::uint64_t* words) const { snapshot(words); }

std::uint64_t SharedState::changes() const {
  return current_->load(std::memory_order_acquire) >> kIndexBits;
}

std::uint64_t SharedState::snapshot(std::uint64_t* words) const {
  for (;;) {
    const std::uint64_t seen = current_->load(std::memory_order_acquire);
    const std::atomic<std::uint64_t>* from = copy(seen & kIndexMask);
    // Acquire here, release in publish: a reader of a word of a copy that is being written anew
    // also sees that the copy is no longer current, and tries again.
    for (std::size_t i = 0; i < words_; ++i) words[i] = from[i].load(std::memory_order_acquire);
    if (current_->load(std::memory_order_relaxed) == seen) return seen;
  }
}

bool SharedState::publish(int writer, std::uint64_t seen, const std::uint64_t* words) {
  std::uint64_t index = 2 * static_cast<std::uint64_t>(writer);
  if (index == (seen & kIndexMask)) ++index;
  std::atomic<std::uint64_t>* to = copy(index);
  for (std::size_t i = 0; i < words_; ++i) to[i].store(words[i], std::memory_order_release);
  const std::uint64_t next = ((seen >> kIndexBits) + 1) << kIndexBits | index;
  return current_->compare_exchange_strong(seen, next, std::memory_order_acq_rel,
                                           std::memory_order_relaxed);
}

std::atomic<std::uint64_t>* SharedState::copy(std::uint64_t index) const {
  return copies_ + index * padded(words_);
}

}  // namespace hvd_backup
