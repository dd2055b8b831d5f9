// The twin of no_cuda.cpp for builds with nvcc.
#include <cuda_runtime_api.h>

#include <string>

#include "device/cuda.hpp"

namespace hvd_backup {
namespace {

std::string in_words(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// CUDA says of a driver that is not there, too, that it is too old.
std::string why_no_device(cudaError_t error, int runtime) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  if (driver == 0) return "there is no CUDA driver: libcuda.so.1 cannot be loaded";
  if (error == cudaErrorInsufficientDriver) {
    return "the CUDA driver is of CUDA " + in_words(driver) + ", older than the " +
           in_words(runtime) + " of this build: update it, or build with an older nvcc";
  }
  if (error == cudaSuccess) return "the CUDA driver lists no device";
  return std::string("no usable CUDA device: ") + cudaGetErrorString(error) +
         " (cudaGetDeviceCount returned " + std::to_string(static_cast<int>(error)) + ")";
}

}  // namespace

CudaStatus cuda_status() {
  CudaStatus status{true, 0, 0, ""};
  // The runtime is linked statically, so this number needs no driver.
  if (cudaRuntimeGetVersion(&status.runtime_version) != cudaSuccess) status.runtime_version = 0;

  const cudaError_t error = cudaGetDeviceCount(&status.devices);
  if (error == cudaSuccess && status.devices > 0) return status;
  status.devices = 0;
  status.why = why_no_device(error, status.runtime_version);
  cudaGetLastError();  // or the next CUDA call would report this error as its own
  return status;
}

}  // namespace hvd_backup
