#include "round/conditions.hpp"

#include <algorithm>
#include <iterator>

#include "arithmetic/mean.hpp"

namespace hvd_backup {
bool Collective::RoomCondition::ready() const {
  return number_ < arena_.released_by_all() + static_cast<RoundNumber>(arena_.spec().records);
}

std::string Collective::RoomCondition::missing(const std::string& after) const {
  std::uint64_t least = arena_.released_by_all();
  std::vector<int> slowest;
  for (const int rank : arena_.ranks()) {
    if (arena_.member(rank).released.load() == least) slowest.push_back(rank);
  }
  const std::string full =
      "the window of " + std::to_string(arena_.spec().records - 1) + " results is full " + after;
  if (slowest.empty()) slowest = slowest_elsewhere(least);
  if (slowest.empty()) {
    return full + "; another node has yet to take round " + std::to_string(least) +
           "; see whether it, or the network to it, stands still, or raise window= or timeout=";
  }
  return full + "; " + ranks_have(slowest) + " yet to load round " + std::to_string(least) +
         "; use attempt(), or raise window= or timeout=";
}

// Ranks of other nodes whose full window keeps the round `least` from being taken there. Makes
// `least` the round that they have yet to load.
std::vector<int> Collective::RoomCondition::slowest_elsewhere(std::uint64_t& least) const {
  std::vector<int> ranks;
  const auto records = static_cast<std::uint64_t>(arena_.spec().records);
  for (int rank = 0; rank < arena_.spec().world; ++rank) {
    const bool fills_window = arena_.member(rank).behind.load() + records == least + 1;
    if (!arena_.has(rank) && fills_window) ranks.push_back(rank);
  }
  if (!ranks.empty()) least -= records;
  return ranks;
}

Collective::ResultCondition::ResultCondition(Collective& owner, std::byte* out)
    : owner_(owner),
      out_(out),
      words_(RoundLedger::words(owner.arena_.spec().world)),
      ledger_(owner.options_.policy, words_.data()) {}

bool Collective::ResultCondition::ready() {
  owner_.stage_if_asked();
  if (!sealed_) sealed_ = seal_seen();
  if (!begun_ && has_work()) start_helping();
  if (helping_) owner_.reducer_.help();
  if (!sealed_) return false;
  owner_.buffer_ = published_buffer(owner_.arena_.round(owner_.number_).published, owner_.number_);
  const bool readable = owner_.buffer_ >= 0;
  if (out_ != nullptr) readable ? copy_out(owner_.buffer_, true) : copy_out(unfinished(), false);
  return readable;
}

// The buffer that the result is being written to, chunk by chunk, or -1.
int Collective::ResultCondition::unfinished() const {
  const RoundNumber number = owner_.number_;
  const Arena& arena = owner_.arena_;
  if (arena.is_part()) return published_buffer(arena.round(number).begun, number);
  return helping_ ? owner_.reducer_.current() : -1;
}

bool Collective::ResultCondition::seal_seen() {
  Collective& me = owner_;
  me.arena_.ledger(me.number_).read(words_.data());
  if (ledger_.number() != me.number_) return false;
  const bool decides = !me.arena_.is_part();
  if (decides && !ledger_.is_sealed() && ledger_.has_quorum() &&
      me.clock_.now() >= ledger_.grace_ends_at()) {
    me.expire_grace();
    return seal_seen();
  }
  return ledger_.is_sealed();
}

bool Collective::ResultCondition::has_work() const {
  if (sealed_) return ledger_.contains(owner_.rank_);
  const Arena& arena = owner_.arena_;
  return arena.is_part() && owner_.options_.policy.needs_every_rank() &&
         arena.all_arrived(owner_.number_);
}

void Collective::ResultCondition::start_helping() {
  Collective& me = owner_;
  begun_ = true;
  if (!me.arena_.is_part()) {
    me.reducer_.begin(me.number_, ledger_.contributors(), me.sealed_it_);
    helping_ = true;
    return;
  }
  const std::vector<int> ours =
      sealed_ ? me.arena_.ranks_among(ledger_.contributors()) : me.arena_.ranks();
  me.reducer_.begin(me.number_, ours, ours.front() == me.rank_);
  helping_ = me.reducer_.only_contribution() == nullptr;
}

void Collective::ResultCondition::copy_out(int buffer, bool all) {
  if (buffer < 0) return;
  // A reduction begun again: what was copied of the old one after others went on is worth nothing.
  if (buffer != copied_from_) copied_ = 0;
  copied_from_ = buffer;
  const Arena& arena = owner_.arena_;
  const std::byte* from = arena.result(buffer);
  const bool stream = arena.contribution_bytes() >= kStreamFrom;
  for (; copied_ < arena.chunks().size(); ++copied_) {
    if (!all && !arena.is_final(owner_.number_, buffer, copied_)) return;
    const Chunk& chunk = arena.chunks()[copied_];
    const std::size_t bytes = chunk.count * size_of(arena.spec().flats[chunk.flat].dtype);
    copy_bytes(out_ + chunk.offset, from + chunk.offset, bytes, stream);
  }
}

std::string Collective::ResultCondition::missing(const std::string& after) const {
  if (sealed_) {
    return "sealed, but no result " + after + "; contributors " + join(ledger_.contributors()) +
           " do not finish it" +
           (owner_.arena_.is_part() ? ", or their nodes' network stands still" : "") +
           "; raise timeout=";
  }
  const Policy& policy = owner_.options_.policy;
  const std::vector<int> ranks = owner_.missing();
  const int present = policy.world - static_cast<int>(ranks.size());
  return std::to_string(present) + " of " + std::to_string(policy.quorum) + " contributions " +
         after + "; missing " + (ranks.size() == 1 ? "rank " : "ranks ") + join(ranks) +
         "; raise timeout= or backup_workers=";
}

std::string Collective::ResultCondition::hopeless() const {
  if (sealed_) return {};
  // In this order: a rank may seal this round, load it and leave while we look.
  std::vector<int> left;
  for (int rank = 0; rank < owner_.arena_.spec().world; ++rank) {
    if (owner_.arena_.member(rank).left.load() != 0) left.push_back(rank);
  }
  const std::vector<int> missing = owner_.missing();
  std::vector<int> gone;
  std::set_intersection(left.begin(), left.end(), missing.begin(), missing.end(),
                        std::back_inserter(gone));
  const Policy& policy = owner_.options_.policy;
  if (policy.world - static_cast<int>(gone.size()) >= policy.quorum) return {};
  return ranks_have(gone) + " left, so " + std::to_string(policy.quorum) +
         " contributions cannot come together; every rank must make the same number of steps";
}

Nanoseconds Collective::ResultCondition::wake_at() const {
  if (helping_) return owner_.reducer_.wake_at();
  const bool open = !sealed_ && ledger_.number() == owner_.number_;
  const bool decides = !owner_.arena_.is_part();
  return decides && open && ledger_.has_quorum() ? ledger_.grace_ends_at() : 0;
}

RoundReport Collective::ResultCondition::report(Nanoseconds waited) const {
  const RoundNumber number = owner_.number_;
  RoundReport report;
  report.number = number;
  report.contributors = ledger_.contributors();
  report.contributed = ledger_.contains(owner_.rank_);
  report.first_at = ledger_.first_at();
  report.sealed_at = ledger_.sealed_at();
  report.my_arrival_at = owner_.arrived_at_;
  report.waited = waited + owner_.blocked_;
  report.waited_for_window = owner_.blocked_;
  const bool is_part = owner_.arena_.is_part();
  for (int rank : report.contributors) {
    const Entry& entry = owner_.arena_.entry(number, rank);
    // Of large worlds of several nodes the arrivals are not told.
    if (!is_part || owner_.arena_.spec().world <= kTellArrivalsUpTo) {
      report.arrived_at.push_back(entry.arrived_at.load(std::memory_order_relaxed));
    }
    report.weight += is_part ? 0 : entry.weight.load(std::memory_order_relaxed);
  }
  if (is_part) report.weight = ledger_.weight();
  return report;
}

}  // namespace hvd_backup
