// choice.hpp: how a sampler chose a token: the alternatives, with their probabilities before and after temperature,
// min-p, top-k and top-p, and what was cut away.
#pragma once

#include "../../export/engine.hpp"
#include "measures.hpp"

namespace pocket::explain {

/// What excluded an alternative. `limit`: a grammar.
enum class Cut { kept, limit, min_p, top_k, top_p, greedy };
inline const char* name_of(Cut cut) {
  static constexpr const char* kNames[] = {"", "grammar", "min-p", "top-k", "top-p", "temperature 0"};
  return kNames[int(cut)];
}

struct Alternative {
  int id;
  float p;         // by the model
  float tempered;  // after the repetition penalty and the temperature
  float final;     // after min-p, top-k and top-p: what the token was drawn with; 0: it was cut
  Cut cut;
};

struct Choice {
  static constexpr int kListed = 10;  // alternatives that are listed, besides the chosen one
  int id = -1;
  size_t kept = 0;                // tokens that the choice was drawn from
  float p_kept = 0;               // by the model: their probability
  std::vector<Alternative> list;  // the most likely first, by the model
};

/// How `id` was chosen. logits (n): the model's. relative (n): the probabilities after penalty and temperature relative to
/// the highest, in any order that `kept`, pairs of id and relative probability, is a part of. With temperature 0 they are
/// not used.
template <class Kept>
Choice explain_choice(int id, const float* logits, int n, const SamplerOptions& o, const std::vector<float>& relative,
                      const std::vector<Kept>& kept) {
  Choice c;
  c.id = id;
  std::vector<float> p(logits, logits + n);
  const std::vector<int> top = largest(logits, n, Choice::kListed);
  const float highest = logits[top[0]];
  for (float& x : p) x -= highest;
  exp_in_place(p.data(), n);
  double sum = 0, tempered_sum = 0, kept_sum = 0;
  for (const float x : p) sum += x;
  const bool greedy = o.temperature <= 0;
  if (!greedy) {
    for (const float x : relative) tempered_sum += x == x ? x : 0;
    for (const Kept& k : kept) kept_sum += k.p;
  }
  c.kept = greedy ? 1 : kept.size();
  if (greedy) c.p_kept = float(p[size_t(id)] / sum);
  for (const Kept& k : kept)
    if (!greedy) c.p_kept += float(p[size_t(k.id)] / sum);
  const auto add = [&](int other) {
    Alternative a = {other, float(p[size_t(other)] / sum), 0, 0, Cut::kept};
    if (greedy) {
      a.tempered = a.final = other == id ? 1.f : 0.f;
      a.cut = other == id ? Cut::kept : Cut::greedy;
      return c.list.push_back(a);
    }
    const float r = relative[size_t(other)];
    a.tempered = r == r ? float(r / tempered_sum) : 0;
    const auto found = std::find_if(kept.begin(), kept.end(), [&](const Kept& k) { return k.id == other; });
    if (found != kept.end()) {
      a.final = float(found->p / kept_sum);
    } else {
      size_t rank = 0;  // among the tokens that min-p left
      for (int i = 0; i < n && o.top_k > 0; i++)
        rank += relative[size_t(i)] > r || (relative[size_t(i)] == r && i < other);
      a.cut = !(r > 0) && p[size_t(other)] > 0         ? Cut::limit
              : r < o.min_p                            ? Cut::min_p
              : o.top_k > 0 && rank >= size_t(o.top_k) ? Cut::top_k
                                                       : Cut::top_p;
    }
    c.list.push_back(a);
  };
  for (const int other : top) add(other);
  if (std::find(top.begin(), top.end(), id) == top.end()) add(id);
  return c;
}

}  // namespace pocket::explain
