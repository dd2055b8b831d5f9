#pragma once

#include <cstdint>
#include <memory>

#include "transport/data.hpp"

namespace hvd_backup {

/// Over MPI: `handle` is the communicator, as mpi4py's MPI._handleof() gives it, of one process per
/// node, in the nodes' order. It is duplicated for good. All its processes call this
/// together. Throws std::runtime_error for a thread level below
/// MPI_THREAD_MULTIPLE.
std::unique_ptr<DataTransport> mpi_data(std::uintptr_t handle);

}  // namespace hvd_backup
