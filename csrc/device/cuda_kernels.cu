// The twin of no_cuda_kernels.cpp for builds with nvcc: a grid for launch.hpp, and memory.
#include <cuda_runtime.h>

#include <string>

#include "base/error.hpp"
#include "device/cuda_calls.hpp"
#include "device/cuda_check.hpp"
#include "device/launch.hpp"

namespace hvd_backup::cuda {
namespace {

void copy_bytes(int device, void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  const OnDevice on(device);
  const std::string what = "a copy of " + std::to_string(bytes) + " bytes";
  // Not cudaMemcpy: from pageable memory it returns before the device has the data, and streams
  // that do not block would not wait for it.
  check(cudaMemcpyAsync(to, from, bytes, kind, cudaStreamPerThread), what, device);
  check(cudaStreamSynchronize(cudaStreamPerThread), what, device);
}

// Two blocks on a multiprocessor have enough loads under way; for more of them ptxas would spill.
template <class Kernel>
__global__ void __launch_bounds__(kernels::kThreads, 2) run(const __grid_constant__ Kernel kernel) {
  kernel(blockIdx.x, threadIdx.x);
}

std::string launch_of(const char* name, std::uint64_t blocks) {
  return std::string("the launch of ") + name + " with " + std::to_string(blocks) + " blocks of " +
         std::to_string(kernels::kThreads) + " threads";
}

struct Launch {
  int device;
  cudaStream_t stream;

  template <class Kernel>
  void operator()(const char* name, const Kernel& kernel, std::uint64_t blocks) const {
    static_assert(sizeof(Kernel) <= 4096, "more than a kernel's arguments may take");
    constexpr std::uint64_t kMostBlocks = 0x7FFFFFFF;
    if (blocks > kMostBlocks) {
      throw DeviceError(launch_of(name, blocks) + ": a grid has at most " +
                        std::to_string(kMostBlocks) + " blocks; cut the buffer into pieces");
    }
    const OnDevice on(device);
    void* arguments[] = {const_cast<Kernel*>(&kernel)};  // CUDA copies it
    const dim3 grid(static_cast<unsigned>(blocks));
    const cudaError_t error = cudaLaunchKernel(reinterpret_cast<const void*>(&run<Kernel>), grid,
                                               dim3(kernels::kThreads), arguments, 0, stream);
    if (error != cudaSuccess) check(error, launch_of(name, blocks), device);
  }
};

}  // namespace

void* allocate(int device, std::size_t bytes) {
  const OnDevice on(device);
  void* data = nullptr;
  check(cudaMalloc(&data, bytes), "an allocation of " + std::to_string(bytes) + " bytes", device);
  return data;
}

void release(int device, void* data) noexcept {
  quietly_on(device, [data] { cudaFree(data); });
}

void copy_in(int device, void* to, const void* from, std::size_t bytes) {
  copy_bytes(device, to, from, bytes, cudaMemcpyHostToDevice);
}

void copy_out(int device, void* to, const void* from, std::size_t bytes) {
  copy_bytes(device, to, from, bytes, cudaMemcpyDeviceToHost);
}

void copy(const CopyTask& task, int device, void* stream) {
  kernels::launch_copy(task, Launch{device, static_cast<cudaStream_t>(stream)});
}

void sum(const SumTask& task, int device, void* stream) {
  kernels::launch_sum(task, Launch{device, static_cast<cudaStream_t>(stream)});
}

void finish(int device, void* stream) {
  const OnDevice on(device);
  check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "work on a stream", device);
}

}  // namespace hvd_backup::cuda
