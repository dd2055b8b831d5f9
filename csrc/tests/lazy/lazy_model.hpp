// What the tests on lazy streams train.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "device/packed_runs.hpp"
#include "lazy_cuda.hpp"

namespace hvd_backup::lazy {

constexpr std::size_t kFirst = 300;
constexpr std::size_t kSecond = 70;
constexpr std::size_t kGap = 20;  // between the two runs: another device's
constexpr std::size_t kAll = kFirst + kGap + kSecond;
constexpr int kGpu = 0;

/// A framework's model: two gradients and two parameters on the "GPU", and its streams.
struct Model {
  std::vector<float> grads[2] = {std::vector<float>(kFirst), std::vector<float>(kSecond)};
  std::vector<float> params[2] = {std::vector<float>(kFirst), std::vector<float>(kSecond)};

  void backward(void* stream, float value) {
    for (auto& grad : grads) {
      launch(stream, [&grad, value] { std::fill(grad.begin(), grad.end(), value); });
    }
  }
  void update(void* stream) {
    for (int t = 0; t < 2; ++t) {
      launch(stream, [this, t] {
        for (std::size_t i = 0; i < grads[t].size(); ++i) params[t][i] += grads[t][i];
      });
    }
  }
  std::vector<const void*> sources() const { return {grads[0].data(), grads[1].data()}; }
  std::vector<void*> targets() { return {grads[0].data(), grads[1].data()}; }
};

inline std::vector<Run> runs() {
  return {{DType::float32, DType::float32, 0, {{0, kFirst}}},
          {DType::float32, DType::float32, (kFirst + kGap) * sizeof(float), {{0, kSecond}}}};
}

inline bool all_are(const float* data, std::size_t first, std::size_t count, float value) {
  return std::all_of(data + first, data + first + count, [value](float x) { return x == value; });
}

}  // namespace hvd_backup::lazy
