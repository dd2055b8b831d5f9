#include "memory/doorbell.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "base/error.hpp"

namespace hvd_backup {

Doorbell::Doorbell(std::byte* memory, int read_fd, int write_fd)
    : asleep_(reinterpret_cast<std::atomic<std::uint32_t>*>(memory)),
      read_fd_(read_fd),
      write_fd_(write_fd) {}

Doorbell Doorbell::create(std::byte* memory) {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) != 0) {
    throw SystemError("cannot make the doorbell of a node", errno);
  }
  return {memory, ends[0], ends[1]};
}

Doorbell Doorbell::open(std::byte* memory, const std::string& path) {
  // For reading as well: then the pipe has a reader even when the other process is gone, and
  // ringing raises no SIGPIPE.
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-vararg,hicpp-vararg)
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) throw SystemError("cannot open the doorbell of a node at " + path, errno);
  return {memory, -1, fd};
}

Doorbell::Doorbell(Doorbell&& other) noexcept
    : asleep_(other.asleep_),
      read_fd_(std::exchange(other.read_fd_, -1)),
      write_fd_(std::exchange(other.write_fd_, -1)) {}

Doorbell::~Doorbell() {
  if (read_fd_ >= 0) close(read_fd_);
  if (write_fd_ >= 0) close(write_fd_);
}

std::string Doorbell::path() const {
  return "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(write_fd_);
}

void Doorbell::ring() const {
  // Either the thread sees what was written before this, or this sees that it is about to sleep.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (asleep_->load(std::memory_order_relaxed) == 0 || asleep_->exchange(0) == 0) return;
  const char byte = 0;
  // A full pipe wakes as well.
  [[maybe_unused]] const ssize_t written = write(write_fd_, &byte, 1);
}

void Doorbell::fall_asleep() const {
  asleep_->store(1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void Doorbell::wake_up() const {
  if (asleep_->exchange(0) != 0) return;  // nobody has rung
  std::array<char, 64> bytes{};
  while (read(read_fd_, bytes.data(), bytes.size()) > 0) {
  }
}

}  // namespace hvd_backup
