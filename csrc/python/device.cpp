// The part of hvd_backup._core for devices. Addresses and streams are integers, as frameworks give
// them. No logic here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/dtype.hpp"
#include "device/cuda.hpp"
#include "device/mapped_arena.hpp"
#include "device/mapped_staging.hpp"
#include "device/staging.hpp"
#include "python/convert.hpp"

namespace py = pybind11;

namespace hvd_backup {
namespace {

using Address = std::uintptr_t;
using RunTuple = std::tuple<std::string, std::string, std::size_t,
                            std::vector<std::pair<std::size_t, std::size_t>>>;

// Frameworks give addresses as integers.
template <class Pointer>
Pointer pointer(Address address) {
  return reinterpret_cast<Pointer>(address);  // NOLINT(performance-no-int-to-ptr)
}

template <class Pointer>
std::vector<Pointer> pointers(const std::vector<Address>& addresses) {
  std::vector<Pointer> result;
  result.reserve(addresses.size());
  for (const Address address : addresses) result.push_back(pointer<Pointer>(address));
  return result;
}

Run run_of(const RunTuple& tuple) {
  const auto& [tensor_dtype, flat_dtype, offset, slices] = tuple;
  Run run{dtype_from_name(tensor_dtype), dtype_from_name(flat_dtype), offset, {}};
  for (const auto& [first, count] : slices) run.slices.push_back({first, count});
  return run;
}

std::vector<Run> runs_of(const std::vector<RunTuple>& tuples) {
  std::vector<Run> runs;
  runs.reserve(tuples.size());
  for (const RunTuple& tuple : tuples) runs.push_back(run_of(tuple));
  return runs;
}

std::unique_ptr<Staging> make_staging(int device, const std::vector<RunTuple>& tuples, Address slot,
                                      std::size_t bytes, bool pin, const py::object& /*owner*/) {
  return std::make_unique<Staging>(device, runs_of(tuples), pointer<std::byte*>(slot), bytes, pin);
}

void stage(Staging& staging, const std::vector<Address>& tensors, Address stream) {
  staging.stage(pointers<const void*>(tensors), pointer<void*>(stream));
}

void load(Staging& staging, Address result, const std::vector<Address>& tensors, Address stream) {
  staging.load(pointer<std::byte*>(result), pointers<void*>(tensors), pointer<void*>(stream));
}

// As it travels between ranks.
using HandleTuple = std::tuple<std::string, py::bytes, std::int64_t, Address, std::size_t>;

HandleTuple handle_of(const MappedArena& arena) {
  const MemoryHandle& handle = arena.handle();
  return {handle.gpu, handle.where, handle.pid, handle.address, handle.bytes};
}

void open(MappedArena& arena, const std::vector<HandleTuple>& by_rank, int rank) {
  std::vector<MemoryHandle> handles;
  handles.reserve(by_rank.size());
  for (const auto& [gpu, where, pid, address, bytes] : by_rank) {
    handles.push_back({gpu, where, pid, address, bytes});
  }
  const py::gil_scoped_release nogil;
  arena.open(handles, rank);
}

void bind_mapped(py::module_& m) {
  const auto nogil = py::call_guard<py::gil_scoped_release>();
  using Arena = std::shared_ptr<MappedArena>;
  py::class_<MappedArena, Arena> arena(m, "MappedArena");
  arena
      .def(py::init<int, std::size_t, int>(), py::arg("device"), py::arg("bytes"),
           py::arg("results"), nogil)
      .def_property_readonly("handle", &handle_of)
      .def("open", &open, py::arg("by_rank"), py::arg("rank"))
      .def("confirm", &MappedArena::confirm, nogil)
      .def("unmap", &MappedArena::unmap, nogil)
      .def("release", &MappedArena::release, nogil);
  arena.attr("MOST_RANKS") = MappedArena::kMaxRanks;
  py::class_<MappedStaging>(m, "MappedStaging")
      .def(py::init([](Arena arena, const std::vector<RunTuple>& runs) {
             return std::make_unique<MappedStaging>(std::move(arena), runs_of(runs));
           }),
           py::arg("arena"), py::arg("runs"))
      .def(
          "stage",
          [](MappedStaging& staging, const std::vector<Address>& tensors, Address stream) {
            staging.stage(pointers<const void*>(tensors), pointer<void*>(stream));
          },
          py::arg("tensors"), py::arg("stream"), nogil)
      .def(
          "load",
          [](MappedStaging& staging, int buffer, const std::vector<Address>& tensors,
             Address stream) {
            staging.load(buffer, pointers<void*>(tensors), pointer<void*>(stream));
          },
          py::arg("buffer"), py::arg("tensors"), py::arg("stream"), nogil)
      .def(
          "fetch",
          [](const MappedStaging& staging, Address to) { staging.fetch(pointer<std::byte*>(to)); },
          py::arg("to"), nogil)
      .def("settle", &MappedStaging::settle, nogil)
      .def_property_readonly("is_finite", &MappedStaging::is_finite);
}

}  // namespace

void bind_device(py::module_& m) {
  const auto nogil = py::call_guard<py::gil_scoped_release>();
  py::class_<Staging> staging(m, "Staging");
  staging
      .def(py::init(&make_staging), py::arg("device"), py::arg("runs"), py::arg("slot"),
           py::arg("bytes"), py::kw_only(), py::arg("pin") = true, py::arg("owner") = py::none(),
           py::keep_alive<1, 7>())  // the owner of the memory
      .def("stage", &stage, py::arg("tensors"), py::arg("stream"), nogil)
      .def("load", &load, py::arg("result"), py::arg("tensors"), py::arg("stream"), nogil)
      .def("settle", &Staging::settle, nogil)
      .def_property_readonly("why_not_pinned", &Staging::why_not_pinned);
  staging.attr("HOST") = kHost;
  bind_mapped(m);
  py::class_<CudaStatus>(m, "CudaStatus")
      .def_readonly("built", &CudaStatus::built)
      .def_readonly("runtime_version", &CudaStatus::runtime_version)
      .def_readonly("devices", &CudaStatus::devices)
      .def_readonly("why", &CudaStatus::why);
  m.def("cuda_status", &cuda_status);
}

}  // namespace hvd_backup
