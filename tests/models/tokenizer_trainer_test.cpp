// tokenizer_trainer_test.cpp: training of vocabularies: against results by hand, against a naive implementation that
// recounts all pairs for each piece, and with SentencePiece.
#include "../../models/tokenizer_trainer.hpp"

#include <gtest/gtest.h>

#include <cstdio>
#include <map>
#include <sstream>

#include "../support/program.hpp"
#include "../support/test_data.hpp"

namespace tokenizer_trainer_test {

using namespace pocket;
using PieceType = Tokenizer::PieceType;
using Vocabulary = Tokenizer::Vocabulary;

constexpr int kFirst = 259;  // id of the first merged piece
const std::string kMark = tokenizer_detail::kSpaceMark;

std::vector<std::string> texts(const Vocabulary& v, size_t from) {
  std::vector<std::string> out;
  for (size_t i = from; i < v.pieces.size(); i++) out.push_back(v.pieces[i].text);
  return out;
}

Vocabulary train(std::string_view text, int size) {
  Vocabulary v;
  std::string error;
  EXPECT_TRUE(train_vocabulary(text, size, v, error)) << error;
  return v;
}

std::string failure(std::string_view text, int size) {
  Vocabulary v;
  std::string error;
  EXPECT_FALSE(train_vocabulary(text, size, v, error));
  EXPECT_TRUE(v.pieces.empty());
  return error;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

TEST(Stories, AreSplitAtSeparators) {
  using Views = std::vector<std::string_view>;
  EXPECT_EQ(split_stories("One.\nTwo.\n<|endoftext|>\nThree.\n<|endoftext|>\n"), (Views{"One.\nTwo.", "Three."}));
  EXPECT_EQ(split_stories("<|endoftext|>\r\n\r\nA\r\n<|endoftext|>\n \n<|endoftext|>B"), (Views{"A", "B"}));
  EXPECT_EQ(split_stories("no mark"), (Views{"no mark"}));
  EXPECT_EQ(split_stories(" \n<|endoftext|>\n"), Views{});
}

// 3 x "_low", 2 x "_lower": "lo", "ow" and "_l" occur 5 times each, "we" and "er" twice. Ties are broken by bytes;
// _ (E2 96 81) comes after letters.
TEST(TokenizerTrainer, MergesMostFrequentPairFirst) {
  const Vocabulary v = train("low low low lower lower", kFirst + 6 + 5);
  EXPECT_EQ(texts(v, kFirst), (std::vector<std::string>{"lo", "low", kMark + "low", "er", kMark + "lower",  //
                                                        "l", "o", "w", kMark, "e", "r"}));
}

TEST(TokenizerTrainer, HasLayoutOfLlama) {
  const Vocabulary v = train("low low low lower lower", kFirst + 6 + 5);
  ASSERT_EQ(v.pieces.size(), size_t(kFirst + 11));
  EXPECT_EQ(v.pieces[0].text + v.pieces[1].text + v.pieces[2].text, "<unk><s></s>");
  EXPECT_EQ(v.pieces[0].type, PieceType::unknown);
  EXPECT_EQ(v.pieces[1].type, PieceType::control);
  EXPECT_EQ(v.pieces[2].type, PieceType::control);
  for (int byte = 0; byte < 256; byte++) {
    EXPECT_EQ(tokenizer_detail::byte_value(v.pieces[size_t(3 + byte)].text), byte);
    EXPECT_EQ(v.pieces[size_t(3 + byte)].type, PieceType::byte);
  }
  for (int id = kFirst; id < kFirst + 11; id++) {
    EXPECT_EQ(v.pieces[size_t(id)].score, float(kFirst - id));
    EXPECT_EQ(v.pieces[size_t(id)].type, PieceType::normal);
  }
  EXPECT_EQ(v.unk, 0);
  EXPECT_EQ(v.bos, 1);
  EXPECT_EQ(v.eos, 2);
}

// Pieces do not mix letters, punctuation and digits. Newline, and a letter that occurs once in 90,000 characters, have
// no piece. The text has 16 characters and 12 merges.
TEST(TokenizerTrainer, PiecesDoNotCrossWords) {
  std::string text;
  for (int i = 0; i < 3000; i++) text += "Go on, 10 men said. \"Go on!\"\n";
  const std::vector<std::string> pieces = texts(train(text + "Z", kFirst + 16 + 12), kFirst);
  const auto has = [&](const std::string& piece) { return std::count(pieces.begin(), pieces.end(), piece) == 1; };
  for (const char* word : {"on", "men", "said", "\""}) EXPECT_TRUE(has(kMark + word)) << word;
  for (const char* piece : {"Go", "!\"", ",", ".", "1", "0"}) EXPECT_TRUE(has(piece)) << piece;
  EXPECT_FALSE(has("Z") || has("\n"));
  EXPECT_TRUE(contains(failure(text + "Z", kFirst + 16 + 13), "at most"));
}

TEST(TokenizerTrainer, CombiningMarksCountAsLetters) {
  using trainer_detail::Group;
  using trainer_detail::group_of;
  for (char32_t code : {U'a', U'\u00E9', U'\u0301', U'\u0940', U'\u4E2D'}) EXPECT_EQ(group_of(code), Group::letters);
  for (char32_t code : {U'.', U'\'', U'\u00AB', U'\u2019', U'\u3002', U'\uFF01', U'\U0001F600'})
    EXPECT_EQ(group_of(code), Group::punctuation) << uint32_t(code);
  for (char32_t code : {U'7', U'\u0967', U'\u00A0'}) EXPECT_EQ(group_of(code), Group::single);
}

TEST(TokenizerTrainer, RejectsTextWithoutStories) {
  for (const char* text : {"", " \n", "\n<|endoftext|>\n<|endoftext|>\n"})
    EXPECT_TRUE(contains(failure(text, 300), "none"));
}

TEST(TokenizerTrainer, RejectsInvalidUtf8WithOffset) {
  const std::string error = failure("One story.\n<|endoftext|>\ncaf\xE9.\n", 300);
  EXPECT_TRUE(contains(error, "UTF-8") && contains(error, "offset 28")) << error;
  EXPECT_TRUE(contains(failure("caf\xC3", 300), "offset 3"));
}

// The messages name the smallest and the largest valid size.
TEST(TokenizerTrainer, RejectsSizesOutOfRange) {
  const std::string text = "low low low lower lower";
  for (int size : {-5, 0, 259, 264}) EXPECT_TRUE(contains(failure(text, size), "at least 265")) << size;
  EXPECT_EQ(train(text, 265).pieces.size(), 265u);
  for (int size : {271, 1024, 1 << 30})
    EXPECT_TRUE(contains(failure(text, size), "at most 270")) << failure(text, size);
  EXPECT_EQ(train(text, 270).pieces.size(), 270u);
}

TEST(TokenizerTrainer, LimitsLengthOfWordsAndPieces) {
  const Vocabulary v = train(std::string(100000, 'a') + " " + std::string(100000, 'a'), kFirst + 2 + 4);
  EXPECT_EQ(v.pieces[kFirst + 3].text, std::string(16, 'a'));
  EXPECT_TRUE(contains(failure(std::string(100000, 'a'), 400), "at most"));
}

// ---- Against a naive implementation ----

// The merged pieces, in order. For each piece all words are encoded with the pieces so far, and their pairs counted.
std::vector<std::string> train_naively(const std::map<std::string, int64_t>& words,
                                       const std::vector<std::string>& characters, int n) {
  std::vector<std::string> pieces;
  while (int(pieces.size()) < n) {
    Vocabulary v;
    v.unk = 0;
    v.pieces = {{"<unk>", 0, PieceType::unknown}};
    for (const std::string& p : pieces) v.pieces.push_back({p, -float(v.pieces.size()), PieceType::normal});
    for (const std::string& c : characters) v.pieces.push_back({c, -float(v.pieces.size()), PieceType::normal});
    Tokenizer tokenizer;
    EXPECT_TRUE(tokenizer.load(Tokenizer::to_blob(v))) << tokenizer.error;
    std::map<std::string, int64_t> counts;
    for (const auto& [word, count] : words) {
      const std::vector<int> ids = tokenizer.encode(word, false);
      for (size_t i = 1; i < ids.size(); i++)
        counts[std::string(tokenizer.piece(ids[i - 1])) + std::string(tokenizer.piece(ids[i]))] += count;
    }
    const auto characters_of = [](const std::string& s) {
      return std::count_if(s.begin(), s.end(), [](char c) { return (c & 0xC0) != 0x80; });
    };
    const std::pair<const std::string, int64_t>* best = nullptr;
    for (const auto& pair : counts)  // in byte order, so that the first of equal pairs is kept
      if (characters_of(pair.first) <= 16 &&
          (!best || pair.second > best->second ||
           (pair.second == best->second && characters_of(pair.first) < characters_of(best->first))))
        best = &pair;
    pieces.push_back(best->first);
  }
  return pieces;
}

TEST(TokenizerTrainer, MatchesNaiveImplementation) {
  using namespace trainer_detail;
  NEED_DATA(file, "text/tinystories-valid.txt");
  const std::string text = read_file(file).substr(0, 12000);
  std::vector<std::string> characters;
  const Alphabet alphabet = choose_alphabet(split_stories(text), characters);
  std::map<std::string, int64_t> words;
  for (const auto& [places, count] : count_words(split_stories(text), alphabet)) {
    std::string word;
    for (char32_t place : places) word += characters[place];
    words[word] = count;
  }
  const int n = 250;
  std::vector<std::string> expected = train_naively(words, characters, n);
  expected.insert(expected.end(), characters.begin(), characters.end());
  EXPECT_EQ(texts(train(text, kFirst + n + int(characters.size())), kFirst), expected);
}

// ---- SentencePiece ----

TEST(SentencePieceModel, RoundTrips) {
  const Vocabulary v = train("low low low lower lower", kFirst + 11);
  Vocabulary back;
  std::string error;
  ASSERT_TRUE(Tokenizer::parse_sentencepiece(sentencepiece_model(v), back, error)) << error;
  EXPECT_EQ(Tokenizer::to_blob(back), Tokenizer::to_blob(v));
  Tokenizer tokenizer;
  ASSERT_TRUE(tokenizer.load_sentencepiece(sentencepiece_model(v))) << tokenizer.error;
  EXPECT_EQ(tokenizer.encode("lower slow\n"), (std::vector<int>{1, kFirst + 4, kFirst + 8, 3 + 's', kFirst + 1, 13}));
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);)
    if (!line.empty() && line != kStoryEnd) lines.push_back(line);
  return lines;
}

std::string joined(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += (text.empty() ? "" : "\n") + line;
  return text;
}

ProgramResult sentencepiece(const std::string& packages, std::vector<std::string> arguments) {
  std::vector<std::string> command = {"env", "PYTHONPATH=" + packages, "python3",
                                      std::string(POCKET_SOURCE_DIR) + "/tests/tokenizer/sentencepiece_reference.py"};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return run_program(command);
}

// Characters per token.
double compression(const Tokenizer& tokenizer, const std::vector<std::string>& all) {
  size_t characters = 0, tokens = 0;
  for (const std::string& text : all) {
    characters += size_t(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
    tokens += tokenizer.encode(text, false).size();
  }
  return double(characters) / double(tokens);
}

class RealSentencePiece : public testing::Test {
 protected:
  void SetUp() override {
    NEED_DATA(train_file, "text/tinystories-train.txt");
    NEED_DATA(valid_file, "text/tinystories-valid.txt");
    NEED_PYTHON(found, "sentencepiece");
    packages = found;
    train_text = read_file(train_file);
    valid_text = read_file(valid_file);
    model = folder.write("ours.model", sentencepiece_model(train(train_text, 1024)));
    ASSERT_TRUE(tokenizer.load_sentencepiece(read_file(model))) << tokenizer.error;
  }

  TemporaryFolder folder;
  std::string packages, train_text, valid_text, model;
  Tokenizer tokenizer;
};

TEST_F(RealSentencePiece, GivesSameIdsOnTenThousandLines) {
  std::vector<std::string> lines = lines_of(valid_text);
  for (const std::string& line : lines_of(train_text))
    if (lines.size() < 10000) lines.push_back(line);
  ASSERT_EQ(lines.size(), 10000u);
  lines.insert(lines.end(), {"", " ", "  two  spaces ", "12345 \t tab",
                             "na\xC3\xAFve \xE4\xB8\xAD\xE6\x96\x87 \xF0\x9F\x98\x80", "<s></s><unk><0x41>"});
  const ProgramResult theirs = sentencepiece(packages, {"ids", model, folder.write("lines", joined(lines))});
  ASSERT_EQ(theirs.status, 0) << theirs.err;
  std::istringstream in(theirs.out);
  int differ = 0;
  for (const std::string& line : lines) {
    std::string expected, found;
    ASSERT_TRUE(std::getline(in, expected));
    for (int id : tokenizer.encode(line, false)) found += (found.empty() ? "" : " ") + std::to_string(id);
    if (found != expected && differ++ == 0) ADD_FAILURE() << line << "\n" << expected << "\n" << found;
  }
  EXPECT_EQ(differ, 0);
}

// On unseen stories, at least as many characters per token as with SentencePiece's own trainer on the same text.
TEST_F(RealSentencePiece, OwnTrainerDoesNotCompressBetter) {
  const std::string lines = folder.write("lines", joined(lines_of(train_text))), theirs = folder.file("theirs.model");
  const ProgramResult trained = sentencepiece(packages, {"train", lines, "1024", theirs});
  ASSERT_EQ(trained.status, 0) << trained.err;
  Tokenizer other;
  ASSERT_TRUE(other.load_sentencepiece(read_file(theirs))) << other.error;
  ASSERT_EQ(other.size(), tokenizer.size());
  std::vector<std::string> stories;
  for (std::string_view story : split_stories(valid_text)) stories.emplace_back(story);
  const double a = compression(tokenizer, stories), b = compression(other, stories);
  std::printf("characters per token at 1024 pieces: ours %.4f, SentencePiece's trainer %.4f\n", a, b);
  EXPECT_GE(a, b);
}

}  // namespace tokenizer_trainer_test
