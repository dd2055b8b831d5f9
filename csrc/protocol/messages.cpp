#include "protocol/messages.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "base/checked_cast.hpp"

namespace hvd_backup {
namespace {

constexpr unsigned kBits = 64;

class Writer {
 public:
  template <class T>
  void put(T value) {
    const std::size_t at = bytes_.size();
    bytes_.resize(at + sizeof value);
    std::memcpy(bytes_.data() + at, &value, sizeof value);
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

class Reader {
 public:
  Reader(const std::byte* data, std::size_t bytes) : data_(data), left_(bytes) {}

  template <class T>
  T get() {
    T value;
    if (left_ < sizeof value) throw InvalidMessage("a message ends too early");
    std::memcpy(&value, data_, sizeof value);
    data_ += sizeof value;
    left_ -= sizeof value;
    return value;
  }
  std::size_t left() const { return left_; }
  void end() const {
    if (left_ != 0) throw InvalidMessage(std::to_string(left_) + " bytes too many in a message");
  }

 private:
  const std::byte* data_;
  std::size_t left_;
};

void check_weight(double weight) {
  if (!std::isfinite(weight) || weight < 0) {
    throw InvalidMessage("a weight of " + std::to_string(weight) + " in a message");
  }
}

std::size_t words(int world) { return (static_cast<std::size_t>(world) + kBits - 1) / kBits; }

std::uint32_t micros(Nanoseconds time) {
  constexpr Nanoseconds kMost = std::numeric_limits<std::uint32_t>::max();
  return static_cast<std::uint32_t>(std::clamp<Nanoseconds>(time / kMicrosecond, 0, kMost));
}

}  // namespace

std::vector<std::byte> encode(const NodeReport& report) {
  Writer out;
  out.put<std::uint64_t>(report.round);
  for (const ReportedArrival& arrival : report.arrivals) {
    out.put<std::int32_t>(arrival.rank);
    out.put<double>(arrival.weight);
    out.put<std::int64_t>(arrival.age);
  }
  return out.take();
}

NodeReport decode_report(const std::byte* data, std::size_t bytes, int world) {
  Reader in(data, bytes);
  NodeReport report;
  report.round = in.get<std::uint64_t>();
  while (in.left() > 0) {
    ReportedArrival arrival;
    arrival.rank = in.get<std::int32_t>();
    arrival.weight = in.get<double>();
    arrival.age = in.get<std::int64_t>();
    if (arrival.rank < 0 || arrival.rank >= world) {
      throw InvalidMessage("a report of rank " + std::to_string(arrival.rank) + " in a world of " +
                           std::to_string(world));
    }
    check_weight(arrival.weight);
    if (arrival.age < 0) throw InvalidMessage("a report of an arrival that is still to come");
    report.arrivals.push_back(arrival);
  }
  return report;
}

std::vector<std::byte> encode(const Seal& seal, int world) {
  Writer out;
  out.put<std::uint64_t>(seal.round);
  out.put<double>(seal.weight);
  out.put<std::int64_t>(seal.open_for);
  std::vector<std::uint64_t> members(words(world));
  for (const int rank : seal.contributors) {
    const auto i = checked_cast<unsigned>(rank);
    members.at(i / kBits) |= std::uint64_t{1} << (i % kBits);
  }
  for (const std::uint64_t word : members) out.put(word);
  if (world <= kTellArrivalsUpTo) {
    for (const Nanoseconds offset : seal.offsets) out.put(micros(offset));
  }
  return out.take();
}

Seal decode_seal(const std::byte* data, std::size_t bytes, int world) {
  Reader in(data, bytes);
  Seal seal;
  seal.round = in.get<std::uint64_t>();
  seal.weight = in.get<double>();
  seal.open_for = in.get<std::int64_t>();
  check_weight(seal.weight);
  if (seal.open_for < 0) throw InvalidMessage("a round that was sealed before it was opened");
  for (std::size_t i = 0; i < words(world); ++i) {
    const auto word = in.get<std::uint64_t>();
    for (unsigned bit = 0; bit < kBits; ++bit) {
      if ((word >> bit & 1) == 0) continue;
      const auto rank = static_cast<int>(i * kBits + bit);
      if (rank >= world) {
        throw InvalidMessage("contributor " + std::to_string(rank) + " in a world of " +
                             std::to_string(world));
      }
      seal.contributors.push_back(rank);
    }
  }
  if (seal.contributors.empty()) throw InvalidMessage("a round without contributors");
  if (world <= kTellArrivalsUpTo) {
    for (std::size_t i = 0; i < seal.contributors.size(); ++i) {
      seal.offsets.push_back(in.get<std::uint32_t>() * kMicrosecond);
    }
  }
  in.end();
  return seal;
}

}  // namespace hvd_backup
