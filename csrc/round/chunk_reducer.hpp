#pragma once

#include <vector>

#include "arithmetic/mean.hpp"
#include "base/clock.hpp"
#include "memory/arena.hpp"
#include "round/options.hpp"

namespace hvd_backup {

/// Results from this size on go past the caches, which they would only empty (measured:
/// docs/measurements.md).
constexpr std::size_t kStreamFrom = std::size_t{8} << 20;

/// Takes the lowest free result buffer for round `number`, so that a window costs memory, and cold
/// caches, only while it is used. -1 if none is free.
int claim_buffer(const Arena& arena, RoundNumber number);

/// The buffer that a "published" word of RoundControl names for round `number`, or -1.
int published_buffer(const std::atomic<std::uint64_t>& word, RoundNumber number);
/// Names it, unless another was named for the round before. True if it is this one.
bool publish_buffer(std::atomic<std::uint64_t>& word, RoundNumber number, int buffer);

/// What a reduction writes: the round's result, or the sum over the node's contributors, in
/// sum_type(dtype), of which SumAllreduce makes the result.
enum class Output { result, node_sum };

/// A node's work on one sealed round: its contributors take chunks from a shared counter and write
/// their mean, or the node's sum, to a result buffer; whoever finishes the last chunk publishes the
/// buffer. If all of them abstain, it is zero.
///
/// Chunks of flats in device memory are added there, and copied to the results of all ranks.
///
/// A chunk is a pure function of the contributions, so work can be done twice. When a helper stops
/// in the middle of a chunk, the others begin the round again in another buffer. What the stopped
/// one writes when it comes back goes to a buffer that nobody reads, and that is not used for
/// another round before it, too, has released this one.
class ChunkReducer {
 public:
  ChunkReducer(const Arena& arena, const Options& options, const Clock& clock, int rank,
               Output output);

  /// Starts with round `number`, to which these ranks of the node contribute. One rank goes
  /// `first`; the others wait a little for it to choose a buffer, so that only one is touched.
  void begin(RoundNumber number, const std::vector<int>& contributors, bool first);

  /// Does what work there is. True once all of it is done.
  bool help();

  /// When help() should be called again though nobody rings; 0: no need.
  Nanoseconds wake_at() const;

  /// The buffer with the mean, or the node's sum, of the round, or -1.
  int published() const;

  /// If the node's sum needs no work, as it is the only contribution of the node and counts 1:
  /// where that lies. Else nullptr.
  const std::byte* only_contribution() const;

  /// The buffer that is being worked on, or -1.
  int current() const;

 private:
  struct Attempt {
    unsigned count = 0;
    int buffer = -1;
  };
  struct Contributor {
    int rank = 0;
    Operand operand;            // where it is, or will be copied to
    int pid = 0;                // 0: readable in place
    std::uint64_t address = 0;  // in process pid
  };

  /// A chunk that this rank has taken, and could not do: the kernel refuses to let it read a
  /// contribution before that is in its rank's slot.
  struct Owed {
    std::size_t chunk = 0;
    int buffer = -1;
  };

  Attempt attempt() const;
  Attempt start_attempt(unsigned count);
  void take_chunks(int buffer);
  bool take_chunk(std::size_t i, int buffer);
  bool reduce(const Chunk& chunk, int buffer);
  bool reduce_on_device(const Chunk& chunk, int buffer);
  void reduce_in_place(const Chunk& chunk, std::byte* result);
  void add(const Chunk& chunk, std::size_t first, std::size_t count, std::byte* result);
  bool read(const Contributor& from, std::size_t at, std::byte* to, std::size_t bytes) const;
  bool reduce_remote(const Chunk& chunk, std::byte* result);
  void ask_for_staging();
  void read_from_slots();
  bool finished(int buffer) const;
  std::atomic<std::uint64_t>& goal() const;
  bool is_stalled(int buffer);

  std::uint64_t stamp() const { return number_ + 1; }

  const Arena& arena_;
  const Options& options_;
  const Clock& clock_;
  int rank_;
  Output output_;
  bool stream_;
  RoundNumber number_ = 0;
  double divisor_ = 1;  // the weights, summed in ascending order of rank
  bool any_remote_ = false;
  bool first_ = false;
  std::optional<Owed> owed_;
  std::vector<Contributor> contributors_;  // without those that abstain
  std::vector<Operand> operands_;
  std::vector<std::byte> scratch_;
  int progress_in_ = -1;  // the buffer
  std::uint64_t progress_ = 0;
  Nanoseconds begun_at_ = 0;
  Nanoseconds progress_at_ = 0;
};

}  // namespace hvd_backup
