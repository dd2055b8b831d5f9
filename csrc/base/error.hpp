#pragma once

#include <stdexcept>
#include <string>

namespace hvd_backup {

/// Base of every error that a caller may get. The text has the numbers and says what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The caller passed an impossible argument. It is refused before anything is sent.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

/// A wait timed out. The text names the missing ranks.
class RoundTimeout : public Error {
 public:
  using Error::Error;
};

/// Another rank died, left, or raised, so this rank cannot go on either.
class PeerFailed : public Error {
 public:
  using Error::Error;
};

/// The operating system refused something (memory, files).
class SystemError : public Error {
 public:
  using Error::Error;
  /// `what` followed by the text for `errnum`.
  SystemError(const std::string& what, int errnum);
};

/// A GPU or its driver refused something, or this build has no CUDA.
class DeviceError : public Error {
 public:
  using Error::Error;
};

}  // namespace hvd_backup
