#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "memory/descriptor.hpp"
#include "memory/pages.hpp"

namespace hvd_backup {

/// Memory shared by the ranks of a node. It has no name that could outlive the ranks: the kernel
/// frees it when the last of them ends, however it ends. A forked child sees it, but what the child
/// writes stays with the child.
class Segment {
 public:
  /// Zeroed memory that other processes can open by path(). What this one writes to `own` they do
  /// not see; that part is on huge pages where the system has them.
  /// Throws SystemError, with the size, when there is not enough of it.
  static Segment create(std::size_t bytes, Range own = {});
  /// Maps what another process created.
  static Segment open(const std::string& path, std::size_t bytes);

  Segment(Segment&& other) noexcept;
  Segment& operator=(Segment&& other) noexcept;
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;
  ~Segment();

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  int fd() const { return file_.get(); }
  /// How another process of this user finds it, as long as this one lives.
  std::string path() const;

 private:
  Segment(Descriptor file, std::size_t bytes);

  Descriptor file_;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// A private, copy-on-write view of part of a segment: reads see what is shared, writes stay with
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
