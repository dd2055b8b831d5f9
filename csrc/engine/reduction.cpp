#include "engine/reduction.hpp"

#include <algorithm>
#include <string>

#include "base/error.hpp"
#include "memory/remote.hpp"

namespace hvd_backup {
namespace {

// Copies of all contributors' pieces should stay in the second-level cache together.
constexpr std::size_t kScratchBytes = 256 * 1024;
constexpr std::size_t kLeastPiece = 16 * 1024;

// How long the rank that sealed a round may take to choose the buffer.
constexpr Nanoseconds kPrecedence = 200 * kMicrosecond;

// The words of RoundControl: (round + 1) << 24 | attempt << 16 | buffer.
constexpr unsigned kRoundShift = 24;
constexpr unsigned kAttemptShift = 16;
constexpr std::uint64_t kAttemptMask = 0xFF;
constexpr std::uint64_t kBufferMask = 0xFFFF;

}  // namespace

int claim_buffer(const Arena& arena, RoundNumber number) {
  const std::uint64_t released = arena.released_by_all();
  for (int i = 0; i < arena.spec().buffers; ++i) {
    ResultControl& control = arena.result_control(i);
    std::uint64_t owner = control.owner.load(std::memory_order_acquire);
    if (owner > released) continue;
    if (!control.owner.compare_exchange_strong(owner, number + 1, std::memory_order_acq_rel)) {
      continue;
    }
    control.next_chunk.store(0, std::memory_order_relaxed);
    control.chunks_done.store(0, std::memory_order_relaxed);
    return i;
  }
  return -1;
}

int published_buffer(const std::atomic<std::uint64_t>& word, RoundNumber number) {
  const std::uint64_t seen = word.load(std::memory_order_acquire);
  return seen >> kRoundShift == number + 1 ? static_cast<int>(seen & kBufferMask) : -1;
}

bool publish_buffer(std::atomic<std::uint64_t>& word, RoundNumber number, int buffer) {
  std::uint64_t seen = word.load(std::memory_order_acquire);
  if (seen >> kRoundShift == number + 1) return false;
  const std::uint64_t mine = (number + 1) << kRoundShift | static_cast<std::uint64_t>(buffer);
  return word.compare_exchange_strong(seen, mine, std::memory_order_acq_rel);
}

Reduction::Reduction(const Arena& arena, const Options& options, const Clock& clock, int rank)
    : arena_(arena),
      options_(options),
      clock_(clock),
      rank_(rank),
      stream_(arena.contribution_bytes() >= kStreamFrom) {}

void Reduction::begin(RoundNumber number, const std::vector<int>& contributors, bool first) {
  number_ = number;
  first_ = first;
  total_weight_ = 0;
  any_remote_ = false;
  progress_in_ = -1;
  begun_at_ = progress_at_ = clock_.now();
  contributors_.clear();
  operands_.clear();
  for (int rank : contributors) {
    const Entry& entry = arena_.entry(number, rank);
    Contributor contributor;
    contributor.rank = rank;
    contributor.operand = {arena_.slot(rank), entry.weight.load(std::memory_order_relaxed)};
    if (const std::uint64_t address = entry.address.load(std::memory_order_relaxed)) {
      contributor.address = address;
      contributor.pid = arena_.member(rank).pid.load(std::memory_order_relaxed);
      any_remote_ = true;
      if (rank == rank_) {
        contributor.pid = 0;
        // NOLINTNEXTLINE(performance-no-int-to-ptr): our own pointer, as we published it
        contributor.operand.data = reinterpret_cast<const std::byte*>(address);
      }
    }
    total_weight_ += contributor.operand.weight;
    contributors_.push_back(contributor);
    operands_.push_back(contributor.operand);
  }
}

bool Reduction::help() {
  if (published() >= 0) return true;
  Attempt now = attempt();
  if (now.buffer < 0 && (first_ || clock_.now() - begun_at_ > kPrecedence)) now = start_attempt(0);
  if (now.buffer < 0) return false;
  try {
    take_chunks(now.buffer);
  } catch (const PeerFailed&) {
    // A contributor whose round was finished without this rank may be gone by now.
    if (published() < 0) throw;
  }
  // Whichever attempt is complete first counts; they hold the same bits.
  if (finished(now.buffer) && publish_buffer(goal(), number_, now.buffer)) {
    arena_.round(number_).bell.ring();
  }
  if (published() >= 0) return true;
  if (is_stalled(now.buffer)) start_attempt(now.count + 1);
  return false;
}

Nanoseconds Reduction::wake_at() const {
  const Nanoseconds at = begun_at_ + kPrecedence;
  // Later, what is missing is a free buffer, and that is no reason to look all the time.
  return attempt().buffer < 0 && clock_.now() < at ? at : 0;
}

std::atomic<std::uint64_t>& Reduction::goal() const {
  RoundControl& round = arena_.round(number_);
  return arena_.is_part() ? round.summed : round.published;
}

int Reduction::published() const { return published_buffer(goal(), number_); }

const std::byte* Reduction::only_contribution() const {
  if (!arena_.is_part() || contributors_.size() != 1 || any_remote_) return nullptr;
  const Operand& only = contributors_.front().operand;
  for (const Flat& flat : arena_.spec().flats) {
    if (sum_type(flat.dtype) != flat.dtype) return nullptr;
  }
  return only.weight == 1 ? only.data : nullptr;
}

int Reduction::current() const { return attempt().buffer; }

bool Reduction::chunk_is_final(int buffer, std::size_t chunk) const {
  return arena_.chunk_done(buffer, chunk).load(std::memory_order_acquire) == stamp();
}

Reduction::Attempt Reduction::attempt() const {
  const std::uint64_t word = arena_.round(number_).attempt.load(std::memory_order_acquire);
  if (word >> kRoundShift != stamp()) return {};
  return {static_cast<unsigned>(word >> kAttemptShift & kAttemptMask),
          static_cast<int>(word & kBufferMask)};
}

Reduction::Attempt Reduction::start_attempt(unsigned count) {
  if (count > kAttemptMask) return attempt();
  std::atomic<std::uint64_t>& word = arena_.round(number_).attempt;
  std::uint64_t seen = word.load(std::memory_order_acquire);
  const bool begun = seen >> kRoundShift == stamp();
  if (begun && (seen >> kAttemptShift & kAttemptMask) >= count) return attempt();
  const int buffer = claim_buffer(arena_, number_);
  if (buffer < 0) return attempt();
  const std::uint64_t mine = stamp() << kRoundShift |
                             static_cast<std::uint64_t>(count) << kAttemptShift |
                             static_cast<std::uint64_t>(buffer);
  if (!word.compare_exchange_strong(seen, mine, std::memory_order_acq_rel)) {
    arena_.result_control(buffer).owner.store(0, std::memory_order_release);
  }
  progress_in_ = -1;
  progress_at_ = clock_.now();
  return attempt();
}

void Reduction::take_chunks(int buffer) {
  ResultControl& control = arena_.result_control(buffer);
  const std::vector<Chunk>& chunks = arena_.chunks();
  while (control.next_chunk.load(std::memory_order_relaxed) < chunks.size()) {
    const std::uint64_t i = control.next_chunk.fetch_add(1, std::memory_order_relaxed);
    if (i >= chunks.size()) return;
    reduce(chunks[i], arena_.result(buffer));
    // A contributor that gave up may have changed its memory while it was read.
    if (any_remote_ && arena_.failure()) return;
    arena_.chunk_done(buffer, i).store(stamp(), std::memory_order_release);
    control.chunks_done.fetch_add(1, std::memory_order_acq_rel);
  }
}

void Reduction::reduce(const Chunk& chunk, std::byte* result) {
  if (any_remote_) {
    reduce_remote(chunk, result);
  } else {
    reduce_in_place(chunk, result);
  }
}

void Reduction::reduce_in_place(const Chunk& chunk, std::byte* result) {
  for (std::size_t k = 0; k < contributors_.size(); ++k) {
    operands_[k].data = contributors_[k].operand.data + chunk.offset;
  }
  add(chunk, 0, chunk.count, result);
}

// Elements [first, first + count) of the chunk, from operands_.
void Reduction::add(const Chunk& chunk, std::size_t first, std::size_t count, std::byte* result) {
  const DType dtype = arena_.spec().flats[chunk.flat].dtype;
  if (arena_.is_part()) {
    weighted_sum(dtype, operands_.data(), operands_.size(), count,
                 result + chunk.sum_offset + first * size_of(sum_type(dtype)));
  } else {
    weighted_mean(dtype, operands_.data(), operands_.size(), count, total_weight_,
                  result + chunk.offset + first * size_of(dtype), stream_);
  }
}

void Reduction::reduce_remote(const Chunk& chunk, std::byte* result) {
  const DType dtype = arena_.spec().flats[chunk.flat].dtype;
  const std::size_t end = chunk.offset + chunk.count * size_of(dtype);
  const std::size_t piece = std::max(kScratchBytes / contributors_.size(), kLeastPiece) / 64 * 64;
  scratch_.resize(piece * contributors_.size());
  for (std::size_t at = chunk.offset; at < end; at += piece) {
    const std::size_t bytes = std::min(piece, end - at);
    for (std::size_t k = 0; k < contributors_.size(); ++k) {
      const Contributor& from = contributors_[k];
      operands_[k].data = from.operand.data + at;
      if (from.pid == 0) continue;
      std::byte* copy = scratch_.data() + k * piece;
      read(from, at, copy, bytes);
      operands_[k].data = copy;
    }
    add(chunk, (at - chunk.offset) / size_of(dtype), bytes / size_of(dtype), result);
  }
}

void Reduction::read(const Contributor& from, std::size_t at, std::byte* to,
                     std::size_t bytes) const {
  try {
    read_remote(from.pid, from.address + at, to, bytes);
  } catch (const SystemError& error) {
    throw PeerFailed("round " + std::to_string(number_) + ", rank " + std::to_string(rank_) +
                     ": rank " + std::to_string(from.rank) + " has died amid the round (" +
                     error.what() + "); start again from the last checkpoint");
  }
}

bool Reduction::finished(int buffer) const {
  const std::uint64_t done =
      arena_.result_control(buffer).chunks_done.load(std::memory_order_acquire);
  return done == arena_.chunks().size();
}

bool Reduction::is_stalled(int buffer) {
  const std::uint64_t done =
      arena_.result_control(buffer).chunks_done.load(std::memory_order_relaxed);
  const Nanoseconds now = clock_.now();
  // A reduction that another rank has begun again gets its time, too.
  if (done != progress_ || buffer != progress_in_) {
    progress_in_ = buffer;
    progress_ = done;
    progress_at_ = now;
  }
  return now - progress_at_ > options_.stall;
}

}  // namespace hvd_backup
