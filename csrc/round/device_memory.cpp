// What a collective has to do with flats in device memory beside reducing them.
#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "round/collective.hpp"

namespace hvd_backup {
namespace {

constexpr Nanoseconds kGraceOfLeaving = kSecond;

}  // namespace

void Collective::check_device_flats() const {
  const std::size_t flats = arena_.spec().device_flats;
  const MappedArena* mapped = options_.mapped.get();
  if (flats == 0 && mapped == nullptr) return;
  const bool fits = mapped != nullptr && mapped->is_open() &&
                    mapped->bytes() == arena_.device_bytes() &&
                    mapped->results() == arena_.spec().buffers;
  if (flats == 0 || flats > arena_.spec().flats.size() || !fits) {
    throw InvalidArgument("the arena has " + std::to_string(flats) + " flats, of " +
                          std::to_string(arena_.device_bytes()) + " bytes, and " +
                          std::to_string(arena_.spec().buffers) +
                          " results in device memory; the mapped memory does not fit that");
  }
  if (arena_.spans_nodes() || options_.late == Late::carry) {
    throw InvalidArgument("flats in device memory need a world of one node, and late=drop");
  }
}

// Every other rank has to be seen idle once: what it begins later, it begins knowing that this one
// has left. A kernel ends within this time, whether its process is stopped or not. If a rank was
// stopped before it began one, it may use memory of this rank when it comes back: that is then
// still there, unless this process has ended.
void Collective::leave_device_memory() {
  const Nanoseconds until = monotonic_clock().now() + kGraceOfLeaving;
  for (const int rank : arena_.ranks()) {
    const Member& other = arena_.member(rank);
    while (rank != rank_ && other.adding.load() != 0 && monotonic_clock().now() < until) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }
  options_.mapped->unmap();
  arena_.member(rank_).unmapped.store(1);
}

bool Collective::give_back() {
  if (options_.mapped == nullptr) return true;
  const auto is_done = [this](int rank) { return arena_.member(rank).unmapped.load() != 0; };
  const std::vector<int>& ranks = arena_.ranks();
  // Of this rank, too: it has left.
  if (!std::all_of(ranks.begin(), ranks.end(), is_done)) return false;
  options_.mapped->release();
  return true;
}

}  // namespace hvd_backup
