// What these tests add to doctest: cases that are skipped, ranks as threads, the values of vectors.
//
//   TEST_CASE("a round is sealed by the arrival that completes the quorum") {
//     CHECK(ledger.sealed());
//     CHECK_EQ(ledger.contributors().size(), 3);
//     CHECK_THROWS_WITH_AS(ledger.arrive(9), doctest::Contains("rank 9"), Mismatch);
//     if (!there) FAIL_CHECK("rank ", rank, " is missing");
//   }
//   TEST_CASE("a case with a time limit of its own" * doctest::timeout(20)) { … }
//
// Any thread may check. CHECK* and FAIL_CHECK note a failure and go on; REQUIRE ends the case, if
// it is called in the case's own thread, in in_threads() or in noting_exceptions().
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <ostream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

// Before any header of doctest's: how it is compiled in all files.
#define DOCTEST_CONFIG_SUPER_FAST_ASSERTS     // small code: quick to compile
#define DOCTEST_CONFIG_VOID_CAST_EXPRESSIONS  // for [[nodiscard]] in *_THROWS_*
#define DOCTEST_CONFIG_REQUIRE_STRINGIFICATION_FOR_ALL_USED_TYPES  // never "{?}"
#define DOCTEST_CONFIG_NO_POSIX_SIGNALS                            // cases fork, signal and abort
#define DOCTEST_CONFIG_NO_UNPREFIXED_OPTIONS  // main.cpp has options of its own
#include <doctest/doctest.h>

namespace hvd_backup::check {

// Runs body(0) … body(count - 1), each in its own thread, and joins them all. An exception that
// leaves a body is a failure of the case.
void in_threads(int count, const std::function<void(int)>& body);

// Runs `body`. An exception that leaves it is a failure of the case.
void noting_exceptions(const std::function<void()>& body);

// Has values shown with all their digits, for this thread; done by main() and by what is above.
void show_all_digits();

// How many checks of the running case have failed so far.
int failures();

// Notes that the running case cannot be tested here; see SKIP.
void skip(const std::string& why);

}  // namespace hvd_backup::check

// Ends the case, for what cannot be tested here. Only for the body of a case, as it returns from
// the function it is in. The case counts as skipped, unless a check has failed before.
#define SKIP(why)                   \
  do {                              \
    ::hvd_backup::check::skip(why); \
    return;                         \
  } while (false)

namespace doctest {

// The text, not its address.
template <>
struct StringMaker<const char*> {
  static String convert(const char* text) { return text != nullptr ? text : "nullptr"; }
};

template <typename T>
struct StringMaker<std::optional<T>> {
  static String convert(const std::optional<T>& value) {
    return value ? toString(*value) : String("nothing");
  }
};

template <typename A, typename B>
struct StringMaker<std::pair<A, B>> {
  static String convert(const std::pair<A, B>& value) {
    return String("(") + toString(value.first) + ", " + toString(value.second) + ")";
  }
};

template <typename T>
struct StringMaker<std::vector<T>> {
  static String convert(const std::vector<T>& values) {
    String text = "{";
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (i > 0) text += ", ";
      text += toString(static_cast<const T&>(values[i]));
    }
    return text + "}";
  }
};

}  // namespace doctest
