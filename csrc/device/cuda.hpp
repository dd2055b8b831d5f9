// What CUDA offers on this machine. Two files implement this header; CMake picks one:
// cuda_device.cu when there is an nvcc, no_cuda.cpp when there is none.
#pragma once

#include <string>

namespace hvd_backup {

struct CudaStatus {
  bool built;           // this build has the CUDA kernels
  int runtime_version;  // of the built-in CUDA runtime, as in 13000 for 13.0; 0 when not built
  int devices;          // how many devices can be used now
  std::string why;      // empty when devices > 0, else what is missing, in words
};

// Never throws for lack of a driver or device: that is an answer, not an error.
CudaStatus cuda_status();

}  // namespace hvd_backup
