// gemm.hpp: the float matrix product of the trainer.
//
// Every element of the result is one chain of fused multiply-adds, k = 0 upward, starting from 0 or from the previous
// value: the same bits for every instruction set, tile, block and thread. multiply_scalar() is the definition. The tile
// functions hold a tile of the result in registers (12 x 32 with 512 bits, 6 x 16 with 256) and read both factors in
// place; row strides of an odd number of cache lines make this cheap.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "../export/matrix.hpp"

namespace pocket {

inline constexpr int kPanelCols = 32;   // columns of a panel of the right factor
inline constexpr int kGemmDepth = 512;  // k that a tile sums before the next tile; fits the caches

// Columns padded to whole vectors of 16 floats. The padding of every matrix of the trainer is zero.
constexpr size_t padded16(int cols) { return round_up<size_t>(size_t(cols), 16); }

// Floats from row to row of a matrix of activations: an odd number of cache lines, so that the rows of a tile do not
// share the same cache sets.
constexpr size_t row_stride(int cols) { return (padded16(cols) / 16 | 1) * 16; }

// The right factor: element (k, j) is data[j / 32 * panel + k * k_step + j % 32].
struct RightFactor {
  const float* data;
  size_t k_step, panel;

  RightFactor from(int k, int j) const { return {data + size_t(k) * k_step + j / kPanelCols * panel, k_step, panel}; }
};
inline RightFactor row_major(const float* m, size_t stride) { return {m, stride, kPanelCols}; }
inline RightFactor packed(const float* m, int depth) { return {m, kPanelCols, size_t(depth) * kPanelCols}; }

// Size of a packed matrix (depth, cols), in floats.
inline size_t packed_size(int depth, int cols) { return size_t(depth) * round_up(cols, kPanelCols); }

// Packs panel p of a matrix whose element (k, j) is f.at(j, k), for packed(). Zeros follow its last column.
inline void pack_panel(const Factor& f, int depth, int cols, int p, float* out) {
  const int first = p * kPanelCols;
  pack<kPanelCols>(f.at(first, 0), std::min(kPanelCols, cols - first), depth, out + packed_size(depth, first));
}

// One product: c (m, n; rows ldc apart) = or += the sum over k < depth of a(i, k) * b(k, j). n is a multiple of 16.
struct FloatProduct {
  int m, n, depth;
  Factor a;
  RightFactor b;
  float* c;
  size_t ldc;
  bool add;
};

// The definition.
inline void multiply_scalar(const FloatProduct& p) {
  for (int i = 0; i < p.m; i++)
    for (int j = 0; j < p.n; j++) {
      float sum = p.add ? p.c[i * p.ldc + j] : 0;
      for (int k = 0; k < p.depth; k++) sum = std::fma(*p.a.at(i, k).data, p.b.from(k, j).data[j % kPanelCols], sum);
      p.c[i * p.ldc + j] = sum;
    }
}

// Computes a tile of the result: some rows of a, 16 or 32 columns of b.
using TileFunction = void (*)(const Factor& a, const float* b, size_t b_step, int depth, float* c, size_t ldc,
                              bool add);

// The tile functions: R rows of V vectors in registers. kMostRows is limited by the number of registers.
#if defined(__x86_64__)
struct Avx512Tiles {
  static constexpr int kMostRows = 12, kCols = 32, kVector = 16;
  template <int R, int V>
  POCKET_AVX512 static void tile(const Factor& a, const float* b, size_t b_step, int depth, float* c, size_t ldc,
                                 bool add) {
    __m512 sum[R][V];
    POCKET_FOR (r, R)
      POCKET_FOR (v, V) sum[r][v] = add ? _mm512_loadu_ps(c + r * ldc + v * kVector) : _mm512_setzero_ps();
    const float* row = a.data;
    const size_t step = a.step, k_step = a.k_step;
    for (int k = 0; k < depth; k++, row += k_step, b += b_step) {
      __m512 right[V];
      POCKET_FOR (v, V) right[v] = _mm512_loadu_ps(b + v * kVector);
      POCKET_FOR (r, R)
        POCKET_FOR (v, V) sum[r][v] = _mm512_fmadd_ps(_mm512_set1_ps(row[r * step]), right[v], sum[r][v]);
    }
    POCKET_FOR (r, R)
      POCKET_FOR (v, V) _mm512_storeu_ps(c + r * ldc + v * kVector, sum[r][v]);
  }
};

struct Avx2Tiles {
  static constexpr int kMostRows = 6, kCols = 16, kVector = 8;
  template <int R, int V>
  POCKET_AVX2 static void tile(const Factor& a, const float* b, size_t b_step, int depth, float* c, size_t ldc,
                               bool add) {
    __m256 sum[R][V];
    POCKET_FOR (r, R)
      POCKET_FOR (v, V) sum[r][v] = add ? _mm256_loadu_ps(c + r * ldc + v * kVector) : _mm256_setzero_ps();
    const float* row = a.data;
    const size_t step = a.step, k_step = a.k_step;
    for (int k = 0; k < depth; k++, row += k_step, b += b_step) {
      __m256 right[V];
      POCKET_FOR (v, V) right[v] = _mm256_loadu_ps(b + v * kVector);
      POCKET_FOR (r, R)
        POCKET_FOR (v, V) sum[r][v] = _mm256_fmadd_ps(_mm256_set1_ps(row[r * step]), right[v], sum[r][v]);
    }
    POCKET_FOR (r, R)
      POCKET_FOR (v, V) _mm256_storeu_ps(c + r * ldc + v * kVector, sum[r][v]);
  }
};
#endif

struct PortableTiles {
  static constexpr int kMostRows = 6, kCols = 16, kVector = 4;
  template <int R, int V>
  static void tile(const Factor& a, const float* b, size_t b_step, int depth, float* c, size_t ldc, bool add) {
    Lanes<kVector> sum[R][V] = {};
    if (add)
      POCKET_FOR (r, R)
        POCKET_FOR (v, V) sum[r][v].load(c + r * ldc + v * kVector);
    const float* row = a.data;
    const size_t step = a.step, k_step = a.k_step;
    for (int k = 0; k < depth; k++, row += k_step, b += b_step) {
      Lanes<kVector> right[V];
      POCKET_FOR (v, V) right[v].load(b + v * kVector);
      POCKET_FOR (r, R)
        POCKET_FOR (v, V) sum[r][v].add_product(row[r * step], right[v]);
    }
    POCKET_FOR (r, R)
      POCKET_FOR (v, V) sum[r][v].store(c + r * ldc + v * kVector);
  }
};

// The tile functions for 1, 2, ... rows and Cols columns.
template <class Tiles, int Cols, size_t... R>
constexpr std::array<TileFunction, sizeof...(R)> tiles_of(std::index_sequence<R...>) {
  return {&Tiles::template tile<int(R) + 1, Cols / Tiles::kVector>...};
}

// One column of tiles, of nearly equal height.
template <class Tiles, int Cols> void multiply_columns(const FloatProduct& p, int k0, int j, int at) {
  static constexpr auto kTiles = tiles_of<Tiles, Cols>(std::make_index_sequence<Tiles::kMostRows>());
  const int depth = std::min(kGemmDepth, p.depth - k0), tiles = (p.m + Tiles::kMostRows - 1) / Tiles::kMostRows;
  const RightFactor b = p.b.from(k0, j);
  for (int t = 0; t < tiles; t++) {
    const int first = int(int64_t(p.m) * t / tiles), rows = int(int64_t(p.m) * (t + 1) / tiles) - first;
    kTiles[size_t(rows) - 1](p.a.at(first, k0), b.data + at, b.k_step, depth, p.c + first * p.ldc + j + at, p.ldc,
                             p.add || k0 > 0);
  }
}

// The product with the tile functions of one instruction set.
template <class Tiles> void multiply_by_tiles(const FloatProduct& p) {
  for (int k0 = 0; k0 == 0 || k0 < p.depth; k0 += kGemmDepth)
    for (int j = 0; j < p.n; j += kPanelCols) {
      const int cols = std::min(kPanelCols, p.n - j);
      int at = 0;
      for (; at + Tiles::kCols <= cols; at += Tiles::kCols) multiply_columns<Tiles, Tiles::kCols>(p, k0, j, at);
      if (at < cols) multiply_columns<Tiles, 16>(p, k0, j, at);
    }
}

}  // namespace pocket
