// instruct.hpp: generates instructions for plain stories, to train a model to follow them. An instruction describes its
// story: some of the words, rare ones with higher probability; features (dialogue, moral, sad ending) that simple rules
// detect; and, as a summary, the sentence with the most rare words. instruction.hpp has the format.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "../export/engine.hpp"
#include "instruction.hpp"
#include "stories.hpp"

namespace pocket {

namespace instruct_detail {

inline bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
inline bool is_letter(char c) { return is_lower(c) || (c >= 'A' && c <= 'Z') || uint8_t(c) >= 0x80; }

// The words of a text that consist of lower-case letters a to z, each once. This excludes names.
inline std::set<std::string> small_words(std::string_view text) {
  std::set<std::string> words;
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    bool small = true;
    for (; i < text.size() && (is_letter(text[i]) || text[i] == '\''); i++) small = small && is_lower(text[i]);
    if (small && i - begin >= 3) words.insert(std::string(text.substr(begin, i - begin)));
    i += i == begin;
  }
  return words;
}

// Function words, and verbs of every story. They do not describe a particular story.
inline bool is_function_word(const std::string& word) {
  static const std::set<std::string> kWords = {
      "about",   "after", "all",      "also",   "always",  "and",    "any",    "anymore", "are",        "around",
      "asked",   "away",  "back",     "became", "been",    "before", "began",  "being",   "both",       "but",
      "called",  "came",  "can",      "could",  "decided", "did",    "does",   "doing",   "down",       "each",
      "even",    "every", "everyone", "felt",   "for",     "from",   "gave",   "get",     "getting",    "goes",
      "going",   "gone",  "got",      "had",    "has",     "have",   "her",    "here",    "herself",    "him",
      "himself", "his",   "how",      "into",   "its",     "just",   "knew",   "know",    "let",        "like",
      "looked",  "made",  "make",     "many",   "more",    "most",   "much",   "must",    "named",      "never",
      "not",     "now",   "off",      "one",    "only",    "other",  "our",    "out",     "over",       "put",
      "really",  "said",  "saw",      "say",    "see",     "she",    "should", "some",    "something",  "soon",
      "started", "still", "such",     "than",   "that",    "the",    "their",  "them",    "themselves", "then",
      "there",   "these", "they",     "thing",  "things",  "this",   "those",  "thought", "through",    "told",
      "too",     "took",  "tried",    "until",  "upon",    "very",   "wanted", "was",     "way",        "well",
      "went",    "were",  "what",     "when",   "where",   "which",  "while",  "who",     "why",        "will",
      "with",    "would", "yes",      "you",    "your"};
  return kWords.count(word) > 0;
}

// The sentences of a story without quotation marks and line breaks, with their full stop.
inline std::vector<std::string> sentences(std::string_view story) {
  std::vector<std::string> out;
  for (size_t begin = 0; begin < story.size();) {
    size_t end = story.find_first_of(".!?", begin);
    if (end == story.npos) break;
    end = std::min(story.find_first_not_of(".!?", end), story.size());
    const std::string s(story.substr(begin, end - begin));
    const bool whole = end == story.size() || story[end] == ' ' || story[end] == '\n';
    if (whole && s.find_first_of("\"\n") == s.npos) out.push_back(s);
    begin = std::min(story.find_first_not_of(" \n", end), story.size());
  }
  return out;
}

inline bool has_any(const std::set<std::string>& words, std::initializer_list<const char*> wanted) {
  return std::any_of(wanted.begin(), wanted.end(), [&](const char* w) { return words.count(w) > 0; });
}

// The features of a story that the rules detect. A story may have others.
inline std::vector<std::string> features_of(std::string_view story) {
  std::vector<std::string> found;
  if (std::count(story.begin(), story.end(), '"') >= 4) found.push_back(kFeatures[0]);
  const size_t end = story.find_last_of(".!?", story.size() < 3 ? 0 : story.size() - 3);
  const std::string_view last = story.substr(end == story.npos ? 0 : end + 1);
  const std::set<std::string> words = small_words(last);
  if (has_any(words, {"moral", "lesson", "learned", "learnt"}))
    found.push_back(kFeatures[1]);
  else if (has_any(words, {"sad", "cried", "crying", "lonely", "alone", "died", "sorry", "unhappy", "hurt"}) &&
           !has_any(words, {"happy", "happily", "glad", "smiled", "laughed", "love", "loved", "fun", "friend",
                            "friends", "better", "safe", "not", "never", "again", "hugged"}))
    found.push_back(kFeatures[2]);
  return found;
}

}  // namespace instruct_detail

// Generates instructions, with the word frequencies of a set of stories.
class Instructor {
 public:
  explicit Instructor(const std::vector<std::string_view>& stories) : stories_(double(stories.size())) {
    for (std::string_view story : stories)
      for (const std::string& word : instruct_detail::small_words(story)) stories_with_[word]++;
  }

  // An instruction for a story. Each field is chosen at random; all may be empty. Deterministic for a generator state.
  Instruction instruction(std::string_view story, std::mt19937_64& random) const {
    Instruction i;
    if (share(random) < 0.75) i.words = choose_words(story, 1 + int(4 * share(random)), random);
    if (share(random) < 0.5) i.features = instruct_detail::features_of(story);
    if (share(random) < 0.25) i.summary = summary(story);
    return i;
  }

 private:
  static constexpr double kCommon = 0.5;  // words in more than this share of the stories are not used
  static constexpr size_t kLongestSummary = 120;

  // Uniform in [0, 1), the same with every standard library.
  static double share(std::mt19937_64& random) { return double(random() >> 11) / 9007199254740992.0; }

  // 0 for common words, and for words of a single story, which cannot be learned.
  double rarity(const std::string& word) const {
    const auto known = stories_with_.find(word);
    if (known == stories_with_.end() || known->second < 2 || known->second > kCommon * stories_ ||
        instruct_detail::is_function_word(word))
      return 0;
    return exact::log(stories_ / known->second);
  }

  // Up to n different words, drawn with probabilities proportional to their rarity.
  std::vector<std::string> choose_words(std::string_view story, int n, std::mt19937_64& random) const {
    const std::set<std::string> all = instruct_detail::small_words(story);
    std::vector<std::string> left(all.begin(), all.end()), chosen;
    for (; n > 0; n--) {
      double sum = 0;
      for (const std::string& word : left) sum += rarity(word);
      double at = share(random) * sum;
      size_t i = 0;
      while (i < left.size() && (at -= rarity(left[i])) >= 0) i++;
      if (i == left.size()) break;
      chosen.push_back(left[i]);
      left.erase(left.begin() + long(i));
    }
    return chosen;
  }

  std::string summary(std::string_view story) const {
    std::string best;
    double most = 0;
    for (const std::string& sentence : instruct_detail::sentences(story)) {
      double sum = 0;
      for (const std::string& word : instruct_detail::small_words(sentence)) sum += rarity(word);
      if (sum > most && sentence.size() <= kLongestSummary) {
        most = sum;
        best = sentence;
      }
    }
    return best;
  }

  double stories_;
  std::unordered_map<std::string, int> stories_with_;
};

// Stories in order as one text (see split_stories). A share of them, drawn at random, follows an instruction, which may
// be empty. The same seed gives the same text on every machine; other seeds give other instructions.
inline std::string instruct_stories(const std::vector<std::string_view>& stories, uint64_t seed, double share = 1) {
  const Instructor instructor(stories);
  std::mt19937_64 random(seed);
  std::string out;
  for (std::string_view story : stories) {
    const bool chosen = double(random() >> 11) * 0x1p-53 < share;
    const std::string prompt = chosen ? instruction_prompt(instructor.instruction(story, random)) : "";
    out.append(prompt).append(prompt.empty() ? "" : " ").append(story).append("\n").append(kStoryEnd).append("\n");
  }
  return out;
}

}  // namespace pocket
