#include "device/peer_memory.hpp"

#include <unistd.h>

#include <utility>

#include "base/error.hpp"
#include "device/buffer.hpp"
#include "device/cuda_calls.hpp"
#include "device/cuda_peers.hpp"
#include "device/stream.hpp"

namespace hvd_backup {
namespace {

std::size_t shareable(std::size_t bytes) {
  return (bytes / cuda::kShareable + 1) * cuda::kShareable;
}

std::byte* zeroed(int device, std::size_t bytes) {
  auto* data = static_cast<std::byte*>(cuda::allocate(device, bytes));
  try {
    const Stream stream(device);
    cuda::begin_zero(device, data, bytes, stream.get());
    cuda::finish(device, stream.get());
  } catch (...) {
    cuda::release(device, data);
    throw;
  }
  return data;
}

Segment open_segment(const MemoryHandle& handle) {
  try {
    return Segment::open(handle.where, handle.bytes);
  } catch (const SystemError& error) {
    throw DeviceError(error.what());
  }
}

}  // namespace

ExportedMemory::ExportedMemory(int device, std::size_t bytes) : device_(device) {
  if (device == kHost) {
    segment_.emplace(Segment::create(bytes));
    data_ = segment_->data();
    handle_ = {kOfHost, segment_->path(), getpid(), 0, bytes};
  } else {
    data_ = zeroed(device, shareable(bytes));
    try {
      handle_ = {cuda::uuid_of(device), cuda::export_memory(device, data_), getpid(), 0, bytes};
    } catch (...) {
      cuda::release(device, data_);
      throw;
    }
  }
  handle_.address = reinterpret_cast<std::uintptr_t>(data_);
}

ExportedMemory::~ExportedMemory() = default;

void ExportedMemory::release() noexcept {
  if (device_ != kHost && data_ != nullptr) cuda::release(device_, data_);
  data_ = nullptr;
  segment_.reset();
}

ImportedMemory::ImportedMemory(int device, const MemoryHandle& handle) : device_(device) {
  if ((handle.gpu == kOfHost) != (device == kHost)) {
    throw DeviceError("a GPU and the host cannot map each other's memory");
  }
  if (handle.pid == getpid()) {  // CUDA refuses to map it a second time
    // NOLINTNEXTLINE(performance-no-int-to-ptr): our own pointer, as we exported it
    data_ = reinterpret_cast<std::byte*>(handle.address);
  } else if (device == kHost) {
    segment_.emplace(open_segment(handle));
    data_ = segment_->data();
  } else {
    data_ = static_cast<std::byte*>(cuda::import_memory(device, handle.where));
    mapped_ = true;
  }
}

ImportedMemory::ImportedMemory(ImportedMemory&& other) noexcept
    : device_(other.device_),
      segment_(std::move(other.segment_)),
      data_(std::exchange(other.data_, nullptr)),
      mapped_(std::exchange(other.mapped_, false)) {}

ImportedMemory::~ImportedMemory() {
  if (mapped_) cuda::drop_imported(device_, data_);
}

}  // namespace hvd_backup
