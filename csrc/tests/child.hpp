// Processes that a test starts and kills.
#pragma once

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <exception>
#include <functional>

#include "base/error.hpp"
#include "memory/descriptor.hpp"

namespace hvd_backup::testing {

/// A child that runs `body`, reports that it is ready, and stays until it is killed.
class Child {
 public:
  explicit Child(const std::function<bool()>& body) {
    std::array<int, 2> ends{};
    if (pipe(ends.data()) != 0) throw SystemError("pipe", errno);
    {
      const KeptByChildren keep;
      pid_ = fork();
    }
    if (pid_ == 0) live(body, ends[1]);
    close(ends[1]);
    char answer = 'n';
    ok_ = read(ends[0], &answer, 1) == 1 && answer == 'y';
    close(ends[0]);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() { end(); }

  /// Its body returned true.
  bool ok() const { return ok_; }
  pid_t pid() const { return pid_; }

  /// SIGKILL, and waits until the kernel has cleaned up.
  void end() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }

 private:
  [[noreturn]] static void live(const std::function<bool()>& body, int to) {
    bool fine = false;
    try {
      fine = body();
    } catch (const std::exception&) {
      fine = false;
    }
    const char answer = fine ? 'y' : 'n';
    if (write(to, &answer, 1) != 1) _exit(1);
    for (;;) pause();
  }

  pid_t pid_ = 0;
  bool ok_ = false;
};

inline std::byte byte(int value) { return static_cast<std::byte>(value); }

}  // namespace hvd_backup::testing
