// Quotients by a number that is the same for a whole kernel.
#pragma once

#include <cmath>
#include <limits>

#include "device/host_device.hpp"

namespace hvd_backup::kernels {

/// x / total, with the bits of that division. On a GPU it is a call and a branch for every element,
/// of which zeros take the slow side, and which part a thread's vector store into single ones. Here
/// quick() is five operations for all but very small and very large x.
template <class Wide>
struct Divisor {
  Wide total;    // positive
  Wide inverse;  // 1 / total, rounded to nearest
  bool exact;    // then x * inverse is the quotient before rounding
  bool near;     // to 1, so that quick() has room on both sides

  static Divisor of(Wide total) {
    int exponent = 0;
    const Wide fraction = std::frexp(total, &exponent);
    const int distance = exponent < 0 ? -exponent : exponent;
    return {total, 1 / total, fraction == Wide{0.5} && distance < 100, distance < 30};
  }

  HVD_HOST_DEVICE Wide plain(Wide x) const { return exact ? x * inverse : x / total; }

  /// `sure` stays true if this is plain(x). By P. Markstein, "Computation of elementary functions
  /// on the IBM RISC System/6000 processor" (1990): with an inverse that is rounded to nearest, the
  /// residual of a quotient that is off by less than one unit in the last place corrects it to the
  /// nearest, if nothing underflows. The first correction brings it as near as that.
  HVD_HOST_DEVICE Wide quick(Wide x, bool& sure) const {
    const Wide first = x * inverse;
    const Wide second = std::fma(std::fma(-first, total, x), inverse, first);
    const Wide third = std::fma(std::fma(-second, total, x), inverse, second);
    const Wide size = std::fabs(x);
    // No && and ||, which may branch.
    sure &= (near & (size > kLeast) & (size < 1 / kLeast)) | (size == 0);
    return std::copysign(third, x);  // a negative zero has lost its sign
  }

 private:
  // Above it the residual, two precisions below x, does not underflow, and neither does the
  // quotient, thirty binades below x: 2^-90 for float, 2^-957 for double.
  static constexpr Wide kLeast =
      std::numeric_limits<Wide>::min() / std::numeric_limits<Wide>::epsilon() * 8192;
};

}  // namespace hvd_backup::kernels
