// quantize.hpp: encodes float32 rows in the formats of a model file, which run.cpp describes.
// q4 without calibration: the scale of each row, the 4-bit scale of each group of 32 and the code of each weight are
// chosen for the least squared error.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "matrix.hpp"

namespace pocket {

/// f >= 0 rounded up to bfloat16: with a scale rounded up no weight overflows.
inline uint16_t to_bf16_up(float f) {
  const uint32_t bits = float_bits(f);
  return uint16_t((bits + 0xffff) >> 16);
}

/// Quantizes 32 weights to int8; returns their scale as a bfloat16.
inline uint16_t quantize_group_q8(const float* w, int8_t* q) {
  float largest = 0;
  for (int i = 0; i < kGroup; i++) largest = std::max(largest, std::fabs(w[i]));
  const uint16_t half = to_bf16_up(largest / 127.f);
  const float scale = from_bf16(half);
  for (int i = 0; i < kGroup; i++) q[i] = scale < 1e-30f ? 0 : int8_t(std::nearbyint(w[i] / scale));
  return scale < 1e-30f ? 0 : half;
}

/// A sorted codebook, and the borders between its values.
struct Codebook {
  float value[16], border[15];  // border[i] is the midpoint of value[i] and value[i + 1]

  // The code of the value nearest to x.
  uint8_t code(float x) const { return uint8_t(std::upper_bound(border, border + 15, x) - border); }

  explicit Codebook(const int8_t values[16] = kCodebook) {
    for (int i = 0; i < 16; i++) value[i] = values[i];
    for (int i = 0; i < 15; i++) border[i] = (value[i] + value[i + 1]) / 2;
  }
};

inline constexpr int kScaleLanes = 16;  // scales that are tried in parallel, one per SIMD lane

/// The weighted squared error of a group under each of 16 scales.
POCKET_BODY void group_errors_body(const Codebook& cb, const float* w, const float* weight, const float* scale,
                                   float* error) {
  typedef Vector<8>::Floats Floats;
  Floats s[2], inverse[2], sum[2] = {};
  std::memcpy(s, scale, sizeof s);
  for (int h = 0; h < 2; h++) inverse[h] = 1.f / s[h];
  for (int i = 0; i < kGroup; i++) {
    const Floats t[2] = {w[i] * inverse[0], w[i] * inverse[1]};
    Floats nearest[2] = {Floats{} + cb.value[0], Floats{} + cb.value[0]};
    POCKET_FOR (b, 15) {
      const Floats step = Floats{} + (cb.value[b + 1] - cb.value[b]), none = {};
      nearest[0] += t[0] > cb.border[b] ? step : none;
      nearest[1] += t[1] > cb.border[b] ? step : none;
    }
    for (int h = 0; h < 2; h++) {
      const Floats d = (t[h] - nearest[h]) * s[h];
      sum[h] += weight[i] * (d * d);
    }
  }
  std::memcpy(error, sum, sizeof sum);
}

// The row scales tried are the largest that any group needs, times 1.06 ... 0.72.
inline constexpr int kRowScales = 8, kGridScales = 32;
inline constexpr float kGridStep = 0.93f;  // ratio of neighbouring scales of the grid

/// The row scale with the least error, looked up in the errors of all groups on the grid of scales from `top` down.
/// needed: the largest scale that any group needs.
POCKET_BODY float choose_row_scale(const float* grid_errors, int groups, float top, float needed) {
  float row_scale = 0, least = 0;
  for (int j = 0; j < kRowScales; j++) {
    const float candidate = needed / 12.f * (1.06f - 0.34f * float(j) / (kRowScales - 1));
    int at[8];  // positions of the scales 5 ... 12 in the grid
    for (int m = 0; m < 8; m++) {
      const float position = std::log(candidate * float(5 + m) / top) / std::log(kGridStep);
      at[m] = std::min(kGridScales - 1, std::max(0, int(position + 0.5f)));
    }
    float total = 0;
    for (int g = 0; g < groups; g++) {
      const float* e = grid_errors + size_t(g) * 2 * kGridScales;
      float group = e[at[0]];
      for (int m = 0; m < 8; m++) group = std::min(group, std::min(e[at[m]], e[kGridScales + at[m]]));
      total += group;
    }
    if (j > 0 && total >= least) continue;
    row_scale = candidate;
    least = total;
  }
  return row_scale;
}

/// The scale search of one row (cols, a multiple of 32, padded with zeros). weights (cols): the weight of each column's
/// error. Writes the row scale and the 4-bit scale of every group; grid_errors is scratch memory, search_scratch(cols)
/// floats.
POCKET_BODY void search_scales_body(const Codebook* codebook, const float* row, const float* weights, int cols,
                                    uint8_t* scales, float* row_scale, float* grid_errors) {
  const Codebook& cb = *codebook;
  const int groups = cols / kGroup;
  // The errors of every group on a geometric grid of scales of both signs; with the largest scale of the grid, the
  // largest weight of the row reaches the end of the codebook. The error of a row scale is then looked up in the grid.
  float largest = 0;
  for (int k = 0; k < cols; k++) largest = std::max(largest, std::fabs(row[k]));
  *row_scale = 0;
  if (!(largest > 1e-30f)) return void(std::fill(scales, scales + groups, uint8_t(0)));
  const float top = 1.15f * largest / std::max(std::fabs(cb.value[0]), std::fabs(cb.value[15]));
  alignas(64) float grid[2 * kGridScales];
  for (int i = 0; i < kGridScales; i++) {
    grid[i] = i == 0 ? top : grid[i - 1] * kGridStep;
    grid[kGridScales + i] = -grid[i];
  }
  float needed = 0;
  for (int g = 0; g < groups; g++) {
    float* e = grid_errors + size_t(g) * 2 * kGridScales;
    for (int i = 0; i < 2 * kGridScales; i += kScaleLanes)
      group_errors_body(cb, row + g * kGroup, weights + g * kGroup, grid + i, e + i);
    const float* best = std::min_element(e, e + 2 * kGridScales);
    needed = std::max(needed, std::fabs(grid[best - e]));
  }
  const float rs = choose_row_scale(grid_errors, groups, top, needed);
  alignas(64) float exact[kScaleLanes], error[kScaleLanes];
  for (int s = 0; s < kScaleLanes; s++) exact[s] = rs * q4_scale(s);
  for (int g = 0; g < groups; g++) {
    group_errors_body(cb, row + g * kGroup, weights + g * kGroup, exact, error);
    scales[g] = uint8_t(std::min_element(error, error + kScaleLanes) - error);
  }
  *row_scale = rs;
}

/// Floats of scratch memory of a scale search.
constexpr size_t search_scratch(int cols) { return size_t(cols) / kGroup * 2 * kGridScales; }

/// The scale search compiled for this CPU; the result is the same on every CPU.
inline void search_scales(const Codebook& cb, const float* row, const float* weights, int cols, uint8_t* scales,
                          float* row_scale, float* scratch) {
  run_best<search_scales_body, search_scales_body>(&cb, row, weights, cols, scales, row_scale, scratch);
}

/// Writes row r of a zero-initialized q4 panel from its codes (cols padded to 64) and the 4-bit scales of its groups.
inline void put_q4_row(const uint8_t* codes, const uint8_t* scales, float row_scale, int cols, int r, uint8_t* panel) {
  uint8_t* panel_scales = panel + code_bytes(Type::q4, cols);
  for (int k = 0; k < padded(cols); k++)
    panel[size_t(k / 8) * 64 + 4 * r + k % 4] |= uint8_t(codes[k] << (k & 4 ? 4 : 0));
  for (int g = 0; g < padded(cols) / kGroup; g++) panel_scales[g / 2 * 16 + r] |= uint8_t(scales[g] << (g & 1 ? 4 : 0));
  std::memcpy(panel + panel_bytes(Type::q4, cols) - 64 + 4 * r, &row_scale, 4);
}

/// Encodes 16 rows (row-major, cols padded to 64 with zeros) as one panel.
class PanelEncoder {
 public:
  // weights (cols padded to 64): the weight of each column's error; null: all equal.
  PanelEncoder(Type type, int cols, const float* weights = nullptr)
      : type_(type),
        cols_(padded(cols)),
        equal_(weights ? 0 : cols_, 1.f),
        weights_(weights ? weights : equal_.data()) {
    codes_.resize(cols_);
    scales_.resize(size_t(cols_) / kGroup);
    work_.resize(search_scratch(cols_));
  }

  const int8_t* codebook() const { return kCodebook; }

  // panel: panel_bytes(type, cols)
  void encode(const float* rows, uint8_t* panel) {
    std::memset(panel, 0, panel_bytes(type_, cols_));
    for (int r = 0; r < kPanelRows; r++) {
      const float* row = rows + size_t(r) * cols_;
      if (type_ == Type::f32)
        encode_f32(row, r, panel);
      else if (type_ == Type::q8)
        encode_q8(row, r, panel);
      else
        encode_q4(row, r, panel);
    }
  }

 private:
  void encode_f32(const float* row, int r, uint8_t* panel) {
    for (int k = 0; k < cols_; k++) std::memcpy(panel + size_t(k) * 64 + 4 * r, row + k, 4);
  }

  void encode_q8(const float* row, int r, uint8_t* panel) {
    uint8_t* scales = panel + code_bytes(type_, cols_);
    for (int g = 0; g < cols_ / kGroup; g++) {
      int8_t q[kGroup];
      const uint16_t scale = quantize_group_q8(row + g * kGroup, q);
      std::memcpy(scales + g * 32 + 2 * r, &scale, 2);
      for (int i = 0; i < kGroup; i++) {
        const int k = g * kGroup + i;
        panel[size_t(k / 4) * 64 + 4 * r + k % 4] = uint8_t(q[i]);
      }
    }
  }

  void encode_q4(const float* row, int r, uint8_t* panel) {
    float rs;
    search_scales(codebook_, row, weights_, cols_, scales_.data(), &rs, work_.data());
    for (int k = 0; k < cols_; k++) {
      const float scale = rs * q4_scale(scales_[k / kGroup]);
      codes_[k] = codebook_.code(scale == 0 ? 0 : row[k] * (1.f / scale));
    }
    put_q4_row(codes_.data(), scales_.data(), rs, cols_, r, panel);
  }

  Type type_;
  int cols_;
  Codebook codebook_;
  std::vector<float> equal_;
  const float* weights_;
  std::vector<uint8_t> codes_, scales_;
  std::vector<float> work_;
};

/// Encodes one row of the embedding table (cols padded to 64 with zeros) in embedding_row_bytes(type, cols) bytes.
inline void encode_embedding_row(Type type, const float* row, int cols, uint8_t* out) {
  for (int g = 0; g < padded(cols) / kGroup; g++, row += kGroup, out += embedding_group_bytes(type)) {
    if (type == Type::f32) {
      std::memcpy(out, row, kGroup * sizeof(float));
    } else {
      int8_t q[kGroup];
      const uint16_t scale = quantize_group_q8(row, q);
      std::memcpy(out, &scale, 2);
      std::memcpy(out + 2, q, kGroup);
    }
  }
}

}  // namespace pocket
