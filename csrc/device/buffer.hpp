#pragma once

#include <cstddef>

namespace hvd_backup {

/// The "device" that is the CPU and its memory; GPUs are 0, 1, … as CUDA numbers them.
constexpr int kHost = -1;

/// Memory of a device, uninitialised; what a kernel needs at every step, made once. Every function
/// throws DeviceError, naming device, bytes and what CUDA said; all are done when they return.
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

  /// Fills the buffer from `bytes()` bytes of the host, or the host from the buffer. A kernel on
  /// another stream is not waited for.
  void write(const void* from);
  void read(void* to) const;

 private:
  int device_;
  std::size_t bytes_;
  std::byte* data_ = nullptr;
};

}  // namespace hvd_backup
