// portable_log_sum_exp.hpp: probabilities from logits, where texts depend on them.
#pragma once

#include <algorithm>
#include <vector>

#include "../../export/engine.hpp"

namespace pocket::cli {

// Natural logarithm of the sum of e^logit over n logits, with the error of float32. The same bits on every machine: the
// engine's own exp and log, and a sum in order. perplexity.hpp has one of double precision, by the C library.
inline double portable_log_sum_exp(const float* logits, int n) {
  const float largest = *std::max_element(logits, logits + n);
  std::vector<float> powers(logits, logits + n);
  for (float& p : powers) p -= largest;
  exp_in_place(powers.data(), n);
  double sum = 0;
  for (const float p : powers) sum += p;
  return largest + exact::log(sum);
}

}  // namespace pocket::cli
