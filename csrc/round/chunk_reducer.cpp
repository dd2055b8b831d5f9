#include "round/chunk_reducer.hpp"

#include <algorithm>
#include <string>
#include <utility>

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

/// Tells who leaves that this rank may be using device memory of others. Sequentially consistent,
/// as is `left`: either this rank sees that another has left, or that one sees this rank adding.
class Adding {
 public:
  explicit Adding(Member& member) : member_(member) { member_.adding.store(1); }
  Adding(const Adding&) = delete;
  Adding& operator=(const Adding&) = delete;
  ~Adding() { member_.adding.store(0); }

 private:
  Member& member_;
};

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

ChunkReducer::ChunkReducer(const Arena& arena, const Options& options, const Clock& clock, int rank,
                           Output output)
    : arena_(arena),
      options_(options),
      clock_(clock),
      rank_(rank),
      output_(output),
      stream_(arena.contribution_bytes() >= kStreamFrom) {}

void ChunkReducer::begin(RoundNumber number, const std::vector<int>& contributors, bool first) {
  number_ = number;
  first_ = first;
  double total = 0;
  any_remote_ = false;
  owed_.reset();
  progress_in_ = -1;
  begun_at_ = progress_at_ = clock_.now();
  contributors_.clear();
  operands_.clear();
  for (int rank : contributors) {
    const Entry& entry = arena_.entry(number, rank);
    const double weight = entry.weight.load(std::memory_order_relaxed);
    if (weight == 0) continue;
    Contributor contributor;
    contributor.rank = rank;
    contributor.operand = {arena_.slot(rank), weight};
    if (const std::uint64_t address = entry.address.load(std::memory_order_acquire)) {
      contributor.address = address;
      contributor.pid = arena_.member(rank).pid.load(std::memory_order_relaxed);
      any_remote_ = true;
      if (rank == rank_) {
        contributor.pid = 0;
        // NOLINTNEXTLINE(performance-no-int-to-ptr): our own pointer, as we published it
        contributor.operand.data = reinterpret_cast<const std::byte*>(address);
      }
    }
    total += weight;
    contributors_.push_back(contributor);
    operands_.push_back(contributor.operand);
  }
  divisor_ = options_.sum ? 1 : total;
}

bool ChunkReducer::help() {
  if (published() >= 0) return true;
  Attempt now = attempt();
  if (now.buffer < 0 && (first_ || clock_.now() - begun_at_ > kPrecedence)) now = start_attempt(0);
  if (now.buffer < 0) return false;
  if (any_remote_) read_from_slots();
  try {
    if (!any_remote_ || !owed_) take_chunks(now.buffer);
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

Nanoseconds ChunkReducer::wake_at() const {
  const Nanoseconds at = begun_at_ + kPrecedence;
  // Later, what is missing is a free buffer, and that is no reason to look all the time.
  return attempt().buffer < 0 && clock_.now() < at ? at : 0;
}

std::atomic<std::uint64_t>& ChunkReducer::goal() const {
  RoundControl& round = arena_.round(number_);
  return output_ == Output::node_sum ? round.summed : round.published;
}

int ChunkReducer::published() const { return published_buffer(goal(), number_); }

const std::byte* ChunkReducer::only_contribution() const {
  if (output_ != Output::node_sum || contributors_.size() != 1 || any_remote_) return nullptr;
  const Operand& only = contributors_.front().operand;
  for (const Flat& flat : arena_.spec().flats) {
    if (sum_type(flat.dtype) != flat.dtype) return nullptr;
  }
  return only.weight == 1 ? only.data : nullptr;
}

int ChunkReducer::current() const { return attempt().buffer; }

ChunkReducer::Attempt ChunkReducer::attempt() const {
  const std::uint64_t word = arena_.round(number_).attempt.load(std::memory_order_acquire);
  if (word >> kRoundShift != stamp()) return {};
  return {static_cast<unsigned>(word >> kAttemptShift & kAttemptMask),
          static_cast<int>(word & kBufferMask)};
}

ChunkReducer::Attempt ChunkReducer::start_attempt(unsigned count) {
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

void ChunkReducer::take_chunks(int buffer) {
  ResultControl& control = arena_.result_control(buffer);
  const std::vector<Chunk>& chunks = arena_.chunks();
  const auto owed = std::exchange(owed_, std::nullopt);
  if (owed && owed->buffer == buffer && !take_chunk(owed->chunk, buffer)) return;
  while (control.next_chunk.load(std::memory_order_relaxed) < chunks.size()) {
    const std::uint64_t i = control.next_chunk.fetch_add(1, std::memory_order_relaxed);
    if (i >= chunks.size() || !take_chunk(i, buffer)) return;
  }
}

// False if it cannot be done now.
bool ChunkReducer::take_chunk(std::size_t i, int buffer) {
  if (!reduce(arena_.chunks()[i], buffer)) {
    if (any_remote_) owed_ = {i, buffer};
    return false;
  }
  // A contributor that gave up may have changed its memory while it was read.
  if (any_remote_ && arena_.failure()) return false;
  arena_.chunk_done(buffer, i).store(stamp(), std::memory_order_release);
  arena_.result_control(buffer).chunks_done.fetch_add(1, std::memory_order_acq_rel);
  return true;
}

// False if the chunk cannot be done: not yet, or it need not be any more.
bool ChunkReducer::reduce(const Chunk& chunk, int buffer) {
  if (chunk.flat < arena_.spec().device_flats) return reduce_on_device(chunk, buffer);
  if (any_remote_) return reduce_remote(chunk, arena_.result(buffer));
  reduce_in_place(chunk, arena_.result(buffer));
  return true;
}

bool ChunkReducer::reduce_on_device(const Chunk& chunk, int buffer) {
  const Adding adding(arena_.member(rank_));
  const auto left = [this](int rank) { return arena_.member(rank).left.load() != 0; };
  std::vector<MappedArena::Share> shares;
  shares.reserve(contributors_.size());
  for (const Contributor& contributor : contributors_) {
    // It has the result, so there is one, or else it has failed.
    if (left(contributor.rank)) return false;
    shares.push_back({contributor.rank, contributor.operand.weight});
  }
  std::vector<int> readers;
  for (const int rank : arena_.ranks()) {
    if (!left(rank)) readers.push_back(rank);
  }
  const DType dtype = arena_.spec().flats[chunk.flat].dtype;
  options_.mapped->mean({dtype, chunk.offset, chunk.count}, shares, divisor_, buffer, readers);
  return true;
}

void ChunkReducer::reduce_in_place(const Chunk& chunk, std::byte* result) {
  for (std::size_t k = 0; k < contributors_.size(); ++k) {
    operands_[k].data = contributors_[k].operand.data + chunk.offset;
  }
  add(chunk, 0, chunk.count, result);
}

// Elements [first, first + count) of the chunk, from operands_.
void ChunkReducer::add(const Chunk& chunk, std::size_t first, std::size_t count,
                       std::byte* result) {
  const DType dtype = arena_.spec().flats[chunk.flat].dtype;
  const bool is_sum = output_ == Output::node_sum;
  const std::size_t element = size_of(is_sum ? sum_type(dtype) : dtype);
  std::byte* to = result + (is_sum ? chunk.sum_offset : chunk.offset) + first * element;
  if (operands_.empty()) {
    std::fill_n(to, count * element, std::byte{0});
  } else if (is_sum) {
    weighted_sum(dtype, operands_.data(), operands_.size(), count, to);
  } else {
    weighted_mean(dtype, operands_.data(), operands_.size(), count, divisor_, to, stream_);
  }
}

// False if the kernel does not let this rank read a contribution.
bool ChunkReducer::reduce_remote(const Chunk& chunk, std::byte* result) {
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
      if (!read(from, at, copy, bytes)) {
        ask_for_staging();
        return false;
      }
      operands_[k].data = copy;
    }
    add(chunk, (at - chunk.offset) / size_of(dtype), bytes / size_of(dtype), result);
  }
  return true;
}

// What this rank may not read, it gets from the slots: in this round, and all that follow.
void ChunkReducer::ask_for_staging() {
  for (const int rank : arena_.ranks()) {
    arena_.member(rank).stages.store(1, std::memory_order_release);
  }
  arena_.round(number_).bell.ring();
}

// Reads all contributions from the slots, if they are there by now.
void ChunkReducer::read_from_slots() {
  for (const Contributor& one : contributors_) {
    if (arena_.entry(number_, one.rank).address.load(std::memory_order_acquire) != 0) return;
  }
  for (Contributor& one : contributors_) {
    one.operand.data = arena_.slot(one.rank);
    one.pid = 0;
  }
  any_remote_ = false;
}

bool ChunkReducer::read(const Contributor& from, std::size_t at, std::byte* to,
                        std::size_t bytes) const {
  try {
    return read_remote(from.pid, from.address + at, to, bytes);
  } catch (const SystemError& error) {
    throw PeerFailed("round " + std::to_string(number_) + ", rank " + std::to_string(rank_) +
                     ": rank " + std::to_string(from.rank) + " has died amid the round (" +
                     error.what() + "); start again from the last checkpoint");
  }
}

bool ChunkReducer::finished(int buffer) const {
  const std::uint64_t done =
      arena_.result_control(buffer).chunks_done.load(std::memory_order_acquire);
  return done == arena_.chunks().size();
}

bool ChunkReducer::is_stalled(int buffer) {
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
