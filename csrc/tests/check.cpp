#include "check.hpp"

#include <exception>
#include <thread>
#include <vector>

namespace hvd_backup::check {

void show_all_digits() {
  doctest::detail::tlssPush()->precision(17);  // doctest writes values to a stream of each thread
  doctest::detail::tlssPop();
}

void noting_exceptions(const std::function<void()>& body) {
  show_all_digits();
  try {
    body();
  } catch (const doctest::detail::TestFailureException&) {
    // noted where it was thrown, by REQUIRE
  } catch (const std::exception& error) {
    FAIL_CHECK("exception: ", error.what());
  } catch (...) {
    FAIL_CHECK("an exception that is not derived from std::exception");
  }
}

void in_threads(int count, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&body, i] {
      INFO("thread ", i);
      noting_exceptions([&body, i] { body(i); });
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace hvd_backup::check
