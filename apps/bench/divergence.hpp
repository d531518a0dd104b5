// divergence.hpp: compares the predictions of a model with those of a reference on a text: Kullback-Leibler divergence,
// perplexity, and how often both have the same top token.
#pragma once

#include <numeric>

#include "../../export/json_writer.hpp"
#include "../cli/perplexity.hpp"
#include "progress.hpp"
#include "text_model.hpp"

namespace pocket::bench {

struct Divergence {
  std::vector<double> kl;  // KL(reference || model) at each counted position, nats
  cli::Perplexity model, reference;
  size_t same_top = 0;  // positions where both models have the same most likely token
  size_t tokens = 0;    // of the text

  double mean() const { return std::accumulate(kl.begin(), kl.end(), 0.0) / double(kl.size()); }
  double same_top_share() const { return double(same_top) / double(kl.size()); }
};

/// KL(p || q) in nats, of the distributions given by two rows of n logits.
inline double kl_of(const float* p, const float* q, int n) {
  const double p_total = cli::log_sum_exp(p, n), q_total = cli::log_sum_exp(q, n);
  double sum = 0;
  for (int i = 0; i < n; i++) {
    const double log_p = p[i] - p_total, log_q = q[i] - q_total;
    sum += std::exp(log_p) * (log_p - log_q);
  }
  return sum;
}

/// Throws Failure unless each id is the same token in both models.
inline void check_same_vocabulary(const TextModel& a, const TextModel& b) {
  const std::string both = a.file + " and " + b.file + ": expected the same vocabulary, found ";
  const int n = a.model.config.vocab_size, other = b.model.config.vocab_size;
  if (n != other) throw Failure{1, both + std::to_string(n) + " and " + std::to_string(other) + " tokens"};
  for (int i = 0; i < n; i++)
    if (a.tokenizer.piece(i) != b.tokenizer.piece(i))
      throw Failure{1, both + json(a.tokenizer.piece(i)) + " and " + json(b.tokenizer.piece(i)) + " as token " +
                           std::to_string(i)};
}

inline constexpr size_t kBatch = 64;  // tokens per forward: the reference's logits of a batch are kept in memory

/// Processes ids[0 ... n - 1] and adds the predictions of ids[1 ... n] to d.
inline void compare(Session& model, Session& reference, const int* ids, size_t n, Divergence& d) {
  const int vocab = model.vocab_size();
  std::vector<float> reference_logits;  // (n, vocab)
  const bool reference_done = reference.forward(ids, n, [&](size_t, const float* logits) {
    reference_logits.insert(reference_logits.end(), logits, logits + vocab);
    return true;
  });
  if (!reference_done) throw_failure(reference);
  const bool model_done = model.forward(ids, n, [&](size_t i, const float* q) {
    const float* p = &reference_logits[i * size_t(vocab)];
    d.kl.push_back(kl_of(p, q, vocab));
    d.model.add(cli::surprise(q, vocab, ids[i + 1]));
    d.reference.add(cli::surprise(p, vocab, ids[i + 1]));
    d.same_top += std::max_element(p, p + vocab) - p == std::max_element(q, q + vocab) - q;
    return true;
  });
  if (!model_done) throw_failure(model);
}

/// Compares both models on a text file, in the windows of `run --perplexity`. options.context is ignored.
inline Divergence measure_divergence(const TextModel& a, const TextModel& b, SessionOptions options,
                                     const std::string& file) {
  check_same_vocabulary(a, b);
  const int longest = std::min(a.model.config.max_seq_len, b.model.config.max_seq_len);
  const cli::Windows text(ids_of(b.tokenizer, read_all(file, kLongestMeasuredText)), longest, file);
  options.context = int(text.size);
  Session model(a.model, options), reference(b.model, options);
  check_open(model);
  check_open(reference);
  Divergence d;
  d.tokens = text.ids.size();
  Progress progress(text.count);
  for (size_t w = 0; w < text.count; w++) {
    progress("windows of " + std::to_string(text.size) + " tokens" + (w ? ", KL " + std::to_string(d.mean()) : ""));
    const int* ids = text.window(w);
    const size_t first = text.from - 1;  // its logits predict the first counted token
    for (Session* s : {&model, &reference}) {
      s->rewind(0);
      if (first > 0 && !s->forward(ids, first)) throw_failure(*s);
    }
    for (size_t i = first, n; i + 1 < text.size; i += n) {
      stop_if_interrupted();
      n = std::min(kBatch, text.size - 1 - i);
      compare(model, reference, ids + i, n, d);
    }
  }
  return d;
}

}  // namespace pocket::bench
