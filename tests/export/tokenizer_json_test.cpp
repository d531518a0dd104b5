// tokenizer_json_test.cpp: tokenizer.json of byte-level BPE and of converted SentencePiece models, made here. Settings
// are read or rejected by name; expected encodings are worked out by hand (tokenizer_test.cpp has vectors of the real
// libraries).
#include "../../export/tokenizer_json.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "../support/tiny_model.hpp"

namespace tokenizer_json_test {

using namespace pocket;
using Json = nlohmann::ordered_json;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// Tokens <|end|> (special), a, b, c, ab, abc, a space, " a".
Json small() {
  return {
      {"version", "1.0"},
      {"added_tokens", {{{"id", 0}, {"content", "<|end|>"}, {"special", true}, {"lstrip", false}, {"rstrip", false}}}},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"post_processor", {{"type", "ByteLevel"}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"vocab", {{"<|end|>", 0}, {"a", 1}, {"b", 2}, {"c", 3}, {"ab", 4}, {"abc", 5}, {"\u0120", 6}, {"\u0120a", 7}}},
        {"merges", {"a b", "ab c", "\u0120 a"}}}}};
}

constexpr int kTokens = 8;

/// A tokenizer.json that has been read.
struct Read {
  Tokenizer::Vocabulary v;
  std::string error;

  explicit Read(const std::string& text, int vocab_size = kTokens) {
    const bool ok = read_tokenizer_json("t.json", text, vocab_size, v, error);
    EXPECT_EQ(ok, error.empty()) << error;
    EXPECT_TRUE(ok || error.rfind("t.json:", 0) == 0) << error;
  }
  explicit Read(const Json& json) : Read(json.dump()) {}

  std::vector<int> encode(const std::string& text) {
    Tokenizer tokenizer;
    EXPECT_TRUE(tokenizer.load(Tokenizer::to_blob(v))) << tokenizer.error;
    return tokenizer.encode(text);
  }
};

std::string error_of(const Json& json) { return Read(json).error; }
std::string with(const char* pointer, const Json& value) {
  Json json = small();
  json[Json::json_pointer(pointer)] = value;
  return error_of(json);
}
std::string without(const char* parent, const char* key) {
  Json json = small();
  json[Json::json_pointer(parent)].erase(key);
  return error_of(json);
}

using Ids = std::vector<int>;

// ---- Byte-level BPE ----

TEST(TokenizerJson, EncodesAsExpected) {
  Read r(small());
  ASSERT_EQ(r.error, "");
  EXPECT_EQ(r.encode("abc"), (Ids{5}));
  EXPECT_EQ(r.encode("abab"), (Ids{4, 4}));
  EXPECT_EQ(r.encode("ba"), (Ids{2, 1}));
  EXPECT_EQ(r.encode("b abc"), (Ids{2, 6, 5})) << "the merge of the lowest rank comes first, not the leftmost";
  EXPECT_EQ(r.encode("b ac"), (Ids{2, 7, 3})) << "a space belongs to the following word";
  EXPECT_EQ(r.encode("<|end|>"), Ids{}) << "text never becomes a control token, and these bytes have no tokens";
  EXPECT_EQ(r.v.pieces[0].type, Tokenizer::PieceType::control);
  EXPECT_EQ(r.v.pieces[6].text, " ");
  EXPECT_EQ(r.v.split, Tokenizer::Split::gpt2);
}

TEST(TokenizerJson, ReadsBothSpellingsOfMerges) {
  Json json = small();
  json["model"]["merges"] = Json::parse(R"([["a", "b"], ["ab", "c"], ["\u0120", "a"]])");
  const Read pairs(json), strings(small());
  ASSERT_EQ(pairs.error, "");
  EXPECT_EQ(pairs.v.merges, strings.v.merges);
  EXPECT_EQ(pairs.v.merges, (std::vector<std::pair<int, int>>{{1, 2}, {4, 3}, {6, 1}}));
}

TEST(TokenizerJson, ReadsAddedTokens) {
  Json json = small();
  json["added_tokens"].push_back({{"id", 9}, {"content", "<|pad|>"}, {"special", true}, {"lstrip", true}});
  json["added_tokens"].push_back({{"id", 10}, {"content", "New York"}, {"special", false}});
  Read r(json.dump(), 12);
  ASSERT_EQ(r.error, "");
  ASSERT_EQ(r.v.pieces.size(), 11u);
  EXPECT_EQ(r.v.pieces[8].type, Tokenizer::PieceType::unused) << "a hole";
  EXPECT_EQ(r.v.pieces[9].type, Tokenizer::PieceType::control);
  EXPECT_EQ(r.v.pieces[10].type, Tokenizer::PieceType::added_normalized);
  EXPECT_EQ(Read(json).v.pieces.size(), 8u) << "the model has no rows for them";
  json["added_tokens"][2]["single_word"] = true;
  EXPECT_EQ(Read(json.dump(), 12).error, "t.json: token \"New York\": single_word: expected false, found true");
  json["added_tokens"][2] = {{"id", 9}, {"content", "other"}};
  EXPECT_TRUE(contains(Read(json.dump(), 12).error, "token 9: expected one text, found \"<|pad|>\" and \"other\""));
}

TEST(TokenizerJson, ReadsKnownPreTokenizers) {
  const Json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  const Json digits = {{"type", "Digits"}, {"individual_digits", true}};
  Json json = small();
  json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {digits, bytes}}};
  EXPECT_EQ(Read(json).v.split, Tokenizer::Split::smollm);
  json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {bytes}}};
  EXPECT_EQ(Read(json).v.split, Tokenizer::Split::gpt2);
  json["pre_tokenizer"]["pretokenizers"] = {
      {{"type", "Split"},
       {"pattern",
        {{"Regex",
          "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
          "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}}},
       {"behavior", "Isolated"},
       {"invert", false}},
      {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}};
  EXPECT_EQ(Read(json).v.split, Tokenizer::Split::llama3);
  json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\w+";
  EXPECT_TRUE(contains(Read(json).error, "Tekken, DeepSeek or Falcon, found Split(\\w+"));
}

TEST(TokenizerJson, ReadsPreTokenizersOfEachModel) {
  using Split = Tokenizer::Split;
  const auto isolated = [](const std::string& pattern) -> Json {
    return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  };
  const auto matches = [](const std::string& pattern) -> Json {
    return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Removed"}, {"invert", true}};
  };
  const Json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  const Json words = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  const Json digits = {{"type", "Digits"}, {"individual_digits", true}};
  const Json east = isolated(split_pattern::kEastAsian);
  const std::tuple<Split, Json> all[] = {
      {Split::none, Json::array({bytes})},
      {Split::qwen2, {isolated(split_pattern::kQwen2), bytes}},
      {Split::qwen35, {isolated(split_pattern::kQwen35), bytes}},
      {Split::llama3, {matches(split_pattern::kLlama3), bytes}},
      {Split::gpt4o, {isolated(split_pattern::kGpt4o), bytes}},
      {Split::gpt4o, {matches(split_pattern::kGpt4o), bytes}},
      {Split::tekken, {isolated(split_pattern::kTekken), bytes}},
      {Split::deepseek_coder,
       {isolated("[\r\n]"), isolated("\\s?\\p{L}+"), isolated("\\s?\\p{P}+"), east, digits, bytes}},
      {Split::deepseek_coder,
       {isolated("[\\r\\n]"), isolated("\\s?\\p{L}+"), isolated("\\s?\\p{P}+"), east, digits, bytes}},
      {Split::deepseek_llm,
       {isolated("[\r\n]"), isolated(split_pattern::kDeepSeekLetters), isolated(split_pattern::kDeepSeekSigns),
        isolated("\\s+$"), east, digits, bytes}},
      {Split::deepseek_v3,
       {isolated("\\p{N}{1,3}"), isolated(split_pattern::kHanOrKana), isolated(split_pattern::kDeepSeekV3), bytes}},
      {Split::falcon,
       {{{"type", "Punctuation"}, {"behavior", "Contiguous"}},
        words,
        {{"type", "Digits"}, {"individual_digits", false}},
        isolated("[0-9][0-9][0-9]")}}};
  Json json = small();
  for (const auto& [split, steps] : all) {
    json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", steps}};
    const Read r(json);
    EXPECT_EQ(r.error, "") << steps;
    EXPECT_EQ(r.v.split, split) << steps;
  }
  json["pre_tokenizer"]["pretokenizers"] = {matches("\\p{L}+"), bytes};
  EXPECT_TRUE(contains(Read(json).error, "found Split(\\p{L}+, Removed, invert=true)")) << "removes text";
  json["pre_tokenizer"]["pretokenizers"] = {isolated("\\s?\\p{L}+"), isolated("[\r\n]"), bytes};
  EXPECT_TRUE(contains(Read(json).error, "found Split(\\s?\\p{L}+, Isolated")) << "another order";
}

TEST(TokenizerJson, ReadsNormalizers) {
  Json json = small();
  EXPECT_FALSE(Read(json).v.nfc);
  json["normalizer"] = {{"type", "NFC"}};
  EXPECT_TRUE(Read(json).v.nfc);
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
  EXPECT_TRUE(Read(json).v.nfc);
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array()}};
  Read none(json);
  EXPECT_EQ(none.error, "");
  EXPECT_FALSE(none.v.nfc);
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}, {{"type", "Lowercase"}}}}};
  EXPECT_TRUE(contains(Read(json).error, "\"type\": expected NFC, or no normalizer, found \"Lowercase\""));
}

// As the library: text is bytes, none of which is written as this character; decoding writes it as it is.
TEST(TokenizerJson, TokensThatAreNoBytesCanOnlyBeDecoded) {
  Json json = small();
  json["model"]["vocab"]["\u200D"] = 8;
  json["model"]["vocab"]["a\u4e2d"] = 9;
  json["model"]["ignore_merges"] = true;
  Read r(json.dump(), 10);
  ASSERT_EQ(r.error, "");
  EXPECT_EQ(r.encode("a\u4e2d"), std::vector<int>{1}) << "the small vocabulary has no piece for these bytes";
  Tokenizer tokenizer;
  ASSERT_TRUE(tokenizer.load(Tokenizer::to_blob(r.v)));
  EXPECT_EQ(tokenizer.decode({9, 8, 2}), "a\u4e2d\u200Db");
}

TEST(TokenizerJson, TokenBeforeTextIsBos) {
  Json json = small();
  json["post_processor"] = {{"type", "TemplateProcessing"},
                            {"single", {{{"SpecialToken", {{"id", "<|end|>"}}}}, {{"Sequence", {{"id", "A"}}}}}}};
  Read r(json);
  ASSERT_EQ(r.error, "");
  EXPECT_EQ(r.encode("ab"), (Ids{0, 4}));
  json["post_processor"]["single"][0]["SpecialToken"]["id"] = "<|none|>";
  EXPECT_TRUE(contains(error_of(json), "\"id\": expected a token of the vocabulary, found \"<|none|>\""));
  const Json token = json["post_processor"]["single"][0];
  json["post_processor"]["single"] = {token, token};
  EXPECT_TRUE(contains(error_of(json), "\"single\": expected one token before the text"));
  EXPECT_TRUE(
      contains(with("/post_processor", {{"type", "BertProcessing"}}), "\"type\": expected \"TemplateProcessing\""));
}

// The same token, with the settings and ids of tokenizers 0.22.2.
TEST(TokenizerJson, CutsOutAddedTokensLikeTheLibrary) {
  const char* texts[] = {"ab<x y>a", "a <x y> a", "<x y>a", "a\t<x y>\n a"};
  const std::pair<const char*, std::vector<Ids>> all[] = {
      {"{}", {{4, 8, 1}, {1, 6, 8, 7}, {8, 1}, {1, 8, 7}}},
      {R"({"normalized": true})", {{4, 8, 1}, {1, 6, 8, 7}, {8, 1}, {1, 8, 7}}},
      {R"({"lstrip": true})", {{4, 8, 1}, {1, 8, 7}, {8, 1}, {1, 8, 7}}},
      {R"({"rstrip": true})", {{4, 8, 1}, {1, 6, 8, 1}, {8, 1}, {1, 8, 1}}},
      {R"({"lstrip": true, "rstrip": true, "normalized": true})", {{4, 8, 1}, {1, 8, 1}, {8, 1}, {1, 8, 1}}}};
  for (const auto& [settings, ids] : all) {
    Json json = small(), token = {{"id", 8}, {"content", "<x y>"}, {"normalized", false}};
    token.update(Json::parse(settings));
    json["added_tokens"].push_back(token);
    Read r(json.dump(), 300);
    ASSERT_EQ(r.error, "");
    for (int i = 0; i < 4; i++) EXPECT_EQ(r.encode(texts[i]), ids[size_t(i)]) << settings << texts[i];
  }
}

TEST(TokenizerJson, LeavesOutMergesThatFormAnAddedToken) {
  Json json = small();
  json["added_tokens"].push_back({{"id", 5}, {"content", "abc"}, {"special", false}});
  Read r(json);
  ASSERT_EQ(r.error, "");
  EXPECT_EQ(r.encode("aabcab"), (Ids{1, 5, 4}));
  EXPECT_EQ(r.v.merges.size(), 2u);
}

// ---- SentencePiece ----

/// <unk> 0, <s> 1, </s> 2, the space 3, a 4, b 5, c 6, ab 7, bc 8, "_a" 9, "__" 10, abc 11, and without bytes.
Json small_sentencepiece() {
  const auto special = [](int id, const char* text) {
    return Json{{"id", id}, {"content", text}, {"special", true}, {"normalized", false}};
  };
  const Json prepend = {{"type", "Prepend"}, {"prepend", "\u2581"}};
  const Json replace = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}};
  Json json = {{"added_tokens", {special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")}},
               {"normalizer", {{"type", "Sequence"}, {"normalizers", {prepend, replace}}}},
               {"pre_tokenizer", nullptr},
               {"post_processor",
                {{"type", "TemplateProcessing"},
                 {"single", {{{"SpecialToken", {{"id", "<s>"}}}}, {{"Sequence", {{"id", "A"}}}}}}}},
               {"decoder",
                {{"type", "Sequence"},
                 {"decoders",
                  {{{"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}},
                   {{"type", "ByteFallback"}},
                   {{"type", "Fuse"}},
                   {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
               {"model",
                {{"type", "BPE"},
                 {"unk_token", "<unk>"},
                 {"fuse_unk", true},
                 {"byte_fallback", false},
                 {"vocab", Json::object()},
                 {"merges", {"b c", "a b", "\u2581 a", "ab c", "a bc", "\u2581 \u2581"}}}}};
  int id = 0;
  for (const char* text :
       {"<unk>", "<s>", "</s>", "\u2581", "a", "b", "c", "ab", "bc", "\u2581a", "\u2581\u2581", "abc"})
    json["model"]["vocab"][text] = id++;
  return json;
}

Read sentencepiece_with(const char* pointer, const Json& value) {
  Json json = small_sentencepiece();
  json[Json::json_pointer(pointer)] = value;
  return Read(json.dump(), 300);
}

TEST(SentencePieceJson, EncodesAsExpected) {
  Read r(small_sentencepiece().dump(), 300);
  ASSERT_EQ(r.error, "");
  EXPECT_EQ(r.encode(""), (Ids{1}));
  EXPECT_EQ(r.encode("abc"), (Ids{1, 9, 8})) << "bc, then _a";
  EXPECT_EQ(r.encode("babc"), (Ids{1, 3, 5, 11})) << "bc, then a joins it";
  EXPECT_EQ(r.encode(" ab"), (Ids{1, 10, 7})) << "its own space and the added one";
  EXPECT_EQ(r.encode("bxyb"), (Ids{1, 3, 5, 0, 5})) << "one unknown token for several characters";
  EXPECT_EQ(r.encode("<s>"), (Ids{1, 3, 0})) << "text never becomes a control token";
  EXPECT_EQ(r.v.unk_surface, " \u2047 ");
  EXPECT_EQ(r.v.unk, 0);
  EXPECT_EQ(r.v.bos, 1);
  EXPECT_EQ(r.v.eos, 2);
  EXPECT_EQ(r.v.pieces[0].type, Tokenizer::PieceType::unknown);
  EXPECT_EQ(r.v.pieces[1].type, Tokenizer::PieceType::control);
  EXPECT_TRUE(r.v.merges.empty());
}

// The merges of a piece have consecutive ranks; pieces with interleaved ranks have equal scores.
TEST(SentencePieceJson, DerivesScoresFromMergeRanks) {
  const auto score = [](const Read& r, int id) { return r.v.pieces[size_t(id)].score; };
  const Read apart(small_sentencepiece().dump(), 300);
  EXPECT_GT(score(apart, 8), score(apart, 7));
  EXPECT_GT(score(apart, 7), score(apart, 9));
  EXPECT_GT(score(apart, 9), score(apart, 11));
  EXPECT_GT(score(apart, 11), score(apart, 10));
  const Read mixed = sentencepiece_with("/model/merges", {"ab c", "b c", "a b", "a bc", "\u2581 a", "\u2581 \u2581"});
  ASSERT_EQ(mixed.error, "");
  EXPECT_TRUE(score(mixed, 11) == score(mixed, 8) && score(mixed, 8) == score(mixed, 7));
  EXPECT_GT(score(mixed, 7), score(mixed, 9));
  EXPECT_EQ(Read(mixed).encode("abc"), (Ids{1, 3, 11})) << "of equal ones the leftmost: ab, then abc";
}

TEST(SentencePieceJson, ReadsBothSpellingsOfMerges) {
  const Json json = small_sentencepiece();
  Json pairs = Json::array();
  for (const std::string both : json["model"]["merges"])
    pairs.push_back({both.substr(0, both.find(' ')), both.substr(both.find(' ') + 1)});
  const Read a = sentencepiece_with("/model/merges", pairs), b(json.dump(), 300);
  ASSERT_EQ(a.error, "");
  EXPECT_EQ(Tokenizer::to_blob(a.v), Tokenizer::to_blob(b.v));
}

TEST(SentencePieceJson, ReadsSpellingsOfSpaces) {
  const Json prepend = {{"type", "Prepend"}, {"prepend", "\u2581"}}, space = {{"type", "Prepend"}, {"prepend", " "}};
  const Json replace = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}};
  const auto sequence = [](const Json& steps) { return Json{{"type", "Sequence"}, {"normalizers", steps}}; };
  for (const Json& steps : {Json{prepend, replace}, Json{replace, prepend}, Json{space, replace}})
    EXPECT_EQ(sentencepiece_with("/normalizer", sequence(steps)).encode("a"), (Ids{1, 9}));
  for (const Json& alone : {replace, sequence(Json::array({replace}))})
    EXPECT_EQ(sentencepiece_with("/normalizer", alone).encode("a a"), (Ids{1, 4, 9}));
  const auto metaspace = [&](const char* scheme, bool split) {
    Json json = small_sentencepiece();
    json["normalizer"] = nullptr;
    json["pre_tokenizer"] = {
        {"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", scheme}, {"split", split}};
    json["decoder"] = json["pre_tokenizer"];
    return Read(json.dump(), 300);
  };
  EXPECT_EQ(metaspace("first", false).encode("a a"), (Ids{1, 9, 9}));
  EXPECT_EQ(metaspace("always", false).encode("a a"), (Ids{1, 9, 9}));
  EXPECT_EQ(metaspace("never", false).encode("a a"), (Ids{1, 4, 9}));
  EXPECT_TRUE(contains(metaspace("first", true).error,
                       "found Metaspace(\u2581, first, split=true); use the model's tokenizer.model"));
  for (const Json& other :
       {Json(nullptr), prepend, sequence({replace, prepend, {{"type", "NFKC"}}}),
        sequence(Json::array({{{"type", "Replace"}, {"pattern", {{"Regex", " "}}}, {"content", "\u2581"}}}))}) {
    Json json = small_sentencepiece();
    json["normalizer"] = other;
    json["model"]["byte_fallback"] = true;
    EXPECT_TRUE(contains(Read(json.dump(), 300).error, "normalizer and pre_tokenizer: expected SentencePiece's "))
        << other;
  }
}

TEST(SentencePieceJson, ReadsByteTokens) {
  Json json = small_sentencepiece();
  json["model"]["byte_fallback"] = true;
  EXPECT_TRUE(contains(Read(json.dump(), 300).error, "\"byte_fallback\": expected false, or tokens <0x00> to <0xFF>"));
  for (int byte = 0; byte < 256; byte++) {
    char text[8];
    std::snprintf(text, sizeof text, "<0x%02X>", unsigned(byte));
    json["model"]["vocab"][text] = 12 + byte;
  }
  Read r(json.dump(), 300);
  ASSERT_EQ(r.error, "");
  EXPECT_EQ(r.encode("b\u00e9"), (Ids{1, 3, 5, 12 + 0xC3, 12 + 0xA9}));
  EXPECT_EQ(r.v.pieces[12].type, Tokenizer::PieceType::byte);
  json["model"]["unk_token"] = nullptr;
  EXPECT_EQ(Read(json.dump(), 300).error, "");
  json["model"]["vocab"].erase("<0x41>");
  EXPECT_TRUE(contains(Read(json.dump(), 300).error, "tokens <0x00> to <0xFF>"));
}

TEST(SentencePieceJson, ReadsAddedTokens) {
  Json json = small_sentencepiece();
  json["added_tokens"].push_back({{"id", 14}, {"content", "<|user|>"}, {"special", true}});
  json["added_tokens"].push_back({{"id", 15}, {"content", "New York"}, {"special", false}});
  Read r(json.dump(), 300);
  ASSERT_EQ(r.error, "");
  EXPECT_EQ(r.v.pieces[12].type, Tokenizer::PieceType::unused) << "a hole";
  EXPECT_EQ(r.v.pieces[14].type, Tokenizer::PieceType::control);
  EXPECT_EQ(r.v.pieces[15].type, Tokenizer::PieceType::added_normalized);
}

// The added token <x y> with settings, and the ids of five texts by tokenizers 0.22.2.
TEST(SentencePieceJson, CutsOutAddedTokensLikeTheLibrary) {
  const char* texts[] = {"ab<x y>a", "a <x y> a", "<x y>a", " a", "a\t<x y>\n a"};
  const struct {
    std::string spaces, settings;
    Ids ids[5];
  } all[] = {{"Prepend", "{}", {{3, 7, 12, 9}, {9, 3, 12, 3, 9}, {12, 9}, {3, 9}, {9, 0, 12, 3, 0, 9}}},
             {"Prepend", R"({"normalized": true})", {{3, 7, 0, 3, 0, 4}, {9, 12, 9}, {12, 4}, {3, 9}, {9, 0, 3, 0, 9}}},
             {"Prepend", R"({"lstrip": true})", {{3, 7, 12, 9}, {9, 12, 3, 9}, {12, 9}, {3, 9}, {9, 12, 3, 0, 9}}},
             {"Prepend", R"({"rstrip": true})", {{3, 7, 12, 9}, {9, 3, 12, 9}, {12, 9}, {3, 9}, {9, 0, 12, 9}}},
             {"first", "{}", {{3, 7, 12, 4}, {9, 3, 12, 9}, {12, 4}, {9}, {9, 0, 12, 0, 9}}},
             {"first", R"({"normalized": true})", {{3, 7, 12, 4}, {9, 3, 12, 9}, {12, 4}, {9}, {9, 0, 12, 0, 9}}},
             {"first", R"({"lstrip": true})", {{3, 7, 12, 4}, {9, 12, 9}, {12, 4}, {9}, {9, 12, 0, 9}}},
             {"first", R"({"rstrip": true})", {{3, 7, 12, 4}, {9, 3, 12, 4}, {12, 4}, {9}, {9, 0, 12, 4}}},
             {"always", "{}", {{3, 7, 12, 9}, {9, 3, 12, 9}, {12, 9}, {9}, {9, 0, 12, 3, 0, 9}}},
             {"always",
              R"({"normalized": true, "lstrip": true, "rstrip": true})",
              {{3, 7, 12, 9}, {9, 12, 9}, {12, 9}, {9}, {9, 12, 9}}},
             {"never", "{}", {{7, 12, 4}, {4, 3, 12, 9}, {12, 4}, {9}, {4, 0, 12, 0, 9}}},
             {"never", R"({"rstrip": true})", {{7, 12, 4}, {4, 3, 12, 4}, {12, 4}, {9}, {4, 0, 12, 4}}}};
  for (const auto& [spaces, settings, ids] : all) {
    Json json = small_sentencepiece(), token = {{"id", 12}, {"content", "<x y>"}, {"normalized", false}};
    json["post_processor"] = nullptr;
    token.update(Json::parse(settings));
    json["added_tokens"].push_back(token);
    if (spaces != "Prepend") {
      json["normalizer"] = nullptr;
      json["pre_tokenizer"] = {
          {"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", spaces}, {"split", false}};
    }
    Read r(json.dump(), 300);
    ASSERT_EQ(r.error, "");
    for (int i = 0; i < 5; i++) EXPECT_EQ(r.encode(texts[i]), ids[i]) << spaces << settings << texts[i];
  }
}

TEST(SentencePieceJson, RejectsUnsupportedSettings) {
  const std::tuple<const char*, Json, const char*> all[] = {
      {"/model/type", "Unigram", "\"type\": expected \"BPE\", found \"Unigram\""},
      {"/model/ignore_merges", true, "\"ignore_merges\": expected false, found true"},
      {"/model/dropout", 0.5, "\"dropout\": expected none, found 0.5"},
      {"/model/unk_token", nullptr, "\"unk_token\": expected a token of the vocabulary, or byte_fallback, found null"},
      {"/model/unk_token", "<none>", "\"unk_token\": expected a token of the vocabulary, or byte_fallback"},
      {"/model/fuse_unk", false, "\"fuse_unk\": expected true, as SentencePiece has it, found false"},
      {"/model/byte_fallback", 1, "\"byte_fallback\": expected true or false, found 1"},
      {"/decoder/decoders/1", {{"type", "CTC"}}, "decoder: expected SentencePiece's, found CTC"},
      {"/model/merges",
       {"b c", "a b", "\u2581 a", "ab c", "\u2581 \u2581"},
       "expected one of \"a\" and \"bc\", which form"},
      {"/model/merges/0", "b <s>", "merge 0 \"b <s>\": expected two tokens of the vocabulary that form a third"},
      {"/model/merges/0", "b c a", "merge 0: expected two tokens with a space between"}};
  for (const auto& [pointer, value, expected] : all) {
    const Read r = sentencepiece_with(pointer, value);
    EXPECT_TRUE(contains(r.error, expected)) << r.error;
  }
  Json json = small_sentencepiece();
  json["model"]["vocab"][std::string(257, 'a')] = 12;
  EXPECT_TRUE(contains(Read(json.dump(), 300).error, "token 12: expected at most 256 bytes, found 257"));
}

// ---- Rejected settings ----

TEST(TokenizerJson, RejectsOtherKinds) {
  const std::tuple<const char*, Json, const char*> all[] = {
      {"/model/type", "WordPiece", "\"type\": expected \"BPE\", found \"WordPiece\""},
      {"/model/type", "Unigram", "\"type\": expected \"BPE\", found \"Unigram\""},
      {"/normalizer", {{"type", "NFKC"}}, "\"type\": expected NFC, or no normalizer, found \"NFKC\""},
      {"/pre_tokenizer",
       {{"type", "Whitespace"}},
       "pre_tokenizer: expected that of GPT-2, SmolLM, Llama 3, Qwen2, GPT-4o, Tekken, DeepSeek or Falcon, found "
       "White"},
      {"/pre_tokenizer", nullptr, "DeepSeek or Falcon, found null"},
      {"/pre_tokenizer/add_prefix_space", true, "found ByteLevel(add_prefix_space=true, use_regex=true)"},
      {"/decoder", {{"type", "WordPiece"}}, "\"type\": expected \"ByteLevel\", found \"WordPiece\""},
      {"/model/dropout", 0.1, "\"dropout\": expected none, found 0.1"},
      {"/model/continuing_subword_prefix", "##", "\"continuing_subword_prefix\": expected none, found \"##\""},
      {"/model/end_of_word_suffix", "</w>", "\"end_of_word_suffix\": expected none, found \"</w>\""},
      {"/model/unk_token", "<unk>", "\"unk_token\": expected none, or a token for each of the 256 bytes"}};
  for (const auto& [pointer, value, expected] : all)
    EXPECT_TRUE(contains(with(pointer, value), expected)) << with(pointer, value);
}

TEST(TokenizerJson, RejectsValuesOfWrongKind) {
  EXPECT_TRUE(contains(without("", "model"), "\"model\": expected an object, found nothing"));
  EXPECT_TRUE(contains(without("/model", "vocab"), "\"vocab\": expected an object, found nothing"));
  EXPECT_TRUE(contains(without("/model", "merges"), "\"merges\": expected an array, found nothing"));
  EXPECT_TRUE(contains(without("/added_tokens/0", "id"), "\"id\": expected a number, found nothing"));
  EXPECT_TRUE(contains(without("/added_tokens/0", "content"), "\"content\": expected a string, found nothing"));
  for (const char* pointer : {"/model", "/model/vocab", "/model/merges", "/added_tokens/0/id",
                              "/added_tokens/0/content", "/added_tokens/0/special", "/model/merges/1"})
    for (const Json& bad : {Json(nullptr), Json(1.5), Json::array({1}), Json::object({{"x", 1}})}) {
      if (bad.is_null() && pointer == std::string("/added_tokens/0/special")) continue;  // as if absent
      EXPECT_NE(with(pointer, bad), "") << pointer << " " << bad;
    }
  for (const char* text : {"", "[]", "null", "\"text\"", "5"}) EXPECT_NE(Read(std::string(text)).error, "") << text;
}

TEST(TokenizerJson, RejectsIdsOutsideTheModel) {
  for (const Json& id : {Json(-1), Json(8), Json(INT64_MAX), Json(1.0), Json("1"), Json(nullptr)})
    EXPECT_TRUE(contains(with("/model/vocab/a", id), "token \"a\": expected an id below the model's 8, found ")) << id;
  for (const Json& id : {Json(-1), Json(int64_t(1) << 31)})
    EXPECT_TRUE(contains(with("/added_tokens/0/id", id), "\"id\": expected an integer from 0 to 2147483647")) << id;
  EXPECT_TRUE(contains(with("/model/vocab/a", 2), "token 2: expected one text, found \"a\" and \"b\""));
  EXPECT_TRUE(contains(with("/model/vocab/a", 0), "token 0: expected one text, found \"<|end|>\" and \"a\""));
  EXPECT_TRUE(contains(with("/added_tokens/0/content", ""), "\"content\": expected a text, found \"\""));
}

TEST(TokenizerJson, RejectsInvalidMerges) {
  for (const char* bad : {"a", "a b c", " a b", "", "a  b"})
    EXPECT_TRUE(contains(with("/model/merges/0", bad), "merge 0")) << bad;
  for (const char* bad : {"a c", "b a", "x y", "a \u0120"})
    EXPECT_TRUE(contains(with("/model/merges/0", bad), "expected two tokens of the vocabulary that form a third"))
        << bad;
  EXPECT_TRUE(contains(with("/model/merges/0", "\u4e2d b"), "expected GPT-2's printable characters"));
  EXPECT_TRUE(contains(with("/model/merges/0", {"a", "b", "c"}), "expected a merge of two tokens, found an array"));
}

TEST(TokenizerJson, RejectsEveryTruncation) {
  for (const std::string& whole : {small().dump(), small_sentencepiece().dump()})
    for (size_t n = 0; n < whole.size(); n++) ASSERT_NE(Read(whole.substr(0, n)).error, "") << n;
}

TEST(TokenizerJson, SurvivesDamagedTexts) {
  const std::string wholes[] = {small().dump(), small_sentencepiece().dump()};
  tiny::Random random(4);
  int read = 0;
  for (int i = 0; i < 20000; i++) {
    std::string text = wholes[i % 2];
    for (int n = 1 + random.below(3); n > 0; n--) {
      const size_t at = size_t(random.below(int(text.size())));
      if (random.below(3) == 0)
        text.erase(at, size_t(1 + random.below(6)));
      else
        text[at] = "0123456789abc<|>{}[]\",: \\u\xc4"[random.below(28)];
    }
    Read r(text, 20);
    if (!r.error.empty()) continue;
    read++;
    Tokenizer tokenizer;
    if (tokenizer.load(Tokenizer::to_blob(r.v))) tokenizer.encode("a b abc 12 <|end|>");
  }
  EXPECT_GT(read, 500);
}

}  // namespace tokenizer_json_test
