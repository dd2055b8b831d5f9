// The twin of no_cuda.cpp for builds with nvcc.
#include <cuda_runtime_api.h>

#include "device/cuda.hpp"

namespace hvd_backup {

CudaStatus cuda_status() {
  CudaStatus status{true, 0, 0, ""};
  // The runtime is linked statically, so this number needs no driver.
  if (cudaRuntimeGetVersion(&status.runtime_version) != cudaSuccess) status.runtime_version = 0;

  const cudaError_t error = cudaGetDeviceCount(&status.devices);
  if (error == cudaSuccess && status.devices > 0) return status;
  status.devices = 0;
  cudaGetLastError();  // or the next CUDA call would report this error as its own
  if (error == cudaSuccess) {
    status.why = "the CUDA driver lists no device";
  } else {
    status.why = std::string("no usable CUDA device: ") + cudaGetErrorString(error) +
                 " (cudaGetDeviceCount returned " + std::to_string(static_cast<int>(error)) + ")";
  }
  return status;
}

}  // namespace hvd_backup
