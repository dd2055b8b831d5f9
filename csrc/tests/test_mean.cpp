// Layer device: the weighted mean, bit for bit.
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "arithmetic/mean.hpp"
#include "arithmetic/mean_kernels.hpp"
#include "check.hpp"
#include "reference.hpp"
#include "world.hpp"

using namespace hvd_backup;
using namespace hvd_backup::testing;

namespace {

constexpr std::size_t kMostOperands = 9;

/// Operands of one mean, and where it goes; every buffer with a guard behind it.
struct Problem {
  Problem(DType type, std::size_t operand_count, std::size_t element_count)
      : dtype(type), count(element_count), bytes(count * size_of(type)), out(bytes + kGuard) {
    for (std::size_t k = 0; k < operand_count; ++k) {
      data.emplace_back(bytes + kGuard);
      fill_with_noise(dtype, data.back().data(), count, 100 * k + count);
      weights.push_back(1);
    }
    std::memset(out.data() + bytes, 0x5A, kGuard);
  }

  std::vector<Operand> operands() const {
    std::vector<Operand> all;
    for (std::size_t k = 0; k < data.size(); ++k) all.push_back({data[k].data(), weights[k]});
    return all;
  }

  std::vector<std::byte> expected(double total) const {
    std::vector<const std::byte*> all;
    for (const Memory& operand : data) all.push_back(operand.data());
    std::vector<std::byte> mean(bytes);
    reference_mean(dtype, all, weights, total, count, mean.data());
    return mean;
  }

  void compute(double total, bool stream) {
    weighted_mean(dtype, operands().data(), data.size(), count, total, out.data(), stream);
  }

  void check(const std::vector<std::byte>& mean, const std::byte* got, const char* what) const {
    if (bytes == 0 || std::memcmp(mean.data(), got, bytes) == 0) return;
    FAIL_CHECK(what, ": the mean of ", data.size(), " times ", count, " ", name_of(dtype),
               " is wrong");
  }

  static constexpr std::size_t kGuard = 64;
  DType dtype;
  std::size_t count;
  std::size_t bytes;
  std::vector<Memory> data;
  std::vector<double> weights;
  Memory out;
};

/// Σ of the operands as the kernels add them, 4, 2 or 1 at a time.
std::vector<std::byte> mean_by(const MeanKernels& kernels, const Problem& problem, double total) {
  std::vector<double> sum(kBlock);
  std::vector<std::byte> out(problem.bytes);
  for (std::size_t k = 0; k < problem.data.size();) {
    const std::size_t left = problem.data.size() - k;
    const std::size_t taken = left >= 4 ? 4 : left >= 2 ? 2 : 1;
    std::vector<const std::byte*> some;
    for (std::size_t j = 0; j < taken; ++j) some.push_back(problem.data[k + j].data());
    kernels.add(problem.dtype, some.data(), &problem.weights[k], taken, k == 0, problem.count,
                sum.data());
    k += taken;
  }
  kernels.finish(problem.dtype, sum.data(), total, problem.count, out.data());
  return out;
}

/// The mean in one pass, where the kernels have that.
bool fused(const MeanKernels& kernels, const Problem& problem, double total, bool stream) {
  std::vector<const std::byte*> all;
  for (const Memory& operand : problem.data) all.push_back(operand.data());
  return kernels.fused(problem.dtype, all.data(), problem.weights.data(), all.size(), problem.count,
                       total, problem.out.data(), stream);
}

}  // namespace

TEST_CASE("the mean of one to nine operands has the bits of a plain loop, at any size") {
  for (const DType dtype : kAllDTypes) {
    for (std::size_t operands = 1; operands <= kMostOperands; ++operands) {
      for (const std::size_t count : {0U, 1U, 7U, 33U, 1023U, 1024U, 1025U, 2049U}) {
        Problem problem(dtype, operands, count);
        const auto total = static_cast<double>(operands);
        const std::vector<std::byte> mean = problem.expected(total);
        for (const bool stream : {false, true}) {
          std::memset(problem.out.data(), 0xEE, problem.bytes);
          problem.compute(total, stream);
          problem.check(mean, problem.out.data(), stream ? "streamed" : "stored");
        }
        const std::vector<std::byte> guard(Problem::kGuard, std::byte{0x5A});
        CHECK(std::memcmp(problem.out.data() + problem.bytes, guard.data(), guard.size()) == 0);
      }
    }
  }
}

TEST_CASE("operands count as much as their weights say") {
  for (const DType dtype : kAllDTypes) {
    for (std::size_t operands = 1; operands <= kMostOperands; ++operands) {
      Problem problem(dtype, operands, 1030);
      double total = 0;
      for (std::size_t k = 0; k < operands; ++k) {
        problem.weights[k] = 0.25 + static_cast<double>(k * k) / 3;
        total += problem.weights[k];
      }
      problem.compute(total, false);
      problem.check(problem.expected(total), problem.out.data(), "weighted");
    }
  }
}

TEST_CASE("the result may replace any of the operands") {
  for (const DType dtype : kAllDTypes) {
    for (std::size_t replaced = 0; replaced < 5; ++replaced) {
      for (const bool stream : {false, true}) {
        const Problem problem(dtype, 5, 2500);
        const std::vector<std::byte> mean = problem.expected(5);
        std::byte* out = problem.data[replaced].data();
        weighted_mean(dtype, problem.operands().data(), 5, problem.count, 5, out, stream);
        problem.check(mean, out, "in place");
      }
    }
  }
}

TEST_CASE("operands and result are aligned to their elements, and need no more") {
  for (const DType dtype : kAllDTypes) {
    const std::size_t element = size_of(dtype);
    Problem problem(dtype, 3, 1100);
    const std::vector<std::byte> mean = problem.expected(3);
    std::vector<Operand> shifted = problem.operands();
    for (Operand& operand : shifted) operand.data += element;
    const std::size_t count = problem.count - 1;
    std::byte* out = problem.out.data() + element;
    for (const bool stream : {false, true}) {
      weighted_mean(dtype, shifted.data(), 3, count, 3, out, stream);
      CHECK(std::memcmp(mean.data() + element, out, count * element) == 0);
    }
  }
}

TEST_CASE("baseline and AVX2 kernels give the same bits") {
  if (avx2_kernels() == nullptr) SKIP("this processor or build has no AVX2");
  for (const DType dtype : kAllDTypes) {
    for (std::size_t operands = 1; operands <= kMostOperands; ++operands) {
      for (const std::size_t count : {1U, 15U, 1000U, 1024U}) {
        Problem problem(dtype, operands, count);
        for (std::size_t k = 0; k < operands; ++k) problem.weights[k] = 1 + 0.1 * noise(7, k);
        for (const double total : {1.0, 3.3, 8.0}) {
          const std::vector<std::byte> mean = problem.expected(total);
          problem.check(mean, mean_by(baseline_kernels, problem, total).data(), "baseline");
          problem.check(mean, mean_by(*avx2_kernels(), problem, total).data(), "AVX2");
          for (const bool stream : {false, true}) {
            if (fused(*avx2_kernels(), problem, total, stream)) {
              problem.check(mean, problem.out.data(), stream ? "fused, streamed" : "fused");
            }
          }
        }
      }
    }
  }
}

TEST_CASE("division by a power of two has the bits of a division, subnormal results included") {
  for (const DType dtype : kAllDTypes) {
    for (double total = 1; total <= 131072; total *= 2) {
      Problem problem(dtype, 2, 1024);
      if (dtype == DType::float32 || dtype == DType::float64) {
        const double least = dtype == DType::float32 ? std::ldexp(1.0, -126) : 2.3e-308;
        for (std::size_t i = 0; i < problem.count; i += 3) {
          store(dtype, problem.data[0].data(), i, least * (1 + noise(5, i)));
          store(dtype, problem.data[1].data(), i, least * noise(6, i));
        }
      }
      problem.compute(total, false);
      problem.check(problem.expected(total), problem.out.data(), "power of two");
    }
  }
}

TEST_CASE("totals that are no powers of two are divided by, below one and above 65536, too") {
  for (const DType dtype : kAllDTypes) {
    for (const double total : {0.5, 0.75, 3.0, 65535.0, 65536.5, 1e6, 1e-3}) {
      Problem problem(dtype, 3, 500);
      problem.weights = {total / 2, total / 4, total / 4};
      problem.compute(total, false);
      problem.check(problem.expected(total), problem.out.data(), "division");
    }
  }
}

TEST_CASE("the mean of one operand is the operand") {
  for (const DType dtype : kAllDTypes) {
    Problem problem(dtype, 1, 3000);
    problem.compute(1, false);
    problem.check(problem.expected(1), problem.data[0].data(), "reference");
    problem.check(problem.expected(1), problem.out.data(), "mean");
  }
}

TEST_CASE("an infinite or undefined element of one rank reaches the result") {
  for (const DType dtype : kAllDTypes) {
    Problem problem(dtype, 4, 64);
    store(dtype, problem.data[1].data(), 3, std::numeric_limits<double>::infinity());
    store(dtype, problem.data[2].data(), 40, -std::numeric_limits<double>::infinity());
    store(dtype, problem.data[0].data(), 50, std::numeric_limits<double>::infinity());
    store(dtype, problem.data[3].data(), 50, -std::numeric_limits<double>::infinity());
    problem.compute(4, false);
    CHECK_EQ(load(dtype, problem.out.data(), 3), std::numeric_limits<double>::infinity());
    CHECK_EQ(load(dtype, problem.out.data(), 40), -std::numeric_limits<double>::infinity());
    CHECK(std::isnan(load(dtype, problem.out.data(), 50)));
    CHECK(std::isfinite(load(dtype, problem.out.data(), 4)));
  }
}

TEST_CASE("half-precision operands are summed in float32, so that no sum of them overflows") {
  Problem problem(DType::float16, 8, 100);
  for (const Memory& operand : problem.data) {
    for (std::size_t i = 0; i < problem.count; ++i) store(DType::float16, operand.data(), i, 60000);
  }
  problem.compute(8, false);
  CHECK_EQ(load(DType::float16, problem.out.data(), 99), 60000.0);
}

TEST_CASE("a copy is a copy, streamed or not, at any size and between any addresses") {
  Memory from(8192);
  fill_with_noise(DType::float32, from.data(), 2048, 3);
  std::vector<const MeanKernels*> all{&baseline_kernels};
  if (avx2_kernels() != nullptr) all.push_back(avx2_kernels());
  const auto check_copy = [&from](const auto& copy, std::size_t bytes, std::size_t shift) {
    const Memory to(8192);
    copy(to.data() + shift, from.data() + 5 * shift, bytes);
    CHECK(std::memcmp(to.data() + shift, from.data() + 5 * shift, bytes) == 0);
    CHECK(to.data()[shift + bytes] == std::byte{0});
    if (shift > 0) CHECK(to.data()[shift - 1] == std::byte{0});
  };
  for (const std::size_t bytes : {0U, 1U, 3U, 31U, 32U, 33U, 127U, 128U, 300U, 4096U, 5001U}) {
    for (const std::size_t shift : {0U, 1U, 8U, 31U}) {
      for (const MeanKernels* kernels : all) {
        check_copy(kernels->copy, bytes, shift);
        check_copy(kernels->stream_copy, bytes, shift);
      }
      for (const bool stream : {false, true}) {
        check_copy([stream](auto* to, auto* of, auto n) { copy_bytes(to, of, n, stream); }, bytes,
                   shift);
      }
    }
  }
}
