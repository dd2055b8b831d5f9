// The data transport over MPI, with MPI libraries of our own: one with ints for handles, as in
// MPICH, and one with pointers, as in Open MPI.
#include <cstring>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "check.hpp"
#include "transport/mpi_data.hpp"

namespace hvd_backup {
namespace {

constexpr std::uintptr_t kComm = 0x44000001;
constexpr std::uintptr_t kByte = 0x4c00010d;
constexpr std::uintptr_t kRequestNull = 0x2c000000;
constexpr std::size_t kStatusBytes = 20;

struct Message {
  std::string call;
  const void* data;
  int count;
  int node;
  int tag;
};

/// A library that notes what it is called with; a request is over when it is tested twice.
template <typename Handle>
struct Library {
  static inline std::vector<Message> messages;
  static inline std::vector<int> tests;
  static inline int error = 0;

  static Handle handle(std::uintptr_t integer) {
    if constexpr (std::is_pointer_v<Handle>) {
      return reinterpret_cast<Handle>(integer);  // NOLINT(performance-no-int-to-ptr)
    } else {
      return static_cast<Handle>(integer);
    }
  }

  static int begin(const char* call, const void* data, int count, Handle type, int node, int tag,
                   Handle comm, Handle* request) {
    CHECK(type == handle(kByte));
    CHECK(comm == handle(kComm));
    CHECK(*request == handle(kRequestNull));
    messages.push_back({call, data, count, node, tag});
    tests.push_back(0);
    *request = handle(messages.size());
    return error;
  }
  static int isend(const void* data, int count, Handle type, int node, int tag, Handle comm,
                   Handle* request) {
    return begin("isend", data, count, type, node, tag, comm, request);
  }
  static int issend(const void* data, int count, Handle type, int node, int tag, Handle comm,
                    Handle* request) {
    return begin("issend", data, count, type, node, tag, comm, request);
  }
  static int irecv(void* data, int count, Handle type, int node, int tag, Handle comm,
                   Handle* request) {
    return begin("irecv", data, count, type, node, tag, comm, request);
  }
  static int test(Handle* request, int* over, void* status) {
    std::memset(status, 1, kStatusBytes);
    std::size_t number = 1;
    while (*request != handle(number)) ++number;
    *over = ++tests[number - 1] == 2 ? 1 : 0;
    if (*over != 0) *request = handle(kRequestNull);
    return error;
  }
  static int error_string(int number, char* text, int* length) {
    const std::string words = "error " + std::to_string(number);
    std::memcpy(text, words.c_str(), words.size() + 1);
    *length = static_cast<int>(words.size());
    return 0;
  }

  static MpiLibrary found() {
    messages.clear();
    tests.clear();
    error = 0;
    return {reinterpret_cast<std::uintptr_t>(&isend),
            reinterpret_cast<std::uintptr_t>(&issend),
            reinterpret_cast<std::uintptr_t>(&irecv),
            reinterpret_cast<std::uintptr_t>(&test),
            reinterpret_cast<std::uintptr_t>(&error_string),
            kByte,
            kRequestNull,
            sizeof(Handle),
            kStatusBytes,
            64};
  }
};

template <typename Handle>
void check_messages() {
  using Calls = Library<Handle>;
  const auto data = mpi_data(Calls::found(), kComm);
  std::vector<std::byte> bytes(3);
  const auto sent = data->send(1, 5, bytes.data(), 3);
  const auto told = data->send_synchronously(2, 6, bytes.data(), 2);
  const auto received = data->receive(0, 7, bytes.data(), 1);
  REQUIRE(Calls::messages.size() == 3);
  const std::vector<std::string> calls = {"isend", "issend", "irecv"};
  for (std::size_t i = 0; i < 3; ++i) {
    const Message& message = Calls::messages[i];
    CHECK_EQ(message.call, calls[i]);
    CHECK(message.data == bytes.data());
    CHECK_EQ(message.count, 3 - static_cast<int>(i));
    CHECK_EQ(message.tag, 5 + static_cast<int>(i));
  }
  CHECK_EQ(Calls::messages[1].node, 2);
  for (const auto transfer : {received, sent, told}) {
    CHECK(!data->done(transfer));
    CHECK(data->done(transfer));
  }
}

template <typename Handle>
void check_errors() {
  using Calls = Library<Handle>;
  const auto data = mpi_data(Calls::found(), kComm);
  std::byte byte{};
  const auto sent = data->send(1, 0, &byte, 1);
  Calls::error = 17;
  const auto said = [&](auto&& call) {
    try {
      call();
    } catch (const Error& problem) {
      return std::string(problem.what());
    }
    return std::string("nothing");
  };
  CHECK_EQ(said([&] { data->done(sent); }), "MPI_Test: error 17");
  CHECK_EQ(said([&] { data->send(1, 0, &byte, 1); }), "MPI_Isend: error 17");
  CHECK_EQ(said([&] { data->send_synchronously(1, 0, &byte, 1); }), "MPI_Issend: error 17");
  CHECK_EQ(said([&] { data->receive(1, 0, &byte, 1); }), "MPI_Irecv: error 17");
}

TEST_CASE("messages reach an MPI whose handles are ints") { check_messages<int>(); }
TEST_CASE("messages reach an MPI whose handles are pointers") { check_messages<void*>(); }
TEST_CASE("an error of an MPI whose handles are ints is thrown with its text") {
  check_errors<int>();
}
TEST_CASE("an error of an MPI whose handles are pointers is thrown with its text") {
  check_errors<void*>();
}

TEST_CASE("handles that are neither ints nor pointers are refused") {
  MpiLibrary library = Library<int>::found();
  library.handle_bytes = 2;
  CHECK_THROWS_AS(mpi_data(library, kComm), InvalidArgument);
}

}  // namespace
}  // namespace hvd_backup
