#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "memory/arena.hpp"
#include "memory/pages.hpp"
#include "transport/data.hpp"

namespace hvd_backup {

/// Messages to other nodes that are still on their way.
class Outbox {
 public:
  void add(int node, DataTransport::Transfer transfer) { to_[index(node)].push_back(transfer); }
  /// Forgets what has been delivered. True if there was something.
  bool flush(DataTransport& data);
  bool is_empty() const;

  explicit Outbox(int nodes, Pages memory = {}) : to_(index(nodes)), memory_(std::move(memory)) {}

  /// What the messages are in; nullptr: in the window.
  std::byte* memory() const { return memory_.data(); }
  Pages take_memory() { return std::move(memory_); }

 private:
  static std::size_t index(int node) { return static_cast<std::size_t>(node); }

  std::vector<std::deque<DataTransport::Transfer>> to_;  // by node
  Pages memory_;
};

/// The data of one sealed round between the nodes: a direct reduce-scatter and all-gather, chunk by
/// chunk, each as soon as what it needs is there.
///
/// The nodes with contributors, the givers, own the chunks in turn. A giver sends its sum of a
/// chunk to the chunk's owner, who adds them in ascending order of nodes, divides, and sends the
/// result to every other node. So each element is computed once, and a node without contributors
/// sends nothing.
class SumAllreduce {
 public:
  /// Where this node's sum of a chunk lies; nullptr as long as it is not final.
  using Source = std::function<const std::byte*(std::size_t chunk)>;

  /// `channel` tells the messages of one collective from those of others.
  SumAllreduce(const Arena& arena, DataTransport& data, int nodes, int node, std::uint32_t channel);

  /// The result goes to this buffer, whose chunks are marked as they become final. Of the round
  /// before, everything but sends must be over.
  void begin(std::vector<int> givers, RoundNumber number, int buffer);
  /// What the sums are divided by; 0 if all contributors abstain: the result is zero then. Until it
  /// is told, sums travel, but no results.
  void divide_by(double weight) { weight_ = weight; }

  /// Does what can be done. True if there was something.
  bool step(const Source& sum);

  /// The result is there as a whole, and this node's sums have been taken.
  bool is_complete() const;

  /// Results that other nodes have yet to take.
  Outbox take_outbox();
  /// They have taken them: its memory is used again.
  void take_back(Outbox outbox) {
    if (outbox.memory() != nullptr) spare_.push_back(outbox.take_memory());
  }

 private:
  struct Inbox {
    std::size_t place = 0;  // the node's, among the givers
    std::deque<DataTransport::Transfer> transfers;
    std::size_t taken = 0;
  };

  // Rounds that are on their way while no node is late. Those of a late one are in the window: it
  // is the user who says how much memory they may take.
  static constexpr int kMostApart = 2;

  bool gives() const { return mine_ >= 0; }
  std::size_t owned() const;
  std::size_t owned_chunk(std::size_t i) const;
  DType dtype(const Chunk& chunk) const;
  std::size_t sum_bytes(const Chunk& chunk) const;
  std::size_t result_bytes(const Chunk& chunk) const;
  std::byte* received(std::size_t i, std::size_t inbox);
  std::byte* outgoing(std::size_t i);
  Pages memory_for_results();
  void expect_results();
  void expect_sums();
  bool send_sums(const Source& sum);
  bool reduce(const Source& sum);
  void reduce_chunk(std::size_t i, const std::byte* own, double weight);
  bool take(Inbox& inbox);
  bool take_results();
  void mark(std::size_t chunk);

  const Arena& arena_;
  DataTransport& data_;
  int nodes_;
  int node_;
  int sum_tag_;
  int result_tag_;
  std::vector<int> givers_;
  int mine_ = -1;  // this node's place among them, or -1
  std::optional<double> weight_;
  RoundNumber number_ = 0;
  int buffer_ = -1;
  std::byte* result_ = nullptr;
  std::size_t next_sum_ = 0;    // chunks whose sum has been sent, or needs no sending
  std::size_t expected_ = 0;    // owned chunks whose sums may come
  std::size_t reduced_ = 0;     // owned chunks that are done
  std::vector<Inbox> sums_;     // of the other givers, ascending
  std::vector<Inbox> results_;  // of the other owners
  Outbox sums_out_;
  Outbox results_out_;
  std::size_t depth_ = 1;  // owned chunks that are received at a time
  Pages staging_;
  int apart_ = 0;  // memories for results, those on their way included
  std::vector<Pages> spare_;
  std::vector<const std::byte*> operands_;
};

}  // namespace hvd_backup
