#pragma once

#include <vector>

#include "memory/descriptor.hpp"

namespace hvd_backup {

/// Tells which ranks of a node are dead, without signals, process ids or heartbeats: a rank is dead
/// if the kernel has dropped its LifeLock.
class LifeWatch {
 public:
  /// `ranks` are the ranks of this node; `rank`, one of them, looks. `fd` must stay open.
  LifeWatch(int fd, std::vector<int> ranks, int rank);

  /// The other ranks of this node that do not hold their lock. Call it after all ranks have taken
  /// their locks. Throws SystemError.
  std::vector<int> dead() const;

 private:
  int fd_;
  std::vector<int> ranks_;
  int rank_;
};

/// Holds a rank's byte of a file that the ranks of a node share, as long as its process lives.
///
/// The lock belongs to an open file description (F_OFD_SETLK, Linux 3.15). The kernel drops it when
/// the last descriptor is closed, so at the end of the process, however it ends. A POSIX lock would
/// also be dropped when the process opens the file once more and closes it, as tools that walk
/// /proc/self/fd do. A forked child does not keep the lock, as a Descriptor is closed in it.
class LifeLock {
 public:
  /// Takes the lock of `rank`. Throws SystemError if it is taken. The caller may close `fd`
  /// afterwards.
  LifeLock(int fd, std::vector<int> ranks, int rank);

  /// See LifeWatch.
  std::vector<int> dead() const { return watch_.dead(); }

 private:
  Descriptor file_;
  LifeWatch watch_;
};

}  // namespace hvd_backup
