// A test framework of one header.
//
//   TEST_CASE("a round is sealed by the arrival that completes the quorum") {
//     CHECK(ledger.sealed());
//     CHECK_EQ(ledger.contributors().size(), 3);
//     CHECK_THROWS_AS(ledger.arrive(9), Mismatch);
//   }
//
// CHECK* note a failure and go on, and may be called by any thread. REQUIRE ends the case, and so
// does SKIP("why"), for what cannot be tested here; call these two in the case's own thread or
// inside in_threads(). A case that skips is counted as skipped, unless a check has failed before.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <functional>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace hvd_backup::check {

struct Case {
  std::string name;
  std::function<void()> body;
  unsigned limit_s = 0;  // 0: the runner's limit
};

struct Outcome {
  int failures = 0;
  std::vector<std::string> messages;  // the first few failures, each with file and line
  std::string skipped;                // why the case was skipped; empty if it was not
};

struct Registration {
  explicit Registration(Case test_case);
};

// All cases of the program, in the order of their registration.
const std::vector<Case>& all_cases();

// Runs one case. Its time limit aborts the process, with the case's name on stderr: what a hung
// thread holds cannot be given back.
Outcome run_case(const Case& test_case, unsigned default_limit_s = 60);

// Runs body(0) … body(count - 1), each in its own thread, and joins them all. An exception that
// leaves a body is a failure of the case.
void in_threads(int count, const std::function<void(int)>& body);

// Notes a failure of the running case.
void fail(const char* file, int line, const std::string& what);

// Notes that the running case cannot be tested here, and ends it.
[[noreturn]] void skip(const std::string& why);

// What REQUIRE and SKIP throw; the failure or the reason has been noted already.
struct EndOfCase : std::exception {
  const char* what() const noexcept override { return "the case has ended"; }
};

template <typename T, typename = void>
struct Streamable : std::false_type {};
template <typename T>
struct Streamable<T, std::void_t<decltype(std::declval<std::ostream&>() << std::declval<T>())>>
    : std::true_type {};

template <typename T, typename = void>
struct Range : std::false_type {};
template <typename T>
struct Range<T, std::void_t<decltype(std::declval<T>().begin()), decltype(std::declval<T>().end())>>
    : std::true_type {};

template <typename T>
void show(std::ostream& out, const T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    out << (value ? "true" : "false");
  } else if constexpr (std::is_same_v<T, std::byte> || std::is_same_v<T, unsigned char> ||
                       std::is_same_v<T, signed char>) {
    out << static_cast<int>(value);
  } else if constexpr (Streamable<const T&>::value) {
    out << value;
  } else if constexpr (Range<const T&>::value) {
    out << '{';
    const char* separator = "";
    for (const auto& element : value) {
      out << separator;
      show(out, element);
      separator = ", ";
    }
    out << '}';
  } else if constexpr (std::is_enum_v<T>) {
    out << static_cast<long long>(value);
  } else {
    out << "(a value of " << sizeof(T) << " bytes)";
  }
}

// As ==, but 2u == -1 is false and CHECK_EQ(v.size(), 3) compiles without a warning.
template <typename A, typename B>
bool equal(const A& a, const B& b) {
  if constexpr (std::is_integral_v<A> && std::is_integral_v<B>) {
    if constexpr (std::is_signed_v<A> == std::is_signed_v<B>) {
      return a == b;
    } else if constexpr (std::is_signed_v<A>) {
      return a >= 0 && static_cast<std::make_unsigned_t<A>>(a) == b;
    } else {
      return equal(b, a);
    }
  } else {
    return a == b;
  }
}

template <typename A, typename B>
void check_equal(const A& a, const B& b, const char* expression, const char* file, int line) {
  if (equal(a, b)) return;
  std::ostringstream out;
  out.precision(17);
  out << expression << ": ";
  show(out, a);
  out << " is not ";
  show(out, b);
  fail(file, line, out.str());
}

// Type and text of what `run` throws are compared with what was expected.
template <typename Expected>
void check_throws(const std::function<void()>& run, const char* expression, const char* type,
                  const std::string& words, const char* file, int line) {
  std::string got = "nothing was thrown";
  try {
    try {  // nested: Expected may be std::exception itself
      run();
    } catch (const Expected& error) {
      got = "it has no text";
      if constexpr (std::is_base_of_v<std::exception, Expected>) {
        if (std::string(error.what()).find(words) != std::string::npos) return;
        got = std::string("its text is: ") + error.what();
      } else {
        if (words.empty()) return;
      }
    }
  } catch (const std::exception& error) {
    got = std::string("it threw another type, saying: ") + error.what();
  } catch (...) {
    got = "it threw another type";
  }
  std::string what = std::string(expression) + " should throw " + type;
  if (!words.empty()) what += " with \"" + words + "\"";
  fail(file, line, what + "; " + got);
}

}  // namespace hvd_backup::check

#define HVD_CHECK_JOIN_(a, b) a##b
#define HVD_CHECK_JOIN(a, b) HVD_CHECK_JOIN_(a, b)

#define HVD_TEST_CASE(limit_s, ...)                                                           \
  static void HVD_CHECK_JOIN(test_case_, __LINE__)();                                         \
  static const ::hvd_backup::check::Registration HVD_CHECK_JOIN(registration_, __LINE__)(     \
      ::hvd_backup::check::Case{__VA_ARGS__, HVD_CHECK_JOIN(test_case_, __LINE__), limit_s}); \
  static void HVD_CHECK_JOIN(test_case_, __LINE__)()

#define TEST_CASE(sentence) HVD_TEST_CASE(0, sentence)
// A case with a time limit of its own.
#define TEST_CASE_WITHIN(seconds, sentence) HVD_TEST_CASE(seconds, sentence)

#define CHECK(...)                                                                               \
  do {                                                                                           \
    if (!(__VA_ARGS__)) ::hvd_backup::check::fail(__FILE__, __LINE__, #__VA_ARGS__ " is false"); \
  } while (false)

#define REQUIRE(...)                                                           \
  do {                                                                         \
    if (!(__VA_ARGS__)) {                                                      \
      ::hvd_backup::check::fail(__FILE__, __LINE__, #__VA_ARGS__ " is false"); \
      throw ::hvd_backup::check::EndOfCase();                                  \
    }                                                                          \
  } while (false)

#define SKIP(why) ::hvd_backup::check::skip(why)

#define CHECK_EQ(a, b) ::hvd_backup::check::check_equal((a), (b), #a " == " #b, __FILE__, __LINE__)

#define CHECK_THROWS_WITH(expression, type, words)                                             \
  ::hvd_backup::check::check_throws<type>([&] { static_cast<void>(expression); }, #expression, \
                                          #type, words, __FILE__, __LINE__)
#define CHECK_THROWS_AS(expression, type) CHECK_THROWS_WITH(expression, type, "")
