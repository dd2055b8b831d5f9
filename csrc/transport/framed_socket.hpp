#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "memory/descriptor.hpp"
#include "transport/poller.hpp"

namespace hvd_backup {

/// One message of the control channel.
struct Frame {
  std::uint32_t channel = 0;  ///< which collective
  std::uint32_t kind = 0;
  std::vector<std::byte> payload;
};

/// Frames over a stream socket that never blocks. Owns the socket.
class FramedSocket {
 public:
  /// No node sends a longer payload.
  static constexpr std::uint32_t kMostBytes = 1U << 24;

  /// A frame that arrives with a payload of more than `most_bytes` is rubbish.
  explicit FramedSocket(int fd, std::uint32_t most_bytes = kMostBytes)
      : socket_(fd), most_bytes_(most_bytes) {}

  int fd() const { return socket_.get(); }
  void allow(std::uint32_t most_bytes) { most_bytes_ = most_bytes; }

  /// Puts a frame behind the unsent bytes. Throws InvalidArgument if it is too long.
  void queue(const Frame& frame);
  /// Sends as many bytes as the socket takes. If bytes remain, `poller`, which knows the socket by
  /// `tag`, watches for room. Returns false if the other end is gone.
  bool flush(const Poller& poller, std::uint64_t tag);
  bool has_unsent() const { return sent_ < out_.size(); }

  /// Appends the frames that have arrived. Returns false if the other end is gone or sends rubbish.
  bool receive(std::vector<Frame>& frames);
  /// Whether the other end is gone because its host did not answer for too long.
  bool is_silent() const { return is_silent_; }

 private:
  bool send_all();
  bool read_all();
  bool parse(std::vector<Frame>& frames);

  Descriptor socket_;
  std::uint32_t most_bytes_ = kMostBytes;
  std::vector<std::byte> in_;
  std::vector<std::byte> out_;
  std::size_t sent_ = 0;
  bool wants_write_ = false;
  bool is_silent_ = false;
};

}  // namespace hvd_backup
