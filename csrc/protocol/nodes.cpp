#include "protocol/nodes.hpp"

#include <numeric>
#include <set>
#include <string>
#include <utility>

#include "base/error.hpp"

namespace hvd_backup {

Nodes::Nodes(std::vector<int> node_of) : node_of_(std::move(node_of)) {
  for (int rank = 0; rank < world(); ++rank) {
    const int node = of(rank);
    if (node < 0 || node > count()) {
      throw InvalidArgument("rank " + std::to_string(rank) + " is on node " + std::to_string(node) +
                            ", but the nodes are numbered in ascending " +
                            "order of their lowest rank: expected 0 to " + std::to_string(count()));
    }
    if (node == count()) ranks_.emplace_back();
    ranks_[static_cast<std::size_t>(node)].push_back(rank);
  }
}

std::vector<int> Nodes::all() const {
  std::vector<int> nodes(ranks_.size());
  std::iota(nodes.begin(), nodes.end(), 0);
  return nodes;
}

std::vector<int> Nodes::of(const std::vector<int>& ranks) const {
  std::set<int> nodes;
  for (const int rank : ranks) nodes.insert(of(rank));
  return {nodes.begin(), nodes.end()};
}

}  // namespace hvd_backup
