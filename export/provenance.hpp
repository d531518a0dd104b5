// provenance.hpp: the lines of a model file that tell where the model is from.
#pragma once

#include <string>
#include <string_view>

#include "engine.hpp"

namespace pocket {

/// A value as one line: control characters and line separators become spaces, invalid UTF-8 becomes U+FFFD.
inline std::string one_line(std::string_view value) {
  std::string valid, line;
  while (!value.empty()) tokenizer_detail::take_character(value, true, valid);
  for (std::string_view rest = valid; !rest.empty();) {
    const tokenizer_detail::Utf8 c = tokenizer_detail::read_utf8(rest);
    const bool control = c.code < 0x20 || (c.code >= 0x7F && c.code < 0xA0) || c.code == 0x2028 || c.code == 0x2029;
    line += control ? " " : rest.substr(0, c.length);
    rest.remove_prefix(c.length);
  }
  return line;
}

/// A line "name: value". The value may come from a file, and must not look like other lines.
inline std::string provenance_line(const std::string& name, std::string_view value) {
  return name + ": " + one_line(value) + "\n";
}

}  // namespace pocket
