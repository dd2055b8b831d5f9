#include "device/host_kernels.hpp"

#include "device/launch.hpp"

namespace hvd_backup::host {
namespace {

struct Loops {
  template <class Kernel>
  void operator()(const char*, const Kernel& kernel, std::uint64_t blocks) const {
    for (std::uint64_t block = 0; block < blocks; ++block) {
      for (std::uint32_t thread = 0; thread < kernels::kThreads; ++thread) kernel(block, thread);
    }
  }
};

}  // namespace

void copy(const CopyTask& task) { kernels::launch_copy(task, Loops{}); }

void sum(const SumTask& task) { kernels::launch_sum(task, Loops{}); }

}  // namespace hvd_backup::host
