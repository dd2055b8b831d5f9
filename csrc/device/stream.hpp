// Streams, events and pinned memory that free themselves. On kHost all work is done at once, so
// that they are only memory.
#pragma once

#include <cstddef>
#include <string>

namespace hvd_backup {

/// Owns a CUDA object by its handle. Streams and events of kHost are null.
class Handle {
 public:
  using Drop = void (*)(int device, void* handle) noexcept;

  Handle(int device, void* handle, Drop drop) : device_(device), handle_(handle), drop_(drop) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (handle_ != nullptr) drop_(device_, handle_);
  }

  int device() const { return device_; }
  void* get() const { return handle_; }

 private:
  int device_;
  void* handle_;
  Drop drop_;
};

/// A stream of our own. The destructor waits for the work that is on it.
class Stream {
 public:
  explicit Stream(int device);

  void* get() const { return handle_.get(); }
  /// The copies have begun, but are not done, when these return. `host` must be pinned.
  void copy_in(std::byte* to, const std::byte* host, std::size_t bytes) const;
  void copy_out(std::byte* host, const std::byte* from, std::size_t bytes) const;

 private:
  Handle handle_;
};

/// A point in the work of a stream. Before the first record(), waits for it return at once.
class Event {
 public:
  explicit Event(int device);

  void record(void* stream) const;
  /// Later work on the stream comes after this event.
  void hold(void* stream) const;
  /// The calling thread sleeps until the event has happened.
  void await() const;

 private:
  Handle handle_;
};

/// Memory of the host by which a device's copies go: `data` itself if CUDA can pin it, else a
/// buffer of the same size, for which push() and pull() copy once more.
class Pinned {
 public:
  /// `try_it` false: a buffer, without an attempt to pin `data`.
  Pinned(int device, std::byte* data, std::size_t bytes, bool try_it = true);
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  ~Pinned();

  std::byte* data() const { return buffer_ != nullptr ? buffer_ : data_; }
  /// Why `data` is not pinned; empty if it is.
  const std::string& why_not() const { return why_not_; }
  /// From the buffer to `data`; nothing to do if that is pinned.
  void push(std::size_t offset, std::size_t bytes) const;
  /// And back.
  void pull(std::size_t offset, std::size_t bytes) const;

 private:
  int device_;
  std::byte* data_;
  std::size_t bytes_;
  std::byte* buffer_ = nullptr;
  std::string why_not_;
};

}  // namespace hvd_backup
