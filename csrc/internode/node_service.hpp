#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "internode/node_work.hpp"
#include "transport/poller.hpp"

namespace hvd_backup {

/// Sees to it that a node's work between nodes is done, in one process of the node. A thread sleeps
/// until the node's ranks or another node want something, and looks at the data transport only
/// while data of a round is on its way. While a rank of that process waits, it does the thread's
/// work itself (as an ProgressEngine).
class NodeService final : public ProgressEngine {
 public:
  using Parts = NodeWork::Parts;

  /// Starts the thread, which takes no signals.
  explicit NodeService(Parts parts);
  ~NodeService() override;

  /// Ends the thread, whatever is on its way.
  void close();

  void start() override;
  void run(Nanoseconds at_most) override;
  void stop() override;

  /// Serves a collective from now on: numbered alike on all nodes, each number once, ascending. To
  /// be called on all nodes before a rank of any arrives in it. `owner` keeps the arena's memory.
  /// Throws PeerFailed if the service could not go on.
  void add(std::uint32_t channel, const Arena& arena, const Options& options,
           std::shared_ptr<void> owner);

  /// Waits until every rank of the world has left or is dead, so that nobody needs this node any
  /// more, and what was on its way has arrived. False if `timeout` was over before.
  bool wait_until_over(Nanoseconds timeout);

  /// Why it could not go on; empty if it could.
  std::string problem() const;

 private:
  void serve();
  void serve_until_closed();
  bool turn();
  void listen();
  void wake(Nanoseconds after) const;

  const int process_;  // whose thread it is
  std::thread thread_;
  Poller bed_;                    // where the thread sleeps; it hears of work unless a rank is here
  Descriptor alarm_;              // wakes it
  std::atomic<int> visitors_{0};  // threads that do the work: of the rank, as a rule one
  std::atomic<bool> alarm_is_set_{false};
  std::atomic<bool> closed_{false};

  mutable std::mutex turn_;  // of what follows
  std::condition_variable changed_;
  bool listens_ = true;            // work_.fd() is in bed_
  Nanoseconds takes_over_at_ = 0;  // the thread, if no rank is here then
  NodeWork work_;
};

}  // namespace hvd_backup
