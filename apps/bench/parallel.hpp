// parallel.hpp: the speed of several conversations in one pass, compared with one conversation and with prompts.
#pragma once

#include "conversations.hpp"
#include "speed.hpp"

namespace pocket::bench {

/// Tokens per second of `conversations` single tokens in each pass, at a depth in tokens.
struct ParallelSpeed {
  int depth, conversations;
  double tok_s;         // of all conversations together
  double ratio_to_one;  // to that of one conversation: the median of ratios within a round
  double prompt_ratio;  // to that of a prompt of as many tokens, at the same depth
};

/// Measures all numbers of conversations in turns, several rounds, and returns medians. Throws Failure.
class ParallelTest {
 public:
  ParallelTest(const Model& model, const SessionOptions& options, const std::vector<int>& conversations, bool quick)
      : model_(model),
        options_(options),
        conversations_(conversations),
        effort_(quick ? kQuick : kThorough),
        progress_(2 * (1 + size_t(effort_.rounds))) {
    options_.context = context_of(model);
  }

  /// At a depth of 128 tokens and of 1000, or of what the context has room for.
  std::vector<ParallelSpeed> run() {
    std::vector<ParallelSpeed> all;
    const int most = *std::max_element(conversations_.begin(), conversations_.end());
    const int room = std::max(0, options_.context - most);
    for (const int depth : {std::min(128, room / 2), std::min(1000, room)}) {
      const std::vector<ParallelSpeed> speeds = at_depth(depth, most);
      all.insert(all.end(), speeds.begin(), speeds.end());
    }
    return all;
  }

 private:
  /// Tokens per second of work(n), which takes n tokens. Short work is repeated.
  template <class F> double rate(int n, const F& work) const {
    double taken = 0, tokens = 0;
    for (; taken < effort_.least_seconds; tokens += n) taken += work(n);
    return tokens / taken;
  }

  std::vector<ParallelSpeed> at_depth(int depth, int most) {
    progress_("filling " + std::to_string(depth) + " positions");
    Conversations all(model_, options_, most, depth);
    std::vector<std::vector<double>> speeds(conversations_.size()), to_one(speeds), to_prompt(speeds);
    for (int round = 0; round < effort_.rounds; round++) {
      progress_("conversations at depth " + std::to_string(depth));
      const auto pass = [&](int n) { return all.generate(n, 1); };
      const auto prompt = [&](int n) { return all.prompt(n); };
      for (size_t i = 0; i < conversations_.size(); i++) {
        const int n = conversations_[i];
        const double one = rate(1, pass), several = rate(n, pass), prompts = rate(n, prompt);
        speeds[i].push_back(several);
        to_one[i].push_back(several / one);
        to_prompt[i].push_back(several / prompts);
      }
    }
    std::vector<ParallelSpeed> found;
    for (size_t i = 0; i < conversations_.size(); i++)
      found.push_back({depth, conversations_[i], median(speeds[i]), median(to_one[i]), median(to_prompt[i])});
    return found;
  }

  const Model& model_;
  SessionOptions options_;
  const std::vector<int> conversations_;
  const Effort effort_;
  Progress progress_;
};

}  // namespace pocket::bench
