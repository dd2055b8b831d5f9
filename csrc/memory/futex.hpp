#pragma once

#include <atomic>
#include <cstdint>

#include "base/types.hpp"

namespace hvd_backup {

/// An event count in shared memory: ranks sleep on it until another rank rings.
///
/// Use: `ticket = bell.ticket()`, look at the condition, `bell.sleep(ticket, …)`. A ring between
/// ticket and sleep makes the sleep return at once, so no event is lost. All zero is a valid bell.
class Bell {
 public:
  std::uint32_t ticket() const { return rings_.load(std::memory_order_seq_cst); }
  /// Wakes all sleepers. Makes no system call if no rank sleeps.
  void ring();
  /// Sleeps until the next ring after `ticket`, or `at_most` nanoseconds, or a signal.
  void sleep(std::uint32_t ticket, Nanoseconds at_most);

 private:
  std::atomic<std::uint32_t> rings_;
  std::atomic<std::uint32_t> sleepers_;
};

}  // namespace hvd_backup
