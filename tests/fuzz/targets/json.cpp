// JSON texts: no crash, and the same document as nlohmann/json.
#include <nlohmann/json.hpp>

#include "../../../export/json_reader.hpp"
#include "../target.hpp"

namespace fuzz::json {

using namespace pocket;
using Oracle = nlohmann::json;

void compare_number(const JsonValue& ours, const Oracle& theirs) {
  require(theirs.is_number() && ours.number() == theirs.get<double>(), "JSON: the same number");
  const bool fits =
      theirs.is_number_integer() && !(theirs.is_number_unsigned() && theirs.get<uint64_t>() > uint64_t(INT64_MAX));
  int64_t integer = 0;
  require(ours.integer(integer) == fits && (!fits || integer == theirs.get<int64_t>()), "JSON: the same integer");
}

void compare(const JsonValue& ours, const Oracle& theirs) {
  if (ours.is(JsonKind::null)) require(theirs.is_null(), "JSON: null");
  if (ours.is(JsonKind::boolean)) require(theirs == ours.boolean(), "JSON: the same boolean");
  if (ours.is(JsonKind::number)) compare_number(ours, theirs);
  if (ours.is(JsonKind::string)) require(theirs == ours.string(), "JSON: the same string");
  if (ours.is(JsonKind::array)) {
    require(theirs.is_array() && theirs.size() == ours.size(), "JSON: the same elements");
    size_t i = 0;
    for (const JsonValue& element : ours.elements()) compare(element, theirs[i++]);
  }
  if (ours.is(JsonKind::object)) {
    require(theirs.is_object() && theirs.size() <= ours.size(), "JSON: the same members");
    for (const auto& [key, value] : ours.members()) compare(ours.find(key), theirs.at(key));
  }
}

// Whether a number is too large for a double, which nlohmann/json rejects.
bool has_infinity(const JsonValue& value) {
  bool found = !std::isfinite(value.number());
  for (const JsonValue& element : value.elements()) found = found || has_infinity(element);
  for (const auto& [key, member] : value.members()) found = found || has_infinity(member);
  return found;
}

int depth(std::string_view text) {
  int now = 0, most = 0;
  for (char c : text) most = std::max(most, now += (c == '[' || c == '{') - (c == ']' || c == '}'));
  return most;
}

void run(std::string_view input) {
  JsonDocument document;
  const bool accepted = document.parse("text", std::string(input));
  require(accepted == document.error.empty(), "JSON: an error if and only if the text is rejected");
  // nlohmann/json skips a byte order mark, and ends at a zero byte.
  if (input.find('\0') != input.npos || input.substr(0, 3) == "\xEF\xBB\xBF" || depth(input) > kJsonDepth) return;
  const Oracle oracle = Oracle::parse(input, nullptr, false);
  if (!accepted) return require(oracle.is_discarded(), "JSON: rejects only what is invalid");
  if (has_infinity(document.root())) return;
  require(!oracle.is_discarded(), "JSON: accepts only what is valid");
  compare(document.root(), oracle);
}

std::vector<std::string> seeds() {
  return {R"({"a": [1, -2.5e3, true, null, "x\n\u00e9\ud83d\ude00"], "b": {}, "a": 0})",
          R"([[[]], {"k": {"k": 9223372036854775807}}, 1E400, "\"", -0])", " \"\xC3\xA9\" "};
}

const Registered target({"json", run, seeds});

}  // namespace fuzz::json
