// Layer device: slots and results in device memory that ranks map, on the twins and on a GPU.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "device/mapped_arena.hpp"
#include "device/mapped_staging.hpp"
#include "device_case.hpp"
#include "reference.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

constexpr std::size_t kBytes = 40'000;

std::vector<std::unique_ptr<MappedArena>> make_ranks(int device, int count, int results) {
  std::vector<std::unique_ptr<MappedArena>> ranks;
  std::vector<MemoryHandle> handles;
  for (int rank = 0; rank < count; ++rank) {
    ranks.push_back(std::make_unique<MappedArena>(device, kBytes, results));
    handles.push_back(ranks.back()->handle());
  }
  for (int rank = 0; rank < count; ++rank)
    ranks[static_cast<std::size_t>(rank)]->open(handles, rank);
  for (const auto& rank : ranks) rank->confirm();
  return ranks;
}

std::vector<std::byte> noise_of(DType dtype, std::uint64_t seed) {
  std::vector<std::byte> bytes(kBytes);
  fill_with_noise(dtype, bytes.data(), kBytes / size_of(dtype), seed);
  return bytes;
}

/// The bits of the CPU's function of that name.
std::vector<std::byte> cpu_mean(DType dtype, const std::vector<std::vector<std::byte>>& slots,
                                const std::vector<MappedArena::Share>& from, double total,
                                std::size_t offset, std::size_t count) {
  std::vector<Operand> operands;
  for (const auto& share : from) {
    operands.push_back({slots[static_cast<std::size_t>(share.rank)].data() + offset, share.weight});
  }
  std::vector<std::byte> out(count * size_of(dtype));
  weighted_mean(dtype, operands.data(), operands.size(), count, total, out.data(), false);
  return out;
}

std::vector<std::byte> fetch(int device, const std::byte* from, std::size_t bytes) {
  std::vector<std::byte> host(bytes);
  Peek(device).read(host.data(), from, bytes);
  return host;
}

/// A child process that maps the parent's memory, reads its slot and writes to its result.
int map_elsewhere(const MemoryHandle& handle) {
  const pid_t child = fork();
  if (child == 0) {
    const ImportedMemory memory(kHost, handle);
    const bool good = memory.data()[0] == std::byte{7};
    memory.data()[1] = std::byte{9};
    _exit(good ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

}  // namespace

DEVICE_CASE("a piece of the mean has the CPU's bits, in the results of the ranks it was for") {
  for (const DType dtype : kAllDTypes) {
    auto ranks = make_ranks(device, 4, 3);
    std::vector<std::vector<std::byte>> slots;
    for (std::size_t rank = 0; rank < 4; ++rank) {
      slots.push_back(noise_of(dtype, rank));
      Peek(device).write(ranks[rank]->slot(), slots.back().data(), kBytes);
    }
    const std::vector<MappedArena::Share> from{{0, 1}, {1, 0.5}, {3, 2}};
    // Aligned or not, for a kernel's vectors.
    for (const std::size_t first : {std::size_t{0}, std::size_t{3}, std::size_t{64}}) {
      const std::size_t offset = first * size_of(dtype);
      const std::size_t count = 4001;
      ranks[1]->mean({dtype, offset, count}, from, 3.5, 2, {0, 1, 3});
      const auto expected = cpu_mean(dtype, slots, from, 3.5, offset, count);
      for (const std::size_t rank : {std::size_t{0}, std::size_t{1}, std::size_t{3}}) {
        CHECK(
            same_bytes(fetch(device, ranks[rank]->result(2) + offset, expected.size()), expected));
      }
      CHECK(same_bytes(fetch(device, ranks[2]->result(2), kBytes), std::vector<std::byte>(kBytes)));
      CHECK(same_bytes(fetch(device, ranks[0]->result(1), kBytes), std::vector<std::byte>(kBytes)));
    }
    CHECK(same_bytes(fetch(device, ranks[3]->slot(), kBytes), slots[3]));
  }
}

DEVICE_CASE("the mean of nobody is zero") {
  auto ranks = make_ranks(device, 2, 1);
  const std::vector<std::byte> ones(kBytes, std::byte{0xFF});
  for (const auto& rank : ranks) Peek(device).write(rank->result(0), ones.data(), kBytes);
  ranks[0]->mean({DType::float64, 80, 100}, {}, 0, 0, {0, 1});
  for (const auto& rank : ranks) {
    const auto result = fetch(device, rank->result(0), kBytes);
    for (std::size_t i = 0; i < kBytes; ++i) {
      REQUIRE(result[i] == (i >= 80 && i < 880 ? std::byte{0} : std::byte{0xFF}));
    }
  }
}

DEVICE_CASE(
    "what lies outside of the results is refused, and so are more ranks than a kernel takes") {
  auto ranks = make_ranks(device, 1, 2);
  const std::vector<MappedArena::Share> me{{0, 1}};
  CHECK_THROWS_WITH_AS(
      ranks[0]->mean({DType::float32, kBytes - 8, 3}, me, 1, 0, {0}),
      doctest::Contains(
          "12 bytes at byte 39992 of result 0 are not within 2 results of 40000 bytes"),
      InvalidArgument);
  CHECK_THROWS_WITH_AS(ranks[0]->mean({DType::float32, 0, 3}, me, 1, 2, {0}),
                       doctest::Contains("of result 2"), InvalidArgument);
  MappedArena arena(device, 64, 1);
  CHECK_THROWS_WITH_AS(arena.open(std::vector<MemoryHandle>(129, arena.handle()), 0),
                       doctest::Contains("at most 128 ranks, there are 129"), DeviceError);
}

DEVICE_CASE("memory that cannot be mapped, or read, is named by its rank") {
  MappedArena arena(device, 64, 1);
  MemoryHandle other = arena.handle();
  other.gpu = device == kHost ? "0123" : kOfHost;
  CHECK_THROWS_WITH_AS(
      arena.open({arena.handle(), other}, 0),
      doctest::Contains("the memory of rank 1 cannot be mapped: a GPU and the host"), DeviceError);
  CHECK(!arena.is_open());
  MappedArena second(device, 64, 1);
  MemoryHandle wrong = second.handle();
  wrong.address += 8;  // zeros
  CHECK_THROWS_WITH_AS(
      second.open({second.handle(), wrong}, 0),
      doctest::Contains("the memory of rank 1 can be mapped, but a kernel reads 0.000000 there"),
      DeviceError);
}

DEVICE_CASE("a rank whose copies do not arrive is named") {
  MappedArena first(device, 64, 1);
  MappedArena second(device, 64, 1);
  const std::vector<MemoryHandle> handles{first.handle(), second.handle()};
  first.open(handles, 0);
  CHECK_THROWS_WITH_AS(first.confirm(),
                       doctest::Contains("what rank 1 has copied here has not arrived"),
                       DeviceError);
  second.open(handles, 1);
  first.confirm();
  second.confirm();
}

DEVICE_CASE("tensors are packed into the slot, and a result is unpacked, both in place") {
  const std::vector<Run> runs{{DType::float32, DType::float32, 0, {{0, 1000}, {1008, 17}}},
                              {DType::float16, DType::float16, 8192, {{0, 1}, {32, 9000}}}};
  std::shared_ptr<MappedArena> arena = std::move(make_ranks(device, 1, 2)[0]);
  MappedStaging staging(arena, runs);
  CHECK_EQ(staging.tensor_count(), std::size_t{4});
  std::vector<Mirror> tensors;
  std::vector<const void*> sources;
  std::vector<void*> targets;
  for (const Run& run : runs) {
    for (const Slice& slice : run.slices) {
      tensors.emplace_back(device, slice.count * size_of(run.tensor_dtype));
    }
  }
  for (int step = 0; step < 3; ++step) {
    sources.clear();
    targets.clear();
    for (std::size_t t = 0; t < tensors.size(); ++t) {
      const DType dtype = runs[t / 2].tensor_dtype;
      const std::size_t count = runs[t / 2].slices[t % 2].count;
      fill_with_noise(dtype, tensors[t].host.data(), count, 100 * t + static_cast<unsigned>(step));
      tensors[t].send();
      sources.push_back(step == 1 && t == 2 ? nullptr : tensors[t].data());
      targets.push_back(step == 2 && t == 0 ? nullptr : tensors[t].data());
    }
    staging.stage(sources, nullptr);
    CHECK(staging.is_finite());
    std::vector<std::byte> slot(kBytes);
    staging.fetch(slot.data());
    for (std::size_t t = 0; t < tensors.size(); ++t) {
      const Slice& slice = runs[t / 2].slices[t % 2];
      const std::size_t at = runs[t / 2].offset + slice.offset * size_of(runs[t / 2].flat_dtype);
      std::vector<std::byte> expected = tensors[t].host;
      if (sources[t] == nullptr) expected.assign(expected.size(), std::byte{0});
      CHECK(std::memcmp(slot.data() + at, expected.data(), expected.size()) == 0);
    }
    arena->mean({DType::float32, 0, kBytes / 4}, {{0, 2}}, 1, 1, {0});
    staging.load(1, targets, nullptr);
    arena->settle();
    std::vector<std::byte> before = tensors[0].host;
    for (Mirror& tensor : tensors) tensor.fetch();
    const auto result = fetch(device, arena->result(1), kBytes);
    if (step == 2) {
      CHECK(same_bytes(tensors[0].host, before));
    } else {
      CHECK(std::memcmp(tensors[0].host.data(), result.data(), 4000) == 0);
    }
    CHECK(std::memcmp(tensors[3].host.data(), result.data() + 8192 + 64, 18000) == 0);
  }
}

DEVICE_CASE("whether what was packed is finite is known, of each packing by itself") {
  std::shared_ptr<MappedArena> arena = std::move(make_ranks(device, 1, 1)[0]);
  // 1e30 is a number, but none of float16's.
  for (const auto& [value, flat] :
       {std::pair{std::numeric_limits<float>::quiet_NaN(), DType::float32},
        std::pair{1e30F, DType::float16}}) {
    MappedStaging staging(arena, {{DType::float32, flat, 0, {{0, 500}}}});
    Mirror tensor(device, 2000);
    for (const bool good : {true, false, true}) {
      const float x = good ? 1 : value;
      std::memcpy(tensor.host.data() + 1600, &x, sizeof x);
      tensor.send();
      staging.stage({tensor.data()}, nullptr);
      CHECK_EQ(staging.is_finite(), good);
    }
  }
}

TEST_CASE("memory of the twin is mapped by another process, too, and outlives its owner's part") {
  ExportedMemory memory(kHost, 100);
  memory.data()[0] = std::byte{7};
  CHECK_EQ(map_elsewhere(memory.handle()), 0);
  CHECK(memory.data()[1] == std::byte{9});
  const ImportedMemory own(kHost, memory.handle());
  CHECK(own.data() == memory.data());
  memory.release();
  CHECK(memory.data() == nullptr);
  MemoryHandle gone = memory.handle();
  gone.pid = 1;
  CHECK_THROWS_WITH_AS(ImportedMemory(kHost, gone),
                       doctest::Contains("cannot open the shared memory"), DeviceError);
}

TEST_CASE("what has been given back is not used any more, but refused") {
  MappedArena arena(kHost, 64, 1);
  arena.open({arena.handle()}, 0);
  CHECK(arena.slot() != nullptr);
  arena.unmap();
  arena.release();
  CHECK_THROWS_WITH_AS(arena.slot(), doctest::Contains("this rank has left"), InvalidArgument);
  CHECK_THROWS_WITH_AS(arena.result(0), doctest::Contains("make a new one"), InvalidArgument);
}

TEST_CASE("without CUDA memory of a GPU says what is missing") {
  if (cuda_status().devices > 0) SKIP("there is a CUDA device");
  CHECK_THROWS_WITH_AS(MappedArena(0, 100, 1), doctest::Contains("CUDA device 0"), DeviceError);
}
