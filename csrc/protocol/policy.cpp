#include "protocol/policy.hpp"

#include <string>

#include "base/error.hpp"

namespace hvd_backup {

void validate(const Policy& policy) {
  if (policy.world < 1) {
    throw InvalidArgument("a world has at least 1 rank, not " + std::to_string(policy.world));
  }
  if (policy.quorum < 1 || policy.quorum > policy.world) {
    const int backups = policy.world - policy.quorum;
    throw InvalidArgument("backup_workers=" + std::to_string(backups) + " leaves a quorum of " +
                          std::to_string(policy.quorum) + " in a world of " +
                          std::to_string(policy.world) +
                          " ranks; use 0 <= backup_workers <= " + std::to_string(policy.world - 1));
  }
  if (policy.grace < 0) throw InvalidArgument("grace cannot be negative");
}

Policy full_sync(int world) { return backup_workers(world, 0); }

Policy backup_workers(int world, int backups, Nanoseconds grace) {
  Policy policy;
  policy.world = world;
  policy.quorum = world - backups;
  policy.grace = grace;
  validate(policy);
  return policy;
}

Policy softsync(int world, int contributions) {
  Policy policy;
  policy.world = world;
  policy.quorum = contributions;
  policy.max_staleness = kUnbounded;
  policy.waits = false;
  validate(policy);
  return policy;
}

Policy async(int world, std::uint64_t max_staleness) {
  Policy policy = softsync(world, 1);
  policy.max_staleness = max_staleness;
  return policy;
}

}  // namespace hvd_backup
