// Layer device: sums over peers' slots have the bits of mean.hpp's.
#include <string>
#include <vector>

#include "check.hpp"
#include "device/kernels.hpp"
#include "device_case.hpp"
#include "reference.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

constexpr std::size_t kGuardBytes = 64;

/// Operands on a device and the host, each `shift` elements after an aligned address.
struct Slots {
  Slots(DType type, int on, std::size_t operands, std::size_t elements,
        const std::vector<std::size_t>& shift_of_each = {})
      : dtype(type), device(on), count(elements), shifts(shift_of_each) {
    shifts.resize(operands + 1);  // the last is the result's
    for (std::size_t k = 0; k < operands; ++k) {
      slots.emplace_back(device, (shifts[k] + count) * size_of(dtype));
      fill_with_noise(dtype, slots.back().host.data(), shifts[k] + count, 100 * k + count);
      slots.back().send();
      weights.push_back(1);
    }
  }

  /// Where operand k lies on the device, and where on the host.
  std::vector<Operand> operands(bool on_host) const {
    std::vector<Operand> all;
    for (std::size_t k = 0; k < slots.size(); ++k) {
      const std::byte* data = on_host ? slots[k].host.data() : slots[k].data();
      all.push_back({data + shifts[k] * size_of(dtype), weights[k]});
    }
    return all;
  }

  Mirror result(DType type) const {
    Mirror out(device, (shifts.back() + count) * size_of(type) + kGuardBytes);
    std::fill(out.host.begin(), out.host.end(), std::byte{0x5A});
    out.send();
    return out;
  }

  /// Runs both: compute(operands, out) on the device, reference(operands, out) on the host.
  template <class Compute, class Reference>
  void compare(DType out_dtype, const Compute& compute, const Reference& reference,
               const char* what) const {
    Mirror got = result(out_dtype);
    std::vector<std::byte> expected = got.host;
    const std::size_t at = shifts.back() * size_of(out_dtype);
    reference(operands(true), expected.data() + at);
    compute(operands(false), got.data() + at);
    got.fetch();
    if (same_bytes(expected, got.host)) return;
    FAIL_CHECK(what, " of ", slots.size(), " times ", count, " ", name_of(dtype), ": other bits");
  }

  void check_mean(double total) const {
    compare(
        dtype,
        [&](const std::vector<Operand>& all, std::byte* out) {
          weighted_mean(dtype, all.data(), all.size(), count, total, out, device, nullptr);
        },
        [&](const std::vector<Operand>& all, std::byte* out) {
          weighted_mean(dtype, all.data(), all.size(), count, total, out, false);
        },
        "mean");
  }

  void check_sum() const {
    compare(
        sum_type(dtype),
        [&](const std::vector<Operand>& all, std::byte* out) {
          weighted_sum(dtype, all.data(), all.size(), count, out, device, nullptr);
        },
        [&](const std::vector<Operand>& all, std::byte* out) {
          weighted_sum(dtype, all.data(), all.size(), count, out);
        },
        "sum");
  }

  DType dtype;
  int device;
  std::size_t count;
  std::vector<std::size_t> shifts;
  std::vector<Mirror> slots;
  std::vector<double> weights;
};

/// Around a vector, a round of the threads, and a block of every dtype (1024, 2048, 4096).
const std::vector<std::size_t> kCounts{0,    1,    2,    7,    8,    9,    255,  257,  1023,
                                       1024, 1025, 2047, 2048, 2049, 4095, 4096, 4097, 9001};

}  // namespace

DEVICE_CASE("the mean over one to seven slots has the bits of the CPU's, at any size") {
  for (const DType dtype : kAllDTypes) {
    for (std::size_t operands = 1; operands <= 7; ++operands) {
      for (const std::size_t count : kCounts) {
        const Slots slots(dtype, device, operands, count);
        slots.check_mean(static_cast<double>(operands));
        slots.check_sum();
      }
    }
  }
}

DEVICE_CASE("slots count as much as their weights say, with the CPU's bits") {
  for (const DType dtype : kAllDTypes) {
    for (std::size_t operands = 1; operands <= 9; ++operands) {
      Slots slots(dtype, device, operands, 3001);
      for (std::size_t k = 0; k < operands; ++k) {
        slots.weights[k] = 0.25 + static_cast<double>(k * k) / 3;
      }
      for (const double total : {1.0, 3.3, 8.0, 0.5, 131072.0, 1e-3}) slots.check_mean(total);
      slots.check_sum();
    }
  }
}

DEVICE_CASE("the mean over 128 slots, as many as there may be, has the CPU's bits") {
  for (const DType dtype : kAllDTypes) {
    const Slots slots(dtype, device, 128, 300);
    slots.check_mean(128);
    slots.check_sum();
  }
}

DEVICE_CASE("slots and result may lie at any multiple of their element's size") {
  for (const DType dtype : kAllDTypes) {
    for (std::size_t shift = 0; shift < 9; ++shift) {
      // All alike, so that vectors stay possible; then none like another.
      for (const auto& shifts : {std::vector<std::size_t>{shift, shift, shift, shift},
                                 std::vector<std::size_t>{shift, 0, shift + 1, 2 * shift + 1}}) {
        for (const std::size_t count : {1U, 6U, 2100U, 4500U}) {
          const Slots slots(dtype, device, 3, count, shifts);
          slots.check_mean(3);
          slots.check_sum();
        }
      }
    }
  }
}

DEVICE_CASE("the mean of sums of groups has the CPU's bits") {
  for (const DType dtype : kAllDTypes) {
    for (const std::size_t count : kCounts) {
      for (std::size_t groups = 1; groups <= 5; ++groups) {
        const Slots sums(sum_type(dtype), device, groups, count, {0, 1, 0, 3, 2, 1});
        const auto pointers = [](const std::vector<Operand>& all) {
          std::vector<const std::byte*> data;
          for (const Operand& operand : all) data.push_back(operand.data);
          return data;
        };
        sums.compare(
            dtype,
            [&](const std::vector<Operand>& all, std::byte* out) {
              mean_of_sums(dtype, pointers(all).data(), groups, count, 7, out, device, nullptr);
            },
            [&](const std::vector<Operand>& all, std::byte* out) {
              mean_of_sums(dtype, pointers(all).data(), groups, count, 7, out);
            },
            "mean of sums");
      }
    }
  }
}

DEVICE_CASE("the mean may replace any of the slots") {
  for (const DType dtype : kAllDTypes) {
    for (std::size_t replaced = 0; replaced < 5; ++replaced) {
      Slots slots(dtype, device, 5, 5003, {1, 1, 1, 0, 2});
      std::vector<std::byte> expected = slots.slots[replaced].host;
      const std::size_t at = slots.shifts[replaced] * size_of(dtype);
      weighted_mean(dtype, slots.operands(true).data(), 5, slots.count, 5, expected.data() + at,
                    false);
      weighted_mean(dtype, slots.operands(false).data(), 5, slots.count, 5,
                    slots.slots[replaced].data() + at, device, nullptr);
      slots.slots[replaced].fetch();
      CHECK(same_bytes(expected, slots.slots[replaced].host));
    }
  }
}

DEVICE_CASE("means that are subnormal have the CPU's bits: nothing is flushed to zero") {
  for (const DType dtype : {DType::float32, DType::float64}) {
    for (const double total : {1.0, 2.0, 3.0, 4096.0}) {
      Slots slots(dtype, device, 2, 2500);
      const double least = dtype == DType::float32 ? std::ldexp(1.0, -126) : 2.3e-308;
      for (std::size_t k = 0; k < 2; ++k) {
        for (std::size_t i = 0; i < slots.count; ++i) {
          store(dtype, slots.slots[k].host.data(), i, least * noise(k, i));
        }
        slots.slots[k].send();
      }
      slots.check_mean(total);
    }
  }
}

DEVICE_CASE("the mean of negative zeros is a negative zero: nothing is added that was not there") {
  for (const DType dtype : kAllDTypes) {
    for (std::size_t operands = 1; operands <= 7; ++operands) {
      Slots slots(dtype, device, operands, 2100);
      for (Mirror& slot : slots.slots) {
        for (std::size_t i = 0; i < slots.count; ++i) store(dtype, slot.host.data(), i, -0.0);
        slot.send();
      }
      slots.check_mean(3);
      slots.check_sum();
    }
  }
}

DEVICE_CASE("an infinite or undefined element of one slot reaches the mean") {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const DType dtype : kAllDTypes) {
    Slots slots(dtype, device, 3, 2100);
    store(dtype, slots.slots[1].host.data(), 3, kInfinity);
    store(dtype, slots.slots[0].host.data(), 2050, kInfinity);
    store(dtype, slots.slots[2].host.data(), 2050, -kInfinity);
    for (Mirror& slot : slots.slots) slot.send();
    Mirror out = slots.result(dtype);
    weighted_mean(dtype, slots.operands(false).data(), 3, slots.count, 3, out.data(), device,
                  nullptr);
    out.fetch();
    CHECK_EQ(load(dtype, out.host.data(), 3), kInfinity);
    CHECK(std::isnan(load(dtype, out.host.data(), 2050)));
    CHECK(std::isfinite(load(dtype, out.host.data(), 4)));
  }
}
