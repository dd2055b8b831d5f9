#include "device/kernels.hpp"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "base/error.hpp"
#include "device/cuda_calls.hpp"
#include "device/host_kernels.hpp"
#include "device/sum_kernel.hpp"

namespace hvd_backup {
namespace {

void require_aligned(const void* data, DType dtype, const std::string& what) {
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  if (address % size_of(dtype) == 0) return;
  throw InvalidArgument(what + " is at address " + std::to_string(address) +
                        ", which is no multiple of " + std::to_string(size_of(dtype)) +
                        ", the size of a " + std::string(name_of(dtype)));
}

void require_buffer(const void* data, std::size_t count, DType dtype, const std::string& what) {
  if (data == nullptr && count > 0) {
    throw InvalidArgument(what + " is a null pointer, but has " + std::to_string(count) +
                          " elements");
  }
  require_aligned(data, dtype, what);
}

std::string end_of(const Slice& slice) {
  return std::to_string(slice.offset) + " + " + std::to_string(slice.count);
}

void require_order(const Slice& slice, std::size_t t, std::size_t end) {
  constexpr std::size_t kMost = std::numeric_limits<std::size_t>::max() / sizeof(double);
  if (slice.offset > kMost || slice.count > kMost - slice.offset) {
    throw InvalidArgument("tensor " + std::to_string(t) + " would end at element " + end_of(slice) +
                          ", past what memory can be");
  }
  if (slice.offset >= end) return;
  throw InvalidArgument("tensor " + std::to_string(t) + " begins at element " +
                        std::to_string(slice.offset) + " of the flat buffer, before element " +
                        std::to_string(end) + ", where the one before it ends");
}

void run_sum(const SumTask& task, int device, void* stream) {
  if (task.operand_count == 0 || task.operand_count > kernels::kMostOperands) {
    throw InvalidArgument("a device adds 1 to " + std::to_string(kernels::kMostOperands) +
                          " operands at a time, not " + std::to_string(task.operand_count));
  }
  require_buffer(task.out, task.count, task.to, "the result");
  for (std::size_t k = 0; k < task.operand_count; ++k) {
    require_buffer(task.operands[k].data, task.count, task.from, "operand " + std::to_string(k));
  }
  if (task.count == 0) return;
  if (device == kHost) return host::sum(task);
  cuda::sum(task, device, stream);
}

void run_copy(const CopyTask& task, int device, void* stream) {
  if (device == kHost) return host::copy(task);
  cuda::copy(task, device, stream);
}

}  // namespace

Tiling tiles_of(const std::vector<Slice>& slices) {
  Tiling tiling;
  std::size_t end = 0;
  for (std::size_t t = 0; t < slices.size(); ++t) {
    const Slice& slice = slices[t];
    require_order(slice, t, end);
    end = slice.offset + slice.count;
    tiling.first_tile.push_back(tiling.tiles.size());
    for (std::size_t begin = 0; begin < slice.count; begin += kernels::kTile) {
      const std::size_t count = std::min<std::size_t>(kernels::kTile, slice.count - begin);
      tiling.tiles.push_back({slice.offset + begin, begin, static_cast<std::uint32_t>(t),
                              static_cast<std::uint32_t>(count)});
    }
  }
  tiling.first_tile.push_back(tiling.tiles.size());
  return tiling;
}

PackPlan::PackPlan(DType tensor_dtype, DType flat_dtype, const std::vector<Slice>& slices,
                   int device)
    : PackPlan(tensor_dtype, flat_dtype, slices, tiles_of(slices), device) {}

PackPlan::PackPlan(DType tensor_dtype, DType flat_dtype, const std::vector<Slice>& slices,
                   Tiling tiling, int device)
    : tensor_dtype_(tensor_dtype),
      flat_dtype_(flat_dtype),
      slices_(slices),
      device_(device),
      first_tile_(std::move(tiling.first_tile)),
      tiles_(device, tiling.tiles.size() * sizeof(kernels::Tile)) {
  tiles_.write(tiling.tiles.data());
}

std::size_t PackPlan::flat_count() const {
  return slices_.empty() ? 0 : slices_.back().offset + slices_.back().count;
}

CopyTask PackPlan::task(void* const* tensors, std::byte* flat) const {
  require_buffer(flat, flat_count(), flat_dtype_, "the flat buffer");
  for (std::size_t t = 0; t < slices_.size(); ++t) {
    if (slices_[t].count > 0) {
      require_aligned(tensors[t], tensor_dtype_, "tensor " + std::to_string(t));
    }
  }
  CopyTask task{};
  task.from = tensor_dtype_;
  task.to = flat_dtype_;
  task.first_tile = &first_tile_;
  task.tiles = reinterpret_cast<const kernels::Tile*>(tiles_.data());
  task.tensors = tensors;
  task.flat = flat;
  task.to_flat = true;
  task.scale = 1;
  return task;
}

void PackPlan::pack(const void* const* tensors, double scale, std::byte* flat,
                    std::uint32_t* nonfinite, void* stream) const {
  // A task serves both directions; this one only reads from tensors.
  CopyTask copy = task(const_cast<void* const*>(tensors), flat);
  copy.scale = scale;
  copy.nonfinite = nonfinite;
  run_copy(copy, device_, stream);
}

void PackPlan::unpack(const std::byte* flat, void* const* tensors, void* stream) const {
  CopyTask copy = task(tensors, const_cast<std::byte*>(flat));
  std::swap(copy.from, copy.to);
  copy.to_flat = false;
  run_copy(copy, device_, stream);
}

void weighted_mean(DType dtype, const Operand* operands, std::size_t operand_count,
                   std::size_t count, double total, std::byte* out, int device, void* stream) {
  run_sum({dtype, dtype, operands, operand_count, count, total, out}, device, stream);
}

void weighted_sum(DType dtype, const Operand* operands, std::size_t operand_count,
                  std::size_t count, std::byte* sum, int device, void* stream) {
  // What is not divided is a mean over a total of 1.
  run_sum({dtype, sum_type(dtype), operands, operand_count, count, 1, sum}, device, stream);
}

void mean_of_sums(DType dtype, const std::byte* const* sums, std::size_t sum_count,
                  std::size_t count, double total, std::byte* out, int device, void* stream) {
  std::vector<Operand> operands;
  operands.reserve(sum_count);
  for (std::size_t k = 0; k < sum_count; ++k) operands.push_back({sums[k], 1});
  run_sum({sum_type(dtype), dtype, operands.data(), sum_count, count, total, out}, device, stream);
}

}  // namespace hvd_backup
