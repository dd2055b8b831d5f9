#pragma once

#include <cstddef>

#include "memory/arena.hpp"

namespace hvd_backup {

/// Copies a round's result to private memory, chunk by chunk as each becomes final.
class Copier {
 public:
  /// With `out` nullptr there is nothing to copy.
  Copier(const Arena& arena, RoundNumber round, std::byte* out)
      : arena_(arena), round_(round), out_(out) {}

  /// Copies what is final of a result that is being written to `buffer`; -1: there is none yet.
  void copy_final(int buffer) { copy(buffer, false); }
  /// Copies the rest of the result, which is complete.
  void copy_rest(int buffer) { copy(buffer, true); }

 private:
  void copy(int buffer, bool is_complete);

  const Arena& arena_;
  RoundNumber round_;
  std::byte* out_;
  int from_ = -1;           // the buffer
  std::size_t copied_ = 0;  // chunks of it
};

}  // namespace hvd_backup
