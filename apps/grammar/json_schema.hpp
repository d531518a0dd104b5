// json_schema.hpp: grammars of JSON: of any value, of any object, and of the values that a JSON Schema describes.
//
//     std::shared_ptr<const Grammar> grammar = schema_grammar("person.json", text, error);
//
// Every text of the grammar is JSON, and valid by the schema; not every valid value can be written (README.md lists
// which). A keyword that is not supported is refused with its JSON pointer, not ignored.
//
// Contents: 1 patterns · 2 numbers · 3 JSON texts · 4 JSON Schema
#pragma once

#include <list>
#include <map>
#include <set>

#include "../../export/json_reader.hpp"
#include "../../export/json_writer.hpp"
#include "grammar.hpp"

namespace pocket {

namespace grammar_detail {

using Expr = GrammarBuilder::Expr;
using Ranges = std::vector<CodeRange>;

// ====================================================================================================================
// 1. Patterns
// ====================================================================================================================

inline Ranges intersection(const Ranges& a, const Ranges& b) {
  Ranges out = complement(a);
  for (const CodeRange& r : complement(b)) out.push_back(r);
  return complement(out);
}

// A character of a JSON string in one of the ranges: as it is, or with the shortest escape if it needs one.
inline Expr json_character(GrammarBuilder& builder, const Ranges& ranges) {
  static const Ranges kPlain = complement({{0, 0x1F}, {'"', '"'}, {'\\', '\\'}});
  std::vector<Expr> parts = {builder.characters(intersection(ranges, kPlain))};
  for (const CodeRange& r : intersection(ranges, complement(kPlain)))
    for (uint32_t code = r.low; code <= r.high; code++) {
      constexpr std::string_view kShort = "\b\f\n\r\t\"\\", kLetters = "bfnrt\"\\";
      const size_t at = kShort.find(char(code));
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", unsigned(code));
      parts.push_back(builder.literal(at == kShort.npos ? escape : std::string("\\") + kLetters[at]));
    }
  return builder.either(parts);
}

// Reads a regular expression of the keyword `pattern`. What Python, JavaScript and others understand differently is
// refused, or reduced to what all of them accept: \w, \d and \s are ASCII.
class PatternReader {
 public:
  PatternReader(GrammarBuilder& builder, std::string_view pattern) : builder_(builder), text_(pattern) {}

  // Stores an expression of the contents of JSON strings that the pattern finds a match in. False with `error` set if
  // the pattern is not supported.
  bool read(Expr& out, std::string& error) {
    std::vector<Expr> parts;
    do {
      Expr part;
      const bool from_start = take('^');
      if (!read_sequence(0, part)) break;
      const bool to_end = take('$');
      if (!at_end() && peek() != '|') expected("| or the end of the pattern");
      const Expr any = builder_.repeat(json_character(builder_, {{0, kLastCode}}), 0, GrammarBuilder::kUnbounded);
      const Expr nothing = builder_.literal("");
      parts.push_back(builder_.sequence({from_start ? nothing : any, part, to_end ? nothing : any}));
    } while (error_.empty() && take('|'));
    out = builder_.either(parts);
    error = error_;
    return error_.empty();
  }

 private:
  bool at_end() const { return at_ >= text_.size(); }
  char peek() const { return at_end() ? '\0' : text_[at_]; }
  bool take(char c) {
    if (at_end() || text_[at_] != c) return false;
    at_++;
    return true;
  }
  bool expected(const std::string& what) {
    if (error_.empty())
      error_ = "expected " + what + " at byte " + std::to_string(at_) + ", found " +
               (at_end() ? "the end" : "\"" + printable(text_.substr(at_, 8)) + "\"");
    return false;
  }

  bool read_alternatives(int depth, Expr& out) {
    std::vector<Expr> parts;
    do {
      parts.emplace_back();
      if (!read_sequence(depth, parts.back())) return false;
    } while (take('|'));
    out = builder_.either(parts);
    return true;
  }

  bool read_sequence(int depth, Expr& out) {
    std::vector<Expr> parts;
    while (!at_end() && peek() != '|' && peek() != ')' && !(peek() == '$' && depth == 0)) {
      parts.emplace_back();
      if (!read_atom(depth, parts.back()) || !read_quantifier(parts.back())) return false;
    }
    out = builder_.sequence(parts);
    return true;
  }

  bool read_atom(int depth, Expr& out) {
    if (std::strchr("^$*+?{}]", peek())) return expected("no " + std::string(1, peek()) + " here (write \\ before it)");
    if (take('(')) {
      if (depth == kDeepestGroup) return expected("at most " + std::to_string(kDeepestGroup) + " nested groups");
      if (take('?') && !take(':')) return expected("(?: or a group without name and condition");
      return read_alternatives(depth + 1, out) && (take(')') || expected(")"));
    }
    Ranges ranges;
    if (take('.'))
      ranges = complement({{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}});
    else if (!(take('[') ? read_class(ranges) : read_character(ranges)))
      return false;
    out = json_character(builder_, ranges);
    return true;
  }

  bool read_quantifier(Expr& e) {
    Repetition r;
    const std::string wrong = r.read(text_, at_, [] {});
    if (!wrong.empty()) return expected(wrong);
    if (!r.found) return true;
    take('?');  // which match is found first makes no difference
    e = builder_.repeat(e, r.least, r.most);
    return true;
  }

  // After "[".
  bool read_class(Ranges& out) {
    const bool negated = take('^');
    bool ascii = false;  // the complement of \w is another one in each language
    Ranges ranges;
    while (!take(']')) {
      Ranges low, high;
      if (at_end() || peek() == '[') return expected("] or a character (write \\ before [)");
      ascii = ascii || is_set();
      if (!read_character(low, negated)) return false;
      high = low;
      if (peek() == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']') {
        at_++;
        ascii = ascii || is_set();
        if (!read_character(high, negated)) return false;
        if (low.size() != 1 || high.size() != 1 || low[0].low != low[0].high || high[0].low != high[0].high ||
            high[0].low < low[0].low)
          return expected("a range of characters, the first one not after the last");
        ranges.push_back({low[0].low, high[0].high});
      } else {
        ranges.insert(ranges.end(), low.begin(), low.end());
      }
    }
    if (ranges.empty()) return expected("a character in brackets");
    out = !negated ? ranges : ascii ? intersection(complement(ranges), {{0, 0x7E}}) : complement(ranges);
    return true;
  }
  // Whether \d, \w, \s or the complement of one comes next.
  bool is_set() const {
    return peek() == '\\' && at_ + 1 < text_.size() &&
           std::string_view("dwsDWS").find(text_[at_ + 1]) != std::string_view::npos;
  }

  // A character, or an escape for one or for several. excluded: for a negated class, where \s and \S stand for what
  // they are in any language; elsewhere, for what they are in all languages.
  bool read_character(Ranges& out, bool excluded = false) {
    if (at_end()) return expected("a character");
    if (!take('\\')) {
      const int32_t code = decode_utf8(text_, at_);
      if (code < 0) return expected("UTF-8");
      out = {{uint32_t(code), uint32_t(code)}};
      return true;
    }
    static const Ranges kDigits = {{'0', '9'}}, kWord = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}},
                        kSpace = {{'\t', '\r'}, {' ', ' '}}, kAscii = {{0, 0x7E}}, kVisible = {{'!', '~'}};
    const char c = peek();
    at_++;
    constexpr std::string_view kLetters = "nrtfv0", kMeanings{"\n\r\t\f\v\0", 6};
    const size_t letter = kLetters.find(c);
    if (c == 'd')
      out = kDigits;
    else if (c == 'w')
      out = kWord;
    else if (c == 's')
      out = excluded ? complement(kVisible) : kSpace;
    else if (c == 'D')
      out = intersection(kAscii, complement(kDigits));
    else if (c == 'W')
      out = intersection(kAscii, complement(kWord));
    else if (c == 'S')
      out = excluded ? complement(kSpace) : kVisible;
    else if (c == 'x' || c == 'u')
      return read_code(c == 'x' ? 2 : 4, out);
    else if (letter != kLetters.npos && !(c == '0' && peek() >= '0' && peek() <= '9'))
      out = {{uint8_t(kMeanings[letter]), uint8_t(kMeanings[letter])}};
    else if (c > ' ' && c < 0x7F && !std::isalnum(uint8_t(c)))
      out = {{uint8_t(c), uint8_t(c)}};
    else {
      at_ -= 2;
      return expected("a supported escape (\\d \\w \\s \\D \\W \\S \\n \\r \\t \\f \\v \\0 \\xHH \\uHHHH)");
    }
    return true;
  }

  bool read_code(int digits, Ranges& out) {
    uint32_t code = 0;
    if (!read_hex(text_, at_, digits, code)) return expected(std::to_string(digits) + " hexadecimal digits");
    if (code >= 0xD800 && code <= 0xDFFF) return expected("no surrogate before this");
    out = {{code, code}};
    return true;
  }

  GrammarBuilder& builder_;
  std::string_view text_;
  size_t at_ = 0;
  std::string error_;
};

// ====================================================================================================================
// 2. Numbers
// ====================================================================================================================

inline constexpr int kIntegerDigits = 15;  // a double holds them exactly
inline constexpr int64_t kLargestInteger = 999'999'999'999'999;
inline constexpr int64_t kLargestBounded = 999'999'999;  // with bounds, of a number with decimals
inline constexpr int kMostDecimals = 6;                  // ... and these

inline int64_t power_of_ten(int n) {
  int64_t power = 1;
  while (n-- > 0) power *= 10;
  return power;
}

// The texts between two of the same length, that differ in digits only.
class DigitRange {
 public:
  DigitRange(GrammarBuilder& builder, const std::string& low, const std::string& high)
      : builder_(builder), low_(low), high_(high) {}

  Expr between() const {
    size_t same = 0;
    while (same < low_.size() && low_[same] == high_[same]) same++;
    const Expr prefix = builder_.literal(low_.substr(0, same));
    if (same == low_.size()) return prefix;
    return builder_.sequence(
        {prefix, builder_.either(
                     {builder_.sequence({builder_.literal(low_.substr(same, 1)), bound(low_, same + 1, true)}),
                      digit_and_any(low_[same] + 1, high_[same] - 1, same),
                      builder_.sequence({builder_.literal(high_.substr(same, 1)), bound(high_, same + 1, false)})})});
  }

 private:
  // Any digits from a place on.
  Expr any(size_t at) const {
    std::vector<Expr> parts;
    for (; at < low_.size(); at++)
      parts.push_back(low_[at] == '.' ? builder_.literal(".") : builder_.characters({{'0', '9'}}));
    return builder_.sequence(parts);
  }
  Expr digit_and_any(int low, int high, size_t at) const {
    if (low > high) return builder_.never();
    return builder_.sequence({builder_.characters({{uint32_t(low), uint32_t(high)}}), any(at + 1)});
  }
  // From a place on, the texts that are not less (at_least), or not greater, than the bound.
  Expr bound(const std::string& text, size_t at, bool at_least) const {
    std::vector<Expr> parts = {builder_.literal(text.substr(at))};
    for (size_t i = at; i < text.size(); i++) {
      if (text[i] == '.') continue;
      const Expr other = at_least ? digit_and_any(text[i] + 1, '9', i) : digit_and_any('0', text[i] - 1, i);
      parts.push_back(builder_.sequence({builder_.literal(text.substr(at, i - at)), other}));
    }
    return builder_.either(parts);
  }

  GrammarBuilder& builder_;
  const std::string &low_, &high_;
};

// The numbers n / 10^decimals for n from low to high, which are not negative, with all decimals.
inline Expr magnitudes(GrammarBuilder& builder, int64_t low, int64_t high, int decimals) {
  std::vector<Expr> parts;
  for (int digits = 1; digits + decimals <= 18; digits++) {  // before the point
    const int64_t least = std::max(low, digits == 1 ? 0 : power_of_ten(digits - 1 + decimals));
    const int64_t most = std::min(high, power_of_ten(digits + decimals) - 1);
    if (least > most) continue;
    const auto text = [&](int64_t n) {
      std::string s = std::to_string(n);
      s.insert(0, size_t(std::max(0, digits + decimals - int(s.size()))), '0');
      return decimals > 0 ? s.insert(size_t(digits), ".") : s;
    };
    parts.push_back(DigitRange(builder, text(least), text(most)).between());
  }
  return builder.either(parts);
}

// The same for any n.
inline Expr numbers_between(GrammarBuilder& builder, int64_t low, int64_t high, int decimals) {
  std::vector<Expr> parts;
  if (low > high) return builder.never();
  if (high >= 0) parts.push_back(magnitudes(builder, std::max<int64_t>(low, 0), high, decimals));
  if (low < 0)
    parts.push_back(
        builder.sequence({builder.literal("-"), magnitudes(builder, std::max<int64_t>(1, -high), -low, decimals)}));
  return builder.either(parts);
}

// A decimal number: digits * 10^exponent.
struct Decimal {
  int64_t digits;
  int exponent;
};

// Of a double, with the fewest significant digits that read back as the same double: at most 17.
inline Decimal decimal_of(double value) {
  char text[40];
  int decimals = 14;
  for (; decimals <= 16; decimals++) {
    std::snprintf(text, sizeof text, "%.*e", decimals, value);
    if (std::strtod(text, nullptr) == value) break;
  }
  Decimal d = {0, 0};
  for (const char* c = text; *c && *c != 'e'; c++)
    if (*c >= '0' && *c <= '9') d.digits = 10 * d.digits + (*c - '0');
  d.exponent = int(std::strtol(std::strchr(text, 'e') + 1, nullptr, 10)) - decimals;
  while (d.digits != 0 && d.digits % 10 == 0) {
    d.digits /= 10;
    d.exponent++;
  }
  if (text[0] == '-') d.digits = -d.digits;
  return d.digits == 0 ? Decimal{0, 0} : d;
}

// A bound of numbers; absent: any.
struct Bound {
  bool present = false, exclusive = false;
  double value = 0;
};

// The largest (of a lower bound: the smallest) n for which n / 10^decimals is within the bound, which is at most
// 10^15 / 10^decimals.
inline int64_t scaled(const Bound& bound, int decimals, bool lower) {
  Decimal d = decimal_of(bound.value);
  int shift = d.exponent + decimals;
  for (; shift > 0; shift--) d.digits *= 10;
  bool exact = true;
  for (; shift < 0 && (d.digits != 0 || !exact); shift++) {
    const int64_t rest = d.digits % 10;
    d.digits /= 10;
    exact = exact && rest == 0;
    if (d.digits == 0 && !exact) {  // between -1 and 1
      return lower ? (bound.value > 0 ? 1 : 0) : (bound.value < 0 ? -1 : 0);
    }
  }
  if (exact) return d.digits + (!bound.exclusive ? 0 : lower ? 1 : -1);
  return d.digits + (lower ? bound.value > 0 : -(bound.value < 0));  // the division rounded towards 0
}

inline Expr numbers_within(GrammarBuilder& builder, const Bound& low, const Bound& high, bool integer) {
  const auto limit = [](const Bound& b, int64_t largest, bool lower) -> Bound {
    if (!b.present || (lower ? b.value < -double(largest) : b.value > double(largest)))
      return {true, false, double(lower ? -largest : largest)};
    return b;
  };
  const auto beyond = [](const Bound& b, int64_t largest) { return b.present && std::fabs(b.value) > double(largest); };
  std::vector<Expr> parts;
  const int most = integer ? 0
                           : std::clamp(std::max(-decimal_of(low.value).exponent, -decimal_of(high.value).exponent), 2,
                                        kMostDecimals);
  for (int decimals = 0; decimals <= most; decimals++) {
    const int64_t largest = decimals == 0 ? kLargestInteger : kLargestBounded;
    const Bound from = limit(low, largest, true), to = limit(high, largest, false);
    if (beyond(from, largest) || beyond(to, largest)) continue;
    parts.push_back(numbers_between(builder, scaled(from, decimals, true), scaled(to, decimals, false), decimals));
  }
  return builder.either(parts);
}

// ====================================================================================================================
// 3. JSON texts
// ====================================================================================================================

// The rules of JSON without a schema, made when they are used.
class JsonRules {
 public:
  explicit JsonRules(GrammarBuilder& builder) : b(builder) {}

  // One space or line break, or nothing: more would let a model go on without end.
  Expr space() {
    return b.call(rule("space", [this] { return b.optional(b.characters({{' ', ' '}, {'\n', '\n'}})); }));
  }
  Expr separator() { return b.sequence({b.literal(","), space()}); }
  Expr character() {
    return b.call(rule("character", [this] { return character_body(); }));
  }
  Expr string() {
    return b.call(rule("string", [this] { return quoted(b.repeat(character_body(), 0, GrammarBuilder::kUnbounded)); }));
  }
  Expr quoted(Expr contents) { return b.sequence({b.literal("\""), contents, b.literal("\"")}); }
  Expr integer() {
    return b.call(rule("integer", [this] { return integer_body(); }));
  }
  Expr number() {
    return b.call(rule("number", [this] {
      const Expr digit = b.characters({{'0', '9'}});
      const Expr fraction = b.sequence({b.literal("."), b.repeat(digit, 1, kIntegerDigits)});
      const Expr exponent = b.sequence({b.characters({{'E', 'E'}, {'e', 'e'}}),
                                        b.optional(b.characters({{'+', '+'}, {'-', '-'}})), b.repeat(digit, 1, 2)});
      return b.sequence({integer_body(), b.optional(fraction), b.optional(exponent)});
    }));
  }
  Expr boolean() { return b.either({b.literal("true"), b.literal("false")}); }
  Expr value() {
    return b.call(rule("value", [this] {
      return b.either({object(), array(), string(), number(), boolean(), b.literal("null")});
    }));
  }
  Expr pair(Expr key, Expr member) { return b.sequence({key, b.literal(":"), space(), member}); }
  Expr in_braces(Expr members) { return b.sequence({b.literal("{"), space(), members, space(), b.literal("}")}); }
  Expr in_brackets(Expr items) { return b.sequence({b.literal("["), space(), items, space(), b.literal("]")}); }
  // At least one, with separators.
  Expr some(Expr item, uint32_t least = 1, uint32_t most = GrammarBuilder::kUnbounded) {
    const uint32_t more = most == GrammarBuilder::kUnbounded ? most : most - 1;
    return b.sequence({item, b.repeat(b.sequence({separator(), item}), least - 1, more)});
  }
  Expr object() {
    return b.call(rule("object", [this] { return in_braces(b.optional(some(pair(string(), value())))); }));
  }
  Expr array() {
    return b.call(rule("array", [this] { return in_brackets(b.optional(some(value()))); }));
  }
  // A property name of letters, digits, - and _ that is not in the list.
  Expr other_name(const std::vector<std::string>& names) {
    std::vector<std::string_view> sorted(names.begin(), names.end());
    std::sort(sorted.begin(), sorted.end());
    return quoted(other_name(sorted.data(), sorted.data() + sorted.size(), 0));
  }

 private:
  static constexpr size_t kLongestPrefix = 64;  // of an extra name, in common with a name
  static constexpr uint32_t kLongestTail = 32;  // ... and what follows

  template <class F> GrammarBuilder::Rule rule(const char* name, const F& body) {
    const auto [it, is_new] = rules_.emplace(name, 0);
    if (!is_new) return it->second;
    const GrammarBuilder::Rule added = it->second = b.add_rule(name);
    b.define(added, body());
    return added;
  }

  Expr character_body() {
    const Ranges hex = {{'0', '9'}, {'A', 'F'}, {'a', 'f'}},
                 below_d = {{'0', '9'}, {'A', 'C'}, {'E', 'F'}, {'a', 'c'}, {'e', 'f'}};
    const Expr digit = b.characters(hex);
    const Expr first_two = b.either({b.sequence({b.characters(below_d), digit}),
                                     b.sequence({b.characters({{'D', 'D'}, {'d', 'd'}}), b.characters({{'0', '7'}})})});
    const Expr escape = b.either(
        {b.characters(
             {{'"', '"'}, {'\\', '\\'}, {'/', '/'}, {'b', 'b'}, {'f', 'f'}, {'n', 'n'}, {'r', 'r'}, {'t', 't'}}),
         b.sequence({b.literal("u"), first_two, digit, digit})});
    return b.either({b.characters(complement({{0, 0x1F}, {'"', '"'}, {'\\', '\\'}, {0x7F, 0x7F}})),
                     b.sequence({b.literal("\\"), escape})});
  }
  Expr integer_body() {
    const Expr more = b.repeat(b.characters({{'0', '9'}}), 0, uint32_t(kIntegerDigits - 1));
    return b.sequence(
        {b.optional(b.literal("-")), b.either({b.literal("0"), b.sequence({b.characters({{'1', '9'}}), more})})});
  }

  // The rest of a name after `at` bytes, which are those of the names [first, last).
  Expr other_name(const std::string_view* first, const std::string_view* last, size_t at) {
    const Ranges letters = {{'-', '-'}, {'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    bool taken = at == 0;  // by a name, or empty
    for (; first != last && first->size() == at; first++) taken = true;
    std::vector<Expr> parts;
    if (!taken) parts.push_back(b.literal(""));
    Ranges used;
    while (first != last) {
      const auto* end = first;
      const uint8_t letter = uint8_t((*first)[at]);
      while (end != last && uint8_t((*end)[at]) == letter) end++;
      if (letter < 0x80 && !intersection(letters, {{letter, letter}}).empty()) {
        used.push_back({letter, letter});
        if (at < kLongestPrefix)
          parts.push_back(b.sequence({b.literal({first->data() + at, 1}), other_name(first, end, at + 1)}));
      }
      first = end;
    }
    const Expr tail = b.call(rule("tail", [&] { return b.repeat(b.characters(letters), 0, kLongestTail); }));
    parts.push_back(b.sequence({b.characters(intersection(letters, complement(used))), tail}));
    return b.either(parts);
  }

  GrammarBuilder& b;
  std::map<std::string, GrammarBuilder::Rule> rules_;
};

}  // namespace grammar_detail

enum class JsonText { value, object };

// Any JSON value, or any JSON object. Null with `error` set only if there is no memory.
inline std::shared_ptr<const Grammar> json_grammar(JsonText what, std::string& error) {
  GrammarBuilder builder;
  grammar_detail::JsonRules rules(builder);
  const GrammarBuilder::Rule root = builder.add_rule("JSON");
  builder.define(root, what == JsonText::object ? rules.object() : rules.value());
  return builder.build(root, 0, true, error);
}

// ====================================================================================================================
// 4. JSON Schema
// ====================================================================================================================

// A value that a schema describes, between two texts.
struct FramedSchema {
  std::string name, schema;  // name: how messages refer to it
  std::string before, after;
};

// Reads JSON Schemas (draft 2020-12, and the parts of older drafts that mean the same).
class SchemaReader {
 public:
  // At least one schema. Texts of the grammar have at least one value, of any of them, at most `most`, and a separator
  // between values.
  SchemaReader(const std::vector<FramedSchema>& schemas, const std::string& separator, uint32_t most)
      : schemas_(schemas), separator_(separator), most_(most), json_(builder_) {}

  // Null with `error` set if a schema is refused.
  std::shared_ptr<const Grammar> read(std::string& error) {
    std::shared_ptr<const Grammar> grammar;
    if (read_documents()) grammar = build();
    error = error_;
    return grammar;
  }

 private:
  using Expr = GrammarBuilder::Expr;
  using PlaceId = uint32_t;

  // A value in the document, by its JSON pointer.
  struct Place {
    PlaceId parent;
    std::string token;
    JsonValue value;
  };
  // A schema that holds together with others. skipped: the keyword anyOf or oneOf whose alternatives are already chosen.
  struct Part {
    PlaceId place;
    bool skip_any = false, skip_one = false;
    bool operator==(const Part& o) const {
      return place == o.place && skip_any == o.skip_any && skip_one == o.skip_one;
    }
  };
  // All of them hold.
  using Parts = std::vector<Part>;
  // A keyword in one of the parts.
  struct Keyword {
    Part part;
    JsonValue value;
  };

  enum Type : unsigned {
    null = 1,
    boolean = 2,
    integer = 4,
    fraction = 8,
    string = 16,
    array = 32,
    object = 64,
    all = 127
  };

  static constexpr size_t kMostSchemas = 1 << 12;   // with those that combinations repeat
  static constexpr size_t kMostParts = 64;          // of a combination
  static constexpr size_t kMostAlternatives = 256;  // of oneOf, which are compared with each other
  static constexpr uint32_t kMostPrefixItems = 256;
  static constexpr int kDeepest = 64;  // nested combinations

  // ---- Places and messages ----

  // The place of the schema that a place is in.
  PlaceId root_of(PlaceId place) const {
    while (places_[place].parent != place) place = places_[place].parent;
    return place;
  }

  PlaceId child(PlaceId parent, const std::string& token, const JsonValue& value) {
    const auto [it, is_new] = children_.emplace(std::pair(parent, token), PlaceId(places_.size()));
    if (is_new) places_.push_back({parent, token, value});
    return it->second;
  }

  // "NAME: #/properties/name". The middle of a long pointer is left out.
  std::string pointer(PlaceId place) const {
    std::string path;
    const PlaceId root = root_of(place);
    for (; place != root && path.size() < 200; place = places_[place].parent) {
      std::string token;
      for (const char c : places_[place].token.substr(0, 60))
        token += c == '~' ? "~0" : c == '/' ? "~1" : std::string(1, c);
      path = "/" + one_line(token) + path;
    }
    return schemas_[root].name + ": " + (place == root ? "#" : "#/...") + path;
  }

  bool ok() const { return error_.empty(); }
  Expr refuse(PlaceId place, Message why) {
    if (ok()) fail(error_, {pointer(place), ": ", text_of(why)});
    return builder_.never();
  }
  Expr refuse(PlaceId place, const std::string& keyword, Message why) { return refuse(child(place, keyword, {}), why); }

  // ---- Rules ----

  bool read_documents() {
    for (const FramedSchema& schema : schemas_) size_ += schema.schema.size();
    if (size_ > kLongestGrammar)
      return fail(error_, {schemas_[0].name, ": expected at most ", kLongestGrammar, " bytes, found ", size_});
    for (const FramedSchema& schema : schemas_) {
      documents_.emplace_back();
      if (!documents_.back().parse(schema.name, schema.schema)) return fail(error_, documents_.back().error);
      places_.push_back({PlaceId(places_.size()), "", documents_.back().root()});
    }
    return true;
  }

  std::shared_ptr<const Grammar> build() {
    const GrammarBuilder::Rule root = builder_.add_rule(pointer(0));
    std::vector<Expr> values;
    for (PlaceId i = 0; i < schemas_.size(); i++)
      values.push_back(builder_.sequence(
          {builder_.literal(schemas_[i].before), builder_.call(rule_of({i})), builder_.literal(schemas_[i].after)}));
    const Expr value = builder_.either(values), more = builder_.sequence({builder_.literal(separator_), value});
    const uint32_t most_more = most_ == GrammarBuilder::kUnbounded ? most_ : most_ - 1;
    builder_.define(root, builder_.sequence({value, builder_.repeat(more, 0, most_more)}));
    while (!pending_.empty() && ok()) {
      const auto [rule, places] = std::move(pending_.back());
      pending_.pop_back();
      builder_.begin(rule);
      Parts parts;
      if (gather(places, parts, 0)) builder_.define(rule, compile(parts, 0));
    }
    return ok() ? builder_.build(root, size_, false, error_) : nullptr;
  }

  // The rule of the values for which all of these schemas hold. It is compiled later.
  GrammarBuilder::Rule rule_of(const std::vector<PlaceId>& places) {
    const auto [it, is_new] = rules_.emplace(places, 0);
    if (is_new) {
      it->second = builder_.add_rule(pointer(places[0]));
      pending_.push_back({it->second, places});
    }
    return it->second;
  }

  // The values for which all of these schemas hold.
  Expr value_of(std::vector<PlaceId> places) {
    std::vector<PlaceId> different;
    for (PlaceId place : places) {
      for (int steps = 0; is_reference(place); steps++) {  // without other keywords
        if (steps == kDeepest)
          return refuse(place, "$ref", {"the references never end, or are longer than ", kDeepest});
        if (!resolve(place, place)) return builder_.never();
      }
      const JsonValue& v = places_[place].value;
      if (v.is(JsonKind::boolean) && !v.boolean()) return builder_.never();
      const bool anything = v.is(JsonKind::boolean) && places.size() > 1;
      if (!anything && std::find(different.begin(), different.end(), place) == different.end())
        different.push_back(place);
    }
    if (different.empty()) return json_.value();
    return builder_.call(rule_of(different));
  }

  static bool is_annotation(std::string_view key) {
    for (const char* known : {"title", "description", "default", "examples", "$schema", "$comment", "deprecated",
                              "readOnly", "writeOnly", "$defs", "definitions", "contentMediaType", "contentEncoding"})
      if (key == known) return true;
    return false;
  }
  static bool is_supported(std::string_view key) {
    for (const char* known :
         {"type",    "enum",        "const",    "properties", "required",         "additionalProperties",
          "items",   "prefixItems", "minItems", "maxItems",   "minLength",        "maxLength",
          "pattern", "format",      "minimum",  "maximum",    "exclusiveMinimum", "exclusiveMaximum",
          "anyOf",   "oneOf",       "allOf",    "$ref"})
      if (key == known) return true;
    return false;
  }

  bool is_reference(PlaceId place) const {
    const JsonValue& v = places_[place].value;
    if (v.find("$ref").is(JsonKind::absent)) return false;
    for (const auto& [key, member] : v.members())
      if (key != "$ref" && !is_annotation(key)) return false;
    return true;
  }

  // The place that a $ref refers to.
  bool resolve(PlaceId place, PlaceId& out) {
    const JsonValue ref = places_[place].value.find("$ref");
    if (!ref.is(JsonKind::string)) {
      refuse(place, "$ref", {"expected a string, found ", ref.describe()});
      return false;
    }
    const std::string text = ref.string();
    PlaceId at = root_of(place);
    const std::pair<PlaceId, std::string> key(at, text);
    const auto known = references_.find(key);
    if (known != references_.end()) {
      out = known->second;
      return true;
    }
    bool found = text == "#" || text.substr(0, 2) == "#/";
    for (size_t start = 2; found && start <= text.size() && text.size() > 1;) {
      const size_t end = std::min(text.find('/', start), text.size());
      const std::string token = unescaped(text.substr(start, end - start));
      const JsonValue parent = places_[at].value;
      const bool index = parent.is(JsonKind::array) && !token.empty() && token.size() < 6 &&
                         token.find_first_not_of("0123456789") == std::string::npos;
      const JsonValue next = index ? parent.at(size_t(std::stoi(token))) : parent.find(token);
      found = !next.is(JsonKind::absent);
      if (found) at = child(at, token, next);
      if (next.find("$id").is(JsonKind::string)) return refuse_id(at);
      start = end + 1;
    }
    if (!found) {
      refuse(place, "$ref", {"expected a JSON pointer into this schema (#/...), found ", ref.describe()});
      return false;
    }
    references_.emplace(key, at);
    out = at;
    return true;
  }

  // A nested schema with $id is a document of its own: its references are relative to it.
  bool refuse_id(PlaceId place) {
    refuse(place, "$id", {"this keyword is supported at the root only"});
    return false;
  }

  // A token of a pointer in a URI fragment.
  static std::string unescaped(const std::string& token) {
    std::string bytes;
    for (size_t i = 0; i < token.size(); i++) {
      uint32_t value = 0;
      size_t at = i + 1;
      const bool hex = token[i] == '%' && read_hex(token, at, 2, value);
      bytes += hex ? char(value) : token[i];
      if (hex) i += 2;
    }
    std::string out;
    for (size_t i = 0; i < bytes.size(); i++) {
      const bool escape = bytes[i] == '~' && i + 1 < bytes.size() && (bytes[i + 1] == '0' || bytes[i + 1] == '1');
      out += escape ? (bytes[i + 1] == '0' ? '~' : '/') : bytes[i];
      i += escape;
    }
    return out;
  }

  // ---- Combinations ----

  // Appends the schemas, and those that they include by $ref and allOf. False if they are refused.
  bool gather(const std::vector<PlaceId>& places, Parts& parts, int depth) {
    for (const PlaceId place : places)
      if (!gather(place, parts, depth)) return false;
    return true;
  }
  bool gather(PlaceId place, Parts& parts, int depth) {
    const JsonValue v = places_[place].value;
    if (depth > kDeepest || parts.size() > kMostParts) {
      refuse(place, {"the combination of $ref and allOf never ends, or has more than ", kMostParts, " parts"});
      return false;
    }
    if (!v.is(JsonKind::object) && !v.is(JsonKind::boolean)) {
      refuse(place, {"expected an object, true or false, found ", v.describe()});
      return false;
    }
    for (const auto& [key, member] : v.members()) {
      if (key == "$id" && root_of(place) != place) return refuse_id(place);
      if (key != "$id" && !is_annotation(key) && !is_supported(key) &&
          !(key == "uniqueItems" && member.is(JsonKind::boolean) && !member.boolean())) {
        refuse(place, key, {"this keyword is not supported"});
        return false;
      }
    }
    for (const char* key : {"properties", "required"})
      if (const size_t n = v.find(key).size(); n > kMostSchemas) {
        refuse(place, key, {"expected at most ", kMostSchemas, " properties, found ", n});
        return false;
      }
    if (std::find(including_.begin(), including_.end(), place) != including_.end()) {
      refuse(place, {"$ref and allOf lead back to this schema without end"});
      return false;
    }
    const Part part{place};
    if (std::find(parts.begin(), parts.end(), part) != parts.end()) return true;
    parts.push_back(part);
    including_.push_back(place);
    const bool good = gather_included(place, parts, depth + 1);
    including_.pop_back();
    return good;
  }
  bool gather_included(PlaceId place, Parts& parts, int depth) {
    const JsonValue v = places_[place].value;
    std::vector<PlaceId> included;
    if (!v.find("$ref").is(JsonKind::absent)) {
      included.emplace_back();
      if (!resolve(place, included.back())) return false;
    }
    if (!v.find("allOf").is(JsonKind::absent) && !elements_of(place, "allOf", included)) return false;
    return gather(included, parts, depth);
  }

  // The schemas in the array of a keyword, which has at least one.
  bool elements_of(PlaceId place, const std::string& keyword, std::vector<PlaceId>& out) {
    const JsonValue list = places_[place].value.find(keyword);
    if (!list.is(JsonKind::array) || list.size() == 0) {
      refuse(place, keyword,
             {"expected an array of schemas, found ",
              list.size() == 0 && list.is(JsonKind::array) ? "an empty one" : list.describe()});
      return false;
    }
    const PlaceId parent = child(place, keyword, list);
    size_t i = 0;
    for (const JsonValue& element : list.elements()) out.push_back(child(parent, std::to_string(i++), element));
    return true;
  }

  // All occurrences of a keyword.
  std::vector<Keyword> all_of(const Parts& parts, const char* key) const {
    std::vector<Keyword> found;
    for (const Part& part : parts) {
      const JsonValue v = places_[part.place].value.find(key);
      if (!v.is(JsonKind::absent)) found.push_back({part, v});
    }
    return found;
  }
  // The only one. Absent: none, or the schema was refused.
  Keyword one_of(const Parts& parts, const char* key) {
    const std::vector<Keyword> found = all_of(parts, key);
    if (found.size() > 1) refuse(found[1].part.place, key, {"is not supported in more than one part of a combination"});
    return found.size() == 1 ? found[0] : Keyword{parts[0], {}};
  }

  // The values for which all parts hold.
  Expr compile(const Parts& parts, int depth) {
    if (depth > kDeepest || ++compiled_ > kMostSchemas)
      return refuse(parts[0].place,
                    {"expected at most ", kMostSchemas, " schemas, with those that combinations repeat"});
    for (const Part& part : parts)
      if (places_[part.place].value.is(JsonKind::boolean) && !places_[part.place].value.boolean())
        return builder_.never();
    for (size_t i = 0; i < parts.size(); i++) {
      const JsonValue& v = places_[parts[i].place].value;
      if (!parts[i].skip_any && !v.find("anyOf").is(JsonKind::absent)) return alternatives(parts, i, "anyOf", depth);
      if (!parts[i].skip_one && !v.find("oneOf").is(JsonKind::absent)) return alternatives(parts, i, "oneOf", depth);
    }
    unsigned types = types_of(parts);
    if (!ok()) return builder_.never();
    if (!all_of(parts, "const").empty() || !all_of(parts, "enum").empty()) return listed(parts, types);
    if (all_of(parts, "type").empty()) types = implied_types(parts);
    return typed(parts, types);
  }

  Expr alternatives(Parts parts, size_t i, const char* keyword, int depth) {
    const PlaceId place = parts[i].place;
    const bool any = std::strcmp(keyword, "anyOf") == 0;
    std::vector<PlaceId> elements;
    if (!elements_of(place, keyword, elements)) return builder_.never();
    if (!any && !check_disjoint(place, elements)) return builder_.never();
    (any ? parts[i].skip_any : parts[i].skip_one) = true;
    const bool alone = parts.size() == 1 && has_only(place, keyword);
    std::vector<Expr> out;
    for (const PlaceId element : elements) {
      if (!ok()) break;
      Parts with = parts;
      if (alone)
        out.push_back(value_of({element}));
      else if (gather(element, with, 0))
        out.push_back(compile(with, depth + 1));
    }
    return builder_.either(out);
  }
  bool has_only(PlaceId place, std::string_view keyword) const {
    for (const auto& [key, member] : places_[place].value.members())
      if (key != keyword && !is_annotation(key)) return false;
    return true;
  }

  // ---- Types ----

  static unsigned type_named(const std::string& name) {
    constexpr std::pair<const char*, unsigned> kTypes[] = {
        {"null", null},     {"boolean", boolean}, {"integer", integer}, {"number", integer | fraction},
        {"string", string}, {"array", array},     {"object", object}};
    for (const auto& [known, type] : kTypes)
      if (name == known) return type;
    return 0;
  }

  unsigned types_of(const Parts& parts) {
    unsigned types = all;
    for (const Keyword& k : all_of(parts, "type")) {
      unsigned allowed = type_named(k.value.string());
      for (const JsonValue& element : k.value.elements()) {
        const unsigned type = type_named(element.string());
        if (type == 0) allowed = 0;
        if (type == 0) break;
        allowed |= type;
      }
      if (allowed == 0)
        refuse(k.part.place, "type",
               {"expected a type of JSON Schema, or an array of them, found ", k.value.describe()});
      types &= allowed;
    }
    return types;
  }

  // Without `type`, the values are of the types that have keywords; without any keyword, of all.
  unsigned implied_types(const Parts& parts) const {
    constexpr std::pair<unsigned, const char*> kKeywords[] = {{object, "properties"},
                                                              {object, "required"},
                                                              {object, "additionalProperties"},
                                                              {array, "items"},
                                                              {array, "prefixItems"},
                                                              {array, "minItems"},
                                                              {array, "maxItems"},
                                                              {string, "minLength"},
                                                              {string, "maxLength"},
                                                              {string, "pattern"},
                                                              {string, "format"},
                                                              {integer | fraction, "minimum"},
                                                              {integer | fraction, "maximum"},
                                                              {integer | fraction, "exclusiveMinimum"},
                                                              {integer | fraction, "exclusiveMaximum"}};
    unsigned types = 0;
    for (const auto& [type, key] : kKeywords)
      if (!all_of(parts, key).empty()) types |= type;
    return types == 0 ? unsigned(all) : types;
  }

  Expr typed(const Parts& parts, unsigned types) {
    if (types == all && implied_types(parts) == all) return json_.value();
    std::vector<Expr> out;
    if (types & object) out.push_back(objects(parts));
    if (types & array) out.push_back(arrays(parts));
    if (types & string) out.push_back(strings(parts));
    if (types & (integer | fraction)) out.push_back(numbers(parts, !(types & fraction)));
    if (types & boolean) out.push_back(json_.boolean());
    if (types & null) out.push_back(builder_.literal("null"));
    return builder_.either(out);
  }

  // ---- const, enum, oneOf ----

  static unsigned type_of(const JsonValue& v) {
    constexpr unsigned kTypes[] = {0, null, boolean, integer | fraction, string, array, object};
    const double number = v.number();
    if (v.is(JsonKind::number)) return number == std::floor(number) ? integer : fraction;
    return kTypes[int(v.kind())];
  }

  // The JSON of a value, without spaces. False if it has a number that is not in the range of a double.
  static bool to_json(const JsonValue& v, std::string& out) {
    bool good = true, first = true;
    if (v.is(JsonKind::array)) {
      out += '[';
      for (const JsonValue& element : v.elements()) {
        out += std::exchange(first, false) ? "" : ",";
        good = to_json(element, out) && good;
      }
      out += ']';
    } else if (v.is(JsonKind::object)) {
      out += '{';
      for (const auto& [key, member] : v.members()) {
        out += (std::exchange(first, false) ? "" : ",") + json(key) + ":";
        good = to_json(member, out) && good;
      }
      out += '}';
    } else if (v.is(JsonKind::number)) {
      const double number = v.number();
      char text[40];
      for (int digits = 15; digits <= 17; digits++) {  // as few as give the same number again
        std::snprintf(text, sizeof text, "%.*g", digits, number == 0 ? 0 : number);
        if (std::strtod(text, nullptr) == number) break;
      }
      const bool is_integer = v.raw().find_first_of(".eE") == std::string_view::npos;
      out += is_integer && number != 0 ? std::string(v.raw()) : text;  // an integer may have more digits than a double
      good = std::isfinite(number);
    } else {
      out += v.is(JsonKind::string)    ? json(v.string())
             : v.is(JsonKind::boolean) ? (v.boolean() ? "true" : "false")
                                       : "null";
    }
    return good;
  }

  // A text that is the same for equal values.
  static std::string normal_json(const JsonValue& v) {
    std::string out;
    if (v.is(JsonKind::array)) {
      for (const JsonValue& element : v.elements()) out += "," + normal_json(element);
      return "[" + out + "]";
    }
    if (v.is(JsonKind::object)) {
      std::map<std::string, std::string> sorted;
      for (const auto& [key, member] : v.members()) sorted[key] = normal_json(member);
      for (const auto& [key, member] : sorted) out += "," + json(key) + ":" + member;
      return "{" + out + "}";
    }
    if (v.is(JsonKind::number)) {  // as a double: many readers have no other numbers
      const double number = v.number();
      char text[40];
      std::snprintf(text, sizeof text, "%.17g", number == 0 ? 0 : number);
      return text;
    }
    to_json(v, out);
    return out;
  }

  // The values of const or enum.
  bool listed_values(const Keyword& k, const char* key, std::vector<JsonValue>& out) {
    if (std::strcmp(key, "const") == 0)
      out.push_back(k.value);
    else if (!k.value.is(JsonKind::array))
      refuse(k.part.place, key, {"expected an array, found ", k.value.describe()});
    for (const JsonValue& v : std::strcmp(key, "enum") == 0 ? k.value.elements() : JsonValue().elements())
      out.push_back(v);
    return ok();
  }

  Expr listed(const Parts& parts, unsigned types) {
    const char* key = all_of(parts, "const").empty() ? "enum" : "const";
    const Keyword k = one_of(parts, key);
    if (std::strcmp(key, "const") == 0 && !all_of(parts, "enum").empty())
      return refuse(k.part.place, "const", {"is not supported together with enum"});
    for (const Part& part : parts)
      for (const auto& [other, member] : places_[part.place].value.members())
        if (!is_annotation(other) && other != key && other != "type" && other != "$ref" && other != "allOf" &&
            other != "anyOf" && other != "oneOf" && other != "uniqueItems" && other != "$id")
          return refuse(part.place, other, {"is not supported together with ", key});
    std::vector<JsonValue> values;
    if (!ok() || !listed_values(k, key, values)) return builder_.never();
    std::vector<Expr> out;
    for (const JsonValue& v : values) {
      std::string text;
      if (!to_json(v, text)) return refuse(k.part.place, key, {"expected numbers in the range of a double"});
      if (type_of(v) & types) out.push_back(builder_.literal(text));
    }
    return builder_.either(out);
  }

  // What is known of a schema's values, for oneOf.
  struct Shape {
    unsigned types = all;
    bool is_listed = false;
    std::vector<std::string> values;                                     // if listed: their normal_json(), sorted
    std::vector<std::pair<std::string, std::vector<std::string>>> tags;  // required properties whose values are listed
  };

  bool read_values(const Parts& parts, Shape& shape) {
    for (const char* key : {"const", "enum"})
      for (const Keyword& k : all_of(parts, key)) {
        std::vector<JsonValue> values;
        if (shape.is_listed || !listed_values(k, key, values)) return ok();
        shape.is_listed = true;
        unsigned types = 0;
        for (const JsonValue& v : values) {
          types |= type_of(v);
          shape.values.push_back(normal_json(v));
        }
        shape.types &= types;
        std::sort(shape.values.begin(), shape.values.end());
      }
    return true;
  }

  bool read_shape(PlaceId place, Shape& shape) {
    Parts parts;
    if (!gather(place, parts, 0)) return false;
    shape.types = types_of(parts);
    if (!ok() || !read_values(parts, shape)) return false;
    for (const std::string& name : required_names(parts))
      for (const Keyword& k : all_of(parts, "properties")) {
        const JsonValue member = k.value.find(name);
        if (member.is(JsonKind::absent)) continue;
        Shape tag;
        Parts of_member;
        if (!gather(child(child(k.part.place, "properties", k.value), name, member), of_member, 0)) return false;
        if (!read_values(of_member, tag)) return false;
        if (tag.is_listed) shape.tags.push_back({name, tag.values});
      }
    return ok();
  }

  static bool common(const std::vector<std::string>& a, const std::vector<std::string>& b) {
    std::vector<std::string> both;
    std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
    return !both.empty();
  }
  static bool disjoint(const Shape& a, const Shape& b) {
    const unsigned types = a.types & b.types;
    if (types == 0 || (a.is_listed && b.is_listed && !common(a.values, b.values))) return true;
    for (const auto& [name, values] : a.tags)
      for (const auto& [other, other_values] : b.tags)
        if (types == object && name == other && !common(values, other_values)) return true;
    return false;
  }

  // A value must not be valid for two alternatives of oneOf.
  bool check_disjoint(PlaceId place, const std::vector<PlaceId>& elements) {
    if (elements.size() > kMostAlternatives)
      refuse(place, "oneOf", {"expected at most ", kMostAlternatives, " alternatives"});
    std::vector<Shape> shapes(elements.size());
    for (size_t i = 0; i < elements.size() && ok(); i++) read_shape(elements[i], shapes[i]);
    for (size_t i = 0; i < elements.size() && ok(); i++)
      for (size_t k = 0; k < i; k++)
        if (!disjoint(shapes[i], shapes[k]))
          refuse(place, "oneOf",
                 {"expected alternatives that differ in type, in const or enum, or in these of a required "
                  "property; found ",
                  k, " and ", i, ", which may have a value in common; use anyOf"});
    return ok();
  }

  // ---- Objects ----

  std::vector<std::string> required_names(const Parts& parts) {
    std::vector<std::string> names;
    for (const Keyword& k : all_of(parts, "required")) {
      if (!k.value.is(JsonKind::array))
        refuse(k.part.place, "required", {"expected an array of names, found ", k.value.describe()});
      for (const JsonValue& name : k.value.elements()) {
        if (!name.is(JsonKind::string)) refuse(k.part.place, "required", {"expected names, found ", name.describe()});
        names.push_back(name.string());
      }
    }
    return names;
  }

  // Names of all properties, in their order: those of `properties`, then the others of `required`.
  std::vector<std::string> property_names(const Parts& parts, const std::vector<std::string>& required) {
    std::vector<std::string> names;
    std::set<std::string> known;
    for (const Keyword& k : all_of(parts, "properties")) {
      if (!k.value.is(JsonKind::object))
        refuse(k.part.place, "properties", {"expected an object, found ", k.value.describe()});
      for (const auto& [name, member] : k.value.members())
        if (known.insert(name).second) names.push_back(name);
    }
    for (const std::string& name : required)
      if (known.insert(name).second) names.push_back(name);
    return names;
  }

  // The schemas of properties in a part.
  struct PropertySchemas {
    PlaceId place;           // of the part
    JsonValue named, extra;  // its properties and additionalProperties
    std::map<std::string, JsonValue> by_name;
  };
  std::vector<PropertySchemas> property_schemas(const Parts& parts) const {
    std::vector<PropertySchemas> all;
    for (const Part& part : parts) {
      const JsonValue& v = places_[part.place].value;
      all.push_back({part.place, v.find("properties"), v.find("additionalProperties"), {}});
      for (const auto& [name, member] : all.back().named.members()) all.back().by_name[name] = member;
    }
    return all;
  }

  // The schemas that hold for a property, by each part; of another name than those in `properties`: null.
  std::vector<PlaceId> schemas_of(const std::vector<PropertySchemas>& parts, const std::string* name) {
    std::vector<PlaceId> schemas;
    for (const PropertySchemas& part : parts) {
      const auto own = name ? part.by_name.find(*name) : part.by_name.end();
      if (own != part.by_name.end())
        schemas.push_back(child(child(part.place, "properties", part.named), *name, own->second));
      else if (!part.extra.is(JsonKind::absent))
        schemas.push_back(child(part.place, "additionalProperties", part.extra));
    }
    return schemas;
  }

  Expr objects(const Parts& parts) {
    const std::vector<std::string> required = required_names(parts), names = property_names(parts, required);
    if (names.size() > kMostSchemas)
      return refuse(parts[0].place, {"expected at most ", kMostSchemas, " properties, found ", names.size()});
    const std::set<std::string> needed(required.begin(), required.end());
    const std::vector<PropertySchemas> schemas = property_schemas(parts);
    std::vector<GrammarBuilder::Item> items;
    for (const std::string& name : names) {
      if (!ok()) return builder_.never();
      const Expr pair = json_.pair(builder_.literal(json(name)), value_of(schemas_of(schemas, &name)));
      items.push_back({pair, needed.count(name) == 0});
    }
    // Additional properties are written if they are asked for, or nothing is known of the properties.
    const std::vector<PlaceId> extra = schemas_of(schemas, nullptr);
    if (!extra.empty() || all_of(parts, "properties").empty()) {
      const Expr name = names.empty() ? json_.string() : json_.other_name(names);
      items.push_back({json_.some(json_.pair(name, value_of(extra))), true});
    }
    return json_.in_braces(builder_.list(items, json_.separator()));
  }

  // ---- Arrays ----

  // The largest, or smallest, of the values of a keyword that is a number of items or characters.
  int64_t count_of(const Parts& parts, const char* key, bool largest, int64_t absent) {
    int64_t value = absent;
    for (const Keyword& k : all_of(parts, key)) {
      const double number = k.value.number();
      if (!k.value.is(JsonKind::number) || !(number >= 0 && number == std::floor(number))) {
        refuse(k.part.place, key, {"expected a natural number, found ", k.value.describe()});
        return absent;
      }
      const int64_t count = int64_t(std::min(number, 1e9));
      value = value == absent ? count : largest ? std::max(value, count) : std::min(value, count);
    }
    if (largest && value > int64_t(kMostRepetitions))
      refuse(parts[0].place, key, {"expected at most ", kMostRepetitions, ", found ", value});
    return value;
  }
  // As a bound of repeat(): more than the most repetitions are not written.
  static uint32_t most_of(int64_t count) {
    return count < 0 ? GrammarBuilder::kUnbounded : uint32_t(std::min<int64_t>(count, kMostRepetitions));
  }

  Expr arrays(const Parts& parts) {
    const int64_t least = count_of(parts, "minItems", true, 0), most = count_of(parts, "maxItems", false, -1);
    const Keyword prefix = one_of(parts, "prefixItems");
    std::vector<PlaceId> first, others;
    if (!prefix.value.is(JsonKind::absent)) elements_of(prefix.part.place, "prefixItems", first);
    for (const Keyword& k : all_of(parts, "items")) {
      if (k.value.is(JsonKind::array))
        return refuse(k.part.place, "items", {"expected a schema, found an array; use prefixItems"});
      others.push_back(child(k.part.place, "items", k.value));
    }
    if (!first.empty() && parts.size() > 1 && !others.empty() &&
        !(others.size() == 1 && places_[others[0]].parent == prefix.part.place))
      return refuse(prefix.part.place, "prefixItems",
                    {"is not supported together with items of another part of a combination"});
    if (first.size() > kMostPrefixItems)
      return refuse(prefix.part.place, "prefixItems", {"expected at most ", kMostPrefixItems});
    if (!ok() || (most >= 0 && most < least)) return builder_.never();
    return json_.in_brackets(items(first, others, uint32_t(least), most_of(most)));
  }

  // least to most items; without a schema for the others, only as many of them as are needed.
  Expr items(const std::vector<PlaceId>& first, const std::vector<PlaceId>& others, uint32_t least, uint32_t most) {
    const uint32_t n = std::min(uint32_t(first.size()), most);
    const uint32_t least_more = least > n ? least - n : 0;
    uint32_t most_more = most == GrammarBuilder::kUnbounded ? most : most - n;
    if (!first.empty() && others.empty()) most_more = least_more;
    const Expr nothing = builder_.literal("");
    if (n == 0) {
      if (most_more == 0) return nothing;
      const Expr some = json_.some(value_of(others), std::max(1u, least_more), most_more);
      return least_more == 0 ? builder_.optional(some) : some;
    }
    Expr rest = most_more == 0
                    ? nothing
                    : builder_.repeat(builder_.sequence({json_.separator(), value_of(others)}), least_more, most_more);
    for (uint32_t i = n; i-- > 0;) {
      const Expr item = value_of({first[i]});
      rest = builder_.sequence({i == 0 ? nothing : json_.separator(), item, rest});
      if (i >= least) rest = builder_.optional(rest);
    }
    return rest;
  }

  // ---- Strings and numbers ----

  Expr strings(const Parts& parts) {
    const int64_t least = count_of(parts, "minLength", true, 0), most = count_of(parts, "maxLength", false, -1);
    const Keyword pattern = one_of(parts, "pattern"), format = one_of(parts, "format");
    const bool has_length = least > 0 || most >= 0, has_pattern = !pattern.value.is(JsonKind::absent),
               has_format = !format.value.is(JsonKind::absent);
    if (has_length + has_pattern + has_format > 1)
      return refuse(parts[0].place,
                    {"of the bounds of the length, pattern and format, only one is supported together"});
    if (!ok() || (most >= 0 && most < least)) return builder_.never();
    if (has_pattern) return patterned(pattern);
    if (has_format) return formatted(format);
    if (!has_length) return json_.string();
    // Shared by all strings of these lengths.
    const auto [it, is_new] = lengths_.emplace(std::pair(least, most), 0);
    if (is_new) {
      it->second = builder_.add_rule("string");
      builder_.define(it->second, json_.quoted(builder_.repeat(json_.character(), uint32_t(least), most_of(most))));
    }
    return builder_.call(it->second);
  }

  Expr patterned(const Keyword& pattern) {
    if (!pattern.value.is(JsonKind::string))
      return refuse(pattern.part.place, "pattern", {"expected a string, found ", pattern.value.describe()});
    Expr contents;
    std::string why;
    const std::string text = pattern.value.string();
    if (!grammar_detail::PatternReader(builder_, text).read(contents, why))
      return refuse(pattern.part.place, "pattern", {why});
    return json_.quoted(contents);
  }

  Expr formatted(const Keyword& format) {
    const std::string date =
                          "[1-9]\\d{3}-((0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])|(0[469]|11)-(0[1-9]|[12]\\d|30)|"
                          "02-(0[1-9]|1\\d|2[0-8]))",
                      time = "([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,6})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)",
                      hex = "[\\da-f]";
    const std::pair<const char*, std::string> formats[] = {
        {"date", date},
        {"time", time},
        {"date-time", date + "T" + time},
        {"uuid", hex + "{8}-" + hex + "{4}-" + hex + "{4}-" + hex + "{4}-" + hex + "{12}"}};
    for (const auto& [name, pattern] : formats) {
      if (format.value.string() != name) continue;
      Expr contents;
      std::string why;
      grammar_detail::PatternReader(builder_, "^(" + pattern + ")$").read(contents, why);
      return json_.quoted(contents);
    }
    return refuse(format.part.place, "format",
                  {"expected date, time, date-time or uuid, found ", format.value.describe()});
  }

  // The strictest bound.
  grammar_detail::Bound bound_of(const Parts& parts, const char* inclusive, const char* exclusive, bool lower) {
    grammar_detail::Bound bound;
    for (const char* key : {inclusive, exclusive})
      for (const Keyword& k : all_of(parts, key)) {
        const double value = k.value.number();
        if (!k.value.is(JsonKind::number) || !std::isfinite(value)) {
          refuse(k.part.place, key, {"expected a number, found ", k.value.describe()});
          return bound;
        }
        const bool stricter = lower ? value > bound.value : value < bound.value;
        if (!bound.present || stricter || (value == bound.value && key == exclusive))
          bound = {true, key == exclusive, value};
      }
    return bound;
  }

  Expr numbers(const Parts& parts, bool integers) {
    const auto low = bound_of(parts, "minimum", "exclusiveMinimum", true),
               high = bound_of(parts, "maximum", "exclusiveMaximum", false);
    if (!low.present && !high.present) return integers ? json_.integer() : json_.number();
    return grammar_detail::numbers_within(builder_, low, high, integers);
  }

  const std::vector<FramedSchema>& schemas_;
  const std::string separator_;
  const uint32_t most_;
  size_t size_ = 0;                    // of all schemas, in bytes
  std::list<JsonDocument> documents_;  // of each schema; places refer to them
  GrammarBuilder builder_;
  grammar_detail::JsonRules json_;
  std::vector<Place> places_;  // the first ones are the schemas, which are their own parents
  std::map<std::pair<PlaceId, std::string>, PlaceId> children_;
  std::map<std::pair<PlaceId, std::string>, PlaceId> references_;  // by schema and text
  std::map<std::vector<PlaceId>, GrammarBuilder::Rule> rules_;
  std::vector<std::pair<GrammarBuilder::Rule, std::vector<PlaceId>>> pending_;  // to be compiled
  std::map<std::pair<int64_t, int64_t>, GrammarBuilder::Rule> lengths_;
  std::vector<PlaceId> including_;  // of gather(): the schemas that include each other
  size_t compiled_ = 0;
  std::string error_;
};

// The grammar of the values of a JSON Schema. name: how messages refer to it. Null with `error` set if the text is not
// JSON, or the schema is not supported: "NAME: #/properties/age/multipleOf: this keyword is not supported".
inline std::shared_ptr<const Grammar> schema_grammar(const std::string& name, std::string_view text,
                                                     std::string& error) {
  return SchemaReader({{name, std::string(text), "", ""}}, "", 1).read(error);
}

// The grammar of one to `most` values, each between the texts of its schema, with a separator between values.
inline std::shared_ptr<const Grammar> framed_schemas_grammar(const std::vector<FramedSchema>& schemas,
                                                             const std::string& separator, uint32_t most,
                                                             std::string& error) {
  return SchemaReader(schemas, separator, most).read(error);
}

}  // namespace pocket
