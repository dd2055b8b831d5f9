#pragma once

#include <vector>

#include "memory/descriptor.hpp"

namespace hvd_backup {

/// Tells which ranks of a node are dead, without signals, process ids or heartbeats: those whose
/// LifeLock the kernel has dropped.
class LifeWatch {
 public:
  /// `rank`, which looks, is one of `ranks`, those of this node. `fd` must stay open.
  LifeWatch(int fd, std::vector<int> ranks, int rank);

  /// The other ranks of this node that do not hold their lock. Meaningful once all have taken
  /// theirs. Throws SystemError.
  std::vector<int> dead() const;

 private:
  int fd_;
  std::vector<int> ranks_;
  int rank_;
};

/// Holds a rank's byte of a file that the ranks of a node share, as long as its process lives.
///
/// It is a lock of an open file description (F_OFD_SETLK, Linux 3.15) of its own. The kernel drops
/// that when the last descriptor is closed, so when the process ends, however it ends. A POSIX lock
/// would also go when the process opens the file once more and closes that, as tools that walk
/// /proc/self/fd do. Forked children would keep this one, but a Descriptor is closed in them.
class LifeLock {
 public:
  /// Takes the lock of `rank`. Throws SystemError if it is taken. `fd`, an open file, is not needed
  /// any more afterwards.
  LifeLock(int fd, std::vector<int> ranks, int rank);

  /// See LifeWatch.
  std::vector<int> dead() const { return watch_.dead(); }

 private:
  Descriptor file_;
  LifeWatch watch_;
};

}  // namespace hvd_backup
