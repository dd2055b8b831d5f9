// The CUDA calls of memory that processes share. Twins: cuda_peers.cu, and
// no_cuda_peers.cpp, where each function throws.
#pragma once

#include <cstddef>
#include <string>

namespace hvd_backup::cuda {

// Each function leaves the thread's current device as it was. All but the noexcept ones throw
// DeviceError with CUDA's words.

/// The GPU's UUID, in hexadecimal digits. Processes may number the same GPU differently.
std::string uuid_of(int device);

/// The bytes by which another process can map memory of allocate(). CUDA may cut small allocations
/// out of one block, and would share the whole block. So allocations are multiples of kShareable.
constexpr std::size_t kShareable = std::size_t{2} << 20;
std::string export_memory(int device, void* data);
/// Maps memory that another process has exported, so that kernels and copies on `device` can use
/// it. The memory may be on another GPU, even on one that this process does not see.
void* import_memory(int device, const std::string& handle);
/// Call it after the last use of the memory on the device has ended.
void drop_imported(int device, void* data) noexcept;

/// Begins to fill the memory with zeros.
void begin_zero(int device, void* to, std::size_t bytes, void* stream);

}  // namespace hvd_backup::cuda
