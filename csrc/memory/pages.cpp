#include "memory/pages.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <string>

#include "base/error.hpp"

namespace hvd_backup {

void advise_huge_pages(std::byte* data, std::size_t bytes) noexcept {
  [[maybe_unused]] const int refused = madvise(data, bytes, MADV_HUGEPAGE);
}

Pages::Pages(std::size_t bytes)
    : data_(static_cast<std::byte*>(std::aligned_alloc(kHugePage, round_up(bytes, kHugePage)))),
      size_(bytes) {
  if (data_ == nullptr) {
    throw SystemError("cannot have " + std::to_string((bytes >> 20) + 1) + " MiB of memory",
                      ENOMEM);
  }
  advise_huge_pages(data_.get(), round_up(bytes, kHugePage));
}

}  // namespace hvd_backup
