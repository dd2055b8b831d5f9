#include "device/places.hpp"

#include <string>
#include <utility>

#include "base/error.hpp"

namespace hvd_backup {

std::vector<Place> places_of(const std::vector<Run>& runs, std::size_t bytes, int device) {
  std::vector<Place> places;
  places.reserve(runs.size());
  std::size_t first = 0;
  for (const Run& run : runs) {
    PackPlan plan(run.tensor_dtype, run.flat_dtype, run.slices, device);
    const std::size_t size = plan.flat_count() * size_of(run.flat_dtype);
    if (size > bytes || run.offset > bytes - size) {
      throw InvalidArgument("a run of " + std::to_string(size) + " bytes at byte " +
                            std::to_string(run.offset) + " does not fit a contribution of " +
                            std::to_string(bytes) + " bytes");
    }
    places.push_back({std::move(plan), run.offset, size, first});
    first += run.slices.size();
  }
  return places;
}

std::size_t tensor_count(const std::vector<Place>& places) {
  return places.empty() ? 0 : places.back().first + places.back().plan.tensor_count();
}

void require_tensors(const std::vector<Place>& places, std::size_t given) {
  const std::size_t count = tensor_count(places);
  if (given == count) return;
  throw InvalidArgument("staging of " + std::to_string(count) + " tensors was given " +
                        std::to_string(given));
}

}  // namespace hvd_backup
