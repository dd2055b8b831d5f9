#include "transport/mpi_data.hpp"

#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "base/error.hpp"

namespace hvd_backup {
namespace {

constexpr int kSuccess = 0;  // MPI_SUCCESS, by the standard

template <typename Handle>
Handle handle_of(std::uintptr_t integer) {
  if constexpr (std::is_pointer_v<Handle>) {
    return reinterpret_cast<Handle>(integer);  // NOLINT(performance-no-int-to-ptr)
  } else {
    return static_cast<Handle>(integer);
  }
}

template <typename Function>
Function function_at(std::uintptr_t address) {
  return reinterpret_cast<Function>(address);  // NOLINT(performance-no-int-to-ptr)
}

/// `Handle` is what the library's MPI_Comm, MPI_Datatype and MPI_Request are.
template <typename Handle>
class MpiData final : public DataTransport {
 public:
  MpiData(const MpiLibrary& library, std::uintptr_t communicator)
      : isend_(function_at<Send>(library.isend)),
        issend_(function_at<Send>(library.issend)),
        irecv_(function_at<Receive>(library.irecv)),
        test_(function_at<Test>(library.test)),
        error_string_(function_at<ErrorString>(library.error_string)),
        byte_(handle_of<Handle>(library.byte)),
        request_null_(handle_of<Handle>(library.request_null)),
        comm_(handle_of<Handle>(communicator)),
        status_(library.status_bytes / sizeof(std::max_align_t) + 1),
        error_text_(library.error_string_bytes + 1) {}

  // The communicator is not freed: that is collective, and the other nodes may be gone.
  ~MpiData() override = default;

  Transfer send(int node, int tag, const std::byte* data, std::size_t bytes) override {
    Handle request = request_null_;
    check(isend_(data, count(bytes), byte_, node, tag, comm_, &request), "MPI_Isend");
    return keep(request);
  }

  Transfer send_synchronously(int node, int tag, const std::byte* data,
                              std::size_t bytes) override {
    Handle request = request_null_;
    check(issend_(data, count(bytes), byte_, node, tag, comm_, &request), "MPI_Issend");
    return keep(request);
  }

  Transfer receive(int node, int tag, std::byte* data, std::size_t bytes) override {
    Handle request = request_null_;
    check(irecv_(data, count(bytes), byte_, node, tag, comm_, &request), "MPI_Irecv");
    return keep(request);
  }

  bool done(Transfer transfer) override {
    int over = 0;
    // A status that nobody reads: MPI_STATUS_IGNORE is another address in each library.
    check(test_(&requests_.at(transfer), &over, status_.data()), "MPI_Test");
    if (over != 0) free_.push_back(transfer);
    return over != 0;
  }

 private:
  using Send = int (*)(const void*, int, Handle, int, int, Handle, Handle*);
  using Receive = int (*)(void*, int, Handle, int, int, Handle, Handle*);
  using Test = int (*)(Handle*, int*, void*);
  using ErrorString = int (*)(int, char*, int*);

  // A message is a chunk, so that counts of 32 bits are enough for contributions of any size.
  static int count(std::size_t bytes) {
    if (bytes > static_cast<std::size_t>(std::numeric_limits<int>::max())) {
      throw InvalidArgument("chunks of " + std::to_string(bytes) + " bytes are too large for MPI");
    }
    return static_cast<int>(bytes);
  }

  void check(int error, const char* function) {
    if (error == kSuccess) return;
    int length = 0;
    error_string_(error, error_text_.data(), &length);
    throw Error(std::string(function) + ": " + error_text_.data());
  }

  Transfer keep(Handle request) {
    if (free_.empty()) {
      free_.push_back(requests_.size());
      requests_.push_back(request_null_);
    }
    const Transfer transfer = free_.back();
    free_.pop_back();
    requests_[transfer] = request;
    return transfer;
  }

  Send isend_;
  Send issend_;
  Receive irecv_;
  Test test_;
  ErrorString error_string_;
  Handle byte_;
  Handle request_null_;
  Handle comm_;
  std::vector<std::max_align_t> status_;
  std::vector<char> error_text_;
  std::vector<Handle> requests_;
  std::vector<Transfer> free_;
};

}  // namespace

std::unique_ptr<DataTransport> mpi_data(const MpiLibrary& library, std::uintptr_t communicator) {
  if (library.handle_bytes == sizeof(int)) {
    return std::make_unique<MpiData<int>>(library, communicator);
  }
  if (library.handle_bytes == sizeof(void*)) {
    return std::make_unique<MpiData<void*>>(library, communicator);
  }
  throw InvalidArgument("this MPI has handles of " + std::to_string(library.handle_bytes) +
                        " bytes; hvd_backup knows ints and pointers, as Open MPI, MPICH and the "
                        "standard's ABI have them");
}

}  // namespace hvd_backup
