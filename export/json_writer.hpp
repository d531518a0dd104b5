// json_writer.hpp: writes values as JSON.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine.hpp"

namespace pocket {

/// A number with nine digits, or with six if a float is read back from them (0.8 instead of 0.800000012); null if it is
/// not finite.
inline std::string json(double number) {
  if (!std::isfinite(number)) return "null";
  char text[40];
  if (number == double(float(number)) && number != std::floor(number)) {
    std::snprintf(text, sizeof text, "%.6g", number);
    if (std::strtof(text, nullptr) == float(number)) return text;
  }
  std::snprintf(text, sizeof text, "%.9g", number);
  return text;
}

/// A string in quotes. Invalid UTF-8 becomes U+FFFD; characters that would act on a terminal become \uXXXX.
inline std::string json(std::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    std::string character;
    tokenizer_detail::take_character(text, true, character);
    const char32_t code = tokenizer_detail::read_utf8(character).code;
    if (acts_on_terminal(code)) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", unsigned(code & 0xFFFF));
      character = escaped;
    } else if (code == '"' || code == '\\') {
      character.insert(0, 1, '\\');
    }
    out += character;
  }
  return out + "\"";
}

/// An array of values that are already JSON.
inline std::string json_array(const std::vector<std::string>& values) {
  std::string out = "[";
  for (const std::string& value : values) {
    if (out.size() > 1) out += ", ";
    out += value;
  }
  return out += "]";
}

/// An object from names and values that are already JSON.
inline std::string json_object(const std::vector<std::pair<std::string_view, std::string>>& fields) {
  std::string out = "{";
  for (const auto& [name, value] : fields) {
    if (out.size() > 1) out += ", ";
    out += json(name) + ": ";
    out += value;
  }
  return out += "}";
}

}  // namespace pocket
