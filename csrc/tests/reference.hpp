// What the kernels should compute, written for clarity alone: the tests compare bits with it.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "base/dtype.hpp"

namespace hvd_backup::testing {

/// An IEEE 754 binary format of 16 bits.
struct HalfFormat {
  int exponent_bits;
  int mantissa_bits;

  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  int top_exponent() const { return (1 << exponent_bits) - 1; }
  std::uint16_t infinity() const {
    return static_cast<std::uint16_t>(top_exponent() << mantissa_bits);
  }
};

constexpr HalfFormat kFloat16{5, 10};
constexpr HalfFormat kBFloat16{8, 7};

inline bool is_nan(HalfFormat format, std::uint16_t bits) {
  return (bits & 0x7FFF) > format.infinity();
}

/// The number that `bits` stand for; every one is a double.
inline double value_of(HalfFormat format, std::uint16_t bits) {
  const int magnitude = bits & 0x7FFF;
  const int exponent = magnitude >> format.mantissa_bits;
  const int mantissa = magnitude & ((1 << format.mantissa_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == format.top_exponent()) {
    return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  }
  const int one = exponent == 0 ? 0 : 1 << format.mantissa_bits;
  const int power = (exponent == 0 ? 1 : exponent) - format.bias() - format.mantissa_bits;
  return sign * std::ldexp(one + mantissa, power);
}

/// The nearest number of the format, ties to even. `value` is no NaN.
inline std::uint16_t bits_of(HalfFormat format, double value) {
  const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
  const double magnitude = std::fabs(value);
  if (std::isinf(magnitude)) return static_cast<std::uint16_t>(sign | format.infinity());
  if (magnitude == 0) return sign;
  // Numbers of one binade are a grid; nearbyint rounds to it as IEEE 754 asks.
  const int least = 1 - format.bias();
  const int exponent = std::max(std::ilogb(magnitude), least);
  const auto steps =
      static_cast<int>(std::nearbyint(std::ldexp(magnitude, format.mantissa_bits - exponent)));
  // steps lies in [0, 2^(mantissa_bits + 1)]; what is carried out of it carries into the exponent.
  const int bits = ((exponent - least) << format.mantissa_bits) + steps;
  return static_cast<std::uint16_t>(sign | std::min<int>(bits, format.infinity()));
}

inline double load(DType dtype, const std::byte* data, std::size_t i) {
  const std::byte* at = data + i * size_of(dtype);
  std::uint16_t half = 0;
  float single = 0;
  double wide = 0;
  switch (dtype) {
    case DType::float16:
      std::memcpy(&half, at, sizeof half);
      return value_of(kFloat16, half);
    case DType::bfloat16:
      std::memcpy(&half, at, sizeof half);
      return value_of(kBFloat16, half);
    case DType::float32:
      std::memcpy(&single, at, sizeof single);
      return static_cast<double>(single);
    case DType::float64:
      std::memcpy(&wide, at, sizeof wide);
      return wide;
  }
  return wide;
}

inline void store(DType dtype, std::byte* data, std::size_t i, double value) {
  std::byte* at = data + i * size_of(dtype);
  const auto single = static_cast<float>(value);
  const auto rounded = static_cast<double>(single);
  std::uint16_t half = 0;
  switch (dtype) {
    case DType::float16:
      half = bits_of(kFloat16, rounded);
      std::memcpy(at, &half, sizeof half);
      break;
    case DType::bfloat16:
      half = bits_of(kBFloat16, rounded);
      std::memcpy(at, &half, sizeof half);
      break;
    case DType::float32:
      std::memcpy(at, &single, sizeof single);
      break;
    case DType::float64:
      std::memcpy(at, &value, sizeof value);
      break;
  }
}

/// Operands that are added to one another before those of the next group: a node's.
struct Group {
  std::vector<const std::byte*> operands;
  std::vector<double> weights;
};

/// Element i of the weighted mean, summed in the order given, in type Sum.
template <class Sum>
double mean_element(DType dtype, const std::vector<Group>& groups, double total, std::size_t i) {
  Sum all = 0;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    const Group& group = groups[g];
    Sum sum = 0;
    for (std::size_t k = 0; k < group.operands.size(); ++k) {
      const Sum term =
          static_cast<Sum>(group.weights[k]) * static_cast<Sum>(load(dtype, group.operands[k], i));
      sum = k == 0 ? term : sum + term;
    }
    all = g == 0 ? sum : all + sum;
  }
  return static_cast<double>(all / static_cast<Sum>(total));
}

/// out[i] = Σ weights[k] operands[k][i] / total, group by group.
inline void reference_mean(DType dtype, const std::vector<Group>& groups, double total,
                           std::size_t count, std::byte* out) {
  for (std::size_t i = 0; i < count; ++i) {
    const double mean = dtype == DType::float64 ? mean_element<double>(dtype, groups, total, i)
                                                : mean_element<float>(dtype, groups, total, i);
    store(dtype, out, i, mean);
  }
}

inline void reference_mean(DType dtype, const std::vector<const std::byte*>& operands,
                           const std::vector<double>& weights, double total, std::size_t count,
                           std::byte* out) {
  reference_mean(dtype, {{operands, weights}}, total, count, out);
}

/// Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
inline std::uint64_t mix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15U;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31);
}

/// A number in [-1, 1) with all bits of its mantissa in use, so that sums in another order differ.
inline double noise(std::uint64_t seed, std::size_t i) {
  return std::ldexp(static_cast<double>(mix(seed + i) >> 11), -52) - 1;
}

inline void fill_with_noise(DType dtype, std::byte* data, std::size_t count, std::uint64_t seed) {
  const std::uint64_t start = mix(seed);
  for (std::size_t i = 0; i < count; ++i) store(dtype, data, i, noise(start, i));
}

constexpr DType kAllDTypes[] = {DType::float16, DType::bfloat16, DType::float32, DType::float64};

}  // namespace hvd_backup::testing
