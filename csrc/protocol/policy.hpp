#pragma once

#include <cstdint>
#include <limits>

#include "base/types.hpp"

namespace hvd_backup {

constexpr std::uint64_t kUnbounded = std::numeric_limits<std::uint64_t>::max();

/// The numbers that tell one system of distributed SGD from another.
struct Policy {
  int world = 1;
  /// Contributions that seal a round.
  int quorum = 1;
  /// A contribution computed at version v joins round r if r - v <= max_staleness.
  std::uint64_t max_staleness = 0;
  /// Whether a rank waits for the round to be sealed before it goes on.
  bool waits = true;
  /// How long a round stays open after its quorum for ranks that are nearly there.
  Nanoseconds grace = 0;

  /// Nothing is to be decided then: who has arrived is in.
  bool needs_every_rank() const { return quorum == world; }
};

/// Throws InvalidArgument, with the numbers, for a policy that no world could follow.
void validate(const Policy& policy);

/// Full synchronous SGD, as Horovod and DDP do it: every rank counts in every round.
Policy full_sync(int world);

/// Chen, Pan, Monga, Bengio, Jozefowicz, "Revisiting Distributed Synchronous SGD" (2016).
Policy backup_workers(int world, int backups, Nanoseconds grace = 0);

/// Zhang, Gupta, Lian, Liu, "Staleness-aware async-SGD" (2015): an update per c contributions.
Policy softsync(int world, int contributions);

/// Asynchronous SGD; contributions staler than max_staleness are dropped.
Policy async(int world, std::uint64_t max_staleness = kUnbounded);

}  // namespace hvd_backup
