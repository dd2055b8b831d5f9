#include "memory/segment.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/checked_cast.hpp"
#include "base/error.hpp"

namespace hvd_backup {
namespace {

[[noreturn]] void fail(const std::string& what, int errnum) { throw SystemError(what, errnum); }

// To map this many pages again takes less time than to look which of them were written.
constexpr std::size_t kFewPages = 64;

std::size_t page_size() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

/// Entries of /proc/self/pagemap, a word per page (Linux: admin-guide/mm/pagemap.rst).
class PageMap {
 public:
  PageMap() : fd_(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)) {}
  PageMap(const PageMap&) = delete;
  PageMap& operator=(const PageMap&) = delete;
  ~PageMap() {
    if (fd_ >= 0) close(fd_);
  }

  /// Fills `entries`, one per page from `data` on. False where the kernel does not show them.
  bool read(const std::byte* data, std::vector<std::uint64_t>& entries) const {
    const std::size_t bytes = entries.size() * sizeof(std::uint64_t);
    const std::size_t offset =
        reinterpret_cast<std::uintptr_t>(data) / page_size() * sizeof entries[0];
    return fd_ >= 0 && pread(fd_, entries.data(), bytes, checked_cast<off_t>(offset)) ==
                           checked_cast<ssize_t>(bytes);
  }

  /// Whether a page of a private file mapping is this process's own copy by now.
  static bool is_own_copy(std::uint64_t entry) {
    constexpr std::uint64_t kPresentOrSwapped = std::uint64_t{3} << 62;
    constexpr std::uint64_t kOfFile = std::uint64_t{1} << 61;
    return (entry & kPresentOrSwapped) != 0 && (entry & kOfFile) == 0;
  }

 private:
  int fd_;
};

/// Addresses for `bytes` bytes, from a huge page on, where nothing is mapped yet; or nullptr.
std::byte* reserve(std::size_t bytes) {
  const std::size_t room = round_up(bytes, page_size());
  void* const mapped =
      mmap(nullptr, room + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto* const first = static_cast<std::byte*>(mapped);
  const std::size_t unaligned = reinterpret_cast<std::uintptr_t>(first) % kHugePage;
  const std::size_t before = unaligned == 0 ? 0 : kHugePage - unaligned;
  if (before > 0) munmap(first, before);
  if (before < kHugePage) munmap(first + before + room, kHugePage - before);
  return first + before;
}

/// Maps part of reserved addresses: the same part of a file, or memory of this process if fd is -1.
bool map_part(std::byte* data, Range part, int fd) {
  if (part.is_empty()) return true;
  const int flags = MAP_FIXED | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
  return mmap(data + part.begin, part.end - part.begin, PROT_READ | PROT_WRITE, flags, fd,
              fd < 0 ? 0 : checked_cast<off_t>(part.begin)) != MAP_FAILED;
}

/// Maps a file as a whole but for `own`; or nullptr.
std::byte* map_around(Range own, int fd, std::size_t bytes) {
  std::byte* const data = reserve(bytes);
  if (data == nullptr) return nullptr;
  if (!map_part(data, {0, own.begin}, fd) || !map_part(data, own, -1) ||
      !map_part(data, {own.end, bytes}, fd)) {
    const int errnum = errno;
    munmap(data, bytes);
    errno = errnum;
    return nullptr;
  }
  advise_huge_pages(data + own.begin, own.end - own.begin);
  return data;
}

std::byte* map_all(int fd, std::size_t bytes) {
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  return data == MAP_FAILED ? nullptr : static_cast<std::byte*>(data);
}

std::string in_mib(std::size_t bytes) { return std::to_string((bytes >> 20) + 1) + " MiB"; }

}  // namespace

Segment Segment::create(std::size_t bytes, Range own) {
  Segment segment(Descriptor(memfd_create("hvd_backup", MFD_CLOEXEC)), bytes);
  const int fd = segment.fd();
  if (fd < 0) fail("cannot create shared memory", errno);
  // Sparse: a page costs memory once it is touched, and a window is touched only when needed.
  if (ftruncate(fd, checked_cast<off_t>(bytes)) != 0) {
    fail("cannot size shared memory to " + in_mib(bytes), errno);
  }
  segment.data_ = own.is_empty() ? map_all(fd, bytes) : map_around(own, fd, bytes);
  if (segment.data_ == nullptr) {
    fail("cannot map " + in_mib(bytes) + " of shared memory; lower window= or raise the limit",
         errno);
  }
  segment.file_.maps(
      {{segment.data_, {0, own.begin}}, {segment.data_, {own.is_empty() ? 0 : own.end, bytes}}});
  return segment;
}

Segment Segment::open(const std::string& path, std::size_t bytes) {
  // NOLINTNEXTLINE(cppcoreguidelines-pro-type-vararg,hicpp-vararg)
  Segment segment(Descriptor(::open(path.c_str(), O_RDWR | O_CLOEXEC)), bytes);
  if (segment.fd() < 0) {
    fail(
        "cannot open the shared memory of the node's first rank at " + path +
            " (do the ranks run as one user, in one PID namespace, and may they trace each other?)",
        errno);
  }
  struct stat file{};
  if (fstat(segment.fd(), &file) != 0) fail("cannot look at shared memory", errno);
  if (checked_cast<std::size_t>(file.st_size) != bytes) {
    throw SystemError(path + " is not the shared memory of the node's first rank, but a file of " +
                      std::to_string(file.st_size) + " bytes instead of " + std::to_string(bytes) +
                      " (do the ranks run in one PID namespace?)");
  }
  segment.data_ = map_all(segment.fd(), bytes);
  if (segment.data_ == nullptr) fail("cannot map " + in_mib(bytes) + " of shared memory", errno);
  segment.file_.maps({{segment.data_, {0, bytes}}});
  return segment;
}

Segment::Segment(Descriptor file, std::size_t bytes) : file_(std::move(file)), size_(bytes) {}

Segment::Segment(Segment&& other) noexcept
    : file_(std::move(other.file_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

Segment& Segment::operator=(Segment&& other) noexcept {
  std::swap(file_, other.file_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Segment::~Segment() {
  file_ = {};  // first: a child that is forked now must not map anything here
  if (data_ != nullptr) munmap(data_, size_);
}

std::string Segment::path() const {
  return "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(fd());
}

PrivateView::PrivateView(const Segment& segment, std::size_t offset, std::size_t bytes)
    : size_(std::max<std::size_t>(bytes, 1)) {
  void* data = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE,
                    segment.fd(), checked_cast<off_t>(offset));
  if (data == MAP_FAILED) fail("cannot map a private view of " + in_mib(bytes), errno);
  data_ = static_cast<std::byte*>(data);
}

PrivateView::PrivateView(PrivateView&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      entries_(std::move(other.entries_)) {}

PrivateView::~PrivateView() {
  if (data_ != nullptr) munmap(data_, size_);
}

void PrivateView::reset() {
  const std::size_t pages = (size_ + page_size() - 1) / page_size();
  if (pages <= kFewPages) return forget(0, pages);
  const PageMap map;
  entries_.resize(pages);
  if (!map.read(data_, entries_)) return forget(0, pages);
  for (std::size_t first = 0; first < pages;) {
    std::size_t end = first;
    while (end < pages && PageMap::is_own_copy(entries_[end])) ++end;
    if (end > first) forget(first, end - first);
    first = end + 1;
  }
}

void PrivateView::forget(std::size_t first_page, std::size_t pages) {
  const std::size_t page = page_size();
  if (madvise(data_ + first_page * page, pages * page, MADV_DONTNEED) != 0) {
    fail("cannot reset a private view", errno);
  }
}

}  // namespace hvd_backup
