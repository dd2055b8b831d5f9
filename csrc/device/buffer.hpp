#pragma once

#include <cstddef>

namespace hvd_backup {

/// The "device" that is the CPU and its memory; GPUs are 0, 1, … as CUDA numbers them.
constexpr int kHost = -1;

/// Uninitialised memory of a device. It is made once, for a kernel that needs it in every step.
/// Every function is done when it returns, or throws DeviceError with the device, the bytes and
/// CUDA's words.
class Buffer {
 public:
  Buffer(int device, std::size_t bytes);
  Buffer(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer();

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

  /// Fills the buffer from `bytes()` bytes of the host, or the host from the buffer. These do not
  /// wait for kernels on other streams.
  void write(const void* from);
  void read(void* to) const;

 private:
  int device_;
  std::size_t bytes_;
  std::byte* data_ = nullptr;
};

}  // namespace hvd_backup
