// Grammars in GBNF and JSON Schemas: no crash, bounded time and memory, and replies of tokens that follow the grammar.
#include "../../../apps/grammar/json_schema.hpp"
#include "../target.hpp"
#include "use_tokenizer.hpp"

namespace fuzz::grammar {

using namespace pocket;

// The bytes, and some pieces of several.
Tokenizer make_tokenizer() {
  Tokenizer::Vocabulary v;
  v.kind = Tokenizer::Kind::byte_level;
  for (int b = 0; b < 256; b++) v.pieces.push_back({std::string(1, char(b)), 0, Tokenizer::PieceType::normal});
  for (const char* text : {"{\"", "\":", "\", \"", "ab", "\xC3\xA9", "\xE2\x82", "12", "\n\n"})
    v.pieces.push_back({text, 0, Tokenizer::PieceType::normal});
  Tokenizer tokenizer;
  require(tokenizer.load(Tokenizer::to_blob(v)), "the tokenizer of this target is valid");
  return tokenizer;
}

void reply(const std::shared_ptr<const Grammar>& grammar, uint64_t seed) {
  static const Tokenizer tokenizer = make_tokenizer();
  static const auto vocabulary = std::make_shared<const Vocabulary>(tokenizer, tokenizer.size());
  const auto tokens = std::make_shared<TokenGrammar>(grammar, vocabulary, 1 << 19);
  Constraint constraint(tokens, {}, false);
  Sampler sampler({1.5f, 1, seed});
  const std::vector<float> logits(size_t(tokenizer.size()), 0.f);
  std::string text;
  for (int i = 0; i < 12 && !constraint.must_end(); i++) {
    const int id = sample_allowed(sampler, constraint, logits.data(), tokenizer.size());
    require(id >= 0, "grammar: a vocabulary with all bytes is never stuck, but for grammars with very many parses");
    text += vocabulary->text(id, false);
  }
  if (!constraint.can_end()) return;
  require(is_utf8(text), "grammar: a complete text is UTF-8");
  require(grammar->matches(text), "grammar: a complete text follows the grammar");
}

void run(std::string_view input) {
  std::string error;
  const bool json = !input.empty() && (input[0] == '{' || input[0] == 't');
  const auto grammar = json ? schema_grammar("schema", input, error) : parse_gbnf("grammar", input, error);
  require(!grammar == !error.empty(), "grammar: an error if and only if it is refused");
  if (grammar) reply(grammar, input.size());
}

std::vector<std::string> seeds() {
  return {
      "root ::= (\"a\" | [b-d\\n]+ x){1,3}\nx ::= \"(\" x? \")\" # nested\n",
      "root ::= [^\\\"\\x00-\\x1F]* \"\\\"\" . | \"\\u00e9\" ws\nws ::= | \" \" ws\n",
      "root ::= item+\nitem ::= \"- \" [^\\n]{2,200} \"\\n\"\n",
      R"({"type": "object", "properties": {"a": {"type": "integer", "minimum": -3, "maximum": 120}, "b": {"enum": ["x", 1]}},
              "required": ["a"], "additionalProperties": {"type": "number", "exclusiveMinimum": 0.5}})",
      R"({"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/t"},
              {"type": "string", "pattern": "^(a|\\d{2})+[^b-d]$"}]}, "maxItems": 3}}})",
      R"({"allOf": [{"type": ["string", "null"], "minLength": 1, "maxLength": 90}, {"title": "t"}]})",
      R"({"oneOf": [{"const": {"k": [1.5, true]}}, {"format": "date-time", "type": "string"}]})",
      R"({"prefixItems": [{}, true, false], "items": {"format": "uuid"}, "minItems": 1})"};
}

const Registered target({"grammar", run, seeds});

}  // namespace fuzz::grammar
