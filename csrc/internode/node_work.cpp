#include "internode/node_work.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
#include <iterator>
#include <mutex>
#include <utility>

#include "base/error.hpp"

namespace hvd_backup {
namespace {

// Dead ranks are looked for this often, as by a rank that waits.
constexpr Nanoseconds kPatrol = 250 * kMillisecond;

// Sleeps while another rank or node is waited for.
constexpr Nanoseconds kShortestOtherNap = 100 * kMicrosecond;
constexpr Nanoseconds kLongestOtherNap = 10 * kMillisecond;

// When all ranks have left, data on its way is awaited for so long at most: nobody needs it, but
// who sends it should come to an end.
constexpr Nanoseconds kDrain = 2 * kSecond;

struct StatusHead {
  std::int32_t rank;
  std::uint32_t flags;
};

/// What is kept to the end of the process; never destroyed. Services may end in several threads.
template <class T>
class Attic {
 public:
  void keep(T one) {
    const std::lock_guard lock(mutex_);
    kept_.push_back(std::move(one));
  }

 private:
  std::mutex mutex_;
  std::vector<T> kept_;
};

}  // namespace

NodeWork::NodeWork(Parts parts)
    : clock_(monotonic_clock()),
      parts_(std::move(parts)),
      coordination_(parts_.nodes.world()),
      moved_at_(clock_.now()),
      patrolled_at_(clock_.now()) {
  parts_.control->watch(parts_.doorbell->fd());
}

void NodeWork::close() {
  parts_.control.reset();
  // A transfer cannot be called off: should another node get to it, its memory must be there.
  static auto* const unfinished = new Attic<Channel>;
  for (auto& [number, channel] : channels_) {
    if (channel.interchange->need() == NodeCollective::Need::nothing) continue;
    unfinished->keep(std::move(channel));
  }
  channels_.clear();
}

void NodeWork::add(std::uint32_t channel, const Arena& arena, const Options& options,
                   std::shared_ptr<void> owner) {
  if (!parts_.control) throw PeerFailed(problem_.empty() ? "this node has left" : problem_);
  auto interchange = std::make_unique<NodeCollective>(channel, arena, options, parts_.nodes,
                                                      parts_.node, *parts_.data, clock_);
  channels_.emplace(channel, Channel{std::move(owner), std::move(interchange)});
  if (parts_.node == 0) coordination_.add(channel, options.policy);
}

bool NodeWork::turn() {
  if (!parts_.control) return false;
  try {
    const bool moved = look();
    if (moved) moved_at_ = clock_.now();
    return moved;
  } catch (const std::exception& error) {
    give_up(error.what());
    return false;
  }
}

void NodeWork::give_up(const std::string& text) {
  cut_off_others();
  fail(text);
  parts_.control.reset();  // the other nodes see that this one is lost
}

bool NodeWork::look() {
  if (dozing_) parts_.doorbell->wake_up();
  dozing_ = false;
  const std::vector<Control::Event> events = parts_.control->poll(0);
  for (const Control::Event& event : events) take(event);
  bool moved = tell_coordinator();
  moved = step() || moved;
  if (parts_.node == 0) publish(coordination_.tick(clock_.now()));
  patrol();
  return moved || !events.empty();
}

Nanoseconds NodeWork::doze(const SpinLimits& spin_limits) {
  if (!parts_.control) return kPatrol;
  const Nanoseconds rest = nap(spin_limits);
  if (rest == 0) return 0;
  parts_.doorbell->fall_asleep();
  dozing_ = true;
  // What was said before this is seen now, and rings no more.
  return has_news() ? 0 : rest;
}

int NodeWork::fd() const { return parts_.control ? parts_.control->fd() : -1; }

bool NodeWork::has_news() const {
  for (const auto& [number, channel] : channels_) {
    if (channel.interchange->has_news()) return true;
  }
  for (const int rank : parts_.nodes.ranks(parts_.node)) {
    if (parts_.board.is_untold(rank)) return true;
  }
  return false;
}

// What this node's ranks have to say. True if there was something.
bool NodeWork::tell_coordinator() {
  bool told = false;
  std::vector<Frame> left;
  for (auto& [number, channel] : channels_) {
    NodeCollective& interchange = *channel.interchange;
    if (const auto report = interchange.report()) {
      submit(make_frame(Message::report, number, encode(*report)));
      told = true;
    }
    if (const auto lagging = interchange.lagging()) {
      submit(make_frame(Message::lagging, number, encode(*lagging)));
    }
    for (const std::int32_t rank : interchange.newly_left()) {
      std::vector<std::byte> payload(sizeof rank);
      std::memcpy(payload.data(), &rank, sizeof rank);
      left.push_back(make_frame(Message::left, number, std::move(payload)));
    }
  }
  for (const int rank : parts_.nodes.ranks(parts_.node)) {
    if (!parts_.board.take_untold(rank)) continue;
    submit(status_frame(rank));
    somebody_left_ = somebody_left_ || parts_.board.flags(rank) != 0;
    told = true;
  }
  // After the board, which may say why: a rank writes its last words before it leaves.
  for (const Frame& frame : left) submit(frame);
  return told || !left.empty();
}

bool NodeWork::step() {
  bool moved = false;
  for (auto& [number, channel] : channels_) moved = channel.interchange->step() || moved;
  return moved;
}

Nanoseconds NodeWork::nap(const SpinLimits& spin_limits) const {
  const Nanoseconds now = clock_.now();
  Nanoseconds rest = patrolled_at_ + kPatrol - now;
  if (const Nanoseconds at = coordination_.wake_at(); at != 0) rest = std::min(rest, at - now);
  const Nanoseconds idle = now - moved_at_;
  for (const auto& [number, channel] : channels_) {
    const NodeCollective::Need need = channel.interchange->need();
    const bool looks = need == NodeCollective::Need::data || need == NodeCollective::Need::seal;
    if (looks && idle < spin_limits.looks_for) return 0;
    if (need == NodeCollective::Need::data) {
      rest = std::min(rest, std::min(idle / 4, spin_limits.longest_nap));
    } else if (need != NodeCollective::Need::nothing) {
      rest = std::min(rest, std::clamp(idle / 4, kShortestOtherNap, kLongestOtherNap));
    }
  }
  return std::max<Nanoseconds>(rest, 0);
}

void NodeWork::take(const Control::Event& event) {
  switch (event.kind) {
    case Control::Event::Kind::joined:
      return;
    case Control::Event::Kind::lost:
      return lose(event.node, event.is_silent);
    case Control::Event::Kind::frame:
      return parts_.node == 0 ? submit(event.frame) : deliver(event.frame);
  }
}

// Brings a frame, of this node or another, before the coordinator.
void NodeWork::submit(const Frame& frame) {
  if (parts_.node == 0) {
    publish(coordination_.take(frame, clock_.now()));
  } else {
    parts_.control->send(0, frame);
  }
}

// Node 0 tells all nodes, itself included.
void NodeWork::publish(const std::vector<Frame>& frames) {
  for (const Frame& frame : frames) {
    parts_.control->broadcast(frame);
    deliver(frame);
  }
}

// What the coordinator has told every node.
void NodeWork::deliver(const Frame& frame) {
  const auto kind = static_cast<Message>(frame.kind);
  if (kind == Message::status) return take_status(frame);
  const auto found = channels_.find(frame.channel);
  if (found == channels_.end()) return;  // every rank has left it
  NodeCollective& interchange = *found->second.interchange;
  const std::byte* data = frame.payload.data();
  const std::size_t bytes = frame.payload.size();
  const int world = parts_.nodes.world();
  if (kind == Message::seal) {
    interchange.take(decode_seal(data, bytes, world));
  } else if (kind == Message::so_far) {
    interchange.take_so_far(decode_report(data, bytes, world));
  } else if (kind == Message::lagging) {
    interchange.take_lagging(decode_report(data, bytes, world));
  } else if (kind == Message::left) {
    std::int32_t rank = -1;
    if (bytes == sizeof rank) std::memcpy(&rank, data, sizeof rank);
    if (rank < 0 || rank >= world) throw InvalidMessage("a rank outside the world has left");
    interchange.take_left(rank);
  } else {
    throw InvalidMessage("a message of kind " + std::to_string(frame.kind));
  }
}

Frame NodeWork::status_frame(int status) const {
  const StatusHead head{status, parts_.board.flags(status)};  // before the message: see StatusBoard
  const std::vector<std::byte> message = parts_.board.read(status);
  std::vector<std::byte> payload(sizeof head + message.size());
  std::memcpy(payload.data(), &head, sizeof head);
  std::copy(message.begin(), message.end(), payload.begin() + sizeof head);
  return make_frame(Message::status, 0, std::move(payload));
}

void NodeWork::take_status(const Frame& frame) {
  StatusHead head{-1, 0};
  if (frame.payload.size() >= sizeof head) {
    std::memcpy(&head, frame.payload.data(), sizeof head);
  }
  if (head.rank < 0 || head.rank >= parts_.nodes.world()) {
    throw InvalidMessage("a status of a rank outside the world");
  }
  if (parts_.nodes.of(head.rank) != parts_.node) {
    parts_.board.write(head.rank, frame.payload.data() + sizeof head,
                       frame.payload.size() - sizeof head);
  }
  somebody_left_ = somebody_left_ || head.flags != 0;
  for (const StatusBoard::Flag flag :
       {StatusBoard::kLeft, StatusBoard::kSilent, StatusBoard::kDead}) {
    if ((head.flags & flag) != 0) parts_.board.set(head.rank, flag);
  }
}

// A node is gone, with all its ranks.
void NodeWork::lose(int node, bool is_silent) {
  for (const int rank : parts_.nodes.ranks(node)) bury(rank, is_silent);
  if (node != 0 || all_left()) return;
  cut_off_others();
  fail("the coordinator, in the process of rank 0, is gone; start again from the last checkpoint");
}

void NodeWork::bury(int rank, bool is_silent) {
  if (parts_.board.flags(rank) != 0) return;
  if (is_silent) parts_.board.set(rank, StatusBoard::kSilent);  // first: who sees it dead knows why
  parts_.board.set(rank, StatusBoard::kDead);
  submit(status_frame(rank));
}

// Whether ranks of other nodes live, and what they do, is not heard here any more.
void NodeWork::cut_off_others() {
  for (int rank = 0; rank < parts_.nodes.world(); ++rank) {
    const bool is_elsewhere = parts_.nodes.of(rank) != parts_.node;
    if (is_elsewhere && parts_.board.flags(rank) == 0) parts_.board.set(rank, StatusBoard::kCutOff);
  }
}

void NodeWork::patrol() {
  const Nanoseconds now = clock_.now();
  if (now - patrolled_at_ < kPatrol && !somebody_left_) return;
  somebody_left_ = false;
  patrolled_at_ = now;
  for (const int rank : parts_.dead()) bury(rank);
  drop_what_is_over();
}

void NodeWork::drop_what_is_over() {
  for (auto at = channels_.begin(); at != channels_.end();) {
    const auto next = std::next(at);
    if (at->second.interchange->is_over()) {
      coordination_.remove(at->first);
      channels_.erase(at);
    }
    at = next;
  }
  const bool all_told = all_left() && !parts_.control->has_unsent();
  if (!all_told || all_left_at_ == 0) all_left_at_ = all_told ? patrolled_at_ : 0;
  over_ = all_left_at_ != 0 && (is_idle() || !parts_.board.with(StatusBoard::kDead).empty() ||
                                patrolled_at_ - all_left_at_ > kDrain);
}

bool NodeWork::all_left() const {
  for (int rank = 0; rank < parts_.nodes.world(); ++rank) {
    if (parts_.board.flags(rank) == 0) return false;
  }
  return true;
}

// Nothing is on its way that somebody needs: a round that is not sealed by now never is.
bool NodeWork::is_idle() const {
  return std::all_of(channels_.begin(), channels_.end(), [](const auto& channel) {
    const NodeCollective::Need need = channel.second.interchange->need();
    return need == NodeCollective::Need::nothing || need == NodeCollective::Need::seal;
  });
}

void NodeWork::fail(const std::string& text) {
  for (auto& [number, channel] : channels_) channel.interchange->fail(text);
  problem_ = text;
}

}  // namespace hvd_backup
