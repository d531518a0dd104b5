// megabyte_train_kernels.hpp: the kernels that training a MEGABYTE needs besides those of train_kernels.hpp: the
// normalizations and GELU, forward and backward. The same rules: one order of sums, the same bits everywhere.
#pragma once

#include <string_view>

#include "../train_kernels.hpp"
#include "megabyte.hpp"

namespace pocket {

// Backward of the RMSNorm of shift_norm_body, after the token shift.
POCKET_BODY void floor_norm_backward_body(const NormBackward& row) { normalized_backward_body(row, 0.f, 1e-8f); }

// The mean of n numbers, and 1 / sqrt(variance + 1e-5).
POCKET_BODY void moments_body(const float* x, int n, float& mean, float& scale) {
  float sum[16] = {}, square[16] = {};
  for (int i = 0; i < n; i++) sum[i % 16] += x[i];
  mean = sum16(sum) / float(n);
  for (int i = 0; i < n; i++) square[i % 16] = std::fma(x[i] - mean, x[i] - mean, square[i % 16]);
  scale = 1.f / std::sqrt(sum16(square) / float(n) + 1e-5f);
}

// Backward of LayerNorm (layer_norm_body): dx = r (g - mean of g - x' * mean of g x') with g = dy w and
// x' = (x - mean) r; dweight += dy x', dbias += dy. dx is assigned, not added to.
POCKET_BODY void layer_norm_backward_body(const NormBackward& row, float* dbias) {
  const auto [dy, x, weight, dx, dweight, n] = row;
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

// hidden = gelu(x), and dx = dhidden * (normal_share(x) + x e^(-x^2 / 2) / sqrt(2 pi)).
POCKET_BODY void gelu_backward_body(const float* x, const float* dhidden, float* hidden, float* dx, int n) {
  for (int i = 0; i < n; i++) {
    const float share = normal_share_body(x[i]);
    hidden[i] = x[i] * share;
    dx[i] = dhidden[i] * std::fma(x[i] * 0.39894228f, exp_body(-0.5f * x[i] * x[i]), share);
  }
}

// The additional kernels of one instruction set.
struct MegabyteTrainKernels {
  const char* name;  // as in TrainKernels
  void (*shift_norm)(const float* x, const float* before, const float* weight, float* y, int n);
  void (*floor_norm_backward)(const NormBackward& row);
  void (*layer_norm)(const float* x, const float* offset, const float* weight, const float* bias, float* y, int n);
  void (*layer_norm_backward)(const NormBackward& row, float* dbias);
  void (*gelu)(const float* x, float* hidden, int n);
  void (*gelu_backward)(const float* x, const float* dhidden, float* hidden, float* dx, int n);
};

// One row for each row of train_kernel_table(), in the same order.
const MegabyteTrainKernels* megabyte_train_kernel_table();
#if defined(POCKET_TRAIN_TABLE)
template <class Set> constexpr MegabyteTrainKernels megabyte_train_kernels(const char* name) {
  return {name,
          Set::template call<shift_norm_body>,
          Set::template call<floor_norm_backward_body>,
          Set::template call<layer_norm_body>,
          Set::template call<layer_norm_backward_body>,
          Set::template call<gelu_row_body>,
          Set::template call<gelu_backward_body>};
}

POCKET_TRAIN_TABLE const MegabyteTrainKernels* megabyte_train_kernel_table() {
  static const MegabyteTrainKernels table[] = {
#if defined(__x86_64__)
    megabyte_train_kernels<FloatAvx512>("avx512"),
    megabyte_train_kernels<FloatAvx2>("avx2"),
#endif
    megabyte_train_kernels<FloatScalar>("portable"),
  };
  return table;
}
#endif  // POCKET_TRAIN_TABLE

// The additional kernels of the same instruction set.
inline const MegabyteTrainKernels& megabyte_train_kernels(const TrainKernels& kernels) {
  const MegabyteTrainKernels* k = megabyte_train_kernel_table();
  while (std::string_view(k->name) != kernels.name) k++;
  return *k;
}

}  // namespace pocket
