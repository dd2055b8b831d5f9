#include "memory/doorbell.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "base/error.hpp"

namespace hvd_backup {

Doorbell::Doorbell(std::byte* memory, Descriptor read_end, Descriptor write_end)
    : asleep_(reinterpret_cast<std::atomic<std::uint32_t>*>(memory)),
      read_end_(std::move(read_end)),
      write_end_(std::move(write_end)) {}

Doorbell Doorbell::create(std::byte* memory) {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) != 0) {
    throw SystemError("cannot make the doorbell of a node", errno);
  }
  return {memory, Descriptor(ends[0]), Descriptor(ends[1])};
}

Doorbell Doorbell::open(std::byte* memory, const std::string& path) {
  // For reading as well: then the pipe has a reader even when the other process is gone, and
  // ringing raises no SIGPIPE.
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-vararg,hicpp-vararg)
  Descriptor end(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (end.get() < 0) throw SystemError("cannot open the doorbell of a node at " + path, errno);
  return {memory, Descriptor(), std::move(end)};
}

std::string Doorbell::path() const {
  return "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(write_end_.get());
}

void Doorbell::ring() const {
  // Either the thread sees what was written before this, or this sees that it is about to sleep.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (asleep_->load(std::memory_order_relaxed) == 0 || asleep_->exchange(0) == 0) return;
  const char byte = 0;
  // A full pipe wakes as well.
  [[maybe_unused]] const ssize_t written = write(write_end_.get(), &byte, 1);
}

void Doorbell::fall_asleep() const {
  asleep_->store(1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

void Doorbell::wake_up() const {
  if (asleep_->exchange(0) != 0) return;  // nobody has rung
  std::array<char, 64> bytes{};
  while (read(read_end_.get(), bytes.data(), bytes.size()) > 0) {
  }
}

}  // namespace hvd_backup
