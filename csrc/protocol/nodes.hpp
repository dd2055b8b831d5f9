#pragma once

#include <cstddef>
#include <vector>

namespace hvd_backup {

/// Which ranks share a node. Nodes are numbered in ascending order of their lowest rank.
class Nodes {
 public:
  /// `node_of[rank]` for every rank of the world. Throws InvalidArgument if the numbers are not in
  /// the order above.
  explicit Nodes(std::vector<int> node_of);

  int world() const { return static_cast<int>(node_of_.size()); }
  int count() const { return static_cast<int>(ranks_.size()); }
  int of(int rank) const { return node_of_[static_cast<std::size_t>(rank)]; }
  /// Every node.
  std::vector<int> all() const;
  /// The node's ranks, ascending.
  const std::vector<int>& ranks(int node) const { return ranks_[static_cast<std::size_t>(node)]; }
  /// The nodes of these ranks, ascending, each once.
  std::vector<int> of(const std::vector<int>& ranks) const;

 private:
  std::vector<int> node_of_;
  std::vector<std::vector<int>> ranks_;
};

}  // namespace hvd_backup
