#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.hpp"

namespace hvd_backup {

/// Elements that are summed before the next ones are looked at: operands of one block and its sum
/// stay in the first-level cache.
constexpr std::size_t kBlock = 1024;

/// Operands that the fused mean takes at most.
constexpr std::size_t kFusedOperands = 8;

/// The inner loops, once per instruction set. `add` and `finish` take at most kBlock elements.
struct MeanKernels {
  /// The whole weighted mean in one pass; false if it is not made for this dtype or so many
  /// operands. Same sums in the same order, hence the same bits, as `add` and `finish`.
  using Fused = bool (*)(DType dtype, const std::byte* const* operands, const double* weights,
                         std::size_t operand_count, std::size_t count, double total, std::byte* out,
                         bool stream);
  /// sum[i] = (first ? 0 : sum[i]) + Σ_k weights[k] * operands[k][i], in order; 1, 2 or 4 operands.
  /// `sum` is float, or double for float64.
  using Add = void (*)(DType dtype, const std::byte* const* operands, const double* weights,
                       std::size_t operand_count, bool first, std::size_t count, void* sum);
  /// out[i] = sum[i] / total, rounded to dtype.
  using Finish = void (*)(DType dtype, const void* sum, double total, std::size_t count,
                          std::byte* out);
  using Copy = void (*)(std::byte* to, const std::byte* from, std::size_t bytes);

  Fused fused;
  Add add;
  Finish finish;
  Copy copy;
  Copy stream_copy;  ///< past the caches
};

/// For every processor of the architecture.
extern const MeanKernels baseline_kernels;
/// For x86 processors with AVX2; nullptr in builds for others.
const MeanKernels* avx2_kernels();

}  // namespace hvd_backup
