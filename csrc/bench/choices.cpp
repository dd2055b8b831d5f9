// Times, side by side, the ways between which docs/measurements.md
// chooses. Prints a line per case: medians, and by which factor the chosen way is faster.
//
//   choices [bytes]   largest size, 100 MiB unless told
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "arithmetic/mean.hpp"
#include "arithmetic/mean_kernels.hpp"
#include "memory/pages.hpp"
#include "memory/remote.hpp"
#include "memory/segment.hpp"
#include "round/chunk_reducer.hpp"

namespace hvd_backup {
namespace {

constexpr int kSamples = 15;

double micros(const std::function<void()>& call, std::size_t calls) {
  const auto start = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < calls; ++i) call();
  const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
  return took.count() / static_cast<double>(calls);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// The two take turns, so that noise hits both.
void compare(const std::string& title, std::size_t calls, const std::function<void()>& chosen,
             const std::function<void()>& other) {
  std::vector<double> a;
  std::vector<double> b;
  chosen();
  other();
  for (int i = 0; i < kSamples; ++i) {
    a.push_back(micros(chosen, calls));
    b.push_back(micros(other, calls));
  }
  std::printf("%-58s %11.2f %11.2f %13.2f\n", title.c_str(), median(a), median(b),
              median(b) / median(a));
}

/// Floats, all 1, and room for a page after them.
Pages ones(std::size_t bytes) {
  Pages pages(bytes + kPage);
  std::fill_n(reinterpret_cast<float*>(pages.data()), bytes / sizeof(float), 1.0F);
  return pages;
}

std::string size_text(std::size_t bytes) {
  return bytes >> 20 != 0 ? std::to_string(bytes >> 20) + " MiB"
                          : std::to_string(bytes >> 10) + " KiB";
}

const MeanKernels& kernels() {
  return avx2_kernels() != nullptr ? *avx2_kernels() : baseline_kernels;
}

void mean_of_blocks(const std::array<const std::byte*, 2>& from, std::size_t count,
                    std::byte* out) {
  constexpr std::array<double, 2> kOnes{1, 1};
  alignas(64) std::array<float, kBlock> sum;
  for (std::size_t first = 0; first < count; first += kBlock) {
    const std::size_t n = std::min(kBlock, count - first);
    const std::array<const std::byte*, 2> at{from[0] + first * sizeof(float),
                                             from[1] + first * sizeof(float)};
    kernels().add(DType::float32, at.data(), kOnes.data(), 2, true, n, sum.data());
    kernels().finish(DType::float32, sum.data(), 2, n, out + first * sizeof(float));
  }
}

void compare_means(std::size_t bytes) {
  const Pages a = ones(bytes);
  const Pages b = ones(bytes);
  const Pages out = ones(bytes);
  const std::array<Operand, 2> operands{Operand{a.data(), 1}, Operand{b.data(), 1}};
  const std::size_t count = bytes / sizeof(float);
  compare(
      "mean of 2 x " + size_text(bytes) + ": one pass in registers | by blocks", 1,
      [&] {
        weighted_mean(DType::float32, operands.data(), 2, count, 2, out.data(),
                      bytes >= kStreamFrom);
      },
      [&] { mean_of_blocks({a.data(), b.data()}, count, out.data()); });
}

void compare_copies(std::size_t bytes, std::size_t offset) {
  const Pages from = ones(bytes);
  const Pages to = ones(bytes);
  compare(
      "copy of " + size_text(bytes) + ", " + std::to_string(offset) +
          " B apart in the page: own loop | memcpy",
      std::max<std::size_t>(1, (std::size_t{8} << 20) / bytes),
      [&] { copy_bytes(to.data() + offset, from.data(), bytes, false); },
      [&] { std::memcpy(to.data() + offset, from.data(), bytes); });
}

/// How MPI carries a chunk between nodes of one host.
void compare_receives(std::size_t bytes, std::size_t offset) {
  const Segment from = Segment::create(bytes);
  const Segment to = Segment::create(bytes + kPage);
  const auto address = reinterpret_cast<std::uintptr_t>(from.data());
  const auto receive = [&](std::size_t at) {
    read_remote(getpid(), address, to.data() + at, bytes);
  };
  compare(
      "receive " + size_text(bytes) + ": alike in its page | " + std::to_string(offset) +
          " B apart",
      16, [&] { receive(0); }, [&] { receive(offset); });
}

/// The same, from the slot of a rank that is alone on its node.
void compare_sources(std::size_t bytes) {
  const Pages own = ones(bytes);
  const Segment shared = Segment::create(bytes);
  std::memset(shared.data(), 1, bytes);
  const Pages to(bytes);
  const auto receive = [&](const std::byte* from) {
    read_remote(getpid(), reinterpret_cast<std::uintptr_t>(from), to.data(), bytes);
  };
  compare(
      "receive " + size_text(bytes) + ": from huge pages | from shared memory", 16,
      [&] { receive(own.data()); }, [&] { receive(shared.data()); });
}

/// What an optimizer pays until it has read the result once.
void compare_results(std::size_t bytes) {
  const Segment segment = Segment::create(bytes);
  std::memset(segment.data(), 1, bytes);
  PrivateView view(segment, 0, bytes);
  const Segment slot = Segment::create(bytes);
  const auto read = [bytes](const std::byte* data) {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < bytes; i += 64) sum += static_cast<std::uint64_t>(data[i]);
    if (sum != bytes / 64) std::abort();
  };
  compare(
      "read a result of " + size_text(bytes) + ": private view, reset | copy to the slot", 1,
      [&] {
        view.reset();
        read(view.data());
      },
      [&] {
        copy_bytes(slot.data(), segment.data(), bytes, bytes >= kStreamFrom);
        read(slot.data());
      });
}

}  // namespace
}  // namespace hvd_backup

int main(int argc, char** argv) {
  using namespace hvd_backup;
  const std::size_t largest =
      argc > 1 ? std::strtoull(argv[1], nullptr, 10) : std::size_t{100} << 20;
  if (largest < std::size_t{1} << 20) {
    std::fprintf(stderr, "choices: the largest size is at least 1 MiB\n");
    return 2;
  }
  std::printf("%-58s %11s %11s %13s\n", "chosen | other", "chosen(us)", "other(us)",
              "other/chosen");
  for (const std::size_t bytes : {std::size_t{1} << 20, std::size_t{16} << 20}) {
    if (bytes < largest) compare_means(bytes);
  }
  compare_means(largest);
  for (const std::size_t offset : {std::size_t{0}, std::size_t{16}, std::size_t{64}}) {
    compare_copies(std::size_t{64} << 10, offset);
  }
  compare_receives(std::size_t{512} << 10, 16);
  compare_sources(std::size_t{256} << 10);
  compare_results(largest);
  return 0;
}
