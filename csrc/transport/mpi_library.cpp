#include "transport/mpi_library.hpp"

#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <dlfcn.h>
#include <mpi.h>

#include <stdexcept>
#include <type_traits>

namespace hvd_backup {
namespace {

void require_running(const char* asked) {
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  if (initialized == 0 || finalized != 0) {
    throw std::runtime_error(std::string(asked) + " needs a running MPI, but MPI " +
                             (finalized != 0 ? "was finalized" : "was not initialized") +
                             "; import mpi4py.MPI first");
  }
}

void check(int error, const char* function) {
  if (error == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(error, text, &length);
  throw std::runtime_error(std::string(function) + ": " + text);
}

// A handle is a pointer in Open MPI and an int in MPICH.
template <typename Handle>
Handle from_integer(std::uintptr_t integer) {
  if constexpr (std::is_pointer_v<Handle>) {
    return reinterpret_cast<Handle>(integer);  // NOLINT(performance-no-int-to-ptr)
  } else {
    return static_cast<Handle>(integer);
  }
}

}  // namespace

MpiLibrary mpi_library() {
  char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  check(MPI_Get_library_version(version, &length), "MPI_Get_library_version");

  Dl_info info{};
  const bool found = dladdr(reinterpret_cast<void*>(&MPI_Get_library_version), &info) != 0;
  return {version, found && info.dli_fname != nullptr ? info.dli_fname : ""};
}

MpiPlace mpi_place(std::uintptr_t handle) {
  require_running("communicator()");
  const auto comm = from_integer<MPI_Comm>(handle);
  MpiPlace place{};
  check(MPI_Comm_rank(comm, &place.rank), "MPI_Comm_rank");
  check(MPI_Comm_size(comm, &place.size), "MPI_Comm_size");
  return place;
}

std::string mpi_thread_level() {
  require_running("thread_level()");
  int level = MPI_THREAD_SINGLE;
  check(MPI_Query_thread(&level), "MPI_Query_thread");
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
