// grammar_test.cpp: grammars in GBNF, JSON Schema, and constrained output: against a plain backtracking matcher, against
// a check of every token, and with hostile grammars.
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <set>
#include <thread>

#include "../../apps/grammar/json_schema.hpp"
#include "../support/program.hpp"

namespace grammar_test {

using namespace pocket;

// splitmix64
struct Random {
  uint64_t state;
  uint64_t operator()(uint64_t n) {
    uint64_t z = state += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return (z ^ z >> 31) % n;
  }
};

std::shared_ptr<const Grammar> gbnf(const std::string& text) {
  std::string error;
  const auto grammar = parse_gbnf("g", text, error);
  EXPECT_TRUE(grammar) << error << "\n" << text;
  EXPECT_TRUE(error.empty());
  return grammar;
}
std::shared_ptr<const Grammar> schema(const std::string& text) {
  std::string error;
  const auto grammar = schema_grammar("s", text, error);
  EXPECT_TRUE(grammar) << error << "\n" << text;
  return grammar;
}
std::string gbnf_error(const std::string& text) {
  std::string error;
  EXPECT_FALSE(parse_gbnf("g", text, error)) << text.substr(0, 200);
  return error;
}
std::string schema_error(const std::string& text) {
  std::string error;
  EXPECT_FALSE(schema_grammar("s", text, error)) << text.substr(0, 200);
  return error;
}

// ---- GBNF ----

struct Texts {
  const char* grammar;
  std::vector<std::string> good, bad;
};

const char* const kArithmetic =
    "root  ::= (expr \"=\" ws term \"\\n\")+\n"
    "expr  ::= term ([-+*/] term)*\n"
    "term  ::= ident | num | \"(\" ws expr \")\" ws\n"
    "ident ::= [a-z] [a-z0-9_]* ws\n"
    "num   ::= [0-9]+ ws   # a comment\n"
    "ws    ::= [ \\t\\n]*\n";

TEST(Gbnf, MatchesTexts) {
  const std::vector<Texts> cases = {
      {"root ::= \"a\"", {"a"}, {"", "b", "aa"}},
      {"root ::= \"\"", {""}, {"a"}},
      {"root ::= | \"a\"", {"", "a"}, {"aa"}},
      {"root ::= \"a\" \"b\" | \"c\"", {"ab", "c"}, {"a", "abc"}},
      {"root ::=\n  # the first line is empty\n  \"a\" |\n  \"b\"\n\n", {"a", "b"}, {"ab"}},
      {"root ::= (\n \"a\"\n # inside\n \"b\" )\r\n", {"ab"}, {"a"}},
      {"root ::= x y_1\nx ::= \"x\"\ny_1 ::= \"y\"?", {"x", "xy"}, {"y"}},
      {"root ::= \"a\"?*?+? \"\"{0,8}{2,8}?", {"", "a", "aa"}, {"b"}},
      {"root ::= [a-c]{2}", {"ab", "cc"}, {"a", "abc", "ad"}},
      {"root ::= [a-c]{2,}", {"ab", "abcabc"}, {"a"}},
      {"root ::= ( \"ab\" | \"c\" ){1,3}", {"ab", "cc", "ababc"}, {"", "cccc", "a"}},
      {"root ::= \"a\"{0}", {""}, {"a"}},
      {"root ::= \"a\" {200}", {std::string(200, 'a')}, {std::string(199, 'a'), std::string(201, 'a')}},
      {"root ::= \"a\" {70,200} \"b\"",
       {std::string(70, 'a') + "b", std::string(129, 'a') + "b", std::string(200, 'a') + "b"},
       {std::string(69, 'a') + "b", std::string(201, 'a') + "b", "b"}},
      {"root ::= \"a\" {100,}", {std::string(100, 'a'), std::string(1000, 'a')}, {std::string(99, 'a')}},
      {"root ::= [^a-z\\n]+", {"A", "1é\xF0\x9F\x98\x80"}, {"a", "A\n", "\xFF", "\xED\xA0\x80"}},
      {"root ::= [\\]\\\\\\-x-]", {"]", "\\", "-", "x"}, {"y"}},
      {"root ::= [あ-ん]+ \"\\u3042\\x41\\U0001F600\"", {"かあA😀"}, {"あA😀", "アあA😀"}},
      {"root ::= . .", {"ab", "éß", "\n\n"}, {"a", "\xC3", "é"}},
      {"root ::= \"\\\"\\t\\n\\r\"", {"\"\t\n\r"}, {"\""}},
      {"root ::= \"(\" root \")\" | \"x\"",
       {"x", "((x))", std::string(200, '(') + "x" + std::string(200, ')')},
       {"((x)"}},
      {"root ::= \"a\" root | \"b\"", {"b", std::string(5000, 'a') + "b"}, {"a"}},
      {kArithmetic, {"a+1=2\n", "(x *( y_2 +10)) -3= z\n", "1=1\n2=2\n"}, {"1=\n", "1+=2\n", "a=(1\n"}},
  };
  for (const Texts& c : cases) {
    const auto grammar = gbnf(c.grammar);
    if (!grammar) continue;
    for (const std::string& text : c.good) EXPECT_TRUE(grammar->matches(text)) << c.grammar << "\n" << text;
    for (const std::string& text : c.bad) EXPECT_FALSE(grammar->matches(text)) << c.grammar << "\n" << text;
  }
}

TEST(Gbnf, RefusesInvalidGrammarsAndSaysWhere) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "g: expected a rule named 'root'"},
      {"a ::= \"a\"", "expected a rule named 'root'"},
      {"root ::= a", "g:1:10: rule 'a' is not defined"},
      {"root ::= \"a\"\nroot ::= \"b\"", "g:2:1: rule 'root' is defined twice"},
      {"root \"a\"", "g:1:6: expected ::=, found '\"'"},
      {"root ::= \"a", "g:1:12: expected \", found the end"},
      {"root ::= [a", "g:1:12: expected ], found the end"},
      {"root ::= []", "expected a character in brackets"},
      {"root ::= [b-a]", "expected a range"},
      {"root ::= (\"a\"", "expected ), found the end"},
      {"root ::= \"a\" )", "expected a symbol, | or the end of the line, found ')'"},
      {"root ::= *", "expected a symbol"},
      {"root ::= \"a\"{", "expected a number"},
      {"root ::= \"a\"{2,1}", "expected at least 2"},
      {"root ::= \"a\"{9999999}", "expected at most 1048576 repetitions"},
      {"root ::= \"\\q\"", "expected one of the escapes"},
      {"root ::= \"\\xZZ\"", "expected 2 hexadecimal digits, found 'Z'"},
      {"root ::= \"\\uD800\"", "expected a code point of Unicode"},
      {"root ::= \"\\U00110000\"", "expected a code point of Unicode"},
      {"root ::= \"\xFF\"", "g:1:11: expected UTF-8"},
      {"root ::= <think>", "g:1:10: tokens (<...>) are not supported"},
      {"root ::= !<[7]>", "tokens (<...>) are not supported"},
      {"root ::= root \"a\" | \"b\"", "rule 'root': left recursion"},
      {"root ::= a \"x\"\na ::= b? root | \"q\"\nb ::= \"z\"", "left recursion"},
      {"root ::= (root)* \"b\"", "left recursion"},
      {"root ::= \"(\" root \")\"", "g:1:1: rule 'root': no text is possible"},
      {"root ::= \"a\" | b\nb ::= \"b\" b", "g:2:1: rule 'b': no text is possible"},
  };
  for (const auto& [text, words] : cases)
    EXPECT_NE(gbnf_error(text).find(words), std::string::npos) << text << ": " << gbnf_error(text);
  const std::string deep = "root ::= \"a\"" + std::string(kDeepestExpression, '?');
  EXPECT_EQ(gbnf_error(deep),
            "g:1:1: rule 'root': expected at most 1024 nested groups, alternatives and repetitions, found more");
  EXPECT_TRUE(gbnf(deep.substr(0, deep.size() - 1)));
}

// Refused or accepted, but in little time and memory.
TEST(Gbnf, BoundsHostileGrammars) {
  std::string alternatives = "root ::= \"a0\"", nested, chain = "root ::= r0\n", twice = "root ::= r0\n",
              ambiguous = "root ::= r0\n";
  for (int i = 1; i < 1000000 && alternatives.size() < kLongestGrammar - 30; i++)
    alternatives += "|\"a" + std::to_string(i * 7919 % 1000000) + "\"";
  std::string many_rules = "root ::= b";
  for (int i = 0; many_rules.size() < kLongestGrammar - 30; i++) many_rules += "\nb" + std::to_string(i) + "::=c";
  std::string long_name(kLongestGrammar / 2, 'r'), empty_copies = "root ::= \"a\" \"\"";
  for (long_name += " ::= \"a\""; long_name.size() < kLongestGrammar - 30; long_name += "\"a\"{9}") {
  }
  for (int i = 0; i < 1000; i++) empty_copies += i % 2 ? "{2,8}" : "{0,8}";
  for (int i = 0; i < 1000; i++) nested += "(";
  for (int i = 0; i < 2000; i++) chain += "r" + std::to_string(i) + " ::= r" + std::to_string(i + 1) + " \"x\"\n";
  for (int i = 0; i < 40; i++) {
    const std::string next = "r" + std::to_string(i + 1);
    twice += "r" + std::to_string(i) + " ::= " + next + " " + next + "\n";
    ambiguous += "r" + std::to_string(i) + " ::= " + next + " \"a\" | " + next + " \"b\" | " + next + " [ab] [cd]\n";
  }
  const std::string cases[] = {
      alternatives,
      std::string(2 << 20, '#'),
      "root ::= " + nested + "\"a\"",
      chain + "r2000 ::= \"y\"",
      twice + "r40 ::= \"y\"?",
      ambiguous + "r40 ::= \"y\"*",
      "root ::= \"a\"{1000000}",
      "root ::= (((\"a\"{1000}){1000}){1000}){1000}",
      "root ::= ((((\"a\"?){0,1000}){0,1000}){0,1000}){0,1000}",
      "root ::= ((((\"a\"*)*)*)*)*",
      "root ::= ((\"\"){1000000}){1000000}",
      empty_copies,
      long_name + "\nroot ::= \"b\"",
      "root ::= \"a\"" + std::string(kLongestGrammar - 20, '?'),
      "root ::= \"a\"" + std::string(1000, '+'),
      "root ::= \"\"" + std::string(1000, '+'),
      "root ::= \"\"" + std::string(1000, '*'),
      "root ::= ([]]*){1000000} [^]]",
      "root ::= [ab]* \"a\" [ab]{3000}",
      "root ::= (. | .. | ... | \"a\")* \"x\" .{500}",
      many_rules,
      "root ::= a a a a a a a a\na ::= b b b b b b b b\nb ::= \"x\"? \"y\"? [xy]{0,9}",
  };
  for (const std::string& text : cases) {
    const auto start = std::chrono::steady_clock::now();
    std::string error;
    const auto grammar = parse_gbnf("g", text, error);
    EXPECT_EQ(!grammar, !error.empty());
    if (grammar) {
      EXPECT_LE(grammar->size(), kMostNodes);
      GrammarStates states(*grammar, 1 << 20);
      std::vector<int> path = {states.restore(states.start())};
      Random random{5};
      for (int i = 0; i < 300; i++) {
        const int next = states.next(path, uint8_t("axyb"[random(4)]));
        if (next >= 0) path[0] = next;
      }
      EXPECT_LT(states.bytes(), size_t(16) << 20) << text.substr(0, 100);
    }
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    EXPECT_LT(taken.count(), 60) << text.substr(0, 100);
  }
}

TEST(Gbnf, WritesManyAlternatives) {
  std::string text = "root ::= \"w0\"";
  for (int i = 1; i < 5000; i++) text += " | \"w" + std::to_string(i * i) + "\"";
  const auto grammar = gbnf(text);
  EXPECT_TRUE(grammar->matches("w24970009")) << "the last one, with one parse for all";
  EXPECT_FALSE(grammar->matches("w24970008"));
}

// ---- An independent matcher ----

// A random grammar without left recursion, as a tree.
struct Symbol {
  enum Kind { text, letters, rule, sequence, either, repeat } kind;
  std::string value;  // text; letters: all that are possible, each a character of UTF-8
  int number = 0;     // rule
  std::vector<Symbol> parts;
  int least = 0, most = 0;  // repeat; -1: any number
};
using Rules = std::vector<Symbol>;

std::vector<std::string> characters(const std::string& s) {
  std::vector<std::string> all;
  for (std::string_view rest = s; !rest.empty();) {
    const size_t n = tokenizer_detail::read_utf8(rest).length;
    all.emplace_back(rest.substr(0, n));
    rest.remove_prefix(n);
  }
  return all;
}

Symbol random_symbol(Random& random, int rules, int depth, bool first) {
  const char* const kLetters[] = {"a", "b", "ab", "é", "aé", "ß😀", "bcd"};
  Symbol s;
  switch (depth == 0 ? random(2) : random(6)) {
    case 0:
      s.kind = Symbol::text;
      s.value = kLetters[random(7)];
      break;
    case 1:
      s.kind = Symbol::letters;
      s.value = kLetters[random(7)];
      break;
    case 2:
      if (first) return random_symbol(random, rules, 0, first);
      s.kind = Symbol::rule;
      s.number = int(random(uint64_t(rules)));
      break;
    case 3:
      s.kind = Symbol::sequence;
      for (uint64_t n = 1 + random(3); n > 0; n--) {
        s.parts.push_back(random_symbol(random, rules, depth - 1, first));
        if (s.parts.back().kind == Symbol::text) first = false;
      }
      break;
    case 4:
      s.kind = Symbol::either;
      for (uint64_t n = 1 + random(3); n > 0; n--) s.parts.push_back(random_symbol(random, rules, depth - 1, first));
      break;
    default:
      s.kind = Symbol::repeat;
      s.parts.push_back(random_symbol(random, rules, depth - 1, first));
      s.least = int(random(3));
      s.most = random(3) == 0 ? -1 : s.least + int(random(3));
  }
  return s;
}

std::string to_gbnf(const Symbol& s) {
  std::string out;
  if (s.kind == Symbol::text) return "\"" + s.value + "\"";
  if (s.kind == Symbol::letters) return "[" + s.value + "]";
  if (s.kind == Symbol::rule) return s.number == 0 ? "root" : "r" + std::to_string(s.number);
  for (const Symbol& part : s.parts) out += (out.empty() ? "" : s.kind == Symbol::either ? " | " : " ") + to_gbnf(part);
  out = "(" + out + ")";
  if (s.kind == Symbol::repeat)
    out += "{" + std::to_string(s.least) + "," + (s.most < 0 ? "" : std::to_string(s.most)) + "}";
  return out;
}

// The ends of the matches from a position. Calls of rules are tried to a depth that no short text exceeds.
std::set<size_t> ends(const Rules& rules, const Symbol& s, const std::string& text, size_t at, int depth) {
  std::set<size_t> out;
  if (depth > 40) return out;
  switch (s.kind) {
    case Symbol::text:
      if (text.compare(at, s.value.size(), s.value) == 0) out.insert(at + s.value.size());
      break;
    case Symbol::letters:
      for (const std::string& c : characters(s.value))
        if (text.compare(at, c.size(), c) == 0) out.insert(at + c.size());
      break;
    case Symbol::rule:
      return ends(rules, rules[size_t(s.number)], text, at, depth + 1);
    case Symbol::either:
      for (const Symbol& part : s.parts) out.merge(ends(rules, part, text, at, depth));
      break;
    case Symbol::sequence:
      out = {at};
      for (const Symbol& part : s.parts) {
        std::set<size_t> next;
        for (const size_t from : out) next.merge(ends(rules, part, text, from, depth));
        out = next;
      }
      break;
    case Symbol::repeat: {
      std::set<size_t> now = {at};
      for (int n = 0; !now.empty(); n++) {
        if (n >= s.least) {
          const size_t before = out.size();
          out.insert(now.begin(), now.end());
          if (out.size() == before && n > s.least) break;
        }
        if (n == s.most) break;
        std::set<size_t> next;
        for (const size_t from : now) next.merge(ends(rules, s.parts[0], text, from, depth));
        now = next;
      }
    }
  }
  return out;
}

// A text of the symbol; false: it became too long.
bool derive(const Rules& rules, const Symbol& s, Random& random, int depth, std::string& out) {
  if (depth > 12 || out.size() > 40) return false;
  if (s.kind == Symbol::text) out += s.value;
  if (s.kind == Symbol::letters) {
    const auto all = characters(s.value);
    out += all[random(all.size())];
  }
  if (s.kind == Symbol::rule) return derive(rules, rules[size_t(s.number)], random, depth + 1, out);
  if (s.kind == Symbol::either) return derive(rules, s.parts[random(s.parts.size())], random, depth, out);
  if (s.kind == Symbol::sequence)
    for (const Symbol& part : s.parts)
      if (!derive(rules, part, random, depth, out)) return false;
  if (s.kind == Symbol::repeat)
    for (uint64_t n = uint64_t(s.least) + random(s.most < 0 ? 3 : uint64_t(s.most - s.least) + 1); n > 0; n--)
      if (!derive(rules, s.parts[0], random, depth, out)) return false;
  return true;
}

void mutate(Random& random, std::string& text) {
  const char kBytes[] = {'a', 'b', 'c', 'd', '\xC3', '\xA9', '\xF0'};
  const size_t at = random(text.size() + 1);
  if (random(2) && at < text.size()) text.erase(at, 1);
  if (random(2)) text.insert(at, 1, kBytes[random(7)]);
}

TEST(Gbnf, AgreesWithABacktrackingMatcher) {
  Random random{1};
  int grammars = 0, matched = 0, unmatched = 0;
  for (int i = 0; i < 600; i++) {
    Rules rules;
    for (int n = 1 + int(random(3)), k = 0; k < n; k++) rules.push_back(random_symbol(random, n, 3, true));
    std::string source, error;
    for (size_t k = 0; k < rules.size(); k++)
      source += (k == 0 ? "root" : "r" + std::to_string(k)) + " ::= " + to_gbnf(rules[k]) + "\n";
    const auto grammar = parse_gbnf("g", source, error);
    if (!grammar) {
      EXPECT_TRUE(error.find("left recursion") != error.npos || error.find("no text is possible") != error.npos)
          << error << source;
      continue;
    }
    grammars++;
    for (int k = 0; k < 20; k++) {
      std::string text;
      if (!derive(rules, rules[0], random, 0, text)) continue;
      ASSERT_TRUE(grammar->matches(text)) << source << "\n'" << text << "'";
      for (int m = 0; m < 4; m++) {
        mutate(random, text);
        const bool expected = ends(rules, rules[0], text, 0, 0).count(text.size()) > 0;
        (expected ? matched : unmatched)++;
        ASSERT_EQ(grammar->matches(text), expected) << source << "\n'" << text << "'";
      }
    }
  }
  EXPECT_GT(grammars, 200);
  EXPECT_GT(matched, 500);
  EXPECT_GT(unmatched, 500);
}

// ---- Tokens ----

Tokenizer load(const Tokenizer::Vocabulary& v) {
  Tokenizer tokenizer;
  EXPECT_TRUE(tokenizer.load(Tokenizer::to_blob(v))) << tokenizer.error;
  return tokenizer;
}

// 256 bytes, and words and punctuation as they occur in vocabularies of byte-level BPE, also with parts of characters.
Tokenizer byte_level_tokenizer() {
  Tokenizer::Vocabulary v;
  v.kind = Tokenizer::Kind::byte_level;
  v.pieces.push_back({"<|end|>", 0, Tokenizer::PieceType::control});
  for (int b = 0; b < 256; b++) v.pieces.push_back({std::string(1, char(b)), 0, Tokenizer::PieceType::normal});
  std::set<std::string> words = {"\":",   " \"",  "\": \"",   "\"}",       "},",   "]}",
                                 " true", "null", "\xC3\xA9", " \xE2\x82", "\n\n", "  "};
  Random random{3};
  const std::string letters = " abcdefghijklmnopqrstuvwxyz0123456789{}[],:\"\n.-\\";
  while (words.size() < 3000) {
    std::string word;
    for (uint64_t n = 2 + random(5); n > 0; n--) word += letters[random(letters.size())];
    words.insert(word);
  }
  for (const std::string& w : words) v.pieces.push_back({w, 0, Tokenizer::PieceType::normal});
  v.eos = 0;
  return load(v);
}

Tokenizer stories_tokenizer() {
  Model model;
  EXPECT_TRUE(model.open(POCKET_SOURCE_DIR "/models/stories.bin")) << model.error;
  Tokenizer tokenizer;
  EXPECT_TRUE(tokenizer.load(model.tokenizer_bytes())) << tokenizer.error;
  return tokenizer;
}

std::vector<std::shared_ptr<const Grammar>> some_grammars() {
  std::string error;
  return {
      gbnf("root ::= [a-z ]+ \".\" root?"),
      gbnf(kArithmetic),
      gbnf("root ::= .{3,100}"),
      json_grammar(JsonText::value, error),
      json_grammar(JsonText::object, error),
      schema(R"({"type": "object", "properties": {"name": {"type": "string", "maxLength": 100}, "n": {"type": "integer",
                  "minimum": -7, "maximum": 1234}, "tags": {"type": "array", "items": {"enum": ["é", "b\n", null]}}},
                  "required": ["n"], "additionalProperties": {"type": "number"}})")};
}

// A reply of tokens that are drawn from the allowed ones. Checks each mask against allows() of every token.
void check_reply(const Tokenizer& tokenizer, const std::shared_ptr<TokenGrammar>& tokens, const Grammar& grammar,
                 Random& random, bool chat) {
  const int n = tokenizer.size() + 3;  // some models have more logits than tokens
  Tokenizer::Stream stream(tokenizer);
  std::string before;
  if (!chat)
    for (const int id : tokenizer.encode("a", true)) before += printed_text(tokenizer, stream, id);
  Constraint constraint(tokens, {tokenizer.eos()}, at_text_start(tokenizer, stream));
  std::string text;
  for (int i = 0; i < 60 && !constraint.must_end(); i++) {
    std::vector<float> logits(size_t(n), 1.f);
    const bool any = constraint.mask(logits.data(), n);
    std::vector<int> allowed;
    for (int id = 0; id < n; id++) {
      ASSERT_EQ(logits[size_t(id)] == 1.f, constraint.allows(id)) << id << " after '" << text << "'";
      if (constraint.allows(id)) allowed.push_back(id);
    }
    ASSERT_EQ(any, !allowed.empty());
    ASSERT_FALSE(constraint.stuck());
    const int id = allowed[random(allowed.size())];
    const Constraint copy = constraint;
    ASSERT_TRUE(constraint.accept(id));
    ASSERT_TRUE(copy.allows(id)) << "a copy is not changed";
    if (id == tokenizer.eos()) break;
    text += printed_text(tokenizer, stream, id);
  }
  if (constraint.can_end()) {
    text += printed_rest(stream);
    EXPECT_TRUE(grammar.matches(text)) << "'" << text << "'";
  }
  EXPECT_FALSE(constraint.allows(-1));
}

TEST(Constraint, MasksEqualTheCheckOfEveryToken) {
  const Tokenizer tokenizers[] = {stories_tokenizer(), byte_level_tokenizer()};
  Random random{7};
  for (const Tokenizer& tokenizer : tokenizers) {
    const auto vocabulary = std::make_shared<const Vocabulary>(tokenizer, tokenizer.size() + 3);
    for (const auto& grammar : some_grammars())
      for (const size_t cache : {kGrammarCacheBytes, size_t(40000)}) {  // the small one drops states during a mask
        const auto tokens = std::make_shared<TokenGrammar>(grammar, vocabulary, cache);
        for (int i = 0; i < 3; i++) check_reply(tokenizer, tokens, *grammar, random, i % 2 == 0);
      }
  }
}

TEST(Constraint, KnowsTheSpaceThatSentencePieceAdds) {
  const Tokenizer tokenizer = stories_tokenizer();
  const auto vocabulary = std::make_shared<const Vocabulary>(tokenizer, tokenizer.size());
  const auto tokens = std::make_shared<TokenGrammar>(gbnf("root ::= \"the\""), vocabulary);
  Tokenizer::Stream stream(tokenizer);
  EXPECT_TRUE(at_text_start(tokenizer, stream));
  const std::vector<int> ids = tokenizer.encode("the", false);  // with the space
  Constraint at_start(tokens, {}, true), inside(tokens, {}, false);
  for (const int id : ids) EXPECT_TRUE(at_start.accept(id)) << tokenizer.piece(id);
  EXPECT_TRUE(at_start.must_end());
  EXPECT_FALSE(inside.allows(ids[0]));
  stream.push(ids[0]);
  EXPECT_FALSE(at_text_start(tokenizer, stream));
}

TEST(Constraint, EndsOnlyACompleteText) {
  const Tokenizer tokenizer = byte_level_tokenizer();
  const auto tokens = std::make_shared<TokenGrammar>(gbnf("root ::= \"a\" \"b\"?"),
                                                     std::make_shared<const Vocabulary>(tokenizer, tokenizer.size()));
  Constraint c(tokens, {tokenizer.eos()}, false);
  const auto id = [&](char byte) { return 1 + uint8_t(byte); };
  EXPECT_FALSE(c.can_end());
  EXPECT_FALSE(c.allows(tokenizer.eos()));
  EXPECT_FALSE(c.accept(id('b')));
  ASSERT_TRUE(c.accept(id('a')));
  EXPECT_TRUE(c.can_end());
  EXPECT_FALSE(c.must_end());
  EXPECT_TRUE(c.allows(tokenizer.eos()));
  Constraint ended = c;
  ASSERT_TRUE(ended.accept(tokenizer.eos()));
  EXPECT_TRUE(ended.must_end());
  EXPECT_FALSE(ended.allows(id('b')));
  ASSERT_TRUE(c.accept(id('b')));
  EXPECT_TRUE(c.must_end());
}

TEST(Constraint, IsStuckWithoutATokenForTheNextByte) {
  Tokenizer::Vocabulary v;
  v.kind = Tokenizer::Kind::byte_level;
  v.pieces = {{"a", 0, Tokenizer::PieceType::normal}, {"b", 0, Tokenizer::PieceType::normal}};
  const Tokenizer tokenizer = load(v);
  const auto tokens =
      std::make_shared<TokenGrammar>(gbnf("root ::= \"a\" [c-e]"), std::make_shared<const Vocabulary>(tokenizer, 2));
  Constraint c(tokens, {}, false);
  Sampler sampler({0});
  const float logits[] = {1, 2};
  EXPECT_EQ(sample_allowed(sampler, c, logits, 2), 0) << "b is likelier, but not allowed";
  EXPECT_TRUE(c.stuck());
  EXPECT_FALSE(c.must_end());
  EXPECT_EQ(sample_allowed(sampler, c, logits, 2), -1);
}

// The second pick shares out the probability of the tokens that are not allowed.
TEST(Constraint, SamplesFromTheAllowedTokens) {
  const Tokenizer tokenizer = byte_level_tokenizer();
  const int n = 257;
  const auto tokens =
      std::make_shared<TokenGrammar>(gbnf("root ::= [a-d]"), std::make_shared<const Vocabulary>(tokenizer, n));
  std::vector<float> logits(size_t(n), -2.f);
  for (int i = 0; i < 4; i++) logits[size_t(1 + 'a' + i)] = std::log(float(i + 1));
  int counts[4] = {};
  const int draws = 20000;
  Sampler sampler({1, 1, 11}), again({1, 1, 11});
  for (int i = 0; i < draws; i++) {
    Constraint c(tokens, {}, false), d(tokens, {}, false);
    const int id = sample_allowed(sampler, c, logits.data(), n);
    ASSERT_EQ(sample_allowed(again, d, logits.data(), n), id) << "the same seed";
    ASSERT_TRUE(id > 'a' && id <= 1 + 'd');
    counts[id - 1 - 'a']++;
  }
  for (int i = 0; i < 4; i++) {
    const double p = (i + 1) / 10.0, deviation = std::sqrt(draws * p * (1 - p));
    EXPECT_NEAR(counts[i], draws * p, 5 * deviation) << i;
  }
}

TEST(Constraint, SharesAGrammarBetweenThreads) {
  const Tokenizer tokenizer = byte_level_tokenizer();
  std::string error;
  const auto grammar = json_grammar(JsonText::object, error);
  const auto tokens =
      std::make_shared<TokenGrammar>(grammar, std::make_shared<const Vocabulary>(tokenizer, tokenizer.size()), 100000);
  const auto reply = [&](uint64_t seed) {
    Random random{seed};
    Constraint c(tokens, {0}, false);
    Sampler sampler({1.5f, 1, seed});
    std::vector<int> ids;
    while (ids.size() < 50 && !c.must_end()) {
      std::vector<float> logits(size_t(tokenizer.size()));
      for (float& l : logits) l = float(random(1000)) / 100;
      ids.push_back(sample_allowed(sampler, c, logits.data(), tokenizer.size()));
    }
    return ids;
  };
  std::vector<std::vector<int>> alone, together(6);
  for (uint64_t i = 0; i < 6; i++) alone.push_back(reply(i));
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 6; i++) threads.emplace_back([&, i] { together[i] = reply(i); });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(together, alone);
}

// ---- JSON Schema ----

TEST(JsonSchema, AcceptsAnyJson) {
  std::string error;
  const auto any = json_grammar(JsonText::value, error), object = json_grammar(JsonText::object, error);
  for (const char* text :
       {"null", "-0", "1.5e-7", "\"\\u00e9\\n/\"", "[]", "[1, [2],{}]", "{\"a\": {\n\"b\":[true,false]}}", "\"\""})
    EXPECT_TRUE(any->matches(text)) << text;
  for (const char* text : {"", "nul", "01", "+1", ".5", "1.", "\"", "\"\n\"", "\"\\x\"", "\"\\ud800\"", "[1,]", "{a:1}",
                           "{\"a\":}", "{\"a\":1}}", "[1   ]", "1234567890123456", "\"\xFF\""})
    EXPECT_FALSE(any->matches(text)) << text;
  EXPECT_TRUE(object->matches("{}"));
  EXPECT_FALSE(object->matches("[]"));
}

TEST(JsonSchema, AcceptsWhatASchemaDescribes) {
  const std::vector<Texts> cases = {
      {"{}", {"1", "[]"}, {"x"}},
      {"true", {"1"}, {""}},
      {R"({"type": ["integer", "null"]})", {"5", "null", "-12"}, {"1.5", "\"\""}},
      {R"({"const": {"a": [1, "x\""]}})", {R"({"a":[1,"x\""]})"}, {"{}", R"({"a":[1]})"}},
      {R"({"enum": ["a", 1, null, 1.5], "type": ["string", "integer"]})", {"\"a\"", "1"}, {"null", "1.5"}},
      {R"({"type": "string", "minLength": 2, "maxLength": 3})", {"\"ab\"", "\"é\\n😀\""}, {"\"a\"", "\"abcd\""}},
      {R"({"type": "string", "pattern": "^a+$"})", {"\"aaa\""}, {"\"\"", "\"ab\""}},
      {R"({"type": "string", "pattern": "b{2}|^c"})", {"\"xbby\"", "\"cat\""}, {"\"bab\"", "\"xc\""}},
      {R"({"pattern": "^(?:[^x\\W]{1,2}\\.|\\s\\S)$"})",
       {"\"ab.\"", "\" x\"", "\"\\t!\""},
       {"\"x.\"", "\"é.\"", "\"abc.\""}},
      {R"({"pattern": "^[\"\\\\]\\u0001?$"})", {R"("\"")", R"("\\\u0001")"}, {"\"a\""}},
      {R"({"format": "date"})",
       {"\"2024-02-28\"", "\"1999-12-31\""},
       {"\"2024-02-30\"", "\"2024-13-01\"", "\"2024-04-31\""}},
      {R"({"format": "time"})", {"\"23:59:59Z\"", "\"00:00:00.5+01:30\""}, {"\"24:00:00Z\"", "\"00:00:00\""}},
      {R"({"format": "uuid"})", {"\"123e4567-e89b-12d3-a456-426614174000\""}, {"\"123e4567\""}},
      {R"({"type": "integer", "minimum": -12, "exclusiveMaximum": 105})",
       {"-12", "-9", "0", "99", "104"},
       {"-13", "105", "007", "-0"}},
      {R"({"type": "integer", "minimum": 2.5, "maximum": 1e3})", {"3", "1000"}, {"2", "1001"}},
      {R"({"type": "integer", "exclusiveMinimum": 99})", {"100", "999999999999999"}, {"99"}},
      {R"({"type": "number", "minimum": 0.25, "maximum": 1})",
       {"0.25", "0.3", "0.99", "1", "1.00"},
       {"0.24", "1.01", "0", "2"}},
      {R"({"type": "number", "exclusiveMinimum": -1.5, "exclusiveMaximum": -0.125})",
       {"-1", "-0.2", "-0.126", "-1.49"},
       {"-1.5", "-0.125", "-0.1", "0"}},
      {R"({"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 2})",
       {"[null]", "[ null, null ]"},
       {"[]", "[null,null,null]"}},
      {R"({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": {"const": 3}})",
       {"[]", "[1]", "[1,2]", "[1,2,3,3]"},
       {"[2]", "[1,3]"}},
      {R"({"prefixItems": [{"const": 1}], "items": false, "minItems": 1})", {"[1]"}, {"[]", "[1,1]"}},
      {R"({"type": "array", "items": false})", {"[]"}, {"[1]"}},
      {R"({"type": "array", "maxItems": 0})", {"[]"}, {"[1]"}},
      {R"({"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}, "required": ["b"]})",
       {R"({"b":2})", R"({"a": 1,"b": 2,"c": 3})", R"({"b":2,"c":3})"},
       {"{}", R"({"a":1})", R"({"b":2,"a":1})", R"({"b":2,})", R"({"b":2,"d":1})"}},
      {R"({"type": "object", "properties": {"ab": {"const": 1}}, "additionalProperties": {"type": "null"}})",
       {"{}", R"({"ab":1})", R"({"a":null})", R"({"abc":null,"b":null})"},
       {R"({"ab":null})", R"({"x":1})"}},
      {R"({"required": ["x"]})", {R"({"x":[1]})", R"({"x":1,"y":2})"}, {"{}"}},
      {R"({"properties": {"a": false}})", {"{}"}, {R"({"a":1})"}},
      {R"({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 1}]})", {"1", "\"a\""}, {"\"ab\"", "null"}},
      {R"({"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]})",
       {R"({"a":1})", R"({"b":2})", R"({"a":1,"b":2})"},
       {"{}"}},
      {R"({"oneOf": [{"properties": {"k": {"const": "x"}}, "required": ["k"], "type": "object"},
                     {"properties": {"k": {"const": "y"}, "n": {"type": "null"}}, "required": ["k", "n"], "type": "object"}]})",
       {R"({"k":"x"})", R"({"k":"y","n":null})"},
       {R"({"k":"y"})"}},
      {R"({"allOf": [{"$ref": "#/$defs/a~1b"}, {"properties": {"y": {"type": "null"}}, "required": ["y"]}],
           "$defs": {"a/b": {"type": "object", "properties": {"x": {"type": "integer", "minimum": 1}}}}})",
       {R"({"y":null})", R"({"x":3,"y":null})"},
       {R"({"x":0,"y":null})", R"({"x":3})"}},
      {R"({"allOf": [{"type": "integer", "minimum": 3, "maximum": 50}, {"minimum": 7}, {"maximum": 8}]})",
       {"7", "8"},
       {"6", "9"}},
      {R"({"$ref": "#/definitions/tree", "definitions": {"tree": {"type": "object", "properties": {"v": {"type": "integer"},
           "c": {"type": "array", "items": {"$ref": "#/definitions/tree"}}}, "required": ["v"]}}})",
       {R"({"v":1})", R"({"v":1,"c":[{"v":2,"c":[]}]})"},
       {R"({"c":[]})"}},
      {R"({"title": "t", "description": "d", "$schema": "x", "$id": "y", "default": 1, "examples": [2], "type": "null"})",
       {"null"},
       {"1"}},
  };
  for (const Texts& c : cases) {
    const auto grammar = schema(c.grammar);
    if (!grammar) continue;
    for (const std::string& text : c.good) EXPECT_TRUE(grammar->matches(text)) << c.grammar << "\n" << text;
    for (const std::string& text : c.bad) EXPECT_FALSE(grammar->matches(text)) << c.grammar << "\n" << text;
  }
}

// Of each class, the ASCII characters that are in it in every language.
TEST(JsonSchema, NegatedClassesExcludeWholeSets) {
  const std::string visible =
                        "!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz"
                        "{|}~",
                    word = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz";
  const std::pair<const char*, std::string> cases[] = {{"[^\\\\S]", "\t\n\v\f\r "},
                                                       {"[^\\\\S\\n]", "\t\v\f\r "},
                                                       {"[^\\\\s]", visible},
                                                       {"[^\\\\s!-/:-~]", "0123456789"},
                                                       {"[^\\\\W]", word},
                                                       {"[^\\\\D]", "0123456789"},
                                                       {"[^\\\\W\\\\d_a-z]", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"},
                                                       {"[^\\\\w\\\\s!-/:-~]", ""}};
  for (const auto& [text, characters] : cases) {
    const auto grammar = schema("{\"pattern\": \"^a?" + std::string(text) + "?$\"}");
    ASSERT_TRUE(grammar);
    for (int c = 0; c < 0x80; c++) {
      constexpr std::string_view kShort = "\b\f\n\r\t\"\\", kLetters = "bfnrt\"\\";
      const size_t at = kShort.find(char(c));
      char escaped[8] = {char(c)};
      if (c < ' ') std::snprintf(escaped, sizeof escaped, "\\u%04x", unsigned(c));
      const std::string written = at == kShort.npos ? escaped : std::string("\\") + kLetters[at];
      const bool inside = characters.find(char(c)) != std::string::npos;
      EXPECT_EQ(grammar->matches("\"a" + written + "\""), inside) << text << " " << c;
    }
  }
}

TEST(JsonSchema, WritesNumbersAsTheSchemaHasThem) {
  for (const char* number : {"12345678901234567890", "12345678901234567890123", "9007199254740993", "-9007199254740993",
                             "-12345678901234567890"}) {
    EXPECT_TRUE(schema("{\"const\": " + std::string(number) + "}")->matches(number));
    EXPECT_TRUE(schema("{\"enum\": [0, " + std::string(number) + "]}")->matches(number));
  }
  EXPECT_TRUE(schema("{\"enum\": [-0.0, 7]}")->matches("0"));
  EXPECT_TRUE(schema("{\"const\": 1.0}")->matches("1"));
}

// What is written near a bound is on the right side of it, also if it has all digits of a double.
TEST(JsonSchema, BoundsAreExact) {
  Random random{7};
  const auto check = [](double low, double high) {
    char text[100];
    std::snprintf(text, sizeof text, R"({"type": "number", "minimum": %.17g, "exclusiveMaximum": %.17g})", low, high);
    const auto grammar = schema(text);
    if (!grammar) return;
    for (const double bound : {low, high})
      for (int decimals = 0; decimals <= 6; decimals++)
        for (int step = -1; step <= 1; step++) {
          char number[40];
          std::snprintf(number, sizeof number, "%.*f", decimals, bound + step * std::pow(10, -decimals));
          const double value = std::strtod(number, nullptr);
          if (number[0] == '-' && value == 0) continue;
          EXPECT_EQ(grammar->matches(number), value >= low && value < high) << text << " " << number;
        }
  };
  check(0.30000000000000004, 0.31000000000000005);
  for (int i = 0; i < 300; i++) {
    const double scale = std::pow(10, double(random(7)));
    const double low = (double(random(uint64_t(1) << 53)) / 9007199254740992.0 - 0.5) * scale;
    check(low, low + double(1 + random(1000)) / 300 * scale);
  }
}

TEST(JsonSchema, RefusesByNameAndPlace) {
  const std::pair<const char*, const char*> cases[] = {
      {"{", "s:1:2: expected a key in quotes"},
      {"[]", "s: #: expected an object, true or false, found an array"},
      {"false", "s: #: no text is possible"},
      {R"({"properties": {"a/b": {"multipleOf": 3}}})",
       "s: #/properties/a~1b/multipleOf: this keyword is not supported"},
      {R"({"items": {"not": {}}})", "s: #/items/not: this keyword is not supported"},
      {R"({"if": {}})", "#/if: this"},
      {R"({"uniqueItems": true})", "#/uniqueItems: this"},
      {R"({"patternProperties": {}})", "#/patternProperties: this"},
      {R"({"type": "str"})", "s: #/type: expected a type of JSON Schema"},
      {R"({"type": 3})", "#/type"},
      {R"({"minLength": -1})", "#/minLength: expected a natural number"},
      {R"({"minItems": 99999999})", "#/minItems: expected at most"},
      {R"({"minimum": "1"})", "#/minimum: expected a number"},
      {R"({"enum": 3})", "#/enum: expected an array"},
      {R"({"enum": ["a"], "maxLength": 3})", "#/maxLength: is not supported together with enum"},
      {R"({"pattern": "a", "maxLength": 3})", "only one is supported together"},
      {R"({"pattern": "(a"})", "#/pattern: expected )"},
      {R"-({"pattern": "(?=a)"})-", "#/pattern: expected (?:"},
      {R"({"pattern": "a\\b"})", "#/pattern: expected a supported escape"},
      {R"({"pattern": "(a)\\1"})", "#/pattern: expected a supported escape"},
      {R"({"pattern": "a^b"})", "#/pattern: expected no ^ here"},
      {R"({"pattern": "a{2,1}"})", "at least 2 as the most repetitions"},
      {R"({"format": "email"})", "#/format: expected date, time"},
      {R"({"items": [{}]})", "#/items: expected a schema, found an array; use prefixItems"},
      {R"({"anyOf": []})", "#/anyOf: expected an array of schemas"},
      {R"({"oneOf": [{"minimum": 3}, {"type": "integer"}]})", "#/oneOf: expected alternatives that differ"},
      {R"({"$ref": "http://x"})", "#/$ref: expected a JSON pointer"},
      {R"({"$ref": "#/nothing"})", "#/$ref: expected a JSON pointer"},
      {R"({"$ref": "#"})", "without end"},
      {R"({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}})", "end"},
      {R"({"anyOf": [{"$ref": "#"}, {"type": "null"}]})", "left recursion"},
      {R"({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}})", "no text is possible"},
      {R"({"allOf": [{"pattern": "a"}, {"pattern": "b"}]})",
       "#/allOf/1/pattern: is not supported in more than one part"},
      {R"({"const": 1e999})", "#/const"},
      {R"({"$defs": {"A": {"$id": "a", "$defs": {"B": {"type": "boolean"}}, "anyOf": [{"$ref": "#/$defs/B"}]},
          "B": {"type": "string", "maxLength": 2}}, "$ref": "#/$defs/A"})",
       "s: #/$defs/A/$id: this keyword is supported at the root only"},
      {R"({"items": {"$id": "a"}})", "s: #/items/$id: this keyword is supported at the root only"},
      {R"({"$defs": {"A": {"$id": "a", "$defs": {"B": {}}}}, "$ref": "#/$defs/A/$defs/B"})", "#/$defs/A/$id: this"},
      {R"({"oneOf": [{"const": {"a": 1, "b": 2}}, {"const": {"b": 2, "a": 1}}]})", "which may have a value in common"},
      {R"({"oneOf": [{"enum": [0, 5]}, {"enum": [-0.0, 7]}]})", "which may have a value in common"},
      {R"({"oneOf": [{"const": [1.0]}, {"const": [1]}]})", "which may have a value in common"},
  };
  for (const auto& [text, words] : cases)
    EXPECT_NE(schema_error(text).find(words), std::string::npos) << text << ": " << schema_error(text);
}

TEST(JsonSchema, BoundsHostileSchemas) {
  std::string values = R"({"enum": [0)", empty = "()", deep, combinations = R"({"allOf": [)",
              merged = R"({"allOf":[{"$ref":"#/$defs/a"},{"$ref":"#/$defs/b"}],"$defs":{)";
  for (int i = 0; i < 100; i++) empty = "(" + empty + (i % 2 ? "{2,8})" : "{0,8})");
  while (values.size() < kLongestGrammar - 20) values += "," + std::to_string(values.size());
  for (int i = 0; i < 250; i++) deep += R"({"items":)";
  for (int i = 0; i < 20; i++)
    combinations += std::string(i ? "," : "") + R"({"anyOf": [{"minimum": 1}, {"minimum": 2}, {"maximum": 9}]})";
  std::string properties = R"({"properties": {)", required = R"({"required": ["a")", alternatives = R"({"oneOf": [)";
  for (int i = 0; i < 70000; i++) properties += (i ? ",\"p" : "\"p") + std::to_string(i) + "\":{}";
  for (int i = 0; i < 70000; i++) required += ",\"p" + std::to_string(i) + "\"";
  for (int i = 0; i < 256; i++) alternatives += (i ? "," : "") + std::string(R"({"$ref": "#/$defs/a"})");
  properties += "}}";
  required += "]}";
  EXPECT_NE(schema_error(properties).find("#/properties: expected at most 4096 properties, found 70000"),
            std::string::npos);
  EXPECT_NE(schema_error(required).find("#/required: expected at most 4096 properties"), std::string::npos);
  alternatives += R"(], "$defs": {"a": )" + properties + "}}";
  merged +=
      R"("a":{"type":"object","properties":{"x":{"$ref":"#/$defs/b"},"y":{"$ref":"#/$defs/a"}}},)"
      R"("b":{"type":"object","properties":{"x":{"allOf":[{"$ref":"#/$defs/a"},{"$ref":"#/$defs/b"}]},"y":{"$ref":"#/$defs/b"}}}}})";
  const std::string cases[] = {
      values + "]}",
      deep + "{}" + std::string(250, '}'),
      combinations + "]}",
      merged,
      properties,
      required,
      alternatives,
      R"({"type": "string", "maxLength": 1000000, "minLength": 1000000})",
      R"({"pattern": "((((a*)*)*)*)*$"})",
      R"({"pattern": "^a)" + empty + R"($"})",
      R"({"pattern": "^(a|aa|aaa)*b.{2000}"})",
      R"({"pattern": "(((a{1000}){1000}){1000}){1000}"})",
      R"({"items": {"items": {"maxItems": 1000000, "items": {"maxItems": 1000000}}, "maxItems": 1000000}})"};
  for (const std::string& text : cases) {
    const auto start = std::chrono::steady_clock::now();
    std::string error;
    const auto grammar = schema_grammar("s", text, error);
    EXPECT_EQ(!grammar, !error.empty()) << text.substr(0, 100);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    EXPECT_LT(taken.count(), 60) << text.substr(0, 100);
  }
}

// ---- ./run ----

ProgramResult run(std::vector<std::string> args) {
  args.insert(args.begin(), {POCKET_RUN, POCKET_SOURCE_DIR "/models/stories.bin", "-q"});
  return run_program(args);
}

TEST(RunConstrained, WritesAText) {
  const TemporaryFolder folder;
  const std::string grammar = folder.write("yes.gbnf", "root ::= (\"yes\" | \"no\") \".\"\n"),
                    draft = POCKET_SOURCE_DIR "/models/stories.bin",
                    person = folder.write("person.json", R"({"type": "object", "properties": {
      "name": {"type": "string", "maxLength": 9}, "age": {"type": "integer"}}, "required": ["name", "age"]})");
  for (const char* seed : {"1", "2", "3"}) {
    const ProgramResult r = run({"-s", seed, "-t", "1.5", "-i", "Is it", "--grammar", grammar});
    EXPECT_EQ(r.status, 0) << r.err;
    EXPECT_TRUE(r.out == "Is ityes." || r.out == "Is itno.") << r.out;
    const ProgramResult json = run({"-s", seed, "-t", "1.5", "-i", "Is it", "--schema", person});
    EXPECT_EQ(json.status, 0) << json.err;
    std::string error;
    EXPECT_TRUE(schema_grammar("s", read_file(person), error)->matches(json.out.substr(5))) << json.out;
    EXPECT_EQ(run({"-s", seed, "-t", "1.5", "-i", "Is it", "--schema", person, "--lookup"}).out, json.out);
    EXPECT_EQ(run({"-s", seed, "-t", "1.5", "-i", "Is it", "--schema", person, "--draft", draft}).out, json.out);
  }
}

TEST(RunConstrained, ReportsATextThatIsNotComplete) {
  const TemporaryFolder folder;
  const std::string grammar = folder.write("long.gbnf", "root ::= [a-z]{300}\n"),
                    bad = folder.write("bad.gbnf", "root ::= [a-z");
  const ProgramResult r = run({"-s", "1", "-n", "5", "-i", "It", "--grammar", grammar});
  EXPECT_EQ(r.status, 1);
  EXPECT_GT(r.out.size(), 2u);
  EXPECT_NE(r.err.find("not complete by the grammar; it was ended by: tokens"), std::string::npos) << r.err;
  const ProgramResult refused = run({"--grammar", bad});
  EXPECT_EQ(refused.status, 1);
  EXPECT_EQ(refused.out, "");
  EXPECT_NE(refused.err.find("bad.gbnf:1:14"), std::string::npos) << refused.err;
  EXPECT_EQ(run({"--grammar", grammar, "--schema", bad}).status, 2);
  EXPECT_EQ(run({"--schema", folder.file("missing.json")}).status, 1);
}

}  // namespace grammar_test
