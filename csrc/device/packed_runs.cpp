#include "device/packed_runs.hpp"

#include <string>
#include <utility>

#include "base/error.hpp"

namespace hvd_backup {

std::vector<PackedRun> packed_runs(const std::vector<Run>& runs, std::size_t bytes, int device) {
  std::vector<PackedRun> packed;
  packed.reserve(runs.size());
  std::size_t first = 0;
  for (const Run& run : runs) {
    PackPlan plan(run.tensor_dtype, run.flat_dtype, run.slices, device);
    const std::size_t size = plan.flat_count() * size_of(run.flat_dtype);
    if (size > bytes || run.offset > bytes - size) {
      throw InvalidArgument("a run of " + std::to_string(size) + " bytes at byte " +
                            std::to_string(run.offset) + " does not fit a contribution of " +
                            std::to_string(bytes) + " bytes");
    }
    packed.push_back({std::move(plan), run.offset, size, first});
    first += run.slices.size();
  }
  return packed;
}

std::size_t tensor_count(const std::vector<PackedRun>& runs) {
  return runs.empty() ? 0 : runs.back().first + runs.back().plan.tensor_count();
}

void require_tensors(const std::vector<PackedRun>& runs, std::size_t given) {
  const std::size_t count = tensor_count(runs);
  if (given == count) return;
  throw InvalidArgument("staging of " + std::to_string(count) + " tensors was given " +
                        std::to_string(given));
}

}  // namespace hvd_backup
