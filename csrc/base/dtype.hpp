#pragma once

#include <cstddef>
#include <string_view>

namespace hvd_backup {

/// Element types of gradients. Half types are summed in float32.
enum class DType : unsigned char { float16, bfloat16, float32, float64 };

/// Bytes of one element.
constexpr std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::float16:
    case DType::bfloat16:
      return 2;
    case DType::float32:
      return 4;
    case DType::float64:
      return 8;
  }
  return 0;
}

/// "float16", "bfloat16", "float32", "float64": the names numpy and torch use.
std::string_view name_of(DType dtype);

/// The inverse of name_of. Throws InvalidArgument, with all names, for an unknown one.
DType dtype_from_name(std::string_view name);

}  // namespace hvd_backup
