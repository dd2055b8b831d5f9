// Control messages and coordinator time per round, in worlds larger than a test machine: the real
// ledger, coordinator and messages, driven by arrivals drawn at random.
//
//   control_traffic <ranks> <ranks per node> <backup workers> <rounds>
//
// prints one line of JSON. A node's service thread reports what has arrived kWake after the first
// arrival it has not reported; messages take kLatency; a node that knows the seal reports no more.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <vector>

#include "protocol/coordinator.hpp"

namespace hvd_backup {
namespace {

constexpr Nanoseconds kWake = 50 * kMicrosecond;
constexpr Nanoseconds kLatency = 100 * kMicrosecond;

struct Traffic {
  std::size_t reports = 0;
  std::size_t seals = 0;
  std::size_t bytes_up = 0;
  std::size_t bytes_down = 0;
  double coordinator_us = 0;
};

/// Reports in the order in which they reach the coordinator.
std::multimap<Nanoseconds, NodeReport> reports_of_round(RoundNumber round, int ranks, int per_node,
                                                        std::mt19937& random) {
  // A step of 100 ms with a heavy tail, as measured arrival times have.
  std::lognormal_distribution<double> step(0, 0.25);
  std::multimap<Nanoseconds, NodeReport> reports;
  for (int first = 0; first < ranks; first += per_node) {
    std::vector<std::pair<Nanoseconds, int>> arrivals;
    for (int rank = first; rank < std::min(ranks, first + per_node); ++rank) {
      arrivals.emplace_back(static_cast<Nanoseconds>(step(random) * 100 * kMillisecond), rank);
    }
    std::sort(arrivals.begin(), arrivals.end());
    for (std::size_t i = 0; i < arrivals.size();) {
      const Nanoseconds sent = arrivals[i].first + kWake;
      NodeReport report{round, {}};
      for (; i < arrivals.size() && arrivals[i].first <= sent; ++i) {
        report.arrivals.push_back({arrivals[i].second, 1, sent - arrivals[i].first});
      }
      reports.emplace(sent + kLatency, std::move(report));
    }
  }
  return reports;
}

Traffic play(Coordinator& coordinator, int ranks, int per_node, std::mt19937& random) {
  using Clock = std::chrono::steady_clock;
  Traffic traffic;
  Nanoseconds known_at = 0;  // when the nodes know the seal
  for (const auto& [at, report] : reports_of_round(coordinator.open(), ranks, per_node, random)) {
    if (known_at != 0 && at - kLatency > known_at) break;
    const std::vector<std::byte> message = encode(report);
    ++traffic.reports;
    traffic.bytes_up += message.size();
    const auto start = Clock::now();
    const bool sealed = coordinator.take(decode_report(message.data(), message.size(), ranks), at);
    const std::vector<std::byte> seal =
        sealed ? encode(coordinator.seal(), ranks) : std::vector<std::byte>();
    traffic.coordinator_us +=
        std::chrono::duration<double, std::micro>(Clock::now() - start).count();
    if (!sealed) continue;
    known_at = at + kLatency;
    traffic.seals = static_cast<std::size_t>((ranks + per_node - 1) / per_node);
    traffic.bytes_down = traffic.seals * seal.size();
  }
  return traffic;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int run(int ranks, int per_node, int backups, int rounds) {
  std::mt19937 random(0);
  Coordinator coordinator(backup_workers(ranks, backups));
  std::vector<double> reports;
  std::vector<double> up;
  std::vector<double> down;
  std::vector<double> time;
  std::size_t seals = 0;
  for (int i = 0; i < rounds; ++i) {
    const Traffic traffic = play(coordinator, ranks, per_node, random);
    reports.push_back(static_cast<double>(traffic.reports));
    up.push_back(static_cast<double>(traffic.bytes_up));
    down.push_back(static_cast<double>(traffic.bytes_down));
    time.push_back(traffic.coordinator_us);
    seals = traffic.seals;
  }
  std::printf(
      "{\"ranks\": %d, \"ranks_per_node\": %d, \"backup_workers\": %d, \"reports\": %.0f, "
      "\"seals\": %zu, \"bytes_up\": %.0f, \"bytes_down\": %.0f, \"coordinator_us\": %.1f}\n",
      ranks, per_node, backups, median(reports), seals, median(up), median(down), median(time));
  return 0;
}

}  // namespace
}  // namespace hvd_backup

int main(int argc, char** argv) {
  int numbers[4] = {0, 0, 0, 0};
  for (int i = 0; i < 4 && i + 1 < argc; ++i)
    numbers[i] = static_cast<int>(std::strtol(argv[i + 1], nullptr, 10));
  const auto [ranks, per_node, backups, rounds] = numbers;
  if (argc != 5 || ranks < 1 || per_node < 1 || backups < 0 || backups >= ranks || rounds < 1) {
    std::fprintf(stderr,
                 "use: control_traffic <ranks> <ranks per node> <backup workers> <rounds>\n");
    return 2;
  }
  return hvd_backup::run(ranks, per_node, backups, rounds);
}
