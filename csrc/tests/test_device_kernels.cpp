// Layer device: pack and unpack, bit for bit.
#include <sys/mman.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/half.hpp"
#include "check.hpp"
#include "device/kernels.hpp"
#include "device/launch.hpp"
#include "device_case.hpp"
#include "reference.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

constexpr std::size_t kTile = kernels::kTile;
constexpr std::byte kGuard{0x5A};

struct Pair {
  DType tensor;
  DType flat;
};

std::vector<Pair> all_pairs() {
  std::vector<Pair> pairs;
  for (const DType tensor : kAllDTypes) {
    for (const DType flat : kAllDTypes) pairs.push_back({tensor, flat});
  }
  return pairs;
}

std::string name(const Pair& pair) {
  return std::string(name_of(pair.tensor)) + " to " + std::string(name_of(pair.flat));
}

/// Tensors at chosen places of one piece of memory, and a flat buffer; guards between them all.
struct Layout {
  std::vector<Slice> slices;
  std::vector<std::size_t> places;  // of the tensors, in elements
  std::size_t tensor_elements = 0;
  std::size_t flat_elements = 0;

  void add(std::size_t count, std::size_t tensor_gap, std::size_t flat_gap) {
    places.push_back(tensor_elements + tensor_gap);
    slices.push_back({flat_elements + flat_gap, count});
    tensor_elements = places.back() + count;
    flat_elements = slices.back().offset + count;
  }
};

/// Every count that is near a vector, a round of the threads, or a tile, and some others, at places
/// that are aligned to their elements and to no more.
Layout awkward_layout() {
  Layout layout;
  std::mt19937 random(11);
  const auto gap = [&random] { return random() % 9; };
  for (const std::size_t count :
       {std::size_t{0}, std::size_t{1}, std::size_t{2}, std::size_t{3}, std::size_t{7},
        std::size_t{8}, std::size_t{9}, std::size_t{15}, std::size_t{16}, std::size_t{17},
        std::size_t{0}, std::size_t{1023}, std::size_t{1024}, std::size_t{2049}, kTile - 1, kTile,
        kTile + 1, 2 * kTile + 13}) {
    layout.add(count, gap(), gap());
  }
  for (int i = 0; i < 20; ++i) layout.add(random() % 700, gap(), gap());
  return layout;
}

struct Problem {
  Problem(const Pair& types, Layout where, int on)
      : pair(types),
        layout(std::move(where)),
        plan(pair.tensor, pair.flat, layout.slices, on),
        tensors(on, (layout.tensor_elements + 9) * size_of(pair.tensor)),
        flat(on, (layout.flat_elements + 9) * size_of(pair.flat)) {}

  std::byte* place(std::size_t t) const {
    return tensors.data() + layout.places[t] * size_of(pair.tensor);
  }
  std::vector<void*> addresses() const {
    std::vector<void*> all;
    for (std::size_t t = 0; t < layout.places.size(); ++t) all.push_back(place(t));
    return all;
  }

  /// Noise in the one, guards in the other.
  void fill_tensors(std::uint64_t seed) {
    fill_with_noise(pair.tensor, tensors.host.data(), layout.tensor_elements, seed);
    std::fill(flat.host.begin(), flat.host.end(), kGuard);
    send();
  }
  void fill_flat(std::uint64_t seed) {
    fill_with_noise(pair.flat, flat.host.data(), layout.flat_elements, seed);
    std::fill(tensors.host.begin(), tensors.host.end(), kGuard);
    send();
  }
  void send() {
    tensors.send();
    flat.send();
  }

  void pack(double scale, std::uint32_t* nonfinite = nullptr) {
    plan.pack(addresses().data(), scale, flat.data(), nonfinite, nullptr);
    flat.fetch();
  }
  void unpack() {
    plan.unpack(flat.data(), addresses().data(), nullptr);
    tensors.fetch();
  }

  /// What pack and unpack should leave: written element by element.
  std::vector<std::byte> packed(double scale) const {
    std::vector<std::byte> all(flat.host.size(), kGuard);
    each([&](std::size_t in_tensors, std::size_t in_flat) {
      store(pair.flat, all.data(), in_flat,
            scaled(load(pair.tensor, tensors.host.data(), in_tensors), scale));
    });
    return all;
  }
  std::vector<std::byte> unpacked() const {
    std::vector<std::byte> all(tensors.host.size(), kGuard);
    each([&](std::size_t in_tensors, std::size_t in_flat) {
      store(pair.tensor, all.data(), in_tensors, load(pair.flat, flat.host.data(), in_flat));
    });
    return all;
  }

  double scaled(double x, double scale) const {
    if (pair.tensor == DType::float64 || pair.flat == DType::float64) return x * scale;
    return static_cast<double>(static_cast<float>(x) * static_cast<float>(scale));
  }

  template <class Use>
  void each(const Use& use) const {
    for (std::size_t t = 0; t < layout.slices.size(); ++t) {
      for (std::size_t i = 0; i < layout.slices[t].count; ++i) {
        use(layout.places[t] + i, layout.slices[t].offset + i);
      }
    }
  }

  Pair pair;
  Layout layout;
  PackPlan plan;
  Mirror tensors;
  Mirror flat;
};

void expect(bool same, const Pair& pair, const std::string& what) {
  if (!same) FAIL_CHECK(what, ", ", name(pair), ": other bits");
}

}  // namespace

DEVICE_CASE("pack casts and scales every tensor into its slice, and writes nothing else") {
  for (const Pair& pair : all_pairs()) {
    Problem problem(pair, awkward_layout(), device);
    for (const double scale : {1.0, 0.3}) {
      problem.fill_tensors(3);
      problem.pack(scale);
      expect(same_bytes(problem.flat.host, problem.packed(scale)), pair, "pack");
    }
  }
}

DEVICE_CASE("unpack casts every slice into its tensor, and writes nothing else") {
  for (const Pair& pair : all_pairs()) {
    Problem problem(pair, awkward_layout(), device);
    problem.fill_flat(4);
    problem.unpack();
    expect(same_bytes(problem.tensors.host, problem.unpacked()), pair, "unpack");
  }
}

DEVICE_CASE("tensors and slices are aligned to their elements, and need no more") {
  for (const Pair& pair : all_pairs()) {
    for (std::size_t shift = 0; shift < 81; ++shift) {
      Layout layout;
      layout.add(100, shift / 9, shift % 9);
      Problem problem(pair, layout, device);
      problem.fill_tensors(shift);
      problem.pack(1);
      expect(same_bytes(problem.flat.host, problem.packed(1)), pair, "pack");
      problem.fill_flat(shift);
      problem.unpack();
      expect(same_bytes(problem.tensors.host, problem.unpacked()), pair, "unpack");
    }
  }
}

DEVICE_CASE("pack and unpack take more than a thousand tensors, most of them small") {
  Layout layout;
  std::mt19937 random(5);
  for (int t = 0; t < 1100; ++t) {
    layout.add(t % 7 == 0 ? 0 : random() % (t % 50 == 0 ? 20000 : 90), random() % 4, random() % 4);
  }
  for (const Pair& pair :
       {Pair{DType::float32, DType::float32}, Pair{DType::bfloat16, DType::float32}}) {
    Problem problem(pair, layout, device);
    problem.fill_tensors(1);
    problem.pack(0.5);
    CHECK(same_bytes(problem.flat.host, problem.packed(0.5)));
    problem.fill_flat(2);
    problem.unpack();
    CHECK(same_bytes(problem.tensors.host, problem.unpacked()));
  }
}

DEVICE_CASE("the addresses of the tensors may be others at every step of one plan") {
  Layout layout;
  for (int t = 0; t < 6; ++t) layout.add(300, 0, 0);
  Problem problem({DType::float32, DType::float32}, layout, device);
  problem.fill_tensors(1);
  problem.pack(1);
  CHECK(same_bytes(problem.flat.host, problem.packed(1)));
  std::reverse(problem.layout.places.begin(), problem.layout.places.end());
  problem.pack(1);
  CHECK(same_bytes(problem.flat.host, problem.packed(1)));
}

DEVICE_CASE("a tensor that is not there is packed as zeros, and left out by unpack") {
  for (const Pair& pair : all_pairs()) {
    Layout layout;
    for (const std::size_t count : {5U, 9000U, 33U, 0U}) layout.add(count, 1, 1);
    Problem problem(pair, layout, device);
    problem.fill_tensors(6);
    std::vector<void*> some = problem.addresses();
    some[1] = some[3] = nullptr;
    problem.plan.pack(some.data(), 2, problem.flat.data(), nullptr, nullptr);
    problem.flat.fetch();
    std::vector<std::byte> expected = problem.packed(2);
    const std::size_t element = size_of(pair.flat);
    std::memset(expected.data() + layout.slices[1].offset * element, 0, 9000 * element);
    expect(same_bytes(problem.flat.host, expected), pair, "pack");

    problem.fill_flat(7);
    expected = problem.unpacked();
    problem.plan.unpack(problem.flat.data(), some.data(), nullptr);
    problem.tensors.fetch();
    const std::size_t at = layout.places[1] * size_of(pair.tensor);
    std::memset(expected.data() + at, 0x5A, 9000 * size_of(pair.tensor));
    expect(same_bytes(problem.tensors.host, expected), pair, "unpack");
  }
}

DEVICE_CASE("an infinite or undefined element sets the flag, wherever it lies; no other does") {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const Pair& pair : all_pairs()) {
    Layout layout;
    layout.add(17, 1, 3);
    layout.add(kTile + 40, 0, 0);
    Problem problem(pair, layout, device);
    problem.fill_tensors(8);
    Mirror flag(device, sizeof(std::uint32_t));
    flag.send();
    auto* nonfinite = reinterpret_cast<std::uint32_t*>(flag.data());
    const auto flagged = [&] {
      problem.pack(1, nonfinite);
      flag.fetch();
      const bool is = flag.host[0] == std::byte{1};
      return is;
    };
    CHECK(!flagged());
    for (const std::size_t i : {1UL, 10UL, 17UL, 18UL, 4000UL, kTile + 17, kTile + 57}) {
      std::vector<std::byte> before = problem.tensors.host;
      store(pair.tensor, problem.tensors.host.data(), i, i % 2 == 0 ? kInfinity : -kInfinity);
      problem.tensors.send();
      CHECK(flagged());
      CHECK(std::isinf(load(pair.flat, problem.flat.host.data(), i + 2)));
      problem.tensors.host = before;
      problem.tensors.send();
      CHECK(flagged());  // it is never taken back
      flag.host.assign(sizeof(std::uint32_t), std::byte{0});
      flag.send();
      CHECK(!flagged());
    }
  }
}

DEVICE_CASE("NaN stays NaN in every cast, and sets the flag") {
  for (const Pair& pair : all_pairs()) {
    Layout layout;
    layout.add(200, 0, 0);
    Problem problem(pair, layout, device);
    problem.fill_tensors(8);
    const std::size_t element = size_of(pair.tensor);
    std::memset(problem.tensors.host.data() + 77 * element, 0xFF, element);  // NaN in all dtypes
    problem.tensors.send();
    Mirror flag(device, sizeof(std::uint32_t));
    flag.send();
    problem.pack(0.5, reinterpret_cast<std::uint32_t*>(flag.data()));
    flag.fetch();
    CHECK(flag.host[0] == std::byte{1});
    CHECK(std::isnan(load(pair.flat, problem.flat.host.data(), 77)));
    CHECK(std::isfinite(load(pair.flat, problem.flat.host.data(), 76)));
  }
}

DEVICE_CASE("a finite element that the scale or the cast makes infinite sets the flag, too") {
  struct Overflow {
    Pair pair;
    double value;
    double scale;
  };
  for (const Overflow& overflow : {Overflow{{DType::float32, DType::float16}, 70000, 1},
                                   Overflow{{DType::float16, DType::float16}, 40000, 2},
                                   Overflow{{DType::float64, DType::float32}, 1e300, 1},
                                   Overflow{{DType::float64, DType::bfloat16}, 1e39, 1},
                                   Overflow{{DType::float32, DType::float32}, 3e38, 1.5}}) {
    Layout layout;
    layout.add(50, 0, 0);
    Problem problem(overflow.pair, layout, device);
    problem.fill_tensors(1);
    Mirror flag(device, sizeof(std::uint32_t));
    flag.send();
    auto* nonfinite = reinterpret_cast<std::uint32_t*>(flag.data());
    problem.pack(overflow.scale, nonfinite);
    flag.fetch();
    CHECK(flag.host[0] == std::byte{0});
    store(overflow.pair.tensor, problem.tensors.host.data(), 20, overflow.value);
    problem.tensors.send();
    problem.pack(overflow.scale, nonfinite);
    flag.fetch();
    CHECK(flag.host[0] == std::byte{1});
  }
}

DEVICE_CASE("half types are rounded as half.hpp does: every number of 16 bits, and many of 32") {
  for (const DType half : {DType::float16, DType::bfloat16}) {
    Layout halves;
    halves.add(65536, 0, 0);
    Problem widen({half, DType::float32}, halves, device);
    for (std::uint32_t i = 0; i < 65536; ++i) {
      const auto bits = static_cast<std::uint16_t>(i);
      std::memcpy(widen.tensors.host.data() + 2UL * i, &bits, 2);
    }
    widen.tensors.send();
    widen.pack(1);
    for (std::size_t i = 0; i < 65536; ++i) {
      const double value = load(half, widen.tensors.host.data(), i);
      const double got = load(DType::float32, widen.flat.host.data(), i);
      CHECK(((std::isnan(value) && std::isnan(got)) || value == got));
    }

    Layout singles;
    singles.add(1U << 18, 0, 0);
    Problem narrow({DType::float32, half}, singles, device);
    // Near each number of 16 bits: itself, the tie above it, and their neighbours.
    for (std::uint32_t i = 0; i < 1U << 18; ++i) {
      const unsigned shift = half == DType::float16 ? 13 : 16;
      const std::uint32_t base = (static_cast<std::uint32_t>(mix(i)) >> shift) << shift;
      const std::uint32_t bits = base + ((i & 1) << (shift - 1)) + (i >> 1 & 3) - 1;
      std::memcpy(narrow.tensors.host.data() + 4UL * i, &bits, 4);
    }
    narrow.tensors.send();
    narrow.pack(1);
    for (std::size_t i = 0; i < 1U << 18; ++i) {
      const double value = load(DType::float32, narrow.tensors.host.data(), i);
      const double got = load(half, narrow.flat.host.data(), i);
      std::uint16_t bits = 0;
      std::memcpy(&bits, narrow.flat.host.data() + 2 * i, 2);
      const HalfFormat format = half == DType::float16 ? kFloat16 : kBFloat16;
      CHECK(((std::isnan(value) && std::isnan(got)) || bits == bits_of(format, value)));
    }
  }
}

DEVICE_CASE("a plan may have no tensors, or none but empty ones") {
  const PackPlan none(DType::float32, DType::float16, {}, device);
  none.pack(nullptr, 1, nullptr, nullptr, nullptr);
  none.unpack(nullptr, nullptr, nullptr);
  CHECK_EQ(none.flat_count(), 0);
  const PackPlan empty(DType::float32, DType::float16, {{0, 0}, {0, 0}}, device);
  const void* const from[] = {nullptr, nullptr};
  void* const to[] = {nullptr, nullptr};
  empty.pack(from, 1, nullptr, nullptr, nullptr);
  empty.unpack(nullptr, to, nullptr);
  CHECK_EQ(empty.tensor_count(), 2);
}
