#include "memory/life_lock.hpp"

#include <fcntl.h>

#include <cerrno>
#include <string>
#include <utility>

#include "base/error.hpp"

namespace hvd_backup {
namespace {

struct flock byte_of(int rank) {
  struct flock lock{};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = rank;
  lock.l_len = 1;
  return lock;
}

}  // namespace

LifeLock::LifeLock(int fd, std::vector<int> ranks, int rank)
    : fd_(fd), ranks_(std::move(ranks)), rank_(rank) {
  struct flock lock = byte_of(rank);
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-vararg,hicpp-vararg)
  if (fcntl(fd_, F_SETLK, &lock) != 0) {
    throw SystemError("cannot lock the life byte of rank " + std::to_string(rank), errno);
  }
}

std::vector<int> LifeLock::dead() const {
  std::vector<int> without;
  for (const int rank : ranks_) {
    if (rank == rank_) continue;
    struct flock lock = byte_of(rank);
    // NOLINTNEXTLINE(cppcoreguidelines-pro-type-vararg,hicpp-vararg)
    if (fcntl(fd_, F_GETLK, &lock) != 0) throw SystemError("cannot query life locks", errno);
    if (lock.l_type == F_UNLCK) without.push_back(rank);
  }
  return without;
}

}  // namespace hvd_backup
