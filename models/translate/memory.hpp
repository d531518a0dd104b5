// memory.hpp: a translation memory: pairs of a source and its translation, and the pairs whose source is most similar to
// a given one.
//
// The similarity of two texts is the Dice coefficient of their character trigrams, each weighted by how rare it is:
// twice the weight of the trigrams in both, divided by the weights of both texts. 1: the same trigrams; 0: none in common.
// Upper and lower case of ASCII count as the same. An index from each trigram to the sources that have it finds the
// nearest of ten thousand in less than a millisecond.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../examples.hpp"

namespace pocket {

// A text and its translation.
struct Pair {
  std::string source, target;
};

// A pair of the memory, and its similarity to what was searched for.
struct Match {
  size_t index;
  double score;
};

class TranslationMemory {
 public:
  std::vector<Pair> pairs;

  // Reads pairs in JSON Lines, objects with two strings `prompt` and `completion`, and indexes them. White space around the
  // texts is left out; tabs and line breaks within become spaces. Throws Failure.
  void read(const std::string& path) {
    const std::string text = read_all(path, kLongestMemory);
    for (const auto& [line, number] : numbered_lines(text)) add(path + ":" + std::to_string(number), line);
    if (pairs.empty()) throw Failure{1, path + ": expected pairs, one JSON object per line, found none"};
    index();
  }

  // Indexes `pairs`; call it when they have changed.
  void index() {
    firsts_.clear();
    holders_.clear();
    weights_.clear();
    for (size_t i = 0; i < pairs.size(); i++) firsts_.emplace(one_row(pairs[i].source), i);
    for (size_t i = 0; i < pairs.size(); i++)
      for (const Trigram& t : trigrams_of(pairs[i].source)) holders_[t.key].push_back({uint32_t(i), t.count});
    for (const Pair& pair : pairs) weights_.push_back(weight_of(trigrams_of(pair.source)));
  }

  // The first pair with this source; null if there is none.
  const Pair* find(std::string_view source) const {
    const auto found = firsts_.find(one_row(source));
    return found == firsts_.end() ? nullptr : &pairs[found->second];
  }

  // The `count` pairs that are most similar to the source, best first; of equal ones the first in the memory. A pair for
  // which skip(pair) is true is left out.
  template <class Skip> std::vector<Match> nearest(std::string_view source, size_t count, const Skip& skip) const {
    const std::vector<Trigram> wanted = trigrams_of(source);
    const double weight = weight_of(wanted);
    std::vector<double> common(pairs.size());
    for (const Trigram& t : wanted) {
      const auto holders = holders_.find(t.key);
      if (holders == holders_.end()) continue;
      const double w = weight_of(t.key);
      for (const Holder& h : holders->second) common[h.pair] += w * std::min(t.count, h.count);
    }
    std::vector<Match> found;
    for (size_t i = 0; i < pairs.size(); i++)
      if (common[i] > 0 && !skip(pairs[i])) found.push_back({i, 2 * common[i] / (weight + weights_[i])});
    const size_t n = std::min(count, found.size());
    std::partial_sort(found.begin(), found.begin() + ptrdiff_t(n), found.end(), [](const Match& a, const Match& b) {
      return a.score != b.score ? a.score > b.score : a.index < b.index;
    });
    found.resize(n);
    return found;
  }
  std::vector<Match> nearest(std::string_view source, size_t count = 1) const {
    return nearest(source, count, [](const Pair&) { return false; });
  }

 private:
  static constexpr uint64_t kLongestMemory = uint64_t(1) << 30;  // bytes of a file

  // A pair whose source has a trigram, and how often.
  struct Holder {
    uint32_t pair;
    int count;
  };
  // A trigram, and how often a text has it.
  struct Trigram {
    uint32_t key;  // its three bytes
    int count;
  };

  void add(const std::string& place, std::string_view line) {
    JsonDocument document;
    std::string error;
    if (!document.parse(place, std::string(line))) throw Failure{1, document.error};
    const JsonValue root = document.root();
    for (const char* key : {"prompt", "completion"})
      if (!root.need(key, JsonKind::string, error)) throw Failure{1, error};
    pairs.push_back({one_row(root.find("prompt").string()), one_row(root.find("completion").string())});
  }

  // The text without white space around it, and with spaces instead of tabs and line breaks, which end the texts of a
  // row.
  static std::string one_row(std::string_view text) {
    constexpr std::string_view spaces = " \t\r\n\v\f";
    const size_t begin = std::min(text.find_first_not_of(spaces), text.size());
    std::string row(text.substr(begin, text.find_last_not_of(spaces) + 1 - begin));
    for (char& c : row)
      if (c == '\t' || c == '\r' || c == '\n') c = ' ';
    return row;
  }

  // The trigrams of the text's bytes with a space on both sides, sorted.
  static std::vector<Trigram> trigrams_of(std::string_view text) {
    std::vector<uint32_t> keys;
    uint32_t key = ' ';
    const auto add = [&](char c) {
      const uint8_t byte = uint8_t(c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c);
      key = (key << 8 | byte) & 0xFFFFFF;
    };
    for (size_t i = 0; i <= text.size(); i++) {
      add(i < text.size() ? text[i] : ' ');
      if (i > 0 || text.empty()) keys.push_back(key);
    }
    std::sort(keys.begin(), keys.end());
    std::vector<Trigram> all;
    for (const uint32_t k : keys) {
      if (all.empty() || all.back().key != k) all.push_back({k, 0});
      all.back().count++;
    }
    return all;
  }

  // ln(1 + N / n) of a trigram in n of N sources.
  double weight_of(uint32_t key) const {
    const auto holders = holders_.find(key);
    const size_t n = holders == holders_.end() ? 1 : holders->second.size();
    return exact::log(1 + double(pairs.size()) / double(n));
  }
  double weight_of(const std::vector<Trigram>& source) const {
    double sum = 0;
    for (const Trigram& t : source) sum += weight_of(t.key) * t.count;
    return sum;
  }

  std::vector<double> weights_;  // of each pair: the sum of its source's trigrams' weights
  std::unordered_map<uint32_t, std::vector<Holder>> holders_;  // of each trigram
  std::unordered_map<std::string, size_t> firsts_;             // of each source: its first pair
};

// ---- The layout of texts for the translator ----
//
// Rows of a table, source and translation, one after the other. A model translates by continuing the table: the rows
// before the last one are its context, the most similar one last.
//
//     Open a file.<tab> Avaa tiedosto.<newline>
//     Close a file.<tab> Sulje tiedosto.<newline>
//
// Except at the beginning of the text, a space is in front of source and translation, so that a word has the same tokens
// in all places.

inline std::string row_prompt(std::string_view source, bool first) {
  return (first ? "" : " ") + std::string(source) + "\t";
}
inline std::string row_completion(std::string_view target) { return " " + std::string(target) + "\n"; }

}  // namespace pocket
