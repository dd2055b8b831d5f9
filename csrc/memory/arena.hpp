#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/dtype.hpp"
#include "base/types.hpp"
#include "memory/futex.hpp"
#include "memory/pages.hpp"
#include "memory/shared_state.hpp"
#include "protocol/round_ledger.hpp"

namespace hvd_backup {

/// All tensors of one dtype, laid out one after another.
struct Flat {
  DType dtype = DType::float32;
  std::size_t count = 0;
};

/// A piece of a contribution that one helper reduces at a time.
struct Chunk {
  std::size_t flat = 0;    ///< index of the flat buffer
  std::size_t offset = 0;  ///< bytes from the start of the slot or result
  std::size_t count = 0;   ///< elements
  /// Bytes from the start of a buffer that holds sums, which are in sum_type(dtype).
  std::size_t sum_offset = 0;
};

/// The sizes of an arena.
struct ArenaSpec {
  int world = 1;
  /// Rounds that may be open or unloaded at a time: the window and the round in use.
  int records = 2;
  /// Results that may exist at a time: one per record, and one per reduction begun again.
  int buffers = 2;
  std::vector<Flat> flats;
  std::size_t chunk_bytes = 128 * 1024;
  /// The ranks of this node, ascending; empty: all of the world.
  std::vector<int> ranks = {};
  /// The number of flats, from the first on, that lie in memory of the ranks' devices, in slots and
  /// results of the same layout. Their places here are never touched, and so cost no memory.
  std::size_t device_flats = 0;
  std::size_t device_chunk_bytes = std::size_t{16} << 20;
};

/// Why no rank can go on. Written once, by the first rank to fail.
enum class FailureKind : std::uint32_t { none, timeout, peer };

struct Failure {
  FailureKind kind = FailureKind::none;
  int rank = -1;
  std::string text;
};

/// A rank's contribution to one round, written before it arrives.
struct Entry {
  std::atomic<Nanoseconds> arrived_at;
  std::atomic<double> weight;
  /// Where the bytes are in the contributor's own address space; 0: in its slot.
  std::atomic<std::uint64_t> address;
};

/// One result of the window, and the work on it.
struct ResultControl {
  /// Number of the round it belongs to, plus one; 0 when it never belonged to one.
  std::atomic<std::uint64_t> owner;
  alignas(64) std::atomic<std::uint64_t> next_chunk;
  alignas(64) std::atomic<std::uint64_t> chunks_done;
};

/// The shared words of a round, apart from the ledger's. "Published" words are (round + 1) << 24 |
/// buffer.
struct RoundControl {
  Bell bell;
  /// (round + 1) << 24 | attempt << 16 | buffer: the reduction being worked on. See reduction.cpp.
  std::atomic<std::uint64_t> attempt;
  /// Where the result can be read.
  std::atomic<std::uint64_t> published;
  /// In worlds of several nodes: where the sum over the node's contributors can be read.
  std::atomic<std::uint64_t> summed;
  /// In worlds of several nodes: where the result will be. Some of its chunks may be there already.
  std::atomic<std::uint64_t> begun;
};

/// The words by which the other ranks see a rank.
struct Member {
  /// Rounds whose result this rank no longer reads.
  alignas(64) std::atomic<std::uint64_t> released;
  /// In worlds of several nodes: the last round it has arrived in, plus one.
  std::atomic<std::uint64_t> arrived;
  /// For a rank of another node whose window was full: the round it has yet to load, plus one.
  std::atomic<std::uint64_t> behind;
  /// Process id, for reading its memory; 0 until it has joined.
  std::atomic<std::int32_t> pid;
  /// 1 when it has left in good order.
  std::atomic<std::uint32_t> left;
  /// 1 while its kernels may use the device memory of the others.
  std::atomic<std::uint32_t> adding;
  /// 1 when other ranks may not read its private memory: its contributions go to its slot.
  std::atomic<std::uint32_t> stages;
  /// 1 when it has unmapped the device memory of the others and will not map it again.
  std::atomic<std::uint32_t> unmapped;
};

/// The shared memory of a node, as structures: control words, contribution slots, results.
/// Owns nothing; all zero is a valid start.
class Arena {
 public:
  /// Bytes that an arena of this spec needs.
  static std::size_t bytes(const ArenaSpec& spec);

  /// The bytes that only the rank's own process touches: the slot of a rank that is alone on its
  /// node, if the slot is large.
  static Range own_part(const ArenaSpec& spec);

  Arena(const ArenaSpec& spec, std::byte* memory);

  const ArenaSpec& spec() const { return spec_; }
  const std::vector<Chunk>& chunks() const { return chunks_; }
  /// The ranks of this node, ascending.
  const std::vector<int>& ranks() const { return ranks_; }
  /// The ranks of this node that are in `ranks`.
  std::vector<int> ranks_among(const std::vector<int>& ranks) const;
  bool has(int rank) const { return local_[static_cast<std::size_t>(rank)] >= 0; }
  /// Whether the world has other nodes. If so, a service thread takes part, as one more member.
  bool spans_nodes() const { return ranks_.size() < static_cast<std::size_t>(spec_.world); }
  Member& service() const { return member(spec_.world); }
  /// Bytes of one contribution, all flats.
  std::size_t contribution_bytes() const { return contribution_bytes_; }
  /// The part of contribution_bytes() that lies in memory of a device: the first flats.
  std::size_t device_bytes() const;
  /// Byte offset of flat `i` within a slot or a result.
  std::size_t flat_offset(std::size_t i) const { return flat_offsets_[i]; }

  Member& member(int rank) const;
  RoundControl& round(RoundNumber number) const;
  SharedState ledger(RoundNumber number) const;
  Entry& entry(RoundNumber number, int rank) const;
  std::byte* slot(int rank) const;
  ResultControl& result_control(int buffer) const;
  std::byte* result(int buffer) const;
  /// Bytes from the start of the arena to result(buffer), a multiple of the page size.
  std::size_t result_offset(int buffer) const;
  /// Per chunk: round + 1 once the chunk of this buffer is final.
  std::atomic<std::uint64_t>& chunk_done(int buffer, std::size_t chunk) const;
  bool is_final(RoundNumber number, int buffer, std::size_t chunk) const {
    return chunk_done(buffer, chunk).load(std::memory_order_acquire) == number + 1;
  }

  /// Rung when a rank releases a round.
  Bell& released_bell() const;
  /// Rounds that every rank of the node, and its service thread, have released.
  std::uint64_t released_by_all() const;
  /// Whether every rank of the node has announced its arrival in this round, and in no later one.
  bool all_arrived(RoundNumber number) const;

  /// Ends every rank's waits with this error. Later failures do not replace the first.
  void fail(const Failure& failure) const;
  /// The failure, if there is one.
  std::optional<Failure> failure() const;

 private:
  struct Header;
  struct Offsets {
    std::size_t members, rounds, ledgers, entries, controls, flags, slots, results, end;
  };

  Header& header() const;
  /// The writers of a ledger: every rank, or the service thread alone.
  int writers() const { return spans_nodes() ? 1 : spec_.world; }
  std::size_t record(RoundNumber number) const;
  Offsets place() const;
  bool owns_its_slot() const;

  ArenaSpec spec_;
  std::byte* memory_;
  std::vector<int> ranks_;
  std::vector<int> local_;  // by rank of the world: its place among ranks_, or -1
  std::vector<std::size_t> flat_offsets_;
  std::vector<Chunk> chunks_;
  std::size_t contribution_bytes_ = 0;
  std::size_t slot_stride_ = 0;    // bytes from one slot to the next
  std::size_t result_stride_ = 0;  // from one result to the next
  Offsets offsets_{};
};

}  // namespace hvd_backup
