#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/error.hpp"
#include "base/types.hpp"

namespace hvd_backup {

/// Bytes that are no message: a stranger sent them, or another version of this library.
class InvalidMessage : public Error {
 public:
  using Error::Error;
};

/// A rank's arrival, as its node reports it. Hosts do not share a clock, so it has an age instead
/// of a time.
struct ReportedArrival {
  int rank = 0;
  double weight = 1;
  Nanoseconds age = 0;  ///< how long before the report was sent
};

/// Node to coordinator: ranks that have arrived in a round since the node's last report.
struct NodeReport {
  RoundNumber round = 0;
  std::vector<ReportedArrival> arrivals;
};

/// Coordinator to all nodes: the round is closed, and these are its contributors.
struct Seal {
  RoundNumber round = 0;
  double weight = 0;              ///< sum of the contributors' weights
  Nanoseconds open_for = 0;       ///< from the first arrival to the seal
  std::vector<int> contributors;  ///< ascending
  /// Of each contributor: its arrival, after the first one. Empty in worlds of more than
  /// kTellArrivalsUpTo ranks, where it would be most of the traffic.
  std::vector<Nanoseconds> offsets;
};

constexpr int kTellArrivalsUpTo = 1024;

/// The messages as bytes, and back, in the byte order of the machine. Decoding throws
/// InvalidMessage for anything that encoding could not have made in a world of this size.
std::vector<std::byte> encode(const NodeReport& report);
std::vector<std::byte> encode(const Seal& seal, int world);
NodeReport decode_report(const std::byte* data, std::size_t bytes, int world);
Seal decode_seal(const std::byte* data, std::size_t bytes, int world);

}  // namespace hvd_backup
