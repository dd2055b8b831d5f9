#pragma once

#include "base/types.hpp"

namespace hvd_backup {

/// Where the engine gets its time from. The protocol never asks: time is passed in.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual Nanoseconds now() const = 0;
};

/// CLOCK_MONOTONIC: the same for all processes of a host.
const Clock& monotonic_clock();

}  // namespace hvd_backup
