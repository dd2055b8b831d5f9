#include "memory/pages.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <string>

#include "base/error.hpp"

namespace hvd_backup {
void advise_huge_pages(std::byte* data, std::size_t bytes) noexcept {
  [[maybe_unused]] const int refused = madvise(data, bytes, MADV_HUGEPAGE);
}

Pages::Pages(std::size_t bytes) : size_(bytes) {
  const std::size_t page = bytes < kHugeFrom ? kPage : kHugePage;
  const std::size_t room = round_up(bytes, page);
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(page, room)));
  if (data_ == nullptr) {
    throw SystemError("cannot have " + std::to_string((bytes >> 20) + 1) +
                          " MiB of memory for another node; lower window= or raise the limit",
                      ENOMEM);
  }
  if (page == kHugePage) advise_huge_pages(data_.get(), room);
}

}  // namespace hvd_backup
