// Which MPI this process runs on: asked before the library trusts a handle that mpi4py made.
#pragma once

#include <cstdint>
#include <string>

namespace hvd_backup {

struct MpiLibrary {
  std::string version;  // as MPI_Get_library_version says it
  std::string path;     // of the shared object that our MPI calls go to
};

// May be called before MPI is initialized.
MpiLibrary mpi_library();

struct MpiPlace {
  int rank;
  int size;
};

// The communicator that mpi4py's MPI._handleof() gave as an integer. The handle must come from the
// library that mpi_library() names: no MPI can tell a foreign handle from its own.
// Throws std::runtime_error if MPI is not running or refuses the handle.
MpiPlace mpi_place(std::uintptr_t handle);

// "MPI_THREAD_SINGLE", … "MPI_THREAD_MULTIPLE". Throws std::runtime_error if MPI is not running.
std::string mpi_thread_level();

}  // namespace hvd_backup
