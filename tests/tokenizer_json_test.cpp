// tokenizer_json_test.cpp: tokenizer.json of byte-level BPE, made here. What it says arrives, and encodes as worked out
// by hand (tokenizer_test.cpp has the vectors of the real library); whatever this version would do otherwise is refused
// by its name.
#define RUN_NO_MAIN
#include "../export/tokenizer_json.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tiny_model.hpp"

namespace {

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

/// A tokenizer.json, read.
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

// ---- What is read ----

TEST(TokenizerJson, ItEncodesAsWorkedOutByHand) {
  Read r(small());
  ASSERT_EQ(r.error, "");
  EXPECT_EQ(r.encode("abc"), (Ids{5}));
  EXPECT_EQ(r.encode("abab"), (Ids{4, 4}));
  EXPECT_EQ(r.encode("ba"), (Ids{2, 1}));
  EXPECT_EQ(r.encode("b abc"), (Ids{2, 6, 5})) << "the merge learnt first comes first, though it is not the leftmost";
  EXPECT_EQ(r.encode("b ac"), (Ids{2, 7, 3})) << "the space goes with the word behind it";
  EXPECT_EQ(r.encode("<|end|>"), Ids{}) << "typed text is no control token, and these bytes have no tokens";
  EXPECT_EQ(r.v.pieces[0].type, Tokenizer::PieceType::control);
  EXPECT_EQ(r.v.pieces[6].text, " ");
  EXPECT_EQ(r.v.split, Tokenizer::Split::gpt2);
}

TEST(TokenizerJson, MergesComeInTwoSpellings) {
  Json json = small();
  json["model"]["merges"] = Json::parse(R"([["a", "b"], ["ab", "c"], ["\u0120", "a"]])");
  const Read pairs(json), strings(small());
  ASSERT_EQ(pairs.error, "");
  EXPECT_EQ(pairs.v.merges, strings.v.merges);
  EXPECT_EQ(pairs.v.merges, (std::vector<std::pair<int, int>>{{1, 2}, {4, 3}, {6, 1}}));
}

TEST(TokenizerJson, AddedTokens) {
  Json json = small();
  json["added_tokens"].push_back({{"id", 9}, {"content", "<|pad|>"}, {"special", true}, {"lstrip", true}});
  json["added_tokens"].push_back({{"id", 10}, {"content", "New York"}, {"special", false}});
  Read r(json.dump(), 12);
  ASSERT_EQ(r.error, "");
  ASSERT_EQ(r.v.pieces.size(), 11u);
  EXPECT_EQ(r.v.pieces[8].type, Tokenizer::PieceType::unused) << "a hole";
  EXPECT_EQ(r.v.pieces[9].type, Tokenizer::PieceType::control);
  EXPECT_EQ(r.v.pieces[10].type, Tokenizer::PieceType::user_defined);
  EXPECT_EQ(Read(json).v.pieces.size(), 8u) << "the model has no rows for them";
  json["added_tokens"][2]["lstrip"] = true;
  EXPECT_TRUE(contains(Read(json.dump(), 12).error, "\"lstrip\": expected false, found true"));
  json["added_tokens"][2] = {{"id", 9}, {"content", "other"}};
  EXPECT_TRUE(contains(Read(json.dump(), 12).error, "token 9: expected one text, found \"<|pad|>\" and \"other\""));
}

TEST(TokenizerJson, PreTokenizersThatAreKnown) {
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
  EXPECT_TRUE(contains(Read(json).error, "pre_tokenizer: expected GPT-2's, SmolLM's or Llama 3's, found Split(\\w+"));
}

TEST(TokenizerJson, WhatIsPutInFrontOfATextIsBos) {
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

// ---- What is refused ----

TEST(TokenizerJson, SentencePieceIsToBeTakenFromItsModel) {
  const char* expected = "found a SentencePiece tokenizer, which this version does not read from a tokenizer.json";
  EXPECT_TRUE(contains(with("/model/byte_fallback", true), expected));
  EXPECT_TRUE(contains(with("/pre_tokenizer", {{"type", "Metaspace"}}), expected));
  EXPECT_TRUE(contains(with("/normalizer", {{"type", "Prepend"}, {"prepend", "x"}}), expected));
  EXPECT_TRUE(
      contains(with("/normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "Prepend"}}}}}), expected));
}

TEST(TokenizerJson, OtherKindsAreNamed) {
  const std::tuple<const char*, Json, const char*> all[] = {
      {"/model/type", "WordPiece", "\"type\": expected \"BPE\", found \"WordPiece\""},
      {"/model/type", "Unigram", "\"type\": expected \"BPE\", found \"Unigram\""},
      {"/normalizer", {{"type", "NFC"}}, "\"type\": expected no normalizer, found \"NFC\""},
      {"/pre_tokenizer",
       {{"type", "Whitespace"}},
       "pre_tokenizer: expected GPT-2's, SmolLM's or Llama 3's, found White"},
      {"/pre_tokenizer", nullptr, "pre_tokenizer: expected GPT-2's, SmolLM's or Llama 3's, found null"},
      {"/pre_tokenizer/add_prefix_space", true, "found ByteLevel(add_prefix_space=true, use_regex=true)"},
      {"/decoder", {{"type", "WordPiece"}}, "\"type\": expected \"ByteLevel\", found \"WordPiece\""},
      {"/model/dropout", 0.1, "\"dropout\": expected none, found 0.1"},
      {"/model/continuing_subword_prefix", "##", "\"continuing_subword_prefix\": expected none, found \"##\""},
      {"/model/end_of_word_suffix", "</w>", "\"end_of_word_suffix\": expected none, found \"</w>\""},
      {"/model/unk_token", "<unk>", "\"unk_token\": expected none, or a token for each of the 256 bytes"}};
  for (const auto& [pointer, value, expected] : all)
    EXPECT_TRUE(contains(with(pointer, value), expected)) << with(pointer, value);
}

TEST(TokenizerJson, ValuesOfAnotherKind) {
  EXPECT_TRUE(contains(without("", "model"), "\"model\": expected an object, found nothing"));
  EXPECT_TRUE(contains(without("/model", "vocab"), "\"vocab\": expected an object, found nothing"));
  EXPECT_TRUE(contains(without("/model", "merges"), "\"merges\": expected an array, found nothing"));
  EXPECT_TRUE(contains(without("/added_tokens/0", "id"), "\"id\": expected a number, found nothing"));
  EXPECT_TRUE(contains(without("/added_tokens/0", "content"), "\"content\": expected a string, found nothing"));
  for (const char* pointer : {"/model", "/model/vocab", "/model/merges", "/added_tokens/0/id",
                              "/added_tokens/0/content", "/added_tokens/0/special", "/model/merges/1"})
    for (const Json& bad : {Json(nullptr), Json(1.5), Json::array({1}), Json::object({{"x", 1}})}) {
      if (bad.is_null() && pointer == std::string("/added_tokens/0/special")) continue;  // as if it were not there
      EXPECT_NE(with(pointer, bad), "") << pointer << " " << bad;
    }
  for (const char* text : {"", "[]", "null", "\"text\"", "5"}) EXPECT_NE(Read(std::string(text)).error, "") << text;
}

TEST(TokenizerJson, IdsOutsideTheModel) {
  for (const Json& id : {Json(-1), Json(8), Json(INT64_MAX), Json(1.0), Json("1"), Json(nullptr)})
    EXPECT_TRUE(contains(with("/model/vocab/a", id), "token \"a\": expected an id below the model's 8, found ")) << id;
  for (const Json& id : {Json(-1), Json(int64_t(1) << 31)})
    EXPECT_TRUE(contains(with("/added_tokens/0/id", id), "\"id\": expected an integer from 0 to 2147483647")) << id;
  EXPECT_TRUE(contains(with("/model/vocab/a", 2), "token 2: expected one text, found \"a\" and \"b\""));
  EXPECT_TRUE(contains(with("/model/vocab/a", 0), "token 0: expected one text, found \"<|end|>\" and \"a\""));
  EXPECT_TRUE(contains(with("/added_tokens/0/content", ""), "token 0: expected some text, found none"));
}

TEST(TokenizerJson, MergesOfWhatIsNotThere) {
  for (const char* bad : {"a", "a b c", " a b", "", "a  b"})
    EXPECT_TRUE(contains(with("/model/merges/0", bad), "merge 0")) << bad;
  for (const char* bad : {"a c", "b a", "x y", "a \u0120"})
    EXPECT_TRUE(contains(with("/model/merges/0", bad), "expected two tokens of the vocabulary that make a third"))
        << bad;
  EXPECT_TRUE(contains(with("/model/merges/0", "\u4e2d b"), "expected GPT-2's printable characters"));
  EXPECT_TRUE(contains(with("/model/vocab/\u4e2d", 7), "token \"\u4e2d\": expected GPT-2's printable characters"));
  EXPECT_TRUE(contains(with("/model/merges/0", {"a", "b", "c"}), "expected a merge of two tokens, found an array"));
}

TEST(TokenizerJson, EveryTruncationIsRefused) {
  const std::string whole = small().dump();
  for (size_t n = 0; n < whole.size(); n++) ASSERT_NE(Read(whole.substr(0, n)).error, "") << n;
}

TEST(TokenizerJson, SpoiltTextsNeitherCrashNorGiveWhatCannotBeLoaded) {
  const std::string whole = small().dump();
  tiny::Random random(4);
  int read = 0;
  for (int i = 0; i < 10000; i++) {
    std::string text = whole;
    for (int n = 1 + random.below(3); n > 0; n--) {
      const size_t at = size_t(random.below(int(text.size())));
      if (random.below(3) == 0)
        text.erase(at, size_t(1 + random.below(6)));
      else
        text[at] = "0123456789abc<|>{}[]\",: \\u\xc4"[random.below(28)];
    }
    Read r(text);
    if (!r.error.empty()) continue;
    read++;
    Tokenizer tokenizer;
    if (tokenizer.load(Tokenizer::to_blob(r.v))) tokenizer.encode("a b abc 12 <|end|>");
  }
  EXPECT_GT(read, 500);
}

}  // namespace
