#pragma once

#include <cstddef>

namespace hvd_backup {

/// Most inputs that sum() takes.
constexpr std::size_t kMostInputs = 64;

/// out[i] = Σ_k inputs[k][first + i] for `count` floats, a multiple of 16, all 64-byte aligned.
/// `stream`: past the caches. Two files implement it; CMake picks one.
void sum(const float* const* inputs, std::size_t input_count, std::size_t first, std::size_t count,
         float* out, bool stream);

}  // namespace hvd_backup
