// muon.hpp: Muon (Jordan 2024, kellerjordan.github.io/posts/muon): the step of a matrix is its momentum, made orthogonal.
//
// The momentum of a weight matrix is close to low rank: a few directions dominate a step of AdamW. Muon replaces the
// momentum U S V^T by about U V^T, so that all directions move equally. Newton-Schulz iterations compute it from matrix
// products only. As in Liu et al. 2025 (arxiv.org/abs/2502.16982), a step is scaled by 0.2 sqrt(the longer side), to the
// size of AdamW's steps, so that one learning rate and one weight decay serve both.
#pragma once

#include <cmath>
#include <utility>

#include "train_blocks.hpp"

namespace pocket {

inline constexpr float kMuonMomentum = 0.95f;

// A gradient's step, of one matrix at a time. One object per thread.
class Muon {
 public:
  // rows, cols: of the largest matrix.
  Muon(const TrainKernels& kernels, int rows, int cols) : k_(kernels) {
    const int small = std::min(rows, cols), large = std::max(rows, cols);
    const size_t wide = size_t(small) * padded16(large), square = size_t(small) * padded16(small);
    x_ = Floats(wide);
    y_ = Floats(wide);
    packed_ = Floats(packed_size(large, small));
    gram_ = Floats(square);
    polynomial_ = Floats(square);
  }

  // Updates a matrix and its momentum from its gradient, of which `clip` is the factor. keep: 1 - rate * decay.
  void update(const Parameter& p, float* value, const float* gradient, float* momentum, float clip, float rate,
              float keep) {
    rows_ = std::min(p.spec.rows, p.spec.cols);
    cols_ = std::max(p.spec.rows, p.spec.cols);
    stride_ = padded16(cols_);
    const bool transposed = p.spec.rows > p.spec.cols;
    std::fill(x_.data(), x_.data() + size_t(rows_) * stride_, 0.f);
    for (int r = 0; r < p.spec.rows; r++)
      for (int c = 0; c < p.spec.cols; c++) {
        const size_t i = size_t(r) * p.stride + size_t(c);
        const float g = clip * gradient[i];
        momentum[i] = kMuonMomentum * momentum[i] + g;
        x_[transposed ? size_t(c) * stride_ + size_t(r) : size_t(r) * stride_ + size_t(c)] =
            kMuonMomentum * momentum[i] + g;  // Nesterov's
      }
    orthogonalize();
    const float scale = -rate * 0.2f * std::sqrt(float(cols_));
    for (int r = 0; r < p.spec.rows; r++)
      for (int c = 0; c < p.spec.cols; c++) {
        const size_t i = size_t(r) * p.stride + size_t(c);
        value[i] = keep * value[i] +
                   scale * x_[transposed ? size_t(c) * stride_ + size_t(r) : size_t(r) * stride_ + size_t(c)];
      }
  }

 private:
  // Brings the singular values of x (rows, cols), rows <= cols, close to 1: five times x = a x + (b g + c g g) x with
  // g = x x^T.
  void orthogonalize() {
    constexpr float a = 3.4445f, b = -4.7750f, c = 2.0315f;
    const size_t n = size_t(rows_) * stride_, square = padded16(rows_), squares = size_t(rows_) * square;
    float sum = 0;
    k_.square_sum(x_.data(), int(n), &sum);
    const float scale = 1 / (std::sqrt(sum) + 1e-7f);
    for (size_t i = 0; i < n; i++) x_[i] *= scale;
    for (int step = 0; step < 5; step++) {
      for (int panel = 0; panel * kPanelCols < rows_; panel++)
        pack_panel(rows_of(x_.data(), stride_), cols_, rows_, panel, packed_.data());
      k_.gemm({rows_, int(square), cols_, rows_of(x_.data(), stride_), packed(packed_.data(), cols_), gram_.data(),
               square, false});
      k_.gemm({rows_, int(square), rows_, rows_of(gram_.data(), square), row_major(gram_.data(), square),
               polynomial_.data(), square, false});
      for (size_t i = 0; i < squares; i++) polynomial_[i] = b * gram_[i] + c * polynomial_[i];
      k_.gemm({rows_, int(stride_), rows_, rows_of(polynomial_.data(), square), row_major(x_.data(), stride_),
               y_.data(), stride_, false});
      for (size_t i = 0; i < n; i++) x_[i] = a * x_[i] + y_[i];
    }
  }

  const TrainKernels& k_;
  int rows_ = 0, cols_ = 0;  // of x
  size_t stride_ = 0;
  Floats x_, y_, packed_, gram_, polynomial_;
};

}  // namespace pocket
