// perplexity.hpp: the perplexity of a model on a text: the windows that the text is cut into, and the sums.
#pragma once

#include "../../export/engine.hpp"
#include "../../export/program.hpp"

namespace pocket::cli {

// Natural logarithm of the sum of e^logit over n logits. A logit minus this is the logarithm of a probability.
inline double log_sum_exp(const float* logits, int n) {
  const double largest = *std::max_element(logits, logits + n);
  double sum = 0;
  for (int i = 0; i < n; i++) sum += std::exp(logits[i] - largest);
  return std::log(sum) + largest;
}

// Surprise of the token `next`, -log p(next) in nats, by the n logits of the position before it.
inline double surprise(const float* logits, int n, int next) { return log_sum_exp(logits, n) - logits[next]; }

inline constexpr size_t kPerplexityWindow = 512;  // tokens, as in llama-perplexity

// A text in windows of equal size, as llama-perplexity cuts it. Only the second half of each window counts, so that
// every counted token has at least half a window before it. A window shorter than that, of a short text or of a model with a
// small context, counts from its second token.
struct Windows {
  std::vector<int> ids;
  size_t size;   // tokens of a window
  size_t from;   // first token of a window that counts
  size_t count;  // number of windows

  // `context`: tokens that the model can process. `file` names the text in a Failure, thrown if it is too short.
  Windows(std::vector<int> text, int context, const std::string& file, size_t window = kPerplexityWindow)
      : ids(std::move(text)) {
    size = std::min<size_t>({window, size_t(context), ids.size()});
    if (size < 2) throw Failure{1, file + ": expected at least 2 tokens, found " + std::to_string(ids.size())};
    from = size < window ? 1 : window / 2;
    count = ids.size() / size;
  }

  const int* window(size_t w) const { return ids.data() + w * size; }

  // Whether the token after token i of a window counts.
  bool counts(size_t i) const { return i + 1 >= from && i + 1 < size; }
};

// Perplexity, e to the mean surprise, and its standard error.
struct Perplexity {
  double sum = 0, squares = 0, count = 0;  // of the surprises in nats

  void add(double nats) {
    sum += nats;
    squares += nats * nats;
    count++;
  }
  double value() const { return std::exp(sum / count); }
  double error() const {
    const double mean = sum / count;
    return value() * std::sqrt(std::max(0.0, squares / count - mean * mean) / count);
  }
};

}  // namespace pocket::cli
