#include "memory/descriptor.hpp"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <mutex>
#include <new>
#include <utility>

#include "base/error.hpp"

namespace hvd_backup {
namespace {

std::atomic<int> keepers{0};

}  // namespace

/// All descriptors of this process, for the child's side of a fork. Never destroyed: objects with
/// static storage may own descriptors to the very end.
class OpenDescriptors {
 public:
  static OpenDescriptors& all() noexcept {
    alignas(OpenDescriptors) static std::byte place[sizeof(OpenDescriptors)];
    static auto* const only = new (place) OpenDescriptors;
    return *only;
  }

  /// Before the first is opened.
  static void prepare_for_forks() {
    static const int problem = pthread_atfork(
        [] { all().mutex_.lock(); }, [] { all().mutex_.unlock(); }, [] { all().close_in_child(); });
    if (problem != 0) throw SystemError("cannot prepare for forks", problem);
  }

  std::mutex& mutex() { return mutex_; }

  // Hold the mutex to call these two.
  void add(Descriptor& one) {
    one.previous_ = nullptr;
    one.next_ = first_;
    if (first_ != nullptr) first_->previous_ = &one;
    first_ = &one;
  }
  void remove(Descriptor& one) {
    (one.previous_ != nullptr ? one.previous_->next_ : first_) = one.next_;
    if (one.next_ != nullptr) one.next_->previous_ = one.previous_;
    one.next_ = one.previous_ = nullptr;
  }

 private:
  OpenDescriptors() = default;

  // The child's only thread may call what is safe in a signal handler, and nothing that allocates.
  void close_in_child() {
    while (keepers == 0 && first_ != nullptr) {
      Descriptor& one = *first_;
      remove(one);
      one.close_in_child();
    }
    mutex_.unlock();
  }

  std::mutex mutex_;
  Descriptor* first_ = nullptr;
};

Descriptor::Descriptor(int fd) : fd_(fd) {
  if (fd_ >= 0) enter();
}

Descriptor::Descriptor(Descriptor&& other) noexcept { take(other); }

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this == &other) return *this;
  close();
  take(other);
  return *this;
}

Descriptor::~Descriptor() { close(); }

void Descriptor::maps(std::vector<Mapping> mappings) {
  const std::lock_guard lock(OpenDescriptors::all().mutex());
  mappings_.swap(mappings);
}

void Descriptor::enter() {
  OpenDescriptors::prepare_for_forks();
  OpenDescriptors& all = OpenDescriptors::all();
  const std::lock_guard lock(all.mutex());
  all.add(*this);
}

void Descriptor::take(Descriptor& other) {
  OpenDescriptors& all = OpenDescriptors::all();
  const std::lock_guard lock(all.mutex());
  if (other.fd_ < 0) return;
  all.remove(other);
  fd_ = std::exchange(other.fd_, -1);
  mappings_ = std::exchange(other.mappings_, {});
  all.add(*this);
}

void Descriptor::close() {
  OpenDescriptors& all = OpenDescriptors::all();
  const std::lock_guard lock(all.mutex());
  if (fd_ < 0) return;
  all.remove(*this);
  ::close(std::exchange(fd_, -1));
  mappings_.clear();
}

void Descriptor::close_in_child() {
  for (const Mapping& one : mappings_) {
    const std::size_t bytes = one.file.end - one.file.begin;
    if (bytes == 0) continue;
    // If the kernel refuses, the memory stays shared in the child.
    [[maybe_unused]] const void* const mapped =
        mmap(one.data + one.file.begin, bytes, PROT_READ | PROT_WRITE,
             MAP_FIXED | MAP_PRIVATE | MAP_NORESERVE, fd_, static_cast<off_t>(one.file.begin));
  }
  ::close(std::exchange(fd_, -1));
}

KeptByChildren::KeptByChildren() { ++keepers; }
KeptByChildren::~KeptByChildren() { --keepers; }

}  // namespace hvd_backup
