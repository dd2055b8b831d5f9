#include "base/clock.hpp"

#include <ctime>

namespace hvd_backup {
namespace {

class MonotonicClock final : public Clock {
 public:
  Nanoseconds now() const override {
    timespec t{};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<Nanoseconds>(t.tv_sec) * kSecond + t.tv_nsec;
  }
};

}  // namespace

const Clock& monotonic_clock() {
  static const MonotonicClock clock;
  return clock;
}

}  // namespace hvd_backup
