#include "base/error.hpp"

#include <system_error>

namespace hvd_backup {

SystemError::SystemError(const std::string& what, int errnum)
    : Error(what + ": " + std::generic_category().message(errnum)) {}

}  // namespace hvd_backup
