#include "device/staging.hpp"

namespace hvd_backup {

Staging::Staging(int device, const std::vector<Run>& runs, std::byte* slot, std::size_t bytes,
                 bool pin)
    : device_(device),
      bytes_(bytes),
      pin_(pin),
      slot_(device, slot, bytes, pin),
      places_(places_of(runs, bytes, device)),
      packed_(device),
      copied_(device),
      loaded_(device),
      unpacked_(device),
      copies_(device) {
  packed_to_.reserve(places_.size());
  for (const Place& place : places_) {
    Buffer& packed = packed_to_.emplace_back(device, place.bytes);
    packed.write(std::vector<std::byte>(place.bytes).data());  // gaps are copied as well
  }
}

Staging::~Staging() = default;

void Staging::stage(const std::vector<const void*>& tensors, void* stream) {
  require_tensors(places_, tensors.size());
  unpacked_.hold(stream);  // it may be another stream than last time
  for (std::size_t i = 0; i < places_.size(); ++i) {
    const Place& place = places_[i];
    place.plan.pack(tensors.data() + place.first, 1, packed_to_[i].data(), nullptr, stream);
  }
  packed_.record(stream);
  packed_.hold(copies_.get());
  for (std::size_t i = 0; i < places_.size(); ++i) {
    const Place& place = places_[i];
    copies_.copy_out(slot_.data() + place.offset, packed_to_[i].data(), place.bytes);
  }
  copied_.record(copies_.get());
  copied_.await();
  for (const Place& place : places_) slot_.push(place.offset, place.bytes);
}

void Staging::load(std::byte* result, const std::vector<void*>& tensors, void* stream) {
  require_tensors(places_, tensors.size());
  const Pinned& from = pinned(result);
  for (const Place& place : places_) from.pull(place.offset, place.bytes);
  unpacked_.hold(copies_.get());
  for (std::size_t i = 0; i < places_.size(); ++i) {
    const Place& place = places_[i];
    copies_.copy_in(packed_to_[i].data(), from.data() + place.offset, place.bytes);
  }
  loaded_.record(copies_.get());
  loaded_.hold(stream);
  for (std::size_t i = 0; i < places_.size(); ++i) {
    const Place& place = places_[i];
    place.plan.unpack(packed_to_[i].data(), tensors.data() + place.first, stream);
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
