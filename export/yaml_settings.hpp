// yaml_settings.hpp: reads the YAML that PyYAML's dump() writes for a dataclass of settings, by converting it to JSON.
#pragma once

#include <algorithm>
#include <sstream>
#include <string>
#include <utility>

#include "json_reader.hpp"
#include "json_writer.hpp"

namespace pocket {

/// A number, true, false, null, {} or [] as it is; other values as a string.
inline std::string yaml_scalar(const std::string& text) {
  JsonDocument literal;
  if (text.empty() || text == "~") return "null";
  if (literal.parse("", text)) return text;
  const bool quoted = text.size() > 1 && text.front() == '\'' && text.back() == '\'';
  return json(std::string_view(quoted ? text.substr(1, text.size() - 2) : text));
}

/// Converts lines `key: value` to a JSON object. A key without a value may be followed by indented lines `key: value` or
/// by lines `- value`. Lines keep their numbers. Other YAML becomes invalid JSON.
inline std::string yaml_to_json(const std::string& text) {
  const auto is_item = [](const std::string& line) { return line.compare(line.find_first_not_of(' '), 2, "- ") == 0; };
  const auto is_nested = [&](const std::string& line) { return !line.empty() && (line[0] == ' ' || is_item(line)); };
  std::istringstream in(text);
  in.exceptions(std::ios::badbit);  // a failed allocation is thrown, and is not the end of the lines
  const auto next_line = [&](std::string& out) {
    const bool found = bool(std::getline(in, out));
    out.resize(found ? out.find_last_not_of(" \r") + 1 : 0);
    return found;
  };
  std::string line, next, json_text = "{", end_of_nested;
  for (bool more = next_line(next); more; json_text += '\n') {
    line.swap(next);
    more = next_line(next);
    const size_t start = line.find_first_not_of(' ');
    if (line.empty() || line[start] == '#') continue;
    if (!is_nested(line)) json_text += std::exchange(end_of_nested, "");
    const char before = json_text[json_text.find_last_not_of('\n')];
    if (before != '{' && before != '[') json_text += ',';
    const size_t colon = is_item(line) ? start + 1 : std::min(line.find(':', start), line.size());
    const size_t value = std::min(line.find_first_not_of(' ', colon + 1), line.size());
    if (!is_item(line)) json_text += json(std::string_view(line).substr(start, colon - start)) + line.substr(colon, 1);
    if (value < line.size() || is_nested(line) || !is_nested(next)) {
      json_text += yaml_scalar(line.substr(value));
    } else {
      json_text += is_item(next) ? '[' : '{';
      end_of_nested = is_item(next) ? "]" : "}";
    }
  }
  return json_text + end_of_nested + "}";
}

}  // namespace pocket
