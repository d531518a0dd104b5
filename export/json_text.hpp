// json_text.hpp: what a program is told, as JSON.
#ifndef POCKET_JSON_TEXT_HPP
#define POCKET_JSON_TEXT_HPP

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine.hpp"

namespace pocket {

/// Nine digits; null for what is not finite, or was not measured.
inline std::string json(double number) {
  if (!std::isfinite(number)) return "null";
  char text[40];
  std::snprintf(text, sizeof text, "%.9g", number);
  return text;
}

/// A string, in quotes. Bytes that are no UTF-8 become U+FFFD; control characters, which a terminal would obey, \u00XX.
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

/// Of values that are JSON already.
inline std::string json_array(const std::vector<std::string>& values) {
  std::string out;
  for (const std::string& value : values) out += (out.empty() ? "" : ", ") + value;
  return "[" + out + "]";
}

/// Of names, and values that are JSON already.
inline std::string json_object(const std::vector<std::pair<std::string_view, std::string>>& fields) {
  std::string out;
  for (const auto& [name, value] : fields) out += (out.empty() ? "" : ", ") + json(name) + ": " + value;
  return "{" + out + "}";
}

}  // namespace pocket
#endif  // POCKET_JSON_TEXT_HPP
