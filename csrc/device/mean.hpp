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
/// larger than they are; `out` must then be 32-byte aligned.
void weighted_mean(DType dtype, const Operand* operands, std::size_t operand_count,
                   std::size_t count, double total, std::byte* out, bool stream);

/// memcpy for results larger than the caches; `to` must be 32-byte aligned.
void stream_copy(std::byte* to, const std::byte* from, std::size_t bytes);

}  // namespace hvd_backup
