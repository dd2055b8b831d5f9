// Cases that run twice: by the kernels' CPU twin, and on a GPU where there is one.
#pragma once

#include <cstddef>
#include <cstring>
#include <random>
#include <vector>

#include "check.hpp"
#include "device/buffer.hpp"
#include "device/cuda.hpp"
#include "device/cuda_calls.hpp"

namespace hvd_backup::testing {

inline void on_gpu(void (*body)(int)) {
  const CudaStatus status = cuda_status();
  if (status.devices > 0) return body(0);
  SKIP(status.why);
}

/// Copies between the host and memory of a device that somebody else owns.
struct Peek {
  explicit Peek(int on) : device(on) {}

  void write(std::byte* to, const void* from, std::size_t bytes) const {
    if (device == kHost) {
      std::memcpy(to, from, bytes);
    } else {
      cuda::copy_in(device, to, from, bytes);
    }
  }
  void read(void* to, const std::byte* from, std::size_t bytes) const {
    if (device == kHost) {
      std::memcpy(to, from, bytes);
    } else {
      cuda::copy_out(device, to, from, bytes);
    }
  }

  int device;
};

/// Memory of a device, and what it should hold, or held, on the host.
struct Mirror {
  Mirror(int on, std::size_t bytes) : device(on), host(bytes), buffer(on, bytes) {}

  std::byte* data() const { return buffer.data(); }
  void send() { buffer.write(host.data()); }
  void fetch() {
    if (device != kHost) cuda::finish(device, nullptr);
    buffer.read(host.data());
  }

  int device;
  std::vector<std::byte> host;
  Buffer buffer;
};

inline bool same_bytes(const std::vector<std::byte>& a, const std::vector<std::byte>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size()) == 0);
}

}  // namespace hvd_backup::testing

// DEVICE_CASE("sentence") { uses `device`, which is kHost, then 0 }
#define DEVICE_CASE(sentence) HVD_DEVICE_CASE(DOCTEST_ANONYMOUS(device_case_), sentence)
#define HVD_DEVICE_CASE(body, sentence)                                 \
  static void body(int device);                                         \
  TEST_CASE(sentence " (twin)") { body(kHost); }                        \
  TEST_CASE(sentence " (GPU)") { ::hvd_backup::testing::on_gpu(body); } \
  static void body(int device)
