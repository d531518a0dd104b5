// divergence.hpp: how far a model's predictions are from a reference's: Kullback-Leibler divergence, perplexity and
// the share of equal first choices over a text.
#pragma once

#include <numeric>

#include "../cli/perplexity.hpp"
#include "report.hpp"
#include "worker.hpp"

namespace pocket::bench {

struct Divergence {
  std::vector<double> kl;  // KL(reference || model) of each position that counts, nats
  cli::Perplexity model, reference;
  size_t same_top = 0;  // positions where both find the same token the likeliest
  size_t tokens = 0;    // of the text

  double mean() const { return std::accumulate(kl.begin(), kl.end(), 0.0) / double(kl.size()); }
  double same_top_share() const { return double(same_top) / double(kl.size()); }
};

/// KL(p || q) in nats of the distributions that two rows of n logits stand for.
inline double kl_of(const float* p, const float* q, int n) {
  const double p_total = cli::log_sum_exp(p, n), q_total = cli::log_sum_exp(q, n);
  double sum = 0;
  for (int i = 0; i < n; i++) {
    const double log_p = p[i] - p_total, log_q = q[i] - q_total;
    sum += std::exp(log_p) * (log_p - log_q);
  }
  return sum;
}

/// Throws Failure unless a token means the same to both models.
inline void check_same_vocabulary(const OpenModel& a, const OpenModel& b) {
  const std::string both = a.args.model + " and " + b.args.model + ": expected the same vocabulary, found ";
  const int n = a.model.config.vocab_size, other = b.model.config.vocab_size;
  if (n != other) throw Failure{1, both + std::to_string(n) + " and " + std::to_string(other) + " tokens"};
  for (int i = 0; i < n; i++)
    if (a.tokenizer.piece(i) != b.tokenizer.piece(i))
      throw Failure{1, both + json(a.tokenizer.piece(i)) + " and " + json(b.tokenizer.piece(i)) + " as token " +
                           std::to_string(i)};
}

inline constexpr size_t kBatch = 64;  // tokens whose logits of the reference are kept, until the model's come

/// Counts ids[0 ... n - 1], of which each foresees the next one, in both models; `at` names them in an error.
inline void compare(cli::TextSession& model, cli::TextSession& reference, const int* ids, size_t n, size_t at,
                    Divergence& d) {
  const int vocab = model.vocab_size();
  std::vector<float> kept;
  const bool good = reference.forward(ids, n, [&](size_t, const float* logits) {
    kept.insert(kept.end(), logits, logits + vocab);
    return true;
  });
  if (!good) cli::throw_failure(reference);
  const bool also = model.forward(ids, n, [&](size_t i, const float* q) {
    const float* p = &kept[i * size_t(vocab)];
    d.kl.push_back(kl_of(p, q, vocab));
    if (!std::isfinite(d.kl.back()))
      throw Failure{1, "token " + std::to_string(at + i) + ": the logits of a model are no numbers"};
    d.model.add(cli::surprise(q, vocab, ids[i + 1]));
    d.reference.add(cli::surprise(p, vocab, ids[i + 1]));
    d.same_top += std::max_element(p, p + vocab) - p == std::max_element(q, q + vocab) - q;
    return true;
  });
  if (!also) cli::throw_failure(model);
}

/// Both models over a text, in windows as cli::Windows cuts them.
inline Divergence measure_divergence(const OpenModel& a, const OpenModel& b, const std::string& file) {
  check_same_vocabulary(a, b);
  const cli::Windows text(b.tokenizer.encode(read_all(file)),
                          std::min(a.model.config.max_seq_len, b.model.config.max_seq_len), file);
  SessionOptions of_a = a.session_options(), of_b = b.session_options();
  of_a.context = of_b.context = int(text.size);
  cli::LlamaSession model(a.model, of_a), reference(b.model, of_b);
  Divergence d;
  d.tokens = text.ids.size();
  Progress progress(text.count);
  for (size_t w = 0; w < text.count; w++) {
    progress("windows of " + std::to_string(text.size) + " tokens" + (w ? ", KL " + std::to_string(d.mean()) : ""));
    const int* ids = text.window(w);
    const size_t first = text.from - 1;  // that foresees a token which counts
    for (cli::TextSession* s : {&model, &reference}) {
      s->rewind(0);
      if (first > 0 && !s->forward(ids, first)) cli::throw_failure(*s);
    }
    for (size_t i = first, n; i + 1 < text.size; i += n) {
      stop_if_interrupted();
      n = std::min(kBatch, text.size - 1 - i);
      compare(model, reference, ids + i, n, w * text.size + i, d);
    }
  }
  return d;
}

}  // namespace pocket::bench
