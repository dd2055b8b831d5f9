// The twin of cuda_peers.cu for builds without nvcc.
#include "device/cuda_peers.hpp"
#include "device/no_cuda.hpp"

namespace hvd_backup::cuda {

std::string uuid_of(int device) { refuse(device); }
std::string export_memory(int device, void*) { refuse(device); }
void* import_memory(int device, const std::string&) { refuse(device); }
void drop_imported(int, void*) noexcept {}
void begin_zero(int device, void*, std::size_t, void*) { refuse(device); }

}  // namespace hvd_backup::cuda
