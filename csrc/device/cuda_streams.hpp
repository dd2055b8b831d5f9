// All that staging asks of CUDA beside the kernels (cuda_calls.hpp): streams, events, copies that
// are only begun, and memory of the host that copies can go to. Twins: cuda_streams.cu, and
// no_cuda_streams.cpp, where each function throws.
#pragma once

#include <cstddef>
#include <string>

namespace hvd_backup::cuda {

// Streams are cudaStream_t, events cudaEvent_t. Each function throws DeviceError with what CUDA
// said, those that are noexcept excepted, and leaves the thread's current device as it was.

/// A stream that does not wait for the legacy default stream.
void* make_stream(int device);
/// Waits until all that was put on it is done.
void drop_stream(int device, void* stream) noexcept;

/// An event without a time, for which the host waits asleep.
void* make_event(int device);
void drop_event(int device, void* event) noexcept;
/// The event happens when all that is on the stream now is done.
void record(int device, void* event, void* stream);
/// What is put on the stream from now on waits for the event as it was recorded last, if ever.
void hold(int device, void* stream, void* event);
/// The calling thread sleeps until then.
void await(int device, void* event);

/// Begun when they return; the host's memory is pinned.
void begin_copy_in(int device, void* to, const void* from, std::size_t bytes, void* stream);
void begin_copy_out(int device, void* to, const void* from, std::size_t bytes, void* stream);

/// From one place on the device to another; what a kernel that copies can be compared with.
void begin_copy_within(int device, void* to, const void* from, std::size_t bytes, void* stream);

/// Keeps memory of the host where it is, so that all devices can copy to and from it. Returns why
/// that cannot be, in CUDA's words; empty if it can.
std::string pin(int device, void* data, std::size_t bytes);
void unpin(int device, void* data) noexcept;
void* allocate_pinned(int device, std::size_t bytes);
void release_pinned(int device, void* data) noexcept;

}  // namespace hvd_backup::cuda
