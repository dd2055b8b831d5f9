// hvd_backup_tests [--list] [--limit SECONDS] [--need-gpu] [SUBSTRING]
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "check.hpp"
#include "device/cuda.hpp"

namespace check = hvd_backup::check;

int main(int argc, char** argv) {
  std::string filter;
  bool list = false;
  unsigned limit_s = 60;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--list") {
      list = true;
    } else if (argument == "--limit" && i + 1 < argc) {
      limit_s = static_cast<unsigned>(std::strtoul(argv[++i], nullptr, 10));
    } else if (argument == "--need-gpu") {
      const hvd_backup::CudaStatus status = hvd_backup::cuda_status();
      if (status.devices == 0) {
        std::fprintf(stderr, "%s\n", status.why.c_str());
        return 1;
      }
    } else if (argument.rfind("--", 0) == 0) {
      std::fprintf(stderr, "usage: %s [--list] [--limit SECONDS] [--need-gpu] [SUBSTRING]\n",
                   argv[0]);
      return 2;
    } else {
      filter = argument;
    }
  }

  int passed = 0;
  int failed = 0;
  int skipped = 0;
  for (const check::Case& test_case : check::all_cases()) {
    if (test_case.name.find(filter) == std::string::npos) continue;
    if (list) {
      std::printf("%s\n", test_case.name.c_str());
      continue;
    }
    const auto start = std::chrono::steady_clock::now();
    const check::Outcome outcome = check::run_case(test_case, limit_s);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    const bool failure = outcome.failures > 0;
    const bool skip = !failure && !outcome.skipped.empty();
    std::printf("%s  %s (%.2f s)\n", failure ? "FAIL" : (skip ? "skip" : "pass"),
                test_case.name.c_str(), took.count());
    if (skip) std::printf("      %s\n", outcome.skipped.c_str());
    for (const std::string& message : outcome.messages) std::printf("      %s\n", message.c_str());
    const int unshown = outcome.failures - static_cast<int>(outcome.messages.size());
    if (unshown > 0) std::printf("      and %d more\n", unshown);
    std::fflush(stdout);
    ++(failure ? failed : (skip ? skipped : passed));
  }
  if (list) return 0;
  if (passed + failed + skipped == 0) {
    std::fprintf(stderr, "no case has \"%s\" in its name\n", filter.c_str());
    return 2;
  }
  std::printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
  return failed == 0 ? 0 : 1;
}
