// json_writer.hpp: writes values as JSON.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine.hpp"

namespace pocket {

/// A number with nine digits; null if it is not finite.
inline std::string json(double number) {
  if (!std::isfinite(number)) return "null";
  char text[40];
  std::snprintf(text, sizeof text, "%.9g", number);
  return text;
}

/// A string in quotes. Invalid UTF-8 becomes U+FFFD; control characters, which would act on a terminal, become \u00XX.
inline std::string json(std::string_view text) {
  std::string clean, out = "\"";
  while (!text.empty()) tokenizer_detail::take_character(text, true, clean);
  for (size_t i = 0; i < clean.size(); i++) {
    const bool c1 = clean[i] == '\xC2' && uint8_t(clean[i + 1]) < 0xA0;  // U+0080 ... U+009F
    const char c = c1 ? clean[++i] : clean[i];
    char code[8];
    std::snprintf(code, sizeof code, "\\u%04x", uint8_t(c));
    out += c1 || uint8_t(c) < 32 || c == 127 ? code : c == '"' || c == '\\' ? std::string{'\\', c} : std::string{c};
  }
  return out + "\"";
}

/// An array of values that are already JSON.
inline std::string json_array(const std::vector<std::string>& values) {
  std::string out;
  for (const std::string& value : values) out += (out.empty() ? "" : ", ") + value;
  return "[" + out + "]";
}

/// An object from names and values that are already JSON.
inline std::string json_object(const std::vector<std::pair<std::string_view, std::string>>& fields) {
  std::string out;
  for (const auto& [name, value] : fields) out += (out.empty() ? "" : ", ") + json(name) + ": " + value;
  return "{" + out + "}";
}

}  // namespace pocket
