// The kernels' CPU twin: the code that a GPU runs for each block and thread, in two loops. It
// proves index arithmetic where there is no GPU; cpu kernels that are made for speed are
// mean.hpp's.
#pragma once

#include "device/tasks.hpp"

namespace hvd_backup::host {

void copy(const CopyTask& task);
void sum(const SumTask& task);

}  // namespace hvd_backup::host
