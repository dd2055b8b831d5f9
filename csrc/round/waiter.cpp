#include "round/waiter.hpp"

#include <optional>

#include "base/error.hpp"

namespace hvd_backup {
namespace {

// Bounds the delay when a ring was lost because the rank that owed it was stopped or killed.
constexpr Nanoseconds kNap = 20 * kMillisecond;
// How often dead peers and Ctrl-C are looked for.
constexpr Nanoseconds kPatrol = 100 * kMillisecond;

[[noreturn]] void raise(FailureKind kind, const std::string& text) {
  if (kind == FailureKind::timeout) throw RoundTimeout(text);
  throw PeerFailed(text);
}

}  // namespace

std::string join(const std::vector<int>& ranks) {
  std::string text;
  for (int rank : ranks) text += (text.empty() ? "" : ", ") + std::to_string(rank);
  return text;
}

std::string ranks_have(const std::vector<int>& ranks) {
  return ranks.size() == 1 ? "rank " + join(ranks) + " has" : "ranks " + join(ranks) + " have";
}

void Waiter::check_failure() const {
  if (const std::optional<Failure> failure = arena_.failure()) rethrow(*failure);
}

void Waiter::check(RoundNumber round, Nanoseconds now) {
  check_failure();
  if (now - checked_at_ >= kPatrol) patrol(round, now);
}

void Waiter::patrol(RoundNumber round, Nanoseconds now) {
  checked_at_ = now;
  if (!options_.patrol) return;
  if (const std::vector<int> dead = options_.patrol(); !dead.empty()) {
    fail(round, FailureKind::peer,
         ranks_have(dead) + " died; start again from the last checkpoint");
  }
}

void Waiter::fail(RoundNumber round, FailureKind kind, const std::string& text) {
  const std::string full = prefix(round) + text;
  arena_.fail({kind, rank_, full});
  raise(kind, full);
}

std::string Waiter::after(Nanoseconds waited) {
  const Nanoseconds tenths = waited / (kSecond / 10);
  return "after " + std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " s";
}

Nanoseconds Waiter::nap(Nanoseconds now, Nanoseconds deadline, Nanoseconds wake_at) {
  Nanoseconds until = std::min(now + kNap, deadline);
  if (wake_at != 0) until = std::min(until, wake_at);
  return std::max<Nanoseconds>(until - now, 1);
}

std::string Waiter::prefix(RoundNumber round) const {
  return "round " + std::to_string(round) + ", rank " + std::to_string(rank_) + ": ";
}

void Waiter::rethrow(const Failure& failure) const {
  if (failure.rank == rank_) raise(failure.kind, failure.text);
  raise(failure.kind, "rank " + std::to_string(failure.rank) + " failed: " + failure.text);
}

}  // namespace hvd_backup
