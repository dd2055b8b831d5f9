// What is to be launched, types as data: between the checks in kernels.cpp and the launchers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "arithmetic/mean.hpp"
#include "base/dtype.hpp"
#include "device/copy_kernel.hpp"

namespace hvd_backup {

/// Tiles in the order of tensors; those of tensor t are [first_tile[t], first_tile[t + 1]).
struct Tiling {
  std::vector<kernels::Tile> tiles;
  std::vector<std::uint64_t> first_tile;
};

/// Pack or unpack.
struct CopyTask {
  DType from;
  DType to;
  const std::vector<std::uint64_t>* first_tile;
  const kernels::Tile* tiles;  // where the kernel can read them
  void* const* tensors;
  std::byte* flat;
  bool to_flat;
  double scale;
  std::uint32_t* nonfinite;
};

/// out = (w0 x0 + w1 x1 + …) / total.
struct SumTask {
  DType from;
  DType to;
  const Operand* operands;
  std::size_t operand_count;
  std::size_t count;
  double total;
  std::byte* out;
};

}  // namespace hvd_backup
