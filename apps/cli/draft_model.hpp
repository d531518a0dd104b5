// draft_model.hpp: the small model of --draft.
#pragma once

#include "draft.hpp"
#include "language_model.hpp"

namespace pocket::cli {

// A model with the tokenizer of the large one, whose tokens it guesses.
class DraftModel {
 public:
  // large_path: the file of the large model, for messages. Throws Failure.
  DraftModel(const std::string& path, Load load, LanguageModel& large, const std::string& large_path) {
    if (!model_.open(path.c_str(), load)) throw Failure{1, "--draft: " + model_.error};
    if (model_.vocab_size() != large.vocab_size() || model_.tokenizer_bytes() != large.file().tokenizer_bytes())
      throw Failure{1, "--draft: " + path + ": expected the vocabulary of " + large_path +
                           ", found another; models/train --teacher " + large_path + " makes a model with it"};
  }

  // Guesses for a text of a session with these options, `options.context` given; see Draft. Throws Failure.
  std::unique_ptr<Draft> start(SessionOptions options, const std::vector<int>& text) const {
    options.context = std::min(options.context, model_.config.max_seq_len);
    auto draft = std::make_unique<Draft>(model_, options, text, seconds);
    if (!draft->error().empty()) throw Failure{1, "--draft: " + draft->error()};
    return draft;
  }

 private:
  Model model_;
};

}  // namespace pocket::cli
