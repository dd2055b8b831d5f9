#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "base/dtype.hpp"
#include "device/buffer.hpp"
#include "device/peer_memory.hpp"
#include "device/stream.hpp"

namespace hvd_backup {

/// The slots and results of a node's ranks in memory of their GPUs. Each rank's are in an
/// allocation of its own, which all other ranks map. Kernels of one rank read the slots of all
/// ranks, and their output is copied to the results of all ranks. Ranks may share a GPU. On kHost
/// the same path runs with the twins. This class knows nothing of rounds, and waits for no other
/// process.
///
/// Functions throw DeviceError with CUDA's words. Only one thread may use it at a time.
class MappedArena {
 public:
  /// The largest number of ranks: a kernel takes their slots as arguments.
  static constexpr int kMaxRanks = 128;

  /// A slot of `bytes` bytes, zeroed, and `results` results of the same size.
  MappedArena(int device, std::size_t bytes, int results);
  MappedArena(const MappedArena&) = delete;
  MappedArena& operator=(const MappedArena&) = delete;
  ~MappedArena();

  int device() const { return device_; }
  /// Bytes of a slot, and of a result.
  std::size_t bytes() const { return bytes_; }
  int results() const { return results_; }
  const MemoryHandle& handle() const { return own_->handle(); }

  /// Maps the allocations of all ranks, of which this is `rank`, lets a kernel read them, and
  /// copies a sign to each. Throws DeviceError, which names the rank, unless all of that can be
  /// done.
  void open(const std::vector<MemoryHandle>& by_rank, int rank);
  /// Call it after all ranks have opened. Throws DeviceError if the sign of a rank has not arrived.
  void confirm() const;
  bool is_open() const { return !bases_.empty(); }

  /// This rank's own.
  std::byte* slot() const;
  std::byte* result(int buffer) const;

  /// How much a rank's slot counts.
  struct Share {
    int rank = 0;
    double weight = 1;
  };
  /// `count` elements at the same place in slots and results.
  struct Piece {
    DType dtype = DType::float32;
    std::size_t offset = 0;  ///< bytes
    std::size_t count = 0;
  };
  /// The weighted mean of the slots, added in the order given (mean.hpp's bits), zero if there are
  /// none: to `buffer` of this rank, and from there to that of the ranks `to`, which may include
  /// it. All of it is done on return; the thread sleeps meanwhile.
  void mean(const Piece& piece, const std::vector<Share>& from, double total, int buffer,
            const std::vector<int>& to) const;

  /// Notes that the work that is on `stream` now reads a result.
  void note_reading(void* stream) const { read_.record(stream); }
  /// Later work on `stream` waits for these reads.
  void hold_until_read(void* stream) const { read_.hold(stream); }
  /// Sleeps until these reads are done. From then on the others may write to this rank's results.
  void settle() const { read_.await(); }

  /// Unmaps the other ranks' memory, after the work that has begun; this rank's own memory stays.
  /// Do not call open() or mean() afterwards.
  void unmap() noexcept;
  /// Frees this rank's memory. Call it when no peer maps it any more. Without this call, it is
  /// freed when the process ends (see ExportedMemory).
  void release() noexcept;

 private:
  /// Throws InvalidArgument after release().
  std::byte* own() const;
  std::byte* of(int rank, std::size_t offset) const;
  std::size_t slot_offset() const;
  std::size_t result_offset(int buffer) const;
  void try_to_read() const;
  void leave_signs(int rank) const;
  void await_adds() const;
  void add(const Piece& piece, const std::vector<Share>& from, double total, std::byte* out) const;

  int device_;
  std::size_t bytes_;
  int results_;
  std::size_t stride_;
  std::unique_ptr<ExportedMemory> own_;
  std::vector<ImportedMemory> imported_;
  std::vector<std::byte*> bases_;  // by rank
  Event done_;
  Event read_;
  std::unique_ptr<Stream> adds_;  // its end waits for what uses the above
};

}  // namespace hvd_backup
