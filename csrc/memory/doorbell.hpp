#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "memory/descriptor.hpp"

namespace hvd_backup {

/// Wakes a thread that sleeps in epoll, from other processes of its node. Ringing makes no system
/// call while that thread is awake, as an awake thread looks for work by itself.
///
/// A doorbell has two parts: a pipe, which other processes open by its path like a Segment, and a
/// word of shared memory, zero at first.
class Doorbell {
 public:
  static constexpr std::size_t kBytes = 64;

  /// The end of the thread that sleeps. Throws SystemError.
  static Doorbell create(std::byte* memory);
  /// The end of the processes that ring.
  static Doorbell open(std::byte* memory, const std::string& path);

  /// The path by which another process of this user opens the pipe, while this process lives.
  std::string path() const;

  /// The woken thread sees all memory that was written before the ring.
  void ring() const;

  /// The file descriptor to watch for reading.
  int fd() const { return read_end_.get(); }
  /// Announces that the thread is about to sleep. It must look for work once more after this call.
  void fall_asleep() const;
  void wake_up() const;

 private:
  Doorbell(std::byte* memory, Descriptor read_end, Descriptor write_end);

  std::atomic<std::uint32_t>* asleep_;
  Descriptor read_end_;
  Descriptor write_end_;
};

}  // namespace hvd_backup
