#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace hvd_backup {

constexpr std::size_t kPage = 4096;

/// The size of a huge page on x86-64, and on ARM with pages of 4 KiB.
constexpr std::size_t kHugePage = std::size_t{2} << 20;

constexpr std::size_t round_up(std::size_t value, std::size_t to) {
  return (value + to - 1) / to * to;
}

/// The bytes in [begin, end) of memory that starts at a huge page, as whole huge pages.
struct Range {
  std::size_t begin = 0;
  std::size_t end = 0;
  bool is_empty() const { return begin == end; }
};

/// Memory smaller than this is not put on huge pages.
constexpr std::size_t kHugeFrom = std::size_t{128} << 10;

/// Asks the system for huge pages, which it may not have. [data, data + bytes) must be whole huge
/// pages.
void advise_huge_pages(std::byte* data, std::size_t bytes) noexcept;

/// Memory of this process. Large memory is on huge pages if the system has them: then another
/// process reads it in half the time (`make bench-choices`).
class Pages {
 public:
  Pages() = default;
  /// Throws SystemError, with the size, when there is not enough of it.
  explicit Pages(std::size_t bytes);

  std::byte* data() const { return data_.get(); }
  std::size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };

  std::unique_ptr<std::byte, Free> data_;
  std::size_t size_ = 0;
};

}  // namespace hvd_backup
