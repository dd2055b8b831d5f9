#pragma once

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "transport/data.hpp"

namespace hvd_backup {

/// Connects nodes that are threads of one process: the twin of MPI for tests. All ends share it.
class LocalNetwork {
 public:
  /// The end of one node, for one thread. The network must outlive it.
  std::unique_ptr<DataTransport> end(int node);
  /// Messages to or from this node do not arrive until it is connected again.
  void cut(int node);
  void connect(int node);
  /// Messages with this tag never arrive.
  void hold(int tag);
  /// Bytes that this node has sent so far.
  std::size_t sent_by(int node);

 private:
  class End;
  struct Message {
    const std::byte* from = nullptr;
    std::byte* to = nullptr;
    std::size_t bytes = 0;
    bool over = false;
  };
  using Route = std::tuple<int, int, int>;  // sender, receiver, tag
  struct Queue {
    std::deque<std::shared_ptr<Message>> sends;
    std::deque<std::shared_ptr<Message>> receives;
  };

  void match(const Route& route);

  std::mutex mutex_;
  std::map<Route, Queue> queues_;
  std::map<int, bool> is_cut_;
  int held_tag_ = -1;
  std::map<int, std::size_t> sent_;
};

}  // namespace hvd_backup
