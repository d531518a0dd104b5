// tokenizer_test.cpp: tests tokenizer.hpp against the output of SentencePiece and Hugging Face tokenizers (vectors in
// the reference data), with hand-made vocabularies small enough to reason about, and with hostile files.
#include "../../export/engine.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <new>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <sstream>

#include "../../export/tokenizer_json.hpp"
#include "../support/test_data.hpp"

// The number of allocations that succeed; all later ones fail. -1: no limit.
static long allocations_left = -1;

__attribute__((noinline)) void* operator new(size_t n) {
  if (allocations_left == 0) throw std::bad_alloc();
  if (allocations_left > 0) allocations_left--;
  if (void* memory = std::malloc(n ? n : 1)) return memory;
  throw std::bad_alloc();
}
// AddressSanitizer has a form of its own, whose memory the functions below must not free.
__attribute__((noinline)) void* operator new(size_t n, const std::nothrow_t&) noexcept try {
  return operator new(n);
} catch (const std::bad_alloc&) {
  return nullptr;
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace tokenizer_test {

using namespace pocket;

using Json = nlohmann::json;
using Ids = std::vector<int>;
using PieceType = Tokenizer::PieceType;
using Vocabulary = Tokenizer::Vocabulary;

std::string unhex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) bytes += char(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

std::vector<std::string> stream(const Tokenizer& tok, const Ids& ids) {
  Tokenizer::Stream s(tok);
  std::vector<std::string> chunks;
  for (int id : ids) chunks.push_back(s.push(id));
  chunks.push_back(s.flush());
  return chunks;
}
std::string joined(const std::vector<std::string>& chunks) {
  std::string all;
  for (const std::string& c : chunks) all += c;
  return all;
}

// ---- Vectors ----

struct Reference {
  const char *name, *vectors, *tokenizer;
  bool sentencepiece;
};
const Reference kLlama2 = {"llama2", "llama2", "llama2-tokenizer.model", true};
const Reference kTok512 = {"tok512", "tok512", "tok512.model", true};
const Reference kSmolLm2 = {"smollm2", "smollm2", "tokens/smollm2/tokenizer.json", false};
const Reference kTinyLlama = {"tinyllama_json", "llama2", "hf-tinyllama/tokenizer.json", true};

Vocabulary read_vocabulary(const std::string& file) {
  Vocabulary v;
  std::string error;
  const bool json = file.substr(file.size() - 5) == ".json";
  const bool read = json ? pocket::read_tokenizer_json(file, read_file(file), 49152, v, error)
                         : Tokenizer::parse_sentencepiece(read_file(file), v, error);
  EXPECT_TRUE(read) << error;
  return v;
}

class Vectors : public testing::TestWithParam<Reference> {
 protected:
  void SetUp() override {
    NEED_DATA(file, GetParam().tokenizer);
    if (file.substr(file.size() - 5) == ".json")
      ASSERT_TRUE(tok.load(Tokenizer::to_blob(read_vocabulary(file)))) << tok.error;
    else
      ASSERT_TRUE(tok.load_sentencepiece(read_file(file))) << tok.error;
  }

  // Calls check(row, line) for each row of a file; returns the number of rows.
  template <class Check> int rows(const std::string& file, const Check& check) {
    const std::string path = data_path(std::string("tokens/") + GetParam().vectors + "/" + file);
    std::ifstream in(path);
    int n = 0;
    for (std::string line; std::getline(in, line); n++) check(Json::parse(line), line);
    return n;
  }

  Tokenizer tok;
};

TEST_P(Vectors, EncodesAndDecodesLikeTheReference) {
  int encode = 0, decode = 0;
  std::string first;
  const auto check = [&](const Json& row, const std::string& line) {
    const Ids ids = row["ids"];
    EXPECT_LE(tok.least_ids(unhex(row["text_hex"])), ids.size()) << line;
    if (tok.encode(unhex(row["text_hex"]), false) != ids && encode++ == 0) first += "encode: " + line + "\n";
    if (row.contains("decoded_hex") && tok.decode(ids) != unhex(row["decoded_hex"]) && decode++ == 0)
      first += "decode: " + line + "\n";
  };
  EXPECT_GT(rows("encode.jsonl", check), 3000);
  if (!GetParam().sentencepiece) {
    EXPECT_GT(rows("encode_invalid_utf8.jsonl", check), 100);
  }
  EXPECT_EQ(encode, 0) << first;
  EXPECT_EQ(decode, 0) << first;
}

TEST_P(Vectors, AddsBosIfTheModelUsesIt) {
  const int n = rows("encode.jsonl", [&](const Json& row, const std::string& line) {
    Ids expected = row["ids"];
    if (GetParam().sentencepiece) expected.insert(expected.begin(), 1);
    EXPECT_EQ(tok.encode(unhex(row["text_hex"])), expected) << line;
  });
  EXPECT_GT(n, 3000);
  EXPECT_EQ(tok.encode(""), GetParam().sentencepiece ? Ids{1} : Ids{});
}

TEST_P(Vectors, DecodesAndStreamsAnyIds) {
  int differ = 0, chunks = 0, broken = 0;
  const int n = rows("decode.jsonl", [&](const Json& row, const std::string& line) {
    const Ids ids = row["ids"];
    const std::string expected = unhex(row["decoded_hex"]);
    const std::vector<std::string> got = stream(tok, ids);
    if ((tok.decode(ids) != expected || joined(got) != expected) && differ++ == 0) ADD_FAILURE() << line;
    for (const std::string& chunk : got) broken += !is_utf8(chunk);
    if (!GetParam().sentencepiece) return;
    std::vector<std::string> policy;
    for (const Json& hex : row["stream_hex"]) policy.push_back(unhex(hex));
    if (got != policy && chunks++ == 0) ADD_FAILURE() << line;
  });
  EXPECT_GT(n, 1000);
  EXPECT_EQ(differ, 0);
  EXPECT_EQ(chunks, 0);
  EXPECT_EQ(broken, 0) << "chunks that are not whole UTF-8";
}

// A row gives the bytes of an id inside a sequence, at the start of a text, and after the letter a.
TEST_P(Vectors, DecodesEveryId) {
  int id = 0, differ = 0;
  rows("ids.jsonl", [&](const Json& row, const std::string& line) {
    const std::string raw = unhex(row["raw_hex"]);
    const auto or_raw = [&](const char* key) { return row.contains(key) ? unhex(row[key]) : raw; };
    bool good = row["id"] == id && int(tok.type(id)) == row["type"];
    if (GetParam().sentencepiece) {
      const int a = tok.encode("a", false).back();
      const std::string before = tok.decode({1, a});
      good = good && tok.piece(id) == unhex(row["piece_hex"]) && tok.decode({1, id}) == or_raw("first_hex") &&
             tok.decode({1, a, id}) == before + or_raw("mid_hex");
    } else {
      good = good && tok.piece(id) == raw;
    }
    if (!good && differ++ == 0) ADD_FAILURE() << line;
    id++;
  });
  EXPECT_EQ(id, tok.size());
  EXPECT_EQ(differ, 0);
}

TEST_P(Vectors, BlobPreservesTheTokenizer) {
  const Vocabulary v = read_vocabulary(data_path(GetParam().tokenizer));
  Tokenizer other;
  ASSERT_TRUE(other.load(Tokenizer::to_blob(v))) << other.error;
  EXPECT_EQ(other.size(), tok.size());
  const std::string text = "The cat sat; 12 \xF0\x9F\x90\x88\n\n  caf\xC3\xA9 <s>";
  EXPECT_EQ(other.encode(text), tok.encode(text));
  EXPECT_EQ(other.decode(other.encode(text)), tok.decode(tok.encode(text)));
}

// Control tokens written out in a text remain text.
TEST_P(Vectors, KeepsTypedControlTokensAsText) {
  int controls = 0;
  for (int id = 0; id < tok.size(); id++) {
    if (tok.type(id) != PieceType::control) continue;
    controls++;
    const std::string spelling(tok.piece(id));
    EXPECT_EQ(tok.find(spelling), id);
    for (int got : tok.encode("a" + spelling + "b", false)) EXPECT_NE(tok.type(got), PieceType::control) << spelling;
    EXPECT_EQ(tok.decode(tok.encode("a" + spelling + "b", false)), "a" + spelling + "b");
  }
  EXPECT_GT(controls, 1);
}

// A quadratic algorithm takes minutes here.
TEST_P(Vectors, EncodesAMegabyteWithinAMinute) {
  for (const std::string unit : {"abcabd", " ", "\n", "a1 ", "\xE4\xB8\xAD", "\xFF"}) {
    std::string text;
    while (text.size() < 1000000) text += unit;
    const auto start = std::chrono::steady_clock::now();
    const Ids ids = tok.encode(text, false);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60)) << unit;
    if (unit == "abcabd" || unit == "a1 ") {
      EXPECT_EQ(tok.decode(ids).substr(0, 1000), text.substr(0, 1000));
    }
  }
}

// Tokenizers of Hugging Face with other pre-tokenizers; the vectors have no ids and no decode files of their own.
TEST(HuggingFaceVectors, EncodeAndDecodeLikeTheReference) {
  for (const std::string name : {"qwen2", "llama3", "gpt4o", "tekken", "deepseek"}) {
    NEED_DATA(file, "tokens/" + name + "/tokenizer.json");
    Tokenizer tok;
    ASSERT_TRUE(tok.load(Tokenizer::to_blob(read_vocabulary(file)))) << tok.error;
    std::ifstream in(data_path("tokens/" + name + "/encode.jsonl"));
    int n = 0;
    for (std::string line; std::getline(in, line); n++) {
      const Json row = Json::parse(line);
      ASSERT_EQ(tok.encode(unhex(row["text_hex"]), false), row["ids"].get<Ids>()) << name << ": " << line;
      ASSERT_EQ(tok.decode(row["ids"]), unhex(row["decoded_hex"])) << name << ": " << line;
    }
    EXPECT_GT(n, 1000) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Real, Vectors, testing::Values(kLlama2, kTok512, kSmolLm2, kTinyLlama),
                         [](const auto& info) { return info.param.name; });

// A tokenizer.json of a SentencePiece model has no scores. The scores derived from its merges must order the pieces as
// in the model, including equal scores. One exception: "two spaces" ranks after longer sequences of spaces, which have
// the same score in the model. The tokens are the same, because the parts of the longer piece are further left.
TEST(TinyLlamaJson, MatchesThePiecesAndMergeOrderOfTheModel) {
  NEED_DATA(json, "hf-tinyllama/tokenizer.json");
  NEED_DATA(model, "hf-tinyllama/tokenizer.model");
  const Vocabulary found = read_vocabulary(json), expected = read_vocabulary(model);
  ASSERT_EQ(found.pieces.size(), expected.pieces.size());
  std::vector<size_t> ids;  // of pieces merged from others
  for (size_t id = 0; id < found.pieces.size(); id++) {
    const Tokenizer::Piece &f = found.pieces[id], &e = expected.pieces[id];
    ASSERT_EQ(f.text, e.text) << id;
    ASSERT_EQ(f.type, e.type) << id;
    const bool one = e.type != PieceType::normal || tokenizer_detail::read_utf8(e.text).length == e.text.size();
    if (!one && e.text != "\u2581\u2581") ids.push_back(id);
  }
  EXPECT_EQ(ids.size(), 29611u);
  const auto by = [](const Vocabulary& v) {
    return [&](size_t a, size_t b) { return v.pieces[a].score > v.pieces[b].score; };
  };
  std::sort(ids.begin(), ids.end(), by(expected));
  for (size_t i = 1; i < ids.size(); i++)
    ASSERT_EQ(by(found)(ids[i - 1], ids[i]), by(expected)(ids[i - 1], ids[i])) << expected.pieces[ids[i]].text;
  EXPECT_EQ(found.unk, expected.unk);
  EXPECT_EQ(found.bos, expected.bos);
  EXPECT_EQ(found.eos, expected.eos);
  EXPECT_EQ(found.add_bos, expected.add_bos);
  EXPECT_EQ(found.add_dummy_prefix, expected.add_dummy_prefix);
  EXPECT_EQ(found.escape_whitespaces, expected.escape_whitespaces);
  EXPECT_EQ(found.remove_extra_whitespaces, expected.remove_extra_whitespaces);
  EXPECT_EQ(found.byte_fallback, expected.byte_fallback);
  EXPECT_EQ(found.unk_surface, expected.unk_surface);
}

// ---- Hand-made vocabularies ----

Vocabulary sentencepiece(std::vector<Tokenizer::Piece> pieces) {
  Vocabulary v;
  v.pieces = {{"<unk>", 0, PieceType::unknown}, {"<s>", 0, PieceType::control}, {"</s>", 0, PieceType::control}};
  v.pieces.insert(v.pieces.end(), pieces.begin(), pieces.end());
  v.unk = 0;
  v.bos = 1;
  v.eos = 2;
  v.unk_surface = " ? ";
  return v;
}
Tokenizer load(const Vocabulary& v) {
  Tokenizer tok;
  EXPECT_TRUE(tok.load(Tokenizer::to_blob(v))) << tok.error;
  return tok;
}

TEST(SentencePiece, MergesTheHighestScoreThenTheLeftmost) {
  // 3 a, 4 b, 5 c, 6 ab, 7 bc, 8 aa
  const Tokenizer tok = load(sentencepiece({{"a", 0}, {"b", 0}, {"c", 0}, {"ab", -2}, {"bc", -1}, {"aa", -3}}));
  EXPECT_EQ(tok.encode("abc"), (Ids{3, 7})) << "bc scores more than ab";
  EXPECT_EQ(tok.encode("aaa"), (Ids{8, 3})) << "of two equal pairs, the left one";
  EXPECT_EQ(tok.encode("aab"), (Ids{3, 6}));
}

TEST(SentencePiece, IgnoresOutdatedCandidates) {
  // "abc" can be a+bc (bad) or ab+c (good); both are 3 bytes and begin at the same place.
  const Tokenizer tok = load(sentencepiece({{"a", 0}, {"b", 0}, {"c", 0}, {"ab", -1}, {"abc", -2}}));
  EXPECT_EQ(tok.encode("abcab"), (Ids{7, 6}));
}

TEST(SentencePiece, EncodesConsecutiveUnknownCharactersAsOne) {
  const Tokenizer tok = load(sentencepiece({{"a", 0}}));
  EXPECT_EQ(tok.encode("xyaz"), (Ids{0, 3, 0}));
  EXPECT_EQ(tok.least_ids("xyaz"), 0u) << "an unknown text of any length is one id";
  EXPECT_EQ(tok.decode({0, 3, 0}), " ? a ? ");
}

TEST(SentencePiece, SplitsUnusedPieces) {
  const Tokenizer tok = load(sentencepiece(
      {{"a", 0}, {"b", 0}, {"c", 0}, {"ab", -1, PieceType::unused}, {"abc", -2}, {"abca", -3, PieceType::unused}}));
  EXPECT_EQ(tok.encode("ab"), (Ids{3, 4}));
  EXPECT_EQ(tok.encode("abc"), (Ids{7})) << "a used piece may be merged from an unused one";
  EXPECT_EQ(tok.encode("abca"), (Ids{7, 3}));
}

// "bc" has the highest score, and neither "abc" nor "bcd" is a piece: merging never gets to "abcd".
TEST(SentencePiece, IgnoresPiecesThatMergingDoesNotReach) {
  const Tokenizer tok =
      load(sentencepiece({{"a", 0}, {"b", 0}, {"c", 0}, {"d", 0}, {"bc", -1}, {"ab", -2}, {"cd", -2}, {"abcd", -3}}));
  for (int i = 0; i < 2; i++) EXPECT_EQ(tok.encode("abcd"), (Ids{3, 7, 6})) << "first, and when it is known";
  const Tokenizer copy = tok;
  EXPECT_EQ(copy.encode("abcd, abcd"), (Ids{3, 7, 6, 0, 3, 7, 6}));
}

// Texts are encoded in parts; an unused piece, which does not occur, makes the tokenizer encode them as a whole.
TEST(SentencePiece, PartsHaveTheIdsOfTheWholeText) {
  uint64_t state = 1;
  const auto random = [&](uint64_t n) {
    state = state * 6364136223846793005 + 1442695040888963407;
    return (state >> 33) % n;
  };
  const std::string characters[] = {"a", "b", "c", ",", "\n", "\r", "\u00E9", "\u2019", "\u2581", "\u2581"};
  const auto random_text = [&](uint64_t most) {
    std::string text;
    for (uint64_t n = 1 + random(most); n > 0; n--) text += characters[random(std::size(characters))];
    return text;
  };
  for (int round = 0; round < 60; round++) {
    Vocabulary v = sentencepiece({});
    v.escape_whitespaces = true;
    v.add_dummy_prefix = round % 2;
    v.remove_extra_whitespaces = round % 5 == 0;
    std::set<std::string> texts(std::begin(characters), std::end(characters) - round % 4);
    while (texts.size() < size_t(12 + round)) texts.insert(random_text(round % 3 ? 3 : 5));
    for (const std::string& text : texts) v.pieces.push_back({text, -float(random(20))});
    const Tokenizer parts = load(v);
    v.pieces.push_back({"zz", 0, PieceType::unused});
    const Tokenizer whole = load(v);
    for (int i = 0; i < 200; i++) {
      std::string text = random_text(40);
      for (size_t at; i % 2 && (at = text.find("\u2581")) != text.npos;) text.replace(at, 3, " ");
      ASSERT_EQ(parts.encode(text), whole.encode(text)) << text;
    }
  }
}

TEST(SentencePiece, KeepsUserDefinedPiecesWhole) {
  Vocabulary v = sentencepiece({{"a", 0},
                                {"b", 0},
                                {"ab", -1},
                                {"<x>", 0, PieceType::user_defined},
                                {"<x>b", 0, PieceType::user_defined},
                                {"b<", -1},
                                {"<", 0},
                                {"x", 0},
                                {">", 0}});
  const Tokenizer tok = load(v);
  EXPECT_EQ(tok.encode("ab<x>a"), (Ids{5, 6, 3}));
  EXPECT_EQ(tok.encode("<x>b"), (Ids{7})) << "the longest";
  EXPECT_EQ(tok.encode("b<x"), (Ids{8, 10})) << "no user-defined piece: merged as usual";
  EXPECT_EQ(tok.find("<x>"), 6);
  EXPECT_EQ(tok.find("a"), -1) << "an ordinary piece";
}

// Ids of sentencepiece 0.2.3, with remove_extra_whitespaces.
TEST(SentencePiece, CopiesSpacesOfUserDefinedPieces) {
  const std::string s = "\u2581";
  const std::tuple<const char*, const char*, Ids> all[] = {{"  ", "a  b", {6, 8, 5}},
                                                           {"  ", "  a   b", {6, 8, 5}},
                                                           {"a  b", " a  b  a  b", {6, 8, 5, 6, 8, 5}},
                                                           {"<  >", "a <  > b", {6, 3, 9, 8, 10, 3, 5}},
                                                           {"   ", "   a    b   ", {6, 8, 3, 5}}};
  for (const auto& [piece, text, ids] : all) {
    Vocabulary v = sentencepiece({{s, -9},
                                  {"a", -9},
                                  {"b", -9},
                                  {s + "a", -1},
                                  {"ab", -2},
                                  {s + s, -3},
                                  {"<", -9},
                                  {">", -9},
                                  {piece, 0, PieceType::user_defined}});
    v.escape_whitespaces = v.add_dummy_prefix = v.remove_extra_whitespaces = true;
    EXPECT_EQ(load(v).encode(text), ids) << piece << "|" << text;
  }
}

TEST(SentencePiece, AddsTheSpaceOfASequenceOnlyAtItsStart) {
  Vocabulary v = sentencepiece({{"\u2581", -9}, {"a", -9}, {"\u2581a", -1}, {"<x>", 0, PieceType::added}});
  v.escape_whitespaces = v.add_dummy_prefix = true;
  EXPECT_EQ(load(v).encode("a<x>a"), (Ids{5, 6, 5}));
  EXPECT_EQ(load(v).encode("a<x>a", false), (Ids{5, 6, 5}));
  v.prefix_only_at_start = true;
  EXPECT_EQ(load(v).encode("a<x>a"), (Ids{5, 6, 4}));
  EXPECT_EQ(load(v).encode("a<x> a", false), (Ids{4, 6, 5}));
  EXPECT_EQ(load(v).encode(" a"), (Ids{3, 5})) << "like SentencePiece, before a space too";
  v.metaspace = true;
  EXPECT_EQ(load(v).encode(" a"), (Ids{5})) << "like Metaspace";
}

TEST(Tokenizer, MakesControlTokensOfMarkers) {
  Vocabulary v = sentencepiece({{"a", 0},
                                {"<", 0},
                                {">", 0},
                                {"<a>", 0, PieceType::user_defined},
                                {"<<", 0, PieceType::added},
                                {">>", 0, PieceType::added_normalized}});
  Tokenizer tok = load(v);
  EXPECT_EQ(tok.encode("<a><<>>"), (Ids{6, 7, 8}));
  ASSERT_TRUE(tok.make_control({0, 3, 6, 7, 8, -1, 99}));
  EXPECT_EQ(tok.encode("<a><<>>"), (Ids{4, 3, 5, 4, 4, 5, 5}));
  EXPECT_EQ(tok.type(3), PieceType::normal) << "not a marker";
  EXPECT_EQ(tok.find("<<"), 7);
  Tokenizer again;
  ASSERT_TRUE(again.load(tok.blob()));
  EXPECT_EQ(again.type(6), PieceType::control);
}

TEST(SentencePiece, NormalizesSpaces) {
  const std::string s = "\u2581";
  Vocabulary v = sentencepiece({{s, 0}, {"a", 0}, {s + "a", -1}});
  v.escape_whitespaces = v.add_dummy_prefix = true;
  EXPECT_EQ(load(v).encode("a a"), (Ids{5, 5}));
  EXPECT_EQ(load(v).encode(""), Ids{});
  EXPECT_EQ(load(v).decode({5, 5}), "a a");
  EXPECT_EQ(load(v).decode({3, 5}), " a") << "one space is removed, once";
  v.remove_extra_whitespaces = true;
  EXPECT_EQ(load(v).encode("  a   a  "), (Ids{5, 5}));
  EXPECT_EQ(load(v).encode("   "), Ids{});
  EXPECT_EQ(load(v).decode({3, 3, 5}), "a") << "all leading spaces are removed";
  v.add_dummy_prefix = false;
  EXPECT_EQ(load(v).encode("a a"), (Ids{4, 5}));
  v.remove_extra_whitespaces = false;
  EXPECT_EQ(load(v).decode({5}), " a") << "encode() adds no space, decode() removes none";
}

TEST(SentencePiece, SkipsIdsOutOfRange) {
  const Tokenizer tok = load(sentencepiece({{"a", 0}}));
  EXPECT_EQ(tok.decode({-1, 3, 4, 2147483647, -2147483647 - 1, 3}), "aa");
  EXPECT_EQ(tok.piece(-1), "");
  EXPECT_EQ(tok.type(4), PieceType::unused);
}

// The 256 bytes, followed by `more`.
Vocabulary byte_level(const std::vector<std::string>& more, const std::vector<std::pair<int, int>>& merges) {
  Vocabulary v;
  v.kind = Tokenizer::Kind::byte_level;
  v.split = Tokenizer::Split::gpt2;
  for (int b = 0; b < 256; b++) v.pieces.push_back({std::string(1, char(b))});
  for (const std::string& text : more) v.pieces.push_back({text});
  v.merges = merges;
  return v;
}

// A queue that forgets candidates merges the same symbols as one that holds all of them, and as a search of all pairs.
TEST(Merging, DoesNotDependOnTheLimitOfTheQueue) {
  using namespace tokenizer_detail;
  std::mt19937 random(1);
  for (int round = 0; round < 70; round++) {
    // Ids are merged to other ones by a random table, with few scores, so that many are equal.
    const int n_ids = 2 + round % 7;
    std::vector<Joined> table(size_t(n_ids) * n_ids);
    for (Joined& j : table) j = {int(random() % (n_ids + 2)) - 2, double(random() % 3)};
    const auto joined = [&](int left, int right) { return table[size_t(left) * n_ids + right]; };
    const auto join = [&](const Symbol& left, const Symbol& right) { return joined(left.id, right.id); };
    Ids ids(1 + random() % 2000);  // several blocks of the queue
    for (int& id : ids) id = int(random() % n_ids);
    Ids expected = ids;
    for (;;) {
      size_t best = 0;  // the right one of the pair
      for (size_t i = 1; i < expected.size(); i++) {
        const Joined j = joined(expected[i - 1], expected[i]);
        if (j.id >= 0 && (best == 0 || j.score > joined(expected[best - 1], expected[best]).score)) best = i;
      }
      if (best == 0) break;
      expected[best - 1] = joined(expected[best - 1], expected[best]).id;
      expected.erase(expected.begin() + ptrdiff_t(best));
    }
    for (const size_t limit : {4, 5, 32, 4096}) {
      Ids merged = ids;
      Symbols symbols(merged.data(), merged.size());
      Candidates queue(limit);
      join_symbols(symbols, queue, join);
      merged.resize(symbols.compact());
      ASSERT_EQ(merged, expected) << "round " << round << ", limit " << limit;
    }
  }
}

// Tokens are found in a text that is longer than what is searched at once.
TEST(ByteLevel, FindsTokensAnywhereInALongText) {
  Vocabulary v = byte_level({}, {});
  v.pieces.push_back({"<tool>", 0, PieceType::added});
  v.pieces.push_back({"<tool>" + std::string(1000, 'x'), 0, PieceType::added});
  const Tokenizer tok = load(v);
  const int token = int(v.pieces.size()) - 2;
  for (const size_t before : {0, 1, 32757, 32763, 32767, 32768, 32769, 65535, 100000}) {
    const std::string dots(before, '.');
    Ids expected(before, '.');
    expected.push_back(token);
    EXPECT_EQ(tok.encode(dots + "<tool>"), expected) << before;
    expected.back() = token + 1;
    expected.push_back('x');
    EXPECT_EQ(tok.encode(dots + "<tool>" + std::string(1001, 'x')), expected) << before;
  }
}

TEST(ByteLevel, MergesTheEarliestLearnedThenTheLeftmost) {
  const Tokenizer tok = load(byte_level({"bc", "ab", "abc", "aa"}, {{'b', 'c'}, {'a', 'b'}, {'a', 256}, {'a', 'a'}}));
  EXPECT_EQ(tok.encode("abc"), (Ids{258}));
  EXPECT_EQ(tok.encode("aaa"), (Ids{259, 'a'}));
  EXPECT_EQ(tok.encode("aab"), (Ids{'a', 257}));
}

// a+bc is a merge and ab+c is not, although both give the same text: after a+b has merged, ab+c must not merge.
TEST(ByteLevel, DistinguishesPairsWithTheSameText) {
  const Tokenizer tok = load(byte_level({"ab", "bc", "abc"}, {{'a', 'b'}, {'b', 'c'}, {'a', 257}}));
  EXPECT_EQ(tok.encode("abc"), (Ids{256, 'c'}));
}

TEST(ByteLevel, UsesWholeWordsIfMergesAreIgnored) {
  Vocabulary v = byte_level({"ab", "abc"}, {{'a', 'b'}});
  EXPECT_EQ(load(v).encode("abc"), (Ids{256, 'c'}));
  v.ignore_merges = true;
  EXPECT_EQ(load(v).encode("abc"), (Ids{257}));
}

TEST(ByteLevel, DropsBytesWithoutAPiece) {
  Vocabulary v = byte_level({"ab"}, {{'a', 'b'}});
  v.pieces['x'].type = PieceType::unused;
  EXPECT_EQ(load(v).encode("axb"), (Ids{256}));
  EXPECT_EQ(load(v).encode("x"), Ids{});
  EXPECT_EQ(load(v).least_ids("axbx  abx"), 2u) << "bytes that become ids, by the longest piece";
}

TEST(ByteLevel, SplitsOffUserDefinedPiecesFirst) {
  Vocabulary v = byte_level({"bc", "ab"}, {{'a', 'b'}});
  v.pieces[256].type = PieceType::user_defined;
  EXPECT_EQ(load(v).encode("abcab"), (Ids{'a', 256, 257}));
}

TEST(ByteLevel, StreamsWholeCharacters) {
  const Tokenizer tok = load(byte_level({}, {}));
  EXPECT_EQ(stream(tok, {0xE4, 0xB8, 0xAD, 'a'}), (std::vector<std::string>{"", "", "\u4E2D", "a", ""}));
  EXPECT_EQ(stream(tok, {0xE4, 'a', 0xF0, 0x9F}), (std::vector<std::string>{"", "\uFFFDa", "", "", "\uFFFD"}));
  EXPECT_EQ(stream(tok, {0xED, 0xA0}), (std::vector<std::string>{"", "\uFFFD\uFFFD", ""})) << "a surrogate is invalid";
}

// ---- Words ----

std::vector<std::string> words(Tokenizer::Split split, const std::string& text) {
  std::vector<std::string> list;
  tokenizer_detail::for_each_word(split, text, [&](std::string_view word) { list.emplace_back(word); });
  return list;
}
using Words = std::vector<std::string>;

TEST(Split, MatchesTheGpt2Pattern) {
  const auto gpt2 = Tokenizer::Split::gpt2;
  EXPECT_EQ(words(gpt2, "I'll've  been 123 \"ok\"\n\n x"),
            (Words{"I", "'ll", "'ve", " ", " been", " 123", " \"", "ok", "\"", "\n\n", " x"}));
  EXPECT_EQ(words(gpt2, "I'LL"), (Words{"I", "'", "LL"})) << "contractions are lower case";
  EXPECT_EQ(words(gpt2, "a  "), (Words{"a", "  "})) << "trailing spaces stay together";
  EXPECT_EQ(words(gpt2, ""), Words{});
}

TEST(Split, MatchesTheSmolLmPattern) {
  const auto smollm = Tokenizer::Split::smollm;
  EXPECT_EQ(words(smollm, "a  12b"), (Words{"a", "  ", "1", "2", "b"})) << "the pattern ends at a digit";
  EXPECT_EQ(words(smollm, "a  b"), (Words{"a", " ", " b"}));
}

// Expected words: the pattern of Llama 3, matched by the Python package regex.
TEST(Split, MatchesTheLlama3Pattern) {
  const auto llama3 = Tokenizer::Split::llama3;
  EXPECT_EQ(words(llama3, "I'LL go\tto 12345 (yes)\n\n  end"),
            (Words{"I", "'LL", " go", "\tto", " ", "123", "45", " (", "yes", ")\n\n", " ", " end"}));
  EXPECT_EQ(words(llama3, "  \n \n  x  "), (Words{"  \n \n", " ", " x", "  "}));
  EXPECT_EQ(words(llama3, "'\u017F"), (Words{"'\u017F"}));
  EXPECT_EQ(words(llama3, "$$a.b"), (Words{"$$", "a", ".b"}));
}

// Texts cut into words by Hugging Face's tokenizers 0.23.3 with the pre-tokenizer of each model; \u00B7 is between two
// words. (Falcon's splits inside characters as well, where its vocabulary has no merges; the texts have no such ones.)
const std::pair<Tokenizer::Split, std::vector<std::string>> kSplitVectors[] = {
    {Tokenizer::Split::gpt2,
     {"I·'ll· · go·'·S· DON·'·T· x·'·ſt· '·Re", "HTTPServer· iPhone· ÉCOLE· ǅabc· aªB· ʰAB",
      "12345· ٣٤٥٦· ½²· v·3·.·14", "a·\r\n\r\n · b· \n\t· c·  ", "!!·\n·//·\n·/·x· .../· $·5·+<·b·>",
      "中文テキスト·。·한국어·，·ok·\u3000·中", "n·\u0303·A·\u0301·b· \u0301·X· ह·\u093F·न·\u094D·द·\u0940",
      "👩\u200D🚀\uFE0F· ·\u00A0·é·\u2028·x"}},
    {Tokenizer::Split::smollm,
     {"I·'ll· · go·'·S· DON·'·T· x·'·ſt· '·Re", "HTTPServer· iPhone· ÉCOLE· ǅabc· aªB· ʰAB",
      "1·2·3·4·5· ·٣·٤·٥·٦· ·½·²· v·3·.·1·4", "a·\r\n\r\n · b· \n\t· c·  ", "!!·\n·//·\n·/·x· .../· $·5·+<·b·>",
      "中文テキスト·。·한국어·，·ok·\u3000·中", "n·\u0303·A·\u0301·b· \u0301·X· ह·\u093F·न·\u094D·द·\u0940",
      "👩\u200D🚀\uFE0F· ·\u00A0·é·\u2028·x"}},
    {Tokenizer::Split::llama3,
     {"I·'ll· · go·'S· DON·'T· x·'ſ·t· '·Re", "HTTPServer· iPhone· ÉCOLE· ǅabc· aªB· ʰAB",
      "123·45· ·٣٤٥·٦· ·½²· v·3·.·14", "a·\r\n\r\n· · b· \n·\t· c·  ", "!!\n·//\n·/x· .../· $·5·+<·b·>",
      "中文テキスト·。한국어·，ok·\u3000中", "n·\u0303A·\u0301b· \u0301·X· ह·\u093Fन·\u094Dद·\u0940",
      "👩\u200D🚀\uFE0F· ·\u00A0é·\u2028x"}},
    {Tokenizer::Split::qwen2,
     {"I·'ll· · go·'S· DON·'T· x·'ſ·t· '·Re", "HTTPServer· iPhone· ÉCOLE· ǅabc· aªB· ʰAB",
      "1·2·3·4·5· ·٣·٤·٥·٦· ·½·²· v·3·.·1·4", "a·\r\n\r\n· · b· \n·\t· c·  ", "!!\n·//\n·/x· .../· $·5·+<·b·>",
      "中文テキスト·。한국어·，ok·\u3000中", "n·\u0303A·\u0301b· \u0301·X· ह·\u093Fन·\u094Dद·\u0940",
      "👩\u200D🚀\uFE0F· ·\u00A0é·\u2028x"}},
    {Tokenizer::Split::qwen35,
     {"I·'ll· · go·'S· DON·'T· x·'ſ·t· '·Re", "HTTPServer· iPhone· ÉCOLE· ǅabc· aªB· ʰAB",
      "1·2·3·4·5· ·٣·٤·٥·٦· ·½·²· v·3·.·1·4", "a·\r\n\r\n· · b· \n·\t· c·  ", "!!\n·//\n·/x· .../· $·5·+<·b·>",
      "中文テキスト·。한국어·，ok·\u3000中", "n\u0303A\u0301b· \u0301X· ह\u093Fन\u094Dद\u0940",
      "👩\u200D🚀·\uFE0F· ·\u00A0é·\u2028x"}},
    {Tokenizer::Split::gpt4o,
     {"I'll· · go'S· DON'T· x'ſ·t· '·Re", "HTTPServer· i·Phone· ÉCOLE· ǅabc· aª·B· ʰ·AB",
      "123·45· ·٣٤٥·٦· ·½²· v·3·.·14", "a·\r\n\r\n· · b· \n·\t· c·  ", "!!\n//\n/·x· .../· $·5·+<·b·>",
      "中文テキスト·。한국어·，ok·\u3000中", "n\u0303·A\u0301b· \u0301·X· ह\u093Fन\u094Dद\u0940",
      "👩\u200D🚀\uFE0F· ·\u00A0é·\u2028x"}},
    {Tokenizer::Split::tekken,
     {"I·'ll· · go·'S· DON·'T· x·'ſt· '·Re", "HTTPServer· i·Phone· ÉCOLE· ǅabc· aª·B· ʰ·AB",
      "1·2·3·4·5· ·٣·٤·٥·٦· ·½·²· v·3·.·1·4", "a·\r\n\r\n· · b· \n·\t· c·  ", "!!\n//\n/·x· .../· $·5·+<·b·>",
      "中文テキスト·。한국어·，ok·\u3000中", "n\u0303·A\u0301b· \u0301·X· ह\u093Fन\u094Dद\u0940",
      "👩\u200D🚀\uFE0F· ·\u00A0é·\u2028x"}},
    {Tokenizer::Split::deepseek_coder,
     {"I·'·ll· · go·'·S· DON·'·T· x·'·ſt· '·Re", "HTTPServer· iPhone· ÉCOLE· ǅabc· aªB· ʰAB",
      "1·2·3·4·5· ·٣·٤·٥·٦· ·½·²· v·3·.·1·4", "a·\r·\n·\r·\n· · b· ·\n·\t· c·  ", "!!·\n·//·\n·/·x· .../· $·5·+<·b·>",
      "中文テキスト·。·한국어·，·ok·\u3000中", "n·\u0303·A·\u0301·b· \u0301·X· ·ह·\u093F·न·\u094D·द·\u0940",
      "👩·\u200D·🚀\uFE0F ·\u00A0é·\u2028·x"}},
    {Tokenizer::Split::deepseek_llm,
     {"I·'·ll· · go·'·S· DON·'·T· x·'·ſ·t· '·Re", "HTTPServer· iPhone· É·COLE· ǅ·abc· a·ª·B· ʰ·AB",
      "1·2·3·4·5· ·٣·٤·٥·٦· ·½·²· v·3·.·1·4", "a·\r·\n·\r·\n· · b· ·\n·\t· c·  ", "!!·\n·//·\n·/·x· .../· $·5·+<·b·>",
      "中文テキスト·。·한국어·，·ok·\u3000·中", "n·\u0303·A·\u0301·b· \u0301·X· ·ह\u093Fन\u094Dद\u0940",
      "👩·\u200D·🚀\uFE0F· ·\u00A0é·\u2028·x"}},
    {Tokenizer::Split::deepseek_v3,
     {"I·'ll· · go·'S· DON·'T· x·'·ſt· '·Re", "HTTPServer· iPhone· ÉCOLE· ǅabc· aªB· ʰAB",
      "123·45· ·٣٤٥·٦· ·½²· v·3·.·14", "a·\r\n\r\n· · b· \n·\t· c·  ", "!!\n·//\n·/x· .../· $·5·+<·b·>",
      "中文テキスト·。·한국어·，·ok·\u3000·中", "n\u0303A\u0301b· \u0301X· ह\u093Fन\u094Dद\u0940",
      "👩·\u200D·🚀·\uFE0F· ·\u00A0é·\u2028x"}},
    {Tokenizer::Split::falcon,
     {"I·'·ll· · go·'·S· DON·'·T· x·'·ſt· ·'·Re", "HTTPServer· iPhone· ÉCOLE· ǅabc· aªB· ʰAB",
      "123·45· ٣٤٥٦· · v·3·.·14", "a·\r\n\r\n · b· \n\t· c·  ", "!!·\n·//·\n·/·x· ·.../· ·$·5·+<·b·>",
      "中文テキト·。·한국어ok·\u3000·中", "n·\u0303·A·\u0301·b· \u0301·X· \u093F·न·\u094D·द·\u0940",
      "👩\u200D🚀\uFE0F· ·\u00A0·é·\u2028·x"}}};

TEST(Split, MatchesTokenizersOfHuggingFace) {
  EXPECT_EQ(std::size(kSplitVectors), Tokenizer::kSplits - 1);
  for (const auto& [split, texts] : kSplitVectors)
    for (const std::string& expected : texts) {
      std::string text, joined;
      for (size_t at = 0; at < expected.size(); at++)
        expected.compare(at, 2, "\u00B7") == 0 ? void(at++) : text.push_back(expected[at]);
      for (const std::string& word : words(split, text)) joined += (joined.empty() ? "" : "\u00B7") + word;
      EXPECT_EQ(joined, expected) << "split " << int(split);
    }
}

// ---- Unicode ----

uint64_t fnv1a(uint64_t hash, const std::string& text) {
  for (const char c : text) hash = (hash ^ uint8_t(c)) * 0x100000001B3;
  return hash;
}
constexpr uint64_t kFnvStart = 0xCBF29CE484222325;

// The hashes of this section were made with Python's unicodedata2 16.0.0 and Hugging Face's tokenizers 0.23.3.
TEST(Unicode, HasTheGeneralCategoriesOfVersion16) {
  uint64_t hash = kFnvStart;
  for (char32_t code = 0; code < 0x110000; code++) {
    if (code >= 0xD800 && code < 0xE000) continue;
    const tokenizer_detail::Set sets = tokenizer_detail::sets_of(code) & tokenizer_detail::kAny;
    char category = 0;
    while (sets >> category > 1) category++;
    ASSERT_EQ(sets, 1u << category) << "in one of the first sets";
    hash = fnv1a(hash, std::string(1, category));
  }
  EXPECT_EQ(hash, 0xDDAE83D4ACF3CD83);
}

std::string nfc(std::string_view text) { return tokenizer_detail::nfc(text); }

TEST(Nfc, ComposesCharactersAndSortsMarks) {
  EXPECT_EQ(nfc(""), "");
  EXPECT_EQ(nfc("plain text"), "plain text");
  EXPECT_EQ(nfc("e\u0301"), "\u00E9");
  EXPECT_EQ(nfc("\u212B"), "\u00C5") << "a character that is replaced";
  EXPECT_EQ(nfc("a\u0323\u0302"), "\u1EAD") << "two marks";
  EXPECT_EQ(nfc("a\u0302\u0323"), "\u1EAD") << "in the other order";
  EXPECT_EQ(nfc("a\u0301\u0302"), "\u00E1\u0302") << "marks of one class keep their order";
  EXPECT_EQ(nfc("\u1100\u1161\u11A8"), "\uAC01") << "Hangul";
  EXPECT_EQ(nfc("\uAC00\u11A8\u11A8"), "\uAC01\u11A8");
  EXPECT_EQ(nfc("\u0958"), "\u0915\u093C") << "excluded from composition";
  EXPECT_EQ(nfc("\u0301a"), "\u0301a");
  EXPECT_EQ(nfc("\U0001D15E"), "\U0001D157\U0001D165");
}

TEST(Nfc, MatchesEveryCodePoint) {
  uint64_t hash = kFnvStart;
  for (char32_t code = 0; code < 0x110000; code++) {
    if (code >= 0xD800 && code < 0xE000) continue;
    std::string text;
    tokenizer_detail::append_utf8(code, text);
    hash = fnv1a(hash, nfc(text) + "\n");
  }
  EXPECT_EQ(hash, 0x3CE40516AAB8CAE9);
}

TEST(Nfc, MatchesRandomSequences) {
  const char32_t kCodes[] = {0x61,   0x65,   0x41,   0x300,  0x301,  0x323,  0x345, 0x308, 0x334,
                             0x3099, 0x304B, 0x1100, 0x1161, 0x11A8, 0xAC00, 0xF71, 0xF72, 0xF74,
                             0x1EC7, 0x1ED,  0x338,  0x3D,   0x212B, 0x9C7,  0x9BE, 0xF900};
  uint64_t hash = kFnvStart, state = 1;
  const auto random = [&] {
    state = state * 6364136223846793005 + 1442695040888963407;
    return state >> 33;
  };
  for (int i = 0; i < 20000; i++) {
    std::string text;
    for (uint64_t n = 1 + random() % 12; n > 0; n--) {
      const uint64_t r = random();
      tokenizer_detail::append_utf8(r % 4 ? kCodes[r % std::size(kCodes)] : char32_t(0x300 + (r >> 8) % 0x70), text);
    }
    hash = fnv1a(hash, nfc(text) + "\n");
  }
  EXPECT_EQ(hash, 0x28D103EF853F0C6E);
}

TEST(Nfc, AppliesBeforeSplittingIfTheTokenizerSaysSo) {
  Vocabulary v = byte_level({"\u00E9"}, {{0xC3, 0xA9}});
  EXPECT_EQ(load(v).encode("e\u0301"), (Ids{'e', 0xCC, 0x81}));
  v.nfc = true;
  EXPECT_EQ(load(v).encode("e\u0301"), Ids{256});
  EXPECT_EQ(load(v).encode("\xCC"), (Ids{0xEF, 0xBF, 0xBD})) << "invalid UTF-8 is replaced first";
  v.pieces.push_back({"<x>", 0, PieceType::user_defined});
  EXPECT_EQ(load(v).encode("<x>\u0338"), (Ids{257, 0xCC, 0xB8})) << "cut out before";
}

// ---- UTF-8 ----

TEST(Utf8, AcceptsOnlyWellFormedCharacters) {
  const auto valid = [](const std::string& s) { return is_utf8(s); };
  for (const char* s : {"\x7F", "\xC2\x80", "\xDF\xBF", "\xE0\xA0\x80", "\xED\x9F\xBF", "\xEE\x80\x80", "\xEF\xBF\xBF",
                        "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"})
    EXPECT_TRUE(valid(s)) << int(uint8_t(s[0]));
  for (const char* s : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80", "\xF0\x8F\xBF\xBF",
                        "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xE4\xB8", "\xC2"})
    EXPECT_FALSE(valid(s)) << int(uint8_t(s[0]));
}

// ---- Hostile blobs ----

std::string put32(std::string blob, size_t offset, uint32_t value) {
  std::memcpy(&blob[offset], &value, 4);
  return blob;
}
std::string error_of(const std::string& blob) {
  Tokenizer tok;
  EXPECT_FALSE(tok.load(blob));
  EXPECT_EQ(tok.size(), 0);
  EXPECT_EQ(tok.encode("a"), Ids{});
  return tok.error;
}

constexpr size_t kHeader = sizeof(tokenizer_detail::BlobHeader);

TEST(Blob, LoadsVersion1) {
  Vocabulary v = byte_level({"bc"}, {});
  v.pieces[256].type = PieceType::user_defined;
  const std::string blob = put32(Tokenizer::to_blob(v), 4, 1);
  Tokenizer tok;
  ASSERT_TRUE(tok.load(blob)) << tok.error;
  EXPECT_EQ(tok.encode("abcab"), (Ids{'a', 256, 'a', 'b'}));
}

TEST(Blob, RejectsEveryTruncation) {
  const std::string blob = Tokenizer::to_blob(byte_level({"ab"}, {{'a', 'b'}}));
  for (size_t n = 0; n < blob.size(); n++) EXPECT_NE(error_of(blob.substr(0, n)).find("size"), std::string::npos) << n;
  EXPECT_NE(error_of(blob + "x").find("size"), std::string::npos);
}

TEST(Blob, RejectsFieldsOutOfRange) {
  const std::string blob = Tokenizer::to_blob(sentencepiece({{"a", 0}}));
  const struct {
    size_t offset;
    uint32_t value;
    const char* named;
  } cases[] = {{0, 0, "magic"},
               {4, 0, "version"},
               {4, 3, "version"},
               {8, 0, "kind"},
               {8, 3, "kind"},
               {8, 0xFFFFFFFF, "kind"},
               {12, 512, "flags"},
               {12, 0xFFFFFFFF, "flags"},
               {16, 4, "bos"},
               {16, 0xFFFFFFFE, "bos"},
               {20, 4, "eos"},
               {20, 0x7FFFFFFF, "eos"},
               {24, 4, "unk"},
               {24, 0xFFFFFFFF, "unk"},
               {28, Tokenizer::kSplits, "split"},
               {28, 0xFFFFFFFF, "split"},
               {32, 0, "pieces"},
               {32, 0xFFFFFFFF, "pieces"},
               {36, 1, "size"},
               {36, 0xFFFFFFFF, "size"},
               {40, 0, "size"},
               {40, 0xFFFFFFFF, "size"},
               {44, 0xFFFFFFFF, "unk_surface"}};
  for (const auto& c : cases) {
    const std::string error = error_of(put32(blob, c.offset, c.value));
    EXPECT_NE(error.find(c.named), std::string::npos) << c.offset << ": " << error;
    EXPECT_NE(error.find("expected"), std::string::npos) << error;
  }
}

TEST(Blob, RejectsInconsistentLengths) {
  const std::string blob = Tokenizer::to_blob(sentencepiece({{"a", 0}}));
  for (uint32_t end : {0u, 100u, 0xFFFFFFFFu}) {
    const std::string error = error_of(put32(blob, kHeader + 4, end));  // of piece 1, after "<unk>"
    EXPECT_NE(error.find("piece 1"), std::string::npos) << error;
  }
  const std::string error = error_of(put32(blob, kHeader + 12, 12));  // of the last piece, one byte too far
  EXPECT_NE(error.find("texts"), std::string::npos) << error;
}

TEST(Blob, RejectsInvalidPieces) {
  Vocabulary v = sentencepiece({{"a", 0}});
  v.pieces[3].type = PieceType(0);
  EXPECT_NE(error_of(Tokenizer::to_blob(v)).find("piece 3: type: expected 1 to 8, and 0 to 7 times 16, found 0"),
            std::string::npos);
  v.pieces[3].type = PieceType::byte;
  EXPECT_NE(error_of(Tokenizer::to_blob(v)).find("piece 3: text: expected a byte as <0x41>, found 'a'"),
            std::string::npos);
  v.pieces[3] = {"a", NAN, PieceType::normal};
  EXPECT_NE(error_of(Tokenizer::to_blob(v)).find("piece 3: score"), std::string::npos);
  v.pieces[3] = {std::string(5000, 'a'), 0, PieceType::normal};
  EXPECT_NE(error_of(Tokenizer::to_blob(v)).find("piece 3"), std::string::npos);
  v = sentencepiece({{"a", 0}});
  v.byte_fallback = true;
  EXPECT_NE(error_of(Tokenizer::to_blob(v)).find("byte_fallback"), std::string::npos);
  v.byte_fallback = false;
  v.add_bos = true;
  v.bos = -1;
  EXPECT_NE(error_of(Tokenizer::to_blob(v)).find("bos"), std::string::npos);
}

TEST(Blob, RejectsInvalidMerges) {
  for (const auto& merge : {std::make_pair(-1, 0), std::make_pair(0, 257), std::make_pair(257, 0)})
    EXPECT_NE(error_of(Tokenizer::to_blob(byte_level({"ab"}, {merge}))).find("merge 0: expected ids"),
              std::string::npos);
  EXPECT_NE(error_of(Tokenizer::to_blob(byte_level({"ab"}, {{'a', 'b'}, {'b', 'a'}}))).find("merge 1"),
            std::string::npos);
}

// Hashes that differ in the bits above those that choose a place only: lookups would take as long as there are such keys.
TEST(Blob, RejectsKeysThatWereMadeToCollide) {
  constexpr int kEmpty = 2300;
  constexpr uint64_t kMask = 4095;
  const Vocabulary empty = byte_level(std::vector<std::string>(kEmpty, ""), {});
  for (const size_t most : {1000, 1100}) {
    Vocabulary v = empty;
    for (int left = 256; left < 256 + kEmpty; left++)
      for (int right = 256; right < 256 + kEmpty && v.merges.size() < most; right++)
        if ((tokenizer_detail::hash_pair(left, right) & kMask) == 0) v.merges.push_back({left, right});
    ASSERT_EQ(v.merges.size(), most);
    Tokenizer tok;
    EXPECT_EQ(tok.load(Tokenizer::to_blob(v)), most == 1000) << tok.error;
    if (most > 1000) {
      EXPECT_EQ(tok.error,
                "tokenizer: merge 1024: expected pairs with different hashes, found too many with similar ones");
    }
  }
  std::vector<std::string> texts;
  for (int i = 0; texts.size() < 1100; i++)
    if (std::string text = std::to_string(i); (tokenizer_detail::hash_text(text) & kMask) == 0) texts.push_back(text);
  EXPECT_NE(error_of(Tokenizer::to_blob(byte_level(texts, {}))).find(": expected texts with different hashes"),
            std::string::npos);
}

// A blob with random bytes replaced is rejected, or loads as a tokenizer that works.
TEST(Blob, SurvivesRandomCorruption) {
  const std::string blob = Tokenizer::to_blob(byte_level({"ab", "abc", "<x>"}, {{'a', 'b'}, {256, 'c'}}));
  uint64_t state = 1;
  int loaded = 0;
  for (int i = 0; i < 3000; i++) {
    std::string bad = blob;
    for (int k = 0; k < 3; k++) {
      state = state * 6364136223846793005 + 1442695040888963407;
      bad[(state >> 33) % (k == 0 ? kHeader : bad.size())] = char(state >> 24);
    }
    Tokenizer tok;
    if (!tok.load(bad)) continue;
    loaded++;
    const Ids ids = tok.encode("abc <x> abab \xFF");
    for (int id : ids) EXPECT_TRUE(id >= -1 && id < tok.size());
    EXPECT_TRUE(is_utf8(tok.decode(ids)));
  }
  EXPECT_GT(loaded, 0);
}

// ---- SentencePiece files ----

std::string varint(uint64_t value) {
  std::string s;
  for (; value > 127; value >>= 7) s += char(value | 128);
  return s += char(value);
}
std::string number(int field, uint64_t value) { return varint(uint64_t(field) * 8) + varint(value); }
std::string bytes(int field, const std::string& value) {
  return varint(uint64_t(field) * 8 + 2) + varint(value.size()) + value;
}
std::string float32(int field, float value) {
  return varint(uint64_t(field) * 8 + 5) + std::string(reinterpret_cast<char*>(&value), 4);
}
std::string model_piece(const std::string& text, float score, int type) {
  return bytes(1, bytes(1, text) + float32(2, score) + (type == 1 ? "" : number(3, uint64_t(type))));
}
const std::string kPieces = model_piece("<unk>", 0, 2) + model_piece("<s>", 0, 3) + model_piece("</s>", 0, 3) +
                            model_piece("a", -1, 1) + model_piece("b", -2, 1) + model_piece("ab", -0.5, 1);
const std::string kBpe = number(3, 2);

std::string model_error(const std::string& model) {
  Tokenizer tok;
  EXPECT_FALSE(tok.load_sentencepiece(model));
  EXPECT_EQ(tok.size(), 0);
  return tok.error;
}

TEST(SentencePieceFile, ReadsFieldsAndDefaults) {
  Vocabulary v;
  std::string error;
  ASSERT_TRUE(Tokenizer::parse_sentencepiece(kPieces + bytes(2, kBpe), v, error)) << error;
  EXPECT_EQ(v.pieces.size(), 6u);
  EXPECT_EQ(v.pieces[5].text, "ab");
  EXPECT_EQ(v.pieces[5].score, -0.5f);
  EXPECT_EQ(v.unk, 0);
  EXPECT_EQ(v.bos, 1);
  EXPECT_EQ(v.eos, 2);
  EXPECT_TRUE(v.add_dummy_prefix && v.remove_extra_whitespaces && v.escape_whitespaces && !v.byte_fallback);
  EXPECT_EQ(v.unk_surface, " \u2047 ");
  ASSERT_TRUE(Tokenizer::parse_sentencepiece(
      kPieces + bytes(2, kBpe + bytes(44, "?") + bytes(46, "</s>")) + bytes(3, number(3, 0) + number(4, 0)), v, error));
  EXPECT_EQ(v.unk_surface, "?");
  EXPECT_EQ(v.bos, 2);
  EXPECT_TRUE(!v.add_dummy_prefix && !v.remove_extra_whitespaces && v.escape_whitespaces);
}

TEST(SentencePieceFile, RejectsUnsupportedModels) {
  EXPECT_NE(model_error(kPieces + bytes(2, number(3, 1))).find("expected BPE, found unigram"), std::string::npos);
  EXPECT_NE(model_error(kPieces + bytes(2, "")).find("found unigram"), std::string::npos) << "the default";
  EXPECT_NE(model_error(kPieces + bytes(2, kBpe) + bytes(3, bytes(1, "nmt_nfkc") + bytes(2, "x"))).find("nmt_nfkc"),
            std::string::npos);
  EXPECT_NE(model_error(kPieces + bytes(2, kBpe + number(24, 1))).find("treat_whitespace_as_suffix"),
            std::string::npos);
  EXPECT_NE(model_error(kPieces + bytes(2, kBpe) + bytes(5, bytes(2, "x"))).find("denormalizer_spec"),
            std::string::npos);
}

TEST(SentencePieceFile, RejectsInvalidModels) {
  EXPECT_NE(model_error("").find("SentencePiece"), std::string::npos);
  EXPECT_NE(model_error(kPieces).find("trainer_spec"), std::string::npos);
  EXPECT_NE(model_error("{\"json\": true}").find("SentencePiece"), std::string::npos);
  EXPECT_NE(model_error(kPieces + bytes(1, number(2, 5)) + bytes(2, kBpe)).find("piece 6: score: expected wire type 5"),
            std::string::npos);
  EXPECT_NE(model_error(kPieces + model_piece("x", 0, 9) + bytes(2, kBpe)).find("piece 6: type"), std::string::npos);
  EXPECT_NE(model_error(bytes(2, kBpe) + model_piece("a", 0, 1)).find("unk"), std::string::npos) << "no unknown piece";
}

TEST(SentencePieceFile, RejectsEveryTruncation) {
  const std::string whole = kPieces + bytes(2, kBpe) + bytes(3, number(3, 0));
  const size_t trained = kPieces.size() + bytes(2, kBpe).size();
  for (size_t n = 0; n < whole.size(); n++) {
    Tokenizer tok;
    EXPECT_EQ(tok.load_sentencepiece(whole.substr(0, n)), n == trained) << n;
    EXPECT_EQ(tok.error.empty(), n == trained);
  }
}

// ---- Out of memory ----

// Calls a function once for each allocation that it makes, with that one and all later ones failing: it must throw
// nothing and return false. Then without a limit.
template <class F> void fail_every_allocation(const char* name, const F& call) {
  for (long n = 0;; n++) {
    allocations_left = n;
    bool done = true;
    try {
      done = call();
    } catch (...) {
      allocations_left = -1;
      FAIL() << name << ": throws at allocation " << n;
    }
    const bool ran_out = allocations_left == 0;
    allocations_left = -1;
    if (done) {
      EXPECT_GT(n, 0) << name << " allocates nothing";
      return;
    }
    ASSERT_TRUE(ran_out) << name << ": fails with memory left, at allocation " << n;
  }
}

TEST(OutOfMemory, IsReportedByEveryFunctionOfTokenizer) {
  Vocabulary spm = sentencepiece({{"a", 0}, {"aa", 1}, {"aaa", 2}});
  const std::string user_defined = "a user-defined piece that is longer than a small string";
  spm.pieces.push_back({user_defined, 0, PieceType::user_defined});
  Vocabulary bytes = byte_level({"ab"}, {{'a', 'b'}});
  bytes.pieces.push_back(spm.pieces.back());
  const std::string text = "aaab " + user_defined + " \xE2\x82\xAC ab" + std::string(100, 'a');
  for (const Vocabulary& v : {spm, bytes}) {
    const std::string blob = Tokenizer::to_blob(v);
    Tokenizer tok;
    bool wrong = false;
    fail_every_allocation("load", [&] {
      Tokenizer other;
      const bool done = other.load(blob);
      wrong = wrong || (!done && (other.error != "out of memory" || other.size() > 0));
      return done;
    });
    EXPECT_FALSE(wrong);
    ASSERT_TRUE(tok.load(blob)) << tok.error;
    const Ids expected = tok.encode(text);
    EXPECT_GT(expected.size(), 10u);
    fail_every_allocation("encode", [&] {
      Ids ids;
      const bool done = tok.encode(text, true, ids);
      wrong = wrong || done == ids.empty();
      return done;
    });
    fail_every_allocation("encode without a result", [&] { return !tok.encode(text).empty(); });
    fail_every_allocation("decode", [&] {
      std::string out;
      const bool done = tok.decode(expected, out);
      wrong = wrong || done == out.empty();
      return done;
    });
    fail_every_allocation("Stream", [&] {
      Tokenizer::Stream stream(tok);
      for (int id : expected) stream.push(id);
      stream.flush();
      return !stream.failed();
    });
    EXPECT_FALSE(wrong);
  }
}

TEST(OutOfMemory, IsReportedByLoadSentencepiece) {
  const std::string file = kPieces + model_piece("a piece that is longer than a small string", 0, 1) + bytes(2, kBpe);
  fail_every_allocation("load_sentencepiece", [&] { return Tokenizer().load_sentencepiece(file); });
}

TEST(OutOfMemory, IsThrownByFunctionsForPrograms) {
  Tokenizer tok;
  ASSERT_TRUE(tok.load(Tokenizer::to_blob(byte_level({"ab"}, {{'a', 'b'}}))));
  allocations_left = 0;
  EXPECT_THROW(ids_of(tok, "abc"), std::bad_alloc);
  allocations_left = 0;
  EXPECT_THROW(text_of(tok, {}).append(100, 'x'), std::bad_alloc);
  allocations_left = -1;
  EXPECT_EQ(text_of(tok, ids_of(tok, "abc")), "abc");
}

TEST(OutOfMemory, IsReportedByChatTemplate) {
  std::string section;
  const auto number = [&](uint32_t n) { section.append(reinterpret_cast<const char*>(&n), sizeof n); };
  number(1);
  number(7);  // a stop id
  number(uint32_t(-1));
  for (int slot = 0; slot < ChatTemplate::kSlots; slot++) {
    if (slot == ChatTemplate::kOpening) number(0);  // flags
    number(1);
    number(uint32_t(-1));
    number(40);
    section += std::string(40, 'x');
  }
  number(1);  // a command
  number(40);
  section += std::string(40, 'x');
  ChatTemplate chat;
  bool wrong = false;
  fail_every_allocation("ChatTemplate::load", [&] {
    ChatTemplate other;
    const bool done = other.load(section, 10);
    wrong = wrong || (!done && (other.error != "out of memory" || other.known()));
    return done;
  });
  EXPECT_FALSE(wrong);
  ASSERT_TRUE(chat.load(section, 10)) << chat.error;
  const Encode encode = [](std::string_view text, bool) { return Ids(text.begin(), text.end()); };
  const std::string message(50, 'm');
  fail_every_allocation("chat_turn", [&] { return !chat_turn(chat, encode, "system", message, true).empty(); });
}

}  // namespace tokenizer_test
