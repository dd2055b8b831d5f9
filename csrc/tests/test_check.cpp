// What check.hpp and main.cpp add to doctest: this program runs cases of its own that doctest skips
// unless they are asked for, and reads what it prints about them.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.hpp"

using namespace hvd_backup;

namespace {

struct Ended {
  int status = 0;
  std::string text;  // stdout and stderr

  bool has(const std::string& words) const { return text.find(words) != std::string::npos; }
  std::size_t count(const std::string& words) const {
    std::size_t found = 0;
    for (auto at = text.find(words); at != std::string::npos; at = text.find(words, at + 1)) {
      ++found;
    }
    return found;
  }
};

/// This program with other arguments.
Ended run(std::vector<std::string> arguments) {
  std::array<int, 2> ends{};
  REQUIRE(pipe(ends.data()) == 0);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // or a time limit would leave it behind
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    std::vector<char*> words{const_cast<char*>("tests")};
    for (std::string& argument : arguments) words.push_back(argument.data());
    words.push_back(nullptr);
    execv("/proc/self/exe", words.data());
    _exit(127);
  }
  close(ends[1]);
  Ended ended;
  std::array<char, 256> part{};
  for (ssize_t got = 0; (got = read(ends[0], part.data(), part.size())) > 0;) {
    ended.text.append(part.data(), static_cast<std::size_t>(got));
  }
  close(ends[0]);
  REQUIRE(waitpid(child, &ended.status, 0) == child);
  return ended;
}

/// One of the cases below.
Ended run_inner(const std::string& name) { return run({"--dt-no-skip", "inner: " + name}); }

bool has_status(const Ended& ended, int status) {
  return WIFEXITED(ended.status) && WEXITSTATUS(ended.status) == status;
}

}  // namespace

TEST_CASE("inner: passes" * doctest::skip()) { CHECK_EQ(1 + 1, 2); }

TEST_CASE("a case that passes is counted, and its name is printed") {
  const Ended ended = run_inner("passes");
  CHECK(has_status(ended, 0));
  CHECK(ended.text.rfind("pass  inner: passes (0.0", 0) == 0);
  CHECK(ended.has("\n1 passed, 0 failed, 0 skipped\n"));
}

TEST_CASE("inner: four checks fail" * doctest::skip()) {
  CHECK(1 + 1 == 3);
  CHECK_EQ(std::vector<float>({1, 0.1F}), std::vector<float>({1, 2}));
  CHECK_EQ(std::optional<int>(), std::optional<int>(4));
  CHECK_THROWS_WITH_AS(throw std::range_error("far out"), doctest::Contains("near"),
                       std::range_error);
}

TEST_CASE("failed checks are shown with line and values, and the case goes on") {
  const Ended ended = run_inner("four checks fail");
  CHECK(has_status(ended, 1));
  CHECK(ended.has("test_check.cpp:"));
  CHECK(ended.has("values: CHECK( 2 == 3 )"));
  CHECK(ended.has("{1, 0.10000000149011612}, {1, 2}"));
  CHECK(ended.has("CHECK_EQ( nothing, 4 )"));
  CHECK(ended.has("threw a DIFFERENT exception! (contents: \"far out\")"));
  CHECK(ended.has("\nFAIL  inner: four checks fail ("));
  CHECK(ended.has("\n0 passed, 1 failed, 0 skipped\n"));
}

TEST_CASE("inner: skips" * doctest::skip()) {
  SKIP("there is no moon");
  CHECK(false);
}

TEST_CASE("a case that skips ends there, with its reason, and neither passes nor fails") {
  const Ended ended = run_inner("skips");
  CHECK(has_status(ended, 0));
  CHECK(ended.has("skip  inner: skips ("));
  CHECK(ended.has("\n      there is no moon\n0 passed, 0 failed, 1 skipped\n"));
}

TEST_CASE("inner: fails, then skips" * doctest::skip()) {
  CHECK(1 > 2);
  SKIP("there is no moon");
}

TEST_CASE("a case that skips after a check that failed has failed") {
  const Ended ended = run_inner("fails, then skips");
  CHECK(has_status(ended, 1));
  CHECK(ended.has("\n0 passed, 1 failed, 0 skipped\n"));
}

TEST_CASE("inner: REQUIRE fails" * doctest::skip()) {
  REQUIRE(false);
  FAIL_CHECK("unreachable");
}

TEST_CASE("inner: an exception" * doctest::skip()) { throw std::logic_error("unexpected"); }

TEST_CASE("REQUIRE and an uncaught exception end the case") {
  const Ended required = run_inner("REQUIRE fails");
  CHECK(required.has("FAIL  inner: REQUIRE fails"));
  CHECK(!required.has("unreachable"));
  const Ended threw = run_inner("an exception");
  CHECK(threw.has("test case THREW exception: unexpected"));
  CHECK(threw.has("\n0 passed, 1 failed, 0 skipped\n"));
}

TEST_CASE("inner: threads" * doctest::skip()) {
  check::in_threads(4, [](int i) {
    CHECK(i != 1);
    if (i == 2) throw std::logic_error("in thread two");
    REQUIRE(i != 3);
  });
  CHECK_EQ(check::failures(), 3);
  CHECK_EQ(check::failures(), 0);
}

TEST_CASE("failures and exceptions of other threads belong to the case, and name the thread") {
  const Ended ended = run_inner("threads");
  CHECK(ended.has("exception: in thread two"));
  for (const char* thread : {"thread 1", "thread 2", "thread 3"}) {
    CHECK_EQ(ended.count(std::string("logged: ") + thread), 1);
  }
  CHECK_EQ(ended.count("ERROR"), 4);  // and that there were three before, not none
  CHECK(ended.has("values: CHECK_EQ( 3, 0 )"));
  CHECK(ended.has("\n0 passed, 1 failed, 0 skipped\n"));
}

TEST_CASE("inner: fails a thousand times" * doctest::skip()) {
  for (int i = 0; i < 500; ++i) {
    CHECK(i < 0);
    FAIL_CHECK("no");
  }
}

TEST_CASE("only the first of many failures are shown") {
  const Ended ended = run_inner("fails a thousand times");
  CHECK(ended.count("ERROR") < 100);
  CHECK(ended.has("and 980 more\nFAIL  inner: fails a thousand times"));
}

TEST_CASE("inner: sleeps for ever" * doctest::skip() * doctest::timeout(1)) {
  std::this_thread::sleep_for(std::chrono::hours(1));
}

TEST_CASE("inner: sleeps too" * doctest::skip()) {
  std::this_thread::sleep_for(std::chrono::hours(1));
}

TEST_CASE("a case that exceeds its time limit aborts the program and is named") {
  const std::vector<Ended> runs{run_inner("sleeps for ever"),
                                run({"--dt-no-skip", "--limit", "1", "inner: sleeps too"})};
  for (const Ended& ended : runs) {
    CHECK(WIFSIGNALED(ended.status));
    CHECK_EQ(WTERMSIG(ended.status), SIGABRT);
    CHECK(ended.has("TIME LIMIT exceeded by the case: inner: sleeps "));
  }
}

TEST_CASE("cases are found by a part of their names, commas too, and listed") {
  const Ended listed = run({"--list", "commas too, and"});
  CHECK(has_status(listed, 0));
  CHECK_EQ(listed.text, "cases are found by a part of their names, commas too, and listed\n");
  CHECK(!run({"--list"}).has("inner:"));
}

TEST_CASE("a name that no case has, and an option that does not exist, are refused") {
  const Ended none = run({"no such case"});
  CHECK(has_status(none, 2));
  CHECK(none.has("no case has \"no such case\" in its name"));
  const Ended unknown = run({"--lst"});
  CHECK(has_status(unknown, 2));
  CHECK(unknown.has("usage: "));
}
