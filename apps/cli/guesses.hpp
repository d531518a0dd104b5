// guesses.hpp: --lookup and --draft: guesses of the next tokens, which save forward passes.
#pragma once

#include <optional>

#include "constrained.hpp"
#include "draft_model.hpp"
#include "job.hpp"
#include "lookup.hpp"

namespace pocket::cli {

// Guesses for a growing text: of --lookup where the text repeats itself, else of --draft.
class Guesses {
 public:
  // text: all tokens so far, of which the last one is not processed yet; it must outlive this object. Throws Failure.
  Guesses(const Job& job, const std::vector<int>& text) {
    if (job.args.lookup) lookup_.emplace(text, seconds);
    if (job.args.draft.empty()) return;
    model_.emplace(job.args.draft, job.args.load(), *job.model, job.args.model);
    SessionOptions options = session_options(job.args);
    if (options.context == 0) options.context = job.model->trained_context();
    draft_ = model_->start(options, text);
  }

  // For generate(); null without these options. pick: the sampler of the text.
  Propose propose(const ConstrainedSampler& pick) {
    if (!lookup_ && !draft_) return nullptr;
    return [this, &pick] { return pick.allowed(next(pick)); };
  }

  // The text was replaced by another one.
  void restart() {
    if (lookup_) lookup_->withdraw();
    if (draft_) draft_->restart();
  }

  // Counts the guesses of the last pass, at the end of a text.
  void settle(Figures& figures) {
    if (lookup_) lookup_->settle();
    if (draft_) draft_->settle();
    figures.guesses = (lookup_ ? lookup_->proposed : 0) + (draft_ ? draft_->proposed : 0);
    figures.right_guesses = (lookup_ ? lookup_->accepted : 0) + (draft_ ? draft_->accepted : 0);
  }

 private:
  std::vector<int> next(const Sampler& pick) {
    std::vector<int> guesses;
    if (lookup_) guesses = lookup_->propose();
    if (!draft_) return guesses;
    if (!guesses.empty()) {
      draft_->settle();
      return guesses;
    }
    guesses = draft_->propose(pick);
    if (lookup_ && !guesses.empty()) lookup_->withdraw();
    return guesses;
  }

  std::optional<Lookup> lookup_;
  std::optional<DraftModel> model_;
  std::unique_ptr<Draft> draft_;
};

}  // namespace pocket::cli
