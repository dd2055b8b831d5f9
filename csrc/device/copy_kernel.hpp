// Pack and unpack: what one thread of one block does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "device/elements.hpp"
#include "device/packets.hpp"

namespace hvd_backup::kernels {

/// What one block copies: `count` <= kTile elements of one tensor.
struct Tile {
  std::uint64_t flat;    // index of the first element in the flat buffer
  std::uint64_t begin;   // and in the tensor
  std::uint32_t tensor;  // index of the tensor in the plan
  std::uint32_t count;
};

/// Tensors whose addresses fit the 4 KB of a kernel's arguments that every CUDA 12 can pass.
constexpr std::uint32_t kTensorsPerLaunch = 480;

/// Elements of type From are multiplied by `scale`, cast, and written as type To.
template <class From, class To>
struct CopyRun {
  using In = typename From::Value;
  using Out = typename To::Value;
  using Wide = std::conditional_t<std::is_same_v<From, Float64> || std::is_same_v<To, Float64>,
                                  double, float>;
  // By the wider of the two, so that neighbours in a warp touch neighbours in memory on both sides.
  static constexpr std::uint32_t kLanes =
      kVectorBytes / (sizeof(In) > sizeof(Out) ? sizeof(In) : sizeof(Out));
  static constexpr std::uint32_t kInFlight = 4;  // packets that a thread waits for at a time

  const In* from;  // nullptr: zeros
  Out* to;
  std::uint32_t count;
  Wide scale;

  HVD_HOST_DEVICE Out cast(In x, bool& finite) const {
    const Wide wide = static_cast<Wide>(From::load(x)) * scale;
    const Out out = To::store(static_cast<typename To::Wide>(wide));
    finite = finite && To::finite(out);
    return out;
  }

  HVD_HOST_DEVICE void clear(std::uint32_t thread) const {
    const Split split = split_for<kLanes>(to, count);
    Out* out = to;
    each_single<kLanes>(split, thread, [out](std::uint32_t i) { out[i] = 0; });
    for (std::uint32_t p = thread; p < split.packets; p += kThreads) {
      store_packet<kLanes>(to + split.head + p * kLanes, Packet<Out, kLanes>{});
    }
  }

  /// Returns whether all that this thread wrote is finite.
  HVD_HOST_DEVICE bool copy(std::uint32_t thread) const {
    const Split split = split_for<kLanes>(to, count);
    bool finite = true;
    each_single<kLanes>(split, thread, [&](std::uint32_t i) { to[i] = cast(from[i], finite); });
    const bool aligned = packet_aligned<kLanes>(from + split.head);
    for (std::uint32_t p = thread; p < split.packets; p += kThreads * kInFlight) {
      aligned ? copy_packets<true>(split, p, finite) : copy_packets<false>(split, p, finite);
    }
    return finite;
  }

  /// Packets p, p + kThreads, …: all loads first, so that they are under way together.
  template <bool kAligned>
  HVD_HOST_DEVICE void copy_packets(const Split& split, std::uint32_t p, bool& finite) const {
    Packet<In, kLanes> in[kInFlight] = {};
    HVD_UNROLL
    for (std::uint32_t u = 0; u < kInFlight; ++u) {
      const std::uint32_t at = p + u * kThreads;
      if (at >= split.packets) continue;
      in[u] = load_packet<kLanes, kAligned>(from + split.head + at * kLanes);
    }
    HVD_UNROLL
    for (std::uint32_t u = 0; u < kInFlight; ++u) {
      const std::uint32_t at = p + u * kThreads;
      if (at >= split.packets) return;
      Packet<Out, kLanes> out;
      HVD_UNROLL
      for (std::uint32_t i = 0; i < kLanes; ++i) out.value[i] = cast(in[u].value[i], finite);
      store_packet<kLanes>(to + split.head + at * kLanes, out);
    }
  }
};

/// Block b copies tiles[b], from its tensor to the flat buffer or back. The layout (tiles) lies in
/// memory, as it is the same in every step; the addresses travel as arguments, as they may not be,
/// and a table of them in memory would have to outlive the kernels that read it.
template <class From, class To>
struct CopyKernel {
  using Run = CopyRun<From, To>;

  const Tile* tiles;
  std::byte* flat;
  std::uint32_t* nonfinite;  // set to 1 if anything written is; nullptr: not looked at
  typename Run::Wide scale;
  std::uint32_t first_tensor;  // of the plan's, that tensors[0] is
  bool to_flat;
  std::byte* tensors[kTensorsPerLaunch];

  HVD_HOST_DEVICE void operator()(std::uint64_t block, std::uint32_t thread) const {
    using In = typename Run::In;
    using Out = typename Run::Out;
    const Tile tile = tiles[block];
    std::byte* tensor = tensors[tile.tensor - first_tensor];
    if (!to_flat) {
      if (tensor == nullptr) return;
      const Run run{reinterpret_cast<const In*>(flat) + tile.flat,
                    reinterpret_cast<Out*>(tensor) + tile.begin, tile.count, scale};
      note(run.copy(thread));
      return;
    }
    Out* to = reinterpret_cast<Out*>(flat) + tile.flat;
    if (tensor == nullptr) return Run{nullptr, to, tile.count, scale}.clear(thread);
    note(Run{reinterpret_cast<const In*>(tensor) + tile.begin, to, tile.count, scale}.copy(thread));
  }

  // All who write, write the same; nobody reads it before the kernel has ended.
  HVD_HOST_DEVICE void note(bool finite) const {
    if (!finite && nonfinite != nullptr) *nonfinite = 1;
  }
};

}  // namespace hvd_backup::kernels
