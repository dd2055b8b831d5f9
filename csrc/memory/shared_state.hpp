#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace hvd_backup {

/// A few words that many ranks change by a pure function, without a lock.
///
/// A writer copies the words, applies the function to the copy, and publishes the copy by one
/// compare-and-swap on its index: the universal construction of M. Herlihy, "A methodology for
/// implementing highly concurrent data objects" (1993). A writer that is stopped or killed at any
/// instruction leaves either the old words or the new ones, and delays no other rank.
///
/// The owner provides the memory for all copies; all zero is a valid start.
class SharedState {
 public:
  /// Bytes for `writers` ranks and `words` words.
  static std::size_t bytes(int writers, std::size_t words);

  SharedState(void* memory, int writers, std::size_t words);

  /// A consistent copy of the words.
  void read(std::uint64_t* words) const;

  /// How often the words have been changed.
  std::uint64_t changes() const;

  /// Applies `change(words)` until its outcome is published; returns what `change` returned last.
  /// `change` may run several times and must depend on the words alone; it sets `modified` to
  /// false to leave the state as it is.
  template <class Change>
  auto update(int writer, Change&& change) {
    std::vector<std::uint64_t> words(words_);
    for (;;) {
      const std::uint64_t seen = snapshot(words.data());
      bool modified = true;
      auto outcome = change(words.data(), modified);
      if (!modified || publish(writer, seen, words.data())) return outcome;
    }
  }

 private:
  std::uint64_t snapshot(std::uint64_t* words) const;
  bool publish(int writer, std::uint64_t seen, const std::uint64_t* words);
  std::atomic<std::uint64_t>* copy(std::uint64_t index) const;

  std::atomic<std::uint64_t>* current_;  // serial number << 16 | index of the copy
  std::atomic<std::uint64_t>* copies_;   // two per writer, the one not current is free to write
  std::size_t words_;
};

}  // namespace hvd_backup
