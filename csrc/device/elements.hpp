// The element types as the kernels see them, on the CPU and on GPUs.
#pragma once

#include <cstdint>

#include "base/dtype.hpp"
#include "base/half.hpp"
#include "device/host_device.hpp"
#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace hvd_backup::kernels {

// GPUs convert in one instruction; with half.hpp's integer arithmetic, half types would be bound by
// it and not by memory. Both round to nearest, ties to even: only the bits of a NaN may differ.
#if defined(__CUDA_ARCH__)
__device__ inline float widen_float16(std::uint16_t x) { return __half2float(__ushort_as_half(x)); }
__device__ inline std::uint16_t narrow_float16(float x) {
  return __half_as_ushort(__float2half_rn(x));
}
__device__ inline std::uint16_t narrow_bfloat16(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
__device__ inline float widen_bfloat16(std::uint16_t x) {
  return __bfloat162float(__ushort_as_bfloat16(x));
}
#else
inline float widen_float16(std::uint16_t x) { return float16_to_float(x); }
inline std::uint16_t narrow_float16(float x) { return float_to_float16(x); }
inline std::uint16_t narrow_bfloat16(float x) { return float_to_bfloat16(x); }
inline float widen_bfloat16(std::uint16_t x) { return bfloat16_to_float(x); }
#endif

/// Value: how an element lies in memory. Wide: what it is added and scaled in.
struct Float32 {
  using Value = float;
  using Wide = float;
  HVD_HOST_DEVICE static float load(float x) { return x; }
  HVD_HOST_DEVICE static float store(float x) { return x; }
  // The difference of an infinity or NaN with itself is NaN.
  HVD_HOST_DEVICE static bool finite(float x) { return x - x == 0; }
};

struct Float64 {
  using Value = double;
  using Wide = double;
  HVD_HOST_DEVICE static double load(double x) { return x; }
  HVD_HOST_DEVICE static double store(double x) { return x; }
  HVD_HOST_DEVICE static bool finite(double x) { return x - x == 0; }
};

struct Float16 {
  using Value = std::uint16_t;
  using Wide = float;
  HVD_HOST_DEVICE static float load(std::uint16_t x) { return widen_float16(x); }
  HVD_HOST_DEVICE static std::uint16_t store(float x) { return narrow_float16(x); }
  HVD_HOST_DEVICE static bool finite(std::uint16_t x) { return (x & 0x7C00) != 0x7C00; }
};

struct BFloat16 {
  using Value = std::uint16_t;
  using Wide = float;
  HVD_HOST_DEVICE static float load(std::uint16_t x) { return widen_bfloat16(x); }
  HVD_HOST_DEVICE static std::uint16_t store(float x) { return narrow_bfloat16(x); }
  HVD_HOST_DEVICE static bool finite(std::uint16_t x) { return (x & 0x7F80) != 0x7F80; }
};

/// Calls use(Float16{}), use(BFloat16{}), …: the type that `dtype` names.
template <class Use>
void with_type(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::float16:
      return use(Float16{});
    case DType::bfloat16:
      return use(BFloat16{});
    case DType::float32:
      return use(Float32{});
    case DType::float64:
      return use(Float64{});
  }
}

}  // namespace hvd_backup::kernels
