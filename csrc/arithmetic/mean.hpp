#pragma once

#include <cstddef>

#include "base/dtype.hpp"

namespace hvd_backup {

/// One operand of a weighted mean: its elements, and their weight.
struct Operand {
  const std::byte* data = nullptr;
  double weight = 1;
};

/// out[i] = (w0 x0[i] + w1 x1[i] + …) / total, summed in the order given, in float32 (float64 for
/// float64), so that the same operands in the same order give the same bits on every machine.
/// `out` may be one of the operands. `stream` keeps the result out of the caches, which is faster
/// if the result is larger than the caches.
void weighted_mean(DType dtype, const Operand* operands, std::size_t operand_count,
                   std::size_t count, double total, std::byte* out, bool stream);

/// The type that operands of `dtype` are added in: float32, or float64 for float64.
DType sum_type(DType dtype);

/// sum[i] = w0 x0[i] + w1 x1[i] + …, in the order given; `sum` is of sum_type(dtype).
void weighted_sum(DType dtype, const Operand* operands, std::size_t operand_count,
                  std::size_t count, std::byte* sum);

/// out[i] = (s0[i] + s1[i] + …) / total, in the order given, where the s are of sum_type(dtype):
/// the second half of a weighted mean whose operands were added in groups.
void mean_of_sums(DType dtype, const std::byte* const* sums, std::size_t sum_count,
                  std::size_t count, double total, std::byte* out);

/// memcpy, past the caches if `stream`. Not memcpy itself: glibc's uses "rep movsb" at these sizes,
/// which is ten times slower on Zen 3 and 4 when source and target lie alike in their pages
/// (sourceware bug 30994).
void copy_bytes(std::byte* to, const std::byte* from, std::size_t bytes, bool stream);

}  // namespace hvd_backup
