// Layer device: tensors to a slot, and a result back, on the kernels' twins and on a GPU.
#include <cstring>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "device/staging.hpp"
#include "device_case.hpp"
#include "reference.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

constexpr std::size_t kBytes = 64 * 1024;

/// Two runs, as float32 tensors and float16 ones make them, with somebody else's between and after.
std::vector<Run> runs() {
  return {{DType::float32, DType::float32, 0, {{0, 1000}, {1008, 0}, {1008, 17}}},
          {DType::float16, DType::float16, 8192, {{0, 1}, {32, 9000}}},
          {DType::float32, DType::bfloat16, 40960, {{0, 333}}}};
}

struct Tensors {
  explicit Tensors(int device) {
    for (const Run& run : runs()) {
      for (const Slice& slice : run.slices) {
        all.emplace_back(device, slice.count * size_of(run.tensor_dtype));
      }
    }
  }
  void fill(std::uint64_t key) {
    std::size_t t = 0;
    for (const Run& run : runs()) {
      for (const Slice& slice : run.slices) {
        for (std::size_t i = 0; i < slice.count; ++i) {
          store(run.tensor_dtype, all[t].host.data(), i, noise(key + t, i));
        }
        all[t++].send();
      }
    }
  }
  template <class Pointer>
  std::vector<Pointer> addresses() const {
    std::vector<Pointer> result;
    for (const Mirror& one : all) result.push_back(one.data());
    return result;
  }
  std::vector<Mirror> all;
};

/// What a slot, or a result, should hold where the runs are.
void expect_at_runs(const std::byte* memory, const Tensors& tensors, std::size_t none) {
  std::size_t t = 0;
  for (const Run& run : runs()) {
    for (const Slice& slice : run.slices) {
      for (std::size_t i = 0; i < slice.count; ++i) {
        const double x = t == none ? 0 : load(run.tensor_dtype, tensors.all[t].host.data(), i);
        std::byte expected[8] = {};
        store(run.flat_dtype, expected, 0, x);
        const std::size_t size = size_of(run.flat_dtype);
        REQUIRE(std::memcmp(memory + run.offset + (slice.offset + i) * size, expected, size) == 0);
      }
      ++t;
    }
  }
}

/// Page-aligned memory, as the arena's is.
struct Page {
  explicit Page(std::byte with) : memory(kBytes + 4096) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    data = memory.data() + (4096 - address % 4096) % 4096;
    std::memset(data, static_cast<int>(with), kBytes);
  }
  std::vector<std::byte> memory;
  std::byte* data;
};

void there_and_back(int device, bool pin) {
  const Page slot(std::byte{0xA5});
  const Page result(std::byte{0});
  Staging staging(device, runs(), slot.data, kBytes, pin);
  CHECK_EQ(staging.tensor_count(), std::size_t{6});
  if (pin && device == kHost) CHECK_EQ(staging.why_not_pinned(), "");
  if (!pin) CHECK(!staging.why_not_pinned().empty());
  Tensors from(device);
  Tensors to(device);
  for (std::uint64_t step = 0; step < 4; ++step) {
    from.fill(10 * step);
    auto sources = from.addresses<const void*>();
    const std::size_t none = step % 2 == 1 ? 3 : 99;
    if (none < sources.size()) sources[none] = nullptr;
    staging.stage(sources, nullptr);
    expect_at_runs(slot.data, from, none);
    for (const std::size_t between : {std::size_t{5000}, std::size_t{30000}, kBytes - 1}) {
      CHECK(slot.data[between] == std::byte{0xA5});
    }
    std::memcpy(result.data, slot.data, kBytes);
    staging.load(result.data, to.addresses<void*>(), nullptr);
    staging.settle();
    for (Mirror& one : to.all) one.fetch();
    expect_at_runs(slot.data, to, 99);
  }
}

}  // namespace

DEVICE_CASE("what is staged is in the slot, and what is loaded is in the tensors") {
  there_and_back(device, true);
}

DEVICE_CASE("memory that cannot be pinned is copied by way of a buffer") {
  there_and_back(device, false);
}

DEVICE_CASE("a tensor that is nullptr is left as it is by a load") {
  const Page slot(std::byte{0});
  const Page result(std::byte{0});
  Staging staging(device, runs(), slot.data, kBytes);
  Tensors to(device);
  to.fill(1);
  auto targets = to.addresses<void*>();
  targets[0] = nullptr;
  const std::vector<std::byte> before = to.all[0].host;
  staging.load(result.data, targets, nullptr);
  staging.settle();
  for (Mirror& one : to.all) one.fetch();
  CHECK(same_bytes(to.all[0].host, before));
  CHECK(same_bytes(to.all[4].host, std::vector<std::byte>(to.all[4].host.size())));
}

TEST_CASE("a run that does not fit the contribution is refused, and so are too few tensors") {
  const Page slot(std::byte{0});
  const std::vector<Run> one{{DType::float32, DType::float32, kBytes - 8, {{0, 3}}}};
  CHECK_THROWS_WITH_AS(
      Staging(kHost, one, slot.data, kBytes),
      doctest::Contains(
          "a run of 12 bytes at byte 65528 does not fit a contribution of 65536 bytes"),
      InvalidArgument);
  Staging staging(kHost, runs(), slot.data, kBytes);
  CHECK_THROWS_WITH_AS(staging.stage({nullptr}, nullptr),
                       doctest::Contains("staging of 6 tensors was given 1"), InvalidArgument);
}

TEST_CASE("without CUDA staging on a GPU says what is missing") {
  if (cuda_status().devices > 0) SKIP("there is a CUDA device");
  const Page slot(std::byte{0});
  CHECK_THROWS_WITH_AS(Staging(0, runs(), slot.data, kBytes), doctest::Contains("CUDA device 0"),
                       DeviceError);
}
