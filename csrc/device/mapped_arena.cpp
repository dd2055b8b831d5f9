#include "device/mapped_arena.hpp"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.hpp"
#include "device/cuda_calls.hpp"
#include "device/cuda_peers.hpp"
#include "device/cuda_streams.hpp"
#include "device/kernels.hpp"

namespace hvd_backup {
namespace {

constexpr std::size_t kAlign = 4096;
// An allocation begins with these: a number for open() to read, place for what it computes, and the
// numbers that the ranks have copied here.
constexpr std::size_t kHeader = kAlign;
constexpr std::size_t kTrial = 256;  // bytes from the start
constexpr std::size_t kSigns = 1024;
constexpr float kSign = 3;
static_assert(kSigns + MappedArena::kMaxRanks * sizeof kSign <= kHeader);

void zero(int device, std::byte* to, std::size_t bytes, void* stream) {
  if (device == kHost) {
    std::fill_n(to, bytes, std::byte{0});
  } else {
    cuda::begin_zero(device, to, bytes, stream);
  }
}

void copy(int device, std::byte* to, const std::byte* from, std::size_t bytes, void* stream) {
  if (device == kHost) {
    std::memcpy(to, from, bytes);
  } else {
    cuda::begin_copy_within(device, to, from, bytes, stream);
  }
}

void write(int device, std::byte* to, const void* from, std::size_t bytes) {
  if (device == kHost) {
    std::memcpy(to, from, bytes);
  } else {
    cuda::copy_in(device, to, from, bytes);
  }
}

void read(int device, void* to, const std::byte* from, std::size_t bytes) {
  if (device == kHost) {
    std::memcpy(to, from, bytes);
  } else {
    cuda::copy_out(device, to, from, bytes);
  }
}

}  // namespace

MappedArena::MappedArena(int device, std::size_t bytes, int results)
    : device_(device),
      bytes_(bytes),
      results_(results),
      stride_((bytes + kAlign - 1) / kAlign * kAlign),
      own_(std::make_unique<ExportedMemory>(device, result_offset(results))),
      done_(device),
      read_(device),
      adds_(std::make_unique<Stream>(device)) {
  write(device, own_->data(), &kSign, sizeof kSign);
}

MappedArena::~MappedArena() { unmap(); }

std::size_t MappedArena::slot_offset() const { return kHeader; }

std::size_t MappedArena::result_offset(int buffer) const {
  return kHeader + stride_ * (1 + static_cast<std::size_t>(buffer));
}

void MappedArena::open(const std::vector<MemoryHandle>& by_rank, int rank) {
  if (by_rank.size() > static_cast<std::size_t>(kMaxRanks)) {
    throw DeviceError("a kernel reads the slots of at most " + std::to_string(kMaxRanks) +
                      " ranks, there are " + std::to_string(by_rank.size()));
  }
  try {
    for (const MemoryHandle& handle : by_rank) {
      try {
        imported_.emplace_back(device_, handle);
      } catch (const DeviceError& error) {
        throw DeviceError("the memory of rank " + std::to_string(bases_.size()) +
                          " cannot be mapped: " + error.what());
      }
      bases_.push_back(imported_.back().data());
    }
    try_to_read();
    leave_signs(rank);
  } catch (...) {
    unmap();
    throw;
  }
}

// That memory is mapped does not prove that a kernel can read it.
void MappedArena::try_to_read() const {
  for (std::size_t rank = 0; rank < bases_.size(); ++rank) {
    const Operand operand{bases_[rank], 1};
    weighted_mean(DType::float32, &operand, 1, 1, 1, own_->data() + kTrial, device_, adds_->get());
    await_adds();
    float seen = 0;
    read(device_, &seen, own_->data() + kTrial, sizeof seen);
    if (seen == kSign) continue;
    throw DeviceError("the memory of rank " + std::to_string(rank) +
                      " can be mapped, but a kernel reads " + std::to_string(seen) +
                      " there instead of " + std::to_string(kSign));
  }
}

void MappedArena::leave_signs(int rank) const {
  const std::size_t at = kSigns + static_cast<std::size_t>(rank) * sizeof kSign;
  for (std::byte* base : bases_) {
    copy(device_, base + at, own_->data(), sizeof kSign, adds_->get());
  }
  await_adds();
}

void MappedArena::confirm() const {
  std::vector<float> signs(bases_.size());
  read(device_, signs.data(), own_->data() + kSigns, signs.size() * sizeof kSign);
  for (std::size_t rank = 0; rank < signs.size(); ++rank) {
    if (signs[rank] == kSign) continue;
    throw DeviceError("what rank " + std::to_string(rank) + " has copied here has not arrived: " +
                      std::to_string(signs[rank]) + " instead of " + std::to_string(kSign));
  }
}

void MappedArena::await_adds() const {
  done_.record(adds_->get());
  done_.await();
}

std::byte* MappedArena::of(int rank, std::size_t offset) const {
  return bases_.at(static_cast<std::size_t>(rank)) + offset;
}

std::byte* MappedArena::slot() const { return own() + slot_offset(); }

std::byte* MappedArena::result(int buffer) const { return own() + result_offset(buffer); }

std::byte* MappedArena::own() const {
  if (own_->data() != nullptr) return own_->data();
  throw InvalidArgument(
      "this rank has left, and its device memory is given back; after shutdown() or close(), "
      "make a new one");
}

void MappedArena::mean(const Piece& piece, const std::vector<Share>& from, double total, int buffer,
                       const std::vector<int>& to) const {
  const std::size_t bytes = piece.count * size_of(piece.dtype);
  if (buffer < 0 || buffer >= results_ || bytes > bytes_ || piece.offset > bytes_ - bytes) {
    throw InvalidArgument(std::to_string(bytes) + " bytes at byte " + std::to_string(piece.offset) +
                          " of result " + std::to_string(buffer) + " are not within " +
                          std::to_string(results_) + " results of " + std::to_string(bytes_) +
                          " bytes");
  }
  const std::size_t at = result_offset(buffer) + piece.offset;
  std::byte* mine = own() + at;
  add(piece, from, total, mine);
  for (const int rank : to) {
    if (of(rank, at) != mine) copy(device_, of(rank, at), mine, bytes, adds_->get());
  }
  await_adds();
}

void MappedArena::add(const Piece& piece, const std::vector<Share>& from, double total,
                      std::byte* out) const {
  if (from.empty()) {
    return zero(device_, out, piece.count * size_of(piece.dtype), adds_->get());
  }
  std::vector<Operand> operands;
  operands.reserve(from.size());
  for (const Share& share : from) {
    operands.push_back({of(share.rank, slot_offset() + piece.offset), share.weight});
  }
  weighted_mean(piece.dtype, operands.data(), operands.size(), piece.count, total, out, device_,
                adds_->get());
}

void MappedArena::unmap() noexcept {
  adds_.reset();
  bases_.clear();
  imported_.clear();
}

void MappedArena::release() noexcept { own_->release(); }

}  // namespace hvd_backup
