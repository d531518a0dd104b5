// gemm.hpp: the float matrix product of the trainer.
//
// Every element of the result is one chain of fused multiply-adds, k = 0 upward, from 0 or from what was there: the
// same bits for every instruction set, tile, block and thread. multiply_scalar() says this; the leaves hold a tile of
// the result in registers (12 x 32 with 512 bits, 6 x 16 with 256) and read both factors where they lie, which strides
// of an odd number of cache lines make cheap.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "../export/matrix.hpp"

namespace pocket {

inline constexpr int kPanelCols = 32;   // columns of a panel of the right factor
inline constexpr int kGemmDepth = 512;  // k that a tile sums before the next tile: what the caches hold

// Columns padded to whole vectors of 16 floats. Whatever lies in the padding of a matrix here is zero.
constexpr size_t padded16(int cols) { return round_up<size_t>(size_t(cols), 16); }

// Floats from row to row of a matrix of activations: an odd number of cache lines, so that the rows of a tile never
// fall into the same sets of a cache.
constexpr size_t row_stride(int cols) { return (padded16(cols) / 16 | 1) * 16; }

// The right factor: element (k, j) lies at data[j / 32 * panel + k * k_step + j % 32].
struct RightFactor {
  const float* data;
  size_t k_step, panel;

  RightFactor from(int k, int j) const { return {data + size_t(k) * k_step + j / kPanelCols * panel, k_step, panel}; }
};
inline RightFactor row_major(const float* m, size_t stride) { return {m, stride, kPanelCols}; }
inline RightFactor packed(const float* m, int depth) { return {m, kPanelCols, size_t(depth) * kPanelCols}; }

// Floats of a packed matrix (depth, cols).
inline size_t packed_size(int depth, int cols) { return size_t(depth) * round_up(cols, kPanelCols); }

// Panel p of a matrix whose element (k, j) is f.at(j, k), for packed(); zeros behind its last column.
inline void pack_panel(const Factor& f, int depth, int cols, int p, float* out) {
  const int first = p * kPanelCols;
  pack<kPanelCols>(f.at(first, 0), std::min(kPanelCols, cols - first), depth, out + packed_size(depth, first));
}

// One product: c (m, n; rows ldc apart) = or += the sum over k < depth of a(i, k) * b(k, j). n is a multiple of 16.
struct Product {
  int m, n, depth;
  Factor a;
  RightFactor b;
  float* c;
  size_t ldc;
  bool add;
};

// The definition.
inline void multiply_scalar(const Product& p) {
  for (int i = 0; i < p.m; i++)
    for (int j = 0; j < p.n; j++) {
      float sum = p.add ? p.c[i * p.ldc + j] : 0;
      for (int k = 0; k < p.depth; k++) sum = std::fma(*p.a.at(i, k).data, p.b.from(k, j).data[j % kPanelCols], sum);
      p.c[i * p.ldc + j] = sum;
    }
}

// A tile of R rows and V vectors of W columns.
template <int W, int R, int V>
POCKET_BODY void gemm_tile(const Factor& a, const float* b, size_t b_step, int depth, float* c, size_t ldc, bool add) {
  Lanes<W> sum[R][V] = {};
  if (add)
    POCKET_FOR (r, R)
      POCKET_FOR (v, V) sum[r][v].load(c + r * ldc + v * W);
  const float* row = a.data;
  const size_t step = a.step, k_step = a.k_step;
  for (int k = 0; k < depth; k++, row += k_step, b += b_step) {
    Lanes<W> right[V];
    POCKET_FOR (v, V) right[v].load(b + v * W);
    POCKET_FOR (r, R)
      POCKET_FOR (v, V) sum[r][v].add_product(row[r * step], right[v]);
  }
  POCKET_FOR (r, R)
    POCKET_FOR (v, V) sum[r][v].store(c + r * ldc + v * W);
}

// m rows in tiles of nearly equal height, at most Most.
template <int W, int V, int Most, int R = Most>
POCKET_BODY void gemm_rows(int rows, const Factor& a, const float* b, size_t b_step, int depth, float* c, size_t ldc,
                           bool add) {
  if (rows == R) return gemm_tile<W, R, V>(a, b, b_step, depth, c, ldc, add);
  if constexpr (R > 1) gemm_rows<W, V, Most, R - 1>(rows, a, b, b_step, depth, c, ldc, add);
}

template <int W, int V> POCKET_BODY void gemm_columns(const Product& p, int k0, int j, int at) {
  constexpr int kMost = W == 16 ? 12 : 6;
  const int depth = std::min(kGemmDepth, p.depth - k0), tiles = (p.m + kMost - 1) / kMost;
  const RightFactor b = p.b.from(k0, j);
  for (int t = 0; t < tiles; t++) {
    const int first = int(int64_t(p.m) * t / tiles), rows = int(int64_t(p.m) * (t + 1) / tiles) - first;
    gemm_rows<W, V, kMost>(rows, p.a.at(first, k0), b.data + at, b.k_step, depth, p.c + first * p.ldc + j + at, p.ldc,
                           p.add || k0 > 0);
  }
}

// W lanes a register. 32 columns at a time with 16 lanes, else 16.
template <int W> POCKET_BODY void gemm_body(const Product& p) {
  for (int k0 = 0; k0 == 0 || k0 < p.depth; k0 += kGemmDepth)
    for (int j = 0; j < p.n; j += kPanelCols) {
      const bool whole = p.n - j >= kPanelCols;
      if constexpr (W == 16) {
        whole ? gemm_columns<16, 2>(p, k0, j, 0) : gemm_columns<16, 1>(p, k0, j, 0);
      } else {
        gemm_columns<W, 16 / W>(p, k0, j, 0);
        if (whole) gemm_columns<W, 16 / W>(p, k0, j, 16);
      }
    }
}

}  // namespace pocket
