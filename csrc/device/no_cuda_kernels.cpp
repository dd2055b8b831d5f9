// The twin of cuda_kernels.cu for builds without nvcc.
#include "device/cuda_calls.hpp"
#include "device/no_cuda.hpp"

namespace hvd_backup::cuda {
void* allocate(int device, std::size_t) { refuse(device); }
void release(int, void*) noexcept {}
void copy_in(int device, void*, const void*, std::size_t) { refuse(device); }
void copy_out(int device, void*, const void*, std::size_t) { refuse(device); }
void copy(const CopyTask&, int device, void*) { refuse(device); }
void sum(const SumTask&, int device, void*) { refuse(device); }
void finish(int device, void*) { refuse(device); }

}  // namespace hvd_backup::cuda
