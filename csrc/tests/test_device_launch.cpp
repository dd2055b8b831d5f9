// Layer device: how work is cut into launches, blocks and packets, and what is refused.
#include <sys/mman.h>

#include <string>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "device/cuda.hpp"
#include "device/kernels.hpp"
#include "device/launch.hpp"
#include "reference.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

constexpr std::size_t kTile = kernels::kTile;
constexpr std::size_t kFar = std::size_t{1} << 32;

/// Address space, of which only what is touched costs memory.
class Vast {
 public:
  explicit Vast(std::size_t bytes)
      : bytes_(bytes),
        data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {}
  Vast(const Vast&) = delete;
  Vast& operator=(const Vast&) = delete;
  ~Vast() {
    if (there()) munmap(data_, bytes_);
  }
  bool there() const { return data_ != MAP_FAILED; }
  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  std::size_t bytes_;
  void* data_;
};

/// Runs a kernel's last block.
struct LastBlock {
  template <class Kernel>
  void operator()(const char*, const Kernel& kernel, std::uint64_t blocks) const {
    for (std::uint32_t thread = 0; thread < kernels::kThreads; ++thread) {
      kernel(blocks - 1, thread);
    }
  }
};

/// Notes the number of blocks of every launch.
struct Launches {
  template <class Kernel>
  void operator()(const char*, const Kernel&, std::uint64_t blocks) const {
    all->push_back(blocks);
  }
  std::vector<std::uint64_t>* all;
};

CopyTask copy_task(const Tiling& tiling, void* const* tensors, std::byte* flat, bool to_flat) {
  return {DType::float16,
          DType::float16,
          &tiling.first_tile,
          tiling.tiles.data(),
          tensors,
          flat,
          to_flat,
          1,
          nullptr};
}

std::vector<std::uint64_t> launches_of(std::size_t tensors, std::size_t count_of_each) {
  std::vector<Slice> slices;
  for (std::size_t t = 0; t < tensors; ++t) slices.push_back({t * count_of_each, count_of_each});
  const Tiling tiling = tiles_of(slices);
  const std::vector<void*> addresses(tensors);
  std::vector<std::uint64_t> all;
  kernels::launch_copy(copy_task(tiling, addresses.data(), nullptr, true), Launches{&all});
  return all;
}

const std::vector<Slice> kOne{{0, 8}};

}  // namespace

TEST_CASE("480 tensors are one launch, and empty ones are none") {
  CHECK_EQ(launches_of(0, 8), std::vector<std::uint64_t>{});
  CHECK_EQ(launches_of(700, 0), std::vector<std::uint64_t>{});
  CHECK_EQ(launches_of(1, kTile + 1), std::vector<std::uint64_t>{2});
  CHECK_EQ(launches_of(480, 10), std::vector<std::uint64_t>{480});
  CHECK_EQ(launches_of(481, 10), (std::vector<std::uint64_t>{480, 1}));
  CHECK_EQ(launches_of(1000, kTile + 5), (std::vector<std::uint64_t>{960, 960, 80}));
}

TEST_CASE("tiles cover every element once, beyond 2^32 elements too") {
  const std::vector<Slice> slices{
      {5, 2 * kFar + 3}, {2 * kFar + 8, 0}, {3 * kFar, kTile}, {4 * kFar, 1}};
  const Tiling tiling = tiles_of(slices);
  REQUIRE(tiling.first_tile.size() == slices.size() + 1);
  for (std::size_t t = 0; t < slices.size(); ++t) {
    std::size_t done = 0;
    for (std::size_t i = tiling.first_tile[t]; i < tiling.first_tile[t + 1]; ++i) {
      const kernels::Tile& tile = tiling.tiles[i];
      const bool next = tile.tensor == t && tile.begin == done && tile.count > 0 &&
                        tile.count <= kTile && tile.flat == slices[t].offset + done;
      CHECK(next);
      done += tile.count;
    }
    CHECK_EQ(done, slices[t].count);
  }
  CHECK_EQ(tiling.first_tile.back(), tiling.tiles.size());
}

TEST_CASE("a tensor of more than 2^32 elements is copied to its end") {
  const std::size_t count = kFar + kTile + 11;
  const Vast tensor(count * 2 + 64);
  const Vast flat((count + 3) * 2 + 64);
  if (!tensor.there() || !flat.there()) SKIP("no address space of 17 GB");
  const Tiling tiling = tiles_of({{3, count}});
  void* const address = tensor.data();
  const std::size_t last = count - 11;  // where the last tile begins
  for (std::size_t i = last; i < count; ++i) store(DType::float16, tensor.data(), i, noise(1, i));
  kernels::launch_copy(copy_task(tiling, &address, flat.data(), true), LastBlock{});
  CHECK(std::memcmp(flat.data() + 2 * (last + 3), tensor.data() + 2 * last, 22) == 0);
  CHECK_EQ(load(DType::float16, flat.data(), count + 3), 0.0);

  for (std::size_t i = last; i < count; ++i) store(DType::float16, flat.data(), i + 3, noise(2, i));
  kernels::launch_copy(copy_task(tiling, &address, flat.data(), false), LastBlock{});
  CHECK(std::memcmp(flat.data() + 2 * (last + 3), tensor.data() + 2 * last, 22) == 0);
}

TEST_CASE("slots of more than 2^32 elements are added to their end") {
  const std::size_t count = kFar + 100;
  const Vast a(count * 2 + 64);
  const Vast b(count * 2 + 64);
  const Vast out(count * 2 + 64);
  if (!a.there() || !b.there() || !out.there()) SKIP("no address space of 26 GB");
  for (std::size_t i = kFar; i < count; ++i) {
    store(DType::float16, a.data(), i, noise(1, i));
    store(DType::float16, b.data(), i, noise(2, i));
  }
  const Operand operands[] = {{a.data(), 1}, {b.data(), 0.7}};
  kernels::launch_sum({DType::float16, DType::float16, operands, 2, count, 1.7, out.data()},
                      LastBlock{});
  const Operand ends[] = {{a.data() + 2 * kFar, 1}, {b.data() + 2 * kFar, 0.7}};
  std::vector<std::byte> mean(200);
  weighted_mean(DType::float16, ends, 2, 100, 1.7, mean.data(), false);
  CHECK(std::memcmp(out.data() + 2 * kFar, mean.data(), 200) == 0);
  CHECK_EQ(load(DType::float16, out.data(), count), 0.0);
}

TEST_CASE("a run is split where what is written is aligned, and never outside the run") {
  alignas(64) float data[64] = {};
  for (std::uint32_t shift = 0; shift < 9; ++shift) {
    for (std::uint32_t count = 0; count < 40; ++count) {
      const kernels::Split split = kernels::split_for<4>(data + shift, count);
      CHECK_EQ(split.head + 4 * split.packets + split.tail, count);
      CHECK((split.head < 4 && split.tail < 4));
      CHECK((split.packets == 0 || (shift + split.head) % 4 == 0));
    }
  }
}

TEST_CASE("slices that overlap, go back or end past memory are refused with their numbers") {
  CHECK_THROWS_WITH_AS(
      tiles_of({{0, 10}, {9, 4}}),
      doctest::Contains("tensor 1 begins at element 9 of the flat buffer, before element 10"),
      InvalidArgument);
  CHECK_THROWS_WITH_AS(tiles_of({{100, 10}, {0, 4}}),
                       doctest::Contains("tensor 1 begins at element 0"), InvalidArgument);
  CHECK_THROWS_WITH_AS(tiles_of({{1, SIZE_MAX}}), doctest::Contains("past what memory can be"),
                       InvalidArgument);
  CHECK_THROWS_WITH_AS(tiles_of({{SIZE_MAX - 5, 1}}), doctest::Contains("tensor 0 would end at"),
                       InvalidArgument);
}

TEST_CASE("addresses that are no multiple of an element's size are refused before a launch") {
  alignas(16) std::byte data[64] = {};
  const PackPlan plan(DType::float32, DType::float16, kOne, kHost);
  const void* from[] = {data + 2};
  void* to[] = {data + 2};
  CHECK_THROWS_WITH_AS(plan.pack(from, 1, data, nullptr, nullptr),
                       doctest::Contains("no multiple of 4, the size of a float32"),
                       InvalidArgument);
  CHECK_THROWS_WITH_AS(plan.unpack(data, to, nullptr), doctest::Contains("tensor 0 is at address"),
                       InvalidArgument);
  from[0] = data;
  CHECK_THROWS_WITH_AS(plan.pack(from, 1, data + 33, nullptr, nullptr),
                       doctest::Contains("the flat buffer is at address"), InvalidArgument);
  CHECK_THROWS_WITH_AS(plan.pack(from, 1, nullptr, nullptr, nullptr),
                       doctest::Contains("the flat buffer is a null pointer, but has 8 elements"),
                       InvalidArgument);
}

TEST_CASE("sums of no operands, of too many, and of null pointers are refused") {
  alignas(16) std::byte data[64] = {};
  const std::vector<Operand> many(kernels::kMostOperands + 1, Operand{data, 1});
  const auto mean = [&](const Operand* operands, std::size_t n, std::byte* out) {
    weighted_mean(DType::float32, operands, n, 8, 1, out, kHost, nullptr);
  };
  CHECK_THROWS_WITH_AS(mean(many.data(), 0, data),
                       doctest::Contains("1 to 128 operands at a time, not 0"), InvalidArgument);
  CHECK_THROWS_WITH_AS(mean(many.data(), many.size(), data), doctest::Contains("not 129"),
                       InvalidArgument);
  CHECK_THROWS_WITH_AS(mean(many.data(), 1, nullptr),
                       doctest::Contains("the result is a null pointer"), InvalidArgument);
  const Operand broken[] = {{data, 1}, {nullptr, 1}};
  CHECK_THROWS_WITH_AS(mean(broken, 2, data), doctest::Contains("operand 1 is a null pointer"),
                       InvalidArgument);
  const Operand shifted[] = {{data + 1, 1}};
  CHECK_THROWS_WITH_AS(mean(shifted, 1, data), doctest::Contains("operand 0 is at address"),
                       InvalidArgument);
}

TEST_CASE("where there is no CUDA device, its use is refused with the reason") {
  const CudaStatus status = cuda_status();
  if (status.devices > 0) SKIP("there is a CUDA device");
  alignas(16) std::byte data[64] = {};
  const Operand operand{data, 1};
  const char* reason = status.built ? "CUDA device 0 failed: " : "built without CUDA";
  CHECK_THROWS_WITH_AS(PackPlan(DType::float32, DType::float32, kOne, 0), doctest::Contains(reason),
                       DeviceError);
  CHECK_THROWS_WITH_AS(Buffer(0, 8), doctest::Contains(reason), DeviceError);
  CHECK_THROWS_WITH_AS(weighted_mean(DType::float32, &operand, 1, 8, 1, data, 0, nullptr),
                       doctest::Contains(reason), DeviceError);
}
