// json.hpp: JSON in requests and responses: the library's types, and errors that name the parameter.
#pragma once

#include <nlohmann/json.hpp>

#include "../../export/program.hpp"

namespace pocket::openai {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;  // keeps the order of the fields

// Why a request is refused, thrown. The message starts with the name of the parameter, if there is one.
struct Refusal {
  std::string message;
  std::string param = "";                      // "": none, or the whole request
  std::string code = "invalid_request_error";  // for programs
  int status = 400;                            // as in HTTP
};

inline std::string type_of(const Json& value) {
  if (value.is_number_integer()) return "an integer";
  if (value.is_number()) return "a number";
  if (value.is_null()) return "null";
  if (value.is_boolean()) return "a boolean";
  if (value.is_string()) return "a string";
  return value.is_array() ? "an array" : "an object";
}

[[noreturn]] inline void refuse(const std::string& param, const std::string& expected, const std::string& found) {
  throw Refusal{param + ": expected " + expected + ", found " + found, param};
}

// Parses a JSON text. Throws Refusal. Deeply nested values, which take 80 times the memory of their text, are refused.
inline Json parse_json(std::string_view text) {
  constexpr int kDeepest = 64;
  const auto check = [](int depth, Json::parse_event_t, Json&) {
    if (depth > kDeepest)
      throw Refusal{"expected JSON nested at most 64 deep, found deeper nesting", "", "invalid_json"};
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), check);
  } catch (const Json::parse_error& e) {
    throw Refusal{"expected JSON, found an error at byte " + std::to_string(e.byte), "", "invalid_json"};
  } catch (const Json::exception&) {  // a number that no double holds
    throw Refusal{"expected JSON, found a number out of range", "", "invalid_json"};
  }
}

// Whether a text is a JSON object that parse_json() takes.
inline bool is_json_object(std::string_view text) try { return parse_json(text).is_object(); } catch (const Refusal&) {
  return false;
}

// The value of the last member of a JSON object with this name, as it is written; "": there is none. text: valid JSON.
inline std::string_view member_text(std::string_view text, std::string_view name) {
  std::string_view found;
  size_t at = 0, key = 0, key_end = 0, value = 0;  // value: where the value of a member begins; 0: in a name
  int depth = 0;
  for (; at < text.size(); at++) {
    const char c = text[at];
    if (c == '"') {
      const size_t begin = ++at;
      for (; at < text.size() && text[at] != '"'; at++) at += text[at] == '\\';
      if (depth == 1 && !value) {
        key = begin;
        key_end = at;
      }
    } else if (depth == 1 && c == ':' && !value) {
      value = at + 1;
    } else if (depth == 1 && (c == ',' || c == '}')) {
      if (value && text.substr(key, key_end - key) == name) found = text.substr(value, at - value);
      value = 0;
    }
    if (c == '{' || c == '[') depth++;
    if (c == '}' || c == ']') depth--;
  }
  const size_t first = found.find_first_not_of(" \t\r\n"), last = found.find_last_not_of(" \t\r\n");
  return first == found.npos ? "" : found.substr(first, last - first + 1);
}

}  // namespace pocket::openai
