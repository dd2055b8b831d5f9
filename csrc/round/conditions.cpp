#include "round/conditions.hpp"

#include <algorithm>
#include <iterator>

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
    : owner_(owner), copier_(owner.arena_, owner.number_, out) {}

void Collective::ResultCondition::work() {
  Collective& me = owner_;
  me.stage_if_asked();
  if (!sealed_) sealed_ = me.referee_->is_sealed(me.number_);
  me.worker_->work(*me.referee_, sealed_);
  const int readable =
      sealed_ ? published_buffer(me.arena_.round(me.number_).published, me.number_) : -1;
  if (readable < 0) return copier_.copy_final(me.worker_->unfinished());
  copier_.copy_rest(readable);
  me.buffer_ = readable;
}

std::string Collective::ResultCondition::missing(const std::string& after) const {
  if (sealed_) {
    return "sealed, but no result " + after + "; contributors " +
           join(owner_.referee_->known().contributors()) + " do not finish it" +
           (owner_.arena_.spans_nodes() ? ", or their nodes' network stands still" : "") +
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
  const Nanoseconds work_at = owner_.worker_->wake_at();
  return work_at != 0 || sealed_ ? work_at : owner_.referee_->wake_at();
}

RoundReport Collective::ResultCondition::report(Nanoseconds waited) const {
  const RoundNumber number = owner_.number_;
  const Referee& referee = *owner_.referee_;
  const RoundLedger& known = referee.known();
  RoundReport report;
  report.number = number;
  report.contributors = known.contributors();
  report.contributed = known.contains(owner_.rank_);
  report.weight = referee.weight();
  report.first_at = known.first_at();
  report.sealed_at = known.sealed_at();
  report.my_arrival_at = owner_.arrived_at_;
  report.waited = waited + owner_.blocked_;
  report.waited_for_window = owner_.blocked_;
  if (!referee.knows_arrivals()) return report;
  for (const int rank : report.contributors) {
    const Entry& entry = owner_.arena_.entry(number, rank);
    report.arrived_at.push_back(entry.arrived_at.load(std::memory_order_relaxed));
  }
  return report;
}

}  // namespace hvd_backup
