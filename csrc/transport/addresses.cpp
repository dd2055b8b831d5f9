#include "transport/addresses.hpp"

#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <set>

#include "base/error.hpp"

namespace hvd_backup {
namespace {

struct Found {
  int order = 0;  // IPv4 first, loopback last
  std::string address;
};

bool is_link_local(const sockaddr& address) {
  return address.sa_family == AF_INET6 &&
         IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr);
}

std::string numeric(const sockaddr& address) {
  const bool four = address.sa_family == AF_INET;
  const auto length = static_cast<socklen_t>(four ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
  std::array<char, NI_MAXHOST> text{};
  const int error =
      getnameinfo(&address, length, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST);
  return error == 0 ? text.data() : "";
}

}  // namespace

std::vector<std::string> own_addresses(const std::string& interface) {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) throw SystemError("cannot list the network interfaces", errno);
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(list, &freeifaddrs);
  std::set<std::string> names;
  std::vector<Found> found;
  for (const ifaddrs* at = list; at != nullptr; at = at->ifa_next) {
    names.insert(at->ifa_name);
    if (at->ifa_addr == nullptr || (at->ifa_flags & IFF_UP) == 0) continue;
    const int family = at->ifa_addr->sa_family;
    if ((family != AF_INET && family != AF_INET6) || is_link_local(*at->ifa_addr)) continue;
    if (!interface.empty() && interface != at->ifa_name) continue;
    const bool loopback = (at->ifa_flags & IFF_LOOPBACK) != 0;
    found.push_back({(loopback ? 2 : 0) + (family == AF_INET ? 0 : 1), numeric(*at->ifa_addr)});
  }
  if (!interface.empty() && names.count(interface) == 0) {
    std::string known;
    for (const std::string& name : names) known += (known.empty() ? "" : ", ") + name;
    throw InvalidArgument("HVD_BACKUP_INTERFACE: there is no network interface " + interface +
                          " here, but " + known);
  }
  if (!interface.empty() && found.empty()) {
    throw InvalidArgument("HVD_BACKUP_INTERFACE: " + interface + " is down or has no address");
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const Found& a, const Found& b) { return a.order < b.order; });
  std::vector<std::string> addresses;
  addresses.reserve(found.size());
  for (const Found& one : found) addresses.push_back(one.address);
  return addresses;
}

}  // namespace hvd_backup
