#include "round/copier.hpp"

#include "arithmetic/mean.hpp"
#include "round/chunk_reducer.hpp"

namespace hvd_backup {

void Copier::copy(int buffer, bool is_complete) {
  if (out_ == nullptr || buffer < 0) return;
  // After a reduction was begun again, what was copied of the abandoned buffer may be wrong.
  if (buffer != from_) copied_ = 0;
  from_ = buffer;
  const std::byte* from = arena_.result(buffer);
  const bool stream = arena_.contribution_bytes() >= kStreamFrom;
  for (; copied_ < arena_.chunks().size(); ++copied_) {
    if (!is_complete && !arena_.is_final(round_, buffer, copied_)) return;
    const Chunk& chunk = arena_.chunks()[copied_];
    const std::size_t bytes = chunk.count * size_of(arena_.spec().flats[chunk.flat].dtype);
    copy_bytes(out_ + chunk.offset, from + chunk.offset, bytes, stream);
  }
}

}  // namespace hvd_backup
