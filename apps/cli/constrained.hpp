// constrained.hpp: --grammar and --schema: texts that follow a grammar.
#pragma once

#include <optional>

#include "../grammar/json_schema.hpp"
#include "job.hpp"

namespace pocket::cli {

// Reads the file of --grammar or --schema; null without these options. Throws Failure.
inline std::shared_ptr<TokenGrammar> open_grammar(const Job& job) {
  const Arguments& a = job.args;
  if (!a.constrained()) return nullptr;
  const std::string& path = a.schema.empty() ? a.grammar : a.schema;
  const std::string text = read_all(path, kLongestGrammar);
  std::string error;
  const auto grammar = a.schema.empty() ? parse_gbnf(path, text, error) : schema_grammar(path, text, error);
  if (!grammar) throw Failure{1, error};
  return std::make_shared<TokenGrammar>(
      grammar, std::make_shared<const Vocabulary>(job.model->tokenizer(), job.model->vocab_size()));
}

// A sampler that picks tokens which a grammar allows, between begin() and end(). Else it is a Sampler.
class ConstrainedSampler : public Sampler {
 public:
  // grammar: of open_grammar().
  ConstrainedSampler(const Job& job, const SamplerOptions& options, std::shared_ptr<TokenGrammar> grammar)
      : Sampler(options), job_(job), tokenizer_(job.model->tokenizer()), grammar_(std::move(grammar)) {}

  // A new text of the grammar begins, after what the stream has printed. end_ids: tokens that end it.
  void begin(const std::vector<int>& end_ids, const Tokenizer::Stream& stream) {
    if (grammar_) constraint_.emplace(grammar_, end_ids, at_text_start(tokenizer_, stream));
  }

  int operator()(const float* logits, int n) {
    const auto pick = [&] {
      return constraint_ ? sample_allowed(*this, *constraint_, logits, n) : Sampler::operator()(logits, n);
    };
    if (!job_.explanation) return pick();
    job_.explanation->begin_choice();
    const int id = pick();
    job_.explanation->end_choice([&] { return explain::explain_choice(id, logits, n, options_, work_, candidates_); });
    return id;
  }

  // The guesses for the next tokens, up to the first one that the grammar does not allow.
  std::vector<int> allowed(std::vector<int> guesses) const {
    if (!constraint_) return guesses;
    Constraint copy = *constraint_;
    size_t n = 0;
    while (n < guesses.size() && copy.accept(guesses[n])) n++;
    guesses.resize(n);
    return guesses;
  }

  // Whether the text ends here: nothing can follow.
  bool must_end() const { return constraint_ && constraint_->must_end(); }
  // Whether no token can continue the text, which is not complete.
  bool stuck() const { return constraint_ && constraint_->stuck(); }
  // Why a text that has ended is not complete; "": it is, or there is no grammar. end: the reason of its end.
  std::string incomplete(const std::string& end) const {
    if (!constraint_ || constraint_->can_end()) return "";
    if (constraint_->stuck())
      return "the text is not complete: no token of the model can continue it as the grammar requires";
    return "the text is not complete by the grammar; it was ended by: " + end;
  }

 private:
  const Job& job_;
  const Tokenizer& tokenizer_;
  std::shared_ptr<TokenGrammar> grammar_;
  std::optional<Constraint> constraint_;
};

}  // namespace pocket::cli
