#include "device/buffer.hpp"

#include <cstring>
#include <new>
#include <utility>

#include "device/cuda_calls.hpp"

namespace hvd_backup {
namespace {

constexpr std::align_val_t kAlign{256};  // as cudaMalloc does

}  // namespace

Buffer::Buffer(int device, std::size_t bytes) : device_(device), bytes_(bytes) {
  if (bytes == 0) return;
  data_ = static_cast<std::byte*>(device == kHost ? ::operator new(bytes, kAlign)
                                                  : cuda::allocate(device, bytes));
}

Buffer::Buffer(Buffer&& other) noexcept
    : device_(other.device_), bytes_(other.bytes_), data_(std::exchange(other.data_, nullptr)) {}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (device_ == kHost) {
    ::operator delete(data_, kAlign);
  } else {
    cuda::release(device_, data_);
  }
}

void Buffer::write(const void* from) {
  if (bytes_ == 0) return;
  if (device_ == kHost) {
    std::memcpy(data_, from, bytes_);
  } else {
    cuda::copy_in(device_, data_, from, bytes_);
  }
}

void Buffer::read(void* to) const {
  if (bytes_ == 0) return;
  if (device_ == kHost) {
    std::memcpy(to, data_, bytes_);
  } else {
    cuda::copy_out(device_, to, data_, bytes_);
  }
}

}  // namespace hvd_backup
