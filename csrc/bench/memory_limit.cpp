// The memory-traffic limit of an all-reduce on one node: a plain vectorised sum of private buffers
// by several threads, with no protocol at all.
//
// Serves requests, a line each: "<inputs> <bytes> <calls> <stream>" is answered with the time of
// one sum in nanoseconds. There is a thread per input, each adds its own part `calls` times; the
// time is that from the first thread's start to the last one's end, over `calls`.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <new>
#include <thread>
#include <vector>

#include "bench/sum.hpp"

namespace hvd_backup {
namespace {

using Nanoseconds = std::int64_t;

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kLineFloats = 16;

Nanoseconds now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// Floats on huge pages where the system has them.
class Buffer {
 public:
  explicit Buffer(std::size_t count)
      : bytes_((count * sizeof(float) + kHugePage - 1) / kHugePage * kHugePage),
        data_(static_cast<float*>(std::aligned_alloc(kHugePage, bytes_))) {
    if (data_ == nullptr) throw std::bad_alloc();
    madvise(data_, bytes_, MADV_HUGEPAGE);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&& other) noexcept : bytes_(other.bytes_), data_(other.data_) {
    other.data_ = nullptr;
  }
  ~Buffer() { std::free(data_); }

  float* data() const { return data_; }

 private:
  std::size_t bytes_;
  float* data_;
};

/// The inputs and the output of one size; touched once.
class Workload {
 public:
  Workload(std::size_t inputs, std::size_t count) : count_(count), out_(count) {
    for (std::size_t k = 0; k < inputs; ++k) {
      inputs_.emplace_back(count);
      std::fill_n(inputs_.back().data(), count, static_cast<float>(k + 1));
      pointers_[k] = inputs_.back().data();
    }
    std::fill_n(out_.data(), count, 0.0F);
  }

  bool fits(std::size_t inputs, std::size_t count) const {
    return inputs == inputs_.size() && count == count_;
  }

  Nanoseconds measure(std::size_t calls, bool stream) {
    const std::size_t threads = inputs_.size();
    std::vector<Nanoseconds> started(threads);
    std::vector<Nanoseconds> ended(threads);
    std::atomic<std::size_t> ready{0};
    std::vector<std::thread> team;
    team.reserve(threads);
    for (std::size_t t = 0; t < threads; ++t) {
      team.emplace_back([&, t] {
        const std::size_t lines = count_ / kLineFloats;
        const std::size_t first = lines * t / threads * kLineFloats;
        const std::size_t end = lines * (t + 1) / threads * kLineFloats;
        ++ready;
        while (ready.load() < threads) std::this_thread::yield();
        started[t] = now();
        for (std::size_t i = 0; i < calls; ++i) {
          sum(pointers_.data(), threads, first, end - first, out_.data(), stream);
          std::atomic_signal_fence(std::memory_order_seq_cst);  // each sum is made
        }
        ended[t] = now();
      });
    }
    for (std::thread& thread : team) thread.join();
    return *std::max_element(ended.begin(), ended.end()) -
           *std::min_element(started.begin(), started.end());
  }

  bool is_right() const {
    const auto n = static_cast<float>(inputs_.size());
    return out_.data()[0] == n * (n + 1) / 2 && out_.data()[count_ - 1] == n * (n + 1) / 2;
  }

 private:
  std::size_t count_;
  std::vector<Buffer> inputs_;
  Buffer out_;
  std::array<const float*, kMostInputs> pointers_{};
};

int serve() {
  std::size_t inputs = 0;
  std::size_t bytes = 0;
  std::size_t calls = 0;
  bool stream = false;
  std::vector<Workload> workload;  // at most one
  while (std::cin >> inputs >> bytes >> calls >> stream) {
    const std::size_t count = bytes / sizeof(float);
    if (inputs < 1 || inputs > kMostInputs || count % kLineFloats != 0 || calls < 1) {
      std::cerr << "memory_limit: bad request\n";
      return 2;
    }
    if (workload.empty() || !workload.front().fits(inputs, count)) {
      workload.clear();
      workload.emplace_back(inputs, count);
    }
    const Nanoseconds time = workload.front().measure(calls, stream);
    if (!workload.front().is_right()) {
      std::cerr << "memory_limit: wrong sum\n";
      return 1;
    }
    std::cout << static_cast<double>(time) / static_cast<double>(calls) << '\n' << std::flush;
  }
  return 0;
}

}  // namespace
}  // namespace hvd_backup

int main() { return hvd_backup::serve(); }
