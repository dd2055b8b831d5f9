#include "round/collective.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <sstream>
#include <string>
#include <utility>

#include "arithmetic/mean.hpp"
#include "base/error.hpp"
#include "round/conditions.hpp"

namespace hvd_backup {
namespace {

// Below this, a copy to the slot and back costs less than the system calls that avoid it.
constexpr std::size_t kStageUpTo = 64 * 1024;

// Beyond these, a weight times a float32, or a sum of weights, may be no number.
constexpr double kLeastWeight = 1e-30;
constexpr double kMostWeight = 1e30;

void check_weight(double weight) {
  if (weight == 0 || (weight >= kLeastWeight && weight <= kMostWeight)) return;
  std::ostringstream text;
  text << "the weight of a contribution must be 0 (to abstain) or between " << kLeastWeight
       << " and " << kMostWeight << ", not " << weight;
  throw InvalidArgument(text.str());
}

}  // namespace

ArenaSpec Collective::spec(const Policy& policy, int window, std::vector<Flat> flats,
                           std::size_t chunk_bytes, std::vector<int> ranks) {
  validate(policy);
  if (ranks.empty() && policy.world > kMaxRanks) {
    throw InvalidArgument("a node has at most " + std::to_string(kMaxRanks) + " ranks");
  }
  if (window < 1 || window > 4096) {
    throw InvalidArgument("window=" + std::to_string(window) + " is not between 1 and 4096");
  }
  if (chunk_bytes < sizeof(double)) {
    throw InvalidArgument("chunk_bytes=" + std::to_string(chunk_bytes) +
                          " is less than an element");
  }
  ArenaSpec spec;
  spec.world = policy.world;
  spec.records = window + 1;
  // One more for each rank that can be stopped amid the work while the others still have a quorum.
  spec.buffers = spec.records + std::max(1, policy.world - policy.quorum);
  // And one with the node's sum for each with a result.
  if (!ranks.empty()) spec.buffers += spec.records;
  spec.flats = std::move(flats);
  spec.chunk_bytes = chunk_bytes;
  spec.ranks = std::move(ranks);
  return spec;
}

Collective::Collective(const Arena& arena, int rank, Options options, const Clock& clock)
    : arena_(arena),
      rank_(rank),
      options_(std::move(options)),
      clock_(clock),
      waiter_(arena_, options_, clock_, rank),
      shares_(arena_.spec().world, options_.policy.world - options_.policy.quorum) {
  validate(options_.policy);
  if (!options_.policy.waits || options_.policy.max_staleness != 0) {
    throw InvalidArgument("this collective runs in lockstep: max_staleness=0, waits=true");
  }
  if (rank < 0 || rank >= arena.spec().world || options_.policy.world != arena.spec().world) {
    throw InvalidArgument("rank " + std::to_string(rank) + " and the policy do not fit an arena " +
                          "for " + std::to_string(arena.spec().world) + " ranks");
  }
  if (!arena_.has(rank)) {
    throw InvalidArgument("rank " + std::to_string(rank) + " is not of this arena's node, which " +
                          "has ranks " + join(arena_.ranks()));
  }
  if (arena_.spans_nodes() && options_.service == nullptr) {
    throw InvalidArgument("a world of several nodes needs a service thread");
  }
  check_device_flats();
  referee_ = make_referee(arena_, rank_, options_, clock_);
  worker_ = make_worker(arena_, rank_, options_, clock_);
  arena_.member(rank_).pid.store(getpid());
}

bool Collective::arrive(double weight) {
  check_weight(weight);
  start_round();
  contribute(weight, nullptr);
  return !lost_;
}

void Collective::skip() {
  start_round();
  arrived_at_ = 0;
  phase_ = Phase::arrived;
}

bool Collective::sealed_without_me() const {
  if (phase_ == Phase::arrived || phase_ == Phase::waiting) return false;
  return referee_->is_sealed_without_me(number());
}

std::vector<int> Collective::missing() const { return referee_->missing(number()); }

std::vector<RoundNumber> Collective::progress() const {
  std::vector<RoundNumber> released;
  released.reserve(static_cast<std::size_t>(options_.policy.world));
  for (int rank = 0; rank < options_.policy.world; ++rank) {
    const Member& member = arena_.member(rank);
    const std::uint64_t behind = member.behind.load(std::memory_order_acquire);
    // Of ranks of other nodes only those are known that fill a window.
    released.push_back(arena_.has(rank) ? member.released.load(std::memory_order_acquire)
                       : behind > 0     ? behind - 1
                                        : number_);
  }
  return released;
}

RoundReport Collective::wait() { return finish(nullptr); }

RoundReport Collective::arrive_and_wait(double weight) {
  check_weight(weight);
  start_round();
  const ProgressTurn turn(options_.progress_engine.get());
  contribute(weight, nullptr);
  return finish(nullptr);
}

void Collective::release() {
  if (phase_ != Phase::loaded) return;
  if (options_.mapped != nullptr) options_.mapped->settle();
  ++number_;
  phase_ = Phase::computing;
  buffer_ = -1;
  arena_.member(rank_).released.store(number_, std::memory_order_release);
  arena_.released_bell().ring();
}

void Collective::ring_service() const {
  if (options_.service != nullptr) options_.service->ring();
}

RoundReport Collective::allreduce(const std::byte* in, std::byte* out, double weight) {
  check_weight(weight);
  if (arena_.spec().flats.size() != 1) {
    throw InvalidArgument("allreduce() takes one flat buffer, this collective has " +
                          std::to_string(arena_.spec().flats.size()));
  }
  if (arena_.spec().device_flats != 0) {
    throw InvalidArgument("allreduce() takes memory of the host, this collective's is a device's");
  }
  start_round();
  const ProgressTurn turn(options_.progress_engine.get());
  const Flat& flat = arena_.spec().flats.front();
  const std::size_t bytes = flat.count * size_of(flat.dtype);
  // A contribution that may be carried on must be in the slot.
  const bool is_refused = arena_.member(rank_).stages.load(std::memory_order_acquire) != 0;
  const bool stage =
      !options_.remote_reads || is_refused || bytes <= kStageUpTo || options_.late == Late::carry;
  if (stage) copy_bytes(slot(), in, bytes, false);
  contribute(weight, stage ? nullptr : in);
  // What others may still read is not written before the round is done.
  const bool in_use = !stage && in == out;
  RoundReport report = stage ? finish(out) : finish_unstaged(in_use ? nullptr : out);
  if (in_use) copy_bytes(out, result(), bytes, bytes >= kStreamFrom);
  release();
  return report;
}

void Collective::leave() {
  const bool first = phase_ != Phase::left;
  try {
    release();
  } catch (const DeviceError&) {
    // Noted where the device is used next; nobody must wait for this rank.
  }
  phase_ = Phase::left;
  Member& me = arena_.member(rank_);
  me.left.store(1);
  me.released.store(kUnbounded, std::memory_order_release);
  arena_.released_bell().ring();
  for (int i = 0; i < arena_.spec().records; ++i) {
    arena_.round(static_cast<RoundNumber>(i)).bell.ring();
  }
  ring_service();
  if (first && options_.mapped != nullptr) leave_device_memory();
}

void Collective::fail(const std::string& text) { arena_.fail({FailureKind::peer, rank_, text}); }

void Collective::start_round() {
  if (phase_ == Phase::left) {
    throw InvalidArgument("round " + std::to_string(number_) +
                          ": this rank has left; after shutdown() or close(), make a new one");
  }
  if (phase_ == Phase::arrived) {
    throw InvalidArgument(
        "round " + std::to_string(number_) +
        ": wait() must follow arrive(); it has not been called, or an exception " +
        "came between them");
  }
  if (phase_ == Phase::loaded) {
    throw InvalidArgument("round " + std::to_string(number_) +
                          ": release() must follow wait() before the next round begins");
  }
  check_not_interrupted();
  const Nanoseconds start = clock_.now();
  waiter_.check_failure();
  RoomCondition room(arena_, number_);
  phase_ = Phase::waiting;
  waiter_.wait(number_, arena_.released_bell(), room);
  phase_ = Phase::computing;
  blocked_ = clock_.now() - start;
}

void Collective::contribute(double weight, const std::byte* in) {
  if (carried_weight_ > 0) fold_carried(weight);
  Entry& entry = arena_.entry(number_, rank_);
  weight_ = weight;
  unstaged_ = in;
  entry.weight.store(weight, std::memory_order_relaxed);
  entry.address.store(reinterpret_cast<std::uintptr_t>(in), std::memory_order_relaxed);
  // In lockstep a contribution's version is the number of its round.
  lost_ = referee_->arrive(number_, number_, weight) == Arrival::late;
  arrived_at_ = referee_->arrived_at();
  phase_ = Phase::arrived;
}

// Others cannot read this rank's private memory after all.
void Collective::stage_if_asked() {
  Member& me = arena_.member(rank_);
  if (unstaged_ == nullptr || me.stages.load(std::memory_order_acquire) == 0) return;
  const Flat& flat = arena_.spec().flats.front();  // allreduce() has one
  const std::size_t bytes = flat.count * size_of(flat.dtype);
  copy_bytes(slot(), std::exchange(unstaged_, nullptr), bytes, false);
  arena_.entry(number_, rank_).address.store(0, std::memory_order_release);
  arena_.round(number_).bell.ring();
}

void Collective::check_not_interrupted() const {
  if (!is_interrupted()) return;
  waiter_.check_failure();  // if the others have been told, in those words
  throw Error("round " + std::to_string(number_) + ", rank " + std::to_string(rank_) +
              ": the wait in it was interrupted, and cannot be taken up again");
}

void Collective::count(const std::vector<int>& contributors) {
  if (!options_.late_rank) return;
  for (const LateRank& rank : shares_.add(contributors)) options_.late_rank(rank);
}

RoundReport Collective::finish(std::byte* out) {
  check_not_interrupted();
  if (phase_ != Phase::arrived) {
    throw InvalidArgument("round " + std::to_string(number_) + ": wait() before arrive()");
  }
  const Nanoseconds start = clock_.now();
  worker_->enter(number_);
  ResultCondition result(*this, out);
  phase_ = Phase::waiting;
  waiter_.wait(number_, arena_.round(number_).bell, result, options_.progress_engine.get());
  phase_ = Phase::loaded;
  RoundReport report = result.report(clock_.now() - start);
  const bool late = arrived_at_ != 0 && !report.contributed;
  if (late && options_.late == Late::carry && weight_ > 0) keep(weight_);
  count(report.contributors);
  return report;
}

RoundReport Collective::finish_unstaged(std::byte* out) {
  // After an error the caller's memory is his own again, and others may be reading it.
  try {
    RoundReport report = finish(out);
    unstaged_ = nullptr;
    return report;
  } catch (const Error& error) {
    unstaged_ = nullptr;
    fail(error.what());
    throw;
  } catch (...) {
    unstaged_ = nullptr;
    fail("round " + std::to_string(number_) + ", rank " + std::to_string(rank_) +
         ": interrupted while others read its contribution");
    throw;
  }
}

void Collective::fold_carried(double& weight) {
  const double total = weight + carried_weight_;
  for (std::size_t i = 0; i < arena_.spec().flats.size(); ++i) {
    const Flat& flat = arena_.spec().flats[i];
    std::byte* mine = slot() + arena_.flat_offset(i);
    const std::array<Operand, 2> both{
        Operand{carried_.data() + arena_.flat_offset(i), carried_weight_}, Operand{mine, weight}};
    // What abstains may be anything: NaN times 0 is NaN.
    const std::size_t operands = weight > 0 ? 2 : 1;
    weighted_mean(flat.dtype, both.data(), operands, flat.count, total, mine, false);
  }
  weight = total;
  carried_weight_ = 0;
}

void Collective::keep(double weight) {
  carried_.assign(slot(), slot() + arena_.contribution_bytes());
  carried_weight_ = weight;
}

}  // namespace hvd_backup
