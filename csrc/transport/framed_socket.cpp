#include "transport/framed_socket.hpp"

#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>

#include "base/error.hpp"

namespace hvd_backup {
namespace {

struct Head {
  std::uint32_t bytes;
  std::uint32_t channel;
  std::uint32_t kind;
};

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK; }

/// The errors with which TCP_USER_TIMEOUT and keep-alive end a connection.
bool is_of_silence(int errnum) {
  return errnum == ETIMEDOUT || errnum == EHOSTUNREACH || errnum == ENETUNREACH;
}

void append(std::vector<std::byte>& to, const void* data, std::size_t bytes) {
  const auto* from = static_cast<const std::byte*>(data);
  to.insert(to.end(), from, from + bytes);
}

}  // namespace

void FramedSocket::queue(const Frame& frame) {
  if (frame.payload.size() > kMostBytes) {
    throw InvalidArgument("a control message of " + std::to_string(frame.payload.size()) +
                          " bytes; the most is " + std::to_string(kMostBytes));
  }
  const Head head{static_cast<std::uint32_t>(frame.payload.size()), frame.channel, frame.kind};
  append(out_, &head, sizeof head);
  append(out_, frame.payload.data(), frame.payload.size());
}

bool FramedSocket::flush(const Poller& poller, std::uint64_t tag) {
  const bool is_open = send_all();
  if (has_unsent() != wants_write_) {
    wants_write_ = has_unsent();
    poller.want_write(fd(), tag, wants_write_);
  }
  return is_open;
}

bool FramedSocket::send_all() {
  while (has_unsent()) {
    const ssize_t n = send(fd(), out_.data() + sent_, out_.size() - sent_, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      // The kernel reports this error once, to the first call.
      is_silent_ = is_silent_ || is_of_silence(errno);
      return would_block();
    }
    sent_ += static_cast<std::size_t>(n);
  }
  out_.clear();
  sent_ = 0;
  return true;
}

bool FramedSocket::receive(std::vector<Frame>& frames) {
  const bool is_open = read_all();
  return parse(frames) && is_open;
}

bool FramedSocket::read_all() {
  std::array<std::byte, 16384> piece{};
  for (;;) {
    const ssize_t n = recv(fd(), piece.data(), piece.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      is_silent_ = is_silent_ || is_of_silence(errno);
      return would_block();
    }
    if (n == 0) return false;
    append(in_, piece.data(), static_cast<std::size_t>(n));
    if (static_cast<std::size_t>(n) < piece.size()) return true;  // there was no more
    // Bytes are decoded before more are read, so that rubbish cannot fill the memory.
    if (in_.size() > most_bytes_ + sizeof(Head)) return true;
  }
}

bool FramedSocket::parse(std::vector<Frame>& frames) {
  std::size_t at = 0;
  bool is_sane = true;
  while (in_.size() - at >= sizeof(Head)) {
    Head head{};
    std::memcpy(&head, in_.data() + at, sizeof head);
    is_sane = head.bytes <= most_bytes_;
    if (!is_sane || in_.size() - at - sizeof head < head.bytes) break;
    const std::byte* payload = in_.data() + at + sizeof head;
    frames.push_back({head.channel, head.kind, {payload, payload + head.bytes}});
    at += sizeof head + head.bytes;
  }
  in_.erase(in_.begin(), in_.begin() + static_cast<std::ptrdiff_t>(at));
  return is_sane;
}

}  // namespace hvd_backup
