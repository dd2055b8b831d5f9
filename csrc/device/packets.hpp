// How the threads of a block share a run of elements: in packets that are one vector load each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "device/host_device.hpp"

namespace hvd_backup::kernels {

constexpr std::uint32_t kThreads = 256;   // of a block
constexpr std::size_t kVectorBytes = 16;  // the widest load of sm_80 and sm_90
constexpr std::uint32_t kTile = 8192;     // elements of a tensor that one block copies

/// N elements which are read or written at once.
template <class Value, std::uint32_t N>
struct alignas(sizeof(Value) * N < kVectorBytes ? sizeof(Value) * N : kVectorBytes) Packet {
  Value value[N];
};

/// Where in a run of elements the packets lie: [0, head) are single elements, then come `packets`
/// times N, then `tail` single ones; head < N and tail < N.
struct Split {
  std::uint32_t head;
  std::uint32_t packets;
  std::uint32_t tail;
};

/// Elements from `data` to the first address at which a packet may lie; `data` is aligned to Value.
template <class Value, std::uint32_t N>
HVD_HOST_DEVICE std::uint32_t head_of(const Value* data) {
  constexpr std::size_t kAlign = alignof(Packet<Value, N>);
  const std::size_t past = reinterpret_cast<std::uintptr_t>(data) % kAlign;
  return past == 0 ? 0 : static_cast<std::uint32_t>((kAlign - past) / sizeof(Value));
}

/// The split by which writes to out[0, count) are aligned: what is written in pieces costs more
/// than what is read in pieces, since reads have a cache before them.
template <std::uint32_t N, class Value>
HVD_HOST_DEVICE Split split_for(const Value* out, std::uint32_t count) {
  const std::uint32_t to_packet = head_of<Value, N>(out);
  const std::uint32_t head = to_packet < count ? to_packet : count;
  return {head, (count - head) / N, (count - head) % N};
}

template <std::uint32_t N, class Value>
HVD_HOST_DEVICE bool packet_aligned(const Value* data) {
  return head_of<Value, N>(data) == 0;
}

/// One vector load if kAligned, else N loads. No argument: a branch between the loads of a thread
/// would keep them from being under way together.
template <std::uint32_t N, bool kAligned, class Value>
HVD_HOST_DEVICE Packet<Value, N> load_packet(const Value* from) {
  if constexpr (kAligned) {
    return *reinterpret_cast<const Packet<Value, N>*>(from);
  } else {
    Packet<Value, N> packet;
    HVD_UNROLL
    for (std::uint32_t i = 0; i < N; ++i) packet.value[i] = from[i];
    return packet;
  }
}

#if defined(__CUDA_ARCH__)
// In words of PTX, as the compiler may part the store of an array, and does so after a branch.
__device__ inline void store_words(uint4* to, uint4 x) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x.x), "r"(x.y), "r"(x.z),
               "r"(x.w)
               : "memory");
}
__device__ inline void store_words(uint2* to, uint2 x) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(x.x), "r"(x.y) : "memory");
}
__device__ inline void store_words(std::uint32_t* to, std::uint32_t x) { *to = x; }

template <std::size_t kBytes>
using Words =
    std::conditional_t<kBytes == 4, std::uint32_t, std::conditional_t<kBytes == 8, uint2, uint4>>;
#endif

/// `to` is aligned, as split_for() has seen to.
template <std::uint32_t N, class Value>
HVD_HOST_DEVICE void store_packet(Value* to, const Packet<Value, N>& packet) {
#if defined(__CUDA_ARCH__)
  using Word = Words<sizeof packet>;
  static_assert(sizeof packet % sizeof(Word) == 0);
  HVD_UNROLL
  for (std::size_t i = 0; i < sizeof packet / sizeof(Word); ++i) {
    Word word;
    memcpy(&word, reinterpret_cast<const Word*>(&packet) + i, sizeof word);
    store_words(reinterpret_cast<Word*>(to) + i, word);
  }
#else
  *reinterpret_cast<Packet<Value, N>*>(to) = packet;
#endif
}

/// Calls one(i) for the single elements that are `thread`'s; a block has more threads than a head
/// or tail has elements.
template <std::uint32_t N, class One>
HVD_HOST_DEVICE void each_single(const Split& split, std::uint32_t thread, const One& one) {
  static_assert(N <= kThreads);
  if (thread < split.head) one(thread);
  if (thread < split.tail) one(split.head + split.packets * N + thread);
}

}  // namespace hvd_backup::kernels
