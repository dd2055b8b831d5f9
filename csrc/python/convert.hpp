// What the files of the bindings have in common.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <memory>

#include "base/types.hpp"
#include "round/options.hpp"

namespace hvd_backup {

inline Nanoseconds nanoseconds(double seconds) {
  constexpr double kForEver = 1e9;
  return static_cast<Nanoseconds>(std::min(seconds, kForEver) * static_cast<double>(kSecond));
}

inline double seconds(Nanoseconds duration) {
  return static_cast<double>(duration) / static_cast<double>(kSecond);
}

/// A view of memory, as numpy has it.
using Bytes = pybind11::array_t<std::uint8_t>;

/// Segments, life locks and status boards: memory.cpp.
void bind_memory(pybind11::module_& m);

/// What a world of several nodes needs: nodes.cpp.
void bind_nodes(pybind11::module_& m);

/// What a rank is told of a round, and the log of rounds: rounds.cpp.
void bind_round(pybind11::module_& m);
void bind_round_log(pybind11::module_& m);

/// Staging, and what CUDA there is: device.cpp.
void bind_device(pybind11::module_& m);

/// None: another process has the service.
std::shared_ptr<ProgressEngine> progress_engine_of(const pybind11::object& handle);

/// None: there is but one node.
std::shared_ptr<const Doorbell> doorbell_of(const pybind11::object& handle);

}  // namespace hvd_backup
