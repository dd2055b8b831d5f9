#include "engine/node_service.hpp"

#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <exception>
#include <iterator>
#include <utility>

#include "base/error.hpp"
#include "engine/vigil.hpp"

namespace hvd_backup {
namespace {

// Dead ranks are looked for this often, as by a rank that waits.
constexpr Nanoseconds kPatrol = 250 * kMillisecond;

// While data is on its way: how long to look without sleeping, and the longest sleep.
constexpr Nanoseconds kLookFor = 100 * kMicrosecond;
constexpr Nanoseconds kLongestDataNap = kMillisecond;
constexpr Nanoseconds kLongestRoomNap = 10 * kMillisecond;

constexpr std::uint64_t kAlarm = 0;
constexpr std::uint64_t kControl = 1;

// When all ranks have left, data on its way is awaited for so long at most: nobody needs it, but
// who sends it should come to an end, and to receive it later would write to memory that is gone.
constexpr Nanoseconds kDrain = 2 * kSecond;

struct RowHead {
  std::int32_t row;
  std::uint32_t flags;
};

/// Signals are for the threads of the process's owner.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_{};
};

}  // namespace

NodeService::NodeService(Parts parts)
    : clock_(monotonic_clock()),
      process_(getpid()),
      alarm_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      parts_(std::move(parts)),
      coordination_(parts_.nodes.world()),
      moved_at_(clock_.now()),
      patrolled_at_(clock_.now()) {
  if (alarm_ < 0) throw SystemError("cannot make an eventfd", errno);
  parts_.control->watch(parts_.doorbell->fd());
  bed_.add(alarm_, kAlarm);
  bed_.add(parts_.control->fd(), kControl);
  const SignalsBlocked blocked;  // inherited by the thread
  thread_ = std::thread([this] { serve(); });
}

NodeService::~NodeService() {
  if (getpid() == process_) {
    close();
  } else if (thread_.joinable()) {
    thread_.detach();  // a forked process has this object, but not the thread
  }
  ::close(alarm_);
}

void NodeService::close() {
  closed_ = true;
  wake();
  if (thread_.joinable()) thread_.join();
  const std::lock_guard lock(turn_);
  parts_.control.reset();
}

void NodeService::add(std::uint32_t channel, const Arena& arena, const Options& options,
                      std::shared_ptr<void> owner) {
  Channel made{std::move(owner),
               std::make_unique<Interchange>(channel, arena, options, parts_.nodes, parts_.node,
                                             *parts_.data, clock_)};
  std::unique_lock lock(mutex_);
  if (!problem_.empty()) throw PeerFailed(problem_);
  new_.emplace(channel, std::move(made));
  new_policies_.emplace(channel, options.policy);
  parts_.doorbell->ring();
  // Another node's arrival may come at once, and must find it.
  changed_.wait(lock, [&] { return new_.empty() || !problem_.empty(); });
}

bool NodeService::wait_until_over(Nanoseconds timeout) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::nanoseconds(timeout),
                           [this] { return over_ || !problem_.empty(); });
}

std::string NodeService::problem() const {
  const std::lock_guard lock(mutex_);
  return problem_;
}

// The thread's life.
void NodeService::serve() {
  while (!closed_) {
    Nanoseconds rest = kPatrol;
    if (visitors_ == 0) {
      const std::lock_guard lock(turn_);
      rest = turn_or_fail() ? 0 : doze();
    }
    if (rest == 0) continue;
    // Without the lock: a rank may come meanwhile.
    for (const Poller::Ready& ready : bed_.wait(rest)) {
      std::uint64_t rings = 0;
      if (ready.tag == kAlarm) [[maybe_unused]]
        const auto n = read(alarm_, &rings, sizeof rings);
    }
  }
}

void NodeService::start() {
  const bool is_first = visitors_.fetch_add(1) == 0;
  const std::lock_guard lock(turn_);
  if (is_first && parts_.control) bed_.remove(parts_.control->fd());
}

void NodeService::run(Nanoseconds at_most) {
  Nanoseconds rest = 0;
  int fd = -1;
  {
    const std::lock_guard lock(turn_);
    if (turn_or_fail() || at_most == 0) return;
    rest = std::min(doze(), at_most);
    if (parts_.control) fd = parts_.control->fd();
  }
  if (rest > 0) Poller::sleep(fd, rest);
}

void NodeService::stop() {
  const std::lock_guard lock(turn_);
  const bool is_last = visitors_.fetch_sub(1) == 1;
  turn_or_fail();
  if (!is_last || !parts_.control) return;
  // From here on, whoever rings wakes the thread; what there is already it must be told.
  const Nanoseconds rest = doze();
  bed_.add(parts_.control->fd(), kControl);
  if (rest == 0 || is_busy()) wake();
}

bool NodeService::turn_or_fail() {
  if (!parts_.control) return false;
  try {
    const bool moved = turn();
    if (moved) moved_at_ = clock_.now();
    return moved;
  } catch (const std::exception& error) {
    fail(error.what());
    parts_.control.reset();  // the other nodes see that this one is lost
    return false;
  }
}

// One look at everything. True if there was something.
bool NodeService::turn() {
  if (dozing_) parts_.doorbell->wake_up();
  dozing_ = false;
  const std::vector<Control::Event> events = parts_.control->poll(0);
  for (const Control::Event& event : events) take(event);
  bool moved = add_new();
  moved = tell_coordinator() || moved;
  moved = step() || moved;
  const Nanoseconds now = clock_.now();
  if (parts_.node == 0) publish(coordination_.tick(now));
  patrol(now);
  return moved || !events.empty();
}

// How long there will be nothing to do, unless somebody rings.
Nanoseconds NodeService::doze() {
  if (!parts_.control) return kPatrol;
  const Nanoseconds rest = nap(clock_.now());
  if (rest == 0) return 0;
  parts_.doorbell->fall_asleep();
  dozing_ = true;
  // What was said before this is seen now, and rings no more.
  return has_news() ? 0 : rest;
}

bool NodeService::has_news() const {
  for (const auto& [number, channel] : channels_) {
    if (channel.interchange->has_news()) return true;
  }
  const std::lock_guard lock(mutex_);
  return !new_.empty();
}

bool NodeService::is_busy() const {
  for (const auto& [number, channel] : channels_) {
    if (channel.interchange->need() != Interchange::Need::nothing) return true;
  }
  return coordination_.wake_at() != 0;
}

void NodeService::wake() const {
  const std::uint64_t once = 1;
  [[maybe_unused]] const auto n = write(alarm_, &once, sizeof once);
}

bool NodeService::add_new() {
  const std::lock_guard lock(mutex_);
  if (new_.empty()) return false;
  channels_.merge(new_);
  if (parts_.node == 0) {
    for (const auto& [channel, policy] : new_policies_) coordination_.add(channel, policy);
  }
  new_.clear();
  new_policies_.clear();
  changed_.notify_all();
  return true;
}

// What this node's ranks have to say. True if there was something.
bool NodeService::tell_coordinator() {
  bool told = false;
  std::vector<Frame> left;
  for (auto& [number, channel] : channels_) {
    Interchange& interchange = *channel.interchange;
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
    if (!parts_.rows.take_untold(rank)) continue;
    submit(row_frame(rank));
    somebody_left_ = somebody_left_ || parts_.rows.flags(rank) != 0;
    told = true;
  }
  // After the rows, which may say why: a rank writes its last words before it leaves.
  for (const Frame& frame : left) submit(frame);
  return told || !left.empty();
}

bool NodeService::step() {
  bool moved = false;
  for (auto& [number, channel] : channels_) {
    try {
      moved = channel.interchange->step() || moved;
    } catch (const PeerFailed& error) {
      channel.interchange->fail(error.what());
      throw;
    }
  }
  return moved;
}

// How long nothing needs to be looked at, if nobody rings.
Nanoseconds NodeService::nap(Nanoseconds now) const {
  Nanoseconds rest = patrolled_at_ + kPatrol - now;
  if (const Nanoseconds at = coordination_.wake_at(); at != 0) rest = std::min(rest, at - now);
  const Nanoseconds idle = now - moved_at_;
  for (const auto& [number, channel] : channels_) {
    const Interchange::Need need = channel.interchange->need();
    if (need == Interchange::Need::data) {
      rest = std::min(rest, idle < kLookFor ? 0 : std::min(idle / 4, kLongestDataNap));
    } else if (need == Interchange::Need::room) {
      rest = std::min(rest, std::clamp(idle / 4, kLookFor, kLongestRoomNap));
    }
  }
  return std::max<Nanoseconds>(rest, 0);
}

void NodeService::take(const Control::Event& event) {
  switch (event.kind) {
    case Control::Event::Kind::joined:
      return;
    case Control::Event::Kind::lost:
      return lose(event.node);
    case Control::Event::Kind::frame:
      return parts_.node == 0 ? submit(event.frame) : deliver(event.frame);
  }
}

// Brings a frame, of this node or another, before the coordinator.
void NodeService::submit(const Frame& frame) {
  if (parts_.node == 0) {
    publish(coordination_.take(frame, clock_.now()));
  } else {
    parts_.control->send(0, frame);
  }
}

// Node 0 tells all nodes, itself included.
void NodeService::publish(const std::vector<Frame>& frames) {
  for (const Frame& frame : frames) {
    parts_.control->broadcast(frame);
    deliver(frame);
  }
}

// What the coordinator has told every node.
void NodeService::deliver(const Frame& frame) {
  const auto kind = static_cast<Message>(frame.kind);
  if (kind == Message::row) return take_row(frame);
  const auto found = channels_.find(frame.channel);
  if (found == channels_.end()) return;  // every rank has left it
  Interchange& interchange = *found->second.interchange;
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
    if (rank < 0 || rank >= world) throw InvalidMessage("a rank that is none has left");
    interchange.take_left(rank);
  } else {
    throw InvalidMessage("a message of kind " + std::to_string(frame.kind));
  }
}

Frame NodeService::row_frame(int row) const {
  const RowHead head{row, parts_.rows.flags(row)};  // before the message: see Rows
  const std::vector<std::byte> message = parts_.rows.read(row);
  std::vector<std::byte> payload(sizeof head + message.size());
  std::memcpy(payload.data(), &head, sizeof head);
  std::copy(message.begin(), message.end(), payload.begin() + sizeof head);
  return make_frame(Message::row, 0, std::move(payload));
}

void NodeService::take_row(const Frame& frame) {
  RowHead head{-1, 0};
  if (frame.payload.size() >= sizeof head) {
    std::memcpy(&head, frame.payload.data(), sizeof head);
  }
  if (head.row < 0 || head.row >= parts_.nodes.world()) {
    throw InvalidMessage("a row that is none");
  }
  if (parts_.nodes.of(head.row) != parts_.node) {
    parts_.rows.write(head.row, frame.payload.data() + sizeof head,
                      frame.payload.size() - sizeof head);
  }
  somebody_left_ = somebody_left_ || head.flags != 0;
  for (const Rows::Flag flag : {Rows::kLeft, Rows::kDead}) {
    if ((head.flags & flag) != 0) parts_.rows.set(head.row, flag);
  }
}

// A node is gone, with all its ranks.
void NodeService::lose(int node) {
  for (const int rank : parts_.nodes.ranks(node)) bury(rank);
  if (node == 0 && !all_left()) {
    fail(
        "the coordinator, in the process of rank 0, is gone; start again from the last checkpoint");
  }
}

void NodeService::bury(int rank) {
  if (parts_.rows.flags(rank) != 0) return;
  parts_.rows.set(rank, Rows::kDead);
  submit(row_frame(rank));
}

void NodeService::patrol(Nanoseconds now) {
  if (now - patrolled_at_ < kPatrol && !somebody_left_) return;
  somebody_left_ = false;
  patrolled_at_ = now;
  for (const int rank : parts_.dead()) bury(rank);
  drop_what_is_over();
}

void NodeService::drop_what_is_over() {
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
  const bool over = all_left_at_ != 0 && (is_idle() || !parts_.rows.with(Rows::kDead).empty() ||
                                          patrolled_at_ - all_left_at_ > kDrain);
  const std::lock_guard lock(mutex_);
  if (over == over_) return;
  over_ = over;
  changed_.notify_all();
}

bool NodeService::all_left() const {
  for (int rank = 0; rank < parts_.nodes.world(); ++rank) {
    if (parts_.rows.flags(rank) == 0) return false;
  }
  return true;
}

bool NodeService::is_idle() const {
  return std::all_of(channels_.begin(), channels_.end(), [](const auto& channel) {
    return channel.second.interchange->need() == Interchange::Need::nothing;
  });
}

void NodeService::fail(const std::string& text) {
  for (auto& [number, channel] : channels_) channel.interchange->fail(text);
  const std::lock_guard lock(mutex_);
  for (auto& [number, channel] : new_) channel.interchange->fail(text);
  problem_ = text;
  changed_.notify_all();
}

}  // namespace hvd_backup
