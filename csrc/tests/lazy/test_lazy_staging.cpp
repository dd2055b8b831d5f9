// Staging on streams that get on in any order that CUDA allows.
#include <array>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "../check.hpp"
#include "device/staging.hpp"
#include "lazy_cuda.hpp"
#include "lazy_model.hpp"

using namespace hvd_backup;
using lazy::kAll;
using lazy::kFirst;
using lazy::kGap;
using lazy::kGpu;
using lazy::kSecond;
using lazy::Model;
using lazy::runs;

namespace {

void* const kStreams[] = {nullptr, reinterpret_cast<void*>(0x1000),
                          reinterpret_cast<void*>(0x2000)};

std::byte* bytes_of(std::vector<float>& data) { return reinterpret_cast<std::byte*>(data.data()); }

bool all_are(const std::vector<float>& data, std::size_t first, std::size_t count, float value) {
  return lazy::all_are(data.data(), first, count, value);
}

/// Steps on changing streams, late rounds among them; false if a byte was not what it must be.
bool train(std::uint64_t seed, bool pin) {
  lazy::reset(seed);
  lazy::let_pin(pin);
  std::mt19937_64 random(seed);
  std::vector<float> slot(kAll, -1);
  std::array<std::vector<float>, 3> window;
  window.fill(std::vector<float>(kAll, -1));
  Model model;
  Staging staging(kGpu, runs(), bytes_of(slot), kAll * sizeof(float));
  const Event between(kGpu);  // the user's streams wait for one another, as torch asks for
  bool good = true;
  float expected = 0;
  void* stream = kStreams[0];
  for (int step = 1; step <= 12; ++step) {
    between.record(stream);
    stream = kStreams[random() % 3];
    between.hold(stream);
    const auto value = static_cast<float>(step);
    if (random() % 4 == 0) {
      staging.settle();  // this rank is late, and skips
    } else {
      model.backward(stream, value);
      staging.stage(model.sources(), stream);
      good = good && all_are(slot, 0, kFirst, value) && all_are(slot, kFirst, kGap, -1) &&
             all_are(slot, kFirst + kGap, kSecond, value);
    }
    // The last result has been released: the others write to it.
    for (auto& result : window) result.assign(kAll, -7);
    std::vector<float>& result = window[random() % 3];
    result.assign(kAll, 100 * value);
    staging.load(bytes_of(result), model.targets(), stream);
    model.update(stream);
    expected += 100 * value;
  }
  between.record(stream);
  between.await();
  for (const auto& param : model.params) good = good && all_are(param, 0, param.size(), expected);
  return good;
}

}  // namespace

TEST_CASE("whatever order streams run in, slots and gradients get their bytes") {
  for (std::uint64_t seed = 0; seed < 400; ++seed) {
    CHECK(train(seed, true));
    CHECK(train(seed, false));
  }
}

TEST_CASE("a step on a stream that nobody ordered after the last one's spoils no result") {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    lazy::reset(seed);
    std::vector<float> slot(kAll);
    std::vector<float> result(kAll, 5);
    Model loaded;
    Model staged;
    Staging staging(kGpu, runs(), bytes_of(slot), kAll * sizeof(float));
    staging.load(bytes_of(result), loaded.targets(), kStreams[1]);
    staged.backward(kStreams[2], 3);
    staging.stage(staged.sources(), kStreams[2]);
    const Event done(kGpu);
    done.record(kStreams[1]);
    done.await();
    CHECK(all_are(loaded.grads[0], 0, kFirst, 5));
    CHECK(all_are(loaded.grads[1], 0, kSecond, 5));
    CHECK(all_are(slot, 0, kFirst, 3));
  }
}

TEST_CASE("staging gives back what it has pinned and made, after its copies") {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    lazy::reset(seed);
    const int before = lazy::left();
    std::vector<float> slot(kAll);
    std::vector<float> result(kAll);
    Model model;
    {
      Staging staging(kGpu, runs(), bytes_of(slot), kAll * sizeof(float), seed % 2 == 0);
      staging.load(bytes_of(result), model.targets(), kStreams[1]);
      CHECK(lazy::left() > before);
    }
    CHECK_EQ(lazy::left(), before);
  }
}

TEST_CASE("why CUDA does not pin is told") {
  lazy::reset(1);
  lazy::let_pin(false);
  std::vector<float> slot(kAll);
  const Staging staging(kGpu, runs(), bytes_of(slot), kAll * sizeof(float));
  CHECK_EQ(staging.why_not_pinned(), "operation not permitted");
}

TEST_CASE("who does not wait for an event sees old bytes in some order") {
  int wrong = 0;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    lazy::reset(seed);
    int data = 0;
    int seen = -1;
    const Event done(kGpu);
    lazy::launch(kStreams[1], [&data] { data = 1; });
    lazy::launch(kStreams[2], [&] { seen = data; });
    done.record(kStreams[2]);
    done.await();
    wrong += seen != 1;
    lazy::reset(seed);
  }
  CHECK(wrong > 5);
  CHECK(wrong < 45);
}
