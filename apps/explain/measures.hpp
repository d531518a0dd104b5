// measures.hpp: what the attention of a text is summed up to: kinds of heads, and attention rollout. Plain functions of
// numbers, which tests compute a second time.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace pocket::explain {

/// Number of elements of a lower triangle with n rows, the diagonal included.
inline size_t triangle(size_t n) { return n * (n + 1) / 2; }

/// A number from 0 to 1 as an integer up to `most`: its square root, so that small numbers keep their order of magnitude.
/// As a byte the error of the root is at most 0.002: that of the number is 0.004 near 1 and 0.000004 near 0.
inline uint16_t to_code(float p, int most) {
  return uint16_t(float(most) * std::sqrt(std::min(1.f, std::max(0.f, p))) + 0.5f);
}
inline uint8_t to_byte(float p) { return uint8_t(to_code(p, 255)); }
inline float from_byte(uint8_t byte) { return float(byte) / 255 * float(byte) / 255; }

/// Attention below this is stored as 0 in a page.
inline constexpr float kLeastWeight = 1e-4f;

/// What the head of a layer looks at: means of attention weights, from 0 to 1. NaN: the text has no such token.
struct HeadKind {
  enum { previous, first, itself, same, induction, count };
  std::array<float, count> score;
};

/// Tells the kinds of the heads of a text. Means over the tokens i > 0 of the weight on
/// - previous: token i - 1
/// - first: token 0, which heads without anything to find look at (the attention sink)
/// - itself: token i
/// - same: earlier tokens with the id of token i, other than token 0; only tokens that have one count
/// - induction: tokens j < i after an earlier token with the id of token i (Elhage et al. 2021, Olsson et al. 2022): what
///   followed last time. Only tokens that have one count.
class Kinds {
 public:
  explicit Kinds(const std::vector<int>& ids) : n_(ids.size()) {
    for (size_t i = 1; i < n_; i++) {
      const size_t same = same_.size(), after = after_.size();
      for (size_t j = 0; j < i; j++) {
        if (ids[j] != ids[i]) continue;
        if (j > 0) same_.push_back({i, j});
        if (j + 1 < i) after_.push_back({i, j + 1});
      }
      with_same_ += same_.size() > same;
      with_after_ += after_.size() > after;
    }
  }
  /// weight(i, j): the attention of a head from token i to token j <= i.
  template <class Weight> HeadKind of(const Weight& weight) const {
    double sum[HeadKind::count] = {};
    for (size_t i = 1; i < n_; i++) {
      sum[HeadKind::previous] += weight(i, i - 1);
      sum[HeadKind::first] += weight(i, 0);
      sum[HeadKind::itself] += weight(i, i);
    }
    for (const auto& [i, j] : same_) sum[HeadKind::same] += weight(i, j);
    for (const auto& [i, j] : after_) sum[HeadKind::induction] += weight(i, j);
    const size_t others = n_ > 0 ? n_ - 1 : 0,
                 counted[HeadKind::count] = {others, others, others, with_same_, with_after_};
    HeadKind kind;
    for (int k = 0; k < HeadKind::count; k++)
      kind.score[size_t(k)] = counted[k] ? float(sum[k] / double(counted[k])) : std::numeric_limits<float>::quiet_NaN();
    return kind;
  }

 private:
  size_t n_, with_same_ = 0, with_after_ = 0;
  std::vector<std::pair<size_t, size_t>> same_, after_;
};

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

/// A summary of a distribution: its most likely tokens and its entropy.
struct Summary {
  static constexpr int kTop = 5;
  std::array<int, kTop> ids;  // the most likely first, and of equals the smallest id; -1: fewer tokens
  std::array<float, kTop> p;  // their probabilities
  float entropy;              // in bits: 0 is certain, log2 n is no idea at all
  float p_next;               // of the token that follows in the text; 0: there is none
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
template <class Exp> Summary summarize(const float* logits, int n, int next, const Exp& exp, std::vector<float>& work) {
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
