// The twin of no_cuda_streams.cpp for builds with nvcc.
#include "device/cuda_streams.hpp"

#include "device/cuda_check.hpp"

namespace hvd_backup::cuda {
namespace {

std::string copy_of(std::size_t bytes) { return "a copy of " + std::to_string(bytes) + " bytes"; }

}  // namespace

void* make_stream(int device) {
  const OnDevice on(device);
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a new stream", device);
  return stream;
}

void drop_stream(int device, void* stream) noexcept {
  quietly_on(device, [stream] {
    cudaStreamSynchronize(static_cast<cudaStream_t>(stream));
    cudaStreamDestroy(static_cast<cudaStream_t>(stream));
  });
}

void* make_event(int device) {
  const OnDevice on(device);
  cudaEvent_t event = nullptr;
  const unsigned flags = cudaEventBlockingSync | cudaEventDisableTiming;
  check(cudaEventCreateWithFlags(&event, flags), "a new event", device);
  return event;
}

void drop_event(int device, void* event) noexcept {
  quietly_on(device, [event] { cudaEventDestroy(static_cast<cudaEvent_t>(event)); });
}

void record(int device, void* event, void* stream) {
  const OnDevice on(device);
  check(cudaEventRecord(static_cast<cudaEvent_t>(event), static_cast<cudaStream_t>(stream)),
        "an event's record", device);
}

void hold(int device, void* stream, void* event) {
  const OnDevice on(device);
  check(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), static_cast<cudaEvent_t>(event), 0),
        "a stream's wait for an event", device);
}

void await(int device, void* event) {
  const OnDevice on(device);
  check(cudaEventSynchronize(static_cast<cudaEvent_t>(event)), "work on a stream", device);
}

void begin_copy_in(int device, void* to, const void* from, std::size_t bytes, void* stream) {
  const OnDevice on(device);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)),
        copy_of(bytes), device);
}

void begin_copy_out(int device, void* to, const void* from, std::size_t bytes, void* stream) {
  const OnDevice on(device);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream)),
        copy_of(bytes), device);
}

void begin_copy_within(int device, void* to, const void* from, std::size_t bytes, void* stream) {
  const OnDevice on(device);
  check(
      cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream)),
      copy_of(bytes), device);
}

std::string pin(int device, void* data, std::size_t bytes) {
  const OnDevice on(device);
  const cudaError_t error = cudaHostRegister(data, bytes, cudaHostRegisterPortable);
  return error == cudaSuccess ? "" : in_words(error);
}

void unpin(int device, void* data) noexcept {
  quietly_on(device, [data] { cudaHostUnregister(data); });
}

void* allocate_pinned(int device, std::size_t bytes) {
  const OnDevice on(device);
  void* data = nullptr;
  check(cudaHostAlloc(&data, bytes, cudaHostAllocPortable),
        "an allocation of " + std::to_string(bytes) + " pinned bytes of the host", device);
  return data;
}

void release_pinned(int device, void* data) noexcept {
  quietly_on(device, [data] { cudaFreeHost(data); });
}

}  // namespace hvd_backup::cuda
