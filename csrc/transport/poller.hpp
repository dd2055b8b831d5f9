#pragma once

#include <cstdint>
#include <vector>

#include "base/types.hpp"
#include "memory/descriptor.hpp"

namespace hvd_backup {

/// Sleeps until one of many file descriptors is ready (epoll).
class Poller {
 public:
  struct Ready {
    std::uint64_t tag = 0;
    bool readable = false;  ///< or closed, which a read reports
    bool writable = false;
  };

  Poller();

  /// Begins to watch `fd` for reading. Its events have this `tag`.
  void add(int fd, std::uint64_t tag) const;
  /// Begins or ends to watch `fd` for writing as well.
  void want_write(int fd, std::uint64_t tag, bool wanted) const;
  void remove(int fd) const;

  /// Sleeps until `fd` can be read, for at most `timeout`. If `fd` is -1, sleeps for `timeout`.
  static void sleep(int fd, Nanoseconds timeout);

  /// A file descriptor for another poller to watch: it can be read when a descriptor is ready here.
  int fd() const { return set_.get(); }

  /// Sleeps for at most `timeout`; empty if nothing happened.
  std::vector<Ready> wait(Nanoseconds timeout) const;

 private:
  Descriptor set_;
};

}  // namespace hvd_backup
