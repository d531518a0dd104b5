// lookup.hpp: prompt lookup decoding (Saxena 2023): guesses the next tokens of a text by finding its last tokens
// earlier in the text. generate() checks several guesses in one forward pass, which is faster where a text repeats or
// quotes itself, and never changes the text.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

namespace pocket {

// Guesses the next tokens of a growing text. The number of guesses follows from the share of right guesses, counted
// separately for each length of the match, and from the cost of a guess. Both are measured while the text is generated.
// Passes without guesses, the first one among them, are the reference for the cost.
class Lookup {
 public:
  static constexpr size_t kMinMatch = 2, kMaxMatch = 8;  // length of a match, in tokens
  static constexpr size_t kMaxGuesses = 15;              // with the token before them, a batch of 16

  // text: all tokens so far, of which the last one is not processed yet; it must outlive this object. clock: seconds.
  Lookup(const std::vector<int>& text, std::function<double()> clock) : text_(text), clock_(std::move(clock)) {
    for (size_t n = 0; n <= kMaxMatch; n++) share_right_[n] = initial_share(n);
  }

  // Returns the guesses for the next tokens. To be called once before each forward pass.
  std::vector<int> propose() {
    settle();
    guesses_.clear();
    from_ = text_.size();
    match_ = 0;
    pass_start_ = clock_();
    size_t next = 0;  // after the longest match; of equal ones, the latest
    for (size_t end = text_.size(); end-- > 1 && match_ < kMaxMatch;) {
      const size_t length = match_length(end);
      if (length <= match_) continue;
      match_ = length;
      next = end;
    }
    if (match_ < kMinMatch || plain_seconds_ == 0) return {};
    const size_t count = best_count(share_right_[match_]);
    for (size_t i = 0; i < count; i++)  // past the end of the text, the guesses themselves continue it
      guesses_.push_back(next + i < from_ ? text_[next + i] : guesses_[next + i - from_]);
    if (count == 0) {  // drifts back, so that guessing is tried again after some time
      share_right_[match_] += (initial_share(match_) - share_right_[match_]) / 400;
      cost_ += (kInitialCost - cost_) / 400;
    }
    return guesses_;
  }

  // Counts the right guesses of the last pass.
  void settle() {
    const size_t generated = text_.size() - std::min(text_.size(), from_);
    if (pass_start_ == 0 || generated == 0) return;
    const double pass = clock_() - pass_start_;
    if (guesses_.empty())
      plain_seconds_ = plain_seconds_ == 0 ? pass : plain_seconds_ + (pass - plain_seconds_) / 8;
    else
      cost_ += (std::clamp((pass / plain_seconds_ - 1) / double(guesses_.size()), 0.0, 2.0) - cost_) / 8;
    for (size_t i = 0; i < std::min(generated, guesses_.size()); i++) {
      const bool right = guesses_[i] == text_[from_ + i];
      accepted += right;
      share_right_[match_] += ((right ? 1 : 0) - share_right_[match_]) / 8;
    }
    proposed += guesses_.size();
    withdraw();
  }

  // The next pass checks no guesses of this object: it is not counted.
  void withdraw() {
    guesses_.clear();
    pass_start_ = 0;
  }

  size_t proposed = 0, accepted = 0;  // number of guesses, and of right ones

 private:
  static constexpr double kInitialCost = 0.15;  // of a guess, as a share of a pass

  // Share of right guesses before any was counted: a half for a match of two tokens, more for longer ones.
  static double initial_share(size_t match) { return double(match) / double(match + 2); }

  // Number of tokens before `end` that equal the last ones of the text, at most kMaxMatch.
  size_t match_length(size_t end) const {
    size_t n = 0;
    while (n < std::min(end, kMaxMatch) && text_[end - 1 - n] == text_[text_.size() - 1 - n]) n++;
    return n;
  }

  // Number of guesses with the most tokens per second, if each is right with this probability given the one before.
  size_t best_count(double right) const {
    size_t best = 0;
    double best_rate = 1, tokens = 1, probability = 1;  // rate: tokens per time of a plain pass
    for (size_t k = 1; k <= kMaxGuesses; k++) {
      probability *= right;
      tokens += probability;
      const double rate = tokens / (1 + cost_ * double(k));
      if (rate <= best_rate) continue;
      best_rate = rate;
      best = k;
    }
    return best;
  }

  const std::vector<int>& text_;
  std::function<double()> clock_;
  std::vector<int> guesses_;                // of the current pass
  size_t from_ = 0;                         // where the guesses start in the text
  size_t match_ = 0;                        // length of the match that they follow
  double pass_start_ = 0;                   // seconds; 0: no pass is open
  double plain_seconds_ = 0;                // mean time of a pass without guesses
  double cost_ = kInitialCost;              // mean cost of a guess, as a share of a plain pass
  double share_right_[kMaxMatch + 1] = {};  // share of right guesses, by length of the match
};

}  // namespace pocket
