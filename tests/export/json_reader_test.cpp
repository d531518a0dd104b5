// json_reader_test.cpp: the JSON reader accepts the same texts as nlohmann's reader, by RFC 8259, and gives the same
// values; errors have the position and the text found there. Intended differences: more than 256 levels, numbers too
// large for a double, a byte order mark, and a NUL after the value.
#include "../../export/json_reader.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <set>

#include "../support/tiny_model.hpp"

namespace json_reader_test {

using namespace pocket;
using Json = nlohmann::json;

/// A value of every kind, nested, with escapes and characters of every length.
const std::string kSample =
    "{\n  \"null\": null, \"yes\": true, \"no\": false,\n"
    "  \"numbers\": [0, -0, 7, -12, 3.25, -0.5e-3, 1E+2, 9007199254740993, 18446744073709551615],\n"
    "  \"text\": \"caf\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80 \\\" \\\\ \\/ \\b\\f\\n\\r\\t \\u00e9\\ud83d\\uDE00\",\n"
    "  \"empty\": [[], {}, \"\", [[[1]]]],\r\n\t\"nested\": {\"a\": {\"b\": [{\"c\": null}, true]}, \"a\": 2},\n"
    "  \"k\\u0065y\": \"\\u0000\"\n}\n";

/// The error of parsing this text, "" if it is valid.
std::string error_of(const std::string& text) {
  JsonDocument document;
  const bool ok = document.parse("t.json", text);
  EXPECT_EQ(ok, document.error.empty()) << document.error;
  EXPECT_TRUE(ok || document.error.rfind("t.json:", 0) == 0) << document.error;
  return document.error;
}

std::string array_of_depth(int depth) { return std::string(size_t(depth), '[') + std::string(size_t(depth), ']'); }
std::string quoted(const std::string& text) { return "\"" + text + "\""; }

/// The value of a JSON string.
std::string string_of(const std::string& text) {
  JsonDocument document;
  EXPECT_TRUE(document.parse("t.json", quoted(text))) << document.error;
  EXPECT_TRUE(document.root().is(JsonKind::string));
  return document.root().string();
}

double number_of(const std::string& text) {
  JsonDocument document;
  EXPECT_TRUE(document.parse("t.json", text)) << document.error;
  EXPECT_TRUE(document.root().is(JsonKind::number));
  return document.root().number();
}

bool any_infinite(const JsonValue& value) {
  for (const JsonValue& element : value.elements())
    if (any_infinite(element)) return true;
  for (const auto& [key, member] : value.members())
    if (any_infinite(member)) return true;
  return std::isinf(value.number());
}

/// Whether both readers found the same values; if not, where they differ.
testing::AssertionResult same(const JsonValue& mine, const Json& theirs) {
  const auto differ = [&] { return testing::AssertionFailure() << mine.where() << ": not " << theirs; };
  if (theirs.is_null()) return mine.is(JsonKind::null) ? testing::AssertionSuccess() : differ();
  if (theirs.is_boolean() && (!mine.is(JsonKind::boolean) || mine.boolean() != theirs.get<bool>())) return differ();
  if (theirs.is_string() && (!mine.is(JsonKind::string) || mine.string() != theirs.get<std::string>())) return differ();
  if (theirs.is_number()) {
    int64_t n = 0;
    const bool fits =
        theirs.is_number_integer() && !(theirs.is_number_unsigned() && theirs.get<uint64_t>() > uint64_t(INT64_MAX));
    if (!mine.is(JsonKind::number) || mine.number() != theirs.get<double>()) return differ();
    if (mine.integer(n) != fits || (fits && n != theirs.get<int64_t>())) return differ();
  }
  if (theirs.is_array()) {
    if (!mine.is(JsonKind::array) || mine.size() != theirs.size()) return differ();
    size_t i = 0;
    for (const JsonValue& element : mine.elements())
      if (const auto result = same(element, theirs[i++]); !result) return result;
  }
  if (theirs.is_object()) {
    std::set<std::string> keys;
    if (!mine.is(JsonKind::object)) return differ();
    for (const auto& [key, ignored] : mine.members()) {
      const auto it = theirs.find(key);
      if (it == theirs.end()) return differ();
      if (const auto result = same(mine.find(key), *it); !result) return result;
      keys.insert(key);
    }
    if (keys.size() != theirs.size()) return differ();
  }
  return testing::AssertionSuccess();
}

/// Parses a text with both readers, which must agree.
void compare(const std::string& text) {
  JsonDocument document;
  const bool accepted = document.parse("t.json", text);
  const Json theirs = Json::parse(text, nullptr, false);
  if (accepted) {
    if (any_infinite(document.root())) return;  // nlohmann rejects too large numbers
    ASSERT_FALSE(theirs.is_discarded()) << "only nlohmann refuses: " << text;
    ASSERT_TRUE(same(document.root(), theirs)) << text;
  } else {
    ASSERT_EQ(document.error.rfind("t.json:", 0), 0u) << document.error;
    if (text.rfind("\xEF\xBB\xBF", 0) == 0) return;    // nlohmann skips a byte order mark
    if (text.find('\0') != std::string::npos) return;  // for nlohmann a NUL ends the text
    ASSERT_TRUE(theirs.is_discarded()) << document.error << ", but nlohmann reads: " << text;
  }
}

// ---- Values ----

TEST(JsonReader, ReadsValuesOfEveryKind) {
  JsonDocument d;
  ASSERT_TRUE(d.parse("t.json", kSample)) << d.error;
  const JsonValue root = d.root();
  EXPECT_TRUE(root.is(JsonKind::object));
  EXPECT_EQ(root.size(), 8u);
  EXPECT_TRUE(root.find("null").is(JsonKind::null) && root.find("null").missing());
  EXPECT_TRUE(root.find("yes").boolean());
  EXPECT_FALSE(root.find("no").boolean());
  EXPECT_TRUE(root.find("no").is(JsonKind::boolean) && !root.find("no").missing());
  EXPECT_EQ(root.find("numbers").size(), 9u);
  EXPECT_EQ(root.find("numbers").at(4).number(), 3.25);
  EXPECT_EQ(root.find("text").string(),
            "caf\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80 \" \\ / \b\f\n\r\t \xC3\xA9\xF0\x9F\x98\x80");
  EXPECT_EQ(root.find("key").string(), std::string(1, '\0')) << "escaped keys are found";
  EXPECT_TRUE(root.find("nothing").is(JsonKind::absent) && root.find("nothing").missing());
  EXPECT_TRUE(same(root, Json::parse(kSample)));
}

TEST(JsonReader, ValueOfAnotherKindIsEmpty) {
  JsonDocument d;
  ASSERT_TRUE(d.parse("t.json", "[null, true, 1, \"a\", [5], {\"k\": 6}]")) << d.error;
  int64_t n = 77;
  for (const JsonValue& v : d.root().elements()) {
    EXPECT_TRUE(v.is(JsonKind::string) || v.string().empty());
    EXPECT_TRUE(v.is(JsonKind::boolean) || !v.boolean());
    EXPECT_TRUE(v.is(JsonKind::number) || (v.number() == 0 && !v.integer(n) && n == 77));
    EXPECT_TRUE(v.is(JsonKind::object) || v.find("k").is(JsonKind::absent));
    EXPECT_TRUE(v.is(JsonKind::array) || v.at(0).is(JsonKind::absent));
    EXPECT_TRUE(v.kind() >= JsonKind::array || v.size() == 0);
    for (const auto& [key, ignored] : v.members()) EXPECT_TRUE(v.is(JsonKind::object)) << key;
  }
  EXPECT_TRUE(d.root().at(6).is(JsonKind::absent));
  const JsonValue absent = JsonValue();
  EXPECT_TRUE(absent.find("a").find("b").at(3).is(JsonKind::absent));
  EXPECT_EQ(absent.where() + absent.string(), "");
  EXPECT_EQ(absent.describe(), "nothing");
  EXPECT_TRUE(JsonDocument().root().is(JsonKind::absent));
}

TEST(JsonReader, LastOfEqualKeysCounts) {
  JsonDocument d;
  ASSERT_TRUE(d.parse("t.json", "{\"a\": 1, \"b\": 2, \"\\u0061\": 3}")) << d.error;
  EXPECT_EQ(d.root().find("a").number(), 3);
  std::string listed;
  for (const auto& [key, value] : d.root().members()) listed += key + std::to_string(int(value.number())) + " ";
  EXPECT_EQ(listed, "a1 b2 a3 ");
}

TEST(JsonReader, DocumentCanBeReused) {
  JsonDocument d;
  EXPECT_FALSE(d.parse("a.json", "[1, 2, x]"));
  EXPECT_EQ(d.error, "a.json:1:8: expected a value, found 'x'");
  ASSERT_TRUE(d.parse("b.json", " [4] "));
  EXPECT_EQ(d.root().size(), 1u);
  EXPECT_EQ(d.root().at(0).number(), 4);
  EXPECT_EQ(d.root().at(0).where(), "b.json:1:3");
}

TEST(JsonReader, DescribesValues) {
  const std::pair<const char*, const char*> all[] = {{"null", "null"},    {"true", "true"},
                                                     {"-1.50", "-1.50"},  {"\"a\\n\"", "\"a\\n\""},
                                                     {"[1]", "an array"}, {"{}", "an object"}};
  for (const auto& [text, expected] : all) {
    JsonDocument d;
    ASSERT_TRUE(d.parse("t.json", text));
    EXPECT_EQ(d.root().describe(), expected);
  }
  JsonDocument d;
  ASSERT_TRUE(d.parse("t.json", quoted(std::string(100000, 'a'))));
  EXPECT_EQ(d.root().describe(), quoted(std::string(60, 'a') + "..."));
}

// ---- Strings ----

TEST(JsonReader, ReadsSingleCharacterEscapes) {
  EXPECT_EQ(string_of("\\\"\\\\\\/\\b\\f\\n\\r\\t"), "\"\\/\b\f\n\r\t");
  for (int c = 0; c < 256; c++) {
    const std::string text = quoted(std::string("\\") + char(c));
    if (c != 0 && std::strchr("\"\\/bfnrt", c)) continue;
    EXPECT_NE(error_of(text), "") << c;
  }
  EXPECT_EQ(error_of("\"\\x41\""), "t.json:1:3: expected one of \" \\ / b f n r t u, found 'x'");
}

TEST(JsonReader, ReadsEveryCodePoint) {
  std::string escaped = "[", plain = "[";
  std::vector<std::string> expected;
  char text[16];
  for (uint32_t code = 0; code < 0x110000; code += code < 0x10000 ? 1 : 97) {
    if (code >= 0xd800 && code < 0xe000) continue;
    std::string utf8;
    append_utf8(utf8, code);
    size_t at = 0;
    ASSERT_EQ(decode_utf8(utf8, at), int32_t(code));
    ASSERT_EQ(at, utf8.size());
    expected.push_back(utf8);
    const char* comma = code == 0 ? "" : ",";
    if (code < 0x10000)
      std::snprintf(text, sizeof text, code % 2 ? "\\u%04x" : "\\u%04X", code);
    else
      std::snprintf(text, sizeof text, "\\u%04x\\u%04X", 0xd800 + ((code - 0x10000) >> 10), 0xdc00 + (code & 0x3ff));
    escaped += comma + quoted(text);
    plain += comma + quoted(code < ' ' || code == '"' || code == '\\' ? text : utf8);
  }
  for (const std::string& all : {escaped + "]", plain + "]"}) {
    JsonDocument d;
    ASSERT_TRUE(d.parse("t.json", all)) << d.error;
    ASSERT_EQ(d.root().size(), expected.size());
    size_t i = 0;
    for (const JsonValue& v : d.root().elements()) ASSERT_EQ(v.string(), expected[i++]) << "number " << i;
  }
}

TEST(JsonReader, RequiresSurrogatePairs) {
  EXPECT_EQ(string_of("\\ud800\\udc00\\uDBFF\\uDFFF"), "\xF0\x90\x80\x80\xF4\x8F\xBF\xBF");
  for (const char* lone :
       {"\\ud800", "\\udbffx", "\\udc00", "\\udfff\\ud800", "\\ud800\\ud800\\udc00", "\\ud83d\\n", "\\ud83d\\u0041",
        "\\ud83d\\ue000", "\\ud83d\\udbff", "\\ud83dudc00", "\\ud83d\xF0\x9F\x98\x80"})
    EXPECT_EQ(error_of("[1, \"" + std::string(lone) + "\"]"),
              std::string("t.json:1:6: expected a pair of surrogates, found '\\'"))
        << lone;
  for (const char* bad :
       {"\\u", "\\u1", "\\u12", "\\u123", "\\u123g", "\\u-123", "\\u 123", "\\ud83d\\u", "\\ud83d\\udc0",
        "\\ud83d\\u00", "\\U0041", "\\u00@0", "\\u00`0", "\\u00G0", "\\u00/0", "\\u00:0"})
    EXPECT_NE(error_of(quoted(bad)).find(bad[1] == 'U' ? "expected one of" : "expected a hexadecimal digit"),
              std::string::npos)
        << bad << ": " << error_of(quoted(bad));
}

TEST(JsonReader, RejectsInvalidUtf8) {
  for (const char* bad :
       {"\x80", "\xBF", "\xC0\x80", "\xC1\xBF", "\xC3", "\xE0\x9F\xBF", "\xE2\x82", "\xE2\x28\xA1", "\xED\xA0\x80",
        "\xED\xBF\xBF", "\xF0\x8F\xBF\xBF", "\xF0\x9F\x98", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFE", "\xFF"}) {
    EXPECT_EQ(error_of("{\"a\": \"x" + std::string(bad) + "\"}").find("t.json:1:9: expected UTF-8, found byte 0x"), 0u)
        << bad;
    EXPECT_EQ(error_of("{\"" + std::string(bad) + "\": 1}").find("t.json:1:3: expected UTF-8, found byte 0x"), 0u);
    EXPECT_EQ(error_of("[" + std::string(bad) + "]").find("t.json:1:2: expected a value, found byte 0x"), 0u);
  }
  for (int a = 0x80; a < 256; a++)
    for (int b = 0x20; b < 256; b++) {
      const std::string text = quoted({char(a), char(b)});
      ASSERT_EQ(error_of(text).empty(), Json::accept(text)) << a << " " << b;
    }
  tiny::Random random(1);
  for (int i = 0; i < 10000; i++) {
    std::string text = {char(0xe0 | random.below(24)), char(0x80 | random.below(64)), char(0x7e + random.below(68)),
                        char(0x7e + random.below(68))};
    text = quoted(text.substr(0, size_t(3 + random.below(2))));
    ASSERT_EQ(error_of(text).empty(), Json::accept(text)) << text;
  }
}

TEST(JsonReader, RejectsControlCharacters) {
  for (int c = 0; c < ' '; c++) {
    EXPECT_EQ(error_of(quoted({'a', char(c)})).find("t.json:1:3: expected a control character to be escaped"), 0u) << c;
    EXPECT_EQ(error_of(std::string("[") + char(c) + "1]").empty(), c == '\t' || c == '\n' || c == '\r') << c;
  }
  EXPECT_EQ(string_of("\x7f"), "\x7f");
  EXPECT_NE(error_of("[\xC2\xA0 1]"), "") << "a no-break space";
}

// ---- Numbers ----

TEST(JsonReader, NumbersMatchStrtod) {
  std::vector<std::string> all = {"0",
                                  "-0",
                                  "0.0",
                                  "-0.0",
                                  "1",
                                  "-1",
                                  "0.1",
                                  "0.3",
                                  "1e23",
                                  "8.5e22",
                                  "9007199254740993",
                                  "9007199254740992.5",
                                  "123456789012345678901234567890",
                                  "1e5",
                                  "1E5",
                                  "1e+5",
                                  "1e-5",
                                  "1E-05",
                                  "1.5e000003",
                                  "0e99999",
                                  "-0e-99999",
                                  "2.2250738585072014e-308",
                                  "2.2250738585072011e-308",
                                  "4.9406564584124654e-324",
                                  "5e-324",
                                  "2.47e-324",
                                  "2.4703282292062327e-324",
                                  "2.4703282292062328e-324",
                                  "1e-323",
                                  "-1e-320",
                                  "1e-400",
                                  "-1e-400",
                                  "1e-99999999999",
                                  "1.7976931348623157e308",
                                  "-1.7976931348623157e308",
                                  "1.7976931348623158e308",
                                  "1.7976931348623159e308",
                                  "1e309",
                                  "-1e309",
                                  "1e400",
                                  "1e99999999999999999999",
                                  "3.4028235e38",
                                  "3.14159265358979323846264338327950288419716939937",
                                  "0.1000000000000000055511151231257827021181583404541015625",
                                  "1.00000000000000011102230246251565404",
                                  "1.00000000000000011102230246251565405",
                                  "4503599627370496.5",
                                  "6.02214076e23"};
  all.push_back(std::string(1000, '9'));
  all.push_back("0." + std::string(400, '0') + "1e100");
  all.push_back("1" + std::string(400, '0') + "e-400");
  tiny::Random random(2);
  for (int i = 0; i < 2000; i++) {
    char text[64];
    std::snprintf(text, sizeof text, "%.*ge%d", random.below(20) + 1, random.uniform(-10, 10), random.below(700) - 350);
    if (!std::strchr(text, 'e') || std::strchr(text, 'e') == std::strrchr(text, 'e')) all.push_back(text);
  }
  for (const std::string& text : all) {
    const double found = number_of(text), expected = std::strtod(text.c_str(), nullptr);
    EXPECT_EQ(load<uint64_t>(&found), load<uint64_t>(&expected)) << text << ": " << found << ", not " << expected;
  }
}

TEST(JsonReader, TooLargeNumbersAreInfinite) {
  EXPECT_EQ(number_of("1e309"), HUGE_VAL);
  EXPECT_EQ(number_of("-1e309"), -HUGE_VAL);
}

TEST(JsonReader, IgnoresLocale) {
  struct Comma : std::numpunct<char> {
    char do_decimal_point() const override { return ','; }
    char do_thousands_sep() const override { return '.'; }
    std::string do_grouping() const override { return "\3"; }
  };
  const std::locale before = std::locale::global(std::locale(std::locale(), new Comma));
  EXPECT_EQ(number_of("1.5"), 1.5);
  EXPECT_EQ(number_of("1234567.25"), 1234567.25);
  EXPECT_EQ(number_of("1.234"), 1.234);
  std::locale::global(before);
}

TEST(JsonReader, IntegersAreDigitsThatFit) {
  const auto integer = [](const std::string& text) {
    JsonDocument d;
    int64_t n = 77;
    EXPECT_TRUE(d.parse("t.json", text)) << d.error;
    const bool fits = d.root().integer(n);
    EXPECT_TRUE(fits || n == 77) << text;
    return fits ? std::to_string(n) : "";
  };
  for (const char* same : {"0", "1", "-1", "42", "2147483648", "9223372036854775807", "-9223372036854775808",
                           "9223372036854775800", "-9223372036854775799"})
    EXPECT_EQ(integer(same), same);
  EXPECT_EQ(integer("-0"), "0");
  for (const char* none : {"9223372036854775808", "-9223372036854775809", "9223372036854775810", "18446744073709551615",
                           "18446744073709551616", "99999999999999999999", "-99999999999999999999", "1.0", "1e2", "1E0",
                           "-0.0", "92233720368547758070"})
    EXPECT_EQ(integer(none), "") << none;
  EXPECT_EQ(integer(std::string(100000, '7')), "");
}

TEST(JsonReader, RejectsInvalidNumbers) {
  for (const char* bad : {"01",        "-01",  "00", "1.",  "-1.",  ".5",    "-.5",   "+1",  "1e",  "1e+",
                          "1e-",       "1.e5", "-",  "--1", "0x10", "1_000", "1,5",   "NaN", "nan", "Infinity",
                          "-Infinity", "inf",  "1d", "1f",  "0e",   "1.2.3", "1e5.0", "1 2", "- 1", "1e 5"}) {
    EXPECT_NE(error_of(bad), "") << bad;
    EXPECT_FALSE(Json::accept(bad)) << bad;
  }
  EXPECT_EQ(error_of("[1.x]"), "t.json:1:4: expected a digit, found 'x'");
  EXPECT_EQ(error_of("-"), "t.json:1:2: expected a digit, found the end");
}

// ---- Invalid documents ----

TEST(JsonReader, ReportsLineAndColumn) {
  const std::pair<const char*, const char*> all[] = {{" ", "1:2: expected a value, found the end"},
                                                     {" \n\t ", "2:3: expected a value, found the end"},
                                                     {"x", "1:1: expected a value, found 'x'"},
                                                     {"{\n  \"a\": x}", "2:8: expected a value, found 'x'"},
                                                     {"{\n\n  \"a\" 1}", "3:7: expected ':', found '1'"},
                                                     {"{a: 1}", "1:2: expected a key in quotes, found 'a'"},
                                                     {"{'a': 1}", "1:2: expected a key in quotes, found '''"},
                                                     {"{1: 1}", "1:2: expected a key in quotes, found '1'"},
                                                     {"{\"a\": 1,}", "1:9: expected a key in quotes, found '}'"},
                                                     {"{,}", "1:2: expected a key in quotes, found ','"},
                                                     {"{\"a\": 1 \"b\": 2}", "1:9: expected ',' or '}', found '\"'"},
                                                     {"{\"a\": }", "1:7: expected a value, found '}'"},
                                                     {"{\"a\": 1]", "1:8: expected ',' or '}', found ']'"},
                                                     {"[1, 2\n3]", "2:1: expected ',' or ']', found '3'"},
                                                     {"[1,]", "1:4: expected a value, found ']'"},
                                                     {"[,1]", "1:2: expected a value, found ','"},
                                                     {"[1}", "1:3: expected ',' or ']', found '}'"},
                                                     {"[\"abc", "1:6: expected '\"', found the end"},
                                                     {"tru", "1:4: expected true, found the end"},
                                                     {"[nul]", "1:5: expected null, found ']'"},
                                                     {"falsE", "1:5: expected false, found 'E'"},
                                                     {"True", "1:1: expected a value, found 'T'"},
                                                     {"\xEF\xBB\xBF{}", "1:1: expected a value, found byte 0xef"},
                                                     {"// no comments\n1", "1:1: expected a value, found '/'"},
                                                     {"[1] /* none */", "1:5: expected the end of the text, found '/'"},
                                                     {"{} {}", "1:4: expected the end of the text, found '{'"},
                                                     {"null\n\n,", "3:1: expected the end of the text, found ','"},
                                                     {"1]", "1:2: expected the end of the text, found ']'"},
                                                     {"truefalse", "1:5: expected the end of the text, found 'f'"}};
  for (const auto& [text, expected] : all) EXPECT_EQ(error_of(text), std::string("t.json:") + expected) << text;
  EXPECT_EQ(error_of(std::string("1\0", 2)), "t.json:1:2: expected the end of the text, found byte 0x00");
  EXPECT_EQ(error_of(std::string("\0", 1)), "t.json:1:1: expected a value, found byte 0x00");
  EXPECT_EQ(error_of(std::string("t\0", 2)), "t.json:1:2: expected true, found byte 0x00");
}

TEST(JsonReader, NamesFilesOfOtherKinds) {
  const std::pair<std::string, const char*> all[] = {
      {"", "an empty file"},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "a Git LFS pointer"},
      {"<!DOCTYPE html>\n<html>", "a web page (HTML)"},
      {std::string("PK\3\4", 4) + std::string(60, '\0'), "a zip archive"},
      {"\x1f\x8b\x08", "a compressed archive; unpack it first"},
      {std::string("GGUF\3\0\0\0", 8), "a GGUF file"}};
  for (const auto& [text, kind] : all)
    EXPECT_EQ(error_of(text).find("t.json: expected JSON, found " + std::string(kind)), 0u) << error_of(text);
}

TEST(JsonReader, RejectsEveryTruncation) {
  ASSERT_EQ(error_of(kSample), "");
  for (size_t n = 1; n < kSample.rfind('}'); n++) {
    const std::string error = error_of(kSample.substr(0, n));
    ASSERT_NE(error, "") << "cut at " << n;
    ASSERT_FALSE(Json::accept(kSample.substr(0, n)));
    const bool inside = error.find("expected UTF-8") != std::string::npos ||  // a partial character or
                        error.find("surrogates") != std::string::npos;        // a partial pair
    ASSERT_TRUE(inside || error.find("found the end") != std::string::npos) << "cut at " << n << ": " << error;
  }
}

TEST(JsonReader, LimitsNestingTo256) {
  EXPECT_EQ(error_of(array_of_depth(256)), "");
  EXPECT_EQ(error_of(array_of_depth(257)), "t.json:1:257: expected at most 256 levels, found '['");
  EXPECT_TRUE(Json::accept(array_of_depth(257))) << "nlohmann has no limit";
  for (const int depth : {10000, 1000000})
    for (const std::string& unit : {std::string("["), std::string("{\"a\":"), std::string("[{\"a\": ")}) {
      std::string text;
      for (int i = 0; i < depth; i++) text += unit;
      EXPECT_NE(error_of(text).find("expected at most 256 levels"), std::string::npos) << unit;
    }
  std::string objects = "1";
  for (int i = 0; i < 256; i++) objects = "{\"a\": " + objects + "}";
  EXPECT_EQ(error_of(objects), "");
  EXPECT_NE(error_of("[" + objects + "]"), "");
  std::string wide = "[[]";
  for (int i = 0; i < 10000; i++) wide += ",[]";
  EXPECT_EQ(error_of(wide + "]"), "") << "siblings are not levels";
}

TEST(JsonReader, ValueTakes16Bytes) { EXPECT_LE(sizeof(JsonNode), 16u); }

TEST(JsonReader, LimitsFileSize) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a.json", "[1, 2]");
  JsonDocument d;
  ASSERT_TRUE(d.parse_file(path, 6)) << d.error;
  EXPECT_EQ(d.root().at(1).where(), path + ":1:5");
  EXPECT_FALSE(d.parse_file(path, 5));
  EXPECT_EQ(d.error, path + ": expected at most 5 bytes, found 6");
  EXPECT_FALSE(d.parse_file(folder.file("none.json"), 5));
  EXPECT_EQ(d.error, folder.file("none.json") + ": No such file or directory");
  EXPECT_FALSE(d.parse_file(folder.path(), 5));
  EXPECT_EQ(d.error, folder.path() + ": expected a regular file, found a folder");
}

// ---- Members with checks ----

struct JsonMembers : testing::Test {
  JsonDocument d;
  std::string error;
  JsonValue root() {
    EXPECT_TRUE(
        d.parse("c.json",
                "{\"null\": null, \"yes\": true,\n \"n\": 7, \"x\": 2.5, \"huge\": 1e999, \"low\": -2147483648,\n"
                " \"s\": \"text\", \"list\": [1], \"object\": {}, \"big\": 4294967297, \"whole\": 7.0}"))
        << d.error;
    return d.root();
  }
};

TEST_F(JsonMembers, AreRead) {
  const JsonValue r = root();
  bool yes = false;
  std::string s;
  double x = 0, n = 0;
  int i = 0, low = 0;
  EXPECT_TRUE(r.get("yes", yes, error) && r.get("s", s, error) && r.get("x", x, error) && r.get("n", n, error));
  EXPECT_TRUE(r.get("n", 7, 7, i, error) && r.get("low", INT32_MIN, INT32_MAX, low, error));
  EXPECT_TRUE(yes && s == "text" && x == 2.5 && n == 7 && i == 7 && low == INT32_MIN);
  EXPECT_EQ(error, "");
}

TEST_F(JsonMembers, AbsentOrNullKeepDefault) {
  const JsonValue r = root();
  bool yes = true;
  std::string s = "before";
  double x = 1.5;
  int i = -3;
  for (const char* key : {"null", "none", ""})
    EXPECT_TRUE(r.get(key, yes, error) && r.get(key, s, error) && r.get(key, x, error) && r.get(key, 0, 9, i, error));
  EXPECT_TRUE(JsonValue().get("a", x, error));  // of an absent value
  EXPECT_TRUE(yes && s == "before" && x == 1.5 && i == -3);
  EXPECT_EQ(error, "");
}

TEST_F(JsonMembers, RejectsWrongKind) {
  const JsonValue r = root();
  bool yes;
  std::string s;
  double x;
  int i = 5;
  EXPECT_FALSE(r.get("n", yes, error));
  EXPECT_EQ(error, "c.json:2:7: \"n\": expected true or false, found 7");
  EXPECT_FALSE(r.get("x", s, error));
  EXPECT_EQ(error, "c.json:2:15: \"x\": expected a string, found 2.5");
  EXPECT_FALSE(r.get("list", s, error));
  EXPECT_EQ(error, "c.json:3:23: \"list\": expected a string, found an array");
  EXPECT_FALSE(r.get("s", x, error));
  EXPECT_EQ(error, "c.json:3:7: \"s\": expected a number, found \"text\"");
  EXPECT_FALSE(r.get("huge", x, error));
  EXPECT_EQ(error, "c.json:2:28: \"huge\": expected a finite number, found 1e999");
  for (const char* key : {"yes", "s", "list", "object", "x", "huge", "whole", "big", "low"}) {
    EXPECT_FALSE(r.get(key, 0, INT32_MAX, i, error)) << key;
    EXPECT_NE(error.find('"' + std::string(key) + "\": expected an integer from 0 to 2147483647, found "),
              std::string::npos)
        << error;
  }
  EXPECT_EQ(i, 5);
  EXPECT_FALSE(r.get("n", 8, 9, i, error));
  EXPECT_EQ(error, "c.json:2:7: \"n\": expected an integer from 8 to 9, found 7");
  EXPECT_FALSE(r.get("n", 0, 6, i, error));
}

TEST_F(JsonMembers, RejectsMissing) {
  const JsonValue r = root();
  EXPECT_TRUE(r.need("n", JsonKind::number, error) && r.need("list", JsonKind::array, error));
  EXPECT_FALSE(r.need("none", JsonKind::number, error));
  EXPECT_EQ(error, "c.json:1:1: \"none\": expected a number, found nothing");
  EXPECT_FALSE(r.need("null", JsonKind::object, error));
  EXPECT_EQ(error, "c.json:1:10: \"null\": expected an object, found null");
  EXPECT_FALSE(r.need("yes", JsonKind::array, error));
  EXPECT_EQ(error, "c.json:1:23: \"yes\": expected an array, found true");
}

// ---- Against nlohmann's reader ----

TEST(JsonAgainstNlohmann, AgreeOnDamagedDocuments) {
  const std::string pieces[] = {"\"",       "\\",   "{",    "}",       "[",
                                "]",        ",",    ":",    "0",       "-",
                                "e9",       ".",    "\\u",  "\\ud83d", "\xC3",
                                "\xF0\x9F", "true", "null", " ",       "\n",
                                "\t",       "1e5",  "{}",   "\"a\":",  std::string(1, '\0')};
  tiny::Random random(3);
  int accepted = 0;
  for (int i = 0; i < 12000; i++) {
    std::string text = kSample;
    for (int n = 1 + random.below(3); n > 0 && !text.empty(); n--) {
      const size_t at = size_t(random.below(int(text.size())));
      switch (random.below(5)) {
        case 0:
          text[at] = char(text[at] ^ 1 << random.below(8));
          break;
        case 1:
          text[at] = char(random.below(256));
          break;
        case 2:
          text.erase(at, size_t(1 + random.below(4)));
          break;
        case 3:
          text.insert(at, pieces[random.below(int(std::size(pieces)))]);
          break;
        default:
          text.insert(at, kSample.substr(size_t(random.below(int(kSample.size()))), size_t(random.below(30))));
      }
    }
    accepted += Json::accept(text);
    ASSERT_NO_FATAL_FAILURE(compare(text)) << "number " << i;
  }
  EXPECT_GT(accepted, 1000);
  EXPECT_LT(accepted, 11000);
}

TEST(JsonAgainstNlohmann, AgreeOnShortTexts) {
  const char alphabet[] = "[]{},:\"\\0-1.e+u \ntrfalsn";
  tiny::Random random(4);
  for (int i = 0; i < 30000; i++) {
    std::string text;
    for (int n = random.below(9); n > 0; n--) text += alphabet[random.below(int(sizeof alphabet) - 1)];
    ASSERT_NO_FATAL_FAILURE(compare(text));
  }
}

TEST(JsonAgainstNlohmann, IntendedDifferences) {
  EXPECT_EQ(error_of("[1e999]"), "") << "get() refuses it where a number is wanted";
  EXPECT_FALSE(Json::accept("[1e999]"));
  EXPECT_NE(error_of("\xEF\xBB\xBF[]"), "") << "RFC 8259, 8.1: a sender must not add a byte order mark";
  EXPECT_TRUE(Json::accept("\xEF\xBB\xBF[]"));
  EXPECT_NE(error_of(std::string("[]\0x", 4)), "");
  EXPECT_TRUE(Json::accept(std::string("[]\0x", 4)));
}

}  // namespace json_reader_test
