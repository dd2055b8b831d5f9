#include "device/staging.hpp"

namespace hvd_backup {

Staging::Staging(int device, const std::vector<Run>& runs, std::byte* slot, std::size_t bytes,
                 bool pin)
    : device_(device),
      bytes_(bytes),
      pin_(pin),
      slot_(device, slot, bytes, pin),
      runs_(packed_runs(runs, bytes, device)),
      packed_(device),
      copied_(device),
      loaded_(device),
      unpacked_(device),
      copies_(device) {
  packed_to_.reserve(runs_.size());
  for (const PackedRun& run : runs_) {
    Buffer& packed = packed_to_.emplace_back(device, run.bytes);
    packed.write(std::vector<std::byte>(run.bytes).data());  // gaps are copied as well
  }
}

Staging::~Staging() = default;

void Staging::stage(const std::vector<const void*>& tensors, void* stream) {
  require_tensors(runs_, tensors.size());
  unpacked_.hold(stream);  // it may be another stream than last time
  for (std::size_t i = 0; i < runs_.size(); ++i) {
    const PackedRun& run = runs_[i];
    run.plan.pack(tensors.data() + run.first, 1, packed_to_[i].data(), nullptr, stream);
  }
  packed_.record(stream);
  packed_.hold(copies_.get());
  for (std::size_t i = 0; i < runs_.size(); ++i) {
    const PackedRun& run = runs_[i];
    copies_.copy_out(slot_.data() + run.offset, packed_to_[i].data(), run.bytes);
  }
  copied_.record(copies_.get());
  copied_.await();
  for (const PackedRun& run : runs_) slot_.push(run.offset, run.bytes);
}

void Staging::load(std::byte* result, const std::vector<void*>& tensors, void* stream) {
  require_tensors(runs_, tensors.size());
  const Pinned& from = pinned(result);
  for (const PackedRun& run : runs_) from.pull(run.offset, run.bytes);
  unpacked_.hold(copies_.get());
  for (std::size_t i = 0; i < runs_.size(); ++i) {
    const PackedRun& run = runs_[i];
    copies_.copy_in(packed_to_[i].data(), from.data() + run.offset, run.bytes);
  }
  loaded_.record(copies_.get());
  loaded_.hold(stream);
  for (std::size_t i = 0; i < runs_.size(); ++i) {
    const PackedRun& run = runs_[i];
    run.plan.unpack(packed_to_[i].data(), tensors.data() + run.first, stream);
  }
  unpacked_.record(stream);
}

void Staging::settle() const { loaded_.await(); }

std::string Staging::why_not_pinned() const {
  if (!slot_.why_not().empty()) return slot_.why_not();
  for (const auto& [_, result] : results_) {
    if (!result.why_not().empty()) return result.why_not();
  }
  return "";
}

// When it is first used: a window may be large, and most of it is never used.
const Pinned& Staging::pinned(std::byte* result) {
  const auto known = results_.find(result);
  if (known != results_.end()) return known->second;
  return results_.try_emplace(result, device_, result, bytes_, pin_).first->second;
}

}  // namespace hvd_backup
