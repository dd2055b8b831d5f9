// Twin of mean_avx2.cpp for architectures other than x86-64.
#include "arithmetic/mean_kernels.hpp"

namespace hvd_backup {

const MeanKernels* avx2_kernels() { return nullptr; }

}  // namespace hvd_backup
