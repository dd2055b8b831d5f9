// A world of ranks over private memory: threads of one process, or one thread that plays them all.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "device_case.hpp"
#include "node_network.hpp"
#include "reference.hpp"
#include "round/collective.hpp"

namespace hvd_backup::testing {

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif
#else
constexpr bool kThreadSanitizer = false;
#endif

/// Zeroed memory that begins on a page.
class Memory {
 public:
  explicit Memory(std::size_t bytes)
      : data_(static_cast<std::byte*>(std::aligned_alloc(kPage, (bytes / kPage + 1) * kPage))) {
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(data_.get(), 0, (bytes / kPage + 1) * kPage);
  }

  std::byte* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };

  static constexpr std::size_t kPage = 4096;
  std::unique_ptr<std::byte, Free> data_;
};

/// Makes the process of a rank one that is gone, after it contributed `from` private memory.
inline void bury(const Arena& arena, int rank, const void* from) {
  const pid_t child = fork();
  if (child == 0) _exit(0);
  waitpid(child, nullptr, 0);
  arena.member(rank).pid.store(child);
  arena.entry(0, rank).address.store(reinterpret_cast<std::uintptr_t>(from));
}

/// A clock that goes on by `step` whenever somebody looks at it: time-outs without waiting.
class TickingClock final : public Clock {
 public:
  explicit TickingClock(Nanoseconds step) : step_(step) {}
  Nanoseconds now() const override { return now_.fetch_add(step_) + step_; }

 private:
  Nanoseconds step_;
  mutable std::atomic<Nanoseconds> now_{kSecond};
};

/// A clock that stands still, and calls `on_look` when somebody looks at it: lets a test act in
/// the middle of what the engine does. `on_look` may itself lead to looks: those it does not see.
class WatchedClock final : public Clock {
 public:
  Nanoseconds now() const override {
    if (on_look && !inside_) {
      inside_ = true;
      on_look();
      inside_ = false;
    }
    return now_;
  }
  void advance(Nanoseconds by) { now_ += by; }

  std::function<void()> on_look;

 private:
  mutable bool inside_ = false;
  Nanoseconds now_ = kSecond;
};

/// Options in which nothing happens by the clock, unless a test is about to fail.
inline Options calm() {
  Options options;
  options.timeout = 40 * kSecond;
  options.stall = 40 * kSecond;
  return options;
}

struct Setup {
  int window = 3;
  std::vector<Flat> flats = {{DType::float32, 301}};
  std::size_t chunk_bytes = 256;
  Options options = calm();  // the policy in it is replaced
  /// Makes ranks differ in their options.
  std::function<void(int rank, Options&)> adjust;
  std::function<double(int rank, RoundNumber)> weight;
  /// Rank -> its clock; the real one when empty.
  std::function<const Clock&(int rank)> clock;
  /// Zeroed memory for the arena, of another owner; the world has its own if this is null.
  std::byte* memory = nullptr;
  /// The node of every rank; empty: all share one.
  std::vector<int> node_of = {};
  /// Whether the first rank of each node does its service's work while it waits.
  bool errands = true;
  /// So many of the first flats are in the memory of `device`.
  std::size_t device_flats = 0;
  std::size_t device_chunk_bytes = 512;
  int device = kHost;
};

inline Setup with_window(int window) {
  Setup setup;
  setup.window = window;
  return setup;
}

/// The collective of every rank, contributions that differ in every element, and the right result.
class World {
 public:
  explicit World(const Policy& policy, Setup setup = {})
      : setup_(std::move(setup)),
        policy_(policy),
        nodes_(setup_.node_of.empty() ? std::vector<int>(static_cast<std::size_t>(policy.world))
                                      : setup_.node_of) {
    for (int node = 0; node < nodes_.count(); ++node) {
      const std::vector<int> ranks = is_split() ? nodes_.ranks(node) : std::vector<int>{};
      ArenaSpec spec =
          Collective::spec(policy, setup_.window, setup_.flats, setup_.chunk_bytes, ranks);
      spec.device_flats = setup_.device_flats;
      spec.device_chunk_bytes = setup_.device_chunk_bytes;
      memory_.emplace_back(setup_.memory == nullptr ? Arena::bytes(spec) : 0);
      arenas_.emplace_back(spec, setup_.memory == nullptr ? memory_.back().data() : setup_.memory);
    }
    if (is_split()) start_services();
    if (setup_.device_flats > 0) map_device_memory();
    for (int rank = 0; rank < policy.world; ++rank) {
      Options options = options_of(rank);
      const Clock& clock = setup_.clock ? setup_.clock(rank) : monotonic_clock();
      ranks_.push_back(
          std::make_unique<Collective>(arena_of(rank), rank, std::move(options), clock));
    }
  }

  World(const World&) = delete;
  World& operator=(const World&) = delete;
  ~World() {
    ranks_.clear();
    for (const auto& one : mapped_) one->unmap();
    for (const auto& one : mapped_) one->release();
  }

  Collective& operator[](int rank) { return *ranks_[static_cast<std::size_t>(rank)]; }
  const Arena& arena() const { return arenas_.front(); }
  const Arena& arena_of(int rank) const {
    return arenas_[static_cast<std::size_t>(nodes_.of(rank))];
  }
  int size() const { return policy_.world; }
  bool is_split() const { return nodes_.count() > 1; }
  const Nodes& nodes() const { return nodes_; }
  NodeNetwork& network() { return *network_; }
  double weight(int rank, RoundNumber round) const {
    return setup_.weight ? setup_.weight(rank, round) : 1;
  }

  /// What `rank` contributes to `round`: all flats, as they lie in a slot.
  std::vector<std::byte> contribution(int rank, RoundNumber round) const {
    std::vector<std::byte> bytes(arena().contribution_bytes());
    for (std::size_t i = 0; i < setup_.flats.size(); ++i) {
      const std::uint64_t seed = (round << 20) + (static_cast<std::uint64_t>(rank) << 4) + i;
      fill_with_noise(setup_.flats[i].dtype, bytes.data() + arena().flat_offset(i),
                      setup_.flats[i].count, seed);
    }
    return bytes;
  }

  /// Who abstains has NaN everywhere.
  void fill(int rank) {
    std::vector<std::byte> bytes = contribution(rank, (*this)[rank].number());
    if (weight(rank, (*this)[rank].number()) == 0) {
      std::fill(bytes.begin(), bytes.end(), std::byte{0xFF});
    }
    (*this)[rank].release();
    const std::size_t split = device_bytes();
    if (split > 0) Peek(setup_.device).write(mapped(rank).slot(), bytes.data(), split);
    if (bytes.size() > split) {
      std::memcpy((*this)[rank].slot() + split, bytes.data() + split, bytes.size() - split);
    }
  }

  MappedArena& mapped(int rank) { return *mapped_[static_cast<std::size_t>(rank)]; }

  /// The rank's result, with what of it is in device memory.
  std::vector<std::byte> result(int rank) {
    const std::byte* host = (*this)[rank].result();
    std::vector<std::byte> bytes(host, host + arena().contribution_bytes());
    const int buffer = (*this)[rank].result_buffer();
    if (const std::size_t split = device_bytes()) {
      Peek(setup_.device).read(bytes.data(), mapped(rank).result(buffer), split);
    }
    return bytes;
  }

  /// Contributes to the rank's next round. True if it is in time.
  bool arrive(int rank) {
    fill(rank);
    const RoundNumber round = (*this)[rank].number();
    return (*this)[rank].arrive(weight(rank, round));
  }

  /// Contributes what is in the rank's slot to its next round.
  bool contribute(int rank, double weight = 1) {
    (*this)[rank].release();
    return (*this)[rank].arrive(weight);
  }

  void skip(int rank) {
    (*this)[rank].release();
    (*this)[rank].skip();
  }

  /// Waits for the round, and checks the report and every bit of the result.
  RoundReport finish(int rank) {
    const RoundReport report = (*this)[rank].wait();
    if (setup_.device_flats > 0) {
      check(rank, report, result(rank).data());
    } else {
      check(rank, report, (*this)[rank].result());
    }
    return report;
  }

  /// arrive() and finish() of these ranks, in this order, by one thread.
  void round(const std::vector<int>& ranks) {
    for (const int rank : ranks) arrive(rank);
    for (const int rank : ranks) finish(rank);
  }

  /// The mean (or sum) over the contributors of `report`, as it lies in a result.
  std::vector<std::byte> mean(const RoundReport& report) const {
    double total = 0;
    std::map<int, std::vector<std::byte>> contributions;
    for (const int rank : report.contributors) {
      contributions[rank] = contribution(rank, report.number);
      total += weight(rank, report.number);
    }
    std::vector<std::byte> bytes(arena().contribution_bytes());
    if (total == 0) return bytes;
    if (setup_.options.sum) total = 1;
    for (std::size_t i = 0; i < setup_.flats.size(); ++i) {
      std::map<int, Group> groups;  // by node
      for (const auto& [rank, one] : contributions) {
        Group& group = groups[nodes_.of(rank)];
        if (weight(rank, report.number) == 0) continue;
        group.operands.push_back(one.data() + arena().flat_offset(i));
        group.weights.push_back(weight(rank, report.number));
      }
      std::vector<Group> ordered;
      for (auto& [node, group] : groups) ordered.push_back(std::move(group));
      reference_mean(setup_.flats[i].dtype, ordered, total, setup_.flats[i].count,
                     bytes.data() + arena().flat_offset(i));
    }
    return bytes;
  }

  void check(int rank, const RoundReport& report, const std::byte* got) const {
    const auto count = static_cast<int>(report.contributors.size());
    bool contains = false;
    double total = 0;
    for (const int one : report.contributors) {
      contains = contains || one == rank;
      total += weight(one, report.number);
    }
    if (policy_.grace == 0) CHECK_EQ(count, policy_.quorum);
    CHECK(count >= policy_.quorum);
    CHECK_EQ(report.contributed, contains);
    CHECK_EQ(report.weight, total);
    CHECK_EQ(report.arrived_at.size(), report.contributors.size());
    const std::vector<std::byte> right = mean(report);
    for (std::size_t i = 0; i < setup_.flats.size(); ++i) compare(i, right, got, rank, report);
  }

 private:
  Options options_of(int rank) const {
    Options options = setup_.options;
    options.policy = policy_;
    if (setup_.device_flats > 0) options.mapped = mapped_[static_cast<std::size_t>(rank)];
    if (setup_.adjust) setup_.adjust(rank, options);
    if (!network_) return options;
    const int node = nodes_.of(rank);
    options.service = network_->doorbell(node);
    const bool is_first = nodes_.ranks(node).front() == rank;
    if (setup_.errands && is_first) options.progress_engine = network_->service(node);
    return options;
  }

  std::size_t device_bytes() const { return setup_.device_flats > 0 ? arena().device_bytes() : 0; }

  void map_device_memory() {
    std::vector<MemoryHandle> handles;
    for (int rank = 0; rank < policy_.world; ++rank) {
      mapped_.push_back(
          std::make_shared<MappedArena>(setup_.device, device_bytes(), arena().spec().buffers));
      handles.push_back(mapped_.back()->handle());
    }
    for (int rank = 0; rank < policy_.world; ++rank) mapped(rank).open(handles, rank);
  }

  void start_services() {
    network_ = std::make_unique<NodeNetwork>(setup_.node_of);
    for (int node = 0; node < nodes_.count(); ++node) {
      const auto i = static_cast<std::size_t>(node);
      network_->services[i]->add(1, arenas_[i], options_of(nodes_.ranks(node).front()), nullptr);
    }
  }

  void compare(std::size_t flat, const std::vector<std::byte>& right, const std::byte* got,
               int rank, const RoundReport& report) const {
    const DType dtype = setup_.flats[flat].dtype;
    const std::size_t offset = arena().flat_offset(flat);
    const std::size_t element = size_of(dtype);
    for (std::size_t i = 0; i < setup_.flats[flat].count; ++i) {
      const std::size_t at = offset + i * element;
      if (std::memcmp(right.data() + at, got + at, element) == 0) continue;
      FAIL_CHECK("round ", report.number, ", rank ", rank, ", contributors ",
                 join(report.contributors), ": element ", i, " of flat ", flat, " is ",
                 load(dtype, got + offset, i), ", not ", load(dtype, right.data() + offset, i));
      return;
    }
  }

  Setup setup_;
  Policy policy_;
  Nodes nodes_;
  std::vector<Memory> memory_;  // by node, as what follows
  std::vector<Arena> arenas_;
  std::unique_ptr<NodeNetwork> network_;
  std::vector<std::shared_ptr<MappedArena>> mapped_;  // by rank
  std::vector<std::unique_ptr<Collective>> ranks_;
};

}  // namespace hvd_backup::testing
