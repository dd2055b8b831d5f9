#include "memory/futex.hpp"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

namespace hvd_backup {
namespace {

// glibc has no wrapper. Not FUTEX_PRIVATE: the word is shared between processes.
void futex(std::atomic<std::uint32_t>& word, int operation, std::uint32_t value,
           const timespec* timeout) {
  static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t));
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-vararg,hicpp-vararg)
  syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), operation, value, timeout, nullptr,
          0);
}

}  // namespace

void Bell::ring() {
  rings_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) != 0) {
    futex(rings_, FUTEX_WAKE, INT_MAX, nullptr);
  }
}

void Bell::sleep(std::uint32_t ticket, Nanoseconds at_most) {
  timespec timeout{};
  timeout.tv_sec = at_most / kSecond;
  timeout.tv_nsec = at_most % kSecond;
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  futex(rings_, FUTEX_WAIT, ticket, &timeout);
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace hvd_backup
