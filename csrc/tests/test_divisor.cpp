// Layer device: quotients without a division have a division's bits.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "base/checked_cast.hpp"
#include "check.hpp"
#include "device/divisor.hpp"

using namespace hvd_backup;
using kernels::Divisor;

namespace {

template <class Wide>
using Bits = std::conditional_t<sizeof(Wide) == 4, std::uint32_t, std::uint64_t>;

template <class Wide>
Bits<Wide> bits_of(Wide x) {
  Bits<Wide> bits{};
  std::memcpy(&bits, &x, sizeof x);
  return bits;
}

template <class Wide>
Wide from_bits(Bits<Wide> bits) {
  Wide x{};
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

/// Whether quick() is sure of x; fails if it is and has other bits than x / total.
template <class Wide>
bool is_sure(const Divisor<Wide>& divisor, Wide x) {
  bool sure = true;
  const Wide quick = divisor.quick(x, sure);
  if (sure && bits_of(quick) != bits_of(x / divisor.total)) {
    FAIL_CHECK(bits_of(x), " / ", divisor.total, " is ", bits_of(x / divisor.total), ", not ",
               bits_of(quick), " (bits)");
  }
  return sure;
}

template <class Wide>
bool has_divisions_bits_in_plain(Wide total, Wide x) {
  return bits_of(Divisor<Wide>::of(total).plain(x)) == bits_of(x / total);
}

template <class Wide>
void check_random(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  constexpr int kLeast = std::numeric_limits<Wide>::min_exponent;
  constexpr int kMost = std::numeric_limits<Wide>::max_exponent;
  const auto number = [&](int least, int most) {
    const auto fraction = from_bits<Wide>(checked_cast<Bits<Wide>>(
        bits_of(Wide{1}) | (random() & (bits_of(Wide{2}) - bits_of(Wide{1}) - 1))));
    std::uniform_int_distribution<int> exponent(least, most);
    return std::ldexp(random() % 2 ? fraction : -fraction, exponent(random));
  };
  for (int i = 0; i < 300; ++i) {
    const auto divisor = Divisor<Wide>::of(std::fabs(number(-40, 40)));
    for (int k = 0; k < 3000; ++k) {
      is_sure(divisor, number(kLeast - 30, kMost - 1));
      is_sure(divisor, number(-40, 10));
    }
  }
}

}  // namespace

TEST_CASE("every float of a binade, divided by a number, has the bits of that division") {
  const float almost_two = std::nextafter(2.0F, 0.0F);
  for (const float total : {3.0F, 5.0F, 7.0F, 127.0F, 8.0F, 0.1F, 1e6F / 3, almost_two}) {
    const auto divisor = Divisor<float>::of(total);
    for (std::uint32_t bits = bits_of(1.0F); bits < bits_of(2.0F); ++bits) {
      if (!is_sure(divisor, from_bits<float>(bits))) FAIL_CHECK("not sure");
    }
  }
}

TEST_CASE("numbers of any size and sign have the bits of the division, or are left to it") {
  check_random<float>(1);
  check_random<double>(2);
}

TEST_CASE("zeros keep their sign without a division; what has no place is left to one") {
  const auto check_type = [](auto one) {
    using Wide = decltype(one);
    using Limits = std::numeric_limits<Wide>;
    for (const double total : {1.0, 2.0, 3.0, 7.5, 1024.0}) {
      const auto divisor = Divisor<Wide>::of(static_cast<Wide>(total));
      CHECK(is_sure(divisor, Wide{0}));
      CHECK(is_sure(divisor, -Wide{0}));
      CHECK(is_sure(divisor, Wide{1e-20F}));
      CHECK(is_sure(divisor, Wide{-1e20F}));
      for (const Wide x : {Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN(),
                           Limits::denorm_min(), Limits::min(), Limits::max()}) {
        CHECK(!is_sure(divisor, x));
        if (!std::isnan(x)) CHECK(has_divisions_bits_in_plain(static_cast<Wide>(total), x));
      }
    }
    for (const double total : {1e-15, 1e15}) {
      CHECK(!is_sure(Divisor<Wide>::of(static_cast<Wide>(total)), Wide{1}));
    }
  };
  check_type(1.0F);
  check_type(1.0);
}
