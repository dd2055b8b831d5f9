// Compiled with -mavx2; its twin for other architectures is sum_portable.cpp.
#include <immintrin.h>

#include "bench/sum.hpp"

namespace hvd_backup {
namespace {

template <bool kStream>
void store(float* to, __m256 value) {
  if (kStream) {
    _mm256_stream_ps(to, value);
  } else {
    _mm256_store_ps(to, value);
  }
}

template <std::size_t kInputs, bool kStream>
void sum_fixed(const float* const* inputs, std::size_t first, std::size_t count, float* out) {
  const float* from[kInputs];
  for (std::size_t k = 0; k < kInputs; ++k) from[k] = inputs[k] + first;
  out += first;
  for (std::size_t i = 0; i < count; i += 16) {
    __m256 low = _mm256_load_ps(from[0] + i);
    __m256 high = _mm256_load_ps(from[0] + i + 8);
    for (std::size_t k = 1; k < kInputs; ++k) {
      low = _mm256_add_ps(low, _mm256_load_ps(from[k] + i));
      high = _mm256_add_ps(high, _mm256_load_ps(from[k] + i + 8));
    }
    store<kStream>(out + i, low);
    store<kStream>(out + i + 8, high);
  }
}

template <bool kStream>
void sum_any(const float* const* inputs, std::size_t input_count, std::size_t first,
             std::size_t count, float* out) {
  for (std::size_t i = first; i < first + count; i += 16) {
    __m256 low = _mm256_load_ps(inputs[0] + i);
    __m256 high = _mm256_load_ps(inputs[0] + i + 8);
    for (std::size_t k = 1; k < input_count; ++k) {
      low = _mm256_add_ps(low, _mm256_load_ps(inputs[k] + i));
      high = _mm256_add_ps(high, _mm256_load_ps(inputs[k] + i + 8));
    }
    store<kStream>(out + i, low);
    store<kStream>(out + i + 8, high);
  }
}

template <bool kStream>
void sum_inputs(const float* const* inputs, std::size_t input_count, std::size_t first,
                std::size_t count, float* out) {
  switch (input_count) {
    case 1:
      return sum_fixed<1, kStream>(inputs, first, count, out);
    case 2:
      return sum_fixed<2, kStream>(inputs, first, count, out);
    case 3:
      return sum_fixed<3, kStream>(inputs, first, count, out);
    case 4:
      return sum_fixed<4, kStream>(inputs, first, count, out);
    case 7:
      return sum_fixed<7, kStream>(inputs, first, count, out);
    case 8:
      return sum_fixed<8, kStream>(inputs, first, count, out);
    default:
      return sum_any<kStream>(inputs, input_count, first, count, out);
  }
}

}  // namespace

void sum(const float* const* inputs, std::size_t input_count, std::size_t first, std::size_t count,
         float* out, bool stream) {
  if (stream) {
    sum_inputs<true>(inputs, input_count, first, count, out);
    _mm_sfence();
  } else {
    sum_inputs<false>(inputs, input_count, first, count, out);
  }
}

}  // namespace hvd_backup
