#pragma once

#include <limits>
#include <string>
#include <type_traits>

#include "base/error.hpp"

namespace hvd_backup {

/// Converts between integer types; throws InvalidArgument when the value does not fit.
template <class To, class From>
To checked_cast(From value) {
  static_assert(std::is_integral_v<To> && std::is_integral_v<From>);
  const To converted = static_cast<To>(value);
  const bool same_sign = (value < From{}) == (converted < To{});
  if (static_cast<From>(converted) != value || !same_sign) {
    throw InvalidArgument("the number " + std::to_string(value) + " does not fit a type with " +
                          std::to_string(std::numeric_limits<To>::digits) + " bits");
  }
  return converted;
}

}  // namespace hvd_backup
