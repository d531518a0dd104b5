// translator.hpp: translates lines of text with a model that was trained on pairs (models/README.md).
//
// With a translation memory, the model sees the pairs whose sources are most similar to the line, nearest last, as rows
// before the line's own (neural fuzzy repair: Bulte and Tezcan 2019, aclanthology.org/P19-1175). The translation is the
// consensus (consensus.hpp) of the hypotheses of the beam search, which together count 1, and of the translations of those
// pairs, which count Settings::trust times the similarity each. A line that the memory has is translated as there.
#pragma once

#include "../../export/model_texts.hpp"
#include "../../models/translate/memory.hpp"
#include "beam.hpp"
#include "consensus.hpp"

namespace pocket::translate {

// How lines are translated.
struct Settings {
  int beams = 8;
  int matches = 2;  // pairs of the memory for a line, at most
  float trust = 2;  // in those pairs; in the model: 1
};

// A model with its texts. Shared by threads.
class TranslationModel {
 public:
  Model model;
  Tokenizer tokenizer;
  std::vector<bool> ends;  // of each token, whether it ends a row of the table

  // Throws Failure.
  void open(const std::string& path, Load load = Load::map) {
    std::string error;
    if (!model.open(path.c_str(), load)) throw Failure{1, model.error};
    ChatTemplate chat;
    if (!tokenizer.load(model.tokenizer_bytes())) throw Failure{1, path + ": " + tokenizer.error};
    if (!load_chat_template(model, tokenizer, chat, error)) throw Failure{1, path + ": " + error};
    for (int id = 0; id < model.config.vocab_size; id++)
      ends.push_back(id < tokenizer.size() && text_of(tokenizer, {id}).find('\n') != std::string::npos);
    if (std::find(ends.begin(), ends.end(), true) == ends.end())
      throw Failure{1, path + ": expected a translator, whose vocabulary has a line break; see models/README.md"};
    for (const int id : model.stop_ids) ends[size_t(id)] = true;
  }
};

// Translates lines. One per thread.
class Translator {
 public:
  // memory: null for none. All outlive the object. Throws Failure.
  Translator(const TranslationModel& model, const TranslationMemory* memory, const Settings& settings,
             const SessionOptions& options)
      : m_(model), memory_(memory), settings_(settings), beam_(model.model, options, settings.beams, model.ends) {}

  // The translation of a line, incomplete if the program is interrupted. A blank line stays as it is; white space around
  // the text is kept. Throws Failure.
  std::string line(std::string_view text) {
    const size_t begin = text.find_first_not_of(kSpaces);
    if (begin == text.npos) return std::string(text);
    const size_t end = text.find_last_not_of(kSpaces) + 1;
    const Pair* const pair = known(text);
    const std::string out = pair ? pair->target : pieces(text.substr(begin, end - begin));
    return std::string(text.substr(0, begin)) + out + std::string(text.substr(end));
  }

 private:
  static constexpr const char* kSpaces = " \t\r\v\f";
  static constexpr size_t kLongestPiece = 400;  // bytes; the training has no longer sources

  // The pair of the memory with this source; null if there is none.
  const Pair* known(std::string_view source) const { return memory_ ? memory_->find(source) : nullptr; }

  // Translates a text that begins with no space, piece by piece.
  std::string pieces(std::string_view rest) {
    std::string out;
    while (!rest.empty() && !interrupted) {
      size_t most = kLongestPiece, n = piece_length(rest, most);
      const auto fits = [&] { return ids_of(m_.tokenizer, rest.substr(0, n)).size() < size_t(beam_.context()) / 3; };
      while (most > 1 && !fits()) n = piece_length(rest, most /= 2);
      out += (out.empty() ? "" : " ") + piece(rest.substr(0, n));
      rest.remove_prefix(std::min(rest.find_first_not_of(kSpaces, n), rest.size()));
    }
    return out;
  }

  // The length of the first piece of a text that begins with no space: the whole text, or if it has more bytes as many
  // sentences as fit, or else words, or else characters.
  static size_t piece_length(std::string_view text, size_t most) {
    if (text.size() <= most) return text.size();
    size_t sentence = 0, word = 0, character = 0;
    for (size_t i = 1; i <= most; i++) {
      const bool space = text[i] == ' ' || text[i] == '\t';
      if (space) word = i;
      if (space && std::string_view(".!?:;").find(text[i - 1]) != std::string_view::npos) sentence = i;
      if ((text[i] & 0xC0) != 0x80) character = i;
    }
    if (sentence > 0) return sentence;
    return word > 0 ? word : std::max<size_t>(character, 1);
  }

  std::string piece(std::string_view text) {
    if (const Pair* pair = known(text)) return pair->target;
    std::string source(text);
    std::replace(source.begin(), source.end(), '\t', ' ');  // a tab would end the source
    std::vector<Match> matches;
    if (memory_) matches = memory_->nearest(source, size_t(settings_.matches));
    const std::vector<int> own = ids_of(m_.tokenizer, row_prompt(source, true));
    const size_t most = 2 * own.size() + 30, context = size_t(beam_.context());
    if (own.size() + 1 >= context)
      throw Failure{1, "expected at most " + std::to_string(context - 2) + " tokens without a space, found " +
                           std::to_string(own.size())};
    beam_.begin(prompt(source, matches, context - std::min(context, most)));
    const std::vector<Hypothesis> hypotheses = beam_.search(most);
    std::vector<Candidate> candidates;
    for (const Hypothesis& h : hypotheses)
      candidates.push_back({text_of(m_.tokenizer, h.ids), 1 / double(hypotheses.size())});
    if (settings_.trust > 0)
      for (const Match& match : matches)
        candidates.push_back({memory_->pairs[match.index].target, double(settings_.trust) * match.score});
    return consensus(candidates).text;
  }

  // The tokens of the table up to the source: the nearest pairs, as many as leave room, and the source.
  std::vector<int> prompt(const std::string& source, const std::vector<Match>& matches, size_t room) const {
    std::string rows;
    std::vector<int> ids = ids_of(m_.tokenizer, row_prompt(source, true));
    for (const Match& match : matches) {
      const Pair& pair = memory_->pairs[match.index];
      const std::string more =
          row_prompt(pair.source, true) + row_completion(pair.target) + (rows.empty() ? "" : " ") + rows;
      std::vector<int> longer = ids_of(m_.tokenizer, more + row_prompt(source, false));
      if (longer.size() > room) break;
      rows = more;
      ids = std::move(longer);
    }
    return ids;
  }

  const TranslationModel& m_;
  const TranslationMemory* memory_;
  const Settings settings_;
  BeamSearch beam_;
};

}  // namespace pocket::translate
