#pragma once

#include <vector>

namespace hvd_backup {

/// Tells which ranks of a node are dead, without signals, process ids or heartbeats.
///
/// Every rank locks one byte of a file they share (fcntl, POSIX.1). The kernel drops the lock when
/// the process ends, however it ends, and child processes do not inherit it. A process must not
/// close another descriptor of the same file meanwhile: that drops its locks, too.
class LifeLock {
 public:
  /// Takes the lock of `rank`, one of `ranks`, those of this node. `fd` must stay open.
  /// Throws SystemError if it is taken.
  LifeLock(int fd, std::vector<int> ranks, int rank);

  /// Ranks of this node that do not hold their lock. Meaningful once all have taken theirs.
  std::vector<int> dead() const;

 private:
  int fd_;
  std::vector<int> ranks_;
  int rank_;
};

}  // namespace hvd_backup
