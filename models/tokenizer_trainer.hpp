// tokenizer_trainer.hpp: trains a vocabulary on a text by byte-pair encoding (BPE), Sennrich et al. 2016,
// arxiv.org/abs/1508.07909, and writes it as a .model file for SentencePiece and tokenizer.hpp.
//
//   Tokenizer::Vocabulary vocabulary;
//   if (!train_vocabulary(text, 1024, vocabulary, error)) ...
//   std::string file = sentencepiece_model(vocabulary);     // or, for a model file, Tokenizer::to_blob(vocabulary)
//
// The text is split into characters; then the most frequent pair of neighbours is merged into a piece, repeatedly,
// until the vocabulary is full. A piece does not cross word boundaries. A word is a run of letters or a run of
// punctuation, with the space before it; digits stay single. With _ for U+2581, the space:
//
//   Tom said, "Go!"  ->  _Tom  _said  ,  _"  Go  !"
//
// The pieces, in the order of Llama 2:   <unk> <s> </s>   <0x00> ... <0xFF>   merged pieces       characters
// their ids and scores:                  0     1   2      3          258      259: 0, -1, -2 ...  and so on
//
// Rare characters and control characters such as newline have no piece: they are encoded as their UTF-8 bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <queue>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../export/engine.hpp"
#include "../export/input_file.hpp"
#include "stories.hpp"

namespace pocket {

namespace trainer_detail {

// The most frequent characters that make up this share of the text get a piece: SentencePiece's character_coverage.
inline constexpr double kCoverage = 0.9995;
inline constexpr int kMaxPieceCharacters = 16;  // SentencePiece's max_sentencepiece_length
inline constexpr int kMaxWordCharacters = 256;  // longer words, as in languages without spaces, are cut
inline constexpr int kFirstPiece = 3 + 256;     // after <unk> <s> </s> and the bytes
inline constexpr char32_t kSpace = 0x2581;

// Kinds of characters. A piece has characters of one group.
enum class Group : uint8_t { letters, punctuation, single };

// Combining marks count as letters: they are the characters above U+0300 outside of the blocks of punctuation, symbols
// and emoji.
inline Group group_of(char32_t code) {
  const tokenizer_detail::Set sets = tokenizer_detail::sets_of(code);
  if (sets & tokenizer_detail::kLetter) return Group::letters;
  if (sets & (tokenizer_detail::kNumber | tokenizer_detail::kSpace)) return Group::single;
  const bool symbol = code < 0x300 || (code >= 0x2000 && code < 0x2E80) || (code >= 0x3000 && code < 0x3040) ||
                      (code >= 0xFE10 && code < 0xFE20) || (code >= 0xFE30 && code < 0x10000) || code >= 0x1F000;
  return symbol ? Group::punctuation : Group::letters;
}

inline bool is_control(char32_t code) { return code < 0x20 || (code >= 0x7F && code < 0xA0); }

// Calls each(code, bytes) for the characters of a text as the tokenizer processes it: with a space in front, and with
// spaces as U+2581.
template <class Each> void for_each_character(std::string_view text, const Each& each) {
  each(kSpace, std::string_view(tokenizer_detail::kSpaceMark));
  while (!text.empty()) {
    const tokenizer_detail::Utf8 c = tokenizer_detail::read_utf8(text);
    if (c.code == ' ')
      each(kSpace, std::string_view(tokenizer_detail::kSpaceMark));
    else
      each(c.code, text.substr(0, c.length));
    text.remove_prefix(c.length);
  }
}

// The rank of each character that has a piece; 0 is the most frequent.
using Alphabet = std::unordered_map<char32_t, int>;

// Fills `pieces` with the characters of the alphabet by rank.
inline Alphabet choose_alphabet(const std::vector<std::string_view>& texts, std::vector<std::string>& pieces) {
  struct Count {
    char32_t code;
    uint64_t count;
    std::string_view bytes;
  };
  std::unordered_map<char32_t, Count> counts;
  uint64_t total = 0;
  for (std::string_view text : texts)
    for_each_character(text, [&](char32_t code, std::string_view bytes) {
      if (is_control(code)) return;
      counts.try_emplace(code, Count{code, 0, bytes}).first->second.count++;
      total++;
    });
  std::vector<Count> sorted;
  for (const auto& entry : counts) sorted.push_back(entry.second);
  std::sort(sorted.begin(), sorted.end(),
            [](const Count& a, const Count& b) { return a.count != b.count ? a.count > b.count : a.code < b.code; });
  Alphabet alphabet;
  uint64_t covered = 0;
  for (const Count& c : sorted) {
    if (double(covered) >= kCoverage * double(total) && c.code != kSpace) continue;  // every text begins with a space
    covered += c.count;
    alphabet[c.code] = int(pieces.size());
    pieces.emplace_back(c.bytes);
  }
  return alphabet;
}

// The frequency of each word. Words are sequences of ranks in the alphabet.
using WordCounts = std::unordered_map<std::u32string, int64_t>;

inline WordCounts count_words(const std::vector<std::string_view>& texts, const Alphabet& alphabet) {
  WordCounts counts;
  std::u32string word;
  Group group = Group::single;  // of the word's last character; single: any group may follow
  const auto end_word = [&] {
    if (word.size() > 1) counts[word]++;
    word.clear();
    group = Group::single;
  };
  const auto add = [&](char32_t code, std::string_view) {
    const auto known = alphabet.find(code);
    if (known == alphabet.end()) return end_word();
    const Group g = group_of(code);
    if (code == kSpace || g == Group::single || word.size() == kMaxWordCharacters ||
        (group != Group::single && g != group))
      end_word();
    if (code != kSpace && g == Group::single) return;
    word += char32_t(known->second);
    if (code != kSpace) group = g;
  };
  for (std::string_view text : texts) {
    for_each_character(text, add);
    end_word();
  }
  return counts;
}

// Merges the symbols of counted words, the most frequent pair first. Pairs with the same spelling count as one, since
// the tokenizer identifies pieces by their spelling.
class PieceLearner {
 public:
  PieceLearner(const std::vector<std::string>& characters, const WordCounts& words) {
    for (const std::string& c : characters) spellings_.push_back({c, 1, 0, 0, {}});
    for (const auto& [word, count] : words) {
      words_.push_back({count, std::vector<int>(word.begin(), word.end())});
      std::vector<int> pairs;
      count_pairs(int(words_.size()) - 1, 1, pairs, {});
    }
    for (int id = int(characters.size()); id < int(spellings_.size()); id++) queue(id);
  }

  // The spellings of up to n pieces, in the order of merging. Pairs that occur once are not merged.
  std::vector<std::string> learn(int n) {
    std::vector<std::string> pieces;
    while (int(pieces.size()) < n && !queue_.empty()) {
      const Candidate best = queue_.top();
      queue_.pop();
      Spelling& s = spellings_[size_t(best.id)];
      if (s.rank >= 0) continue;
      if (s.count != best.count) {  // queued before other merges reduced its count
        queue(best.id);
        continue;
      }
      s.rank = int(pieces.size()) + 1;
      pieces.push_back(s.text);
      merge_in_words(best.id);
    }
    return pieces;
  }

 private:
  // The spelling of a symbol, or of two neighbours if merged.
  struct Spelling {
    std::string text;
    int characters;
    int rank;                // order of merging, from 1; 0: a character; -1: not merged
    int64_t count;           // of neighbours with this spelling
    std::vector<int> words;  // that have, or had, such neighbours
  };
  struct Word {
    int64_t count;
    std::vector<int> symbols;
  };
  struct Candidate {
    int64_t count;
    int id;
  };
  // SentencePiece's order: most frequent first, then shortest, then smallest by bytes.
  struct Worse {
    const std::vector<Spelling>* spellings;
    bool operator()(const Candidate& a, const Candidate& b) const {
      const Spelling &x = (*spellings)[size_t(a.id)], &y = (*spellings)[size_t(b.id)];
      if (a.count != b.count) return a.count < b.count;
      return x.characters != y.characters ? x.characters > y.characters : x.text > y.text;
    }
  };

  void queue(int id) {
    const Spelling& s = spellings_[size_t(id)];
    if (s.rank < 0 && s.count > 1) queue_.push({s.count, id});
  }

  // The id of the spelling of two neighbours; -1 if it is too long for a piece.
  int spelling_of(int left, int right) {
    const auto [known, is_new] = by_pair_.try_emplace(uint64_t(left) << 32 | uint32_t(right), -1);
    const Spelling &l = spellings_[size_t(left)], &r = spellings_[size_t(right)];
    if (!is_new || l.characters + r.characters > kMaxPieceCharacters) return known->second;
    const std::string text = l.text + r.text;
    const auto [same, unseen] = by_text_.try_emplace(text, int(spellings_.size()));
    if (unseen) spellings_.push_back({text, l.characters + r.characters, -1, 0, {}});
    return known->second = same->second;
  }

  // Adds a word's pairs to the counts (sign 1) or subtracts them (-1), and appends their ids to `pairs`. If a pair is
  // not in `before`, the word is added to its list of words.
  void count_pairs(int w, int sign, std::vector<int>& pairs, const std::vector<int>& before) {
    const Word& word = words_[size_t(w)];
    for (size_t i = 0; i + 1 < word.symbols.size(); i++) {
      const int id = spelling_of(word.symbols[i], word.symbols[i + 1]);
      if (id < 0) continue;
      Spelling& s = spellings_[size_t(id)];
      s.count += sign * word.count;
      if (sign > 0 && std::find(before.begin(), before.end(), id) == before.end() &&
          (s.words.empty() || s.words.back() != w))
        s.words.push_back(w);
      pairs.push_back(id);
    }
  }

  // Merges every occurrence of the spelling `id`, in the same way as the tokenizer.
  void merge_in_words(int id) {
    std::vector<int> changed;
    for (int w : std::exchange(spellings_[size_t(id)].words, {})) {
      std::vector<int> before, after;
      count_pairs(w, -1, before, {});
      merge_word(words_[size_t(w)].symbols);
      count_pairs(w, 1, after, before);
      changed.insert(changed.end(), after.begin(), after.end());
    }
    std::sort(changed.begin(), changed.end());
    changed.erase(std::unique(changed.begin(), changed.end()), changed.end());
    for (int c : changed) queue(c);
  }

  void merge_word(std::vector<int>& ids) {
    using namespace tokenizer_detail;
    Symbols symbols(ids.data(), ids.size());
    join_symbols(symbols, merges_, [&](const Symbol& left, const Symbol& right) -> Joined {
      const auto pair = by_pair_.find(uint64_t(left.id) << 32 | uint32_t(right.id));
      const int id = pair != by_pair_.end() ? pair->second : spelling_of(left.id, right.id);
      if (id < 0 || spellings_[size_t(id)].rank < 0) return {};
      return {id, -double(spellings_[size_t(id)].rank)};
    });
    ids.resize(symbols.compact());
  }

  std::vector<Spelling> spellings_;
  std::vector<Word> words_;
  std::unordered_map<uint64_t, int> by_pair_;
  std::unordered_map<std::string, int> by_text_;
  std::priority_queue<Candidate, std::vector<Candidate>, Worse> queue_{Worse{&spellings_}};
  tokenizer_detail::Candidates merges_;  // memory for merge_word()
};

// <unk> <s> </s> and the bytes.
inline std::vector<Tokenizer::Piece> first_pieces() {
  using Type = Tokenizer::PieceType;
  std::vector<Tokenizer::Piece> pieces = {
      {"<unk>", 0, Type::unknown}, {"<s>", 0, Type::control}, {"</s>", 0, Type::control}};
  for (int byte = 0; byte < 256; byte++) {
    constexpr char kDigits[] = "0123456789ABCDEF";
    pieces.push_back({std::string("<0x") + kDigits[byte >> 4] + kDigits[byte & 15] + ">", 0, Type::byte});
  }
  return pieces;
}

inline bool check_text(std::string_view text, std::string& error) {
  if (split_stories(text).empty()) return fail(error, "text: expected stories, found none");
  for (size_t i = 0; i < text.size();) {
    const tokenizer_detail::Utf8 c = tokenizer_detail::read_utf8(text.substr(i));
    if (c.state != c.whole)
      return fail(error, "text: expected UTF-8, found an invalid byte at offset " + std::to_string(i) +
                             "; convert the text first, for example with iconv -t UTF-8");
    i += c.length;
  }
  return true;
}

}  // namespace trainer_detail

// The size of a vocabulary of the bytes and characters of a text, without merges.
inline int smallest_vocabulary(std::string_view text) {
  std::vector<std::string> characters;
  trainer_detail::choose_alphabet(split_stories(text), characters);
  return trainer_detail::kFirstPiece + int(characters.size());
}

// Trains a vocabulary of exactly `size` pieces in total on the stories of a text in UTF-8 (see split_stories); the
// tokenizer encodes each story as a separate text. The same text gives the same vocabulary; 5 MB take a third of a
// second. On failure returns false with `error` set: the text has no stories or is not UTF-8, or `size` is too small
// for the bytes and the characters of the text, or larger than the number of pieces in the text.
inline bool train_vocabulary(std::string_view text, int size, Tokenizer::Vocabulary& out, std::string& error) {
  using namespace trainer_detail;
  if (!check_text(text, error)) return false;
  const std::vector<std::string_view> stories = split_stories(text);
  std::vector<std::string> characters;
  const Alphabet alphabet = choose_alphabet(stories, characters);
  const int smallest = kFirstPiece + int(characters.size()), merges = size - smallest;
  if (merges < 0)
    return fail(error, "vocabulary: expected at least " + std::to_string(smallest) +
                           " pieces (3 control pieces, 256 bytes, and the text's " + std::to_string(characters.size()) +
                           " characters), found " + std::to_string(size));
  std::vector<std::string> merged = PieceLearner(characters, count_words(stories, alphabet)).learn(merges);
  if (int(merged.size()) < merges)
    return fail(error, "vocabulary: expected at most " + std::to_string(smallest + int(merged.size())) +
                           " pieces, the number of pieces in this text, found " + std::to_string(size) +
                           "; choose fewer or use a longer text");
  out = Tokenizer::Vocabulary();
  out.pieces = first_pieces();
  merged.insert(merged.end(), characters.begin(), characters.end());
  for (const std::string& piece : merged)
    out.pieces.push_back({piece, -float(int(out.pieces.size()) - kFirstPiece), Tokenizer::PieceType::normal});
  out.unk = 0;
  out.bos = 1;
  out.eos = 2;
  out.add_bos = out.add_dummy_prefix = out.escape_whitespaces = out.byte_fallback = true;
  out.unk_surface = " \xE2\x81\x87 ";
  return true;
}

namespace trainer_detail {

// Fields of a protobuf message.
inline void put_varint(std::string& out, uint64_t value) {
  for (; value >= 128; value >>= 7) out += char(128 | (value & 127));
  out += char(value);
}
inline void put_number(std::string& out, int field, int value) {
  put_varint(out, uint64_t(field) << 3);
  put_varint(out, uint64_t(int64_t(value)));
}
inline void put_bytes(std::string& out, int field, std::string_view bytes) {
  put_varint(out, uint64_t(field) << 3 | 2);
  put_varint(out, bytes.size());
  out += bytes;
}
inline void put_float(std::string& out, int field, float value) {
  put_varint(out, uint64_t(field) << 3 | 5);
  tokenizer_detail::append_bytes(out, value);
}

}  // namespace trainer_detail

// The bytes of a SentencePiece .model (a ModelProto of sentencepiece_model.proto) of a SentencePiece vocabulary.
// Tokenizer::parse_sentencepiece restores the vocabulary, if add_bos is set whenever it has a BOS.
inline std::string sentencepiece_model(const Tokenizer::Vocabulary& v) {
  using namespace trainer_detail;
  std::string model, trainer, normalizer;
  for (const Tokenizer::Piece& p : v.pieces) {
    std::string piece;
    put_bytes(piece, 1, p.text);
    put_float(piece, 2, p.score);
    if (p.type != Tokenizer::PieceType::normal) put_number(piece, 3, int(p.type));
    put_bytes(model, 1, piece);
  }
  const auto text = [&](int id) { return id < 0 ? std::string() : v.pieces[size_t(id)].text; };
  put_number(trainer, 3, 2);  // model_type: BPE
  put_number(trainer, 4, int(v.pieces.size()));
  put_float(trainer, 10, float(kCoverage));
  put_number(trainer, 25, true);  // split_digits
  put_number(trainer, 35, v.byte_fallback);
  put_number(trainer, 40, v.unk);
  put_number(trainer, 41, v.bos);
  put_number(trainer, 42, v.eos);
  put_number(trainer, 43, -1);  // pad_id: none
  put_bytes(trainer, 44, v.unk_surface);
  if (v.unk >= 0) put_bytes(trainer, 45, text(v.unk));
  if (v.bos >= 0) put_bytes(trainer, 46, text(v.bos));
  if (v.eos >= 0) put_bytes(trainer, 47, text(v.eos));
  put_bytes(normalizer, 1, "identity");
  put_number(normalizer, 3, v.add_dummy_prefix);
  put_number(normalizer, 4, v.remove_extra_whitespaces);
  put_number(normalizer, 5, v.escape_whitespaces);
  put_bytes(model, 2, trainer);
  put_bytes(model, 3, normalizer);
  return model;
}

}  // namespace pocket
