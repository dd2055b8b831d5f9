// Twin of sum_avx2.cpp for architectures other than x86-64.
#include "bench/sum.hpp"

namespace hvd_backup {

void sum(const float* const* inputs, std::size_t input_count, std::size_t first, std::size_t count,
         float* out, bool /*stream*/) {
  constexpr std::size_t kBlock = 2048;  // the block's sum stays in the first-level cache
  for (std::size_t start = first; start < first + count; start += kBlock) {
    const std::size_t end = start + kBlock < first + count ? start + kBlock : first + count;
    for (std::size_t i = start; i < end; ++i) out[i] = inputs[0][i];
    for (std::size_t k = 1; k < input_count; ++k) {
      const float* from = inputs[k];
      for (std::size_t i = start; i < end; ++i) out[i] += from[i];
    }
  }
}

}  // namespace hvd_backup
