// gptq.hpp: quantizes a matrix so that its outputs on given inputs change least.
// With the error e of a row (weights minus quantized weights) and the second moments H of the inputs, the mean squared
// error of the output is e^T H e. With the Cholesky factorization H = l l^T it is the sum over columns j of
//
//     (l[j][j] * e[j] + the sum over i > j of l[i][j] * e[i])^2.
// So the columns are quantized from the last to the first: the errors of the columns already quantized adjust the
// target of the next one (GPTQ: Frantar et al. 2022; this form is the successive cancellation of QuIP). The 16 scales
// of a group are tried in parallel, one per SIMD lane, with the feedback inside the group; the float scales of a row
// are each tried on the whole row.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "matrix.hpp"
#include "quantize.hpp"

namespace pocket {

/// The second moments of a matrix's inputs, factored.
class Hessian {
 public:
  // h (n, n), n = cols padded to 64: sums or means of the products of inputs; the lower half is read. shrink: the share
  // of the off-diagonal elements that is discarded. damping: added to the diagonal, relative to its mean. Columns that
  // are always zero are allowed; if columns are linearly dependent, damping is increased until the factorization
  // exists. False if the moments are not finite.
  bool factor(Pool& pool, const float* h, int cols, double shrink, double damping) {
    cols_ = cols;
    const int n = padded(cols);
    double mean = 0;
    for (int j = 0; j < cols; j++) mean += double(h[size_t(j) * n + j]) / cols;
    if (!(mean > 0)) mean = 1;  // all moments are zero
    for (; damping < 1e3; damping = std::max(damping * 10, 1e-6)) {
      copy(pool, h, float(1 - shrink), float(damping * mean));
      if (!cholesky(pool, l_.data(), n)) continue;
      make_panels(pool);
      return true;
    }
    return false;
  }

  int cols() const { return cols_; }
  const std::vector<float>& weights() const { return weights_; }  // (n): weight of each column's squared error
  // (n - 32 g, 32), for the columns i from 32 g on: element (i, j) is l[i][32 g + j] / l[32 g + j][32 g + j].
  const float* panel(int g) const { return panels_.data() + panel_at_[g]; }
  const float* triangle() const { return l_.data(); }

 private:
  void copy(Pool& pool, const float* h, float kept, float damping) {
    const int n = padded(cols_);
    l_.resize(size_t(n) * n);
    pool.parallel_for(n, [&](int i, int) {
      for (int j = 0; j < i; j++) l_[size_t(i) * n + j] = kept * h[size_t(i) * n + j];
      l_[size_t(i) * n + i] = h[size_t(i) * n + i] + damping;
    });
  }

  void make_panels(Pool& pool) {
    const int n = padded(cols_);
    weights_.resize(n);
    for (int p = 0; p < n; p++) weights_[p] = p < cols_ ? l_[size_t(p) * n + p] * l_[size_t(p) * n + p] : 0;
    panel_at_.resize(size_t(n / kGroup) + 1);
    for (int g = 0; g < n / kGroup; g++) panel_at_[g + 1] = panel_at_[g] + size_t(n - g * kGroup) * kGroup;
    panels_.resize(panel_at_.back());
    pool.parallel_for(n / kGroup, [&](int g, int) {
      float* out = panels_.data() + panel_at_[g];
      for (int i = g * kGroup; i < n; i++)
        for (int j = g * kGroup; j < (g + 1) * kGroup; j++)
          *out++ = i < j ? 0 : l_[size_t(i) * n + j] / l_[size_t(j) * n + j];
    });
  }

  int cols_ = 0;
  std::vector<float> l_, panels_, weights_;
  std::vector<size_t> panel_at_;
};

inline constexpr int kTogether = 2;  // row scales in one search, to hide the latency of instructions

/// The search of a group under some row scales: inputs, then results. Arrays are indexed by column within the group.
struct GroupSearch {
  const float* original;  // (32) the weights
  const float* weights;   // (32) of squared errors
  const float* feedback;  // (32, 32) within the group: factor of the error of column i in the target of column j
  const float* target[kTogether];  // (32) the weights plus the feedback of the groups already quantized
  float row_scale[kTogether];

  float values[kTogether][kGroup];  // of the codebook
  float errors[kTogether][kGroup];  // weight - value * scale
  int scale[kTogether];             // 4 bits
  float cost[kTogether];
};

/// Finds the scale with the least weighted error for each row scale, with codes and errors.
template <int W> POCKET_BODY void search_group_body(const Codebook* cb, GroupSearch* group) {
  constexpr int kEach = kScaleLanes / W, kParts = kTogether * kEach;
  typedef typename Vector<W>::Floats Floats;
  GroupSearch& s = *group;
  Lanes<W> scale[kParts], target[kParts][kGroup], value[kGroup][kParts], cost[kParts] = {};
  Floats inverse[kParts];
  alignas(64) float scales[kTogether][kScaleLanes], costs[kTogether][kScaleLanes];
  for (int n = 0; n < kTogether; n++)
    for (int i = 0; i < kScaleLanes; i++) scales[n][i] = s.row_scale[n] * q4_scale(i);
  POCKET_FOR (p, kParts) {
    scale[p].load(scales[p / kEach] + p % kEach * W);
    inverse[p] = 1.f / scale[p].v;
  }
  for (int j = 0; j < kGroup; j++)
    POCKET_FOR (p, kParts) target[p][j].v = Floats{} + s.target[p / kEach][j];
  for (int i = kGroup - 1; i >= 0; i--) {
    Lanes<W> error[kParts];
    POCKET_FOR (p, kParts) {
      const Floats x = target[p][i].v * inverse[p], none = {};
      Floats sum[3] = {Floats{} + cb->value[0]};
      POCKET_FOR (b, 15) sum[b % 3] += x > cb->border[b] ? Floats{} + (cb->value[b + 1] - cb->value[b]) : none;
      value[i][p].v = sum[0] + (sum[1] + sum[2]);  // integers: the sum is exact in any order
      const Floats weight = value[i][p].v * scale[p].v, rest = target[p][i].v - weight;
      error[p].v = s.original[i] - weight;
      Lanes<W> square;
      square.v = rest * rest;
      cost[p].add_product(s.weights[i], square);
    }
    POCKET_FOR (p, kParts) {
      const Lanes<W> wrong = error[p];
#pragma GCC unroll 4
      for (int j = 0; j < i; j++) {
        Lanes<W> moved = target[p][j];
        moved.add_product(s.feedback[i * kGroup + j], wrong);
        target[p][j] = moved;
      }
    }
  }
  POCKET_FOR (p, kParts) cost[p].store(costs[p / kEach] + p % kEach * W);
  for (int n = 0; n < kTogether; n++) {
    s.scale[n] = int(std::min_element(costs[n], costs[n] + kScaleLanes) - costs[n]);
    s.cost[n] = costs[n][s.scale[n]];
    for (int i = 0; i < kGroup; i++) {
      float all[kScaleLanes];
      POCKET_FOR (p, kEach) value[i][n * kEach + p].store(all + p * W);
      s.values[n][i] = all[s.scale[n]];
      s.errors[n][i] = s.original[i] - s.values[n][i] * scales[n][s.scale[n]];
    }
  }
}

/// Quantizes rows with one Hessian and codebook. Has scratch memory: one object per thread.
class RowQuantizer {
 public:
  RowQuantizer(const Hessian& hessian, const Codebook& codebook)
      : hessian_(hessian), codebook_(codebook), cols_(padded(hessian.cols())) {
    const size_t n = size_t(cols_);
    search_.resize(search_scratch(cols_));
    errors_.resize(n * kTileRows);
    values_.resize(n * kTileRows);
    scales_.resize(n / kGroup * kTileRows);
    codes_.resize(n);
    row_scales_.resize(n / kGroup);
  }

  // row (cols padded to 64): the target weights. Writes row r of a zero-initialized q4 panel; returns the weighted
  // error.
  double quantize(const float* row, int r, uint8_t* panel) {
    float first;
    search_scales(codebook_, row, hessian_.weights().data(), cols_, row_scales_.data(), &first, search_.data());
    if (first == 0) return 0;  // a row of zeros: the scale is 0, the codes have no effect
    float scale[kTileRows];
    for (int t = 0; t < kTileRows; t++) scale[t] = first * (0.88f + 0.04f * float(t));
    double cost[kTileRows] = {};
    for (int g = cols_ / kGroup - 1; g >= 0; g--) quantize_group(row, g, scale, cost);
    const int best = int(std::min_element(cost, cost + kTileRows) - cost);
    for (int k = 0; k < cols_; k++) codes_[k] = codebook_.code(values_[size_t(k) * kTileRows + best]);
    for (int g = 0; g < cols_ / kGroup; g++) row_scales_[g] = scales_[g * kTileRows + best];
    put_q4_row(codes_.data(), row_scales_.data(), scale[best], cols_, r, panel);
    return cost[best];
  }

 private:
  // Quantizes one group under all row scales.
  void quantize_group(const float* row, int g, const float* scale, double* cost) {
    alignas(64) float feedback[kTileRows * kTileCols];
    static_assert(kTileCols == kGroup);
    const float* panel = hessian_.panel(g);
    multiply_tile(errors_.data() + size_t(g + 1) * kGroup * kTileRows, panel + kGroup * kGroup,
                  cols_ - (g + 1) * kGroup, feedback);
    for (int t = 0; t < kTileRows; t += kTogether) {
      float target[kTogether][kGroup];
      GroupSearch s = {row + g * kGroup, hessian_.weights().data() + g * kGroup, panel, {}, {}, {}, {}, {}, {}};
      for (int n = 0; n < kTogether; n++) {
        for (int j = 0; j < kGroup; j++) target[n][j] = row[g * kGroup + j] + feedback[(t + n) * kGroup + j];
        s.target[n] = target[n];
        s.row_scale[n] = scale[t + n];
      }
      run_best<search_group_body<16>, search_group_body<8>>(&codebook_, &s);
      for (int n = 0; n < kTogether; n++) {
        for (int j = 0; j < kGroup; j++) {
          errors_[(size_t(g) * kGroup + j) * kTileRows + t + n] = s.errors[n][j];
          values_[(size_t(g) * kGroup + j) * kTileRows + t + n] = s.values[n][j];
        }
        scales_[g * kTileRows + t + n] = uint8_t(s.scale[n]);
        cost[t + n] += s.cost[n];
      }
    }
  }

  const Hessian& hessian_;
  const Codebook codebook_;
  int cols_;
  std::vector<float> search_;
  std::vector<float> errors_, values_;  // (cols, 8), for each row scale
  std::vector<uint8_t> scales_, codes_, row_scales_;
};

}  // namespace pocket
