#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/clock.hpp"
#include "base/types.hpp"
#include "transport/framed_socket.hpp"
#include "transport/poller.hpp"

namespace hvd_backup {

/// The secret that a node must show to be let in. It travels over MPI, which only the processes of
/// the job share.
using Token = std::array<std::byte, 32>;

/// An unpredictable token. Throws SystemError.
Token make_token();

/// A host that has not answered TCP for this long is taken for dead, unless a caller says
/// otherwise.
constexpr Nanoseconds kSilence = 60 * kSecond;

/// One node's end of the control channel. Sleeps in poll(); no thread of its own.
class Control {
 public:
  struct Event {
    enum class Kind { joined, frame, lost };
    Kind kind = Kind::frame;
    int node = 0;
    Frame frame;
    /// For a lost node: whether it is lost because its host has not answered for too long.
    bool is_silent = false;
  };

  Control() = default;
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;
  virtual ~Control() = default;

  /// Returns the events so far. If there are none, sleeps for at most `timeout` until there is one.
  virtual std::vector<Event> poll(Nanoseconds timeout) = 0;
  /// Sends a frame to a node, now or in later calls. Does nothing if the node is lost, which poll()
  /// reports.
  virtual void send(int node, const Frame& frame) = 0;
  /// Sends a frame to every node that is connected.
  virtual void broadcast(const Frame& frame) = 0;
  /// Whether frames are still to be sent.
  virtual bool has_unsent() const = 0;
  /// Lets poll() end when this file descriptor can be read.
  virtual void watch(int fd) = 0;
  /// A file descriptor that can be read when poll() would not sleep.
  virtual int fd() const = 0;
};

/// The coordinator's end: a stream socket to every other node. A process that connects and does not
/// show the token at once is cut off, and changes nothing.
class ControlHub final : public Control {
 public:
  /// Listens on a port that the system chooses. `nodes` are numbered from 0.
  ControlHub(const Token& token, int nodes, Nanoseconds silence = kSilence,
             const Clock& clock = monotonic_clock());

  std::uint16_t port() const { return port_; }
  std::vector<Event> poll(Nanoseconds timeout) override;
  void send(int node, const Frame& frame) override;
  void broadcast(const Frame& frame) override;
  bool has_unsent() const override;
  void watch(int fd) override;
  int fd() const override { return poller_.fd(); }

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
  Nanoseconds silence_;
  const Clock& clock_;
  Poller poller_;
  Descriptor listener_;
  std::uint16_t port_ = 0;
  std::uint64_t next_tag_ = 2;  // after those of the listener and of what is watched
  Peers peers_;
  std::set<std::uint64_t> strangers_;  // tags of those of the peers, the oldest first
};

/// Another node's end: it sends only to the coordinator, which is node 0.
class ControlLink final : public Control {
 public:
  /// Connects and shows the token. Throws PeerFailed, with the address, if no process answers
  /// within `timeout`, or the process that answers refuses this node.
  ControlLink(const std::string& host, std::uint16_t port, const Token& token, int node,
              Nanoseconds timeout, Nanoseconds silence = kSilence);

  std::vector<Event> poll(Nanoseconds timeout) override;
  void send(int node, const Frame& frame) override;
  void broadcast(const Frame& frame) override { send(0, frame); }
  bool has_unsent() const override { return !is_lost_ && socket_.has_unsent(); }
  void watch(int fd) override;
  int fd() const override { return poller_.fd(); }

 private:
  void flush();

  FramedSocket socket_;
  Poller poller_;
  std::vector<Frame> early_;  // came together with the welcome
  bool is_lost_ = false;
};

}  // namespace hvd_backup
