// choices.hpp: --top: the most likely tokens at each step of a text.
#pragma once

#include <numeric>

#include "../../export/json_writer.hpp"
#include "constrained.hpp"
#include "job.hpp"
#include "token_text.hpp"

namespace pocket::cli {

// The `count` ids with the largest logits, the largest first, and of equal ones the smallest id. logits: (n,). NaN,
// which a comparison cannot order, comes last.
inline std::vector<int> most_likely(const float* logits, int n, int count) {
  const auto value = [&](int id) {
    return std::isnan(logits[id]) ? -std::numeric_limits<float>::infinity() : logits[id];
  };
  std::vector<int> ids(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), 0);
  const auto end = ids.begin() + std::min(count, n);
  std::partial_sort(ids.begin(), end, ids.end(),
                    [&](int a, int b) { return value(a) != value(b) ? value(a) > value(b) : a < b; });
  ids.erase(end, ids.end());
  return ids;
}

// A sampler that reports the most likely tokens of each step, by the model's own probabilities: before temperature,
// repetition penalty and top-k, top-p and min-p. With --json they become a part of the figures. Without, a line each
// goes to stderr: at once, or where stderr is a terminal after the text, which would be torn apart otherwise.
class ReportingSampler : public ConstrainedSampler {
 public:
  ReportingSampler(Job& job, const SamplerOptions& options, std::shared_ptr<TokenGrammar> grammar)
      : ConstrainedSampler(job, options, std::move(grammar)), job_(job), text_(job.model->tokenizer()) {}

  int operator()(const float* logits, int n) {
    const int id = ConstrainedSampler::operator()(logits, n);
    if (job_.args.top > 0 && id >= 0) report(id, logits, n);
    return id;
  }

  // Prints the lines that were held back, after the text.
  void print_held_lines() {
    if (held_.empty()) return;
    job_.out.start_stderr_line();
    std::fprintf(stderr, "%s", held_.c_str());
    held_.clear();
  }

 private:
  void report(int chosen, const float* logits, int n) {
    const std::vector<int> top = most_likely(logits, n, job_.args.top);
    const double sum = log_sum_exp(logits, n);
    const auto probability = [&](int id) { return std::exp(logits[id] - sum); };
    if (job_.args.json)
      add_json(chosen, top, probability);
    else
      print_line(chosen, top, probability);
  }

  template <class P> void add_json(int chosen, const std::vector<int>& top, const P& probability) {
    const auto fields = [&](int id) {
      return std::vector<std::pair<std::string_view, std::string>>{
          {"id", std::to_string(id)}, {"text", json(text_(id))}, {"p", json(probability(id))}};
    };
    std::vector<std::string> list;
    for (const int id : top) list.push_back(json_object(fields(id)));
    auto choice = fields(chosen);
    choice.push_back({"top", json_array(list)});
    job_.figures.choices.push_back(json_object(choice));
  }

  template <class P> void print_line(int chosen, const std::vector<int>& top, const P& probability) {
    const auto item = [&](int id) {
      char number[16];
      std::snprintf(number, sizeof number, " %.4f", probability(id));
      return json(text_(id)) + number;
    };
    std::string line = item(chosen) + " of ";
    for (const int id : top) line += (id == top[0] ? "" : ", ") + item(id);
    held_ += line + "\n";
    if (!platform::is_terminal(2)) print_held_lines();
  }

  Job& job_;
  TokenText text_;
  std::string held_;
};

}  // namespace pocket::cli
