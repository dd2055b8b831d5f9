#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "base/types.hpp"
#include "protocol/coordinator.hpp"
#include "transport/framed_socket.hpp"

namespace hvd_backup {

/// Kinds of frames between nodes. Of a collective, whose number is the frame's channel:
enum class Message : std::uint32_t {
  report,   ///< to the coordinator: NodeReport
  seal,     ///< to all nodes: Seal
  so_far,   ///< to all nodes: NodeReport of who has arrived in a round that stays open
  lagging,  ///< by way of the coordinator to all: NodeReport of who keeps a window full
  left,     ///< between both: the rank that has left, an int32
  status,   ///< between both, of no collective: a rank's number and flags, then its status
};

Frame make_frame(Message kind, std::uint32_t channel, std::vector<std::byte> payload);

/// What node 0 does for all: decides each collective's rounds, and passes on what all must know.
/// No clock, no I/O; frames and time go in, frames for all nodes come out.
class CoordinatorServer {
 public:
  explicit CoordinatorServer(int world) : world_(world) {}

  void add(std::uint32_t channel, const Policy& policy);
  void remove(std::uint32_t channel);

  /// A frame that a node has sent, node 0 included: what every node must be told now.
  /// Throws InvalidMessage or InvalidArgument for what no node of this job would send.
  std::vector<Frame> take(const Frame& frame, Nanoseconds now);
  /// What every node must be told because time has passed.
  std::vector<Frame> tick(Nanoseconds now);
  /// When to call tick(); 0: no need.
  Nanoseconds wake_at() const;

 private:
  struct Rounds {
    explicit Rounds(const Policy& policy) : coordinator(policy) {}
    Coordinator coordinator;
    Nanoseconds tell_at = 0;  // who has arrived so far; 0: nobody has
    Nanoseconds tell_after = 0;
  };

  std::vector<Frame> take_report(const Frame& frame, Nanoseconds now);
  Frame seal(std::uint32_t channel, Rounds& rounds) const;

  int world_;
  std::map<std::uint32_t, Rounds> channels_;
};

}  // namespace hvd_backup
