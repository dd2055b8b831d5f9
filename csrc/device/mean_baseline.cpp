#include <cstring>

#include "base/half.hpp"
#include "device/mean_kernels.hpp"

namespace hvd_backup {
namespace {

#include "device/mean_loops.inc"

void copy(std::byte* to, const std::byte* from, std::size_t bytes) { std::memcpy(to, from, bytes); }

}  // namespace

const MeanKernels baseline_kernels{add, finish, copy, copy};

}  // namespace hvd_backup
