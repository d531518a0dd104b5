// figures.hpp: what ./run measures about itself: tokens and seconds.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "../../export/program.hpp"

namespace pocket::cli {

struct Figures {
  double prompt_seconds = 0, new_seconds = 0;
  size_t prompt_tokens = 0, new_tokens = 0;
  size_t guesses = 0, right_guesses = 0;  // --lookup, --draft
  const char* end = nullptr;              // why the text ended; null in a chat
  std::vector<std::string> choices;       // --top --json: a JSON object per token

  // New tokens per second. The first one comes from the logits of the prompt, each other one from a forward pass.
  double new_rate() const { return new_tokens > 1 && new_seconds > 0 ? double(new_tokens - 1) / new_seconds : 0; }
  // Forward passes per second. Each right guess saves one.
  double pass_rate() const {
    if (new_rate() == 0) return 0;
    return double(new_tokens - 1 - std::min(new_tokens - 1, right_guesses)) / new_seconds;
  }
  double prompt_rate() const { return prompt_seconds > 0 ? double(prompt_tokens) / prompt_seconds : 0; }

  // Adds a text that ends now: `prompt` tokens from the time `start`, then `generated` tokens, the first one at the
  // time `first`.
  void add(size_t prompt, double start, size_t generated, double first) {
    const double now = seconds();
    prompt_tokens += prompt;
    new_tokens += generated;
    prompt_seconds += (generated == 0 ? now : first) - start;
    new_seconds += generated == 0 ? 0 : now - first;
  }
};

}  // namespace pocket::cli
