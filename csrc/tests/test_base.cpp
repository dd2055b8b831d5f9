// Layer base, and the conversions between float32 and the 16-bit types.
#include <array>
#include <cerrno>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "arithmetic/mean_kernels.hpp"
#include "base/checked_cast.hpp"
#include "base/clock.hpp"
#include "base/dtype.hpp"
#include "base/error.hpp"
#include "base/half.hpp"
#include "check.hpp"
#include "reference.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

/// A 16-bit type: its format and our conversions.
struct Half {
  DType dtype;
  HalfFormat format;
  float (*widen)(std::uint16_t);
  std::uint16_t (*narrow)(float);
};

const std::array<Half, 2> kHalves{
    Half{DType::float16, kFloat16, float16_to_float, float_to_float16},
    Half{DType::bfloat16, kBFloat16, bfloat16_to_float, float_to_bfloat16},
};

float next(float x, float to) { return std::nextafter(x, to); }

/// Every number half-way between two neighbors of the format, and its neighbors in float32: where
/// rounding is decided. From zero to beyond the largest finite number, both signs.
std::vector<float> decisions(HalfFormat format) {
  std::vector<float> numbers;
  const float infinity = std::numeric_limits<float>::infinity();
  const double beyond = std::ldexp(1.0, format.bias() + 1);
  for (std::uint16_t bits = 0; bits < format.infinity(); ++bits) {
    const auto above = static_cast<std::uint16_t>(bits + 1);
    const double upper = above == format.infinity() ? beyond : value_of(format, above);
    const auto middle = static_cast<float>(value_of(format, bits) / 2 + upper / 2);
    for (const float x : {middle, next(middle, 0), next(middle, infinity)}) {
      numbers.push_back(x);
      numbers.push_back(-x);
    }
  }
  return numbers;
}

std::vector<float> random_floats(std::size_t count) {
  std::mt19937_64 random(1);
  std::vector<float> numbers;
  while (numbers.size() < count) {
    const float x = bits::as_float(static_cast<std::uint32_t>(random()));
    if (!std::isnan(x)) numbers.push_back(x);
  }
  return numbers;
}

struct Kernels {
  std::string name;
  const MeanKernels* kernels;
};

std::vector<Kernels> all_kernels() {
  std::vector<Kernels> all{{"baseline", &baseline_kernels}};
  if (avx2_kernels() != nullptr) all.push_back({"AVX2", avx2_kernels()});
  return all;
}

/// `numbers` narrowed by the vector loops that finish a mean.
std::vector<std::uint16_t> narrowed(const MeanKernels& kernels, DType dtype,
                                    const std::vector<float>& numbers) {
  std::vector<std::uint16_t> bits(numbers.size());
  for (std::size_t i = 0; i < numbers.size(); i += kBlock) {
    const std::size_t n = std::min(kBlock, numbers.size() - i);
    kernels.finish(dtype, &numbers[i], 1, n, reinterpret_cast<std::byte*>(&bits[i]));
  }
  return bits;
}

/// `bits` widened by the vector loops that add operands up.
std::vector<float> widened(const MeanKernels& kernels, DType dtype,
                           const std::vector<std::uint16_t>& bits) {
  std::vector<float> numbers(bits.size());
  const double weight = 1;
  for (std::size_t i = 0; i < bits.size(); i += kBlock) {
    const std::size_t n = std::min(kBlock, bits.size() - i);
    const auto* operand = reinterpret_cast<const std::byte*>(&bits[i]);
    kernels.add(dtype, &operand, &weight, 1, true, n, &numbers[i]);
  }
  return numbers;
}

std::vector<std::uint16_t> all_bits() {
  std::vector<std::uint16_t> bits;
  for (unsigned i = 0; i <= 0xFFFF; ++i) bits.push_back(static_cast<std::uint16_t>(i));
  return bits;
}

bool same(double a, double b) { return a == b && std::signbit(a) == std::signbit(b); }

}  // namespace

TEST_CASE("a checked cast keeps every number that fits") {
  CHECK_EQ(checked_cast<int>(std::size_t{7}), 7);
  CHECK_EQ(checked_cast<std::int8_t>(-128), -128);
  CHECK_EQ(checked_cast<std::uint8_t>(255L), 255);
  CHECK_EQ(checked_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()),
           std::numeric_limits<std::int64_t>::max());
}

TEST_CASE("a checked cast refuses a number that does not fit, and names it") {
  CHECK_THROWS_WITH_AS(checked_cast<int>(std::int64_t{1} << 31), doctest::Contains("2147483648"),
                       InvalidArgument);
  CHECK_THROWS_WITH_AS(checked_cast<int>(std::int64_t{1} << 31), doctest::Contains("31 bits"),
                       InvalidArgument);
  CHECK_THROWS_WITH_AS(checked_cast<std::uint8_t>(256), doctest::Contains("256"), InvalidArgument);
  CHECK_THROWS_WITH_AS(checked_cast<unsigned>(-1), doctest::Contains("-1"), InvalidArgument);
  CHECK_THROWS_AS(checked_cast<int>(std::numeric_limits<unsigned>::max()), InvalidArgument);
  CHECK_THROWS_AS(checked_cast<std::int64_t>(std::numeric_limits<std::uint64_t>::max()),
                  InvalidArgument);
}

TEST_CASE("a dtype has the name that numpy and torch give it") {
  for (const DType dtype : kAllDTypes) CHECK_EQ(dtype_from_name(name_of(dtype)), dtype);
  CHECK_EQ(name_of(DType::float16), "float16");
  CHECK_EQ(name_of(DType::bfloat16), "bfloat16");
  CHECK_EQ(name_of(DType::float32), "float32");
  CHECK_EQ(name_of(DType::float64), "float64");
  CHECK_EQ(size_of(DType::float16) + size_of(DType::bfloat16), 4);
  CHECK_EQ(size_of(DType::float32) + size_of(DType::float64), 12);
}

TEST_CASE("an unknown dtype is refused with the ones there are") {
  CHECK_THROWS_WITH_AS(dtype_from_name("int8"), doctest::Contains("int8"), InvalidArgument);
  CHECK_THROWS_WITH_AS(dtype_from_name(""),
                       doctest::Contains("float16, bfloat16, float32 or float64"), InvalidArgument);
}

TEST_CASE("a system error says what failed and why") {
  CHECK_THROWS_WITH_AS(throw SystemError("cannot map 3 MiB", ENOMEM),
                       doctest::Contains("cannot map 3 MiB: Cannot allocate memory"), Error);
}

TEST_CASE("the clock does not go back") {
  Nanoseconds last = monotonic_clock().now();
  for (int i = 0; i < 1000; ++i) {
    const Nanoseconds now = monotonic_clock().now();
    CHECK(now >= last);
    last = now;
  }
}

TEST_CASE("each of the 65536 half-precision numbers is widened exactly and comes back") {
  for (const Half& half : kHalves) {
    for (const std::uint16_t bits : all_bits()) {
      const float wide = half.widen(bits);
      if (is_nan(half.format, bits)) {
        CHECK(std::isnan(wide));
        CHECK(is_nan(half.format, half.narrow(wide)));
      } else {
        CHECK(same(static_cast<double>(wide), value_of(half.format, bits)));
        CHECK_EQ(half.narrow(wide), bits);
      }
    }
  }
}

TEST_CASE("float32 is rounded to the nearest half-precision number, ties to even") {
  for (const Half& half : kHalves) {
    for (const float x : decisions(half.format)) {
      CHECK_EQ(half.narrow(x), bits_of(half.format, static_cast<double>(x)));
    }
    for (const float x : random_floats(200'000)) {
      CHECK_EQ(half.narrow(x), bits_of(half.format, static_cast<double>(x)));
    }
  }
}

TEST_CASE("float16 ends at 65504, and what rounds beyond it is infinite") {
  CHECK_EQ(float_to_float16(65504.0F), 0x7BFF);
  CHECK_EQ(float_to_float16(next(65520.0F, 0)), 0x7BFF);
  CHECK_EQ(float_to_float16(65520.0F), 0x7C00);
  CHECK_EQ(float_to_float16(-65536.0F), 0xFC00);
  CHECK_EQ(float_to_float16(std::numeric_limits<float>::max()), 0x7C00);
  CHECK_EQ(float_to_float16(-std::numeric_limits<float>::infinity()), 0xFC00);
  CHECK_EQ(float_to_bfloat16(std::numeric_limits<float>::max()), 0x7F80);
  CHECK_EQ(float_to_bfloat16(std::numeric_limits<float>::infinity()), 0x7F80);
}

TEST_CASE("the least numbers round to a subnormal or to zero, and keep their sign") {
  CHECK_EQ(float_to_float16(std::ldexp(1.0F, -24)), 0x0001);
  CHECK_EQ(float_to_float16(std::ldexp(1.0F, -25)), 0x0000);
  CHECK_EQ(float_to_float16(next(std::ldexp(-1.0F, -25), -1)), 0x8001);
  CHECK_EQ(float_to_float16(-0.0F), 0x8000);
  CHECK_EQ(float_to_float16(std::numeric_limits<float>::denorm_min()), 0x0000);
  CHECK_EQ(float_to_bfloat16(-std::numeric_limits<float>::denorm_min()), 0x8000);
}

TEST_CASE("no NaN becomes a number or infinite, wherever its payload is") {
  for (const std::uint32_t sign : {0U, 0x80000000U}) {
    for (std::uint32_t payload = 1; payload < 1U << 23; payload = payload * 2 + 1) {
      for (const std::uint32_t low : {payload, payload & -payload, (payload + 1) / 2}) {
        const float nan = bits::as_float(sign | 0x7F800000U | low);
        for (const Half& half : kHalves) {
          CHECK(is_nan(half.format, half.narrow(nan)));
          CHECK_EQ(half.narrow(nan) >> 15, sign >> 31);
        }
      }
    }
  }
}

TEST_CASE("the vector loops widen every half-precision number as the scalar code does") {
  const std::vector<std::uint16_t> bits = all_bits();
  for (const Half& half : kHalves) {
    for (const auto& [name, kernels] : all_kernels()) {
      const std::vector<float> wide = widened(*kernels, half.dtype, bits);
      for (std::size_t i = 0; i < bits.size(); ++i) {
        const float expected = half.widen(bits[i]);
        if (std::isnan(expected) ? std::isnan(wide[i]) : same(wide[i], expected)) continue;
        FAIL_CHECK(name, " widens ", bits[i], " wrongly");
      }
    }
  }
}

TEST_CASE("the vector loops round to half precision as the scalar code does") {
  for (const Half& half : kHalves) {
    std::vector<float> numbers = decisions(half.format);
    for (const float x : random_floats(100'003)) numbers.push_back(x);
    numbers.push_back(std::numeric_limits<float>::quiet_NaN());
    numbers.push_back(bits::as_float(0x7F800001U));
    for (const auto& [name, kernels] : all_kernels()) {
      const std::vector<std::uint16_t> bits = narrowed(*kernels, half.dtype, numbers);
      for (std::size_t i = 0; i < bits.size(); ++i) {
        const std::uint16_t expected = half.narrow(numbers[i]);
        if (bits[i] == expected) continue;
        FAIL_CHECK(name, " rounds ", numbers[i], " wrongly, as ", bits[i]);
      }
    }
  }
}
