// hvd_backup._core: the engine, as Python sees it. No logic here: checks of types, the GIL, views.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "memory/segment.hpp"
#include "python/convert.hpp"
#include "round/collective.hpp"

namespace py = pybind11;

namespace hvd_backup {
namespace {

ArenaSpec make_spec(const Policy& policy, int window,
                    const std::vector<std::pair<std::string, std::size_t>>& flats,
                    std::size_t chunk_bytes, std::vector<int> ranks, std::size_t device_flats,
                    std::size_t device_chunk_bytes) {
  std::vector<Flat> typed;
  typed.reserve(flats.size());
  for (const auto& [dtype, count] : flats) typed.push_back({dtype_from_name(dtype), count});
  ArenaSpec spec =
      Collective::spec(policy, window, std::move(typed), chunk_bytes, std::move(ranks));
  spec.device_flats = device_flats;
  spec.device_chunk_bytes = std::max(device_chunk_bytes, sizeof(double));
  return spec;
}

/// A collective, the segment it lives in, and this process's views of its results.
class CollectiveHandle {
 public:
  CollectiveHandle(std::shared_ptr<Segment> segment, const ArenaSpec& spec, int rank,
                   Options options)
      : segment_(std::move(segment)),
        arena_(spec, segment_->data()),
        collective_(arena_, rank, std::move(options)),
        views_(static_cast<std::size_t>(spec.buffers)) {}

  Collective& collective() { return collective_; }

  std::vector<Bytes> slots(const py::object& self) const {
    return flats_at(collective_.slot(), self);
  }

  /// Views of a result: what is shared, and, once written to, this process's own copy.
  std::vector<Bytes> results(int buffer, const py::object& self) {
    auto& view = views_.at(static_cast<std::size_t>(buffer));
    if (!view) view.emplace(*segment_, arena_.result_offset(buffer), arena_.contribution_bytes());
    return flats_at(view->data(), self);
  }

  /// A result in the shared memory itself, for whoever only reads it.
  std::vector<Bytes> shared_results(int buffer, const py::object& self) const {
    std::vector<Bytes> flats = flats_at(arena_.result(buffer), self);
    for (Bytes& flat : flats) flat.attr("flags").attr("writeable") = false;
    return flats;
  }

  /// Forgets what this process wrote to the views of a result.
  void reset_results(int buffer) {
    if (auto& view = views_.at(static_cast<std::size_t>(buffer))) view->reset();
  }

  RoundReport allreduce(const py::buffer& in, const py::buffer& out, double weight) {
    const py::buffer_info from = in.request();
    const py::buffer_info to = out.request(true);
    const Flat& flat = arena_.spec().flats.front();
    const auto bytes = static_cast<py::ssize_t>(flat.count * size_of(flat.dtype));
    if (from.size * from.itemsize != bytes || to.size * to.itemsize != bytes) {
      throw InvalidArgument("allreduce() needs two buffers of " + std::to_string(bytes) +
                            " bytes, not " + std::to_string(from.size * from.itemsize) + " and " +
                            std::to_string(to.size * to.itemsize));
    }
    const py::gil_scoped_release nogil;
    collective_.release();
    return collective_.allreduce(static_cast<const std::byte*>(from.ptr),
                                 static_cast<std::byte*>(to.ptr), weight);
  }

 private:
  std::vector<Bytes> flats_at(std::byte* base, const py::object& self) const {
    std::vector<Bytes> flats;
    for (std::size_t i = 0; i < arena_.spec().flats.size(); ++i) {
      const Flat& flat = arena_.spec().flats[i];
      auto* data = reinterpret_cast<std::uint8_t*>(base + arena_.flat_offset(i));
      flats.emplace_back(static_cast<py::ssize_t>(flat.count * size_of(flat.dtype)), data, self);
    }
    return flats;
  }

  std::shared_ptr<Segment> segment_;
  Arena arena_;
  Collective collective_;
  std::vector<std::optional<PrivateView>> views_;
};

/// The patrol of a waiting rank. Its argument is what a signal handler of the user's has raised, or
/// None: the others must know of it before this rank's wait ends.
std::function<std::vector<int>()> patrol_of(py::object patrol) {
  // Shared, and dropped under the GIL: the engine copies its options without holding it.
  const std::shared_ptr<py::object> held(new py::object(std::move(patrol)), [](py::object* object) {
    const py::gil_scoped_acquire gil;
    delete object;
  });
  return [held] {
    const py::gil_scoped_acquire gil;
    py::object interruption = py::none();
    if (PyErr_CheckSignals() != 0) {
      py::error_already_set raised;
      if (held->is_none()) throw raised;
      interruption = raised.value();
      if (raised.trace()) PyException_SetTraceback(interruption.ptr(), raised.trace().ptr());
    }
    if (held->is_none()) return std::vector<int>{};
    return (*held)(interruption).cast<std::vector<int>>();
  };
}

std::function<void(const LateRank&)> late_rank_of(py::object told) {
  if (told.is_none()) return {};
  const std::shared_ptr<py::object> held(new py::object(std::move(told)), [](py::object* object) {
    const py::gil_scoped_acquire gil;
    delete object;
  });
  return [held](const LateRank& late) {
    const py::gil_scoped_acquire gil;
    (*held)(late.rank, late.contributed, late.rounds);
  };
}

std::unique_ptr<CollectiveHandle> make_collective(
    std::shared_ptr<Segment> segment, const ArenaSpec& spec, const Policy& policy, int rank,
    bool carry, double timeout, std::pair<int, int> spin_limits, bool remote_reads,
    py::object patrol, const py::object& doorbell, const py::object& service, bool sum,
    std::shared_ptr<MappedArena> mapped, py::object late_rank) {
  Options options;
  options.sum = sum;
  options.policy = policy;
  options.late = carry ? Late::carry : Late::drop;
  options.timeout = nanoseconds(timeout);
  options.spin_limits = {spin_limits.first, spin_limits.second};
  options.remote_reads = remote_reads;
  options.patrol = patrol_of(std::move(patrol));
  options.service = doorbell_of(doorbell);
  options.progress_engine = progress_engine_of(service);
  options.mapped = std::move(mapped);
  options.late_rank = late_rank_of(std::move(late_rank));
  if (segment->size() < Arena::bytes(spec)) {
    throw InvalidArgument("the segment has " + std::to_string(segment->size()) + " bytes, the " +
                          "arena needs " + std::to_string(Arena::bytes(spec)));
  }
  return std::make_unique<CollectiveHandle>(std::move(segment), spec, rank, std::move(options));
}

void set_python_error(const char* name, const char* text) {
  const py::object type = py::module_::import("hvd_backup.errors").attr(name);
  PyErr_SetString(type.ptr(), text);
}

void translate(std::exception_ptr thrown) {
  if (!thrown) return;
  try {
    std::rethrow_exception(std::move(thrown));
  } catch (const InvalidArgument& e) {
    PyErr_SetString(PyExc_ValueError, e.what());
  } catch (const RoundTimeout& e) {
    set_python_error("RoundTimeout", e.what());
  } catch (const PeerFailed& e) {
    set_python_error("PeerFailed", e.what());
  } catch (const DeviceError& e) {
    set_python_error("DeviceError", e.what());
  } catch (const Error& e) {
    set_python_error("Error", e.what());
  }
}

void bind_policy(py::module_& m) {
  py::class_<Policy>(m, "Policy")
      .def_static("full_sync", &full_sync, py::arg("world"))
      .def_static(
          "backup_workers",
          [](int world, int backups, double grace) {
            return backup_workers(world, backups, nanoseconds(grace));
          },
          py::arg("world"), py::arg("backups"), py::arg("grace") = 0.0)
      .def_static("softsync", &softsync, py::arg("world"), py::arg("contributions"))
      .def_static("asynchronous", &async, py::arg("world"), py::arg("max_staleness") = kUnbounded)
      .def_readonly("world", &Policy::world)
      .def_readonly("quorum", &Policy::quorum)
      .def_readonly("max_staleness", &Policy::max_staleness)
      .def_readonly("waits", &Policy::waits)
      .def_property_readonly("grace", [](const Policy& policy) { return seconds(policy.grace); });
}

void bind_arena_spec(py::module_& m) {
  py::class_<ArenaSpec>(m, "ArenaSpec")
      .def(py::init(&make_spec), py::arg("policy"), py::arg("window"), py::arg("flats"),
           py::arg("chunk_bytes") = 128 * 1024, py::arg("ranks") = std::vector<int>{},
           py::kw_only(), py::arg("device_flats") = 0,
           py::arg("device_chunk_bytes") = std::size_t{16} << 20)
      .def_property_readonly("bytes", &Arena::bytes)
      .def_property_readonly("own_part",
                             [](const ArenaSpec& spec) {
                               const Range own = Arena::own_part(spec);
                               return std::make_pair(own.begin, own.end);
                             })
      .def_property_readonly("buffers", [](const ArenaSpec& spec) { return spec.buffers; })
      .def_property_readonly("device_bytes", [](const ArenaSpec& spec) {
        return Arena(spec, nullptr).device_bytes();
      });
}

void bind_collective(py::module_& m) {
  using Handle = CollectiveHandle;
  const auto nogil = py::call_guard<py::gil_scoped_release>();
  py::class_<Handle>(m, "Collective")
      .def(py::init(&make_collective), py::arg("segment"), py::arg("spec"), py::kw_only(),
           py::arg("policy"), py::arg("rank"), py::arg("carry"), py::arg("timeout"),
           py::arg("spin_limits"), py::arg("remote_reads"), py::arg("patrol"),
           py::arg("doorbell") = py::none(), py::arg("service") = py::none(),
           py::arg("sum") = false, py::arg("mapped") = std::shared_ptr<MappedArena>{},
           py::arg("late_rank") = py::none())
      .def_property_readonly("number", [](Handle& h) { return h.collective().number(); })
      .def_property_readonly("buffer", [](Handle& h) { return h.collective().result_buffer(); })
      .def("slots", [](py::object self) { return self.cast<Handle&>().slots(self); })
      .def(
          "results",
          [](py::object self, int buffer) { return self.cast<Handle&>().results(buffer, self); },
          py::arg("buffer"))
      .def(
          "shared_results",
          [](py::object self, int buffer) {
            return self.cast<Handle&>().shared_results(buffer, self);
          },
          py::arg("buffer"))
      .def("reset_results", &Handle::reset_results, py::arg("buffer"), nogil)
      .def(
          "arrive",
          [](Handle& h, double weight) {
            h.collective().release();
            return h.collective().arrive(weight);
          },
          py::arg("weight"), nogil)
      .def(
          "skip",
          [](Handle& h) {
            h.collective().release();
            h.collective().skip();
          },
          nogil)
      .def("sealed_without_me", [](Handle& h) { return h.collective().sealed_without_me(); })
      .def("missing", [](Handle& h) { return h.collective().missing(); })
      .def("progress", [](Handle& h) { return h.collective().progress(); })
      .def(
          "wait", [](Handle& h) { return h.collective().wait(); }, nogil)
      .def(
          "arrive_and_wait",
          [](Handle& h, double weight) {
            h.collective().release();
            return h.collective().arrive_and_wait(weight);
          },
          py::arg("weight"), nogil)
      .def(
          "release", [](Handle& h) { h.collective().release(); }, nogil)
      .def("allreduce", &Handle::allreduce, py::arg("src"), py::arg("dst"), py::arg("weight"))
      .def(
          "leave", [](Handle& h) { h.collective().leave(); }, nogil)
      .def("give_back", [](Handle& h) { return h.collective().give_back(); }, nogil);
}

// Python calls what Py_AtExit has been given last of all, and the youngest first: before mpi4py's
// MPI_Finalize, which waits for ranks that never come.
void exit_without_mpi(bool wanted) {
  static std::atomic<pid_t> process{0};
  process = wanted ? getpid() : 0;
  static const int registered = Py_AtExit([] {
    if (process != getpid()) return;
    std::fflush(nullptr);
    _exit(EXIT_FAILURE);
  });
  if (registered != 0) throw Error("Python has no room for another function at its exit");
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The engine of hvd_backup: partial all-reduce in shared memory.";
  py::register_exception_translator(&translate);
  bind_memory(m);
  bind_round(m);
  bind_round_log(m);
  bind_device(m);  // before what takes a MappedArena
  bind_policy(m);
  bind_arena_spec(m);
  bind_collective(m);
  bind_nodes(m);
  m.def("exit_without_mpi", &exit_without_mpi, py::arg("wanted"),
        "Whether this process, when it ends, ends with status 1 before MPI_Finalize.");
}

}  // namespace hvd_backup
