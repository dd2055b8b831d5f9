#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "transport/data.hpp"

namespace hvd_backup {

/// The MPI library of this process, as it was found at run time: addresses of its functions, and
/// its handles as integers. Nothing here is compiled or linked against an MPI, so that one build
/// works with each of them.
struct MpiLibrary {
  std::uintptr_t isend;
  std::uintptr_t issend;
  std::uintptr_t irecv;
  std::uintptr_t test;
  std::uintptr_t error_string;
  std::uintptr_t byte;             // MPI_BYTE
  std::uintptr_t request_null;     // MPI_REQUEST_NULL
  std::size_t handle_bytes;        // handles are ints in MPICH, pointers elsewhere
  std::size_t status_bytes;        // sizeof(MPI_Status)
  std::size_t error_string_bytes;  // MPI_MAX_ERROR_STRING
};

/// Moves data over MPI. `communicator` has one process per node, in the nodes' order. It carries no
/// other messages, returns errors instead of aborting, and is never freed. As a thread of its own
/// calls MPI, MPI must be initialized with MPI_THREAD_MULTIPLE. Throws InvalidArgument for handles
/// of an unknown size.
std::unique_ptr<DataTransport> mpi_data(const MpiLibrary& library, std::uintptr_t communicator);

}  // namespace hvd_backup
