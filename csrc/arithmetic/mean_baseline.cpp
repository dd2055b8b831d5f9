#include <cstring>

#include "arithmetic/mean_kernels.hpp"
#include "base/half.hpp"

namespace hvd_backup {
namespace {

#include "arithmetic/mean_loops.inc"

void copy(std::byte* to, const std::byte* from, std::size_t bytes) { std::memcpy(to, from, bytes); }

bool not_fused(DType, const std::byte* const*, const double*, std::size_t, std::size_t, double,
               std::byte*, bool) {
  return false;
}

}  // namespace

const MeanKernels baseline_kernels{not_fused, add, finish, copy, copy};

}  // namespace hvd_backup
