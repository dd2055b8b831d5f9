// What the files that call MPI have in common. Only they include this.
#pragma once

#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace hvd_backup {

inline void require_mpi_running(const char* asked) {
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

inline void check_mpi(int error, const char* function) {
  if (error == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(error, text, &length);
  throw std::runtime_error(std::string(function) + ": " + text);
}

/// A handle is a pointer in Open MPI and an int in MPICH.
template <typename Handle>
Handle handle_from_integer(std::uintptr_t integer) {
  if constexpr (std::is_pointer_v<Handle>) {
    return reinterpret_cast<Handle>(integer);  // NOLINT(performance-no-int-to-ptr)
  } else {
    return static_cast<Handle>(integer);
  }
}

}  // namespace hvd_backup
