#include "transport/control.hpp"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>

#include "base/error.hpp"

namespace hvd_backup {
namespace {

constexpr std::uint64_t kListener = 0;
constexpr std::uint64_t kWatched = 1;
constexpr std::uint64_t kHub = 2;                     // at a link
constexpr std::uint64_t kMagic = 0x3150554B42445648;  // "HVDBKUP1"
// A node shows its token as soon as it is connected; a stranger has no business here.
constexpr Nanoseconds kHelloWithin = 10 * kSecond;
constexpr std::size_t kMostStrangers = 64;

enum Kind : std::uint32_t { kHello = 0xFFFFFF00, kWelcome };

struct Hello {
  std::uint64_t magic;
  std::int64_t node;
  Token token;
};

Frame hello_frame(const Token& token, int node) {
  const Hello hello{kMagic, node, token};
  Frame frame;
  frame.kind = kHello;
  frame.payload.resize(sizeof hello);
  std::memcpy(frame.payload.data(), &hello, sizeof hello);
  return frame;
}

/// Takes the same time wherever the two differ, so that a stranger cannot guess the token by time.
bool same(const Token& a, const Token& b) {
  std::byte differs{0};
  for (std::size_t i = 0; i < a.size(); ++i) differs |= a[i] ^ b[i];
  return differs == std::byte{0};
}

void set(int fd, int level, int option, int value) {
  if (setsockopt(fd, level, option, &value, sizeof value) != 0) {
    throw SystemError("cannot set an option of a control socket", errno);
  }
}

/// Makes a socket send without delay, and fail once the other host has not answered for `silence`:
/// to sent data (TCP_USER_TIMEOUT), or, if there was none, to the probes of keep-alive.
void prepare(int fd, Nanoseconds silence) {
  set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  constexpr int kProbes = 3;
  constexpr Nanoseconds kMost = 32767;  // of Linux, in seconds
  const Nanoseconds share = silence / kSecond / (kProbes + 1);
  const auto pause = static_cast<int>(std::clamp<Nanoseconds>(share, 1, kMost));
  set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set(fd, IPPROTO_TCP, TCP_KEEPIDLE, pause);
  set(fd, IPPROTO_TCP, TCP_KEEPINTVL, pause);
  set(fd, IPPROTO_TCP, TCP_KEEPCNT, kProbes);
  const Nanoseconds most = std::numeric_limits<int>::max();
  set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT,
      static_cast<int>(std::clamp<Nanoseconds>(silence / kMillisecond, 1, most)));
}

/// A listening socket for IPv6 and IPv4, or for IPv4 alone where there is no IPv6.
int listen_anywhere() {
  constexpr int kType = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
  sockaddr_in6 six{};
  six.sin6_family = AF_INET6;
  six.sin6_addr = in6addr_any;
  sockaddr_in four{};
  four.sin_family = AF_INET;
  four.sin_addr.s_addr = htonl(INADDR_ANY);
  int fd = socket(AF_INET6, kType, 0);
  const int no = 0;
  if (fd >= 0) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
  if (fd < 0 || bind(fd, reinterpret_cast<const sockaddr*>(&six), sizeof six) != 0) {
    if (fd >= 0) close(fd);
    fd = socket(AF_INET, kType, 0);
    if (fd < 0) throw SystemError("cannot make a control socket", errno);
    if (bind(fd, reinterpret_cast<const sockaddr*>(&four), sizeof four) != 0) {
      const int why = errno;
      close(fd);
      throw SystemError("cannot bind the control socket", why);
    }
  }
  if (listen(fd, SOMAXCONN) != 0) {
    const int why = errno;
    close(fd);
    throw SystemError("cannot listen on the control socket", why);
  }
  return fd;
}

std::uint16_t port_of(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    throw SystemError("cannot tell the control socket's port", errno);
  }
  if (address.ss_family == AF_INET6) {
    return ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port);
  }
  return ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

/// A connected socket, or -1 and errno.
int connect_to(const addrinfo& at, Nanoseconds timeout) {
  const int fd = socket(at.ai_family, at.ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  int why = 0;
  if (connect(fd, at.ai_addr, at.ai_addrlen) != 0) {
    why = errno;
    pollfd wait{fd, POLLOUT, 0};
    if (why == EINPROGRESS) {
      why = ::poll(&wait, 1, static_cast<int>(timeout / kMillisecond)) == 1 ? 0 : ETIMEDOUT;
    }
    socklen_t length = sizeof why;
    if (why == 0) getsockopt(fd, SOL_SOCKET, SO_ERROR, &why, &length);
  }
  if (why == 0) return fd;
  close(fd);
  errno = why;
  return -1;
}

int connect_to(const std::string& host, std::uint16_t port, Nanoseconds timeout) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const std::string where = host + ":" + std::to_string(port);
  if (const int why = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found)) {
    throw PeerFailed("cannot find the coordinator at " + where + ": " + gai_strerror(why));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, &freeaddrinfo);
  int why = 0;
  for (const addrinfo* at = found; at != nullptr; at = at->ai_next) {
    const int fd = connect_to(*at, timeout);
    if (fd >= 0) return fd;
    why = errno;
  }
  throw PeerFailed("cannot reach the coordinator at " + where + ": " + std::strerror(why) +
                   "; the nodes must be able to connect to each other by TCP");
}

}  // namespace

Token make_token() {
  Token token;
  if (getrandom(token.data(), token.size(), 0) != static_cast<ssize_t>(token.size())) {
    throw SystemError("cannot make a token", errno);
  }
  return token;
}

ControlHub::ControlHub(const Token& token, int nodes, Nanoseconds silence, const Clock& clock)
    : token_(token), nodes_(nodes), silence_(silence), clock_(clock), listener_(listen_anywhere()) {
  port_ = port_of(listener_.get());
  poller_.add(listener_.get(), kListener);
}

std::vector<ControlHub::Event> ControlHub::poll(Nanoseconds timeout) {
  std::vector<Event> events;
  for (const Poller::Ready& ready : poller_.wait(timeout)) {
    if (ready.tag == kListener) {
      accept_all();
      continue;
    }
    auto peer = peers_.find(ready.tag);
    if (peer == peers_.end()) continue;
    if (ready.writable) flush(peer);
    if (ready.readable) read(peer, events);
  }
  cut_off_strangers();
  return events;
}

void ControlHub::send(int node, const Frame& frame) {
  for (auto peer = peers_.begin(); peer != peers_.end(); ++peer) {
    if (peer->second.node != node) continue;
    peer->second.socket.queue(frame);
    flush(peer);
    return;
  }
}

void ControlHub::broadcast(const Frame& frame) {
  for (auto peer = peers_.begin(); peer != peers_.end(); ++peer) {
    if (peer->second.node < 0) continue;
    peer->second.socket.queue(frame);
    flush(peer);
  }
}

bool ControlHub::has_unsent() const {
  return std::any_of(peers_.begin(), peers_.end(), [](const auto& peer) {
    return peer.second.node >= 0 && peer.second.socket.has_unsent();
  });
}

void ControlHub::watch(int fd) { poller_.add(fd, kWatched); }

void ControlHub::accept_all() {
  for (;;) {
    const int fd = accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;  // no more, or one that has gone again
    FramedSocket socket(fd, sizeof(Hello));
    prepare(fd, silence_);
    const std::uint64_t tag = next_tag_++;
    poller_.add(fd, tag);
    peers_.emplace(tag, Peer{std::move(socket), -1, clock_.now()});
    strangers_.insert(tag);
  }
}

void ControlHub::cut_off_strangers() {
  while (!strangers_.empty()) {
    const auto oldest = peers_.find(*strangers_.begin());
    const bool too_long = clock_.now() - oldest->second.since > kHelloWithin;
    if (!too_long && strangers_.size() <= kMostStrangers) return;
    drop(oldest, nullptr);
  }
}

void ControlHub::read(Peers::iterator peer, std::vector<Event>& events) {
  std::vector<Frame> frames;
  const bool is_open = peer->second.socket.receive(frames);
  for (Frame& frame : frames) {
    Peer& from = peer->second;
    if (from.node >= 0) {
      events.push_back({Event::Kind::frame, from.node, std::move(frame)});
    } else if (admit(from, frame)) {
      strangers_.erase(peer->first);
      events.push_back({Event::Kind::joined, from.node, {}});
      Frame welcome;
      welcome.kind = kWelcome;
      from.socket.queue(welcome);
      flush(peer);
    } else {
      drop(peer, nullptr);
      return;
    }
  }
  if (!is_open) drop(peer, &events);
}

bool ControlHub::admit(Peer& peer, const Frame& first) const {
  Hello hello{};
  if (first.kind != kHello || first.payload.size() != sizeof hello) return false;
  std::memcpy(&hello, first.payload.data(), sizeof hello);
  if (hello.magic != kMagic || !same(hello.token, token_)) return false;
  if (hello.node < 0 || hello.node >= nodes_) return false;
  const auto node = static_cast<int>(hello.node);
  for (const auto& [tag, other] : peers_) {
    if (other.node == node) return false;
  }
  peer.node = node;
  peer.socket.allow(FramedSocket::kMostBytes);
  return true;
}

void ControlHub::drop(Peers::iterator peer, std::vector<Event>* events) {
  if (events != nullptr && peer->second.node >= 0) {
    events->push_back({Event::Kind::lost, peer->second.node, {}, peer->second.socket.is_silent()});
  }
  strangers_.erase(peer->first);
  poller_.remove(peer->second.socket.fd());
  peers_.erase(peer);
}

void ControlHub::flush(Peers::iterator peer) {
  // A peer that is gone makes the socket readable: reading tells, in one place.
  peer->second.socket.flush(poller_, peer->first);
}

ControlLink::ControlLink(const std::string& host, std::uint16_t port, const Token& token, int node,
                         Nanoseconds timeout, Nanoseconds silence)
    : socket_(connect_to(host, port, timeout)) {
  const std::string address = host + ":" + std::to_string(port);
  prepare(socket_.fd(), silence);
  poller_.add(socket_.fd(), kHub);
  send(0, hello_frame(token, node));
  const Nanoseconds deadline = monotonic_clock().now() + timeout;
  bool is_open = true;
  while (early_.empty() && is_open && monotonic_clock().now() < deadline) {
    poller_.wait(deadline - monotonic_clock().now());
    is_open = socket_.receive(early_);
  }
  if (early_.empty() || early_.front().kind != kWelcome) {
    throw PeerFailed("the coordinator at " + address + " refused node " + std::to_string(node) +
                     " or did not answer; is it of the same job?");
  }
  early_.erase(early_.begin());
}

std::vector<Control::Event> ControlLink::poll(Nanoseconds timeout) {
  std::vector<Frame> frames = std::exchange(early_, {});
  bool lost = false;
  for (const Poller::Ready& ready : poller_.wait(frames.empty() ? timeout : 0)) {
    if (ready.tag != kHub) continue;
    if (ready.writable) flush();
    if (ready.readable) lost = !socket_.receive(frames);
  }
  std::vector<Event> events;
  events.reserve(frames.size() + 1);
  for (Frame& frame : frames) events.push_back({Event::Kind::frame, 0, std::move(frame)});
  if (lost && !is_lost_) {
    is_lost_ = true;
    poller_.remove(socket_.fd());
    events.push_back({Event::Kind::lost, 0, {}, socket_.is_silent()});
  }
  return events;
}

void ControlLink::send(int /*node*/, const Frame& frame) {
  if (is_lost_) return;
  socket_.queue(frame);
  flush();
}

void ControlLink::watch(int fd) { poller_.add(fd, kWatched); }

void ControlLink::flush() {
  if (!is_lost_) socket_.flush(poller_, kHub);
}

}  // namespace hvd_backup
