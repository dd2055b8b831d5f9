#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/coordination.hpp"
#include "engine/interchange.hpp"
#include "memory/doorbell.hpp"
#include "memory/rows.hpp"
#include "protocol/nodes.hpp"
#include "transport/control.hpp"
#include "transport/data.hpp"
#include "transport/poller.hpp"

namespace hvd_backup {

/// A node's end of what happens between nodes, for all collectives, in one process of the node. A
/// thread sleeps until the node's ranks or another node want something, and looks at the data
/// transport only while data of a round is on its way. While a rank of that process waits, it does
/// the thread's work itself (as an Errand). Node 0's service also coordinates.
class NodeService final : public Errand {
 public:
  struct Parts {
    Nodes nodes;
    int node;
    std::unique_ptr<Control> control;
    std::shared_ptr<DataTransport> data;
    std::shared_ptr<const Doorbell> doorbell;
    /// The node's notice board, a row per rank of the world.
    Rows rows;
    /// Ranks of this node whose process is gone. Called now and then.
    std::function<std::vector<int>()> dead;
    /// Keeps alive what the others point to.
    std::shared_ptr<void> owner;
  };

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
  void add(std::uint32_t channel, const Arena& arena, const Options& options,
           std::shared_ptr<void> owner);

  /// Waits until every rank of the world has left or is dead, so that nobody needs this node any
  /// more, and what was on its way has arrived. False if `timeout` was over before.
  bool wait_until_over(Nanoseconds timeout);

  /// Why it could not go on; empty if it could.
  std::string problem() const;

 private:
  struct Channel {
    std::shared_ptr<void> owner;
    std::unique_ptr<Interchange> interchange;
  };

  void serve();
  bool turn();
  bool turn_or_fail();
  Nanoseconds doze();
  bool has_news() const;
  bool is_busy() const;
  void wake() const;
  bool add_new();
  bool tell_coordinator();
  bool step();
  Nanoseconds nap(Nanoseconds now) const;
  void take(const Control::Event& event);
  void submit(const Frame& frame);
  void publish(const std::vector<Frame>& frames);
  void deliver(const Frame& frame);
  void take_row(const Frame& frame);
  Frame row_frame(int row) const;
  void lose(int node);
  void bury(int rank);
  void patrol(Nanoseconds now);
  void drop_what_is_over();
  bool all_left() const;
  bool is_idle() const;
  void fail(const std::string& text);

  const Clock& clock_;
  const int process_;  // whose thread it is
  std::thread thread_;
  Poller bed_;  // where the thread sleeps: it watches the control channel unless a rank is here
  int alarm_ = -1;
  std::atomic<int> visitors_{0};  // threads that do the work: of the rank, as a rule one

  std::mutex turn_;  // of what follows
  Parts parts_;
  Coordination coordination_;
  std::map<std::uint32_t, Channel> channels_;
  Nanoseconds moved_at_ = 0;
  Nanoseconds patrolled_at_ = 0;
  bool dozing_ = false;          // the doorbell rings
  bool somebody_left_ = false;   // since the last patrol
  Nanoseconds all_left_at_ = 0;  // every rank has left or is dead since then; 0: not yet

  mutable std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::map<std::uint32_t, Channel> new_;
  std::map<std::uint32_t, Policy> new_policies_;
  std::string problem_;
  bool over_ = false;

  std::atomic<bool> closed_{false};
};

}  // namespace hvd_backup
