// hvd_backup_tests [--list] [--limit SECONDS] [--need-gpu] [--dt-OPTION…] [SUBSTRING]
//
// Runs the cases with SUBSTRING in their names, each for at most SECONDS. Options of doctest's have
// the prefix --dt-, see --dt-help.
#define DOCTEST_CONFIG_IMPLEMENT
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iomanip>
#include <string>
#include <vector>

#include "check.hpp"
#include "device/cuda.hpp"

namespace hvd_backup::check {
namespace {

int finished = 0;  // cases

// ---- the running case

std::atomic<int> failed{0};
std::string skipped;  // why; empty if it was not

// ---- its time limit

unsigned limit_s = 60;  // of cases without a limit of their own

// Read by the signal handler, hence plain memory of a fixed size.
char running_name[512] = "";

// What a hung thread holds cannot be given back, so a hung case ends the process.
void on_alarm(int) {
  static const char text[] = "\nTIME LIMIT exceeded by the case: ";
  // A failed write leaves nothing better to do.
  if (write(STDERR_FILENO, text, sizeof text - 1) < 0 ||
      write(STDERR_FILENO, running_name, std::strlen(running_name)) < 0 ||
      write(STDERR_FILENO, "\n", 1) < 0) {
  }
  abort();
}

void start_alarm(const std::string& name, double own_limit_s) {
  running_name[name.copy(running_name, sizeof running_name - 1)] = '\0';
  struct sigaction action = {};
  action.sa_handler = on_alarm;
  sigaction(SIGALRM, &action, nullptr);
  alarm(own_limit_s > 0 ? static_cast<unsigned>(std::ceil(own_limit_s)) : limit_s);
}

// ---- what is printed

// A stress loop may fail a million times; the first failures tell the story.
constexpr int kShownFailures = 20;

// doctest's console, with a line for each case, and skips. tests/summary.py reads its last line.
class Reporter : public doctest::ConsoleReporter {
 public:
  using ConsoleReporter::ConsoleReporter;

  void report_query(const doctest::QueryData& query) override {
    if (!opt.list_test_cases) return ConsoleReporter::report_query(query);
    for (unsigned i = 0; i < query.num_data; ++i) s << query.data[i]->m_name << "\n";
  }

  void test_run_start() override {}

  void test_case_start(const doctest::TestCaseData& test_case) override {
    failed = 0;
    skipped.clear();
    ConsoleReporter::test_case_start(test_case);
    start_alarm(test_case.m_name, test_case.m_timeout);
  }

  void log_assert(const doctest::AssertData& assertion) override {
    if (assertion.m_failed && failed++ >= kShownFailures) return;
    ConsoleReporter::log_assert(assertion);
    s.flush();  // also in a child process, which may end without
  }

  void log_message(const doctest::MessageData& message) override {
    const bool is_failure = (message.m_severity & doctest::assertType::is_warn) == 0;
    if (is_failure && failed++ >= kShownFailures) return;
    ConsoleReporter::log_message(message);
    s.flush();
  }

  void test_case_exception(const doctest::TestCaseException& exception) override {
    ++failed;
    ConsoleReporter::test_case_exception(exception);
  }

  void test_case_end(const doctest::CurrentTestCaseStats& stats) override {
    alarm(0);
    ConsoleReporter::test_case_end(stats);
    const bool failure = !stats.testCaseSuccess;
    const bool skip = !failure && !skipped.empty();
    if (failed > kShownFailures) s << "and " << failed - kShownFailures << " more\n";
    s << (failure ? "FAIL" : (skip ? "skip" : "pass")) << "  " << tc->m_name << " (" << std::fixed
      << std::setprecision(2) << stats.seconds << " s)\n";
    if (skip) s << "      " << skipped << "\n";
    s.flush();
    ++finished;
    ++(failure ? failures_ : (skip ? skips_ : passes_));
  }

  void test_run_end(const doctest::TestRunStats&) override {
    s << passes_ << " passed, " << failures_ << " failed, " << skips_ << " skipped\n";
  }

 private:
  int passes_ = 0;
  int failures_ = 0;
  int skips_ = 0;
};

DOCTEST_REGISTER_REPORTER("cases", 0, Reporter);

// ---- the command line

// doctest's pattern for names with these words in them.
std::string containing(const std::string& words) {
  std::string pattern = "*";
  for (const char c : words) {
    if (c == ',' || c == '\\') pattern += '\\';
    pattern += c;
  }
  return pattern + "*";
}

int usage(const char* program) {
  std::fprintf(stderr,
               "usage: %s [--list] [--limit SECONDS] [--need-gpu] [--dt-OPTION…] [SUBSTRING]\n",
               program);
  return 2;
}

int run(int argc, char** argv) {
  show_all_digits();
  doctest::Context context;
  context.setOption("dt-case-sensitive", true);
  context.setOption("dt-reporters", "cases");
  context.applyCommandLine(argc, argv);
  std::string words;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--list") {
      const char* const list = "--dt-list-test-cases";
      context.applyCommandLine(1, &list);
    } else if (argument == "--limit" && i + 1 < argc) {
      limit_s = static_cast<unsigned>(std::strtoul(argv[++i], nullptr, 10));
    } else if (argument == "--need-gpu") {
      const CudaStatus status = cuda_status();
      if (status.devices == 0) {
        std::fprintf(stderr, "%s\n", status.why.c_str());
        return 1;
      }
    } else if (argument.rfind("--dt-", 0) == 0) {
      // doctest has taken it
    } else if (argument.rfind("--", 0) == 0) {
      return usage(argv[0]);
    } else {
      words = argument;
    }
  }
  if (!words.empty()) context.setOption("dt-test-case", containing(words).c_str());
  const int status = context.run();
  if (finished > 0 || context.shouldExit()) return status;
  std::fprintf(stderr, "no case has \"%s\" in its name\n", words.c_str());
  return 2;
}

}  // namespace

int failures() { return failed; }

void skip(const std::string& why) { skipped = why.empty() ? "no reason given" : why; }

}  // namespace hvd_backup::check

int main(int argc, char** argv) { return hvd_backup::check::run(argc, argv); }
