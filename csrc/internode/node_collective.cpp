#include "internode/node_collective.hpp"

#include <algorithm>
#include <utility>

#include "base/error.hpp"

namespace hvd_backup {
namespace {

// The node's contributors add their gradients while they wait. If nobody does, this thread does.
constexpr Nanoseconds kHelpAfter = kMillisecond;

// A window that is full for this long is told to the other nodes, then after twice the time.
constexpr Nanoseconds kTellLagAfter = 100 * kMillisecond;

}  // namespace

NodeCollective::NodeCollective(std::uint32_t channel, const Arena& arena, const Options& options,
                               const Nodes& nodes, int node, DataTransport& data,
                               const Clock& clock)
    : arena_(arena),
      options_(options),
      nodes_(nodes),
      node_(node),
      data_(data),
      clock_(clock),
      reducer_(arena_, options_, clock_, -1, Output::node_sum),
      exchange_(arena_, data_, nodes_.count(), node, channel),
      reported_(static_cast<std::size_t>(nodes.world())),
      left_(static_cast<std::size_t>(nodes.world())) {
  options_.progress_engine.reset();  // that is the service, which has this
}

std::optional<NodeReport> NodeCollective::report() {
  NodeReport report{open_, {}};
  for (const int rank : arena_.ranks()) {
    if (!is_new(rank)) continue;
    reported_[static_cast<std::size_t>(rank)] = true;
    const Entry& entry = arena_.entry(open_, rank);
    const Nanoseconds age = clock_.now() - entry.arrived_at.load(std::memory_order_relaxed);
    report.arrivals.push_back(
        {rank, entry.weight.load(std::memory_order_relaxed), std::max<Nanoseconds>(age, 0)});
  }
  if (report.arrivals.empty()) return std::nullopt;
  return report;
}

bool NodeCollective::is_new(int rank) const {
  return !reported_[static_cast<std::size_t>(rank)] &&
         arena_.member(rank).arrived.load(std::memory_order_acquire) == open_ + 1;
}

bool NodeCollective::has_news() const {
  return std::any_of(arena_.ranks().begin(), arena_.ranks().end(), [this](int rank) {
    const bool gone =
        !left_[static_cast<std::size_t>(rank)] && arena_.member(rank).left.load() != 0;
    return gone || is_new(rank);
  });
}

std::vector<int> NodeCollective::newly_left() {
  std::vector<int> ranks;
  for (const int rank : arena_.ranks()) {
    const auto i = static_cast<std::size_t>(rank);
    if (left_[i] || arena_.member(rank).left.load() == 0) continue;
    left_[i] = true;
    ranks.push_back(rank);
  }
  return ranks;
}

std::optional<NodeReport> NodeCollective::lagging() {
  if (no_room_since_ == 0) return std::nullopt;
  const Nanoseconds waited = clock_.now() - no_room_since_;
  if (waited < tell_lag_after_) return std::nullopt;
  tell_lag_after_ = 2 * waited;
  const std::uint64_t least = arena_.released_by_all();
  NodeReport report{least, {}};
  for (const int rank : arena_.ranks()) {
    if (arena_.member(rank).released.load() == least) report.arrivals.push_back({rank, 1, 0});
  }
  if (report.arrivals.empty()) return std::nullopt;  // another node keeps this one from going on
  return report;
}

void NodeCollective::take(const Seal& seal) {
  if (seal.round != open_) {
    throw InvalidMessage("a seal of round " + std::to_string(seal.round) + ", but round " +
                         std::to_string(open_) + " is open");
  }
  ++open_;
  std::fill(reported_.begin(), reported_.end(), false);
  seals_.push_back(seal);
}

void NodeCollective::take_so_far(const NodeReport& so_far) {
  if (so_far.round != open_ || !has_room(open_)) return;
  arena_.ledger(open_).update(0, [&](std::uint64_t* words, bool& /*modified*/) {
    RoundLedger(options_.policy, words).adopt(so_far);
    return true;
  });
}

void NodeCollective::take_lagging(const NodeReport& lagging) {
  for (const ReportedArrival& one : lagging.arrivals) {
    if (!arena_.has(one.rank)) arena_.member(one.rank).behind.store(lagging.round + 1);
  }
}

void NodeCollective::take_left(int rank) {
  if (arena_.has(rank)) return;  // it has said so itself
  arena_.member(rank).left.store(1);
  for (int i = 0; i < arena_.spec().records; ++i) {
    arena_.round(static_cast<RoundNumber>(i)).bell.ring();
  }
}

bool NodeCollective::step() {
  bool moved = flush();
  if (!active_ && may_begin()) moved = begin() || moved;
  if (!active_) return moved;
  moved = seal() || moved;
  moved = help() || moved;
  moved = exchange_.step([this](std::size_t chunk) { return sum(chunk); }) || moved;
  if (!sealed_ || !exchange_.is_complete()) return moved;
  finish();
  return true;
}

NodeCollective::Need NodeCollective::need() const {
  if (active_) return sealed_ ? Need::data : Need::seal;
  const bool waits = no_room_since_ != 0 || !seals_.empty() || !sent_.empty();
  return waits ? Need::room : Need::nothing;
}

bool NodeCollective::is_over() const {
  if (active_ || !seals_.empty() || !sent_.empty()) return false;
  for (int rank = 0; rank < nodes_.world(); ++rank) {
    if (arena_.member(rank).left.load() == 0) return false;
  }
  return true;
}

void NodeCollective::fail(const std::string& text) {
  arena_.fail({FailureKind::peer, arena_.ranks().front(), text});
}

bool NodeCollective::has_room(RoundNumber number) const {
  return number < arena_.released_by_all() + static_cast<RoundNumber>(arena_.spec().records);
}

// If every rank must contribute, a node whose ranks have all arrived need not wait for the seal: it
// only tells by what to divide.
bool NodeCollective::may_begin() const {
  if (!seals_.empty()) return true;
  return options_.policy.needs_every_rank() && arena_.all_arrived(next_);
}

bool NodeCollective::begin() {
  buffer_ = has_room(next_) ? claim_buffer(arena_, next_) : -1;
  if (buffer_ < 0) {
    if (no_room_since_ == 0) {
      no_room_since_ = clock_.now();
      tell_lag_after_ = kTellLagAfter;
    }
    return false;
  }
  no_room_since_ = 0;
  const bool early = seals_.empty();
  const std::vector<int> mine =
      early ? arena_.ranks() : arena_.ranks_among(seals_.front().contributors);
  if (!mine.empty()) reducer_.begin(next_, mine, false);
  only_ = mine.empty() ? nullptr : reducer_.only_contribution();
  sums_ = !mine.empty() && only_ == nullptr;
  sum_at_ = clock_.now();
  summed_ = 0;
  exchange_.begin(early ? nodes_.all() : nodes_.of(seals_.front().contributors), next_, buffer_);
  publish_buffer(arena_.round(next_).begun, next_, buffer_);
  active_ = true;
  sealed_ = false;
  return true;
}

bool NodeCollective::seal() {
  if (sealed_ || seals_.empty()) return false;
  const double weight = seals_.front().weight;
  exchange_.divide_by(options_.sum && weight > 0 ? 1 : weight);
  write(seals_.front());
  seals_.pop_front();
  sealed_ = true;
  return true;
}

// Tells the node's ranks of the seal.
void NodeCollective::write(const Seal& seal) {
  const Nanoseconds now = clock_.now();
  const Nanoseconds first = now - seal.open_for;
  for (std::size_t i = 0; i < seal.offsets.size(); ++i) {
    Entry& entry = arena_.entry(seal.round, seal.contributors[i]);
    entry.arrived_at.store(first + seal.offsets[i], std::memory_order_relaxed);
  }
  arena_.ledger(seal.round).update(0, [&](std::uint64_t* words, bool& /*modified*/) {
    RoundLedger(options_.policy, words).adopt(seal, now);
    return true;
  });
  arena_.round(seal.round).bell.ring();
}

bool NodeCollective::help() {
  if (!sums_ || reducer_.published() >= 0) return false;
  const int buffer = reducer_.current();
  const std::uint64_t done =
      buffer < 0 ? 0 : arena_.result_control(buffer).chunks_done.load(std::memory_order_relaxed);
  const Nanoseconds now = clock_.now();
  if (done != summed_) {
    summed_ = done;
    sum_at_ = now;
  }
  if (now - sum_at_ < kHelpAfter) return false;
  return reducer_.help();
}

const std::byte* NodeCollective::sum(std::size_t chunk) const {
  const Chunk& which = arena_.chunks()[chunk];
  if (only_ != nullptr) return only_ + which.offset;
  const int whole = reducer_.published();
  const int buffer = whole >= 0 ? whole : reducer_.current();
  if (buffer < 0 || !arena_.is_final(next_, buffer, chunk)) return nullptr;
  return arena_.result(buffer) + which.sum_offset;
}

void NodeCollective::finish() {
  active_ = false;
  Outbox outbox = exchange_.take_outbox();
  outbox.is_empty() ? exchange_.take_back(std::move(outbox))
                    : sent_.push_back({next_, std::move(outbox)});
  RoundControl& round = arena_.round(next_);
  publish_buffer(round.published, next_, buffer_);
  ++next_;
  flush();
  round.bell.ring();
}

// This thread has released a round when every node has taken what it was sent.
bool NodeCollective::flush() {
  bool moved = false;
  for (Sent& sent : sent_) moved = sent.outbox.flush(data_) || moved;
  while (!sent_.empty() && sent_.front().outbox.is_empty()) {
    exchange_.take_back(std::move(sent_.front().outbox));
    sent_.pop_front();
  }
  const RoundNumber released = sent_.empty() ? next_ : sent_.front().round;
  std::atomic<std::uint64_t>& mine = arena_.service().released;
  if (mine.load(std::memory_order_relaxed) != released) {
    mine.store(released, std::memory_order_release);
    arena_.released_bell().ring();
    moved = true;
  }
  return moved;
}

}  // namespace hvd_backup
