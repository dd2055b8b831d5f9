// Where tensors on a device lie in a contribution.
#pragma once

#include <cstddef>
#include <vector>

#include "base/dtype.hpp"
#include "device/kernels.hpp"

namespace hvd_backup {

/// Tensors of one dtype that lie one after another in a contribution, with no other tensor between.
struct Run {
  DType tensor_dtype = DType::float32;
  DType flat_dtype = DType::float32;  ///< in the contribution; elements are cast between the two
  std::size_t offset = 0;             ///< bytes from the contribution's start
  std::vector<Slice> slices;          ///< from there, in elements; the first begins at 0
};

/// A run, ready to be packed and unpacked.
struct PackedRun {
  PackPlan plan;
  std::size_t offset;
  std::size_t bytes;  ///< from the first slice to the end of the last
  std::size_t first;  ///< of its tensors, among those of all runs
};

/// In the order of the runs. Throws InvalidArgument if one does not fit `bytes`.
std::vector<PackedRun> packed_runs(const std::vector<Run>& runs, std::size_t bytes, int device);

/// Tensors of all of them together.
std::size_t tensor_count(const std::vector<PackedRun>& runs);

/// Throws InvalidArgument unless that many were given.
void require_tensors(const std::vector<PackedRun>& runs, std::size_t given);

}  // namespace hvd_backup
