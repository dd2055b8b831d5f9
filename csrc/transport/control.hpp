#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/types.hpp"
#include "transport/framed_socket.hpp"
#include "transport/poller.hpp"

namespace hvd_backup {

/// What a node must know to be let in; spread over MPI, which the job's processes alone share.
using Token = std::array<std::byte, 32>;

/// Unpredictable. Throws SystemError.
Token make_token();

/// The coordinator's end of the control channel: a stream socket to every other node.
///
/// Sleeps in poll(); no thread of its own. Who connects and does not show the token at once is cut
/// off, and changes nothing.
class ControlHub {
 public:
  struct Event {
    enum class Kind { joined, frame, lost };
    Kind kind = Kind::frame;
    int node = 0;
    Frame frame;
  };

  /// Listens on a port that the system chooses. `nodes` are numbered from 0.
  ControlHub(const Token& token, int nodes, const Clock& clock = monotonic_clock());
  ControlHub(const ControlHub&) = delete;
  ControlHub& operator=(const ControlHub&) = delete;
  ~ControlHub();

  std::uint16_t port() const { return port_; }
  /// What has happened, sleeping for at most `timeout` until something does.
  std::vector<Event> poll(Nanoseconds timeout);
  /// Sends to a node; nothing if it is lost: poll() tells that.
  void send(int node, const Frame& frame);
  /// Sends to every node that is there.
  void broadcast(const Frame& frame);

 private:
  struct Peer {
    FramedSocket socket;
    int node = -1;  // -1: a stranger so far
    Nanoseconds since = 0;
  };
  using Peers = std::map<std::uint64_t, Peer>;  // by tag, ascending with age

  void accept_all();
  void cut_off_strangers();
  void read(Peers::iterator peer, std::vector<Event>& events);
  bool admit(Peer& peer, const Frame& first) const;
  void drop(Peers::iterator peer, std::vector<Event>* events);
  void flush(Peers::iterator peer);

  Token token_;
  int nodes_;
  const Clock& clock_;
  Poller poller_;
  int listener_ = -1;
  std::uint16_t port_ = 0;
  std::uint64_t next_tag_ = 1;  // 0 is the listener
  Peers peers_;
};

/// Another node's end.
class ControlLink {
 public:
  /// Connects and shows the token. Throws PeerFailed, with the address, if nobody answers within
  /// `timeout`, or whoever does refuses this node.
  ControlLink(const std::string& host, std::uint16_t port, const Token& token, int node,
              Nanoseconds timeout);

  /// What has come, sleeping for at most `timeout`. Throws PeerFailed when the hub is gone.
  std::vector<Frame> poll(Nanoseconds timeout);
  void send(const Frame& frame);

 private:
  void flush();

  std::string address_;
  FramedSocket socket_;
  Poller poller_;
  std::vector<Frame> early_;  // came together with the welcome
};

}  // namespace hvd_backup
