// For .cu files alone: errors in words, and the thread's current device.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "base/error.hpp"

namespace hvd_backup::cuda {

inline std::string in_words(cudaError_t error) {
  cudaGetLastError();  // or the framework's next call would report this error as its own
  return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ", " +
         std::to_string(static_cast<int>(error)) + ")";
}

inline void check(cudaError_t error, const std::string& what, int device) {
  if (error == cudaSuccess) return;
  throw DeviceError(what + " on CUDA device " + std::to_string(device) +
                    " failed: " + in_words(error));
}

/// Makes a device the thread's current one for a while: frameworks rely on theirs.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice", device);
    changed_ = before_ != device;
    if (changed_) check(cudaSetDevice(device), "cudaSetDevice", device);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

/// For calls that must not throw: at the end of the process the driver may be gone before this code
/// runs. Then the resources that it would give back are gone as well.
template <class Body>
void quietly_on(int device, const Body& body) noexcept {
  int before = device;
  if (cudaGetDevice(&before) != cudaSuccess || cudaSetDevice(device) != cudaSuccess) return;
  body();
  cudaSetDevice(before);
  cudaGetLastError();
}

}  // namespace hvd_backup::cuda
