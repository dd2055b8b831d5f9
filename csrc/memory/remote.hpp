#pragma once

#include <cstddef>
#include <cstdint>

namespace hvd_backup {

/// Copies `bytes` from `address` in process `pid` to `to`, without that process's help
/// (process_vm_readv). Returns false if the kernel refuses. It can begin to refuse at any time, as
/// the process can ask for that (PR_SET_DUMPABLE). Throws SystemError when the process, or its
/// memory, is gone.
bool read_remote(int pid, std::uint64_t address, std::byte* to, std::size_t bytes);

/// Whether this process may read the memory of process `pid`: tries 8 bytes at `address`.
bool can_read_remote(int pid, std::uint64_t address);

}  // namespace hvd_backup
