#include "check.hpp"

#include <signal.h>
#include <unistd.h>

#include <cstring>
#include <mutex>
#include <thread>

namespace hvd_backup::check {
namespace {

std::vector<Case>& registry() {
  static std::vector<Case> cases;  // a local static: cases register before main()
  return cases;
}

// A stress loop may fail a million times; the first failures tell the story.
constexpr std::size_t kept_messages = 20;

std::mutex outcome_mutex;
Outcome* outcome = nullptr;  // of the running case

// Read by the signal handler, hence plain memory of a fixed size.
char running_name[512] = "";

void on_alarm(int) {
  static const char text[] = "\nTIME LIMIT exceeded by the case: ";
  // A failed write leaves nothing better to do.
  if (write(STDERR_FILENO, text, sizeof text - 1) < 0 ||
      write(STDERR_FILENO, running_name, std::strlen(running_name)) < 0 ||
      write(STDERR_FILENO, "\n", 1) < 0) {
  }
  abort();
}

void set_running_name(const std::string& name) {
  const std::size_t length = name.copy(running_name, sizeof running_name - 1);
  running_name[length] = '\0';
}

template <typename Body>
void noting_exceptions(const Body& body) {
  try {
    body();
  } catch (const EndOfCase&) {
    // noted where it was thrown
  } catch (const std::exception& error) {
    fail("exception", 0, error.what());
  } catch (...) {
    fail("exception", 0, "not derived from std::exception");
  }
}

}  // namespace

Registration::Registration(Case test_case) { registry().push_back(std::move(test_case)); }

const std::vector<Case>& all_cases() { return registry(); }

Outcome run_case(const Case& test_case, unsigned default_limit_s) {
  Outcome mine;
  // Saved and put back, so that a case can run another one (the tests of this file do).
  const std::string outer_name = running_name;
  Outcome* outer = nullptr;
  {
    const std::lock_guard<std::mutex> lock(outcome_mutex);
    outer = std::exchange(outcome, &mine);
  }
  set_running_name(test_case.name);
  struct sigaction action = {};
  action.sa_handler = on_alarm;
  sigaction(SIGALRM, &action, nullptr);
  const unsigned outer_left_s = alarm(test_case.limit_s != 0 ? test_case.limit_s : default_limit_s);

  noting_exceptions(test_case.body);

  alarm(outer_left_s);
  set_running_name(outer_name);
  const std::lock_guard<std::mutex> lock(outcome_mutex);
  outcome = outer;
  return mine;
}

void in_threads(int count, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) {
    threads.emplace_back([&body, i] { noting_exceptions([&body, i] { body(i); }); });
  }
  for (std::thread& thread : threads) thread.join();
}

void fail(const char* file, int line, const std::string& what) {
  const std::lock_guard<std::mutex> lock(outcome_mutex);
  if (outcome == nullptr) return;  // a thread that outlived its case
  ++outcome->failures;
  if (outcome->messages.size() < kept_messages) {
    outcome->messages.push_back(std::string(file) + ":" + std::to_string(line) + ": " + what);
  }
}

void skip(const std::string& why) {
  {
    const std::lock_guard<std::mutex> lock(outcome_mutex);
    if (outcome != nullptr) outcome->skipped = why.empty() ? "no reason given" : why;
  }
  throw EndOfCase();
}

}  // namespace hvd_backup::check
