// Bytes per second of pack, unpack and weighted mean on a device, beside its own copy.
//
//   device_speed DEVICE MAX_MIB          DEVICE is cpu (the twins: no figure of interest) or 0, 1,
//   …
//
// One JSON object a line: {"what", "dtype", "mib", "ms", "gb_s", "of_copy"}. Bytes are those read
// and written; of_copy compares with a copy of as many.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <random>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/dtype.hpp"
#include "device/buffer.hpp"
#include "device/cuda_calls.hpp"
#include "device/cuda_streams.hpp"
#include "device/kernels.hpp"

using namespace hvd_backup;

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr int kTensors = 161;  // as a ResNet-50 has
constexpr int kOperands = 3;

int device_from(const std::string& text) { return text == "cpu" ? kHost : std::stoi(text); }

void finish(int device) {
  if (device != kHost) cuda::finish(device, nullptr);
}

/// Median milliseconds of a call, of several batches that are long enough to be timed.
template <class Call>
double time_ms(int device, const Call& call) {
  const int calls = device == kHost ? 1 : 20;
  call();
  finish(device);
  std::vector<double> samples;
  for (int batch = 0; batch < 7; ++batch) {
    const Nanoseconds start = monotonic_clock().now();
    for (int i = 0; i < calls; ++i) call();
    finish(device);
    const auto spent = static_cast<double>(monotonic_clock().now() - start);
    samples.push_back(spent / 1e6 / calls);
  }
  std::nth_element(samples.begin(), samples.begin() + 3, samples.end());
  return samples[3];
}

void copy_within(int device, std::byte* to, const std::byte* from, std::size_t bytes) {
  if (device == kHost) {
    std::memcpy(to, from, bytes);
  } else {
    cuda::begin_copy_within(device, to, from, bytes, nullptr);
  }
}

/// Tensors of unequal sizes, at offsets that vectors can be loaded from, as frameworks make them.
std::vector<Slice> slices_of(std::size_t count) {
  std::vector<Slice> slices;
  const std::size_t share = count / kTensors / 128 * 128;
  std::size_t offset = 0;
  for (int t = 0; t < kTensors; ++t) {
    const std::size_t rest = t + 1 == kTensors ? count - offset : share;
    slices.push_back({offset, rest - (rest > 7 ? static_cast<std::size_t>(t % 7) : 0)});
    offset += rest;
  }
  return slices;
}

/// As gradients are: noise, and zeros among it. All zeros would take other time on a GPU.
std::vector<std::byte> gradients(DType dtype, std::size_t bytes) {
  constexpr std::size_t kPeriod = 65521;  // elements; then they come again
  std::mt19937 random(1);
  std::uniform_real_distribution<float> noise(-1, 1);
  std::vector<float> wide(std::min(kPeriod, bytes / size_of(dtype)));
  for (float& x : wide) x = random() % 8 == 0 ? 0 : noise(random);
  std::vector<std::byte> all(bytes);
  const PackPlan cast(DType::float32, dtype, {{0, wide.size()}}, kHost);
  const void* const from[] = {wide.data()};
  cast.pack(from, 1, all.data(), nullptr, nullptr);
  std::size_t filled = wide.size() * size_of(dtype);
  while (filled < bytes) {
    const std::size_t more = std::min(filled, bytes - filled);
    std::memcpy(all.data() + filled, all.data(), more);
    filled += more;
  }
  return all;
}

struct Memory {
  Memory(int device, DType dtype, std::size_t bytes) : buffer(device, bytes) {
    buffer.write(gradients(dtype, bytes).data());
  }
  Buffer buffer;
};

void measure(int device, DType dtype, std::size_t mib) {
  const std::size_t bytes = mib * kMiB;
  const std::size_t count = bytes / size_of(dtype);
  const std::vector<Slice> slices = slices_of(count);
  const PackPlan plan(dtype, dtype, slices, device);
  std::vector<Memory> slots;
  slots.reserve(kOperands);
  for (int k = 0; k < kOperands; ++k) slots.emplace_back(device, dtype, bytes);
  Memory out(device, dtype, bytes);
  std::vector<void*> tensors;
  tensors.reserve(slices.size());
  for (const Slice& slice : slices) {
    tensors.push_back(slots[0].buffer.data() + slice.offset * size_of(dtype));
  }
  std::vector<Operand> operands;
  operands.reserve(kOperands);
  for (const Memory& slot : slots) operands.push_back({slot.buffer.data(), 1});

  std::byte* flat = out.buffer.data();
  const double copy_ms =
      time_ms(device, [&] { copy_within(device, flat, slots[0].buffer.data(), bytes); });
  const double copy_gb_s = 2 * static_cast<double>(bytes) / copy_ms / 1e6;
  const auto tell = [&](const char* what, double ms, double moved) {
    const double gb_s = moved * static_cast<double>(bytes) / ms / 1e6;
    std::printf(
        "{\"what\": \"%s\", \"dtype\": \"%s\", \"mib\": %zu, \"ms\": %.4f, \"gb_s\": %.1f, "
        "\"of_copy\": %.3f}\n",
        what, std::string(name_of(dtype)).c_str(), mib, ms, gb_s, gb_s / copy_gb_s);
    std::fflush(stdout);
  };
  tell("copy", copy_ms, 2);
  tell("pack", time_ms(device, [&] { plan.pack(tensors.data(), 1, flat, nullptr, nullptr); }), 2);
  tell("unpack", time_ms(device, [&] { plan.unpack(flat, tensors.data(), nullptr); }), 2);
  tell("mean of 3",
       time_ms(device,
               [&] {
                 weighted_mean(dtype, operands.data(), operands.size(), count, kOperands, flat,
                               device, nullptr);
               }),
       kOperands + 1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: device_speed cpu|NUMBER MAX_MIB\n");
    return 2;
  }
  try {
    const int device = device_from(argv[1]);
    const auto most = static_cast<std::size_t>(std::stoul(argv[2]));
    for (const DType dtype : {DType::float32, DType::bfloat16}) {
      for (std::size_t mib = 1; mib <= most; mib *= 4) measure(device, dtype, mib);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "device_speed: %s\n", error.what());
    return 1;
  }
  return 0;
}
