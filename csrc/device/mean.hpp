#pragma once

#include <cstddef>

#include "base/dtype.hpp"

namespace hvd_backup {

/// One operand of a weighted mean: `count` elements and how much they count.
struct Operand {
  const std::byte* data = nullptr;
  double weight = 1;
};

/// out[i] = (w0 x0[i] + w1 x1[i] + …) / total, summed in the order given, in float32 (float64 for
/// float64), so that the same operands in the same order give the same bits on every machine.
/// `out` may be one of the operands. `stream` keeps the result out of the caches: right when it is
/// larger than they are.
void weighted_mean(DType dtype, const Operand* operands, std::size_t operand_count,
                   std::size_t count, double total, std::byte* out, bool stream);

/// memcpy, past the caches if `stream`. Not memcpy itself: glibc's uses "rep movsb" at these sizes,
/// which is ten times slower on Zen 3 and 4 when source and target lie alike in their pages
/// (sourceware bug 30994).
void copy_bytes(std::byte* to, const std::byte* from, std::size_t bytes, bool stream);

}  // namespace hvd_backup
