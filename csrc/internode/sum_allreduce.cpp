#include "internode/sum_allreduce.hpp"

#include <algorithm>
#include <utility>

#include "arithmetic/mean.hpp"
#include "round/chunk_reducer.hpp"

namespace hvd_backup {
namespace {

// What an owner holds of sums that it cannot add yet.
constexpr std::size_t kStagingBytes = std::size_t{16} << 20;
constexpr std::size_t kLeastDepth = 2;  // one is received while another is added

constexpr std::uint32_t kChannels = 8192;  // that have tags of their own

}  // namespace

bool Outbox::flush(DataTransport& data) {
  bool moved = false;
  for (auto& transfers : to_) {
    while (!transfers.empty() && data.done(transfers.front())) {
      transfers.pop_front();
      moved = true;
    }
  }
  return moved;
}

bool Outbox::is_empty() const {
  return std::all_of(to_.begin(), to_.end(), [](const auto& one) { return one.empty(); });
}

SumAllreduce::SumAllreduce(const Arena& arena, DataTransport& data, int nodes, int node,
                           std::uint32_t channel)
    : arena_(arena),
      data_(data),
      nodes_(nodes),
      node_(node),
      sum_tag_(static_cast<int>(2 * (channel % kChannels))),
      result_tag_(sum_tag_ + 1),
      sums_out_(nodes),
      results_out_(nodes) {
  static_assert(2 * kChannels <= DataTransport::kMostTag);
}

void SumAllreduce::begin(std::vector<int> givers, RoundNumber number, int buffer) {
  givers_ = std::move(givers);
  const auto me = std::find(givers_.begin(), givers_.end(), node_);
  mine_ = me == givers_.end() ? -1 : static_cast<int>(me - givers_.begin());
  weight_.reset();
  number_ = number;
  buffer_ = buffer;
  result_ = arena_.result(buffer);
  next_sum_ = expected_ = reduced_ = 0;
  sums_.clear();
  results_.clear();
  results_out_ = Outbox(nodes_, memory_for_results());
  for (std::size_t place = 0; place < givers_.size(); ++place) {
    if (givers_[place] == node_) continue;
    if (gives()) sums_.push_back({place, {}, 0});
    results_.push_back({place, {}, 0});
  }
  expect_results();
  const std::size_t row = std::max<std::size_t>(1, sums_.size() * arena_.spec().chunk_bytes * 2);
  depth_ = std::min(owned(), std::max(kLeastDepth, kStagingBytes / row));
  if (staging_.size() < depth_ * row) staging_ = Pages(depth_ * row);
}

bool SumAllreduce::step(const Source& sum) {
  bool moved = false;
  if (gives()) {
    moved = send_sums(sum);
    expect_sums();
    for (Inbox& inbox : sums_) {
      while (take(inbox)) moved = true;
    }
    moved = reduce(sum) || moved;
  }
  moved = take_results() || moved;
  moved = sums_out_.flush(data_) || moved;
  return results_out_.flush(data_) || moved;
}

bool SumAllreduce::is_complete() const {
  const bool all_here = std::all_of(results_.begin(), results_.end(),
                                    [](const Inbox& inbox) { return inbox.transfers.empty(); });
  return all_here && reduced_ == owned() && (!gives() || next_sum_ == arena_.chunks().size()) &&
         sums_out_.is_empty();
}

Outbox SumAllreduce::take_outbox() { return std::exchange(results_out_, Outbox(nodes_)); }

// Chunk c belongs to giver c mod their number, so that all owners have work from the start.
std::size_t SumAllreduce::owned() const {
  if (!gives()) return 0;
  const std::size_t chunks = arena_.chunks().size();
  const auto place = static_cast<std::size_t>(mine_);
  return chunks > place ? (chunks - place - 1) / givers_.size() + 1 : 0;
}

std::size_t SumAllreduce::owned_chunk(std::size_t i) const {
  return i * givers_.size() + static_cast<std::size_t>(mine_);
}

DType SumAllreduce::dtype(const Chunk& chunk) const {
  return arena_.spec().flats[chunk.flat].dtype;
}

std::size_t SumAllreduce::sum_bytes(const Chunk& chunk) const {
  return chunk.count * size_of(sum_type(dtype(chunk)));
}

std::size_t SumAllreduce::result_bytes(const Chunk& chunk) const {
  return chunk.count * size_of(dtype(chunk));
}

// The sum of the i-th owned chunk that comes from the node of this inbox. It lies in its page as
// what is sent does in its own: where they differ by a few bytes, the kernel's copy (rep movsb)
// takes far longer on Zen 3 and 4: `make bench-choices`.
std::byte* SumAllreduce::received(std::size_t i, std::size_t inbox) {
  const std::size_t place = i % depth_ * sums_.size() + inbox;
  return staging_.data() + place * arena_.spec().chunk_bytes * 2;
}

// The i-th owned chunk of the result, for the other nodes.
std::byte* SumAllreduce::outgoing(std::size_t i) {
  const Chunk& chunk = arena_.chunks()[owned_chunk(i)];
  if (results_out_.memory() == nullptr) return result_ + chunk.offset;
  return results_out_.memory() + i * (arena_.spec().chunk_bytes + kPage) + chunk.offset % kPage;
}

Pages SumAllreduce::memory_for_results() {
  const std::size_t bytes = owned() * (arena_.spec().chunk_bytes + kPage);
  if (bytes < kHugeFrom) return {};
  if (spare_.empty()) {
    if (apart_ == kMostApart) return {};
    ++apart_;
    return Pages(bytes);
  }
  Pages memory = std::move(spare_.back());
  spare_.pop_back();
  return memory.size() < bytes ? Pages(bytes) : std::move(memory);
}

void SumAllreduce::expect_results() {
  for (std::size_t c = 0; c < arena_.chunks().size(); ++c) {
    const Chunk& chunk = arena_.chunks()[c];
    const std::size_t place = c % givers_.size();
    if (givers_[place] == node_) continue;
    const auto inbox = std::find_if(results_.begin(), results_.end(),
                                    [place](const Inbox& one) { return one.place == place; });
    inbox->transfers.push_back(
        data_.receive(givers_[place], result_tag_, result_ + chunk.offset, result_bytes(chunk)));
  }
}

void SumAllreduce::expect_sums() {
  for (; expected_ < owned() && expected_ < reduced_ + depth_; ++expected_) {
    const Chunk& chunk = arena_.chunks()[owned_chunk(expected_)];
    for (std::size_t k = 0; k < sums_.size(); ++k) {
      sums_[k].transfers.push_back(data_.receive(givers_[sums_[k].place], sum_tag_,
                                                 received(expected_, k), sum_bytes(chunk)));
    }
  }
}

bool SumAllreduce::send_sums(const Source& sum) {
  bool moved = false;
  for (; next_sum_ < arena_.chunks().size(); ++next_sum_) {
    const int owner = givers_[next_sum_ % givers_.size()];
    if (owner == node_) continue;
    const std::byte* own = sum(next_sum_);
    if (own == nullptr) break;
    // Not more of them than a round's are on their way: without the owner's result, this node does
    // not get to the next.
    sums_out_.add(owner, data_.send(owner, sum_tag_, own, sum_bytes(arena_.chunks()[next_sum_])));
    moved = true;
  }
  return moved;
}

bool SumAllreduce::reduce(const Source& sum) {
  if (!weight_) return false;
  const double weight = *weight_;
  bool moved = false;
  for (; reduced_ < expected_; ++reduced_) {
    const bool all_here = std::all_of(
        sums_.begin(), sums_.end(), [this](const Inbox& inbox) { return inbox.taken > reduced_; });
    const std::byte* own = all_here ? sum(owned_chunk(reduced_)) : nullptr;
    if (own == nullptr) break;
    reduce_chunk(reduced_, own, weight);
    moved = true;
  }
  return moved;
}

void SumAllreduce::reduce_chunk(std::size_t i, const std::byte* own, double weight) {
  const Chunk& chunk = arena_.chunks()[owned_chunk(i)];
  operands_.clear();
  for (std::size_t k = 0; k < sums_.size(); ++k) {
    if (operands_.size() == static_cast<std::size_t>(mine_)) operands_.push_back(own);
    operands_.push_back(received(i, k));
  }
  if (operands_.size() < givers_.size()) operands_.push_back(own);
  std::byte* to = outgoing(i);
  if (weight == 0) {
    std::fill_n(to, result_bytes(chunk), std::byte{0});
  } else {
    mean_of_sums(dtype(chunk), operands_.data(), operands_.size(), chunk.count, weight, to);
  }
  for (int node = 0; node < nodes_; ++node) {
    if (node == node_) continue;
    results_out_.add(node, data_.send_synchronously(node, result_tag_, to, result_bytes(chunk)));
  }
  if (std::byte* in_window = result_ + chunk.offset; in_window != to) {
    const bool stream = arena_.contribution_bytes() >= kStreamFrom;
    copy_bytes(in_window, to, result_bytes(chunk), stream);
  }
  mark(owned_chunk(i));
}

// Whether the next message is here.
bool SumAllreduce::take(Inbox& inbox) {
  if (inbox.transfers.empty() || !data_.done(inbox.transfers.front())) return false;
  inbox.transfers.pop_front();
  ++inbox.taken;
  return true;
}

bool SumAllreduce::take_results() {
  bool moved = false;
  for (Inbox& inbox : results_) {
    for (; take(inbox); moved = true) mark((inbox.taken - 1) * givers_.size() + inbox.place);
  }
  return moved;
}

// The node's ranks may read this chunk of the result.
void SumAllreduce::mark(std::size_t chunk) {
  arena_.chunk_done(buffer_, chunk).store(number_ + 1, std::memory_order_release);
}

}  // namespace hvd_backup
