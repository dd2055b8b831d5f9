#include "round/round_log.hpp"

namespace hvd_backup {

void RoundLog::add(const RoundReport& round, Nanoseconds stepped_at) {
  ++rounds_;
  contributed_ += round.contributed ? 1 : 0;
  skipped_ += round.my_arrival_at == 0 ? 1 : 0;
  if (records_.size() == capacity_) records_.pop_front();
  records_.push_back({round.number, round.my_arrival_at, round.sealed_at, stepped_at, round.waited,
                      round.contributed});
}

}  // namespace hvd_backup
