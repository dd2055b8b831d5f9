#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "memory/shared_state.hpp"

namespace hvd_backup {

/// A table of short messages, a rank per rank, each replaced as a whole. Every node has a table,
/// and a service that copies the rows its ranks ask it to from its node to the others.
///
/// A rank has one writer on each node: its rank, or, on the nodes where that rank is not, the
/// service. A writer that is killed at any instruction leaves the old message or the new one.
///
/// The rows lie in memory the owner provides; all zero is a valid start.
class StatusBoard {
 public:
  enum Flag : std::uint32_t {
    kLeft = 1,
    kDead = 2,
    kSilent = 4,  ///< besides kDead: as its host does not answer
    kCutOff = 8,  ///< of another node: nothing of it is heard here any more
  };

  static constexpr std::size_t kMostBytes = 2032;

  /// Bytes that `count` rows need.
  static std::size_t bytes(int count);

  /// `memory` begins on a cache line.
  StatusBoard(std::byte* memory, int count);

  int count() const { return count_; }

  /// Replaces the message. Throws InvalidArgument if it is too long, or there is no such rank, as
  /// all that follow do.
  void write(int rank, const std::byte* data, std::size_t bytes);
  /// The message, as it was written; empty if none was.
  std::vector<std::byte> read(int rank) const;
  /// StatusBoard written since this was last asked of this object; at first, since the start.
  std::vector<int> written();

  /// Asks for the other nodes to be told of the rank, its message and flags, as it is now or later.
  void tell(int rank);
  /// For the service: whether that was asked since the last call. What is then read is as young as
  /// the youngest asking, so that one copy serves several. The flags are to be read before the
  /// message, and set after it was written: who sees that a rank has left also sees its last words.
  bool take_untold(int rank);
  /// Whether take_untold() would say so.
  bool is_untold(int rank) const;

  /// Whether the caller is the first on this node to ask. One caller gets true, whoever asks.
  bool claim();

  /// Flags are set for good.
  void set(int rank, Flag flag);
  std::uint32_t flags(int rank) const;
  /// StatusBoard that have this flag, ascending.
  std::vector<int> with(Flag flag) const;

 private:
  struct Control;

  std::byte* entry(int rank) const;
  Control& control(int rank) const;
  SharedState message(int rank) const;

  std::byte* memory_;
  int count_;
  std::vector<std::uint64_t> seen_;  // per rank, how often it had been written at the last look
};

}  // namespace hvd_backup
