// Compiled with -mavx2; its twin for other architectures is no_avx2.cpp.
#include <immintrin.h>

#include <cstring>

#include "base/half.hpp"
#include "device/mean_kernels.hpp"

namespace hvd_backup {
namespace {

#include "device/mean_loops.inc"

void stream(std::byte* to, const std::byte* from, std::size_t bytes) {
  const std::size_t whole = bytes / sizeof(__m256i) * sizeof(__m256i);
  for (std::size_t i = 0; i < whole; i += sizeof(__m256i)) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), v);
  }
  std::memcpy(to + whole, from + whole, bytes - whole);
  // Streamed stores are not ordered by the release that publishes the chunk.
  _mm_sfence();
}

constexpr MeanKernels kKernels{add, finish, stream};

}  // namespace

const MeanKernels* avx2_kernels() { return __builtin_cpu_supports("avx2") ? &kKernels : nullptr; }

}  // namespace hvd_backup
