#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "device/buffer.hpp"
#include "device/mapped_arena.hpp"
#include "device/packed_runs.hpp"
#include "device/stream.hpp"

namespace hvd_backup {

/// What Staging is where slot and results are in the host's memory, where they are in the device's:
/// tensors are packed straight into the slot, and unpacked straight from a result, on the caller's
/// stream.
///
/// Functions throw DeviceError with what CUDA said. One thread at a time.
class MappedStaging {
 public:
  MappedStaging(std::shared_ptr<const MappedArena> arena, const std::vector<Run>& runs);

  /// Tensors of all runs together.
  std::size_t tensor_count() const { return hvd_backup::tensor_count(runs_); }

  /// The tensors' contents to the slot, which is complete on return; nullptr stands for zeros. What
  /// lies in the slot between runs is left alone. The thread sleeps until then.
  void stage(const std::vector<const void*>& tensors, void* stream);

  /// Whether all that stage() wrote last is.
  bool is_finite() const;

  /// What is in the slot, to the host.
  void fetch(std::byte* to) const;

  /// A result to the tensors, nullptr left out: put on the stream, not done, on return. The result
  /// must stay as it is until settle() or stage() returns.
  void load(int buffer, const std::vector<void*>& tensors, void* stream);

  /// MappedArena's.
  void settle() const { arena_->settle(); }

 private:
  std::shared_ptr<const MappedArena> arena_;
  std::vector<PackedRun> runs_;
  Buffer nonfinite_;  // a word
  Event packed_;
};

}  // namespace hvd_backup
