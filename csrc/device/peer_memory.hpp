// Memory of a device that the processes of a node map: each its own, and those of its peers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "memory/segment.hpp"

namespace hvd_backup {

/// The address of an ExportedMemory for peers, valid while the process that made it lives.
struct MemoryHandle {
  std::string gpu;            ///< its UUID; kOfHost: memory of the host
  std::string where;          ///< CUDA's handle, or a path
  std::int64_t pid = 0;       ///< the process that made it
  std::uint64_t address = 0;  ///< there
  std::size_t bytes = 0;
};

/// Stands for a GPU's UUID if `device` is kHost.
constexpr const char* kOfHost = "host";

/// Zeroed memory that peers can map. On kHost, the twin, it is a Segment.
///
/// CUDA leaves undefined what happens when exported memory is freed before all peers have unmapped
/// it. So only release() frees memory of a GPU. Without that call the driver frees it when the
/// process ends.
class ExportedMemory {
 public:
  /// Throws DeviceError or SystemError, with the size, when there is not enough of it.
  ExportedMemory(int device, std::size_t bytes);
  ExportedMemory(const ExportedMemory&) = delete;
  ExportedMemory& operator=(const ExportedMemory&) = delete;
  ~ExportedMemory();

  std::byte* data() const { return data_; }
  const MemoryHandle& handle() const { return handle_; }
  /// Frees the memory; data() is nullptr afterwards. Call it when no peer maps the memory and no
  /// work on the device uses it.
  void release() noexcept;

 private:
  int device_;
  std::optional<Segment> segment_;
  std::byte* data_ = nullptr;
  MemoryHandle handle_;
};

/// A peer's memory, mapped for use by one device of this process. Memory that this process itself
/// has exported is not mapped again.
class ImportedMemory {
 public:
  /// Throws DeviceError, with the reason, if it cannot be mapped.
  ImportedMemory(int device, const MemoryHandle& handle);
  ImportedMemory(ImportedMemory&& other) noexcept;
  ImportedMemory(const ImportedMemory&) = delete;
  ImportedMemory& operator=(const ImportedMemory&) = delete;
  ImportedMemory& operator=(ImportedMemory&&) = delete;
  /// Destroy it after the last use of the memory on the device has ended.
  ~ImportedMemory();

  std::byte* data() const { return data_; }

 private:
  int device_;
  std::optional<Segment> segment_;
  std::byte* data_ = nullptr;
  bool mapped_ = false;  // by CUDA, for us
};

}  // namespace hvd_backup
