// A CUDA in one thread that does nothing before somebody waits for it, and then as little as it
// must, the streams in random order: whoever forgot to wait sees old bytes. It takes the place of
// cuda_calls.hpp, cuda_peers.hpp and cuda_streams.hpp in the program hvd_backup_lazy_tests.
#pragma once

#include <cstdint>
#include <functional>

namespace hvd_backup::lazy {

/// Begins anew: the order in which streams get on is a function of the seed.
void reset(std::uint64_t seed);
/// Puts work on a stream, as a framework's kernel is.
void launch(void* stream, std::function<void()> work);
/// Whether pin() succeeds.
void let_pin(bool allowed);
/// Pinnings, streams and events that have not been given back.
int left();

}  // namespace hvd_backup::lazy
