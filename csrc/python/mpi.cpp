// The module hvd_backup._mpi. It is linked to libmpi without a path, so it must be imported after
// mpi4py.MPI: then it binds to the library that mpi4py has loaded.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>

#include "transport/mpi_data.hpp"
#include "transport/mpi_library.hpp"

namespace py = pybind11;

PYBIND11_MODULE(_mpi, module) {
  module.doc() = "The identity of the MPI library; import mpi4py.MPI before this module.";

  module.def(
      "library",
      [] {
        const hvd_backup::MpiLibrary library = hvd_backup::mpi_library();
        return py::make_tuple(library.version, library.path);
      },
      "The version text of the MPI library that this module calls, and its shared object's path.");

  module.def(
      "communicator",
      [](std::uintptr_t handle) {
        const hvd_backup::MpiPlace place = hvd_backup::mpi_place(handle);
        return py::make_tuple(place.rank, place.size);
      },
      py::arg("handle"),
      "Rank and size of the communicator whose MPI._handleof() is `handle`, as this module's "
      "library sees it.");

  module.def(
      "data_transport",
      [](std::uintptr_t handle) -> std::shared_ptr<hvd_backup::DataTransport> {
        py::module_::import("hvd_backup._core");  // the type is registered there
        return hvd_backup::mpi_data(handle);
      },
      py::arg("handle"),
      "Moves data between the processes of a communicator; all of them call this together.");

  module.def("thread_level", &hvd_backup::mpi_thread_level,
             "The thread level MPI was initialized with, as in 'MPI_THREAD_MULTIPLE'.");
}
