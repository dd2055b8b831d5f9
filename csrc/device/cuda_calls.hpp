// The CUDA calls of the kernels. Two files implement this header; CMake picks one:
// cuda_kernels.cu when there is an nvcc, no_cuda_kernels.cpp, where each function throws, when
// there is none.
#pragma once

#include <cstddef>

#include "device/tasks.hpp"

namespace hvd_backup::cuda {

// Each throws DeviceError with CUDA's words, and leaves the thread's current device as it was.

void* allocate(int device, std::size_t bytes);
void release(int device, void* data) noexcept;
/// These are done when they return, for streams of every kind.
void copy_in(int device, void* to, const void* from, std::size_t bytes);
void copy_out(int device, void* to, const void* from, std::size_t bytes);

/// These are launched when they return, but not done. `stream` is a cudaStream_t.
void copy(const CopyTask& task, int device, void* stream);
void sum(const SumTask& task, int device, void* stream);

/// Waits until all work on the stream is done, and throws the error of that work, if any.
void finish(int device, void* stream);

}  // namespace hvd_backup::cuda
