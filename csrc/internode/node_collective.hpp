#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "internode/sum_allreduce.hpp"
#include "memory/arena.hpp"
#include "protocol/messages.hpp"
#include "protocol/nodes.hpp"
#include "round/chunk_reducer.hpp"
#include "round/options.hpp"

namespace hvd_backup {

/// One collective's part in a node's service thread: tells the coordinator of the node's arrivals,
/// writes what it decided to the node's arena, and lets the data of sealed rounds travel.
class NodeCollective {
 public:
  /// What it waits for, and so how soon step() should be called again.
  enum class Need { nothing, room, seal, data };

  NodeCollective(std::uint32_t channel, const Arena& arena, const Options& options,
                 const Nodes& nodes, int node, DataTransport& data,
                 const Clock& clock = monotonic_clock());
  NodeCollective(const NodeCollective&) = delete;
  NodeCollective& operator=(const NodeCollective&) = delete;

  /// Arrivals of the node's ranks in the open round that were not reported before.
  std::optional<NodeReport> report();
  /// Whether report() or newly_left() has something to say.
  bool has_news() const;
  /// Ranks of the node that have left since this was asked last.
  std::vector<int> newly_left();
  /// Ranks of the node that keep a sealed round out of the window, if that is to be told (again):
  /// a report of no arrivals but of them.
  std::optional<NodeReport> lagging();

  /// From the coordinator. Throws InvalidMessage for a seal out of order.
  void take(const Seal& seal);
  void take_so_far(const NodeReport& so_far);
  void take_lagging(const NodeReport& lagging);
  void take_left(int rank);

  /// Does what can be done. True if there was something.
  bool step();
  Need need() const;
  /// Every rank of the world has left, and nothing is on its way.
  bool is_over() const;

  /// Ends the waits of the node's ranks.
  void fail(const std::string& text);

 private:
  bool is_new(int rank) const;
  bool has_room(RoundNumber number) const;
  bool may_begin() const;
  bool begin();
  bool seal();
  void write(const Seal& seal);
  bool help();
  const std::byte* sum(std::size_t chunk) const;
  void finish();
  bool flush();

  struct Sent {
    RoundNumber round;
    Outbox outbox;
  };

  Arena arena_;
  Options options_;
  const Nodes& nodes_;
  int node_;
  DataTransport& data_;
  const Clock& clock_;
  ChunkReducer reducer_;
  SumAllreduce exchange_;
  RoundNumber open_ = 0;        // the round after the last seal
  std::vector<bool> reported_;  // by rank, for the open round
  std::vector<bool> left_;      // by rank: told
  std::deque<Seal> seals_;      // not written yet
  RoundNumber next_ = 0;        // the round that begins next, or is on its way
  bool active_ = false;         // it is on its way
  bool sealed_ = false;         // and sealed
  bool sums_ = false;           // this node contributes to it, and needs to add
  const std::byte* only_ = nullptr;
  int buffer_ = -1;
  Nanoseconds sum_at_ = 0;  // when the node's sum last went on
  std::uint64_t summed_ = 0;
  Nanoseconds no_room_since_ = 0;
  Nanoseconds tell_lag_after_ = 0;
  std::deque<Sent> sent_;
};

}  // namespace hvd_backup
