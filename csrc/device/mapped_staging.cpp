#include "device/mapped_staging.hpp"

#include <cstring>
#include <utility>

#include "device/cuda_calls.hpp"
#include "device/cuda_peers.hpp"

namespace hvd_backup {

MappedStaging::MappedStaging(std::shared_ptr<const MappedArena> arena, const std::vector<Run>& runs)
    : arena_(std::move(arena)),
      runs_(packed_runs(runs, arena_->bytes(), arena_->device())),
      nonfinite_(arena_->device(), sizeof(std::uint32_t)),
      packed_(arena_->device()) {}

void MappedStaging::stage(const std::vector<const void*>& tensors, void* stream) {
  require_tensors(runs_, tensors.size());
  const int device = arena_->device();
  auto* flag = reinterpret_cast<std::uint32_t*>(nonfinite_.data());
  // The last result may have been loaded on another stream; it is released after this.
  arena_->hold_until_read(stream);
  if (device == kHost) {
    *flag = 0;
  } else {
    cuda::begin_zero(device, flag, sizeof *flag, stream);
  }
  for (const PackedRun& run : runs_) {
    run.plan.pack(tensors.data() + run.first, 1, arena_->slot() + run.offset, flag, stream);
  }
  packed_.record(stream);
  packed_.await();
}

bool MappedStaging::is_finite() const {
  std::uint32_t flag = 0;
  nonfinite_.read(&flag);
  return flag == 0;
}

void MappedStaging::fetch(std::byte* to) const {
  if (arena_->device() == kHost) {
    std::memcpy(to, arena_->slot(), arena_->bytes());
  } else {
    cuda::copy_out(arena_->device(), to, arena_->slot(), arena_->bytes());
  }
}

void MappedStaging::load(int buffer, const std::vector<void*>& tensors, void* stream) {
  require_tensors(runs_, tensors.size());
  for (const PackedRun& run : runs_) {
    run.plan.unpack(arena_->result(buffer) + run.offset, tensors.data() + run.first, stream);
  }
  arena_->note_reading(stream);
}

}  // namespace hvd_backup
