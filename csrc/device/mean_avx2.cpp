// Compiled with -mavx2; its twin for other architectures is no_avx2.cpp.
#include <immintrin.h>

#include <cstring>

#include "base/half.hpp"
#include "device/mean_kernels.hpp"

namespace hvd_backup {
namespace {

#include "device/mean_loops.inc"

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

constexpr MeanKernels kKernels{add, finish, copy, stream};

}  // namespace

const MeanKernels* avx2_kernels() { return __builtin_cpu_supports("avx2") ? &kKernels : nullptr; }

}  // namespace hvd_backup
