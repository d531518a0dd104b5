// access.hpp: who may use the server: API keys, and the names of the server in Host and Origin headers.
#pragma once

#include <arpa/inet.h>

#include "../../export/program.hpp"
#include "../../export/text_lines.hpp"
#include "../openai/request.hpp"

namespace pocket::server {

// Whether two texts are equal, in a time that does not depend on where they differ.
inline bool equal_in_constant_time(std::string_view given, std::string_view secret) {
  uint8_t difference = given.size() != secret.size();
  for (size_t i = 0; i < given.size(); i++)
    difference |= uint8_t(given[i]) ^ uint8_t(secret.empty() ? 0 : secret[i % secret.size()]);
  return difference == 0;
}

// Whether two texts are equal but for the case of ASCII letters.
inline bool equal_without_case(std::string_view a, std::string_view b) {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 'a' - 'A') : c; };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](char x, char y) { return lower(x) == lower(y); });
}

// The API keys; without any, everybody is let in.
class ApiKeys {
 public:
  static constexpr size_t kShortest = 16;

  // Reads a file with a key per line; lines that are empty or begin with # are left out. Throws Failure.
  static ApiKeys read(const std::string& path) {
    ApiKeys keys;
    for (auto& [number, key] : lines_without_comments(read_all(path, 1 << 20))) {
      key = std::string(without_space(key, false, true));
      if (key.empty()) continue;
      const std::string place = path + ": line " + std::to_string(number);
      for (const char c : key)
        if (c <= ' ' || c > '~')
          throw Failure{1, place + ": expected a key of visible ASCII characters, found another character"};
      if (key.size() < kShortest)
        throw Failure{1, place + ": expected a key of at least " + std::to_string(kShortest) + " characters, found " +
                             std::to_string(key.size()) + "; `openssl rand -hex 24` makes one"};
      keys.keys_.push_back(std::move(key));
    }
    if (keys.keys_.empty()) throw Failure{1, path + ": expected a key per line, found none"};
    return keys;
  }

  bool empty() const { return keys_.empty(); }
  // authorization: the value of the Authorization header.
  bool accept(std::string_view authorization) const {
    if (empty()) return true;
    constexpr std::string_view kScheme = "Bearer ";
    if (!equal_without_case(authorization.substr(0, kScheme.size()), kScheme)) return false;
    bool accepted = false;
    for (const std::string& key : keys_) accepted |= equal_in_constant_time(authorization.substr(kScheme.size()), key);
    return accepted;
  }

 private:
  std::vector<std::string> keys_;
};

// The name in a Host header, without a port and in lower case; "" if it is not valid.
inline std::string host_name(std::string_view host) {
  size_t end = host.find(':');
  if (!host.empty() && host[0] == '[') {
    end = host.find(']');
    if (end == host.npos) return "";
    end++;
  }
  end = std::min(end, host.size());
  std::string_view port = host.substr(end);
  const bool good =
      port.empty() || (port[0] == ':' && port.size() <= 6 && port.find_first_not_of("0123456789", 1) == port.npos);
  if (!good) return "";
  std::string name(host.substr(0, end));
  for (char& c : name) c = char(std::tolower(uint8_t(c)));
  return name;
}

// Whether a name, as host_name() returns it, is an IP address.
inline bool is_address(const std::string& name) {
  unsigned char bytes[16];
  if (inet_pton(AF_INET, name.c_str(), bytes) == 1) return true;
  return name.size() > 2 && name[0] == '[' && inet_pton(AF_INET6, name.substr(1, name.size() - 2).c_str(), bytes) == 1;
}

inline bool is_loopback(const std::string& name) {
  return name == "localhost" || name == "[::1]" || (is_address(name) && name.rfind("127.", 0) == 0);
}

// Whether this is a list of header names: HTTP's token characters, commas and spaces.
inline bool is_list_of_names(std::string_view text) {
  constexpr std::string_view kOthers = "!#$%&'*+-.^_`|~, ";
  for (const char c : text)
    if (!(c >= '0' && c <= '9') && !(c >= 'A' && c <= 'Z') && !(c >= 'a' && c <= 'z') &&
        kOthers.find(c) == kOthers.npos)
      return false;
  return !text.empty();
}

// The names and origins under which the server may be used by a browser. A page of another site can make a browser send
// requests here: to a name of its own that it lets point here (DNS rebinding), or from its own origin (CSRF). So Host
// has to be an address, localhost or a known name; and Origin, which browsers add, has to be the server's own or known.
class Origins {
 public:
  Origins() = default;
  // hosts: names without ports. origins: such as https://chat.example. Throws Failure.
  Origins(const std::vector<std::string>& hosts, const std::vector<std::string>& origins) : origins_(origins) {
    for (const std::string& host : hosts) {
      hosts_.push_back(host_name(host));
      if (hosts_.back().empty() || host.find_first_of("/ ") != host.npos)
        throw Failure{2, "--allow-host: expected a name such as llm.example.org, found '" + host + "'"};
    }
    for (const std::string& origin : origins)
      if (origin.find("://") == origin.npos || origin.back() == '/')
        throw Failure{2, "--allow-origin: expected an origin such as https://chat.example.org, found '" + origin + "'"};
  }

  bool accept_host(const std::string& host) const {
    const std::string name = host_name(host);
    return name == "localhost" || is_address(name) || contains(hosts_, name);
  }
  // Whether a page of this origin may use the server. "": the request is not from a page.
  bool accept_origin(const std::string& origin, const std::string& host) const {
    if (origin.empty() || is_foreign_but_allowed(origin)) return true;
    const size_t scheme = origin.find("://");
    return scheme != origin.npos && origin.substr(scheme + 3) == host;
  }
  // Whether the origin is on the list, so that the response has to say so (CORS).
  bool is_foreign_but_allowed(const std::string& origin) const { return contains(origins_, origin); }

 private:
  static bool contains(const std::vector<std::string>& list, const std::string& text) {
    return !text.empty() && std::find(list.begin(), list.end(), text) != list.end();
  }
  std::vector<std::string> hosts_, origins_;
};

}  // namespace pocket::server
