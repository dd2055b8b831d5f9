#include "transport/mpi_library.hpp"

#include <dlfcn.h>

#include "transport/mpi_calls.hpp"

namespace hvd_backup {
MpiLibrary mpi_library() {
  char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  check_mpi(MPI_Get_library_version(version, &length), "MPI_Get_library_version");

  Dl_info info{};
  const bool found = dladdr(reinterpret_cast<void*>(&MPI_Get_library_version), &info) != 0;
  return {version, found && info.dli_fname != nullptr ? info.dli_fname : ""};
}

MpiPlace mpi_place(std::uintptr_t handle) {
  require_mpi_running("communicator()");
  const auto comm = handle_from_integer<MPI_Comm>(handle);
  MpiPlace place{};
  check_mpi(MPI_Comm_rank(comm, &place.rank), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(comm, &place.size), "MPI_Comm_size");
  return place;
}

std::string mpi_thread_level() {
  require_mpi_running("thread_level()");
  int level = MPI_THREAD_SINGLE;
  check_mpi(MPI_Query_thread(&level), "MPI_Query_thread");
  switch (level) {
    case MPI_THREAD_SINGLE:
      return "MPI_THREAD_SINGLE";
    case MPI_THREAD_FUNNELED:
      return "MPI_THREAD_FUNNELED";
    case MPI_THREAD_SERIALIZED:
      return "MPI_THREAD_SERIALIZED";
    default:
      return "MPI_THREAD_MULTIPLE";
  }
}

}  // namespace hvd_backup
