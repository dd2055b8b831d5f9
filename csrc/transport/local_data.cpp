#include "transport/local_data.hpp"

#include <cstring>
#include <string>
#include <utility>

#include "base/error.hpp"

namespace hvd_backup {

class LocalNetwork::End final : public DataTransport {
 public:
  End(LocalNetwork& network, int node) : network_(network), node_(node) {}

  Transfer send(int node, int tag, const std::byte* data, std::size_t bytes) override {
    const std::lock_guard lock(network_.mutex_);
    const Route route{node_, node, tag};
    auto message = std::make_shared<Message>(Message{data, nullptr, bytes, false});
    network_.queues_[route].sends.push_back(message);
    network_.sent_[node_] += bytes;
    return begin(route, std::move(message));
  }

  Transfer send_synchronously(int node, int tag, const std::byte* data,
                              std::size_t bytes) override {
    return send(node, tag, data, bytes);
  }

  Transfer receive(int node, int tag, std::byte* data, std::size_t bytes) override {
    const std::lock_guard lock(network_.mutex_);
    const Route route{node, node_, tag};
    auto message = std::make_shared<Message>(Message{nullptr, data, bytes, false});
    network_.queues_[route].receives.push_back(message);
    return begin(route, std::move(message));
  }

  bool done(Transfer transfer) override {
    const std::lock_guard lock(network_.mutex_);
    const auto found = pending_.find(transfer);
    if (found == pending_.end()) throw InvalidArgument("a transfer that is over, or never began");
    network_.match(found->second.first);
    if (!found->second.second->over) return false;
    pending_.erase(found);
    return true;
  }

 private:
  Transfer begin(const Route& route, std::shared_ptr<Message> message) {
    pending_.emplace(++last_, std::make_pair(route, std::move(message)));
    return last_;
  }

  LocalNetwork& network_;
  int node_;
  Transfer last_ = 0;
  std::map<Transfer, std::pair<Route, std::shared_ptr<Message>>> pending_;
};

std::unique_ptr<DataTransport> LocalNetwork::end(int node) {
  return std::make_unique<End>(*this, node);
}

void LocalNetwork::cut(int node) {
  const std::lock_guard lock(mutex_);
  is_cut_[node] = true;
}

void LocalNetwork::connect(int node) {
  const std::lock_guard lock(mutex_);
  is_cut_[node] = false;
}

void LocalNetwork::hold(int tag) {
  const std::lock_guard lock(mutex_);
  held_tag_ = tag;
}

std::size_t LocalNetwork::sent_by(int node) {
  const std::lock_guard lock(mutex_);
  return sent_[node];
}

void LocalNetwork::match(const Route& route) {
  const auto [sender, receiver, tag] = route;
  if (is_cut_[sender] || is_cut_[receiver] || tag == held_tag_) return;
  Queue& queue = queues_[route];
  while (!queue.sends.empty() && !queue.receives.empty()) {
    Message& sent = *queue.sends.front();
    Message& received = *queue.receives.front();
    if (sent.bytes != received.bytes) {
      throw Error(std::to_string(sent.bytes) + " bytes were sent, " +
                  std::to_string(received.bytes) + " expected");
    }
    if (sent.bytes > 0) std::memcpy(received.to, sent.from, sent.bytes);
    sent.over = received.over = true;
    queue.sends.pop_front();
    queue.receives.pop_front();
  }
}

}  // namespace hvd_backup
