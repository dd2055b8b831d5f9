// Kernels for gradients on a device: pack many tensors, add peers' slots, unpack. `device` is
// kHost, where the GPU's code runs in loops on host memory and is done on return, or a CUDA device,
// where it is put on `stream`, a cudaStream_t (nullptr: the legacy default stream). The device must
// be able to read or write all pointers until the stream has done the work.
//
// Each function throws InvalidArgument for impossible arguments, before anything is launched. It
// throws DeviceError, with CUDA's words, if a launch fails or this build has no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "arithmetic/mean.hpp"
#include "base/dtype.hpp"
#include "device/buffer.hpp"
#include "device/tasks.hpp"

namespace hvd_backup {

/// Where a tensor lies in the flat buffer, in elements.
struct Slice {
  std::size_t offset = 0;
  std::size_t count = 0;
};

/// Cuts the slices into blocks; pure. Throws InvalidArgument unless each slice begins at or after
/// the end of the one before it.
Tiling tiles_of(const std::vector<Slice>& slices);

/// A layout of many tensors in one flat buffer, made once: a table of it lies on the device. The
/// tensors have one dtype, the flat buffer has one; between them elements are cast.
class PackPlan {
 public:
  PackPlan(DType tensor_dtype, DType flat_dtype, const std::vector<Slice>& slices, int device);

  DType tensor_dtype() const { return tensor_dtype_; }
  DType flat_dtype() const { return flat_dtype_; }
  std::size_t tensor_count() const { return slices_.size(); }
  std::size_t flat_count() const;  ///< elements of the flat buffer up to the last slice's end
  int device() const { return device_; }

  /// flat[slice t] = scale * tensors[t], for all t in one launch (one for every 480 tensors).
  /// `tensors` are tensor_count() addresses, read before the return; nullptr stands for zeros.
  /// Scaled in float32, or float64 if either dtype is, then cast; float64 to 16 bits by way of
  /// float32, as torch does. Elements between slices are left alone. `*nonfinite`, on the device,
  /// is set to 1 if a written element is infinite or NaN, and never to 0; it may be nullptr.
  void pack(const void* const* tensors, double scale, std::byte* flat, std::uint32_t* nonfinite,
            void* stream) const;

  /// tensors[t] = flat[slice t], cast; tensors that are nullptr are left out.
  void unpack(const std::byte* flat, void* const* tensors, void* stream) const;

 private:
  PackPlan(DType tensor_dtype, DType flat_dtype, const std::vector<Slice>& slices, Tiling tiling,
           int device);
  CopyTask task(void* const* tensors, std::byte* flat) const;

  DType tensor_dtype_;
  DType flat_dtype_;
  std::vector<Slice> slices_;
  int device_;
  std::vector<std::uint64_t> first_tile_;
  Buffer tiles_;
};

/// mean.hpp's functions of the same names, with the same bits (of NaNs only that they are NaN), for
/// at most 128 operands, in the order given. `out` may be an operand if dtypes are equal.
void weighted_mean(DType dtype, const Operand* operands, std::size_t operand_count,
                   std::size_t count, double total, std::byte* out, int device, void* stream);
void weighted_sum(DType dtype, const Operand* operands, std::size_t operand_count,
                  std::size_t count, std::byte* sum, int device, void* stream);
void mean_of_sums(DType dtype, const std::byte* const* sums, std::size_t sum_count,
                  std::size_t count, double total, std::byte* out, int device, void* stream);

}  // namespace hvd_backup
