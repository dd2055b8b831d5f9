#include "protocol/round_ledger.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "base/error.hpp"

namespace hvd_backup {
namespace {

constexpr unsigned kBits = 64;

std::uint64_t bit(int rank) { return std::uint64_t{1} << (static_cast<unsigned>(rank) % kBits); }

std::size_t word(int rank) { return static_cast<unsigned>(rank) / kBits; }

double as_double(std::uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

std::uint64_t as_bits(double value) {
  std::uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

void check(const Policy& policy, int rank, RoundNumber version, RoundNumber open, double weight) {
  if (rank < 0 || rank >= policy.world) {
    throw InvalidArgument("rank " + std::to_string(rank) + " is not in a world of " +
                          std::to_string(policy.world));
  }
  if (version > open) {
    throw InvalidArgument("rank " + std::to_string(rank) + " contributes at version " +
                          std::to_string(version) + ", but the open round is " +
                          std::to_string(open));
  }
  if (!std::isfinite(weight) || weight < 0) {
    throw InvalidArgument("the weight of a contribution must be finite and not negative, not " +
                          std::to_string(weight));
  }
}

}  // namespace

std::size_t RoundLedger::words(int world) { return kMembers + word(world - 1) + 1; }

RoundLedger::RoundLedger(const Policy& policy, std::uint64_t* state)
    : policy_(policy), state_(state) {}

void RoundLedger::open(RoundNumber number) {
  std::fill_n(state_, words(policy_.world), 0);
  state_[kNumber] = number;
}

Arrival RoundLedger::arrive(int rank, RoundNumber version, double weight, Nanoseconds now) {
  check(policy_, rank, version, number(), weight);
  expire(now);
  if (is_sealed() || contains(rank) || number() - version > policy_.max_staleness) {
    return Arrival::late;
  }
  if (count() == 0) state_[kFirstAt] = static_cast<std::uint64_t>(now);
  state_[kMembers + word(rank)] |= bit(rank);
  state_[kWeight] = as_bits(this->weight() + weight);
  ++state_[kCount];
  if (count() == policy_.quorum) state_[kQuorumAt] = static_cast<std::uint64_t>(now);
  const bool everybody = count() == policy_.world;
  if (everybody || (has_quorum() && policy_.grace == 0)) {
    seal(now);
    return Arrival::sealed;
  }
  return Arrival::joined;
}

bool RoundLedger::expire(Nanoseconds now) {
  if (is_sealed() || !has_quorum() || now < grace_ends_at()) return false;
  seal(now);
  return true;
}

void RoundLedger::adopt(const Seal& decided, Nanoseconds now) {
  open(decided.round);
  for (const int rank : decided.contributors) state_[kMembers + word(rank)] |= bit(rank);
  state_[kCount] = decided.contributors.size();
  state_[kWeight] = as_bits(decided.weight);
  state_[kFirstAt] = static_cast<std::uint64_t>(now - decided.open_for);
  seal(now);
}

void RoundLedger::adopt(const NodeReport& so_far) {
  open(so_far.round);
  for (const ReportedArrival& arrival : so_far.arrivals) {
    state_[kMembers + word(arrival.rank)] |= bit(arrival.rank);
  }
  state_[kCount] = so_far.arrivals.size();
}

bool RoundLedger::contains(int rank) const {
  return (state_[kMembers + word(rank)] & bit(rank)) != 0;
}

std::vector<int> RoundLedger::contributors() const {
  std::vector<int> ranks;
  ranks.reserve(static_cast<std::size_t>(count()));
  for (int rank = 0; rank < policy_.world; ++rank) {
    if (contains(rank)) ranks.push_back(rank);
  }
  return ranks;
}

double RoundLedger::weight() const { return as_double(state_[kWeight]); }

Nanoseconds RoundLedger::grace_ends_at() const {
  return static_cast<Nanoseconds>(state_[kQuorumAt]) + policy_.grace;
}

void RoundLedger::seal(Nanoseconds now) {
  state_[kSealed] = 1;
  state_[kSealedAt] = static_cast<std::uint64_t>(now);
}

}  // namespace hvd_backup
