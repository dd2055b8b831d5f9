#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "device/buffer.hpp"
#include "device/packed_runs.hpp"
#include "device/stream.hpp"

namespace hvd_backup {

/// The way of tensors on a device to a contribution in the host's memory, and of results back:
///
///   pack on the caller's stream | copy on our own | the thread sleeps until the slot is complete
///   the caller's stream waits for | copy on our own | and unpacks
///
/// So tensors are touched on the caller's stream only, as by any kernel of the framework. The
/// framework's allocator gives memory to other tensors in the order of that stream. On kHost the
/// same path runs with the kernels' twins, and is done when a call returns.
///
/// Functions throw DeviceError with CUDA's words. Only one thread may use it at a time.
class Staging {
 public:
  /// `slot` is this rank's contribution, of `bytes` bytes, results are of the same size. With
  /// `pin` they are pinned where they are if CUDA can; else copies go by way of a buffer.
  Staging(int device, const std::vector<Run>& runs, std::byte* slot, std::size_t bytes,
          bool pin = true);
  ~Staging();

  /// Tensors of all runs together.
  std::size_t tensor_count() const { return hvd_backup::tensor_count(runs_); }

  /// Copies the tensors to the slot, which is complete on return; nullptr stands for zeros. Bytes
  /// of the slot between runs are left alone.
  void stage(const std::vector<const void*>& tensors, void* stream);

  /// Copies a result to the tensors, except to those that are nullptr. The copy has begun on
  /// return, and `stream` waits for it. The result must not change until settle() or stage()
  /// returns. Call one of these before the next load().
  void load(std::byte* result, const std::vector<void*>& tensors, void* stream);

  /// Sleeps until the last result is not read any more. stage() waits for that as well, as copies
  /// to the slot come after copies from the result.
  void settle() const;

  /// Why the host's memory is not pinned in place, in CUDA's words; empty if it is.
  std::string why_not_pinned() const;

 private:
  const Pinned& pinned(std::byte* result);

  int device_;
  std::size_t bytes_;
  bool pin_;
  Pinned slot_;
  std::map<std::byte*, Pinned> results_;
  std::vector<PackedRun> runs_;
  std::vector<Buffer> packed_to_;  // one for each of them
  Event packed_;
  Event copied_;
  Event loaded_;
  Event unpacked_;
  Stream copies_;  // last: its end waits for copies to and from all of the above
};

}  // namespace hvd_backup
