#pragma once

#include <cstdint>
#include <vector>

#include "base/types.hpp"
#include "protocol/messages.hpp"
#include "protocol/policy.hpp"
#include "protocol/round_ledger.hpp"

namespace hvd_backup {

/// Decides for ranks that share no memory: the rule of RoundLedger over reports of nodes.
///
/// Pure: reports and time go in, seals come out. One round is open at a time, the one after the
/// last seal, since in lockstep no rank can arrive in a round before it has the result of the one
/// before. A report for a sealed round is of late ranks; they learn it from the seal.
class Coordinator {
 public:
  explicit Coordinator(const Policy& policy);
  Coordinator(const Coordinator&) = delete;  // the ledger looks at this one's words
  Coordinator& operator=(const Coordinator&) = delete;
  ~Coordinator() = default;

  /// Takes a report that has just come. True if it sealed the open round: then seal() goes to all
  /// nodes. Throws InvalidArgument for a round that is still to come.
  bool take(const NodeReport& report, Nanoseconds now);

  /// Time has passed. True if the open round's grace is over, and it is sealed now.
  bool expire(Nanoseconds now);

  /// When to call expire(); 0: no need.
  Nanoseconds wake_at() const;

  /// The round that is open.
  RoundNumber open() const { return ledger_.number(); }
  /// Ranks that have not arrived in it.
  std::vector<int> missing() const;
  /// The ranks that have: what nodes are told when it stays open for long.
  NodeReport so_far() const;
  /// The round that was sealed last.
  const Seal& seal() const { return seal_; }

 private:
  void close();

  Policy policy_;
  std::vector<std::uint64_t> words_;
  RoundLedger ledger_;
  // By rank, in the open round:
  std::vector<Nanoseconds> arrived_at_;
  std::vector<double> weights_;
  Seal seal_;
};

}  // namespace hvd_backup
