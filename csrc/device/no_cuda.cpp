// The twin of cuda_device.cu for builds without nvcc.
#include "device/cuda.hpp"

namespace hvd_backup {

CudaStatus cuda_status() {
  return {false, 0, 0,
          "built without CUDA: there was no nvcc at build time, or HVD_BACKUP_CUDA was OFF"};
}

}  // namespace hvd_backup
