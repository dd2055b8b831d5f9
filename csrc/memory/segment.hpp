#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "memory/descriptor.hpp"
#include "memory/pages.hpp"

namespace hvd_backup {

/// Memory shared by the ranks of a node. It has no name that could outlive the ranks: the kernel
/// frees it when the last of them ends, however it ends. A forked child can read it, but the
/// child's writes stay with the child.
class Segment {
 public:
  /// Zeroed memory that other processes can open by path(). They do not see this process's writes
  /// to `own`; that part is on huge pages if the system has them. Throws SystemError, with the
  /// size, when there is not enough memory.
  static Segment create(std::size_t bytes, Range own = {});
  /// Maps the memory that another process created.
  static Segment open(const std::string& path, std::size_t bytes);

  Segment(Segment&& other) noexcept;
  Segment& operator=(Segment&& other) noexcept;
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;
  ~Segment();

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  int fd() const { return file_.get(); }
  /// The path by which another process of this user opens it, while this process lives.
  std::string path() const;

 private:
  Segment(Descriptor file, std::size_t bytes);

  Descriptor file_;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// A private, copy-on-write view of part of a segment: reads see the shared bytes, writes stay with
/// this process until reset().
class PrivateView {
 public:
  PrivateView(const Segment& segment, std::size_t offset, std::size_t bytes);
  PrivateView(PrivateView&& other) noexcept;
  PrivateView& operator=(PrivateView&&) = delete;
  PrivateView(const PrivateView&) = delete;
  PrivateView& operator=(const PrivateView&) = delete;
  ~PrivateView();

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  /// Forgets this process's writes. Pages that were only read stay mapped: no faults later.
  void reset();

 private:
  void forget(std::size_t first_page, std::size_t pages);

  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::vector<std::uint64_t> entries_;  // of the page map, kept to be filled again
};

}  // namespace hvd_backup
