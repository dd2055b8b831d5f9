// The part of hvd_backup._core for memory that the ranks of a node share. No logic here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "memory/life_lock.hpp"
#include "memory/remote.hpp"
#include "memory/segment.hpp"
#include "memory/status_board.hpp"
#include "python/convert.hpp"

namespace py = pybind11;

namespace hvd_backup {
namespace {

void bind_segments(py::module_& m) {
  py::class_<Segment, std::shared_ptr<Segment>>(m, "Segment")
      .def_static(
          "create",
          [](std::size_t bytes, std::pair<std::size_t, std::size_t> own) {
            return Segment::create(bytes, {own.first, own.second});
          },
          py::arg("bytes"), py::arg("own") = std::pair<std::size_t, std::size_t>{})
      .def_static("open", &Segment::open, py::arg("path"), py::arg("bytes"))
      .def_property_readonly("path", &Segment::path)
      .def_property_readonly("size", &Segment::size)
      .def("bytes", [](const py::object& self) {
        const auto& segment = self.cast<const Segment&>();
        return Bytes(static_cast<py::ssize_t>(segment.size()),
                     reinterpret_cast<std::uint8_t*>(segment.data()), self);
      });
  py::class_<LifeLock>(m, "LifeLock")
      .def(py::init([](const Segment& segment, std::vector<int> ranks, int rank) {
             return LifeLock(segment.fd(), std::move(ranks), rank);
           }),
           py::arg("segment"), py::arg("ranks"), py::arg("rank"))
      .def("dead", &LifeLock::dead);
  m.def("can_read_remote", &can_read_remote, py::arg("pid"), py::arg("address"));
}

void bind_rows(py::module_& m) {
  py::class_<StatusBoard>(m, "StatusBoard")
      .def_static("bytes", &StatusBoard::bytes, py::arg("count"))
      .def(py::init([](const Segment& segment, int count) {
             if (segment.size() < StatusBoard::bytes(count)) {
               throw InvalidArgument("a segment of " + std::to_string(segment.size()) +
                                     " bytes has no room for " + std::to_string(count) + " board");
             }
             return StatusBoard(segment.data(), count);
           }),
           py::arg("segment"), py::arg("count"), py::keep_alive<1, 2>())
      .def(
          "write",
          [](StatusBoard& board, int rank, const py::bytes& data) {
            const auto text = static_cast<std::string_view>(data);
            board.write(rank, reinterpret_cast<const std::byte*>(text.data()), text.size());
          },
          py::arg("rank"), py::arg("data"))
      .def(
          "read",
          [](const StatusBoard& board, int rank) {
            const std::vector<std::byte> data = board.read(rank);
            return py::bytes(reinterpret_cast<const char*>(data.data()), data.size());
          },
          py::arg("rank"))
      .def("written", &StatusBoard::written)
      .def("tell", &StatusBoard::tell, py::arg("rank"))
      .def("claim", &StatusBoard::claim)
      .def("take_untold", &StatusBoard::take_untold, py::arg("rank"))
      .def(
          "set_left", [](StatusBoard& board, int rank) { board.set(rank, StatusBoard::kLeft); },
          py::arg("rank"))
      .def(
          "set_dead", [](StatusBoard& board, int rank) { board.set(rank, StatusBoard::kDead); },
          py::arg("rank"))
      .def("left", [](const StatusBoard& board) { return board.with(StatusBoard::kLeft); })
      .def("silent", [](const StatusBoard& board) { return board.with(StatusBoard::kSilent); })
      .def("cut_off", [](const StatusBoard& board) { return board.with(StatusBoard::kCutOff); })
      .def("dead", [](const StatusBoard& board) { return board.with(StatusBoard::kDead); });
}

}  // namespace

void bind_memory(py::module_& m) {
  bind_segments(m);
  bind_rows(m);
}

}  // namespace hvd_backup
