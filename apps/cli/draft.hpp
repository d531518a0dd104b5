// draft.hpp: speculative decoding (Leviathan et al. 2023): a small model guesses the next tokens of a large one.
// generate() checks all guesses in one forward pass of the large model, which never changes the text.
#pragma once

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "../../export/engine.hpp"

namespace pocket {

// Guesses the next tokens of a growing text by a model with the same vocabulary. It continues the text as long as
// another guess is expected to pay: by the share of right guesses, counted separately for each margin by which the small
// model prefers its guess, and by the times of its passes and of those that check the guesses. All of that is measured
// while the text is generated. Passes without guesses, the first one among them, are the reference for the cost.
class Draft {
 public:
  static constexpr size_t kMaxGuesses = 15;  // with the token before them, a batch of 16

  // text: all tokens so far, of which the last one is not processed yet; it must outlive this object. clock: seconds.
  // On failure `error()` is set.
  Draft(const Model& model, const SessionOptions& options, const std::vector<int>& text, std::function<double()> clock)
      : session_(model, options), text_(text), clock_(std::move(clock)) {
    std::fill(share_right_, share_right_ + kMargins, kInitialShare);
  }
  const std::string& error() const { return session_.error; }

  // Returns the guesses for the next tokens. To be called once before each forward pass. pick: the sampler of the text,
  // before it chooses the next token. A copy of it chooses the guesses, with the same random numbers: where both models
  // expect the same, they choose the same.
  std::vector<int> propose(const Sampler& pick) {
    settle();
    from_ = text_.size();
    if (plain_seconds_ > 0) guess(pick);
    if (guesses_.empty()) {  // drifts back, so that guessing is tried again after some time
      mean_right_ += (kInitialShare - mean_right_) / 400;
      cost_ += (kInitialCost - cost_) / 400;
    }
    pass_start_ = clock_();
    std::vector<int> ids;
    for (const Guess& g : guesses_) ids.push_back(g.id);
    return ids;
  }

  // Counts the right guesses of the last pass.
  void settle() {
    const size_t generated = text_.size() - std::min(text_.size(), from_);
    if (pass_start_ == 0 || generated == 0) return withdraw();
    const double pass = clock_() - pass_start_;
    if (guesses_.empty())
      plain_seconds_ = plain_seconds_ == 0 ? pass : plain_seconds_ + (pass - plain_seconds_) / 8;
    else
      cost_ += (std::clamp((pass / plain_seconds_ - 1) / double(guesses_.size()), 0.0, 2.0) - cost_) / 8;
    for (size_t i = 0; i < std::min(generated, guesses_.size()); i++) {
      const bool right = guesses_[i].id == text_[from_ + i];
      accepted += right;
      for (double* share : {&share_right_[guesses_[i].margin], &mean_right_}) *share += ((right ? 1 : 0) - *share) / 12;
    }
    proposed += guesses_.size();
    withdraw();
  }

  // The next pass checks no guesses of this object: it is not counted.
  void withdraw() {
    guesses_.clear();
    pass_start_ = 0;
  }
  // The text was replaced by another one, which may begin with the same tokens.
  void restart() {
    withdraw();
    same_ = 0;
  }

  size_t proposed = 0, accepted = 0;  // number of guesses, and of right ones

 private:
  static constexpr double kInitialCost = 0.15;  // of checking a guess, as a share of a pass
  static constexpr double kInitialShare = 0.5;  // of right guesses
  static constexpr size_t kMargins = 8;
  static constexpr size_t kFewTokens = 4;  // a pass of more is no guess: it reads a prompt
  struct Guess {
    int id;
    size_t margin;
  };

  // A guess pays if it brings more tokens per second than the pass has without it.
  void guess(const Sampler& pick) {
    Sampler sampler = pick;
    const double check = cost_ * plain_seconds_;
    double probability = 1, tokens = 1, time = plain_seconds_;  // expected, of this pass with its guesses
    while (guesses_.size() < kMaxGuesses) {
      const double rate = tokens / time;
      if (probability * mean_right_ < rate * (check + draft_seconds_)) return;
      const double start = clock_();
      const size_t processed = processed_.size();
      const float* logits = next_logits();
      if (!logits) return;  // the text is longer than the context of the small model
      const int id = sampler(logits, session_.vocab_size());
      if (id < 0) return;
      const size_t margin = margin_of(logits, id);
      const double taken = clock_() - start;
      if (processed_.size() <= processed + kFewTokens)
        draft_seconds_ += (taken - draft_seconds_) / (draft_seconds_ == 0 ? 1 : 8);
      probability *= share_right_[margin];
      if (probability < rate * check) return;
      guesses_.push_back({id, margin});
      tokens += probability;
      time += check + draft_seconds_;
    }
  }

  // The logits of the small model after the text and the guesses so far; null if it fails.
  const float* next_logits() {
    const auto token = [&](size_t i) { return i < text_.size() ? text_[i] : guesses_[i - text_.size()].id; };
    const size_t size = text_.size() + guesses_.size();
    while (same_ < std::min(processed_.size(), size) && processed_[same_] == token(same_)) same_++;
    same_ = std::min(same_, size - 1);  // the last token is processed in any case
    processed_.resize(same_);
    session_.rewind(int(same_));
    for (size_t i = same_; i < size; i++) processed_.push_back(token(i));
    const float* logits = session_.forward(&processed_[same_], size - same_);
    if (!logits) processed_.resize(size_t(session_.position()));
    same_ = std::min(same_, text_.size());
    return logits;
  }

  // By how much the logit of a token exceeds the others, in steps of 0.75.
  size_t margin_of(const float* logits, int id) const {
    float other = -std::numeric_limits<float>::infinity();
    for (int i = 0; i < session_.vocab_size(); i++)
      if (i != id) other = std::max(other, logits[i]);
    return size_t(std::clamp((logits[id] - other) / 0.75f + 1, 0.f, float(kMargins - 1)));
  }

  Session session_;
  std::vector<int> processed_;  // the tokens of the session
  size_t same_ = 0;             // so many of them are known to equal the text
  const std::vector<int>& text_;
  std::function<double()> clock_;
  std::vector<Guess> guesses_;  // of the current pass
  size_t from_ = 0;             // where the guesses start in the text
  double pass_start_ = 0;       // seconds; 0: no pass is open
  double plain_seconds_ = 0;    // mean time of a pass without guesses
  double draft_seconds_ = 0;    // mean time of a guess
  double cost_ = kInitialCost;  // mean cost of checking a guess, as a share of a plain pass
  double mean_right_ = kInitialShare;
  double share_right_[kMargins];  // share of right guesses, by margin
};

}  // namespace pocket
