// digits.hpp: digits in texts: of JSON, of grammars and of patterns.
#pragma once

#include <cstdint>
#include <string_view>

namespace pocket {

/// The value of a hexadecimal digit; -1: it is none.
inline int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  const char lower = char(c | 32);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

/// Reads n hexadecimal digits, at most 8. On failure returns false, and `at` is the place of what is no digit.
inline bool read_hex(std::string_view text, size_t& at, int n, uint32_t& value) {
  value = 0;
  for (int i = 0; i < n; i++, at++) {
    const int digit = at < text.size() ? hex_digit(text[at]) : -1;
    if (digit < 0) return false;
    value = value << 4 | uint32_t(digit);
  }
  return true;
}

/// Reads decimal digits. Returns false if there are none. A number above `most`, which is below 2^28, becomes some number
/// above it.
inline bool read_number(std::string_view text, size_t& at, uint32_t most, uint32_t& value) {
  const size_t start = at;
  value = 0;
  for (; at < text.size() && text[at] >= '0' && text[at] <= '9'; at++)
    if (value <= most) value = 10 * value + uint32_t(text[at] - '0');
  return at > start;
}

}  // namespace pocket
