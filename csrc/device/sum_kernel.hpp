// The weighted mean over peers' slots: what one thread of one block does.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/divisor.hpp"
#include "device/elements.hpp"
#include "device/packets.hpp"

namespace hvd_backup::kernels {

/// Operands that fit a kernel's arguments; a node with as many GPUs does not exist.
constexpr std::uint32_t kMostOperands = 128;

/// out[i] = (w0 x0[i] + w1 x1[i] + …) / total, in the order given. Each element is read and written
/// by one thread, so that `out` may be an operand. Every product and sum is rounded by itself, as
/// on the CPU: compiled with --fmad=false.
template <class In, class Out>
struct SumKernel {
  using Value = typename In::Value;
  using Wide = typename In::Wide;
  static constexpr std::uint32_t kLanes = kVectorBytes / sizeof(Value);
  static constexpr std::uint32_t kPackets = 2;  // of an operand, that a thread waits for at a time
  static constexpr std::uint32_t kElements = kThreads * kPackets * kLanes;  // of a block
  /// Operands whose packets are waited for together; of those in pieces, registers hold one's.
  template <bool kAligned>
  static constexpr std::uint32_t kGroup = kAligned ? 4 : 1;

  typename Out::Value* out;
  std::uint64_t count;
  Divisor<Wide> total;
  std::uint32_t operand_count;
  bool aligned;  // all operands are, wherever `out` is
  Wide weights[kMostOperands];
  const Value* operands[kMostOperands];

  HVD_HOST_DEVICE void operator()(std::uint64_t block, std::uint32_t thread) const {
    const std::uint64_t first = block * kElements;
    const std::uint64_t left = count - first;
    const auto mine = static_cast<std::uint32_t>(left < kElements ? left : kElements);
    const Split split = split_for<kLanes>(out + first, mine);
    each_single<kLanes>(split, thread, [&](std::uint32_t i) { add_one(first + i); });
    if (thread >= split.packets) return;
    const std::uint64_t base = first + split.head;
    aligned ? add_packets<true>(base, split.packets, thread)
            : add_packets<false>(base, split.packets, thread);
  }

  HVD_HOST_DEVICE static typename Out::Value narrow(Wide mean) {
    return Out::store(static_cast<typename Out::Wide>(mean));
  }

  HVD_HOST_DEVICE void add_one(std::uint64_t i) const {
    Wide sum = weights[0] * In::load(operands[0][i]);
    HVD_ROLL
    for (std::uint32_t k = 1; k < operand_count; ++k) {
      sum = sum + weights[k] * In::load(operands[k][i]);
    }
    out[i] = narrow(total.plain(sum));
  }

  /// Packets p and p + kThreads, of `packets` that begin at element `base`.
  template <bool kAligned>
  HVD_HOST_DEVICE void add_packets(std::uint64_t base, std::uint32_t packets,
                                   std::uint32_t p) const {
    Wide sum[kPackets][kLanes] = {};
    add_group<kAligned, true>(base, packets, p, 0, sum);
    for (std::uint32_t k = kGroup<kAligned>; k < operand_count; k += kGroup<kAligned>) {
      add_group<kAligned, false>(base, packets, p, k, sum);
    }
    HVD_UNROLL
    for (std::uint32_t u = 0; u < kPackets; ++u) {
      const std::uint32_t at = p + u * kThreads;
      if (at >= packets) return;
      finish(base + std::uint64_t{at} * kLanes, sum[u]);
    }
  }

  /// The mean of the packet at element i. No branch comes between the quotients, or each would be
  /// stored by itself.
  HVD_HOST_DEVICE void finish(std::uint64_t i, const Wide (&sum)[kLanes]) const {
    Packet<typename Out::Value, kLanes> mean;
    bool sure = true;
    HVD_UNROLL
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
      mean.value[lane] = narrow(total.quick(sum[lane], sure));
    }
    if (sure) return store_packet<kLanes>(out + i, mean);
    HVD_ROLL
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) add_one(i + lane);
  }

  /// Adds operands k to k + kGroup<kAligned> - 1: all loads first, so that they are under way
  /// together.
  template <bool kAligned, bool kFirst>
  HVD_HOST_DEVICE void add_group(std::uint64_t base, std::uint32_t packets, std::uint32_t p,
                                 std::uint32_t k, Wide (&sum)[kPackets][kLanes]) const {
    Packet<Value, kLanes> in[kGroup<kAligned>][kPackets] = {};
    HVD_UNROLL
    for (std::uint32_t g = 0; g < kGroup<kAligned>; ++g) {
      HVD_UNROLL
      for (std::uint32_t u = 0; u < kPackets; ++u) {
        const std::uint32_t at = p + u * kThreads;
        if (k + g >= operand_count || at >= packets) continue;
        in[g][u] = load_packet<kLanes, kAligned>(operands[k + g] + base + at * kLanes);
      }
    }
    HVD_UNROLL
    for (std::uint32_t g = 0; g < kGroup<kAligned>; ++g) {
      if (k + g >= operand_count) return;
      HVD_UNROLL
      for (std::uint32_t u = 0; u < kPackets; ++u) {
        if (p + u * kThreads < packets) add_packet<kFirst>(g, k + g, in[g][u], sum[u]);
      }
    }
  }

  template <bool kFirst>
  HVD_HOST_DEVICE void add_packet(std::uint32_t g, std::uint32_t k, const Packet<Value, kLanes>& in,
                                  Wide (&sum)[kLanes]) const {
    HVD_UNROLL
    for (std::uint32_t i = 0; i < kLanes; ++i) {
      const Wide term = weights[k] * In::load(in.value[i]);
      sum[i] = kFirst && g == 0 ? term : sum[i] + term;
    }
  }
};

}  // namespace hvd_backup::kernels
