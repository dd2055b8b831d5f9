#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "internode/coordinator_server.hpp"
#include "internode/node_collective.hpp"
#include "memory/doorbell.hpp"
#include "memory/status_board.hpp"
#include "protocol/nodes.hpp"
#include "transport/control.hpp"
#include "transport/data.hpp"

namespace hvd_backup {

/// What a node has to do between nodes, for all collectives; on node 0, the coordinator's work as
/// well. For one thread at a time: NodeService says which.
class NodeWork {
 public:
  struct Parts {
    Nodes nodes;
    int node;
    std::unique_ptr<Control> control;
    std::shared_ptr<DataTransport> data;
    std::shared_ptr<const Doorbell> doorbell;
    /// The node's notice board, a status per rank of the world.
    StatusBoard board;
    /// Ranks of this node whose process is gone. Called now and then.
    std::function<std::vector<int>()> dead;
    /// Keeps alive what the others point to.
    std::shared_ptr<void> owner;
  };

  explicit NodeWork(Parts parts);
  NodeWork(const NodeWork&) = delete;
  NodeWork& operator=(const NodeWork&) = delete;
  ~NodeWork() = default;
  /// Leaves the other nodes, whatever is on its way.
  void close();

  /// Takes a collective on; see NodeService::add().
  void add(std::uint32_t channel, const Arena& arena, const Options& options,
           std::shared_ptr<void> owner);

  /// One look at everything. True if there was something. When it cannot go on, the ranks' waits
  /// end, problem() tells why, and there is never anything any more.
  bool turn();
  /// It cannot go on, for this reason.
  void give_up(const std::string& text);
  /// Data on its way does not ring: it is looked for without a rest at first, from the last time
  /// that something moved, and then again and again, at the latest after `longest_nap`. (MPI moves
  /// it only while somebody looks.)
  struct SpinLimits {
    Nanoseconds looks_for;
    Nanoseconds longest_nap;
  };
  /// How long there will be nothing to do, unless fd() can be read; from now on, who has something
  /// rings.
  Nanoseconds doze(const SpinLimits& spin_limits);
  /// -1 when it cannot go on.
  int fd() const;

  /// Every rank of the world has left or is dead, and what was on its way has arrived.
  bool is_over() const { return over_; }
  /// Why it could not go on; empty if it could.
  const std::string& problem() const { return problem_; }

 private:
  struct Channel {
    std::shared_ptr<void> owner;
    std::unique_ptr<NodeCollective> interchange;
  };

  bool look();
  bool has_news() const;
  bool tell_coordinator();
  bool step();
  Nanoseconds nap(const SpinLimits& spin_limits) const;
  void take(const Control::Event& event);
  void submit(const Frame& frame);
  void publish(const std::vector<Frame>& frames);
  void deliver(const Frame& frame);
  void take_status(const Frame& frame);
  Frame status_frame(int status) const;
  void lose(int node, bool is_silent);
  void bury(int rank, bool is_silent = false);
  void cut_off_others();
  void patrol();
  void drop_what_is_over();
  bool all_left() const;
  bool is_idle() const;
  void fail(const std::string& text);

  const Clock& clock_;
  Parts parts_;
  CoordinatorServer coordination_;
  std::map<std::uint32_t, Channel> channels_;
  Nanoseconds moved_at_;
  Nanoseconds patrolled_at_;
  bool dozing_ = false;          // the doorbell rings
  bool somebody_left_ = false;   // since the last patrol
  Nanoseconds all_left_at_ = 0;  // every rank has left or is dead since then; 0: not yet
  bool over_ = false;
  std::string problem_;
};

}  // namespace hvd_backup
