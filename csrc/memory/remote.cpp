#include "memory/remote.hpp"

#include <sys/uio.h>

#include <cerrno>
#include <string>

#include "base/error.hpp"

namespace hvd_backup {

bool read_remote(int pid, std::uint64_t address, std::byte* to, std::size_t bytes) {
  while (bytes > 0) {
    const iovec local{to, bytes};
    // NOLINTNEXTLINE(performance-no-int-to-ptr): an address of another process
    const iovec remote{reinterpret_cast<void*>(address), bytes};
    const ssize_t copied = process_vm_readv(pid, &local, 1, &remote, 1, 0);
    if (copied < 0 && (errno == EPERM || errno == EACCES || errno == ENOSYS)) return false;
    if (copied <= 0) throw SystemError("cannot read from process " + std::to_string(pid), errno);
    const auto step = static_cast<std::size_t>(copied);
    to += step;
    address += step;
    bytes -= step;
  }
  return true;
}

bool can_read_remote(int pid, std::uint64_t address) {
  std::uint64_t probe = 0;
  try {
    return read_remote(pid, address, reinterpret_cast<std::byte*>(&probe), sizeof probe);
  } catch (const SystemError&) {
    return false;  // the answer to the question, not an error: the staged copy is used instead
  }
}

}  // namespace hvd_backup
