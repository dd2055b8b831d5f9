#pragma once

#include "base/types.hpp"

namespace hvd_backup {

/// The engine's source of time. The protocol reads no clock: the time is an argument.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual Nanoseconds now() const = 0;
};

/// CLOCK_MONOTONIC: the same for all processes of a host.
const Clock& monotonic_clock();

}  // namespace hvd_backup
