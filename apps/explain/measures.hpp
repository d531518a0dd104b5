// measures.hpp: what the attention of a text is summed up to: kinds of heads, and attention rollout. Plain functions of
// numbers, which tests compute a second time.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

namespace pocket::explain {

/// Four floats in a SIMD register, and 16 in four: sums that are added up side by side.
typedef float Four __attribute__((vector_size(16)));
inline constexpr int kLanes = 16;
inline Four load_four(const float* x) {
  Four four;
  std::memcpy(&four, x, sizeof four);
  return four;
}
inline void store_four(float* x, Four four) { std::memcpy(x, &four, sizeof four); }

/// Number of elements of a lower triangle with n rows, the diagonal included.
inline size_t triangle(size_t n) { return n * (n + 1) / 2; }

/// A number from 0 to 1 as an integer up to `most`: its square root, so that small numbers keep their order of magnitude.
/// As a byte the error of the root is at most 0.002: that of the number is 0.004 near 1 and 0.000004 near 0.
inline uint16_t to_code(float p, int most) {
  return uint16_t(float(most) * std::sqrt(std::min(1.f, std::max(0.f, p))) + 0.5f);
}
inline uint8_t to_byte(float p) { return uint8_t(to_code(p, 255)); }
inline float from_byte(uint8_t byte) { return float(byte) / 255 * float(byte) / 255; }

/// An attention weight as a byte: as to_byte, but 0 below 0.0001, and in steps of 4 below 64, so that small ones take few
/// bits when they are packed.
inline uint8_t to_rough_byte(float p) {
  if (p < 1e-4f) return 0;
  const float root = 255 * std::sqrt(p);
  return root < 62 ? uint8_t(4 * int(root / 4 + 0.5f)) : to_byte(p);
}

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
/// a lower triangle (n), sums to 1. mean(l): the attention of layer l, the mean of its heads: a lower triangle (n).
/// each(n, f) calls f(i) for all i < n, on any threads: a task takes 16 columns, which stay in the cache.
template <class Mean, class Each> std::vector<float> rollout(int layers, size_t n, const Mean& mean, const Each& each) {
  const size_t strips = (n + kLanes - 1) / kLanes;
  std::vector<float> below(strips * n * kLanes), above(below.size());  // before and after a layer: (strips, n, kLanes)
  const auto at = [&](size_t i, size_t j) { return (j / kLanes * n + i) * kLanes + j % kLanes; };
  for (size_t i = 0; i < n; i++) below[at(i, i)] = 1;
  for (int l = 0; l < layers; l++, below.swap(above))
    each(strips, [&](size_t strip) {
      const size_t begin = strip * kLanes;
      for (size_t i = begin; i < n; i++) {
        const float* const row = mean(l) + triangle(i);
        const float* x = &below[at(i, begin)];
        Four a = load_four(x), b = load_four(x + 4), c = load_four(x + 8), d = load_four(x + 12);
        x = &below[at(begin, begin)];
        for (size_t k = begin; k <= i; k++, x += kLanes) {
          a += row[k] * load_four(x);
          b += row[k] * load_four(x + 4);
          c += row[k] * load_four(x + 8);
          d += row[k] * load_four(x + 12);
        }
        float* const y = &above[at(i, begin)];
        store_four(y, 0.5f * a);
        store_four(y + 4, 0.5f * b);
        store_four(y + 8, 0.5f * c);
        store_four(y + 12, 0.5f * d);
      }
    });
  std::vector<float> all;
  all.reserve(triangle(n));
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j <= i; j++) all.push_back(below[at(i, j)]);
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
    if (int(top.size()) < count)
      top.push_back(i);
    else if (!above(i, top.back()))
      return;
    size_t at = top.size() - 1;
    for (; at > 0 && above(i, top[at - 1]); at--) top[at] = top[at - 1];
    top[at] = i;
  };
  top.reserve(size_t(count));
  int i = 0;
  for (; i < n && (int(top.size()) < count || x[top.back()] != x[top.back()]); i++) insert(i);
  float least = top.empty() ? 0.f : x[top.back()];
  for (; i < n; i++) {
    if (!(x[i] > least)) continue;  // true for nearly all
    insert(i);
    least = x[top.back()];
  }
  return top;
}

/// Sums up softmax(logits), of logits that come in parts.
class Summarizer {
 public:
  /// next: the id that follows in the text; -1: none.
  explicit Summarizer(int next = -1) : next_(next) {}

  /// Logits of the ids first ... first + n - 1. exp(x, n) replaces n numbers by e^x. work: scratch memory.
  template <class Exp> void add(const float* logits, int first, int n, const Exp& exp, std::vector<float>& work) {
    // In whole lanes; those that are left over are 0 after exp.
    const int whole = (n + kLanes - 1) / kLanes * kLanes;
    work.resize(size_t(2 * whole));
    float *const below = work.data(), *const power = below + whole;  // logits minus the highest, and e to their power
    std::copy_n(logits, n, below);
    std::fill(below + n, power, -std::numeric_limits<float>::infinity());
    const float highest = highest_of(below, whole);
    if (top_.size() < Summary::kTop || !(highest <= top_.back().first)) add_to_top(logits, first, n);
    if (next_ >= first && next_ < first + n) next_logit_ = logits[next_ - first];
    const Four least = Four{} - 200.f;
    for (int i = 0; i < whole; i += 4) {
      const Four x = load_four(below + i) - highest;
      store_four(below + i, x < least ? least : x);  // since 0 times infinity is undefined
    }
    std::copy_n(below, whole, power);
    exp(power, whole);
    Four sums[4] = {}, products[4] = {};
    for (int i = 0; i < whole; i += kLanes)
      for (int k = 0; k < 4; k++) {
        const Four w = load_four(power + i + 4 * k);
        sums[k] += w;
        products[k] += w * load_four(below + i + 4 * k);
      }
    double sum = 0, weighted = 0;
    for (int k = 0; k < kLanes; k++) {
      sum += double(sums[k / 4][k % 4]);
      weighted += double(products[k / 4][k % 4]);
    }
    merge(double(highest), sum, weighted);
  }

  Summary summary() const {
    Summary s;
    s.ids.fill(-1);
    s.p.fill(0);
    const auto p = [&](float logit) { return float(std::exp(double(logit) - highest_) / sum_); };
    for (size_t k = 0; k < top_.size(); k++) {
      s.ids[k] = top_[k].second;
      s.p[k] = p(top_[k].first);
    }
    s.entropy = float(std::max(0.0, (std::log(sum_) - weighted_ / sum_) / std::log(2.0)));
    s.p_next = next_logit_ == next_logit_ ? p(next_logit_) : 0;
    return s;
  }

 private:
  static float highest_of(const float* x, int n) {
    Four top = load_four(x);
    for (int i = 4; i < n; i += 4) {
      const Four next = load_four(x + i);
      top = next > top ? next : top;
    }
    float highest = top[0];
    for (int k = 1; k < 4; k++) highest = std::max(highest, top[k]);
    return highest;
  }
  void add_to_top(const float* logits, int first, int n) {
    for (const int i : largest(logits, n, Summary::kTop)) {
      auto at = top_.end();
      while (at != top_.begin() && (logits[i] > (at - 1)->first || (at - 1)->first != (at - 1)->first)) --at;
      top_.insert(at, {logits[i], first + i});
      if (top_.size() > Summary::kTop) top_.pop_back();
    }
  }
  void merge(double highest, double sum, double weighted) {
    if (highest > highest_) {
      std::swap(highest, highest_);
      std::swap(sum, sum_);
      std::swap(weighted, weighted_);
    }
    if (!(sum > 0)) return;
    const double lower = highest - highest_, scale = std::exp(lower);
    sum_ += scale * sum;
    weighted_ += scale * (weighted + lower * sum);
  }

  int next_;
  float next_logit_ = std::numeric_limits<float>::quiet_NaN();
  double highest_ = -std::numeric_limits<double>::infinity();
  double sum_ = 0, weighted_ = 0;           // of e^(x - highest_), and of e^(x - highest_) (x - highest_)
  std::vector<std::pair<float, int>> top_;  // logits and ids, the highest first
};

/// Sums up softmax(logits), of all n logits.
template <class Exp> Summary summarize(const float* logits, int n, int next, const Exp& exp, std::vector<float>& work) {
  Summarizer s(next);
  s.add(logits, 0, n, exp, work);
  return s.summary();
}

}  // namespace pocket::explain
