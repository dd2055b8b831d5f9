#pragma once

#include <string>
#include <vector>

namespace hvd_backup {

/// Numeric addresses at which other hosts may reach this one: those of the network interface of
/// this name, or, if it is empty, of all that are up, loopback last. Throws InvalidArgument, with
/// the names there are, if none is called so.
std::vector<std::string> own_addresses(const std::string& interface);

}  // namespace hvd_backup
