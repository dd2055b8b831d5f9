#include "protocol/coordinator.hpp"

#include <algorithm>
#include <string>

#include "base/error.hpp"

namespace hvd_backup {

Coordinator::Coordinator(const Policy& policy)
    : policy_(policy),
      words_(RoundLedger::words(policy.world)),
      ledger_(policy, words_.data()),
      arrived_at_(static_cast<std::size_t>(policy.world)),
      weights_(static_cast<std::size_t>(policy.world)) {
  validate(policy);
  if (!policy.waits || policy.max_staleness != 0) {
    throw InvalidArgument("nodes are coordinated in lockstep: max_staleness=0, waits=true");
  }
}

bool Coordinator::take(const NodeReport& report, Nanoseconds now) {
  if (report.round > open()) {
    throw InvalidArgument("a report for round " + std::to_string(report.round) +
                          ", but the open round is " + std::to_string(open()));
  }
  if (report.round < open()) return false;
  std::vector<ReportedArrival> arrivals = report.arrivals;
  std::sort(arrivals.begin(), arrivals.end(), [](const auto& a, const auto& b) {
    return a.age != b.age ? a.age > b.age : a.rank < b.rank;  // the first to arrive first
  });
  for (const ReportedArrival& arrival : arrivals) {
    // The ledger's time is that of the reports; how old they are tells when the ranks arrived.
    const Arrival outcome = ledger_.arrive(arrival.rank, report.round, arrival.weight, now);
    if (outcome != Arrival::late) {
      arrived_at_[static_cast<std::size_t>(arrival.rank)] = now - arrival.age;
      weights_[static_cast<std::size_t>(arrival.rank)] = arrival.weight;
    }
  }
  if (!ledger_.is_sealed()) return false;
  close();
  return true;
}

bool Coordinator::expire(Nanoseconds now) {
  if (!ledger_.expire(now)) return false;
  close();
  return true;
}

Nanoseconds Coordinator::wake_at() const {
  return ledger_.has_quorum() && !ledger_.is_sealed() ? ledger_.grace_ends_at() : 0;
}

std::vector<int> Coordinator::missing() const {
  std::vector<int> ranks;
  for (int rank = 0; rank < policy_.world; ++rank) {
    if (!ledger_.contains(rank)) ranks.push_back(rank);
  }
  return ranks;
}

NodeReport Coordinator::so_far() const {
  NodeReport report{open(), {}};
  for (const int rank : ledger_.contributors()) report.arrivals.push_back({rank, 1, 0});
  return report;
}

void Coordinator::close() {
  seal_ = {};
  seal_.round = open();
  seal_.contributors = ledger_.contributors();
  // In ascending order of rank, not of arrival, so that the same contributors give the same bits.
  for (const int rank : seal_.contributors)
    seal_.weight += weights_[static_cast<std::size_t>(rank)];
  const auto arrived_at = [this](int rank) { return arrived_at_[static_cast<std::size_t>(rank)]; };
  Nanoseconds first = ledger_.sealed_at();
  for (const int rank : seal_.contributors) first = std::min(first, arrived_at(rank));
  seal_.open_for = ledger_.sealed_at() - first;
  if (policy_.world <= kTellArrivalsUpTo) {
    for (const int rank : seal_.contributors) seal_.offsets.push_back(arrived_at(rank) - first);
  }
  ledger_.open(seal_.round + 1);
}

}  // namespace hvd_backup
