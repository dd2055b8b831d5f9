// For the twins of .cu files in builds without nvcc.
#pragma once

#include <string>

#include "base/error.hpp"
#include "device/cuda.hpp"

namespace hvd_backup::cuda {

[[noreturn]] inline void refuse(int device) {
  throw DeviceError("CUDA device " + std::to_string(device) + " cannot be used: " +
                    cuda_status().why + "; rebuild with nvcc on PATH, or use the CPU");
}

}  // namespace hvd_backup::cuda
