#pragma once

#include <stdexcept>
#include <string>

namespace hvd_backup {

/// Base of every error a caller may meet. The text carries numbers and the way out.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The caller passed something that cannot be: refused before anything is sent.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

/// A wait ran into its time-out; the text names the missing ranks.
class RoundTimeout : public Error {
 public:
  using Error::Error;
};

/// Another rank died, left, or raised: this rank cannot go on either.
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
