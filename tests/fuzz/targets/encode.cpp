// Encoding of any text, compared with byte-pair encoding as its papers describe it: merge the best pair of neighbours
// until there is none. The first byte chooses the tokenizer.
#include <cmath>
#include <map>

#include "use_tokenizer.hpp"

namespace fuzz::encode {

using namespace pocket;
using Vocabulary = Tokenizer::Vocabulary;
using PieceType = Tokenizer::PieceType;

constexpr char kSpace[] = "\xE2\x96\x81";
constexpr const char* kWords[] = {"the", " the", "and", " and", "once", " upon", "'s",
                                  "'ll", "aaaa", "12",  "\n\n", "été",  " ß",    "n t"};

// The pieces of kWords, each the join of the piece before it and one more byte, with those bytes.
void add_words(Vocabulary& v, bool sentencepiece) {
  std::map<std::string, int> ids;
  const auto add = [&](const std::string& text) {
    if (ids.emplace(text, int(v.pieces.size())).second)
      v.pieces.push_back({text, -float(v.pieces.size()), PieceType::normal});
    return ids[text];
  };
  if (!sentencepiece)
    for (int byte = 0; byte < 256; byte++) add(std::string(1, char(byte)));
  for (std::string word : kWords) {
    if (sentencepiece && word[0] == ' ') word.replace(0, 1, kSpace);
    for (size_t n = 1; n < word.size(); n++) {
      if (sentencepiece && !is_utf8(word.substr(0, n))) continue;
      const int left = add(word.substr(0, n));
      if (sentencepiece) continue;
      const int right = add(word.substr(n, 1));
      add(word.substr(0, n + 1));
      v.merges.push_back({left, right});
    }
    add(word);
  }
  std::sort(v.merges.begin(), v.merges.end());
  v.merges.erase(std::unique(v.merges.begin(), v.merges.end()), v.merges.end());
}

Vocabulary sentencepiece(bool byte_fallback, bool dummy_prefix, bool remove_spaces) {
  Vocabulary v;
  v.kind = Tokenizer::Kind::sentencepiece;
  v.pieces = {{"<unk>", 0, PieceType::unknown}, {"<s>", 0, PieceType::control}, {"</s>", 0, PieceType::control}};
  v.unk = 0;
  v.bos = 1;
  v.eos = 2;
  v.add_bos = v.escape_whitespaces = true;
  v.byte_fallback = byte_fallback;
  v.add_dummy_prefix = dummy_prefix;
  v.remove_extra_whitespaces = remove_spaces;
  v.unk_surface = " ? ";
  for (int byte = 0; byte_fallback && byte < 256; byte++) {
    char text[8];
    std::snprintf(text, sizeof text, "<0x%02X>", unsigned(byte));
    v.pieces.push_back({text, 0, PieceType::byte});
  }
  add_words(v, true);
  return v;
}

Vocabulary byte_level(Tokenizer::Split split) {
  using Split = Tokenizer::Split;
  const bool user_defined = split == Split::gpt2;
  Vocabulary v;
  v.kind = Tokenizer::Kind::byte_level;
  v.split = split;
  v.ignore_merges = split == Split::llama3 || split == Split::tekken;
  v.nfc = split == Split::qwen2;
  add_words(v, false);
  v.pieces.push_back({"<|end|>", 0, PieceType::control});
  if (user_defined) v.pieces.push_back({"<tool>", 0, PieceType::user_defined});
  return v;
}

struct Case {
  Vocabulary vocabulary;
  Tokenizer tokenizer;
  std::map<std::string, int, std::less<>> ids;  // of normal pieces
  std::map<std::pair<int, int>, int> ranks;     // of merges

  explicit Case(Vocabulary v) : vocabulary(std::move(v)) {
    require(tokenizer.load(Tokenizer::to_blob(vocabulary)), "the tokenizers of this target are valid");
    for (size_t id = 0; id < vocabulary.pieces.size(); id++)
      if (vocabulary.pieces[id].type == PieceType::normal) ids.emplace(vocabulary.pieces[id].text, int(id));
    for (size_t rank = 0; rank < vocabulary.merges.size(); rank++) ranks.emplace(vocabulary.merges[rank], int(rank));
  }
  int find(std::string_view text) const {
    const auto found = ids.find(text);
    return found == ids.end() ? -1 : found->second;
  }
};

constexpr uint8_t kCases = 4 + Tokenizer::kSplits;

const Case& choose(uint8_t n) {
  static const std::vector<Case> all = [] {
    std::vector<Case> cases;
    for (const bool byte_fallback : {false, true})
      for (const bool remove : {false, true}) cases.emplace_back(sentencepiece(byte_fallback, !remove, remove));
    for (uint32_t split = 0; split < Tokenizer::kSplits; split++)
      cases.emplace_back(byte_level(Tokenizer::Split(split)));
    return cases;
  }();
  return all[n % kCases];
}

// Merges the best pair, the leftmost of equal ones, until none is left. score(left, right): NaN if they do not merge.
template <class Score> std::vector<std::string> merge(std::vector<std::string> symbols, const Score& score) {
  std::vector<double> scores;  // of each symbol with the next one
  for (size_t i = 0; i + 1 < symbols.size(); i++) scores.push_back(score(symbols[i], symbols[i + 1]));
  for (;;) {
    size_t best = scores.size();
    for (size_t i = 0; i < scores.size(); i++)
      if (!std::isnan(scores[i]) && (best == scores.size() || scores[i] > scores[best])) best = i;
    if (best == scores.size()) return symbols;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + ptrdiff_t(best) + 1);
    scores.erase(scores.begin() + ptrdiff_t(best));
    if (best > 0) scores[best - 1] = score(symbols[best - 1], symbols[best]);
    if (best < scores.size()) scores[best] = score(symbols[best], symbols[best + 1]);
  }
}

// The ids of a word of a byte-level tokenizer.
void plain_word(const Case& c, std::string_view word, std::vector<int>& ids) {
  if (const int id = c.vocabulary.ignore_merges ? c.find(word) : -1; id >= 0) return ids.push_back(id);
  std::vector<std::string> bytes;
  for (const char byte : word) bytes.emplace_back(1, byte);
  for (const std::string& symbol : merge(bytes, [&](const std::string&left, const std::string&right) {
         const auto rank = c.ranks.find({c.find(left), c.find(right)});
         return rank == c.ranks.end() ? NAN : -double(rank->second);
       }))
    ids.push_back(c.find(symbol));
}

// The ids of a normalized text of a SentencePiece tokenizer.
std::vector<int> plain_sentencepiece(const Case& c, std::string_view text) {
  std::vector<std::string> characters;
  for (size_t n; !text.empty(); text.remove_prefix(n)) {
    n = tokenizer_detail::read_utf8(text).length;
    characters.emplace_back(text.substr(0, n));
  }
  std::vector<int> ids;
  bool after_unknown = false;
  for (const std::string& symbol : merge(characters, [&](const std::string&left, const std::string&right) {
         const int id = c.find(left + right);
         return id < 0 ? NAN : double(c.vocabulary.pieces[size_t(id)].score);
       })) {
    const int id = c.find(symbol);
    if (id >= 0)
      ids.push_back(id);
    else if (c.vocabulary.byte_fallback)
      for (const char byte : symbol) ids.push_back(3 + uint8_t(byte));
    else if (!after_unknown)
      ids.push_back(c.vocabulary.unk);
    after_unknown = id < 0;
  }
  return ids;
}

// SentencePiece's normalizer.
std::string normalized(const Vocabulary& v, std::string text) {
  if (v.remove_extra_whitespaces) {
    while (text.find("  ") != text.npos) text.replace(text.find("  "), 2, " ");
    if (!text.empty() && text[0] == ' ') text.erase(0, 1);
  }
  if (v.add_dummy_prefix && !text.empty()) text.insert(0, " ");
  for (size_t at; (at = text.find(' ')) != text.npos;) text.replace(at, 1, kSpace);
  while (v.remove_extra_whitespaces && text.size() >= 3 && text.substr(text.size() - 3) == kSpace)
    text.resize(text.size() - 3);  // also one that was written so
  return text;
}

void check_sentencepiece(const Case& c, std::string_view text, const std::vector<int>& ids) {
  const std::string normal = normalized(c.vocabulary, valid_utf8(text, true));
  require(ids == plain_sentencepiece(c, normal), "SentencePiece: the ids of plain byte-pair encoding");
  if (!c.vocabulary.byte_fallback || text.find(kSpace) != text.npos) return;
  std::string back = normal;
  for (size_t at; (at = back.find(kSpace)) != back.npos;) back.replace(at, 3, " ");
  if (c.vocabulary.add_dummy_prefix && !back.empty()) back.erase(0, 1);
  require(c.tokenizer.decode(ids) == back, "SentencePiece: decode() returns the text");
}

void check_byte_level(const Case& c, std::string_view text, const std::vector<int>& ids) {
  std::string valid = valid_utf8(text, false);
  if (c.vocabulary.nfc) valid = tokenizer_detail::nfc(valid);
  require(c.tokenizer.decode(ids) == valid, "byte-level: decode() returns the text");
  if (valid.find("<tool>") != valid.npos && c.tokenizer.find("<tool>") >= 0) return;
  std::vector<int> plain, pieces;
  tokenizer_detail::for_each_word(c.vocabulary.split, valid, [&](std::string_view word) {
    plain_word(c, word, plain);
    for (const int id : c.tokenizer.encode(word, false)) pieces.push_back(id);
  });
  require(ids == plain, "byte-level: the ids of plain byte-pair encoding");
  require(ids == pieces, "byte-level: words one by one have the ids of the text");
}

void run(std::string_view input) {
  if (input.empty()) return;
  const Case& c = choose(uint8_t(input[0]));
  const std::string_view text = input.substr(1);
  const std::vector<int> ids = c.tokenizer.encode(text, false);
  if (c.tokenizer.kind() == Tokenizer::Kind::sentencepiece)
    check_sentencepiece(c, text, ids);
  else
    check_byte_level(c, text, ids);
}

std::vector<std::string> seeds() {
  std::vector<std::string> all;
  for (char tokenizer = 0; tokenizer < kCases; tokenizer++)
    all.push_back(
        tokenizer +
        std::string(
            " the  once 12's \xC3\xA9t\xC3\xA9\xE2\x96\x81\n\n\xF0\x9F\x98\x80<tool>aaaa\xFF'Re AB\u0301c // n t"));
  return all;
}

const Registered target({"encode", run, seeds});

}  // namespace fuzz::encode
