// consensus.hpp: the one of several texts that is most similar to all of them.
//
// A translation that resembles the other likely ones is right more often than the most likely one (minimum Bayes risk
// decoding: Kumar and Byrne 2004, aclanthology.org/N04-1022). Similarity is chrF (Popovic 2015, aclanthology.org/W15-3049).
#pragma once

#include <algorithm>
#include <array>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "../../tokenizer.hpp"

namespace pocket::translate {

// A text, and how much similarity to it counts.
struct Candidate {
  std::string text;
  double weight;
};

// The n-grams of a text's characters without white space, n from 1 to 6, sorted.
using Ngrams = std::array<std::vector<std::string>, 6>;

inline Ngrams ngrams_of(std::string_view text) {
  std::vector<std::string_view> characters;
  for (size_t at = 0; at < text.size(); at += characters.back().size())
    characters.push_back(text.substr(at, tokenizer_detail::read_utf8(text.substr(at)).length));
  const auto is_space = [](std::string_view c) { return c.find_first_of(" \t\r\n\v\f") == 0; };
  characters.erase(std::remove_if(characters.begin(), characters.end(), is_space), characters.end());
  Ngrams all;
  for (size_t first = 0; first < characters.size(); first++) {
    std::string ngram;
    for (size_t n = 0; n < all.size() && first + n < characters.size(); n++)
      all[n].push_back(ngram += characters[first + n]);
  }
  for (auto& ngrams : all) std::sort(ngrams.begin(), ngrams.end());
  return all;
}

// chrF of a text against a reference, from 0 to 1: precision and recall are the means over all n, and recall counts twice.
inline double chrf(const Ngrams& text, const Ngrams& reference) {
  double precision = 0, recall = 0;
  int used = 0;
  for (size_t n = 0; n < text.size(); n++) {
    const auto &a = text[n], &b = reference[n];
    if (a.empty() || b.empty()) continue;
    std::vector<std::string_view> common;
    std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(common));
    precision += double(common.size()) / double(a.size());
    recall += double(common.size()) / double(b.size());
    used++;
  }
  return precision + recall > 0 ? 5 * precision * recall / (4 * precision + recall) / used : 0;
}

// The candidate with the highest sum of chrF against every candidate, times its weight; of equal ones the first. At least
// one candidate.
inline const Candidate& consensus(const std::vector<Candidate>& candidates) {
  std::vector<Ngrams> ngrams;
  for (const Candidate& c : candidates) ngrams.push_back(ngrams_of(c.text));
  size_t best = 0;
  double most = -1;
  for (size_t i = 0; i < candidates.size(); i++) {
    double sum = 0;
    for (size_t j = 0; j < candidates.size(); j++) sum += candidates[j].weight * chrf(ngrams[i], ngrams[j]);
    if (sum <= most) continue;
    most = sum;
    best = i;
  }
  return candidates[best];
}

}  // namespace pocket::translate
