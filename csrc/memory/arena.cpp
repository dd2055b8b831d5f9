#include "memory/arena.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>
#include <string_view>

namespace hvd_backup {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kTextBytes = 480;

// A smaller slot would waste most of a huge page.
constexpr std::size_t kOwnFrom = kHugePage / 2;

std::size_t index(int i) { return static_cast<std::size_t>(i); }

}  // namespace

struct Arena::Header {
  Bell released;
  std::atomic<std::uint32_t> failure_claimed;
  std::atomic<std::uint32_t> failure_kind;  // set last: the rest can be read
  std::int32_t failure_rank;
  std::array<char, kTextBytes> failure_text;
};

std::size_t Arena::bytes(const ArenaSpec& spec) { return Arena(spec, nullptr).offsets_.end; }

Range Arena::own_part(const ArenaSpec& spec) {
  const Arena arena(spec, nullptr);
  if (!arena.owns_its_slot()) return {};
  return {arena.offsets_.slots, arena.offsets_.results};
}

bool Arena::owns_its_slot() const {
  return spans_nodes() && ranks_.size() == 1 && slot_stride_ >= kOwnFrom;
}

Arena::Arena(const ArenaSpec& spec, std::byte* memory)
    : spec_(spec), memory_(memory), ranks_(spec.ranks), local_(index(spec.world), -1) {
  if (ranks_.empty()) {
    ranks_.resize(index(spec_.world));
    std::iota(ranks_.begin(), ranks_.end(), 0);
  }
  for (std::size_t i = 0; i < ranks_.size(); ++i) local_[index(ranks_[i])] = static_cast<int>(i);
  std::size_t sum_bytes = 0;
  for (std::size_t i = 0; i < spec_.flats.size(); ++i) {
    const Flat& flat = spec_.flats[i];
    const std::size_t element = size_of(flat.dtype);
    const std::size_t wide = std::max(element, sizeof(float));
    const bool on_device = i < spec_.device_flats;
    const std::size_t per_chunk =
        (on_device ? spec_.device_chunk_bytes : spec_.chunk_bytes) / element;
    flat_offsets_.push_back(contribution_bytes_);
    for (std::size_t first = 0; first < flat.count; first += per_chunk) {
      chunks_.push_back({i, contribution_bytes_ + first * element,
                         std::min(per_chunk, flat.count - first), sum_bytes + first * wide});
    }
    contribution_bytes_ += round_up(flat.count * element, kLine);
    sum_bytes += round_up(flat.count * wide, kLine);
  }
  slot_stride_ = round_up(std::max(contribution_bytes_, kLine), kPage);
  result_stride_ = spans_nodes() ? round_up(std::max(sum_bytes, kLine), kPage) : slot_stride_;
  offsets_ = place();
}

std::size_t Arena::device_bytes() const {
  return spec_.device_flats < flat_offsets_.size() ? flat_offsets_[spec_.device_flats]
                                                   : contribution_bytes_;
}

Arena::Offsets Arena::place() const {
  const std::size_t world = index(spec_.world);
  const std::size_t records = index(spec_.records);
  const std::size_t buffers = index(spec_.buffers);
  std::size_t end = round_up(sizeof(Header), kLine);
  const auto take = [&end](std::size_t bytes, std::size_t alignment) {
    const std::size_t start = round_up(end, alignment);
    end = start + bytes;
    return start;
  };
  Offsets at{};
  at.members = take((world + 1) * sizeof(Member), kLine);
  at.rounds = take(records * round_up(sizeof(RoundControl), kLine), kLine);
  at.ledgers =
      take(records * SharedState::bytes(writers(), RoundLedger::words(spec_.world)), kLine);
  at.entries = take(records * world * kLine, kLine);
  at.controls = take(buffers * sizeof(ResultControl), kLine);
  at.flags = take(buffers * chunks_.size() * sizeof(std::uint64_t), kLine);
  const std::size_t page = owns_its_slot() ? kHugePage : kPage;
  at.slots = take(ranks_.size() * slot_stride_, page);
  at.results = take(buffers * result_stride_, page);
  at.end = end;
  return at;
}

Arena::Header& Arena::header() const { return *reinterpret_cast<Header*>(memory_); }

std::size_t Arena::record(RoundNumber number) const { return number % index(spec_.records); }

Member& Arena::member(int rank) const {
  return reinterpret_cast<Member*>(memory_ + offsets_.members)[rank];
}

RoundControl& Arena::round(RoundNumber number) const {
  constexpr std::size_t kStride = (sizeof(RoundControl) + kLine - 1) / kLine * kLine;
  return *reinterpret_cast<RoundControl*>(memory_ + offsets_.rounds + record(number) * kStride);
}

SharedState Arena::ledger(RoundNumber number) const {
  const std::size_t words = RoundLedger::words(spec_.world);
  std::byte* at =
      memory_ + offsets_.ledgers + record(number) * SharedState::bytes(writers(), words);
  return {at, writers(), words};
}

Entry& Arena::entry(RoundNumber number, int rank) const {
  static_assert(sizeof(Entry) <= kLine);
  const std::size_t i = record(number) * index(spec_.world) + index(rank);
  return *reinterpret_cast<Entry*>(memory_ + offsets_.entries + i * kLine);
}

std::byte* Arena::slot(int rank) const {
  return memory_ + offsets_.slots + index(local_[index(rank)]) * slot_stride_;
}

ResultControl& Arena::result_control(int buffer) const {
  return reinterpret_cast<ResultControl*>(memory_ + offsets_.controls)[buffer];
}

std::byte* Arena::result(int buffer) const { return memory_ + result_offset(buffer); }

std::size_t Arena::result_offset(int buffer) const {
  return offsets_.results + index(buffer) * result_stride_;
}

std::atomic<std::uint64_t>& Arena::chunk_done(int buffer, std::size_t chunk) const {
  auto* flags = reinterpret_cast<std::atomic<std::uint64_t>*>(memory_ + offsets_.flags);
  return flags[index(buffer) * chunks_.size() + chunk];
}

Bell& Arena::released_bell() const { return header().released; }

std::uint64_t Arena::released_by_all() const {
  std::uint64_t least =
      spans_nodes() ? service().released.load(std::memory_order_acquire) : kUnbounded;
  for (const int rank : ranks_) {
    least = std::min(least, member(rank).released.load(std::memory_order_acquire));
  }
  return least;
}

bool Arena::all_arrived(RoundNumber number) const {
  return std::all_of(ranks_.begin(), ranks_.end(), [&](int rank) {
    return member(rank).arrived.load(std::memory_order_acquire) == number + 1;
  });
}

std::vector<int> Arena::ranks_among(const std::vector<int>& ranks) const {
  std::vector<int> ours;
  std::copy_if(ranks.begin(), ranks.end(), std::back_inserter(ours),
               [this](int rank) { return has(rank); });
  return ours;
}

void Arena::fail(const Failure& failure) const {
  Header& to = header();
  std::uint32_t unclaimed = 0;
  if (!to.failure_claimed.compare_exchange_strong(unclaimed, 1)) return;
  to.failure_rank = failure.rank;
  const std::size_t length = std::min(failure.text.size(), kTextBytes - 1);
  std::memcpy(to.failure_text.data(), failure.text.data(), length);
  to.failure_text[length] = '\0';
  to.failure_kind.store(static_cast<std::uint32_t>(failure.kind), std::memory_order_release);
  to.released.ring();
  for (int i = 0; i < spec_.records; ++i) round(static_cast<RoundNumber>(i)).bell.ring();
}

std::optional<Failure> Arena::failure() const {
  const Header& from = header();
  const auto kind = static_cast<FailureKind>(from.failure_kind.load(std::memory_order_acquire));
  if (kind == FailureKind::none) return std::nullopt;
  return Failure{kind, from.failure_rank, from.failure_text.data()};
}

}  // namespace hvd_backup
