// Of hvd_backup._core, what a world of several nodes needs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "internode/node_service.hpp"
#include "memory/life_lock.hpp"
#include "memory/segment.hpp"
#include "python/convert.hpp"
#include "round/collective.hpp"
#include "transport/addresses.hpp"
#include "transport/mpi_data.hpp"

namespace py = pybind11;

namespace hvd_backup {
namespace {

/// A doorbell, and the segment its word lies in.
struct DoorbellHandle {
  std::shared_ptr<Segment> segment;
  std::shared_ptr<const Doorbell> doorbell;
};

Token token_of(const py::bytes& bytes) {
  const auto text = static_cast<std::string_view>(bytes);
  Token token{};
  if (text.size() != token.size()) {
    throw InvalidArgument("a token has " + std::to_string(token.size()) + " bytes, not " +
                          std::to_string(text.size()));
  }
  std::memcpy(token.data(), text.data(), token.size());
  return token;
}

/// Tries the addresses in turn.
std::unique_ptr<Control> link_to(const std::vector<std::string>& hosts, std::uint16_t port,
                                 const Token& token, int node, Nanoseconds timeout,
                                 Nanoseconds silence) {
  std::string problems;
  for (const std::string& host : hosts) {
    try {
      const auto share = timeout / static_cast<Nanoseconds>(hosts.size());
      return std::make_unique<ControlLink>(host, port, token, node, share, silence);
    } catch (const PeerFailed& error) {
      problems += (problems.empty() ? "" : "; ") + std::string(error.what());
    }
  }
  throw PeerFailed(problems + "; HVD_BACKUP_INTERFACE names the network interface to use");
}

/// The service of a node, and the port at which node 0's coordinator listens.
class ServiceHandle {
 public:
  ServiceHandle(std::vector<int> node_of, int rank, const py::bytes& token,
                std::shared_ptr<DataTransport> data, const DoorbellHandle& doorbell,
                std::shared_ptr<Segment> board,
                const std::optional<std::pair<std::vector<std::string>, std::uint16_t>>& hub,
                double timeout, double silence) {
    Nodes nodes(std::move(node_of));
    const int node = nodes.of(rank);
    const Token secret = token_of(token);
    std::unique_ptr<Control> control;
    if (hub) {
      const py::gil_scoped_release nogil;
      control = link_to(hub->first, hub->second, secret, node, nanoseconds(timeout),
                        nanoseconds(silence));
    } else {
      auto listening = std::make_unique<ControlHub>(secret, nodes.count(), nanoseconds(silence));
      port_ = listening->port();
      control = std::move(listening);
    }
    const StatusBoard statuses(board->data(), nodes.world());
    auto life = std::make_shared<LifeWatch>(board->fd(), nodes.ranks(node), rank);
    auto owner = std::make_shared<std::pair<DoorbellHandle, std::shared_ptr<Segment>>>(
        doorbell, std::move(board));
    service_ = std::make_shared<NodeService>(NodeService::Parts{
        std::move(nodes), node, std::move(control), std::move(data), doorbell.doorbell, statuses,
        [life] { return life->dead(); }, std::move(owner)});
  }

  std::uint16_t port() const { return port_; }
  NodeService& service() { return *service_; }
  std::shared_ptr<ProgressEngine> progress_engine() const { return service_; }
  void close() {
    const py::gil_scoped_release nogil;
    service_->close();
  }

 private:
  std::uint16_t port_ = 0;
  std::shared_ptr<NodeService> service_;
};

void serve(ServiceHandle& handle, std::uint32_t channel, std::shared_ptr<Segment> segment,
           const ArenaSpec& spec, const Policy& policy, bool sum) {
  Options options;
  options.sum = sum;
  options.policy = policy;
  const Arena arena(spec, segment->data());
  const py::gil_scoped_release nogil;
  handle.service().add(channel, arena, options, std::move(segment));
}

void bind_transport(py::module_& m) {
  // NOLINTNEXTLINE(bugprone-unused-raii): it is the module's
  py::class_<DataTransport, std::shared_ptr<DataTransport>>(m, "DataTransport");
  m.def(
      "mpi_data",
      [](std::uintptr_t communicator, std::uintptr_t isend, std::uintptr_t issend,
         std::uintptr_t irecv, std::uintptr_t test, std::uintptr_t error_string,
         std::uintptr_t byte, std::uintptr_t request_null, std::size_t handle_bytes,
         std::size_t status_bytes,
         std::size_t error_string_bytes) -> std::shared_ptr<DataTransport> {
        return mpi_data({isend, issend, irecv, test, error_string, byte, request_null, handle_bytes,
                         status_bytes, error_string_bytes},
                        communicator);
      },
      py::arg("communicator"), py::kw_only(), py::arg("isend"), py::arg("issend"), py::arg("irecv"),
      py::arg("test"), py::arg("error_string"), py::arg("byte"), py::arg("request_null"),
      py::arg("handle_bytes"), py::arg("status_bytes"), py::arg("error_string_bytes"));
}

void bind_doorbell(py::module_& m) {
  py::class_<DoorbellHandle>(m, "Doorbell")
      .def_readonly_static("BYTES", &Doorbell::kBytes)
      .def_static(
          "create",
          [](std::shared_ptr<Segment> segment) {
            auto bell = std::make_shared<const Doorbell>(Doorbell::create(segment->data()));
            return DoorbellHandle{std::move(segment), std::move(bell)};
          },
          py::arg("segment"))
      .def_static(
          "open",
          [](std::shared_ptr<Segment> segment, const std::string& path) {
            auto bell = std::make_shared<const Doorbell>(Doorbell::open(segment->data(), path));
            return DoorbellHandle{std::move(segment), std::move(bell)};
          },
          py::arg("segment"), py::arg("path"))
      .def_property_readonly("path", [](const DoorbellHandle& h) { return h.doorbell->path(); })
      .def("ring", [](const DoorbellHandle& h) { h.doorbell->ring(); });
}

}  // namespace

void bind_nodes(py::module_& m) {
  m.def("own_addresses", &own_addresses, py::arg("interface"));
  m.def("make_token", [] {
    const Token token = make_token();
    return py::bytes(reinterpret_cast<const char*>(token.data()), token.size());
  });
  bind_transport(m);
  bind_doorbell(m);
  py::class_<ServiceHandle>(m, "NodeService")
      .def(py::init<std::vector<int>, int, const py::bytes&, std::shared_ptr<DataTransport>,
                    const DoorbellHandle&, std::shared_ptr<Segment>,
                    const std::optional<std::pair<std::vector<std::string>, std::uint16_t>>&,
                    double, double>(),
           py::kw_only(), py::arg("node_of"), py::arg("rank"), py::arg("token"), py::arg("data"),
           py::arg("doorbell"), py::arg("board"), py::arg("coordinator"), py::arg("timeout"),
           py::arg("silence"))
      .def_property_readonly("port", &ServiceHandle::port)
      .def("add", &serve, py::arg("channel"), py::arg("segment"), py::arg("spec"), py::kw_only(),
           py::arg("policy"), py::arg("sum") = false)
      .def(
          "wait_until_over",
          [](ServiceHandle& h, double timeout) {
            NodeService& service = h.service();
            const py::gil_scoped_release nogil;
            return service.wait_until_over(nanoseconds(timeout));
          },
          py::arg("timeout"))
      .def_property_readonly("problem", [](ServiceHandle& h) { return h.service().problem(); })
      .def("close", &ServiceHandle::close);
}

std::shared_ptr<ProgressEngine> progress_engine_of(const py::object& handle) {
  return handle.is_none() ? nullptr : handle.cast<const ServiceHandle&>().progress_engine();
}

/// Of the doorbell, what a collective needs.
std::shared_ptr<const Doorbell> doorbell_of(const py::object& handle) {
  return handle.is_none() ? nullptr : handle.cast<const DoorbellHandle&>().doorbell;
}

}  // namespace hvd_backup
