// Gradients in mapped device memory, on streams that get on in any order that CUDA allows.
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "../check.hpp"
#include "device/mapped_staging.hpp"
#include "lazy_cuda.hpp"
#include "lazy_model.hpp"
#include "memory/segment.hpp"
#include "round/collective.hpp"

using namespace hvd_backup;
using lazy::kAll;
using lazy::kFirst;
using lazy::kGap;
using lazy::kGpu;
using lazy::Model;

namespace {

constexpr std::size_t kBytes = kAll * sizeof(float);
constexpr int kRanks = 2;
constexpr int kResults = 3;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// A rank with streams of its own, of which the user lets each wait for the one before.
struct Rank {
  explicit Rank(std::shared_ptr<MappedArena> mapped)
      : arena(std::move(mapped)), staging(arena, lazy::runs()) {}

  void* next_stream(std::mt19937_64& random) {
    between.record(stream);
    stream = &streams[random() % 3];
    between.hold(stream);
    return stream;
  }

  std::shared_ptr<MappedArena> arena;
  MappedStaging staging;
  int streams[3] = {};  // their addresses stand for them
  void* stream = nullptr;
  Model model;
  Event between{kGpu};
};

std::vector<std::unique_ptr<Rank>> make_ranks() {
  std::vector<std::unique_ptr<Rank>> ranks;
  std::vector<MemoryHandle> handles;
  for (int rank = 0; rank < kRanks; ++rank) {
    auto arena = std::make_shared<MappedArena>(kGpu, kBytes, kResults);
    handles.push_back(arena->handle());
    ranks.push_back(std::make_unique<Rank>(std::move(arena)));
  }
  for (int rank = 0; rank < kRanks; ++rank) {
    ranks[static_cast<std::size_t>(rank)]->arena->open(handles, rank);
  }
  for (const auto& rank : ranks) rank->arena->confirm();
  return ranks;
}

// Memory that somebody may map is not freed with its arena.
void give_back(const std::vector<std::unique_ptr<Rank>>& ranks) {
  for (const auto& rank : ranks) rank->arena->unmap();
  for (const auto& rank : ranks) rank->arena->release();
}

bool runs_are(const std::byte* memory, float value) {
  const auto* data = reinterpret_cast<const float*>(memory);
  return lazy::all_are(data, 0, kFirst, value) && lazy::all_are(data, kFirst, kGap, 0) &&
         lazy::all_are(data, kFirst + kGap, lazy::kSecond, value);
}

void add(const Rank& helper, std::size_t first, std::size_t count,
         const std::vector<MappedArena::Share>& from, int buffer) {
  const auto total = static_cast<double>(from.size());
  helper.arena->mean({DType::float32, first * sizeof(float), count}, from, total, buffer, {0, 1});
}

/// Rounds of two ranks, in some of which the second is late; false if a byte was not what it must
/// be when somebody could read it.
bool train(std::uint64_t seed) {
  lazy::reset(seed);
  std::mt19937_64 random(seed);
  auto ranks = make_ranks();
  bool good = true;
  float expected = 0;
  for (int step = 1; step <= 12; ++step) {
    const auto value = static_cast<float>(step);
    const bool late = random() % 4 == 0;
    std::vector<MappedArena::Share> from{{0, 1}};
    if (!late) from.push_back({1, 1});
    for (int r = 0; r < kRanks; ++r) {
      Rank& rank = *ranks[static_cast<std::size_t>(r)];
      void* stream = rank.next_stream(random);
      if (late && r == 1) {
        rank.arena->settle();
        continue;
      }
      rank.model.backward(stream, value + static_cast<float>(2 * r));
      rank.staging.stage(rank.model.sources(), stream);
      good = good && runs_are(rank.arena->slot(), value + static_cast<float>(2 * r));
    }
    // All have released the result before: helpers write to any buffer.
    const int buffer = static_cast<int>(random() % kResults);
    add(*ranks[0], 0, 200, from, buffer);
    add(*ranks[late ? 0 : 1], 200, kAll - 200, from, buffer);
    const float mean = late ? value : value + 1;
    expected += mean;
    for (const auto& rank : ranks) {
      good = good && runs_are(rank->arena->result(buffer), mean);
      rank->staging.load(buffer, rank->model.targets(), rank->stream);
      rank->model.update(rank->stream);
    }
  }
  for (const auto& rank : ranks) {
    rank->between.record(rank->stream);
    rank->between.await();
    for (const auto& param : rank->model.params) {
      good = good && lazy::all_are(param.data(), 0, param.size(), expected);
    }
  }
  give_back(ranks);
  return good;
}

}  // namespace

TEST_CASE("whatever order streams run in, mapped slots, results and gradients get their bytes") {
  for (std::uint64_t seed = 0; seed < 400; ++seed) CHECK(train(seed));
}

TEST_CASE("whether a packing is finite is known when stage() returns, in any order of streams") {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    lazy::reset(seed);
    auto ranks = make_ranks();
    Rank& rank = *ranks[0];
    std::mt19937_64 random(seed);
    for (const float value : {1.0F, kInfinity, 2.0F}) {
      void* stream = rank.next_stream(random);
      rank.model.backward(stream, value);
      rank.staging.stage(rank.model.sources(), stream);
      CHECK_EQ(rank.staging.is_finite(), value != kInfinity);
    }
    give_back(ranks);
  }
}

TEST_CASE("a step on a stream that nobody ordered after the last one's spoils no mapped result") {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    lazy::reset(seed);
    auto ranks = make_ranks();
    Rank& rank = *ranks[0];
    Model other;
    std::vector<float> result(kAll, 5);
    std::memcpy(rank.arena->result(1), result.data(), kBytes);
    rank.staging.load(1, rank.model.targets(), &rank.streams[1]);
    other.backward(&rank.streams[2], 3);
    rank.staging.stage(other.sources(), &rank.streams[2]);
    result.assign(kAll, -7);
    std::memcpy(rank.arena->result(1), result.data(), kBytes);  // released, and used again
    rank.between.record(&rank.streams[1]);
    rank.between.await();
    CHECK(lazy::all_are(rank.model.grads[0].data(), 0, kFirst, 5));
    CHECK(lazy::all_are(rank.model.grads[1].data(), 0, lazy::kSecond, 5));
    CHECK(runs_are(rank.arena->slot(), 3));
    give_back(ranks);
  }
}

TEST_CASE("a rank releases no result that a stream is still to read") {
  for (const bool leaves : {false, true}) {
    for (std::uint64_t seed = 0; seed < 50; ++seed) {
      lazy::reset(seed);
      ArenaSpec spec = Collective::spec(full_sync(1), 1, {{DType::float32, kAll}}, 4096);
      spec.device_flats = 1;
      const Segment segment = Segment::create(Arena::bytes(spec));
      const Arena arena(spec, segment.data());
      Options options;
      options.policy = full_sync(1);
      options.mapped = std::make_shared<MappedArena>(kGpu, arena.device_bytes(), spec.buffers);
      options.mapped->open({options.mapped->handle()}, 0);
      Rank rank(options.mapped);
      Collective collective(arena, 0, options);
      rank.model.backward(&rank.streams[0], 4);
      rank.staging.stage(rank.model.sources(), &rank.streams[0]);
      collective.arrive_and_wait();
      std::byte* result = options.mapped->result(collective.result_buffer());
      CHECK(runs_are(result, 4));
      rank.staging.load(collective.result_buffer(), rank.model.targets(), &rank.streams[1]);
      leaves ? collective.leave() : collective.release();
      std::memset(result, 0xFF, kBytes);
      rank.between.record(&rank.streams[1]);
      rank.between.await();
      CHECK(lazy::all_are(rank.model.grads[0].data(), 0, kFirst, 4));
      options.mapped->unmap();
      options.mapped->release();
    }
  }
}
