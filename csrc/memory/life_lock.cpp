#include "memory/life_lock.hpp"

#include <fcntl.h>

#include <cerrno>
#include <string>
#include <utility>

#include "base/error.hpp"

namespace hvd_backup {
namespace {

struct flock byte_of(int rank) {
  struct flock lock{};  // l_pid must be 0 for locks of open file descriptions
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = rank;
  lock.l_len = 1;
  return lock;
}

/// The same file, opened once more.
Descriptor open_again(int fd) {
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-vararg,hicpp-vararg)
  Descriptor file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (file.get() < 0) throw SystemError("cannot open the file of the life locks", errno);
  return file;
}

}  // namespace

LifeWatch::LifeWatch(int fd, std::vector<int> ranks, int rank)
    : fd_(fd), ranks_(std::move(ranks)), rank_(rank) {}

std::vector<int> LifeWatch::dead() const {
  std::vector<int> without;
  for (const int rank : ranks_) {
    if (rank == rank_) continue;
    struct flock lock = byte_of(rank);
    // NOLINTNEXTLINE(cppcoreguidelines-pro-type-vararg,hicpp-vararg)
    if (fcntl(fd_, F_OFD_GETLK, &lock) != 0) throw SystemError("cannot query life locks", errno);
    if (lock.l_type == F_UNLCK) without.push_back(rank);
  }
  return without;
}

LifeLock::LifeLock(int fd, std::vector<int> ranks, int rank)
    : file_(open_again(fd)), watch_(file_.get(), std::move(ranks), rank) {
  struct flock lock = byte_of(rank);
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-vararg,hicpp-vararg)
  if (fcntl(file_.get(), F_OFD_SETLK, &lock) != 0) {
    throw SystemError("cannot lock the life byte of rank " + std::to_string(rank), errno);
  }
}

}  // namespace hvd_backup
