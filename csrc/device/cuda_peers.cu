// The twin of no_cuda_peers.cpp for builds with nvcc.
#include "device/cuda_peers.hpp"

#include <cstring>

#include "device/cuda_check.hpp"

namespace hvd_backup::cuda {

std::string uuid_of(int device) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties", device);
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const char byte : properties.uuid.bytes) {
    const auto value = static_cast<unsigned char>(byte);
    text += kDigits[value >> 4];
    text += kDigits[value & 15];
  }
  return text;
}

std::string export_memory(int device, void* data) {
  const OnDevice on(device);
  cudaIpcMemHandle_t handle{};
  check(cudaIpcGetMemHandle(&handle, data), "cudaIpcGetMemHandle", device);
  return std::string(handle.reserved, sizeof handle.reserved);
}

void* import_memory(int device, const std::string& handle) {
  const OnDevice on(device);
  cudaIpcMemHandle_t theirs{};
  if (handle.size() != sizeof theirs.reserved) {
    throw DeviceError("a handle of " + std::to_string(handle.size()) +
                      " bytes is not one of CUDA's");
  }
  std::memcpy(theirs.reserved, handle.data(), sizeof theirs.reserved);
  void* data = nullptr;
  check(cudaIpcOpenMemHandle(&data, theirs, cudaIpcMemLazyEnablePeerAccess), "cudaIpcOpenMemHandle",
        device);
  return data;
}

void drop_imported(int device, void* data) noexcept {
  quietly_on(device, [data] { cudaIpcCloseMemHandle(data); });
}

void begin_zero(int device, void* to, std::size_t bytes, void* stream) {
  const OnDevice on(device);
  check(cudaMemsetAsync(to, 0, bytes, static_cast<cudaStream_t>(stream)),
        "zeros for " + std::to_string(bytes) + " bytes", device);
}

}  // namespace hvd_backup::cuda
