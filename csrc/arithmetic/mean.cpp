#include "arithmetic/mean.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "arithmetic/mean_kernels.hpp"

namespace hvd_backup {
namespace {

const MeanKernels& kernels() {
  static const MeanKernels& chosen = avx2_kernels() != nullptr ? *avx2_kernels() : baseline_kernels;
  return chosen;
}

/// Operands the kernels take at a time.
std::size_t group(std::size_t left) { return left >= 4 ? 4 : left >= 2 ? 2 : 1; }

void sum_block(DType dtype, const Operand* operands, std::size_t operand_count,
               std::size_t byte_offset, std::size_t count, void* sum) {
  std::array<const std::byte*, 4> data{};
  std::array<double, 4> weights{};
  for (std::size_t first = 0; first < operand_count;) {
    const std::size_t taken = group(operand_count - first);
    for (std::size_t k = 0; k < taken; ++k) {
      data[k] = operands[first + k].data + byte_offset;
      weights[k] = operands[first + k].weight;
    }
    kernels().add(dtype, data.data(), weights.data(), taken, first == 0, count, sum);
    first += taken;
  }
}

bool fused_mean(DType dtype, const Operand* operands, std::size_t operand_count, std::size_t count,
                double total, std::byte* out, bool stream) {
  if (operand_count > kFusedOperands) return false;
  std::array<const std::byte*, kFusedOperands> data{};
  std::array<double, kFusedOperands> weights{};
  for (std::size_t k = 0; k < operand_count; ++k) {
    data[k] = operands[k].data;
    weights[k] = operands[k].weight;
  }
  return kernels().fused(dtype, data.data(), weights.data(), operand_count, count, total, out,
                         stream);
}

}  // namespace

void weighted_mean(DType dtype, const Operand* operands, std::size_t operand_count,
                   std::size_t count, double total, std::byte* out, bool stream) {
  if (fused_mean(dtype, operands, operand_count, count, total, out, stream)) return;
  alignas(64) std::array<std::byte, kBlock * sizeof(double)> sum;
  alignas(64) std::array<std::byte, kBlock * sizeof(double)> rounded;
  const std::size_t element = size_of(dtype);
  for (std::size_t first = 0; first < count; first += kBlock) {
    const std::size_t n = std::min(kBlock, count - first);
    sum_block(dtype, operands, operand_count, first * element, n, sum.data());
    std::byte* to = out + first * element;
    if (stream) {
      kernels().finish(dtype, sum.data(), total, n, rounded.data());
      kernels().stream_copy(to, rounded.data(), n * element);
    } else {
      kernels().finish(dtype, sum.data(), total, n, to);
    }
  }
}

DType sum_type(DType dtype) { return dtype == DType::float64 ? dtype : DType::float32; }

void weighted_sum(DType dtype, const Operand* operands, std::size_t operand_count,
                  std::size_t count, std::byte* sum) {
  const DType wide = sum_type(dtype);
  // What is not narrowed at the end is a mean over a total of 1.
  if (wide == dtype && fused_mean(dtype, operands, operand_count, count, 1, sum, false)) return;
  for (std::size_t first = 0; first < count; first += kBlock) {
    sum_block(dtype, operands, operand_count, first * size_of(dtype),
              std::min(kBlock, count - first), sum + first * size_of(wide));
  }
}

void mean_of_sums(DType dtype, const std::byte* const* sums, std::size_t sum_count,
                  std::size_t count, double total, std::byte* out) {
  const DType wide = sum_type(dtype);
  std::vector<Operand> operands;
  operands.reserve(sum_count);
  for (std::size_t k = 0; k < sum_count; ++k) operands.push_back({sums[k], 1});
  if (wide == dtype) {
    weighted_mean(dtype, operands.data(), sum_count, count, total, out, false);
    return;
  }
  alignas(64) std::array<std::byte, kBlock * sizeof(float)> sum;
  for (std::size_t first = 0; first < count; first += kBlock) {
    const std::size_t n = std::min(kBlock, count - first);
    sum_block(wide, operands.data(), sum_count, first * size_of(wide), n, sum.data());
    kernels().finish(dtype, sum.data(), total, n, out + first * size_of(dtype));
  }
}

void copy_bytes(std::byte* to, const std::byte* from, std::size_t bytes, bool stream) {
  (stream ? kernels().stream_copy : kernels().copy)(to, from, bytes);
}

}  // namespace hvd_backup
