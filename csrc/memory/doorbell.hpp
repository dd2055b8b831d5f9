#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "memory/descriptor.hpp"

namespace hvd_backup {

/// Wakes a thread that sleeps in epoll from other processes of its node. Ringing takes no system
/// call while that thread is awake, as it then looks for itself.
///
/// Half of it is a pipe, which, like a Segment, other processes open by its path; the other half
/// is a word of shared memory, zero at first.
class Doorbell {
 public:
  static constexpr std::size_t kBytes = 64;

  /// The end of the thread that sleeps. Throws SystemError.
  static Doorbell create(std::byte* memory);
  /// The end of those who ring.
  static Doorbell open(std::byte* memory, const std::string& path);

  /// How another process of this user finds the pipe, as long as this one lives.
  std::string path() const;

  /// What was written before is seen by the thread when it wakes.
  void ring() const;

  /// To be watched for reading.
  int fd() const { return read_end_.get(); }
  /// The thread is about to sleep: it looks once more for work after this, and then may.
  void fall_asleep() const;
  void wake_up() const;

 private:
  Doorbell(std::byte* memory, Descriptor read_end, Descriptor write_end);

  std::atomic<std::uint32_t>* asleep_;
  Descriptor read_end_;
  Descriptor write_end_;
};

}  // namespace hvd_backup
