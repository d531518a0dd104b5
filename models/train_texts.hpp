// train_texts.hpp: the texts of models/train: reading, splitting off a validation part, and the vocabulary.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "examples.hpp"
#include "instruct.hpp"
#include "tokenizer_trainer.hpp"
#include "train_shape.hpp"
#include "trained_architecture.hpp"

namespace pocket {

// The stories for training and validation, or the lines with examples, as views of the texts.
struct Texts {
  std::string bytes, valid_bytes, instructed;
  std::vector<std::string_view> train, valid;
  std::vector<size_t> train_lines, valid_lines;  // of examples: their line numbers; else empty

  // The part of `bytes` that is not for validation.
  std::string_view train_bytes() const {
    const bool held_back = valid_bytes.empty() && !valid.empty();
    return std::string_view(bytes).substr(0, held_back ? size_t(valid[0].data() - bytes.data()) : bytes.size());
  }
};

namespace train_detail {

inline std::string read_stories(const std::string& path) {
  std::string text = read_all(path, longest_training_text()), error;
  if (!trainer_detail::check_text(text, error)) throw Failure{1, path + ": " + error};
  return text;
}

// Moves the last fiftieth of the stories, or of a text that is one story, to the validation part. One story is divided
// at the first space or line break there, or, in a text without, between two characters.
inline void hold_back(Texts& t) {
  if (t.train.size() > 1) {
    const size_t n = std::min<size_t>(std::max<size_t>(t.train.size() / 50, 1), 1000);
    t.valid.assign(t.train.end() - ptrdiff_t(n), t.train.end());
    t.train.resize(t.train.size() - n);
    return;
  }
  std::string_view& all = t.train[0];
  size_t cut = all.size() - all.size() / 50;
  while (cut < all.size() && (all[cut] & 0xC0) == 0x80) cut++;  // within a character of UTF-8
  const size_t space = all.find_first_of(" \n", cut);
  if (space != all.npos) cut = space;
  if (cut == all.size()) return;
  t.valid = {all.substr(space == all.npos ? cut : cut + 1)};
  all = all.substr(0, cut);
}

}  // namespace train_detail

// Reads the lines of examples. Without --valid a fiftieth of them is for validation: of each 50 one, so that a file in any
// order is represented. Throws Failure.
inline Texts read_examples(const TrainOptions& o) {
  Texts t;
  const auto lines_of = [](const std::string& path, std::string& bytes) {
    bytes = read_all(path, longest_training_text());
    const auto lines = numbered_lines(bytes);
    if (lines.empty()) throw Failure{1, path + ": expected examples, one JSON object per line, found none"};
    return lines;
  };
  const auto add = [](const auto& line, std::vector<std::string_view>& lines, std::vector<size_t>& numbers) {
    lines.push_back(line.first);
    numbers.push_back(line.second);
  };
  const auto lines = lines_of(o.model, t.bytes);
  const size_t last = lines.size() - 1;
  for (size_t i = 0; i <= last; i++) {
    const bool valid = o.valid.empty() && last > 0 && (i % 50 == 49 || (i == last && last < 49));
    valid ? add(lines[i], t.valid, t.valid_lines) : add(lines[i], t.train, t.train_lines);
  }
  if (!o.valid.empty())
    for (const auto& line : lines_of(o.valid, t.valid_bytes)) add(line, t.valid, t.valid_lines);
  return t;
}

// Reads the text, and the validation text if there is one. Throws Failure.
inline Texts read_texts(const TrainOptions& o) {
  Texts t;
  if (has_examples(o.model)) return read_examples(o);
  t.bytes = train_detail::read_stories(o.model);
  t.train = split_stories(t.bytes);
  if (o.valid.empty()) {
    train_detail::hold_back(t);
  } else {
    t.valid_bytes = train_detail::read_stories(o.valid);
    t.valid = split_stories(t.valid_bytes);
  }
  return t;
}

// Puts instructions in front of half of the stories for training. The others stay plain, because most prompts are
// plain.
inline void add_instructions(Texts& t, uint64_t seed) {
  t.instructed = instruct_stories(t.train, seed, 0.5);
  t.train = split_stories(t.instructed);
}

// The stories as token ids. Throws Failure when interrupted.
inline TokenText encode_stories(const std::vector<std::string_view>& stories, const TrainedArchitecture& architecture) {
  TokenText text;
  for (std::string_view story : stories) {
    architecture.add_story(text, story);
    stop_if_interrupted();
  }
  return text;
}

// The examples of lines as token ids. What was left out is reported. Throws Failure.
inline TokenText encode_examples(const std::string& path, const std::vector<std::string_view>& lines,
                                 const std::vector<size_t>& numbers, ExampleReader reader) {
  TokenText text;
  for (size_t i = 0; i < lines.size(); i++) {
    if (!reader.add(path, lines[i], numbers[i], text)) throw Failure{1, reader.error};
    stop_if_interrupted();
  }
  if (reader.too_long > 0)
    print_message("train",
                  path + ": left out " + std::to_string(reader.too_long) + " of " + std::to_string(lines.size()) +
                      " examples, which are longer than --ctx; the longest has " + std::to_string(reader.longest) +
                      " tokens or more, the first is in line " + std::to_string(reader.first_long));
  return text;
}

inline uint64_t hash_of(const TokenText& t) {
  uint64_t counts = 0;
  for (size_t i = 0; i < t.counts.size(); i++) counts = (counts ^ t.counts[i]) * 0x9E3779B97F4A7C15 + i;
  return counts ^ hash_bytes(t.ids.data(), t.ids.size() * sizeof(int)) ^
         hash_bytes(t.begins.data(), t.begins.size() * sizeof(size_t)) ^
         hash_bytes(t.likely.data(), t.likely.size() * sizeof(Candidate));
}

// Rejects byte 0, which pads texts in a MEGABYTE and cannot be trained on.
inline void reject_byte_0(const std::string& text, const std::string& path) {
  const size_t at = text.find('\0');
  if (at != text.npos)
    throw Failure{
        1, path + ": text: byte 0 is not supported by --arch megabyte, found one at offset " + std::to_string(at)};
}

// Trains a vocabulary on the texts for training: of --vocab pieces, or as many as suit the text. Returns the tokenizer's blob.
inline std::string new_vocabulary(const TrainOptions& o, const Texts& texts) {
  Tokenizer::Vocabulary v;
  std::string error;
  const std::string examples = texts.train_lines.empty() ? "" : texts_of_examples(texts.train);
  const std::string_view text = !examples.empty()          ? examples
                                : texts.instructed.empty() ? texts.train_bytes()
                                                           : texts.instructed;
  int size = o.vocab, smallest = size;
  if (!o.vocab) {  // at least an eighth of a vocabulary is merges, also of a text with thousands of characters
    const int suitable = size_for(texts.bytes.size()).vocab;
    smallest = smallest_vocabulary(text);
    size = std::max(suitable, smallest + suitable / 8);
  }
  while (!train_vocabulary(text, size, v, error)) {  // a short text may have fewer pieces
    if (size == smallest) throw Failure{1, o.model + ": " + error};
    size = std::max(smallest, size - size / 8);
  }
  std::fprintf(stderr, "train: trained a vocabulary of %d tokens\n", size);
  return Tokenizer::to_blob(v);
}

// The blob of the tokenizer: from --init, --tokenizer or the teacher, or a new one. teacher: null if there is none.
inline std::string tokenizer_for(const TrainOptions& o, const Texts& texts, const Model& init, const Model* teacher) {
  if (o.megabyte()) return Tokenizer::to_blob(byte_vocabulary());
  if (!o.init.empty()) return std::string(init.tokenizer_bytes());
  if (o.tokenizer.empty()) return teacher ? std::string(teacher->tokenizer_bytes()) : new_vocabulary(o, texts);
  Tokenizer::Vocabulary v;
  std::string error;
  if (!Tokenizer::parse_sentencepiece(read_all(o.tokenizer, kLongestTokenizer), v, error))
    throw Failure{1, o.tokenizer + ": " + error};
  return Tokenizer::to_blob(v);
}

}  // namespace pocket
