#include "round/shares.hpp"

#include <cmath>
#include <cstddef>

namespace hvd_backup {
namespace {

constexpr double kFar = 0.25;       // of the share that chance leaves
constexpr double kCertain = 1e-6;   // chance of a false word
constexpr double kMuchWorse = 0.5;  // of the share that was told

}  // namespace

double binomial_at_most(RoundNumber most, RoundNumber trials, double chance) {
  if (chance >= 1) return most >= trials ? 1 : 0;
  // The terms one from another, as logarithms: the first may be smaller than any double.
  const auto n = static_cast<double>(trials);
  double term = n * std::log1p(-chance);
  double sum = std::exp(term);
  for (RoundNumber k = 0; k < most && k < trials; ++k) {
    const auto done = static_cast<double>(k);
    term += std::log((n - done) / (done + 1)) + std::log(chance) - std::log1p(-chance);
    sum += std::exp(term);
  }
  return sum;
}

Shares::Shares(int world, int backups)
    : chance_(1 - static_cast<double>(backups) / world), ranks_(static_cast<std::size_t>(world)) {}

std::vector<LateRank> Shares::add(const std::vector<int>& contributors) {
  ++rounds_;
  ++in_block_;
  for (const int rank : contributors) ++ranks_[static_cast<std::size_t>(rank)].contributed;
  if (in_block_ < judge_at_) return {};
  judge_at_ *= 2;
  std::vector<LateRank> found;
  for (std::size_t i = 0; i < ranks_.size(); ++i) {
    Rank& rank = ranks_[i];
    if (!is_too_late(rank)) continue;
    rank.found_at = rounds_;
    rank.found_share = static_cast<double>(rank.contributed) / static_cast<double>(in_block_);
    found.push_back({static_cast<int>(i), rank.contributed, in_block_});
  }
  if (in_block_ >= kBlock) {
    in_block_ = 0;
    judge_at_ = kFirst;
    for (Rank& rank : ranks_) rank.contributed = 0;
  }
  return found;
}

bool Shares::is_too_late(const Rank& rank) const {
  const double share = static_cast<double>(rank.contributed) / static_cast<double>(in_block_);
  if (share >= kFar * chance_) return false;
  if (rank.found_at != 0) {
    // Of whole blocks, as a share of few rounds may be half of another by chance.
    if (in_block_ < kBlock || rounds_ < rank.found_at + kAgainAfter) return false;
    if (share > kMuchWorse * rank.found_share || rank.found_share == 0) return false;
  }
  return binomial_at_most(rank.contributed, in_block_, chance_) < kCertain;
}

}  // namespace hvd_backup
