// train_kernels.hpp: what takes the time in training, once for each instruction set: the matrix product of gemm.hpp,
// and forward and backward of what lies between two products. As in run.cpp the code is plain C++ in which the order
// of every sum and every fused multiply-add is written down, so that all sets give the same bits.
#pragma once

#include <cstring>
#include <string>

#include "megabyte/megabyte.hpp"
#include "gemm.hpp"

namespace pocket {

// The sum of a[i] * b[i], in 16 partial sums.
POCKET_BODY float dot_body(const float* a, const float* b, int n) {
  float s[16] = {};
  int i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; j++) s[j] = std::fma(a[i + j], b[i + j], s[j]);
  for (int j = 0; i + j < n; j++) s[j] = std::fma(a[i + j], b[i + j], s[j]);
  return sum16(s);
}

// Of y = x r w with r = 1 / sqrt(mean of x^2 + eps), but r = 1 / least where the root is smaller than that:
// dx += w r dy - x r^3 / n * the sum of dy w x (where r depends on x), and dw += dy x r. n elements, zeros behind them
// up to a multiple of 16.
POCKET_BODY void normalized_backward_body(const float* dy, const float* x, const float* weight, float* dx,
                                          float* dweight, int n, float eps, float least) {
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

POCKET_BODY void rmsnorm_backward_body(const float* dy, const float* x, const float* weight, float* dx, float* dweight,
                                       int n, float eps) {
  normalized_backward_body(dy, x, weight, dx, dweight, n, eps, 0.f);
}

// Of MEGABYTE's RMSNorm: see shift_norm_body.
POCKET_BODY void floor_norm_backward_body(const float* dy, const float* x, const float* weight, float* dx,
                                          float* dweight, int n) {
  normalized_backward_body(dy, x, weight, dx, dweight, n, 0.f, 1e-8f);
}

// The mean of n numbers, and 1 / sqrt(their variance + 1e-5).
POCKET_BODY void moments_body(const float* x, int n, float& mean, float& scale) {
  float sum[16] = {}, square[16] = {};
  for (int i = 0; i < n; i++) sum[i % 16] += x[i];
  mean = sum16(sum) / float(n);
  for (int i = 0; i < n; i++) square[i % 16] = std::fma(x[i] - mean, x[i] - mean, square[i % 16]);
  scale = 1.f / std::sqrt(sum16(square) / float(n) + 1e-5f);
}

// Of LayerNorm (layer_norm_body): dx = r (g - mean of g - x' * the mean of g x') with g = dy w, x' = (x - mean) r; dw
// += dy x', db += dy.
POCKET_BODY void layernorm_backward_body(const float* dy, const float* x, const float* weight, float* dx,
                                         float* dweight, float* dbias, int n) {
  float mean, scale, sum[16] = {}, along[16] = {};
  moments_body(x, n, mean, scale);
  for (int i = 0; i < n; i++) {
    const float g = dy[i] * weight[i];
    sum[i % 16] += g;
    along[i % 16] = std::fma(g, (x[i] - mean) * scale, along[i % 16]);
  }
  const float mean_g = sum16(sum) / float(n), mean_along = sum16(along) / float(n);
  for (int i = 0; i < n; i++) {
    const float normal = (x[i] - mean) * scale;
    dweight[i] = std::fma(dy[i], normal, dweight[i]);
    dbias[i] += dy[i];
    dx[i] = scale * std::fma(-normal, mean_along, std::fma(dy[i], weight[i], -mean_g));
  }
}

POCKET_BODY void gelu_row_body(const float* x, float* hidden, int n) {
  for (int i = 0; i < n; i++) hidden[i] = gelu_body(x[i]);
}

// The same, and dx = dhidden * (normal_share(x) + x e^(-x^2 / 2) / sqrt(2 pi)).
POCKET_BODY void gelu_backward_body(const float* x, const float* dhidden, float* hidden, float* dx, int n) {
  for (int i = 0; i < n; i++) {
    const float share = normal_share_body(x[i]);
    hidden[i] = x[i] * share;
    dx[i] = dhidden[i] * std::fma(x[i] * 0.39894228f, exp_body(-0.5f * x[i] * x[i]), share);
  }
}

// hidden = silu(gate) * up.
POCKET_BODY void gated_body(const float* gate, const float* up, float* hidden, int n) {
  for (int i = 0; i < n; i++) hidden[i] = gate[i] / (1.f + exp_body(-gate[i])) * up[i];
}

// The same, and the gradients of gate and up from that of hidden; silu'(x) = s (1 + x (1 - s)), s = 1 / (1 + e^-x).
POCKET_BODY void gated_backward_body(const float* gate, const float* up, const float* dhidden, float* hidden,
                                     float* dgate, float* dup, int n) {
  for (int i = 0; i < n; i++) {
    const float s = 1.f / (1.f + exp_body(-gate[i])), silu = gate[i] * s;
    hidden[i] = silu * up[i];
    dup[i] = dhidden[i] * silu;
    dgate[i] = dhidden[i] * up[i] * std::fma(silu, 1.f - s, s);
  }
}

// A row of scores, of which first ... end - 1 count and the others up to n (a multiple of 16) become 0, to e^(scale *
// score - top). known: top is given; else it is the largest scale * score. Returns the sum.
POCKET_BODY float exp_row_body(float* s, int first, int end, int n, float scale, bool known, float& top) {
  const int from = first / 16 * 16, to = std::min(n, round_up(end, 16));
  for (int i = from; i < to; i++) s[i] *= scale;
  constexpr float kLowest = -std::numeric_limits<float>::max();
  for (int i = from; i < first; i++) s[i] = kLowest;
  for (int i = end; i < to; i++) s[i] = kLowest;
  if (!known) {
    float tops[16];
    for (int j = 0; j < 16; j++) tops[j] = kLowest;
    for (int i = from; i < to; i += 16)
      for (int j = 0; j < 16; j++) tops[j] = s[i + j] > tops[j] ? s[i + j] : tops[j];
    top = tops[0];
    for (int j = 1; j < 16; j++) top = tops[j] > top ? tops[j] : top;
  }
  const float highest = top;
  for (int i = from; i < to; i++) s[i] = exp_body(s[i] - highest);
  std::memset(s, 0, size_t(first) * sizeof(float));
  std::memset(s + end, 0, size_t(n - end) * sizeof(float));
  float sums[16] = {};
  for (int i = from; i < to; i += 16)
    for (int j = 0; j < 16; j++) sums[j] += s[i + j];
  return sum16(sums);
}

// The softmax of a row of attention scores; top and inverse (of the sum) are what softmax_again_body wants.
POCKET_BODY void softmax_row_body(float* s, int first, int end, int n, float scale, float* top, float* inverse) {
  *inverse = 1.f / exp_row_body(s, first, end, n, scale, false, *top);
  for (int i = first; i < end; i++) s[i] *= *inverse;
}

// The same softmax p once more, and ds = scale * p * (dp - the sum of p dp), which is that of out * dout.
POCKET_BODY void softmax_backward_body(float* s, float* dp, int first, int end, int n, float scale, float top,
                                       float inverse, const float* out, const float* dout, int head_dim) {
  exp_row_body(s, first, end, n, scale, true, top);
  const float mean = dot_body(out, dout, head_dim);
  for (int i = 0; i < n; i++) {
    s[i] *= inverse;
    dp[i] = s[i] * (dp[i] - mean) * scale;
  }
}

// A row of logits to the gradient of weight * (-ln p[target]); loss gets -ln p[target], without the weight.
POCKET_BODY void cross_entropy_body(float* logits, int n, int padded_n, int target, float weight, double* loss) {
  float top = 0;
  const double aim = logits[target];
  const float sum = exp_row_body(logits, 0, n, padded_n, 1.f, false, top), factor = weight / sum;
  *loss = exact::log(double(sum)) + double(top) - aim;
  for (int i = 0; i < n; i++) logits[i] *= factor;
  logits[target] -= weight;
}

// A row of logits to the gradient of weight times what is learned from a text and a teacher (Hinton, Vinyals and Dean
// 2015, arxiv.org/abs/1503.02531): (1 - share) * -ln p[target] + share * T^2 * KL(q || p), where q is the teacher's
// softmax and both in the divergence are of logits / T. loss gets that sum, without the weight. soft: scratch of two
// rows.
POCKET_BODY void distill_body(float* logits, const float* teacher, float* soft, int n, int padded_n, int target,
                              float weight, float share, float temperature, double* loss) {
  float *p = soft, *q = soft + padded_n, top_p = 0, top_q = 0;
  std::memcpy(p, logits, size_t(padded_n) * sizeof(float));
  std::memcpy(q, teacher, size_t(padded_n) * sizeof(float));
  const float cool = 1.f / temperature, sum_p = exp_row_body(p, 0, n, padded_n, cool, false, top_p),
              sum_q = exp_row_body(q, 0, n, padded_n, cool, false, top_q);
  float apart[16] = {};  // of the teacher's logits and these, by q
  for (int i = 0; i < padded_n; i += 16)
    for (int j = 0; j < 16; j++) apart[j] = std::fma(q[i + j], teacher[i + j] - logits[i + j], apart[j]);
  const double divergence = double(sum16(apart)) * double(cool) / double(sum_q) -
                            (exact::log(double(sum_q)) + double(top_q)) + exact::log(double(sum_p)) + double(top_p);
  double own = 0;
  cross_entropy_body(logits, n, padded_n, target, weight * (1.f - share), &own);
  *loss = (1 - double(share)) * own + double(share) * double(temperature) * double(temperature) * divergence;
  const float factor = weight * share * temperature, down_p = 1.f / sum_p, down_q = 1.f / sum_q;
  for (int i = 0; i < n; i++) logits[i] = std::fma(factor, p[i] * down_p - q[i] * down_q, logits[i]);
}

// AdamW (Loshchilov and Hutter 2019) on n parameters: `gradient` is scaled by `clip` first.
struct AdamStep {
  float beta1, beta2, eps;
  float rate;                      // the learning rate
  float keep;                      // 1 - rate * weight decay
  float clip;                      //
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

// One instruction set's version of all of these.
struct TrainKernels {
  const char* name;
  bool (*supported)();
  void (*gemm)(const FloatProduct& p);
  void (*rmsnorm)(const float* x, const float* weight, float* y, int n, float eps);
  void (*rmsnorm_backward)(const float* dy, const float* x, const float* weight, float* dx, float* dweight, int n,
                           float eps);
  void (*shift_norm)(const float* x, const float* before, const float* weight, float* y, int n);
  void (*floor_norm_backward)(const float* dy, const float* x, const float* weight, float* dx, float* dweight, int n);
  void (*layernorm)(const float* x, const float* offset, const float* weight, const float* bias, float* y, int n);
  void (*layernorm_backward)(const float* dy, const float* x, const float* weight, float* dx, float* dweight,
                             float* dbias, int n);
  void (*rope)(float* x, int heads, int head_dim, const float* cos, const float* sin);
  void (*gated)(const float* gate, const float* up, float* hidden, int n);
  void (*gated_backward)(const float* gate, const float* up, const float* dhidden, float* hidden, float* dgate,
                         float* dup, int n);
  void (*gelu)(const float* x, float* hidden, int n);
  void (*gelu_backward)(const float* x, const float* dhidden, float* hidden, float* dx, int n);
  void (*softmax)(float* s, int first, int end, int n, float scale, float* top, float* inverse);
  void (*softmax_backward)(float* s, float* dp, int first, int end, int n, float scale, float top, float inverse,
                           const float* out, const float* dout, int head_dim);
  void (*cross_entropy)(float* logits, int n, int padded_n, int target, float weight, double* loss);
  void (*distill)(float* logits, const float* teacher, float* soft, int n, int padded_n, int target, float weight,
                  float share, float temperature, double* loss);
  void (*adam)(float* value, const float* gradient, float* mean, float* square, int n, const AdamStep& step);
  void (*add)(float* into, const float* from, int n);
  void (*square_sum)(const float* x, int n, float* out);
};

#define POCKET_TRAIN_ROW(NAME)                                                                               \
  NAME::call<rmsnorm_body>, NAME::call<rmsnorm_backward_body>, NAME::call<shift_norm_body>,                     \
      NAME::call<floor_norm_backward_body>, NAME::call<layer_norm_body>, NAME::call<layernorm_backward_body>,   \
      NAME::call<rope_body>, NAME::call<gated_body>, NAME::call<gated_backward_body>, NAME::call<gelu_row_body>, \
      NAME::call<gelu_backward_body>, NAME::call<softmax_row_body>, NAME::call<softmax_backward_body>,          \
      NAME::call<cross_entropy_body>, NAME::call<distill_body>, NAME::call<adam_body>, NAME::call<add_body>,     \
      NAME::call<square_sum_body>

// Best first.
inline const TrainKernels kTrainKernels[] = {
#if defined(__x86_64__)
    {"avx512", [] { return X86Features().avx512vnni; }, multiply_by_tiles<Avx512Tiles>, POCKET_TRAIN_ROW(FloatAvx512)},
    {"avx2", [] { return X86Features().avx2; }, multiply_by_tiles<Avx2Tiles>, POCKET_TRAIN_ROW(FloatAvx2)},
#endif
    {"portable", [] { return true; }, multiply_by_tiles<PortableTiles>, POCKET_TRAIN_ROW(FloatScalar)},
};

// The set of this name that the CPU can run; null: the best. Null where there is none.
inline const TrainKernels* find_train_kernels(const char* name) {
  for (const TrainKernels& k : kTrainKernels)
    if ((!name || std::strcmp(name, k.name) == 0) && k.supported()) return &k;
  return nullptr;
}

}  // namespace pocket
