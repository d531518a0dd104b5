// lookup.hpp: guesses how a text goes on by looking up its last tokens in what came before them (prompt lookup
// decoding, Saxena 2023). Texts that quote or repeat themselves are foreseen so; generate() checks several guesses in
// one batch.
#ifndef POCKET_LOOKUP_HPP
#define POCKET_LOOKUP_HPP

#include <algorithm>
#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

namespace pocket {

// Guesses the tokens behind a text that grows. How many depends on how often guesses have come true, separately for
// each length of what was found, and on what a guess costs: both are learnt as the text is written. The first pass, and
// those for which there is nothing worth a guess, go without, and are what the others are compared with.
class Lookup {
 public:
  static constexpr size_t kShortest = 2, kLongest = 8;  // last tokens that are looked up
  static constexpr size_t kMost = 15;                   // guesses: with the token before them, a batch of 16

  // text: all tokens so far, the last one not heard yet; it must outlive this. clock: seconds.
  Lookup(const std::vector<int>& text, std::function<double()> clock) : text_(text), clock_(std::move(clock)) {
    for (size_t n = 0; n <= kLongest; n++) right_[n] = usual(n);
  }

  // The tokens that may come next; to be called once for each pass over the model.
  std::vector<int> propose() {
    settle();
    guesses_.clear(), from_ = text_.size(), found_ = 0, began_ = clock_();
    size_t next = 0;
    for (size_t end = text_.size(); end-- > 1 && found_ < kLongest;) {
      const size_t same = common(end);
      if (same > found_) found_ = same, next = end;
    }
    if (found_ < kShortest || plain_ == 0) return {};
    const size_t count = worthwhile(right_[found_]);
    for (size_t i = 0; i < count; i++)  // where the text so far ends, it goes on with the guesses themselves
      guesses_.push_back(next + i < from_ ? text_[next + i] : guesses_[next + i - from_]);
    if (count == 0) {  // what has failed is tried again some time
      right_[found_] += (usual(found_) - right_[found_]) / 400;
      cost_ += (kUsualCost - cost_) / 400;
    }
    return guesses_;
  }

  // Counts what became of the last guesses.
  void settle() {
    const size_t made = text_.size() - from_;
    if (began_ == 0 || made == 0) return;
    const double took = clock_() - began_;
    if (guesses_.empty())
      plain_ = plain_ == 0 ? took : plain_ + (took - plain_) / 8;
    else
      cost_ += (std::clamp((took / plain_ - 1) / double(guesses_.size()), 0.0, 2.0) - cost_) / 8;
    for (size_t i = 0; i < std::min(made, guesses_.size()); i++) {
      const bool good = guesses_[i] == text_[from_ + i];
      accepted += good;
      right_[found_] += ((good ? 1 : 0) - right_[found_]) / 8;
    }
    proposed += guesses_.size();
    guesses_.clear(), began_ = 0;
  }

  size_t proposed = 0, accepted = 0;  // guesses, and those that came true

 private:
  static constexpr double kUsualCost = 0.15;  // of a guess, as a share of a pass, before it is known

  // The chance of a guess to come true, before it is known: half where two tokens were found, more where more.
  static double usual(size_t found) { return double(found) / double(found + 2); }

  // Tokens before `end` that are the same as the last ones of the text, at most kLongest.
  size_t common(size_t end) const {
    size_t n = 0;
    while (n < std::min(end, kLongest) && text_[end - 1 - n] == text_[text_.size() - 1 - n]) n++;
    return n;
  }

  // The number of guesses that makes most tokens a second, if each comes true with this chance after the one before.
  size_t worthwhile(double right) const {
    size_t best = 0;
    double most = 1, tokens = 1, chance = 1;
    for (size_t k = 1; k <= kMost; k++) {
      tokens += chance *= right;
      if (tokens / (1 + cost_ * double(k)) > most) most = tokens / (1 + cost_ * double(k)), best = k;
    }
    return best;
  }

  const std::vector<int>& text_;
  std::function<double()> clock_;
  std::vector<int> guesses_;
  size_t from_ = 0, found_ = 0;      // where the guesses begin in the text; what they were found by
  double began_ = 0, plain_ = 0;     // when the pass began; what one without guesses takes, in seconds
  double cost_ = kUsualCost;         // of a guess more, as a share of that
  double right_[kLongest + 1] = {};  // the chance of a guess to come true, by what was found
};

}  // namespace pocket
#endif  // POCKET_LOOKUP_HPP
