// json_reader.hpp: a strict JSON reader (RFC 8259) for untrusted files.
//
//     JsonDocument document;
//     if (!document.parse("config.json", text)) return fail(error, document.error);
//     int width = 0;
//     if (!document.root().get("hidden_size", 1, 65536, width, error)) return false;   // error: where, expected, found
// A document keeps the text and 16 bytes per value. Values are handles into the document, which must outlive them. If
// an object has a key twice, the last member counts, as in Python; members() lists both.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <locale>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "describe_file.hpp"
#include "digits.hpp"
#include "engine.hpp"
#include "input_file.hpp"

namespace pocket {

inline constexpr int kJsonDepth = 256;                // nesting of arrays and objects
inline constexpr uint64_t kLargestConfig = 16 << 20;  // bytes of config.json and similar files

enum class JsonKind : uint8_t { absent, null, boolean, number, string, array, object };

/// The code point of the UTF-8 character at s[at], and advances `at` past it; -1 if there is no valid character.
inline int32_t decode_utf8(std::string_view s, size_t& at) {
  if (at >= s.size()) return -1;
  const tokenizer_detail::Utf8 c = tokenizer_detail::read_utf8(s.substr(at));
  if (c.state != tokenizer_detail::Utf8::whole) return -1;
  at += c.length;
  return int32_t(c.code);
}

/// Appends a code point as UTF-8.
inline void append_utf8(std::string& out, uint32_t code) {
  const auto put = [&](uint32_t byte) { out += char(byte); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xc0 | code >> 6);
  } else {
    if (code < 0x10000) {
      put(0xe0 | code >> 12);
    } else {
      put(0xf0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3f));
    }
    put(0x80 | (code >> 6 & 0x3f));
  }
  put(0x80 | (code & 0x3f));
}

/// A value in the document; the nodes of nested values follow it.
struct JsonNode {
  uint32_t at;    // offset in the text of the first byte, of a string without its quote
  uint32_t size;  // string, number: bytes in the text; array: elements; object: members
  uint32_t next;  // index of the node after this one and its nested nodes
  JsonKind kind;
  bool escaped;  // string: has a backslash
};

class JsonDocument;

/// A value. A missing member is a value of kind absent.
class JsonValue {
 public:
  JsonValue() = default;
  JsonValue(const JsonDocument& document, uint32_t index) : document_(&document), index_(index) {}

  JsonKind kind() const;
  bool is(JsonKind k) const { return kind() == k; }
  bool missing() const { return kind() <= JsonKind::null; }  // absent or null
  size_t size() const;                                       // elements or members; 0 for other kinds
  std::string string() const;                                // "" for other kinds
  bool boolean() const;                                      // false for other kinds
  double number() const;                                     // 0 for other kinds; infinite if too large
  bool integer(int64_t& out) const;                          // false unless it is written as digits only and fits
  std::string_view raw() const;                              // as it is written, a string without quotes; not if absent

  JsonValue find(std::string_view key) const;  // absent if this is not an object or has no such member
  JsonValue at(size_t i) const;                // of an array; takes i steps, so use elements() in a loop
  std::string where() const;                   // "config.json:3:17"
  std::string describe() const;                // "null", "the string "abc"", "an object", ...

  // Stores a member's value in `out`. False with `error` set if it is of another kind or out of range. An absent or
  // null member leaves `out` unchanged and is not an error; need() reports it.
  bool get(std::string_view key, bool& out, std::string& error) const;
  bool get(std::string_view key, std::string& out, std::string& error) const;
  bool get(std::string_view key, double& out, std::string& error) const;
  bool get(std::string_view key, int64_t low, int64_t high, int& out, std::string& error) const;
  bool need(std::string_view key, JsonKind kind, std::string& error) const;

  // For range loops, in file order: elements() are the values of an array, members() {key, value} of an object.
  struct Elements;
  struct Members;
  Elements elements() const;
  Members members() const;

  // Sets `error` to "where(): expected ..., found ...".
  bool refuse(std::string_view key, std::string_view expected, std::string& error) const;
  bool refuse(std::string_view key, Message expected, std::string& error) const;

 private:
  const JsonNode& node() const;
  bool same_key(std::string_view key) const;

  const JsonDocument* document_ = nullptr;  // null: absent
  uint32_t index_ = 0;
};

/// A parsed text.
class JsonDocument {
 public:
  std::string error;  // "NAME:LINE:COLUMN: expected ..., found ..."

  // Parses one value; anything after it is an error. name: how messages refer to the text.
  bool parse(std::string name, std::string text) {
    name_ = std::move(name);
    text_ = std::move(text);
    nodes_.clear();
    error.clear();
    at_ = 0;
    if (text_.size() >= UINT32_MAX) return pocket::fail(error, {name_, ": expected less than 4 GiB"});
    const auto begins_node = [](char c) { return c == '[' || c == '{' || c == ',' || c == ':'; };
    nodes_.reserve(1 + size_t(std::count_if(text_.begin(), text_.end(), begins_node)));  // growing takes three times it
    bool whole = value(0);
    if (whole) skip_space();
    if (whole && at_ < text_.size()) whole = expected("the end of the text");
    if (!whole) nodes_.clear();  // no partial document
    if (!whole) name_other_kind();
    nodes_.shrink_to_fit();
    return whole;
  }

  // Parses a file of at most `most` bytes.
  bool parse_file(const std::string& path, uint64_t most) {
    std::string text;
    return read_small_file(path, most, text, error) && parse(path, std::move(text));
  }

  JsonValue root() const { return nodes_.empty() ? JsonValue() : JsonValue(*this, 0); }

 private:
  friend class JsonValue;

  // Replaces the error for a text that is a file of another kind.
  void name_other_kind() {
    const size_t first = text_.find_first_not_of(" \t\r\n");
    if (first != std::string::npos && (text_[first] == '{' || text_[first] == '[')) return;
    const std::string kind = known_kind(reinterpret_cast<const uint8_t*>(text_.data()), text_.size());
    if (!kind.empty()) pocket::fail(error, {name_, ": expected JSON, found ", kind});
  }

  bool expected(const std::string& what) {
    std::string found = "the end";
    if (at_ < text_.size()) {
      const char hex[] = "0123456789abcdef", c = text_[at_];
      if (c > ' ' && c < 0x7f)
        found = std::string("'") + c + "'";
      else
        found = std::string("byte 0x") + hex[uint8_t(c) >> 4] + hex[c & 15];
    }
    return pocket::fail(error, {position(at_), ": expected ", what, ", found ", found});
  }

  std::string position(size_t at) const {
    size_t line = 1, start = 0;
    for (size_t i = 0; i < at; i++)
      if (text_[i] == '\n') {
        line++;
        start = i + 1;
      }
    return name_ + ":" + std::to_string(line) + ":" + std::to_string(at - start + 1);
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(char c) {
    const bool found = at_ < text_.size() && text_[at_] == c;
    at_ += found;
    return found;
  }
  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
      at_++;
  }

  size_t open(JsonKind kind) {
    nodes_.push_back({uint32_t(at_), 0, 0, kind, false});
    return nodes_.size() - 1;
  }
  bool close(size_t node, size_t size) {
    nodes_[node].size = uint32_t(size);
    nodes_[node].next = uint32_t(nodes_.size());
    return true;
  }

  bool value(int depth) {
    skip_space();
    const char c = peek();
    if (c == '{' || c == '[') return depth < kJsonDepth ? list(depth, c == '{') : expected("at most 256 levels");
    if (c == '"') return string();
    if (c == 't') return literal("true", JsonKind::boolean);
    if (c == 'f') return literal("false", JsonKind::boolean);
    if (c == 'n') return literal("null", JsonKind::null);
    if (c == '-' || (c >= '0' && c <= '9')) return number();
    return expected("a value");
  }

  // An array or an object. A member of an object is two nodes: the key and the value.
  bool list(int depth, bool object) {
    const size_t node = open(object ? JsonKind::object : JsonKind::array);
    const char end = object ? '}' : ']';
    size_t size = 0;
    at_++;
    skip_space();
    if (take(end)) return close(node, 0);
    for (;;) {
      skip_space();
      if (object) {
        if (peek() != '"') return expected("a key in quotes");
        if (!string()) return false;
        skip_space();
        if (!take(':')) return expected("':'");
      }
      if (!value(depth + 1)) return false;
      size++;
      skip_space();
      if (take(end)) return close(node, size);
      if (!take(',')) return expected(object ? "',' or '}'" : "',' or ']'");
    }
  }

  bool literal(std::string_view word, JsonKind kind) {
    const size_t node = open(kind);
    for (char c : word)
      if (!take(c)) return expected(std::string(word));
    return close(node, word.size());
  }

  bool digits() {
    const size_t start = at_;
    while (peek() >= '0' && peek() <= '9') at_++;
    return at_ > start || expected("a digit");
  }

  bool number() {
    const size_t node = open(JsonKind::number), start = at_;
    take('-');
    if (!take('0') && !digits()) return false;
    if (take('.') && !digits()) return false;
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      if (!digits()) return false;
    }
    return close(node, at_ - start);
  }

  bool string() {
    at_++;
    const size_t node = open(JsonKind::string), start = at_;
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '"') return close(node, at_++ - start);
      if (c == '\\') {
        nodes_[node].escaped = true;
        if (!escape()) return false;
      } else if (uint8_t(c) < ' ') {
        return expected("a control character to be escaped");
      } else if (decode_utf8(text_, at_) < 0) {
        return expected("UTF-8");
      }
    }
    return expected("'\"'");
  }

  bool escape() {
    at_++;
    const char c = peek();
    if (c != 'u') {
      if (c == '\0' || !std::strchr("\"\\/bfnrt", c)) return expected("one of \" \\ / b f n r t u");
      at_++;
      return true;
    }
    uint32_t unit = 0;
    const size_t start = at_ - 1;
    if (!hex(unit)) return false;
    const bool high = unit >= 0xd800 && unit < 0xdc00;
    uint32_t low = 0;
    if (high && take('\\') && peek() == 'u' && !hex(low)) return false;
    if ((!high || (low >= 0xdc00 && low <= 0xdfff)) && (unit < 0xdc00 || unit >= 0xe000)) return true;
    at_ = start;
    return expected("a pair of surrogates");
  }

  // The four digits after the u at at_.
  bool hex(uint32_t& unit) {
    at_++;
    return read_hex(text_, at_, 4, unit) || expected("a hexadecimal digit");
  }

  std::string name_, text_;
  std::vector<JsonNode> nodes_;
  size_t at_ = 0;
};

/// See JsonValue::elements().
struct JsonValue::Elements {
  struct Iterator {
    const JsonDocument* document;
    uint32_t index;
    JsonValue operator*() const { return {*document, index}; }
    void operator++() { index = (**this).node().next; }
    bool operator!=(const Iterator& other) const { return index != other.index; }
  };
  Iterator first, last;
  Iterator begin() const { return first; }
  Iterator end() const { return last; }
};

/// See JsonValue::members().
struct JsonValue::Members {
  struct Iterator {
    const JsonDocument* document;
    uint32_t index;
    std::pair<std::string, JsonValue> operator*() const {
      return {JsonValue(*document, index).string(), JsonValue(*document, index + 1)};
    }
    void operator++() { index = JsonValue(*document, index + 1).node().next; }
    bool operator!=(const Iterator& other) const { return index != other.index; }
  };
  Iterator first, last;
  Iterator begin() const { return first; }
  Iterator end() const { return last; }
};

inline const JsonNode& JsonValue::node() const { return document_->nodes_[index_]; }
inline std::string_view JsonValue::raw() const {
  return std::string_view(document_->text_).substr(node().at, node().size);
}
inline JsonKind JsonValue::kind() const { return document_ ? node().kind : JsonKind::absent; }
inline size_t JsonValue::size() const { return kind() >= JsonKind::array ? node().size : 0; }
inline bool JsonValue::boolean() const { return is(JsonKind::boolean) && raw() == "true"; }

inline JsonValue::Elements JsonValue::elements() const {
  if (!is(JsonKind::array)) return {{document_, 0}, {document_, 0}};
  return {{document_, index_ + 1}, {document_, node().next}};
}

inline JsonValue::Members JsonValue::members() const {
  if (!is(JsonKind::object)) return {{document_, 0}, {document_, 0}};
  return {{document_, index_ + 1}, {document_, node().next}};
}

inline JsonValue JsonValue::at(size_t i) const {
  for (const JsonValue& element : elements())
    if (i-- == 0) return element;
  return {};
}

inline std::string JsonValue::string() const {
  if (!is(JsonKind::string)) return "";
  const std::string_view s = raw();
  if (!node().escaped) return std::string(s);
  std::string out;
  const auto unit = [&](size_t i) {
    uint32_t value = 0;
    std::from_chars(s.data() + i, s.data() + i + 4, value, 16);
    return value;
  };
  for (size_t i = 0; i < s.size(); i++) {
    if (s[i] != '\\') {
      out += s[i];
    } else if (s[++i] != 'u') {
      constexpr std::string_view kLetters = "bfnrt", kMeanings = "\b\f\n\r\t";
      const size_t letter = kLetters.find(s[i]);
      out += letter == std::string_view::npos ? s[i] : kMeanings[letter];
    } else {
      uint32_t code = unit(i + 1);
      i += 4;
      if (code >= 0xd800 && code < 0xdc00) {
        code = 0x10000 + ((code - 0xd800) << 10) + (unit(i + 3) - 0xdc00);
        i += 6;
      }
      append_utf8(out, code);
    }
  }
  return out;
}

inline double JsonValue::number() const {
  if (!is(JsonKind::number)) return 0;
  std::istringstream in{std::string(raw())};
  in.exceptions(std::ios::badbit);   // a failed allocation is not a number
  in.imbue(std::locale::classic());  // a decimal point in any locale
  double value = 0;
  if (in >> value) return value;
  return std::fabs(value) > 1 ? std::copysign(HUGE_VAL, value) : value;  // too large, or rounds to 0
}

inline bool JsonValue::integer(int64_t& out) const {
  if (!is(JsonKind::number)) return false;
  std::string_view s = raw();
  const bool negative = s[0] == '-';
  int64_t value = 0;
  for (char c : s.substr(negative)) {
    if (c < '0' || c > '9') return false;
    if (value < (INT64_MIN + (c - '0')) / 10) return false;
    value = value * 10 - (c - '0');
  }
  if (!negative && value == INT64_MIN) return false;
  out = negative ? value : -value;
  return true;
}

inline bool JsonValue::same_key(std::string_view key) const { return node().escaped ? string() == key : raw() == key; }

inline JsonValue JsonValue::find(std::string_view key) const {
  JsonValue found;
  if (!is(JsonKind::object)) return found;
  for (uint32_t i = index_ + 1; i < node().next; i = document_->nodes_[i + 1].next)
    if (JsonValue(*document_, i).same_key(key)) found = JsonValue(*document_, i + 1);
  return found;
}

inline std::string JsonValue::where() const {
  return document_ ? document_->position(node().at - is(JsonKind::string)) : "";
}

inline std::string JsonValue::describe() const {
  const auto shortened = [&](std::string_view s) {
    return std::string(s.substr(0, 60)) + (s.size() > 60 ? "..." : "");
  };
  switch (kind()) {
    case JsonKind::absent:
      return "nothing";
    case JsonKind::null:
      return "null";
    case JsonKind::boolean:
    case JsonKind::number:
      return shortened(raw());
    case JsonKind::string:
      return "\"" + shortened(raw()) + "\"";
    case JsonKind::array:
      return "an array";
    default:
      return "an object";
  }
}

inline bool JsonValue::refuse(std::string_view key, std::string_view expected, std::string& error) const {
  const JsonValue member = find(key);
  return fail(error, {member.is(JsonKind::absent) ? where() : member.where(), ": \"", key, "\": expected ", expected,
                      ", found ", member.describe()});
}

inline bool JsonValue::refuse(std::string_view key, Message expected, std::string& error) const {
  return refuse(key, std::string_view(text_of(expected)), error);
}

inline bool JsonValue::need(std::string_view key, JsonKind kind, std::string& error) const {
  constexpr const char* kNames[] = {"", "null", "true or false", "a number", "a string", "an array", "an object"};
  return find(key).is(kind) || refuse(key, kNames[int(kind)], error);
}

inline bool JsonValue::get(std::string_view key, bool& out, std::string& error) const {
  const JsonValue member = find(key);
  if (member.missing()) return true;
  out = member.boolean();
  return need(key, JsonKind::boolean, error);
}

inline bool JsonValue::get(std::string_view key, std::string& out, std::string& error) const {
  const JsonValue member = find(key);
  if (member.missing()) return true;
  out = member.string();
  return need(key, JsonKind::string, error);
}

inline bool JsonValue::get(std::string_view key, double& out, std::string& error) const {
  const JsonValue member = find(key);
  if (member.missing()) return true;
  out = member.number();
  return need(key, JsonKind::number, error) && (std::isfinite(out) || refuse(key, "a finite number", error));
}

inline bool JsonValue::get(std::string_view key, int64_t low, int64_t high, int& out, std::string& error) const {
  const JsonValue member = find(key);
  if (member.missing()) return true;
  int64_t value = 0;
  if (!member.integer(value) || value < low || value > high)
    return refuse(key, {"an integer from ", low, " to ", high}, error);
  out = int(value);
  return true;
}

/// Reads a file that contains a JSON object.
inline bool read_settings(const std::string& path, JsonDocument& document, std::string& error) {
  if (!document.parse_file(path, kLargestConfig)) return fail(error, document.error);
  return document.root().is(JsonKind::object) ||
         fail(error, {path, ": expected an object, found ", document.root().describe()});
}

}  // namespace pocket
