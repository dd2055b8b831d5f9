// From tasks to kernels, the same for GPUs and for their twin: `grid(name, kernel, blocks)` runs
// kernel(block, thread) for all blocks and threads. Types are chosen here, so that cuda_kernels.cu
// and host_kernels.cpp are no more than a grid.
#pragma once

#include <algorithm>
#include <type_traits>

#include "device/copy_kernel.hpp"
#include "device/divisor.hpp"
#include "device/sum_kernel.hpp"
#include "device/tasks.hpp"

namespace hvd_backup::kernels {

template <class From, class To, class Grid>
void launch_copy_typed(const CopyTask& task, const Grid& grid) {
  CopyKernel<From, To> kernel{};
  kernel.flat = task.flat;
  kernel.nonfinite = task.nonfinite;
  kernel.scale = static_cast<decltype(kernel.scale)>(task.scale);
  kernel.to_flat = task.to_flat;
  const std::vector<std::uint64_t>& first_tile = *task.first_tile;
  const std::size_t tensors = first_tile.size() - 1;
  for (std::size_t first = 0; first < tensors; first += kTensorsPerLaunch) {
    const std::size_t last = std::min<std::size_t>(first + kTensorsPerLaunch, tensors);
    const std::uint64_t blocks = first_tile[last] - first_tile[first];
    if (blocks == 0) continue;
    kernel.tiles = task.tiles + first_tile[first];
    kernel.first_tensor = static_cast<std::uint32_t>(first);
    for (std::size_t t = first; t < last; ++t) {
      kernel.tensors[t - first] = static_cast<std::byte*>(task.tensors[t]);
    }
    grid(task.to_flat ? "pack" : "unpack", kernel, blocks);
  }
}

template <class Grid>
void launch_copy(const CopyTask& task, const Grid& grid) {
  with_type(task.from, [&](auto from) {
    with_type(task.to,
              [&](auto to) { launch_copy_typed<decltype(from), decltype(to)>(task, grid); });
  });
}

template <class In, class Out, class Grid>
void launch_sum_typed(const SumTask& task, const Grid& grid) {
  using Kernel = SumKernel<In, Out>;
  using Value = typename Kernel::Value;
  using Wide = typename Kernel::Wide;
  Kernel kernel{};
  kernel.out = reinterpret_cast<typename Out::Value*>(task.out);
  kernel.count = task.count;
  kernel.total = Divisor<Wide>::of(static_cast<Wide>(task.total));
  kernel.operand_count = static_cast<std::uint32_t>(task.operand_count);
  kernel.aligned = true;
  // A block's first packet is this far from its first element, as kElements is a whole number of
  // packets.
  const std::uint32_t head = head_of<typename Out::Value, Kernel::kLanes>(kernel.out);
  for (std::size_t k = 0; k < task.operand_count; ++k) {
    kernel.operands[k] = reinterpret_cast<const Value*>(task.operands[k].data);
    kernel.weights[k] = static_cast<Wide>(task.operands[k].weight);
    kernel.aligned = kernel.aligned && packet_aligned<Kernel::kLanes>(kernel.operands[k] + head);
  }
  grid("sum", kernel, (kernel.count + Kernel::kElements - 1) / Kernel::kElements);
}

/// A dtype to itself, to its sum_type(), or back from it.
template <class Grid>
void launch_sum(const SumTask& task, const Grid& grid) {
  with_type(task.from, [&](auto from) {
    using In = decltype(from);
    if (task.from == task.to) return launch_sum_typed<In, In>(task, grid);
    if constexpr (std::is_same_v<typename In::Value, std::uint16_t>) {
      launch_sum_typed<In, Float32>(task, grid);
    } else if constexpr (std::is_same_v<In, Float32>) {
      if (task.to == DType::float16) return launch_sum_typed<In, Float16>(task, grid);
      launch_sum_typed<In, BFloat16>(task, grid);
    }
  });
}

}  // namespace hvd_backup::kernels
