// The twin of cuda_streams.cu for builds without nvcc.
#include "device/cuda_streams.hpp"
#include "device/no_cuda.hpp"

namespace hvd_backup::cuda {

void* make_stream(int device) { refuse(device); }
void drop_stream(int, void*) noexcept {}
void* make_event(int device) { refuse(device); }
void drop_event(int, void*) noexcept {}
void record(int device, void*, void*) { refuse(device); }
void hold(int device, void*, void*) { refuse(device); }
void await(int device, void*) { refuse(device); }
void begin_copy_in(int device, void*, const void*, std::size_t, void*) { refuse(device); }
void begin_copy_out(int device, void*, const void*, std::size_t, void*) { refuse(device); }
void begin_copy_within(int device, void*, const void*, std::size_t, void*) { refuse(device); }
std::string pin(int device, void*, std::size_t) { refuse(device); }
void unpin(int, void*) noexcept {}
void* allocate_pinned(int device, std::size_t) { refuse(device); }
void release_pinned(int, void*) noexcept {}

}  // namespace hvd_backup::cuda
