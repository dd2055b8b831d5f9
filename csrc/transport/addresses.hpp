#pragma once

#include <string>
#include <vector>

namespace hvd_backup {

/// Numeric addresses at which other hosts may reach this one: the addresses of the network
/// interface with this name or, if the name is empty, of all interfaces that are up, loopback last.
/// Throws InvalidArgument, with the names of all interfaces, if there is no interface with this
/// name.
std::vector<std::string> own_addresses(const std::string& interface);

}  // namespace hvd_backup
