// The test framework is tested like everything else.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <stdexcept>
#include <thread>

#include "check.hpp"

namespace check = hvd_backup::check;

namespace {

check::Outcome run(std::function<void()> body) {
  return check::run_case({"an inner case", std::move(body)});
}

bool has(const check::Outcome& outcome, const std::string& words) {
  return !outcome.messages.empty() && outcome.messages[0].find(words) != std::string::npos;
}

}  // namespace

TEST_CASE("a check that holds is no failure") {
  const check::Outcome outcome = run([] {
    CHECK(1 + 1 == 2);
    CHECK_EQ(std::string("a"), "a");
    CHECK_EQ(std::vector<int>(3).size(), 3);
    CHECK_THROWS_AS(throw std::range_error("far"), std::runtime_error);
    CHECK_THROWS_WITH(throw std::range_error("far out"), std::runtime_error, "out");
  });
  CHECK_EQ(outcome.failures, 0);
}

TEST_CASE("a check that fails is counted, shown with its line, and the case goes on") {
  const check::Outcome outcome = run([] {
    CHECK(1 + 1 == 3);
    CHECK(false);
  });
  CHECK_EQ(outcome.failures, 2);
  CHECK(has(outcome, "1 + 1 == 3 is false"));
  CHECK(has(outcome, "test_check.cpp:"));
}

TEST_CASE("unequal values are both shown") {
  CHECK(has(run([] { CHECK_EQ(std::vector<int>({1, 2}), std::vector<int>({1, 3})); }),
            "{1, 2} is not {1, 3}"));
  CHECK(has(run([] { CHECK_EQ(2U, 3); }), "2 is not 3"));
  CHECK(has(run([] { CHECK_EQ(true, false); }), "true is not false"));
}

TEST_CASE("a negative number equals no unsigned one") {
  CHECK(!check::equal(-1, static_cast<unsigned>(-1)));
  CHECK(!check::equal(static_cast<unsigned>(-1), -1));
  CHECK(check::equal(7, 7UL));
}

TEST_CASE("a missing, a wrong and a badly worded exception are told apart") {
  CHECK(has(run([] { CHECK_THROWS_AS(static_cast<void>(0), std::exception); }),
            "nothing was thrown"));
  CHECK(has(run([] { CHECK_THROWS_AS(throw std::logic_error("why"), std::runtime_error); }),
            "another type, saying: why"));
  CHECK(has(run([] { CHECK_THROWS_WITH(throw std::logic_error("why"), std::logic_error, "how"); }),
            "its text is: why"));
}

TEST_CASE("REQUIRE and an uncaught exception end the case") {
  bool reached = false;
  CHECK_EQ(run([&] {
             REQUIRE(false);
             reached = true;
           }).failures,
           1);
  CHECK(!reached);
  CHECK(has(run([] { throw std::logic_error("unexpected"); }), "unexpected"));
}

TEST_CASE("a case that skips ends there, with its reason, and neither passes nor fails") {
  bool reached = false;
  const check::Outcome outcome = run([&] {
    SKIP("there is no moon");
    reached = true;
  });
  CHECK(!reached);
  CHECK_EQ(outcome.failures, 0);
  CHECK_EQ(outcome.skipped, "there is no moon");
  CHECK(run([] {}).skipped.empty());
}

TEST_CASE("a case that skips after a check that failed, or in another thread, keeps both") {
  const check::Outcome outcome = run([] {
    check::in_threads(2, [](int i) {
      CHECK(i == 0);
      if (i == 0) SKIP("only one");
    });
  });
  CHECK_EQ(outcome.failures, 1);
  CHECK_EQ(outcome.skipped, "only one");
}

TEST_CASE("failures and exceptions of other threads belong to the case") {
  const check::Outcome outcome = run([] {
    check::in_threads(4, [](int i) {
      CHECK(i != 1);
      if (i == 2) throw std::logic_error("thread 2");
      REQUIRE(i != 3);
    });
  });
  CHECK_EQ(outcome.failures, 3);
}

TEST_CASE("only the first of many failures are kept") {
  const check::Outcome outcome = run([] {
    for (int i = 0; i < 1000; ++i) CHECK(false);
  });
  CHECK_EQ(outcome.failures, 1000);
  CHECK(outcome.messages.size() < 100);
}

TEST_CASE("a case that exceeds its time limit aborts the program and is named") {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    check::run_case(
        {"sleeps for ever", [] { std::this_thread::sleep_for(std::chrono::hours(1)); }, 1});
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char part[256];
  for (ssize_t got = 0; (got = read(ends[0], part, sizeof part)) > 0;) {
    text.append(part, static_cast<std::size_t>(got));
  }
  close(ends[0]);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status));
  CHECK_EQ(WTERMSIG(status), SIGABRT);
  CHECK(text.find("TIME LIMIT exceeded by the case: sleeps for ever") != std::string::npos);
}
