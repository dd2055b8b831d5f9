#include "base/dtype.hpp"

#include <array>
#include <string>
#include <utility>

#include "base/error.hpp"

namespace hvd_backup {
namespace {

constexpr std::array<std::pair<DType, std::string_view>, 4> kNames{{
    {DType::float16, "float16"},
    {DType::bfloat16, "bfloat16"},
    {DType::float32, "float32"},
    {DType::float64, "float64"},
}};

}  // namespace

std::string_view name_of(DType dtype) {
  for (const auto& [value, name] : kNames) {
    if (value == dtype) return name;
  }
  return "?";
}

DType dtype_from_name(std::string_view name) {
  for (const auto& [value, known] : kNames) {
    if (known == name) return value;
  }
  throw InvalidArgument("dtype " + std::string(name) +
                        " cannot be averaged: use float16, bfloat16, float32 or float64");
}

}  // namespace hvd_backup
