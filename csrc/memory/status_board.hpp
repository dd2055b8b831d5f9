#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "memory/shared_state.hpp"

namespace hvd_backup {

/// A table of short messages, one status per rank, each replaced as a whole. Every node has a
/// table. Its service copies a status to the other nodes when a rank asks for that.
///
/// A status has one writer on each node: the rank itself on its own node, the service elsewhere. A
/// writer that is killed at any instruction leaves the old message or the new one.
///
/// The owner provides the memory; all zero is a valid start.
class StatusBoard {
 public:
  enum Flag : std::uint32_t {
    kLeft = 1,
    kDead = 2,
    kSilent = 4,  ///< set besides kDead when the rank's host does not answer
    kCutOff = 8,  ///< the rank is on another node, and no message of it arrives here any more
  };

  static constexpr std::size_t kMostBytes = 2032;

  /// Bytes for `count` statuses.
  static std::size_t bytes(int count);

  /// `memory` begins on a cache line.
  StatusBoard(std::byte* memory, int count);

  int count() const { return count_; }

  /// Replaces the message. Throws InvalidArgument if it is too long. Like all functions below, it
  /// also throws InvalidArgument if there is no such rank.
  void write(int rank, const std::byte* data, std::size_t bytes);
  /// The message, as it was written; empty if none was.
  std::vector<std::byte> read(int rank) const;
  /// The ranks whose status was written since the last call on this object, or since the start.
  std::vector<int> written();

  /// Asks the service to copy the rank's message and flags, as they are now or later, to the other
  /// nodes.
  void tell(int rank);
  /// For the service: whether a rank asked for a copy since the last call. A read after this call
  /// sees everything written before the latest request, so one copy serves several requests. Read
  /// the flags before the message, and set them after writing it: then a reader that sees that a
  /// rank has left also sees its last words.
  bool take_untold(int rank);
  /// Whether take_untold() would return true.
  bool is_untold(int rank) const;

  /// Returns true to the first caller on this node, and false to all later ones.
  bool claim();

  /// Flags are never cleared.
  void set(int rank, Flag flag);
  std::uint32_t flags(int rank) const;
  /// The ranks that have this flag, ascending.
  std::vector<int> with(Flag flag) const;

 private:
  struct Control;

  std::byte* entry(int rank) const;
  Control& control(int rank) const;
  SharedState message(int rank) const;

  std::byte* memory_;
  int count_;
  std::vector<std::uint64_t> seen_;  // per rank: its number of writes at the last look
};

}  // namespace hvd_backup
