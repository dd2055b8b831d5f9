#pragma once

#include <cstddef>
#include <cstdint>

namespace hvd_backup {

/// Moves bytes between the nodes: point to point, without blocking. Messages of one sender, one
/// receiver and one tag arrive in the order in which they were sent.
///
/// For one thread at a time, which need not be the thread that made it.
class DataTransport {
 public:
  /// A send or receive on its way.
  using Transfer = std::uint64_t;

  /// Tags are from 0 up to this: what every MPI has room for (MPI 4.1, 9.1.2).
  static constexpr int kMostTag = 32767;

  DataTransport() = default;
  DataTransport(const DataTransport&) = delete;
  DataTransport& operator=(const DataTransport&) = delete;
  virtual ~DataTransport() = default;

  /// Begins to send; `data` stays as it is until done().
  virtual Transfer send(int node, int tag, const std::byte* data, std::size_t bytes) = 0;
  /// The same, but it is not done() before the other node has begun to receive: so the sender knows
  /// how far that is, and nothing piles up there.
  virtual Transfer send_synchronously(int node, int tag, const std::byte* data,
                                      std::size_t bytes) = 0;
  /// Begins to receive exactly `bytes`; `data` is not read until done().
  virtual Transfer receive(int node, int tag, std::byte* data, std::size_t bytes) = 0;
  /// Whether it is over; to be asked again until it is, and not after. Moves data on its way.
  /// Throws Error when it has failed.
  virtual bool done(Transfer transfer) = 0;
};

}  // namespace hvd_backup
