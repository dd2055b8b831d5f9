// Marks for code that nvcc compiles for both sides and every other compiler for the CPU alone.
#pragma once

#if defined(__CUDACC__)
#define HVD_HOST_DEVICE __host__ __device__
#else
#define HVD_HOST_DEVICE
#endif

// Arrays stay in registers only if every loop over them is unrolled.
#if defined(__CUDA_ARCH__)
#define HVD_UNROLL _Pragma("unroll")
#define HVD_ROLL _Pragma("unroll 1")  // what is rarely run is to be small
#else
#define HVD_UNROLL
#define HVD_ROLL
#endif
