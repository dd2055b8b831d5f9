// Layer memory: bells, lock-free shared words, and the arena's map.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.hpp"
#include "memory/arena.hpp"
#include "memory/futex.hpp"
#include "memory/shared_state.hpp"
#include "world.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

constexpr Nanoseconds kTooLong = 30 * kSecond;  // longer than the limit of the cases that use it

/// Words shared by `writers`, in memory of their own.
struct Shared {
  Shared(int writers, std::size_t words)
      : memory(SharedState::bytes(writers, words)), state(memory.data(), writers, words) {}

  Memory memory;
  SharedState state;
};

/// A stretch of an arena that one thing occupies.
struct Stretch {
  std::string what;
  std::byte* start;
  std::size_t bytes;
  std::size_t alignment;
};

template <class T>
Stretch stretch(const std::string& what, T& object) {
  return {what, reinterpret_cast<std::byte*>(&object), sizeof object, alignof(T)};
}

/// Everything in an arena whose address can be had.
std::vector<Stretch> stretches(const Arena& arena) {
  const ArenaSpec& spec = arena.spec();
  std::vector<Stretch> all{stretch("released_bell", arena.released_bell())};
  for (int rank = 0; rank < spec.world; ++rank) {
    all.push_back(stretch("member", arena.member(rank)));
    all.push_back({"slot", arena.slot(rank), arena.contribution_bytes(), 4096});
  }
  for (int i = 0; i < spec.records; ++i) {
    const auto number = static_cast<RoundNumber>(i);
    all.push_back(stretch("round", arena.round(number)));
    for (int rank = 0; rank < spec.world; ++rank) {
      all.push_back(stretch("entry", arena.entry(number, rank)));
    }
  }
  for (int buffer = 0; buffer < spec.buffers; ++buffer) {
    all.push_back(stretch("control", arena.result_control(buffer)));
    all.push_back({"result", arena.result(buffer), arena.contribution_bytes(), 4096});
    for (std::size_t chunk = 0; chunk < arena.chunks().size(); ++chunk) {
      all.push_back(stretch("flag", arena.chunk_done(buffer, chunk)));
    }
  }
  return all;
}

std::vector<ArenaSpec> specs() {
  const std::vector<Flat> one{{DType::float32, 1000}};
  const std::vector<Flat> mixed{
      {DType::float16, 77}, {DType::float64, 129}, {DType::bfloat16, 0}, {DType::float32, 1}};
  return {{1, 2, 2, one, 256},   {2, 4, 5, mixed, 128},      {3, 2, 3, {}, 64},
          {65, 3, 5, one, 4096}, {7, 5, 9, mixed, 1U << 20}, {5, 4, 4, {{DType::float16, 1}}, 64}};
}

}  // namespace

TEST_CASE("shared words begin as zero and keep what was written last") {
  Shared shared(2, 9);
  std::vector<std::uint64_t> words(9, 7);
  shared.state.read(words.data());
  CHECK_EQ(words, std::vector<std::uint64_t>(9, 0));
  for (std::uint64_t i = 1; i <= 100; ++i) {
    const int writer = i % 3 == 0 ? 0 : 1;  // the same one twice running, too
    const std::uint64_t before = shared.state.update(
        writer, [i](std::uint64_t* all, bool&) { return std::exchange(all[8], i); });
    CHECK_EQ(before, i - 1);
  }
  shared.state.read(words.data());
  CHECK_EQ(words[8], 100);
}

TEST_CASE("an update that declares itself unmodified leaves the words alone") {
  Shared shared(1, 2);
  const int outcome = shared.state.update(0, [](std::uint64_t* words, bool& modified) {
    words[0] = 5;
    modified = false;
    return 42;
  });
  std::vector<std::uint64_t> words(2, 1);
  shared.state.read(words.data());
  CHECK_EQ(outcome, 42);
  CHECK_EQ(words, std::vector<std::uint64_t>(2, 0));
}

TEST_CASE("every update by many threads counts once, and no reader sees a torn state") {
  for (const std::size_t words : {1U, 8U, 9U, 71U}) {
    constexpr int kWriters = 5;
    constexpr std::uint64_t kUpdates = kThreadSanitizer ? 4000 : 30'000;
    Shared shared(kWriters, words);
    check::in_threads(kWriters + 1, [&](int me) {
      std::vector<std::uint64_t> seen(words);
      std::uint64_t last = 0;
      for (std::uint64_t i = 0; i < kUpdates; ++i) {
        if (me < kWriters) {
          shared.state.update(me, [&](std::uint64_t* all, bool&) {
            // Each word is derived from the count: a mixture of two states would show.
            for (std::size_t k = 1; k < words; ++k)
              CHECK_EQ(all[k], all[0] == 0 ? 0 : mix(all[0] + k));
            ++all[0];
            for (std::size_t k = 1; k < words; ++k) all[k] = mix(all[0] + k);
            return true;
          });
        }
        shared.state.read(seen.data());
        for (std::size_t k = 1; k < words; ++k) {
          if (seen[0] != 0) CHECK_EQ(seen[k], mix(seen[0] + k));
        }
        CHECK(seen[0] >= last);
        last = seen[0];
      }
    });
    std::vector<std::uint64_t> end(words);
    shared.state.read(end.data());
    CHECK_EQ(end[0], kWriters * kUpdates);
  }
}

TEST_CASE("a writer stopped amid an update holds up nobody, and still counts once" *
          doctest::timeout(20)) {
  Shared shared(2, 3);
  int runs = 0;
  shared.state.update(0, [&](std::uint64_t* mine, bool&) {
    if (++runs == 1) {
      for (int i = 0; i < 1000; ++i) {
        shared.state.update(1, [](std::uint64_t* words, bool&) { return ++words[0]; });
      }
    }
    return ++mine[0];
  });
  std::vector<std::uint64_t> words(3);
  shared.state.read(words.data());
  CHECK_EQ(runs, 2);
  CHECK_EQ(words[0], 1001);
}

TEST_CASE("nothing in an arena overlaps anything else, and all is aligned") {
  for (const ArenaSpec& spec : specs()) {
    const std::size_t bytes = Arena::bytes(spec);
    const Memory memory(bytes);
    const Arena arena(spec, memory.data());
    std::vector<Stretch> all = stretches(arena);
    std::sort(all.begin(), all.end(), [](const Stretch& a, const Stretch& b) {
      return std::make_pair(a.start, a.bytes) < std::make_pair(b.start, b.bytes);
    });
    const std::byte* end = memory.data();
    for (const Stretch& one : all) {
      const auto address = reinterpret_cast<std::uintptr_t>(one.start);
      if (one.start < end) FAIL_CHECK(one.what, " overlaps what is before");
      if (address % one.alignment != 0) FAIL_CHECK(one.what, " misaligned");
      end = one.start + one.bytes;
    }
    CHECK(end <= memory.data() + bytes);
    for (int i = 0; i < spec.buffers; ++i) {
      CHECK(arena.result(i) == memory.data() + arena.result_offset(i));
      CHECK_EQ(arena.result_offset(i) % 4096, 0);
    }
  }
}

TEST_CASE("an arena's own part is the large slot of a rank that is alone on its node") {
  ArenaSpec spec;
  spec.world = 3;
  spec.ranks = {1};
  const auto own_part = [&spec](std::size_t floats) {
    spec.flats = {{DType::float32, floats}};
    return Arena::own_part(spec);
  };
  const std::size_t large = kHugePage / 2 / sizeof(float);
  for (const std::size_t floats : {large, 3 * large, 4 * large, 5 * large}) {
    const Range own = own_part(floats);
    const Memory memory(Arena::bytes(spec));
    const Arena arena(spec, memory.data());
    CHECK_EQ(own.begin % kHugePage, 0);
    CHECK_EQ(own.end % kHugePage, 0);
    CHECK(arena.slot(1) == memory.data() + own.begin);
    CHECK(own.begin + arena.contribution_bytes() <= own.end);
    CHECK(own.end <= arena.result_offset(0));
  }
  CHECK(own_part(large / 2).is_empty());
  spec.ranks = {1, 2};
  CHECK(own_part(large).is_empty());
  spec.world = 1;
  spec.ranks = {};
  CHECK(own_part(large).is_empty());
}

TEST_CASE("the ledgers and the failure of an arena share no byte with anything else") {
  for (const ArenaSpec& spec : specs()) {
    const Memory memory(Arena::bytes(spec));
    const Arena arena(spec, memory.data());
    const std::size_t words = RoundLedger::words(spec.world);
    const std::string text(479, 'x');
    arena.fail({FailureKind::peer, 3, text});
    const std::vector<Stretch> all = stretches(arena);
    for (const Stretch& one : all) std::memset(one.start, 0xA5, one.bytes);
    for (int i = 0; i < spec.records; ++i) {
      for (int round = 0; round < 4; ++round) {
        const int rank = (i + round) % spec.world;  // first and second copies of several writers
        arena.ledger(static_cast<RoundNumber>(i)).update(rank, [&](std::uint64_t* to, bool&) {
          for (std::size_t k = 0; k < words; ++k) to[k] = mix(static_cast<std::uint64_t>(i) + k);
          return true;
        });
      }
    }
    for (int i = 0; i < spec.records; ++i) {
      std::vector<std::uint64_t> got(words);
      arena.ledger(static_cast<RoundNumber>(i)).read(got.data());
      for (std::size_t k = 0; k < words; ++k) {
        CHECK_EQ(got[k], mix(static_cast<std::uint64_t>(i) + k));
      }
    }
    for (const Stretch& one : all) {
      CHECK(std::all_of(one.start, one.start + one.bytes,
                        [](std::byte b) { return b == std::byte{0xA5}; }));
    }
    CHECK_EQ(arena.failure()->text, text);
  }
}

TEST_CASE("the chunks cover every element once, in order, within one flat each") {
  for (const ArenaSpec& spec : specs()) {
    const Memory memory(Arena::bytes(spec));
    const Arena arena(spec, memory.data());
    std::vector<std::size_t> covered(spec.flats.size());
    for (const Chunk& chunk : arena.chunks()) {
      const std::size_t element = size_of(spec.flats[chunk.flat].dtype);
      CHECK_EQ(chunk.offset, arena.flat_offset(chunk.flat) + covered[chunk.flat] * element);
      CHECK_EQ(chunk.offset % 64, 0);
      CHECK(chunk.count > 0);
      CHECK(chunk.count * element <= spec.chunk_bytes);
      covered[chunk.flat] += chunk.count;
    }
    for (std::size_t i = 0; i < spec.flats.size(); ++i) {
      CHECK_EQ(covered[i], spec.flats[i].count);
      CHECK_EQ(arena.flat_offset(i) % 64, 0);
    }
  }
}

TEST_CASE("records are used in turn, so that a round and its window never share one") {
  const ArenaSpec spec{2, 4, 4, {{DType::float32, 8}}, 64};
  const Memory memory(Arena::bytes(spec));
  const Arena arena(spec, memory.data());
  for (RoundNumber number = 0; number < 9; ++number) {
    std::set<const void*> records;
    for (RoundNumber i = number; i < number + 4; ++i) records.insert(&arena.round(i));
    CHECK_EQ(records.size(), 4);
    CHECK((&arena.round(number) == &arena.round(number + 4)));
    CHECK((&arena.entry(number, 1) == &arena.entry(number + 4, 1)));
  }
}

TEST_CASE("a round is released by all when the last rank has released it") {
  const ArenaSpec spec{3, 2, 2, {{DType::float32, 8}}, 64};
  const Memory memory(Arena::bytes(spec));
  const Arena arena(spec, memory.data());
  CHECK_EQ(arena.released_by_all(), 0);
  arena.member(0).released.store(5);
  arena.member(2).released.store(4);
  CHECK_EQ(arena.released_by_all(), 0);
  arena.member(1).released.store(kUnbounded);
  CHECK_EQ(arena.released_by_all(), 4);
}

TEST_CASE("the first failure stays, whole, whoever fails after it") {
  const ArenaSpec spec{4, 2, 2, {{DType::float32, 8}}, 64};
  const Memory memory(Arena::bytes(spec));
  Arena arena(spec, memory.data());
  CHECK(!arena.failure());
  check::in_threads(4, [&](int rank) {
    arena.fail({FailureKind::peer, rank, std::string(100, static_cast<char>('a' + rank))});
    const std::optional<Failure> failure = arena.failure();
    if (!failure) return;  // another rank is amid writing it
    CHECK_EQ(failure->text, std::string(100, static_cast<char>('a' + failure->rank)));
  });
  const int first = arena.failure()->rank;
  arena.fail({FailureKind::timeout, 9, "later"});
  CHECK_EQ(arena.failure()->rank, first);
  CHECK_EQ(arena.failure()->kind, FailureKind::peer);
}

TEST_CASE("a failure's text is cut where its room ends") {
  const ArenaSpec spec{1, 2, 2, {{DType::float32, 8}}, 64};
  const Memory memory(Arena::bytes(spec));
  Arena arena(spec, memory.data());
  arena.fail({FailureKind::timeout, 0, std::string(2000, 'y')});
  CHECK_EQ(arena.failure()->text, std::string(479, 'y'));
  CHECK_EQ(arena.failure()->kind, FailureKind::timeout);
}

TEST_CASE("a failure wakes who sleeps on any bell" * doctest::timeout(20)) {
  const ArenaSpec spec{3, 2, 2, {{DType::float32, 8}}, 64};
  const Memory memory(Arena::bytes(spec));
  const Arena arena(spec, memory.data());
  std::atomic<int> asleep{0};
  check::in_threads(4, [&](int me) {
    if (me == 3) {
      while (asleep.load() != 3) std::this_thread::yield();
      arena.fail({FailureKind::peer, 0, "text"});
      return;
    }
    Bell& bell = me == 2 ? arena.released_bell() : arena.round(static_cast<RoundNumber>(me)).bell;
    const std::uint32_t ticket = bell.ticket();
    asleep.fetch_add(1);
    bell.sleep(ticket, kTooLong);
    CHECK(arena.failure().has_value());
  });
}
