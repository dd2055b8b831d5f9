// The bell: an event count on a futex.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.hpp"
#include "memory/arena.hpp"
#include "memory/futex.hpp"
#include "memory/shared_state.hpp"
#include "world.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

constexpr Nanoseconds kTooLong = 30 * kSecond;  // longer than the limit of the cases that use it

}  // namespace

TEST_CASE("a ring between ticket and sleep ends the sleep at once" * doctest::timeout(20)) {
  Bell bell{};
  for (int i = 0; i < 100; ++i) {
    const std::uint32_t ticket = bell.ticket();
    bell.ring();
    bell.sleep(ticket, kTooLong);
  }
}

TEST_CASE("a sleeper sleeps as long as it was told when nobody rings" * doctest::timeout(20)) {
  Bell bell{};
  const Nanoseconds start = monotonic_clock().now();
  bell.sleep(bell.ticket(), 20 * kMillisecond);
  CHECK(monotonic_clock().now() - start >= 19 * kMillisecond);
}

TEST_CASE("no ring is lost: two threads hand a ball to and fro asleep" * doctest::timeout(20)) {
  Bell bells[2]{};
  std::atomic<int> ball{0};
  check::in_threads(2, [&](int me) {
    for (int i = me; i < 50'000; i += 2) {
      for (;;) {
        const std::uint32_t ticket = bells[me].ticket();
        if (ball.load() == i) break;
        bells[me].sleep(ticket, kTooLong);  // a lost ring would hang here
      }
      ball.store(i + 1);
      bells[1 - me].ring();
    }
  });
  CHECK_EQ(ball.load(), 50'000);
}

TEST_CASE("no ring is lost, however close it comes to somebody's going to sleep" *
          doctest::timeout(20)) {
  Bell bell{};
  std::atomic<int> stage{0};
  std::atomic<int> seen{0};
  constexpr int kStages = kThreadSanitizer ? 10'000 : 100'000;
  check::in_threads(2, [&](int me) {
    for (int i = 1; i <= kStages; ++i) {
      if (me == 0) {
        while (seen.load() != i - 1) std::this_thread::yield();
        // The other is on its way to sleep; come at any point of it.
        for (auto k = mix(static_cast<std::uint64_t>(i)) % 64; k > 0; --k) pause_briefly();
        stage.store(i);
        bell.ring();
        continue;
      }
      for (;;) {
        const std::uint32_t ticket = bell.ticket();
        if (stage.load() == i) break;
        bell.sleep(ticket, kTooLong);
      }
      seen.store(i);
    }
  });
  CHECK_EQ(seen.load(), kStages);
}

TEST_CASE("a ring wakes all sleepers" * doctest::timeout(20)) {
  Bell bell{};
  std::atomic<int> stage{0};
  std::atomic<int> there{0};
  check::in_threads(4, [&](int me) {
    for (int i = 1; i <= 2000; ++i) {
      if (me == 0) {
        while (there.load() != 3 * (i - 1)) std::this_thread::yield();
        stage.store(i);
        bell.ring();
        continue;
      }
      for (;;) {
        const std::uint32_t ticket = bell.ticket();
        if (stage.load() >= i) break;
        bell.sleep(ticket, kTooLong);
      }
      there.fetch_add(1);
    }
  });
  CHECK_EQ(there.load(), 6000);
}
