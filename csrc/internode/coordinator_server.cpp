#include "internode/coordinator_server.hpp"

#include <algorithm>
#include <string>
#include <utility>

namespace hvd_backup {
namespace {

// A round that is open for this long is told about, and again after twice, four times, … as long:
// a time-out anywhere can name the missing ranks, and rounds as they should be cost nothing.
constexpr Nanoseconds kTellAfter = 100 * kMillisecond;

}  // namespace

Frame make_frame(Message kind, std::uint32_t channel, std::vector<std::byte> payload) {
  return {channel, static_cast<std::uint32_t>(kind), std::move(payload)};
}

void CoordinatorServer::add(std::uint32_t channel, const Policy& policy) {
  channels_.try_emplace(channel, policy);
}

void CoordinatorServer::remove(std::uint32_t channel) { channels_.erase(channel); }

std::vector<Frame> CoordinatorServer::take(const Frame& frame, Nanoseconds now) {
  switch (static_cast<Message>(frame.kind)) {
    case Message::report:
      return take_report(frame, now);
    case Message::lagging:
    case Message::left:
    case Message::status:
      return {frame};
    default:
      throw InvalidMessage("a message of kind " + std::to_string(frame.kind) +
                           " is not one for the coordinator");
  }
}

std::vector<Frame> CoordinatorServer::take_report(const Frame& frame, Nanoseconds now) {
  const auto found = channels_.find(frame.channel);
  if (found == channels_.end()) return {};  // every rank has left it
  Rounds& rounds = found->second;
  const NodeReport report = decode_report(frame.payload.data(), frame.payload.size(), world_);
  if (rounds.coordinator.take(report, now)) return {seal(found->first, rounds)};
  if (rounds.tell_at == 0 && report.round == rounds.coordinator.open()) {
    rounds.tell_after = kTellAfter;
    rounds.tell_at = now + rounds.tell_after;
  }
  return {};
}

std::vector<Frame> CoordinatorServer::tick(Nanoseconds now) {
  std::vector<Frame> frames;
  for (auto& [channel, rounds] : channels_) {
    if (rounds.coordinator.expire(now)) {
      frames.push_back(seal(channel, rounds));
    } else if (rounds.tell_at != 0 && now >= rounds.tell_at) {
      frames.push_back(make_frame(Message::so_far, channel, encode(rounds.coordinator.so_far())));
      rounds.tell_after *= 2;
      rounds.tell_at = now + rounds.tell_after;
    }
  }
  return frames;
}

Nanoseconds CoordinatorServer::wake_at() const {
  Nanoseconds soonest = 0;
  for (const auto& [channel, rounds] : channels_) {
    for (const Nanoseconds at : {rounds.tell_at, rounds.coordinator.wake_at()}) {
      if (at != 0 && (soonest == 0 || at < soonest)) soonest = at;
    }
  }
  return soonest;
}

Frame CoordinatorServer::seal(std::uint32_t channel, Rounds& rounds) const {
  rounds.tell_at = 0;
  return make_frame(Message::seal, channel, encode(rounds.coordinator.seal(), world_));
}

}  // namespace hvd_backup
