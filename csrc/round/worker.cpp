#include "round/worker.hpp"

#include <vector>

namespace hvd_backup {

Worker::Worker(const Arena& arena, int rank, const Options& options, const Clock& clock,
               Output output)
    : arena_(arena), rank_(rank), reducer_(arena, options, clock, rank, output) {}

void Worker::enter(RoundNumber round) {
  round_ = round;
  begun_ = works_ = false;
}

void Worker::work(const Referee& referee, bool is_sealed) {
  if (!begun_) works_ = begin(referee, is_sealed);
  if (works_) reducer_.help();
}

ResultWorker::ResultWorker(const Arena& arena, int rank, const Options& options, const Clock& clock)
    : Worker(arena, rank, options, clock, Output::result) {}

bool ResultWorker::begin(const Referee& referee, bool is_sealed) {
  if (!is_sealed || !referee.known().contains(rank_)) return false;
  begun_ = true;
  reducer_.begin(round_, referee.known().contributors(), referee.sealed_it());
  return true;
}

int ResultWorker::unfinished() const { return works_ ? reducer_.current() : -1; }

SumWorker::SumWorker(const Arena& arena, int rank, const Options& options, const Clock& clock)
    : Worker(arena, rank, options, clock, Output::node_sum), policy_(options.policy) {}

bool SumWorker::begin(const Referee& referee, bool is_sealed) {
  // If every rank counts, a node whose ranks have all arrived need not wait for the seal.
  const bool is_early = !is_sealed && policy_.needs_every_rank() && arena_.all_arrived(round_);
  if (!is_early && (!is_sealed || !referee.known().contains(rank_))) return false;
  begun_ = true;
  const std::vector<int> ours =
      is_sealed ? arena_.ranks_among(referee.known().contributors()) : arena_.ranks();
  reducer_.begin(round_, ours, ours.front() == rank_);
  return reducer_.only_contribution() == nullptr;
}

int SumWorker::unfinished() const { return published_buffer(arena_.round(round_).begun, round_); }

std::unique_ptr<Worker> make_worker(const Arena& arena, int rank, const Options& options,
                                    const Clock& clock) {
  if (arena.spans_nodes()) return std::make_unique<SumWorker>(arena, rank, options, clock);
  return std::make_unique<ResultWorker>(arena, rank, options, clock);
}

}  // namespace hvd_backup
