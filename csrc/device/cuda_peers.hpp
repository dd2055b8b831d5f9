// All that memory shared between processes asks of CUDA. Twins: cuda_peers.cu, and
// no_cuda_peers.cpp, where each function throws.
#pragma once

#include <cstddef>
#include <string>

namespace hvd_backup::cuda {

// Each function throws DeviceError with what CUDA said, those that are noexcept excepted, and
// leaves the thread's current device as it was.

/// Which GPU this is, whatever number processes give it: its UUID, in hexadecimal digits.
std::string uuid_of(int device);

/// The bytes by which another process can map what allocate() returned. CUDA may cut small
/// allocations out of one block and would share all of it, so these are multiples of kShareable.
constexpr std::size_t kShareable = std::size_t{2} << 20;
std::string export_memory(int device, void* data);
/// Maps what another process has exported, so that kernels and copies on `device` can use it; it
/// may be another GPU's, even one that this process does not see.
void* import_memory(int device, const std::string& handle);
/// Nothing on the device may use the memory any more.
void drop_imported(int device, void* data) noexcept;

/// Begun when it returns.
void begin_zero(int device, void* to, std::size_t bytes, void* stream);

}  // namespace hvd_backup::cuda
