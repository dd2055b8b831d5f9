#include "lazy_cuda.hpp"

#include <cstddef>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "device/cuda_calls.hpp"
#include "device/cuda_peers.hpp"
#include "device/cuda_streams.hpp"
#include "device/host_kernels.hpp"

namespace hvd_backup {
namespace {

struct EventState {
  std::uint64_t recorded = 0;
  std::uint64_t happened = 0;
};

struct Work {
  std::function<void()> run;
  std::shared_ptr<EventState> until = nullptr;  // it waits for this event
  std::uint64_t number = 0;                     // as it was recorded this many times
};

struct World {
  std::mt19937_64 random{0};
  std::map<void*, std::deque<Work>> streams;
  std::map<void*, std::shared_ptr<EventState>> events;
  std::map<std::byte*, std::size_t> pinned;
  int copies = 0;  // on their way between host and device
  bool may_pin = true;
};

World& world() {
  static World the_world;
  return the_world;
}

/// Runs one piece of work that may run; false if there is none.
bool run_one() {
  std::vector<std::deque<Work>*> ready;
  for (auto& [_, queue] : world().streams) {
    if (queue.empty()) continue;
    const Work& first = queue.front();
    if (first.until == nullptr || first.until->happened >= first.number) ready.push_back(&queue);
  }
  if (ready.empty()) return false;
  std::deque<Work>& queue = *ready[world().random() % ready.size()];
  const Work work = std::move(queue.front());
  queue.pop_front();
  if (work.run) work.run();
  return true;
}

void run_until(const std::function<bool()>& done) {
  while (!done()) {
    if (!run_one()) throw std::logic_error("the streams wait for one another, or for nobody");
  }
}

void run_all() {
  while (run_one()) {
  }
}

void put(void* stream, Work work) { world().streams[stream].push_back(std::move(work)); }

void require_pinned(const void* host, std::size_t bytes) {
  const auto* data = static_cast<const std::byte*>(host);
  for (const auto& [first, size] : world().pinned) {
    if (data >= first && data + bytes <= first + size) return;
  }
  throw std::logic_error("a copy is begun to or from memory that is not pinned");
}

void begin_copy(void* to, const void* from, std::size_t bytes, void* stream) {
  ++world().copies;
  put(stream, {[to, from, bytes] {
        std::memcpy(to, from, bytes);
        --world().copies;
      }});
}

void* new_handle() {
  static std::vector<std::unique_ptr<int>> handles;
  handles.push_back(std::make_unique<int>(0));
  return handles.back().get();
}

void forget_pinned(void* data) {
  if (world().copies != 0) throw std::logic_error("memory is given back amid a copy");
  world().pinned.erase(static_cast<std::byte*>(data));
}

}  // namespace

namespace lazy {

void reset(std::uint64_t seed) {
  run_all();
  world().random.seed(seed);
  world().may_pin = true;
}

void launch(void* stream, std::function<void()> work) { put(stream, {std::move(work)}); }
void let_pin(bool allowed) { world().may_pin = allowed; }
int left() { return static_cast<int>(world().pinned.size() + world().events.size()); }

}  // namespace lazy

namespace cuda {

void* allocate(int /*device*/, std::size_t bytes) { return ::operator new(bytes); }
void release(int /*device*/, void* data) noexcept {
  run_all();  // as cudaFree does
  ::operator delete(data);
}
void copy_in(int /*device*/, void* to, const void* from, std::size_t bytes) {
  std::memcpy(to, from, bytes);
}
void copy_out(int /*device*/, void* to, const void* from, std::size_t bytes) {
  std::memcpy(to, from, bytes);
}

void copy(const CopyTask& task, int /*device*/, void* stream) {
  const std::vector<std::uint64_t> first_tile = *task.first_tile;
  const std::vector<void*> tensors(task.tensors, task.tensors + first_tile.size() - 1);
  put(stream, {[task, first_tile, tensors] {
        CopyTask mine = task;
        mine.first_tile = &first_tile;
        mine.tensors = tensors.data();
        host::copy(mine);
      }});
}
void sum(const SumTask& task, int /*device*/, void* stream) {
  const std::vector<Operand> operands(task.operands, task.operands + task.operand_count);
  put(stream, {[task, operands] {
        SumTask mine = task;
        mine.operands = operands.data();
        host::sum(mine);
      }});
}
void finish(int /*device*/, void* stream) {
  run_until([stream] { return world().streams[stream].empty(); });
}

void* make_stream(int /*device*/) { return new_handle(); }
// NOLINTNEXTLINE(bugprone-exception-escape): what it finds ends the test program
void drop_stream(int device, void* stream) noexcept {
  finish(device, stream);
  world().streams.erase(stream);
}
void* make_event(int /*device*/) {
  void* event = new_handle();
  world().events[event] = std::make_shared<EventState>();
  return event;
}
void drop_event(int /*device*/, void* event) noexcept { world().events.erase(event); }
void record(int /*device*/, void* event, void* stream) {
  const auto state = world().events.at(event);
  const std::uint64_t number = ++state->recorded;
  put(stream, {[state, number] { state->happened = number; }});
}
void hold(int /*device*/, void* stream, void* event) {
  const auto state = world().events.at(event);
  if (state->recorded > 0) put(stream, {nullptr, state, state->recorded});
}
void await(int /*device*/, void* event) {
  const auto state = world().events.at(event);
  run_until([state] { return state->happened >= state->recorded; });
}

void begin_copy_in(int /*device*/, void* to, const void* from, std::size_t bytes, void* stream) {
  require_pinned(from, bytes);
  begin_copy(to, from, bytes, stream);
}
void begin_copy_out(int /*device*/, void* to, const void* from, std::size_t bytes, void* stream) {
  require_pinned(to, bytes);
  begin_copy(to, from, bytes, stream);
}
void begin_copy_within(int /*device*/, void* to, const void* from, std::size_t bytes,
                       void* stream) {
  begin_copy(to, from, bytes, stream);
}

std::string uuid_of(int /*device*/) { return "lazy"; }
std::string export_memory(int /*device*/, void* /*data*/) { return {}; }
void* import_memory(int /*device*/, const std::string& /*handle*/) {
  throw std::logic_error("there is one process only");
}
void drop_imported(int /*device*/, void* /*data*/) noexcept {}
void begin_zero(int /*device*/, void* to, std::size_t bytes, void* stream) {
  put(stream, {[to, bytes] { std::memset(to, 0, bytes); }});
}

std::string pin(int /*device*/, void* data, std::size_t bytes) {
  if (!world().may_pin) return "operation not permitted";
  world().pinned[static_cast<std::byte*>(data)] = bytes;
  return "";
}
// NOLINTNEXTLINE(bugprone-exception-escape): what it finds ends the test program
void unpin(int /*device*/, void* data) noexcept { forget_pinned(data); }
void* allocate_pinned(int /*device*/, std::size_t bytes) {
  void* data = ::operator new(bytes);
  world().pinned[static_cast<std::byte*>(data)] = bytes;
  return data;
}
// NOLINTNEXTLINE(bugprone-exception-escape): what it finds ends the test program
void release_pinned(int /*device*/, void* data) noexcept {
  forget_pinned(data);
  ::operator delete(data);
}

}  // namespace cuda
}  // namespace hvd_backup
