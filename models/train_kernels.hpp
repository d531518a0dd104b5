// train_kernels.hpp: the kernels of training, once for each instruction set: the matrix product of gemm.hpp, and the
// forward and backward functions that run between two products. As in run.cpp, each is plain C++ with a written-down
// order of sums and explicit fused multiply-adds, so that every instruction set gives the same bits.
#pragma once

#include <cstring>
#include <string>

#include "gemm.hpp"

namespace pocket {

// The dot product of a and b, in 16 partial sums.
POCKET_BODY float dot_body(const float* a, const float* b, int n) {
  float s[16] = {};
  int i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; j++) s[j] = std::fma(a[i + j], b[i + j], s[j]);
  for (int j = 0; i + j < n; j++) s[j] = std::fma(a[i + j], b[i + j], s[j]);
  return sum16(s);
}

// Input, weight and gradients of one row of a normalization. n elements, then zeros up to a multiple of 16.
struct NormBackward {
  const float* dy;      // gradient of the output
  const float* x;       // input
  const float* weight;  //
  float* dx;            // gradient of the input
  float* dweight;       // gradient of the weight; added to
  int n;
};

// Backward of y = x r w with r = 1 / max(sqrt(mean of x^2 + eps), least):
// dx += w r dy - x r^3 / n * (sum of dy w x), without the second term where r is the constant 1 / least;
// dweight += dy x r.
POCKET_BODY void normalized_backward_body(const NormBackward& row, float eps, float least) {
  const auto [dy, x, weight, dx, dweight, n] = row;
  float square[16] = {}, along[16] = {};
  for (int i = 0; i < n; i += 16)
    for (int j = 0; j < 16; j++) {
      square[j] = std::fma(x[i + j], x[i + j], square[j]);
      along[j] = std::fma(dy[i + j] * weight[i + j], x[i + j], along[j]);
    }
  const float root = std::sqrt(sum16(square) / float(n) + eps);
  const float scale = 1.f / (root > least ? root : least);
  const float back = root > least ? -(scale * scale * scale / float(n) * sum16(along)) : 0.f;
  for (int i = 0; i < round_up(n, 16); i++) {
    dweight[i] = std::fma(dy[i], x[i] * scale, dweight[i]);
    dx[i] += std::fma(x[i], back, dy[i] * weight[i] * scale);
  }
}

POCKET_BODY void rmsnorm_backward_body(const NormBackward& row, float eps) { normalized_backward_body(row, eps, 0.f); }

// hidden = silu(gate) * up.
POCKET_BODY void gated_body(const float* gate, const float* up, float* hidden, int n) {
  for (int i = 0; i < n; i++) hidden[i] = gate[i] / (1.f + exp_body(-gate[i])) * up[i];
}

// hidden = silu(gate) * up, and the gradients of gate and up from the gradient of hidden.
// silu'(x) = s (1 + x (1 - s)) with s = 1 / (1 + e^-x).
POCKET_BODY void gated_backward_body(const float* gate, const float* up, const float* dhidden, float* hidden,
                                     float* dgate, float* dup, int n) {
  for (int i = 0; i < n; i++) {
    const float s = 1.f / (1.f + exp_body(-gate[i])), silu = gate[i] * s;
    hidden[i] = silu * up[i];
    dup[i] = dhidden[i] * silu;
    dgate[i] = dhidden[i] * up[i] * std::fma(silu, 1.f - s, s);
  }
}

// One row of attention scores. Elements first ... end - 1 take part in the softmax; the others, up to n (a multiple of
// 16), are masked and become 0.
struct ScoreRow {
  float* s;
  int first, end, n;
  float scale;  // factor of the scores before the softmax
};

// The largest scaled score of a row, and 1 / (sum of e^(scaled score - top)).
struct SoftmaxSums {
  float top, inverse;
};

// Scales and masks a row of scores.
POCKET_BODY void mask_row_body(const ScoreRow& row) {
  const auto [s, first, end, n, scale] = row;
  const int from = first / 16 * 16, to = std::min(n, round_up(end, 16));
  for (int i = from; i < to; i++) s[i] *= scale;
  constexpr float kLowest = -std::numeric_limits<float>::max();
  for (int i = from; i < first; i++) s[i] = kLowest;
  for (int i = end; i < to; i++) s[i] = kLowest;
}

// The largest score of a row, after mask_row_body().
POCKET_BODY float row_top_body(const ScoreRow& row) {
  const float* s = row.s;
  float tops[16];
  for (int j = 0; j < 16; j++) tops[j] = -std::numeric_limits<float>::max();
  for (int i = row.first / 16 * 16, to = std::min(row.n, round_up(row.end, 16)); i < to; i += 16)
    for (int j = 0; j < 16; j++) tops[j] = s[i + j] > tops[j] ? s[i + j] : tops[j];
  float top = tops[0];
  for (int j = 1; j < 16; j++) top = tops[j] > top ? tops[j] : top;
  return top;
}

// After mask_row_body(): replaces each score by e^(score - top), masked ones by 0. Returns the sum.
POCKET_BODY float exp_row_body(const ScoreRow& row, float top) {
  const auto [s, first, end, n, scale] = row;
  (void)scale;
  const int from = first / 16 * 16, to = std::min(n, round_up(end, 16));
  for (int i = from; i < to; i++) s[i] = exp_body(s[i] - top);
  std::memset(s, 0, size_t(first) * sizeof(float));
  std::memset(s + end, 0, size_t(n - end) * sizeof(float));
  float sums[16] = {};
  for (int i = from; i < to; i += 16)
    for (int j = 0; j < 16; j++) sums[j] += s[i + j];
  return sum16(sums);
}

// The three above: a row of scores to e^(scaled score - top). Returns the sum.
POCKET_BODY float exp_scores_body(const ScoreRow& row, float& top) {
  mask_row_body(row);
  top = row_top_body(row);
  return exp_row_body(row, top);
}

// The softmax of a row of attention scores.
POCKET_BODY void softmax_row_body(const ScoreRow& row, SoftmaxSums* sums) {
  sums->inverse = 1.f / exp_scores_body(row, sums->top);
  float* s = row.s;
  const float inverse = sums->inverse;
  for (int i = row.first, end = row.end; i < end; i++) s[i] *= inverse;
}

// Output and gradients of one attention row of one head.
struct SoftmaxBackward {
  SoftmaxSums sums;   // of the forward pass
  const float* out;   // (head_dim): output of the head
  const float* dout;  // (head_dim): gradient of it
  int head_dim;
  float* dp;  // (n): gradient of the probabilities; becomes the gradient of the scores
};

// Recomputes the softmax p of a row of scores, and ds = scale * p * (dp - sum of p dp). The sum equals out . dout.
POCKET_BODY void softmax_backward_body(const ScoreRow& row, const SoftmaxBackward& b) {
  const SoftmaxSums sums = b.sums;
  mask_row_body(row);
  exp_row_body(row, sums.top);
  float *s = row.s, *dp = b.dp;
  const float mean = dot_body(b.out, b.dout, b.head_dim), scale = row.scale;
  for (int i = 0, n = row.n; i < n; i++) {
    s[i] *= sums.inverse;
    dp[i] = s[i] * (dp[i] - mean) * scale;
  }
}

// A row of logits and the token that it predicts. n logits, then zeros up to padded_n, a multiple of 16.
struct LogitRow {
  float* logits;
  int n, padded_n, target;
  float weight;         // factor of the gradient
  float smoothing = 0;  // share of the target probability that all tokens get equally (Szegedy et al. 2016)

  ScoreRow scores(float* row, float scale) const { return {row, 0, n, padded_n, scale}; }
};

// The mean of a row of logits.
POCKET_BODY float mean_body(const LogitRow& row) {
  float sums[16] = {};
  for (int i = 0; i < row.padded_n; i += 16)
    for (int j = 0; j < 16; j++) sums[j] += row.logits[i + j];
  return sum16(sums) / float(row.n);
}

// Replaces a row of logits by the gradient of weight * -ln p[target]. loss: -ln p[target], without the weight. With
// smoothing, of (1 - smoothing) * -ln p[target] + smoothing * mean of -ln p.
POCKET_BODY void cross_entropy_body(const LogitRow& row, double* loss) {
  float* const logits = row.logits;
  float top = 0;
  const bool smooth = row.smoothing > 0;
  const double share = double(row.smoothing);
  const double aim =
      smooth ? (1 - share) * double(logits[row.target]) + share * double(mean_body(row)) : double(logits[row.target]);
  const float sum = exp_scores_body(row.scores(logits, 1.f), top), factor = row.weight / sum;
  *loss = exact::log(double(sum)) + double(top) - aim;
  for (int i = 0, n = row.n; i < n; i++) logits[i] *= factor;
  const float spread = row.weight * row.smoothing / float(row.n);
  for (int i = 0, n = row.n; smooth && i < n; i++) logits[i] -= spread;
  logits[row.target] -= smooth ? row.weight * (1.f - row.smoothing) : row.weight;
}

// What a row learns from a teacher (Hinton, Vinyals and Dean 2015, arxiv.org/abs/1503.02531).
struct TeacherRow {
  const float* logits;  // (padded_n): the teacher's
  float* scratch;       // (2, padded_n)
  float share;          // weight of the teacher in the loss, 0 to 1
  float temperature;    // T
};

// Replaces a row of logits by the gradient of weight * loss, loss = (1 - share) * -ln p[target] + share * T^2 *
// KL(q || p), where q is the teacher's softmax and both distributions of the divergence are of logits / T.
POCKET_BODY void distill_body(const LogitRow& row, const TeacherRow& teacher_row, double* loss) {
  const auto [logits, n, padded_n, target, weight, smoothing] = row;
  (void)smoothing;
  const auto [teacher, scratch, share, temperature] = teacher_row;
  float *p = scratch, *q = scratch + padded_n, top_p = 0, top_q = 0;
  std::memcpy(p, logits, size_t(padded_n) * sizeof(float));
  std::memcpy(q, teacher, size_t(padded_n) * sizeof(float));
  const float cool = 1.f / temperature, sum_p = exp_scores_body(row.scores(p, cool), top_p),
              sum_q = exp_scores_body(row.scores(q, cool), top_q);
  float apart[16] = {};  // sum of q * (teacher - student)
  for (int i = 0; i < padded_n; i += 16)
    for (int j = 0; j < 16; j++) apart[j] = std::fma(q[i + j], teacher[i + j] - logits[i + j], apart[j]);
  const double divergence = double(sum16(apart)) * double(cool) / double(sum_q) -
                            (exact::log(double(sum_q)) + double(top_q)) + exact::log(double(sum_p)) + double(top_p);
  double own = 0;
  cross_entropy_body({logits, n, padded_n, target, weight * (1.f - share)}, &own);
  *loss = (1 - double(share)) * own + double(share) * double(temperature) * double(temperature) * divergence;
  const float factor = weight * share * temperature, down_p = 1.f / sum_p, down_q = 1.f / sum_q;
  for (int i = 0; i < n; i++) logits[i] = std::fma(factor, p[i] * down_p - q[i] * down_q, logits[i]);
}

// The constants of one step of AdamW (Loshchilov and Hutter 2019).
struct AdamStep {
  float beta1, beta2, eps;
  float rate;                      // learning rate
  float keep;                      // 1 - rate * weight decay
  float clip;                      // factor of the gradient
  float correction1, correction2;  // 1 / (1 - beta^step)
};

POCKET_BODY void adam_body(float* value, const float* gradient, float* mean, float* square, int n,
                           const AdamStep& step) {
  const AdamStep s = step;
  for (int i = 0; i < n; i++) {
    const float g = gradient[i] * s.clip;
    mean[i] = std::fma(s.beta1, mean[i] - g, g);
    square[i] = std::fma(s.beta2, square[i] - g * g, g * g);
    const float root = std::sqrt(square[i] * s.correction2) + s.eps;
    value[i] = std::fma(-s.rate, mean[i] * s.correction1 / root, value[i] * s.keep);
  }
}

// into += from.
POCKET_BODY void add_body(float* into, const float* from, int n) {
  for (int i = 0; i < n; i++) into[i] += from[i];
}

POCKET_BODY void square_sum_body(const float* x, int n, float* out) { *out = dot_body(x, x, n); }

// The kernels of one instruction set.
struct TrainKernels {
  const char* name;
  bool (*supported)();  // by this CPU
  void (*gemm)(const FloatProduct& p);
  void (*rmsnorm)(const float* x, const float* weight, float* y, int n, float eps);
  void (*rmsnorm_backward)(const NormBackward& row, float eps);
  void (*rope)(float* x, int heads, int head_dim, const float* cos, const float* sin);
  void (*gated)(const float* gate, const float* up, float* hidden, int n);
  void (*gated_backward)(const float* gate, const float* up, const float* dhidden, float* hidden, float* dgate,
                         float* dup, int n);
  void (*softmax)(const ScoreRow& row, SoftmaxSums* sums);
  void (*softmax_backward)(const ScoreRow& row, const SoftmaxBackward& b);
  void (*cross_entropy)(const LogitRow& row, double* loss);
  void (*distill)(const LogitRow& row, const TeacherRow& teacher, double* loss);
  void (*adam)(float* value, const float* gradient, float* mean, float* square, int n, const AdamStep& step);
  void (*add)(float* into, const float* from, int n);
  void (*square_sum)(const float* x, int n, float* out);
};

// The kernel sets, best first; the last one has no name. With POCKET_SEPARATE_KERNELS they are compiled once, in
// train_kernels.cpp.
#if !defined(POCKET_SEPARATE_KERNELS)
#define POCKET_TRAIN_TABLE inline
#elif defined(POCKET_DEFINE_TRAIN_KERNELS)
#define POCKET_TRAIN_TABLE
#endif
const TrainKernels* train_kernel_table();
#if defined(POCKET_TRAIN_TABLE)
template <class Tiles, class Set> constexpr TrainKernels train_kernels(const char* name, bool (*supported)()) {
  TrainKernels k = {};
  k.name = name;
  k.supported = supported;
  k.gemm = multiply_by_tiles<Tiles>;
  k.rmsnorm = Set::template call<rmsnorm_body>;
  k.rmsnorm_backward = Set::template call<rmsnorm_backward_body>;
  k.rope = Set::template call<rope_body>;
  k.gated = Set::template call<gated_body>;
  k.gated_backward = Set::template call<gated_backward_body>;
  k.softmax = Set::template call<softmax_row_body>;
  k.softmax_backward = Set::template call<softmax_backward_body>;
  k.cross_entropy = Set::template call<cross_entropy_body>;
  k.distill = Set::template call<distill_body>;
  k.adam = Set::template call<adam_body>;
  k.add = Set::template call<add_body>;
  k.square_sum = Set::template call<square_sum_body>;
  return k;
}

POCKET_TRAIN_TABLE const TrainKernels* train_kernel_table() {
  static const TrainKernels table[] = {
#if defined(__x86_64__)
    train_kernels<Avx512Tiles, FloatAvx512>("avx512", [] { return X86Features().avx512vnni; }),
    train_kernels<Avx2Tiles, FloatAvx2>("avx2", [] { return X86Features().avx2; }),
#endif
    train_kernels<PortableTiles, FloatScalar>("portable", [] { return true; }),
    {},
  };
  return table;
}
#endif  // POCKET_TRAIN_TABLE

// The kernel set of this name if the CPU supports it; name null: the best one. Null where there is none.
inline const TrainKernels* find_train_kernels(const char* name) {
  for (const TrainKernels* k = train_kernel_table(); k->name; k++)
    if ((!name || std::strcmp(name, k->name) == 0) && k->supported()) return k;
  return nullptr;
}

}  // namespace pocket
