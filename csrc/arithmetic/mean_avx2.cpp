// Compiled with -mavx2; its twin for other architectures is no_avx2.cpp.
#include <immintrin.h>

#include <cstring>

#include "arithmetic/mean_kernels.hpp"
#include "base/half.hpp"

namespace hvd_backup {
namespace {

#include "arithmetic/mean_loops.inc"

constexpr std::size_t kVector = sizeof(__m256i);

__m256i load(const std::byte* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

void copy(std::byte* to, const std::byte* from, std::size_t bytes) {
  std::size_t i = 0;
  for (; i + 4 * kVector <= bytes; i += 4 * kVector) {
    for (std::size_t k = 0; k < 4; ++k) {
      const std::size_t at = i + k * kVector;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + at), load(from + at));
    }
  }
  std::memcpy(to + i, from + i, bytes - i);
}

void stream(std::byte* to, const std::byte* from, std::size_t bytes) {
  const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(to) % kVector;
  std::size_t i = misaligned == 0 ? 0 : kVector - misaligned;
  if (i > bytes) i = bytes;
  std::memcpy(to, from, i);
  for (; i + kVector <= bytes; i += kVector) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), load(from + i));
  }
  std::memcpy(to + i, from + i, bytes - i);
  // Streamed stores are not ordered by the release that publishes the chunk.
  _mm_sfence();
}

/// Eight floats, or four doubles.
struct Floats {
  using Scalar = float;
  using Vector = __m256;
  static Vector set(float x) { return _mm256_set1_ps(x); }
  static Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector mul(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static Vector div(Vector a, Vector b) { return _mm256_div_ps(a, b); }
  static void store(float* to, Vector v) { _mm256_storeu_ps(to, v); }
  static void stream(float* to, Vector v) { _mm256_stream_ps(to, v); }
};

struct Doubles {
  using Scalar = double;
  using Vector = __m256d;
  static Vector set(double x) { return _mm256_set1_pd(x); }
  static Vector load(const double* from) { return _mm256_loadu_pd(from); }
  static Vector add(Vector a, Vector b) { return _mm256_add_pd(a, b); }
  static Vector mul(Vector a, Vector b) { return _mm256_mul_pd(a, b); }
  static Vector div(Vector a, Vector b) { return _mm256_div_pd(a, b); }
  static void store(double* to, Vector v) { _mm256_storeu_pd(to, v); }
  static void stream(double* to, Vector v) { _mm256_stream_pd(to, v); }
};

struct Task {
  const std::byte* const* operands;
  const double* weights;
  std::size_t count;
  double total;
  std::byte* out;
};

/// The whole mean in registers: every byte is read once and written once.
template <class V, std::size_t kOperands, bool kStream>
void mean_of(const Task& task) {
  using Scalar = typename V::Scalar;
  constexpr std::size_t kLanes = kVector / sizeof(Scalar);
  const Scalar* from[kOperands];
  typename V::Vector weights[kOperands];
  for (std::size_t k = 0; k < kOperands; ++k) {
    from[k] = reinterpret_cast<const Scalar*>(task.operands[k]);
    weights[k] = V::set(static_cast<Scalar>(task.weights[k]));
  }
  const auto total = static_cast<Scalar>(task.total);
  const bool exact = is_power_of_two(total);
  const typename V::Vector divisor = V::set(exact ? 1 / total : total);
  auto* out = reinterpret_cast<Scalar*>(task.out);
  std::size_t i = 0;
  for (; i + kLanes <= task.count; i += kLanes) {
    typename V::Vector sum = V::mul(weights[0], V::load(from[0] + i));
    for (std::size_t k = 1; k < kOperands; ++k) {
      sum = V::add(sum, V::mul(weights[k], V::load(from[k] + i)));
    }
    const typename V::Vector mean = exact ? V::mul(sum, divisor) : V::div(sum, divisor);
    kStream ? V::stream(out + i, mean) : V::store(out + i, mean);
  }
  for (; i < task.count; ++i) {
    Scalar sum = static_cast<Scalar>(task.weights[0]) * from[0][i];
    for (std::size_t k = 1; k < kOperands; ++k) {
      sum = sum + static_cast<Scalar>(task.weights[k]) * from[k][i];
    }
    out[i] = sum / total;
  }
  if (kStream) _mm_sfence();
}

template <class V, bool kStream, std::size_t kOperands = kFusedOperands>
void mean_of_some(const Task& task, std::size_t operand_count) {
  if (operand_count == kOperands) return mean_of<V, kOperands, kStream>(task);
  if constexpr (kOperands > 1) mean_of_some<V, kStream, kOperands - 1>(task, operand_count);
}

template <class V>
void mean_typed(const Task& task, std::size_t operand_count, bool stream) {
  const bool aligned = reinterpret_cast<std::uintptr_t>(task.out) % kVector == 0;
  if (stream && aligned) {
    mean_of_some<V, true>(task, operand_count);
  } else {
    mean_of_some<V, false>(task, operand_count);
  }
}

bool fused(DType dtype, const std::byte* const* operands, const double* weights,
           std::size_t operand_count, std::size_t count, double total, std::byte* out,
           bool stream) {
  if (operand_count > kFusedOperands) return false;
  const Task task{operands, weights, count, total, out};
  if (dtype == DType::float32) mean_typed<Floats>(task, operand_count, stream);
  if (dtype == DType::float64) mean_typed<Doubles>(task, operand_count, stream);
  return dtype == DType::float32 || dtype == DType::float64;
}

constexpr MeanKernels kKernels{fused, add, finish, copy, stream};

}  // namespace

const MeanKernels* avx2_kernels() { return __builtin_cpu_supports("avx2") ? &kKernels : nullptr; }

}  // namespace hvd_backup
