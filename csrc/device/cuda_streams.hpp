// The CUDA calls of staging, beside the kernels (cuda_calls.hpp): streams, events, asynchronous
// copies, and pinned memory of the host. Twins: cuda_streams.cu, and
// no_cuda_streams.cpp, where each function throws.
#pragma once

#include <cstddef>
#include <string>

namespace hvd_backup::cuda {

// Streams are cudaStream_t, events cudaEvent_t. Each function leaves the thread's current device as
// it was. All but the noexcept ones throw DeviceError with CUDA's words.

/// A stream that does not wait for the legacy default stream.
void* make_stream(int device);
/// Waits until all work on it is done.
void drop_stream(int device, void* stream) noexcept;

/// An event without a time. The host sleeps while it waits for the event.
void* make_event(int device);
void drop_event(int device, void* event) noexcept;
/// The event happens when all work that is on the stream now is done.
void record(int device, void* event, void* stream);
/// Later work on the stream waits for the event's last recording, if there was one.
void hold(int device, void* stream, void* event);
/// The calling thread sleeps until the event has happened.
void await(int device, void* event);

/// The copies have begun when these return. The host's memory must be pinned.
void begin_copy_in(int device, void* to, const void* from, std::size_t bytes, void* stream);
void begin_copy_out(int device, void* to, const void* from, std::size_t bytes, void* stream);

/// Copies from one place on the device to another. Benchmarks compare kernels that copy with it.
void begin_copy_within(int device, void* to, const void* from, std::size_t bytes, void* stream);

/// Pins memory of the host, so that all devices can copy to and from it. Returns an empty text, or
/// the reason of a refusal in CUDA's words.
std::string pin(int device, void* data, std::size_t bytes);
void unpin(int device, void* data) noexcept;
void* allocate_pinned(int device, std::size_t bytes);
void release_pinned(int device, void* data) noexcept;

}  // namespace hvd_backup::cuda
