#include "transport/mpi_data.hpp"

#include <limits>
#include <vector>

#include "base/error.hpp"
#include "transport/mpi_calls.hpp"

namespace hvd_backup {
namespace {

class MpiData final : public DataTransport {
 public:
  explicit MpiData(MPI_Comm comm) {
    check_mpi(MPI_Comm_dup(comm, &comm_), "MPI_Comm_dup");
    check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  }

  // Not MPI_Comm_free: that is collective, and the other nodes may be gone.
  ~MpiData() override = default;

  Transfer send(int node, int tag, const std::byte* data, std::size_t bytes) override {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Isend(data, count(bytes), MPI_BYTE, node, tag, comm_, &request), "MPI_Isend");
    return keep(request);  // NOLINT(clang-analyzer-optin.mpi.MPI-Checker): done() tests it
  }

  Transfer send_synchronously(int node, int tag, const std::byte* data,
                              std::size_t bytes) override {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Issend(data, count(bytes), MPI_BYTE, node, tag, comm_, &request), "MPI_Issend");
    return keep(request);  // NOLINT(clang-analyzer-optin.mpi.MPI-Checker): done() tests it
  }

  Transfer receive(int node, int tag, std::byte* data, std::size_t bytes) override {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Irecv(data, count(bytes), MPI_BYTE, node, tag, comm_, &request), "MPI_Irecv");
    return keep(request);  // NOLINT(clang-analyzer-optin.mpi.MPI-Checker): done() tests it
  }

  bool done(Transfer transfer) override {
    int over = 0;
    check_mpi(MPI_Test(&requests_.at(transfer), &over, MPI_STATUS_IGNORE), "MPI_Test");
    if (over != 0) free_.push_back(transfer);
    return over != 0;
  }

 private:
  // A message is a chunk, so that counts of 32 bits are enough for contributions of any size.
  static int count(std::size_t bytes) {
    if (bytes > static_cast<std::size_t>(std::numeric_limits<int>::max())) {
      throw InvalidArgument("chunks of " + std::to_string(bytes) + " bytes are too large for MPI");
    }
    return static_cast<int>(bytes);
  }

  Transfer keep(MPI_Request request) {
    if (free_.empty()) {
      free_.push_back(requests_.size());
      requests_.push_back(MPI_REQUEST_NULL);
    }
    const Transfer transfer = free_.back();
    free_.pop_back();
    requests_[transfer] = request;
    return transfer;
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  std::vector<MPI_Request> requests_;
  std::vector<Transfer> free_;
};

}  // namespace

std::unique_ptr<DataTransport> mpi_data(std::uintptr_t handle) {
  require_mpi_running("mpi_data()");
  int level = MPI_THREAD_SINGLE;
  check_mpi(MPI_Query_thread(&level), "MPI_Query_thread");
  if (level != MPI_THREAD_MULTIPLE) {
    throw std::runtime_error(
        "between nodes a thread of hvd_backup uses MPI beside yours, so MPI "
        "must be initialized with MPI_THREAD_MULTIPLE");
  }
  return std::make_unique<MpiData>(handle_from_integer<MPI_Comm>(handle));
}

}  // namespace hvd_backup
