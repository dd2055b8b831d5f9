#pragma once

#include <cstdint>
#include <cstring>

namespace hvd_backup {

// Conversions between float32 and the 16-bit types, branch-free so that compilers vectorise
// loops over them. Rounding is to nearest, ties to even (IEEE 754); NaN stays NaN.

namespace bits {

static inline float as_float(std::uint32_t u) {
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}

static inline std::uint32_t as_uint(float f) {
  std::uint32_t u;
  std::memcpy(&u, &f, sizeof u);
  return u;
}

}  // namespace bits

static inline float bfloat16_to_float(std::uint16_t h) {
  return bits::as_float(static_cast<std::uint32_t>(h) << 16);
}

static inline std::uint16_t float_to_bfloat16(float f) {
  const std::uint32_t u = bits::as_uint(f);
  const std::uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
  const std::uint32_t quiet_nan = (u >> 16) | 0x40u;
  const bool nan = (u & 0x7FFFFFFFu) > 0x7F800000u;
  return static_cast<std::uint16_t>(nan ? quiet_nan : rounded);
}

static inline float float16_to_float(std::uint16_t h) {
  constexpr std::uint32_t kExponent = 0x7C00u << 13;
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t shifted = static_cast<std::uint32_t>(h & 0x7FFFu) << 13;
  const std::uint32_t exponent = shifted & kExponent;
  const std::uint32_t normal = shifted + ((127u - 15u) << 23);
  const std::uint32_t infinite = shifted + ((255u - 31u) << 23);
  // Renormalised by the subtraction of 2^-14, which never meets a float32 subnormal.
  const float tiny = bits::as_float(shifted + (113u << 23)) - bits::as_float(113u << 23);
  const std::uint32_t finite = exponent == 0 ? bits::as_uint(tiny) : normal;
  return bits::as_float((exponent == kExponent ? infinite : finite) | sign);
}

static inline std::uint16_t float_to_float16(float f) {
  constexpr std::uint32_t kInfinity = 255u << 23;
  constexpr std::uint32_t kOverflow = (127u + 16u) << 23;   // 2^16
  constexpr std::uint32_t kSubnormal = (127u - 14u) << 23;  // 2^-14
  constexpr std::uint32_t kMagic = ((127u - 15u) + (23u - 10u) + 1u) << 23;
  const std::uint32_t u = bits::as_uint(f);
  const std::uint32_t sign = (u >> 16) & 0x8000u;
  const std::uint32_t magnitude = u & 0x7FFFFFFFu;
  const std::uint32_t special = magnitude > kInfinity ? 0x7E00u : 0x7C00u;
  // The float adder rounds the mantissa to the subnormal grid of float16.
  const std::uint32_t small =
      bits::as_uint(bits::as_float(magnitude) + bits::as_float(kMagic)) - kMagic;
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  const std::uint32_t normal = (magnitude - ((127u - 15u) << 23) + 0xFFFu + odd) >> 13;
  const std::uint32_t finite = magnitude < kSubnormal ? small : normal;
  return static_cast<std::uint16_t>(sign | (magnitude >= kOverflow ? special : finite));
}

}  // namespace hvd_backup
