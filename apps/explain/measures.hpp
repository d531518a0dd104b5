// measures.hpp: what the attention of a text is summed up to: kinds of heads, and attention rollout. Plain functions of
// numbers, which tests compute a second time.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace pocket::explain {

/// Number of elements of a lower triangle with n rows, the diagonal included.
inline size_t triangle(size_t n) { return n * (n + 1) / 2; }

/// A number from 0 to 1 as a byte: the square root, in steps of 1/255, so that small numbers keep their order of
/// magnitude. The error is at most 0.002 of sqrt(p), which is 0.004 near 1 and 0.000004 near 0.
inline uint8_t to_byte(double p) { return uint8_t(std::lround(255 * std::sqrt(std::min(1.0, std::max(0.0, p))))); }
inline double from_byte(uint8_t byte) { return byte / 255.0 * byte / 255.0; }

/// Weights below this are stored as 0 in a page.
inline constexpr float kLeastWeight = 1e-4f;

/// What the head of a layer looks at: means of attention weights, from 0 to 1. NaN: the text has no such token.
struct HeadKind {
  enum { previous, first, itself, same, induction, count };
  std::array<float, count> score;
};

/// The kind of a head. weight(i, j): its attention from token i to token j <= i. ids: of the tokens. Means over the
/// tokens i > 0 of the weight on
/// - previous: token i - 1
/// - first: token 0, which heads without anything to find look at (the attention sink)
/// - itself: token i
/// - same: earlier tokens with the id of token i, other than token 0; only tokens that have one count
/// - induction: tokens j < i after an earlier token with the id of token i (Elhage et al. 2021, Olsson et al. 2022): what
///   followed last time. Only tokens that have one count.
template <class Weight> HeadKind kind_of(const std::vector<int>& ids, const Weight& weight) {
  double sum[HeadKind::count] = {};
  size_t counted[HeadKind::count] = {};
  const auto add = [&](int kind, double value) {
    sum[kind] += value;
    counted[kind]++;
  };
  for (size_t i = 1; i < ids.size(); i++) {
    add(HeadKind::previous, weight(i, i - 1));
    add(HeadKind::first, weight(i, 0));
    add(HeadKind::itself, weight(i, i));
    double same = 0, after = 0;
    bool has_same = false, has_after = false;
    for (size_t j = 0; j < i; j++) {
      if (ids[j] != ids[i]) continue;
      if (j > 0) {
        same += weight(i, j);
        has_same = true;
      }
      if (j + 1 < i) {
        after += weight(i, j + 1);
        has_after = true;
      }
    }
    if (has_same) add(HeadKind::same, same);
    if (has_after) add(HeadKind::induction, after);
  }
  HeadKind kind;
  for (int k = 0; k < HeadKind::count; k++)
    kind.score[size_t(k)] =
        counted[k] ? float(sum[k] / double(counted[k])) : std::numeric_limits<float>::quiet_NaN();
  return kind;
}

/// Attention rollout (Abnar and Zuidema 2020): how much of each token reaches each position through all layers, if a layer
/// passes on one half of a position unchanged and the other half as its heads attend, on average. Row i of the result,
/// a lower triangle (n), sums to 1. mean(l, i): the attention row i of layer l, the mean of its heads: i + 1 floats.
template <class Mean> std::vector<float> rollout(int layers, size_t n, const Mean& mean) {
  std::vector<float> all(triangle(n), 0.f), row(n);
  for (size_t i = 0; i < n; i++) all[triangle(i) + i] = 1;
  for (int l = 0; l < layers; l++)
    for (size_t i = n; i-- > 0;) {  // from the last row, which needs the earlier ones of the layer before
      const float* const a = mean(l, i);
      std::fill(row.begin(), row.end(), 0.f);
      for (size_t k = 0; k <= i; k++) {
        const float share = 0.5f * (a[k] + (k == i ? 1.f : 0.f)), *const below = &all[triangle(k)];
        for (size_t j = 0; j <= k; j++) row[j] += share * below[j];
      }
      std::copy(row.begin(), row.begin() + long(i) + 1, all.begin() + long(triangle(i)));
    }
  return all;
}

/// What is said of a distribution: its most likely tokens, and its entropy.
struct Summary {
  static constexpr int kTop = 5;
  std::array<int, kTop> ids;   // the most likely first, and of equals the smallest id; -1: fewer tokens
  std::array<float, kTop> p;   // their probabilities
  float entropy;               // in bits: 0 is certain, log2 n is no idea at all
  float p_next;                // of the token that follows in the text; 0: there is none
};

/// The `count` largest of n numbers: their indices, the largest first, and of equals the smallest index. NaN is smaller
/// than every number.
inline std::vector<int> largest(const float* x, int n, int count) {
  std::vector<int> top;
  const auto above = [&](int a, int b) { return x[a] > x[b] || (x[b] != x[b] && x[a] == x[a]); };
  const auto insert = [&](int i) {
    auto at = top.end();
    while (at != top.begin() && above(i, *(at - 1))) --at;
    top.insert(at, i);
    if (int(top.size()) > count) top.pop_back();
  };
  int i = 0;
  for (; i < n && (int(top.size()) < count || x[top.back()] != x[top.back()]); i++) insert(i);
  for (; i < n; i++)
    if (x[i] > x[top.back()]) insert(i);  // true for few
  return top;
}

/// Sums up softmax(logits). exp(x, n) replaces n numbers by e^x; `work` is scratch memory. next: an id, or -1.
template <class Exp>
Summary summarize(const float* logits, int n, int next, const Exp& exp, std::vector<float>& work) {
  Summary s;
  s.ids.fill(-1);
  s.p.fill(0);
  const std::vector<int> top = largest(logits, n, Summary::kTop);
  const float highest = logits[top[0]];
  work.resize(size_t(n));
  for (int i = 0; i < n; i++) work[size_t(i)] = logits[i] - highest;
  exp(work.data(), n);
  constexpr int kSums = 8;  // of every eighth number, which the CPU adds up at the same time
  double sums[kSums] = {}, products[kSums] = {};
  int i = 0;
  for (; i + kSums <= n; i += kSums)
    for (int k = 0; k < kSums; k++) {
      const float w = work[size_t(i + k)];
      sums[k] += w;
      products[k] += double(w) * double(std::max(logits[i + k] - highest, -200.f));
    }
  double sum = 0, weighted = 0;
  for (; i < n; i++) {
    sum += work[size_t(i)];
    weighted += double(work[size_t(i)]) * double(std::max(logits[i] - highest, -200.f));
  }
  for (int k = 0; k < kSums; k++) {
    sum += sums[k];
    weighted += products[k];
  }
  for (size_t k = 0; k < top.size(); k++) {
    s.ids[k] = top[k];
    s.p[k] = float(work[size_t(top[k])] / sum);
  }
  s.entropy = float(std::max(0.0, (std::log(sum) - weighted / sum) / std::log(2.0)));
  s.p_next = next >= 0 && next < n ? float(work[size_t(next)] / sum) : 0;
  return s;
}

}  // namespace pocket::explain
