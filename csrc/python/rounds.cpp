// Rounds as Python sees them: what a rank is told of one, and the log of many.
#include "round/round_log.hpp"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "python/convert.hpp"
#include "round/collective.hpp"

namespace py = pybind11;

namespace hvd_backup {
namespace {

std::optional<double> seconds_unless_0(Nanoseconds time) {
  if (time == 0) return std::nullopt;
  return seconds(time);
}

py::tuple contributors(const RoundReport& r) { return py::tuple(py::cast(r.contributors)); }

py::dict arrivals(const RoundReport& r) {
  py::dict seconds_after_first;
  for (std::size_t i = 0; i < r.arrived_at.size(); ++i) {
    seconds_after_first[py::int_(r.contributors[i])] = seconds(r.arrived_at[i] - r.first_at);
  }
  return seconds_after_first;
}

std::string describe(const RoundReport& r) {
  return "Round(number=" + std::to_string(r.number) + ", contributors=(" + join(r.contributors) +
         "), contributed=" + (r.contributed ? "True" : "False") +
         ", weight=" + std::to_string(r.weight) +
         ", sealed_s=" + std::to_string(seconds(r.sealed_at - r.first_at)) +
         ", waited_s=" + std::to_string(seconds(r.waited)) + ")";
}

py::tuple pack(const RoundReport& r) {
  return py::make_tuple(r.number, r.contributors, r.arrived_at, r.contributed, r.weight, r.first_at,
                        r.sealed_at, r.my_arrival_at, r.waited, r.waited_for_window);
}

RoundReport unpack(const py::tuple& t) {
  return {t[0].cast<RoundNumber>(),
          t[1].cast<std::vector<int>>(),
          t[2].cast<std::vector<Nanoseconds>>(),
          t[3].cast<bool>(),
          t[4].cast<double>(),
          t[5].cast<Nanoseconds>(),
          t[6].cast<Nanoseconds>(),
          t[7].cast<Nanoseconds>(),
          t[8].cast<Nanoseconds>(),
          t[9].cast<Nanoseconds>()};
}

}  // namespace

void bind_round(py::module_& m) {
  const auto since_first = [](const RoundReport& r) { return seconds(r.sealed_at - r.first_at); };
  py::class_<RoundReport>(m, "Round",
                          "One round, as one rank saw it. All ranks agree on all but "
                          "its own: contributed, arrived_at_s, waited_s.")
      .def_readonly("number", &RoundReport::number, "Counted from 0 by each collective.")
      .def_property_readonly("contributors", &contributors,
                             "The ranks whose contribution is in the result, ascending.")
      .def_readonly("contributed", &RoundReport::contributed,
                    "Whether this rank is a contributor; if not, it was late, or skipped.")
      .def_readonly("weight", &RoundReport::weight,
                    "Sum of the contributors' weights; the mean is divided by it.")
      .def_property_readonly("arrivals_s", &arrivals,
                             "Contributor -> seconds from the round's first arrival to its own. "
                             "Empty in worlds of several nodes and more than 1024 ranks.")
      .def_property_readonly("sealed_s", since_first, "Seconds from the first arrival to the seal.")
      .def_property_readonly(
          "sealed_at_s", [](const RoundReport& r) { return seconds(r.sealed_at); },
          "When the round was sealed, in seconds of the host's CLOCK_MONOTONIC.")
      .def_property_readonly(
          "arrived_at_s", [](const RoundReport& r) { return seconds_unless_0(r.my_arrival_at); },
          "When this rank arrived, in time or late, on the same clock; None if it skipped.")
      .def_property_readonly(
          "waited_s", [](const RoundReport& r) { return seconds(r.waited); },
          "Seconds this rank was blocked in the exchange.")
      .def_property_readonly(
          "waited_for_window_s", [](const RoundReport& r) { return seconds(r.waited_for_window); },
          "Of these, seconds in which the window was full because others were behind.")
      .def("__repr__", &describe)
      .def(py::pickle(&pack, &unpack));
}

void bind_round_log(py::module_& m) {
  py::class_<RoundLog>(m, "RoundLog")
      .def(py::init<std::size_t>(), py::arg("capacity"))
      .def(
          "add", [](RoundLog& log, const RoundReport& r) { log.add(r, monotonic_clock().now()); },
          py::arg("round"))
      .def_property_readonly("rounds", &RoundLog::rounds)
      .def_property_readonly("contributed", &RoundLog::contributed)
      .def_property_readonly("skipped", &RoundLog::skipped)
      .def("__len__", [](const RoundLog& log) { return log.records().size(); })
      .def(
          "record",
          [](const RoundLog& log, std::size_t i) {
            const RoundRecord& r = log.records().at(i);
            return py::make_tuple(r.number, seconds_unless_0(r.arrived_at), seconds(r.sealed_at),
                                  seconds(r.stepped_at), seconds(r.waited), r.contributed);
          },
          py::arg("index"));
}

}  // namespace hvd_backup
