#pragma once

#include <cstddef>
#include <cstdint>

namespace hvd_backup {

/// Moves bytes between the nodes: point to point, without blocking. Messages of one sender, one
/// receiver and one tag arrive in the order in which they were sent.
///
/// Used by one thread at a time, which need not be the thread that made it.
class DataTransport {
 public:
  /// A send or receive on its way.
  using Transfer = std::uint64_t;

  /// The largest tag that every MPI allows (MPI 4.1, 9.1.2). Tags begin at 0.
  static constexpr int kMostTag = 32767;

  DataTransport() = default;
  DataTransport(const DataTransport&) = delete;
  DataTransport& operator=(const DataTransport&) = delete;
  virtual ~DataTransport() = default;

  /// Begins to send. `data` must not change until done().
  virtual Transfer send(int node, int tag, const std::byte* data, std::size_t bytes) = 0;
  /// The same, but it is not done() before the other node has begun to receive. So the sender knows
  /// how far the other node is, and messages do not pile up there.
  virtual Transfer send_synchronously(int node, int tag, const std::byte* data,
                                      std::size_t bytes) = 0;
  /// Begins to receive exactly `bytes`. Do not read `data` until done().
  virtual Transfer receive(int node, int tag, std::byte* data, std::size_t bytes) = 0;
  /// Whether the transfer is over. Each call moves data on. Call it until it returns true, and not
  /// again after that. Throws Error if the transfer failed.
  virtual bool done(Transfer transfer) = 0;
};

}  // namespace hvd_backup
