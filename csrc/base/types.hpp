#pragma once

#include <cstddef>
#include <cstdint>

namespace hvd_backup {

/// Number of a round, counted from 0; also a version: the number of rounds a rank has applied.
using RoundNumber = std::uint64_t;

/// A point in time or a duration. Points are on one clock shared by all ranks of a node.
using Nanoseconds = std::int64_t;

constexpr Nanoseconds kMicrosecond = 1'000;
constexpr Nanoseconds kMillisecond = 1'000'000;
constexpr Nanoseconds kSecond = 1'000'000'000;

}  // namespace hvd_backup
