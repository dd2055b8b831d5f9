// The nodes of a world as threads of one process: a service each, real control sockets, and the
// in-process data transport.
#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "internode/node_service.hpp"
#include "transport/local_data.hpp"

namespace hvd_backup::testing {

/// What the services of a test's nodes share and own.
class NodeNetwork {
 public:
  explicit NodeNetwork(const std::vector<int>& node_of)
      : nodes(node_of), board_bytes_(StatusBoard::bytes(nodes.world())), token_(make_token()) {
    for (int node = 0; node < nodes.count(); ++node) {
      words_.push_back(aligned(Doorbell::kBytes));
      boards_.push_back(aligned(board_bytes_));
      doorbells_.push_back(std::make_shared<const Doorbell>(Doorbell::create(words_.back().get())));
    }
    std::uint16_t port = 0;
    for (int node = 0; node < nodes.count(); ++node) {
      std::unique_ptr<Control> control;
      if (node == 0) {
        auto hub = std::make_unique<ControlHub>(token_, nodes.count());
        port = hub->port();
        control = std::move(hub);
      } else {
        control = std::make_unique<ControlLink>("localhost", port, token_, node, 10 * kSecond);
      }
      start(node, std::move(control));
    }
    this->port = port;
  }

  void start(int node, std::unique_ptr<Control> control) {
    const auto i = static_cast<std::size_t>(node);
    services.push_back(std::make_shared<NodeService>(NodeService::Parts{
        nodes, node, std::move(control), data.end(node), doorbells_[i], board(node),
        [this, node] { return node == dead_node ? dead : std::vector<int>{}; }, nullptr}));
  }

  ~NodeNetwork() {
    for (const auto& one : services) one->close();
  }

  std::shared_ptr<const Doorbell> doorbell(int node) const {
    return doorbells_[static_cast<std::size_t>(node)];
  }
  std::shared_ptr<NodeService> service(int node) const {
    return services[static_cast<std::size_t>(node)];
  }
  StatusBoard board(int node) const {
    return {boards_[static_cast<std::size_t>(node)].get(), nodes.world()};
  }

  const Nodes nodes;
  LocalNetwork data;
  std::uint16_t port = 0;
  /// What the life locks of one node would tell.
  std::atomic<int> dead_node{-1};
  std::vector<int> dead;

 private:
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  using Aligned = std::unique_ptr<std::byte, Free>;

  static Aligned aligned(std::size_t bytes) {
    const std::size_t whole = (bytes + 63) / 64 * 64;
    Aligned memory(static_cast<std::byte*>(std::aligned_alloc(64, whole)));
    if (memory == nullptr) throw std::bad_alloc();
    std::memset(memory.get(), 0, whole);
    return memory;
  }

  std::size_t board_bytes_;
  Token token_;
  std::vector<Aligned> words_;
  std::vector<Aligned> boards_;
  std::vector<std::shared_ptr<const Doorbell>> doorbells_;

 public:
  std::vector<std::shared_ptr<NodeService>> services;  // last: they stop before the rest goes
};

/// Ranks in their order, so many to each node; or dealt out to the nodes in turn.
inline std::vector<int> split(int world, int per_node, bool dealt = false) {
  const int nodes = (world + per_node - 1) / per_node;
  std::vector<int> node_of;
  for (int rank = 0; rank < world; ++rank)
    node_of.push_back(dealt ? rank % nodes : rank / per_node);
  return node_of;
}

}  // namespace hvd_backup::testing
