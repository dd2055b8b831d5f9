#include "device/stream.hpp"

#include <cstring>
#include <new>

#include "arithmetic/mean.hpp"
#include "device/buffer.hpp"
#include "device/cuda_streams.hpp"

namespace hvd_backup {
namespace {

constexpr std::size_t kPast = std::size_t{8} << 20;  // larger things go past the caches

}  // namespace

Stream::Stream(int device)
    : handle_(device, device == kHost ? nullptr : cuda::make_stream(device), &cuda::drop_stream) {}

void Stream::copy_in(std::byte* to, const std::byte* host, std::size_t bytes) const {
  if (bytes == 0) return;
  if (handle_.device() == kHost) {
    std::memcpy(to, host, bytes);
  } else {
    cuda::begin_copy_in(handle_.device(), to, host, bytes, get());
  }
}

void Stream::copy_out(std::byte* host, const std::byte* from, std::size_t bytes) const {
  if (bytes == 0) return;
  if (handle_.device() == kHost) {
    std::memcpy(host, from, bytes);
  } else {
    cuda::begin_copy_out(handle_.device(), host, from, bytes, get());
  }
}

Event::Event(int device)
    : handle_(device, device == kHost ? nullptr : cuda::make_event(device), &cuda::drop_event) {}

void Event::record(void* stream) const {
  if (handle_.device() != kHost) cuda::record(handle_.device(), handle_.get(), stream);
}

void Event::hold(void* stream) const {
  if (handle_.device() != kHost) cuda::hold(handle_.device(), stream, handle_.get());
}

void Event::await() const {
  if (handle_.device() != kHost) cuda::await(handle_.device(), handle_.get());
}

Pinned::Pinned(int device, std::byte* data, std::size_t bytes, bool try_it)
    : device_(device), data_(data), bytes_(bytes) {
  if (bytes == 0) return;
  if (!try_it) {
    why_not_ = "it was not to be tried";
  } else if (device != kHost) {
    why_not_ = cuda::pin(device, data, bytes);
  }
  if (why_not_.empty()) return;
  buffer_ = static_cast<std::byte*>(device == kHost ? ::operator new(bytes)
                                                    : cuda::allocate_pinned(device, bytes));
}

Pinned::~Pinned() {
  if (bytes_ == 0) return;
  if (device_ == kHost) {
    ::operator delete(buffer_);
  } else if (buffer_ != nullptr) {
    cuda::release_pinned(device_, buffer_);
  } else {
    cuda::unpin(device_, data_);
  }
}

void Pinned::push(std::size_t offset, std::size_t bytes) const {
  if (buffer_ != nullptr) copy_bytes(data_ + offset, buffer_ + offset, bytes, bytes > kPast);
}

void Pinned::pull(std::size_t offset, std::size_t bytes) const {
  if (buffer_ != nullptr) copy_bytes(buffer_ + offset, data_ + offset, bytes, bytes > kPast);
}

}  // namespace hvd_backup
