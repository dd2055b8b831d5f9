#pragma once

#include <cstdint>
#include <vector>

#include "base/types.hpp"
#include "memory/descriptor.hpp"

namespace hvd_backup {

/// Sleeps until one of many file descriptors has something to say (epoll).
class Poller {
 public:
  struct Ready {
    std::uint64_t tag = 0;
    bool readable = false;  ///< or closed: reading will tell
    bool writable = false;
  };

  Poller();

  /// Begins to watch `fd`, for reading; what it says later bears `tag`.
  void add(int fd, std::uint64_t tag) const;
  /// Watches `fd` for being writable as well, or no longer.
  void want_write(int fd, std::uint64_t tag, bool wanted) const;
  void remove(int fd) const;

  /// Sleeps until this one can be read, or for at most `timeout`; if it is -1, for that long.
  static void sleep(int fd, Nanoseconds timeout);

  /// Itself to be watched by another: it can be read when something is ready here.
  int fd() const { return set_.get(); }

  /// Sleeps for at most `timeout`; empty if nothing happened.
  std::vector<Ready> wait(Nanoseconds timeout) const;

 private:
  Descriptor set_;
};

}  // namespace hvd_backup
