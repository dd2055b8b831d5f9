#pragma once

#include <cstddef>
#include <vector>

#include "memory/pages.hpp"

namespace hvd_backup {

/// Owns a file descriptor that a forked child does not keep.
///
/// A forked child, such as a DataLoader's worker, has copies of its parent's descriptors. If the
/// parent is killed, such a copy would keep its sockets open and its locks held, and no other
/// process would notice the death. Therefore pthread_atfork closes all of them in the child. exec
/// closes them as well: open them with O_CLOEXEC.
///
/// Shared mappings of the file become private in the child: it can still read them, and its writes
/// stay with it.
class Descriptor {
 public:
  /// Memory in which the file's bytes [file.begin, file.end) are mapped at `data` + file.begin.
  struct Mapping {
    std::byte* data = nullptr;
    Range file;
  };

  Descriptor() = default;
  /// Takes over an open file descriptor; -1 is none.
  explicit Descriptor(int fd);
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor();

  /// -1 if there is none, as in a forked child.
  int get() const { return fd_; }

  /// Notes shared mappings of the file, which the caller unmaps after the end of this object.
  void maps(std::vector<Mapping> mappings);

 private:
  friend class OpenDescriptors;

  void enter();
  void take(Descriptor& other);
  void close();
  void close_in_child();

  int fd_ = -1;
  std::vector<Mapping> mappings_;
  Descriptor* next_ = nullptr;  // in the list of all that are open in this process
  Descriptor* previous_ = nullptr;
};

/// While one exists, forked children of this process keep all descriptors and mappings. For tests
/// whose ranks are forked children.
class KeptByChildren {
 public:
  KeptByChildren();
  KeptByChildren(const KeptByChildren&) = delete;
  KeptByChildren& operator=(const KeptByChildren&) = delete;
  ~KeptByChildren();
};

}  // namespace hvd_backup
