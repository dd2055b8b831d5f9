#include "transport/poller.hpp"

#include <poll.h>
#include <sys/epoll.h>

#include <array>
#include <cerrno>
#include <ctime>

#include "base/error.hpp"

namespace hvd_backup {
namespace {

void control(int epoll, int operation, int fd, std::uint64_t tag, std::uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = tag;
  if (epoll_ctl(epoll, operation, fd, &event) != 0) {
    throw SystemError("cannot watch a file descriptor", errno);
  }
}

bool sleep_until_readable(int fd, Nanoseconds timeout) {
  pollfd one{fd, POLLIN, 0};
  const timespec most{timeout / kSecond, timeout % kSecond};
  return ppoll(&one, 1, &most, nullptr) > 0;
}

}  // namespace

Poller::Poller() : set_(epoll_create1(EPOLL_CLOEXEC)) {
  if (fd() < 0) throw SystemError("cannot make an epoll set", errno);
}

void Poller::add(int fd, std::uint64_t tag) const {
  control(this->fd(), EPOLL_CTL_ADD, fd, tag, EPOLLIN | EPOLLRDHUP);
}

void Poller::want_write(int fd, std::uint64_t tag, bool wanted) const {
  const std::uint32_t write = wanted ? static_cast<std::uint32_t>(EPOLLOUT) : 0;
  control(this->fd(), EPOLL_CTL_MOD, fd, tag, EPOLLIN | EPOLLRDHUP | write);
}

void Poller::remove(int fd) const { epoll_ctl(this->fd(), EPOLL_CTL_DEL, fd, nullptr); }

void Poller::sleep(int fd, Nanoseconds timeout) { sleep_until_readable(fd, timeout); }

std::vector<Poller::Ready> Poller::wait(Nanoseconds timeout) const {
  // epoll_wait counts milliseconds, and epoll_pwait2 is younger than many clusters.
  if (timeout > 0 && !sleep_until_readable(fd(), timeout)) return {};
  std::array<epoll_event, 64> events{};
  const int count = epoll_wait(fd(), events.data(), static_cast<int>(events.size()), 0);
  if (count < 0 && errno != EINTR) throw SystemError("cannot wait for messages", errno);
  std::vector<Ready> ready;
  for (int i = 0; i < count; ++i) {
    const epoll_event& event = events[static_cast<std::size_t>(i)];
    const bool writable = (event.events & EPOLLOUT) != 0;
    ready.push_back({event.data.u64, (event.events & ~EPOLLOUT) != 0, writable});
  }
  return ready;
}

}  // namespace hvd_backup
