// matrix.hpp: the linear algebra that calibration needs, in float32: one matrix product, blocked for the caches, and
// the Cholesky factorization and triangular solution that are made of it.
//
// Every element of a product is one sum in the order of k, cut into blocks of 256, whatever the threads and the
// instruction set: the same bits everywhere.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "engine.hpp"

namespace pocket {

// What a float block (section 5 of run.cpp) is compiled for, at best, on this CPU.
enum class FloatSet { scalar, avx2, avx512 };

inline FloatSet best_float_set() {
#if defined(__x86_64__)
  static const X86Features cpu;
  if (cpu.avx512vnni) return FloatSet::avx512;
  if (cpu.avx2) return FloatSet::avx2;
#endif
  return FloatSet::scalar;
}

// Runs a float block compiled for that: 16 or 8 lanes wide.
template <auto Wide, auto Narrow, class... A> void run_best(A... args) {
#if defined(__x86_64__)
  if (best_float_set() == FloatSet::avx512) return FloatAvx512::call<Wide>(args...);
  if (best_float_set() == FloatSet::avx2) return FloatAvx2::call<Narrow>(args...);
#endif
  FloatScalar::call<Narrow>(args...);
}

// A factor of a product: element (i, k) lies at data[i * step + k * k_step]; k is summed over.
struct Factor {
  const float* data;
  size_t step, k_step;

  Factor at(int i, int k) const { return {data + size_t(i) * step + size_t(k) * k_step, step, k_step}; }
};
inline Factor rows_of(const float* m, size_t cols) { return {m, cols, 1}; }     // i: rows of a row-major matrix
inline Factor columns_of(const float* m, size_t cols) { return {m, 1, cols}; }  // i: columns of it

inline constexpr int kTileRows = 8, kTileCols = 32;  // of the result, in registers
inline constexpr int kDepth = 256;                   // k that is summed before the result's memory is touched
inline constexpr int kTaskRows = 256, kTaskCols = 384;

// out (8, 32) = the sum over k < depth of a (depth, 8) times b (depth, 32).
template <int W> POCKET_BODY void multiply_tile_body(const float* a, const float* b, int depth, float* out) {
  constexpr int kRows = W == 16 ? 8 : 4, kVectors = 2;  // as many sums as there are registers for
  for (int r = 0; r < kTileRows; r += kRows)
    for (int j = 0; j < kTileCols; j += kVectors * W) {
      Lanes<W> sum[kRows][kVectors] = {};
      for (int k = 0; k < depth; k++) {
        Lanes<W> row[kVectors];
        POCKET_FOR (v, kVectors) row[v].load(b + k * kTileCols + j + v * W);
        POCKET_FOR (i, kRows)
          POCKET_FOR (v, kVectors) sum[i][v].add_product(a[k * kTileRows + r + i], row[v]);
      }
      POCKET_FOR (i, kRows)
        POCKET_FOR (v, kVectors) sum[i][v].store(out + (r + i) * kTileCols + j + v * W);
    }
}

inline void multiply_tile(const float* a, const float* b, int depth, float* out) {
  run_best<multiply_tile_body<16>, multiply_tile_body<8>>(a, b, depth, out);
}

// c (rows, cols; rows ldc apart) += factor * a tile.
template <int W>
POCKET_BODY void add_tile_body(const float* tile, int rows, int cols, float factor, float* c, size_t ldc) {
  for (int r = 0; r < rows; r++, tile += kTileCols, c += ldc) {
    int j = 0;
    for (; j + W <= cols; j += W) {
      Lanes<W> sum, product;
      sum.load(c + j), product.load(tile + j);
      sum.add_product(factor, product);
      sum.store(c + j);
    }
    for (; j < cols; j++) c[j] = std::fma(factor, tile[j], c[j]);
  }
}

// Elements (i < count, k < depth) of a factor in tiles of Width: (count / Width, depth, Width), zeros where there are
// none.
template <int Width> void pack(const Factor& f, int count, int depth, float* out) {
  for (int i = 0; i < count; i += Width, out += size_t(depth) * Width) {
    const int width = std::min(Width, count - i);
    const Factor from = f.at(i, 0);
    if (width < Width) std::fill(out, out + size_t(depth) * Width, 0.f);
    if (from.step == 1 && width == Width) {  // a size that the compiler knows
      for (int k = 0; k < depth; k++) std::memcpy(out + k * Width, from.data + k * from.k_step, sizeof(float[Width]));
    } else if (from.step == 1) {
      for (int k = 0; k < depth; k++) std::memcpy(out + k * Width, from.data + k * from.k_step, width * sizeof(float));
    } else {
      // Four at a time: lines of many rows, often a power of two apart, would drive each other out of the cache.
      for (int first = 0; first < width; first += 4)
        for (int k = 0; k < depth; k++)
          for (int w = first; w < std::min(first + 4, width); w++)
            out[k * Width + w] = from.data[w * from.step + k * from.k_step];
    }
  }
}

enum class Part { all, lower };  // lower: only what lies on and below the diagonal is wanted; the rest is undefined

// One task of multiply(): rows and cols of the result, both at most those of a task.
inline void multiply_task(int row, int rows, int col, int cols, int depth, float factor, const Factor& a,
                          const Factor& b, float* c, size_t ldc, Part part) {
  thread_local std::vector<float> packed_a, packed_b;
  packed_a.resize(size_t(kTaskRows) * kDepth);
  packed_b.resize(size_t(kTaskCols) * kDepth);
  alignas(64) float sum[kTileRows * kTileCols];
  for (int k = 0; k < depth; k += kDepth) {
    const int d = std::min(kDepth, depth - k);
    pack<kTileRows>(a.at(row, k), rows, d, packed_a.data());
    pack<kTileCols>(b.at(col, k), cols, d, packed_b.data());
    for (int j = 0; j < cols; j += kTileCols)
      for (int i = 0; i < rows; i += kTileRows) {
        if (part == Part::lower && col + j > row + i + kTileRows - 1) continue;
        multiply_tile(packed_a.data() + size_t(i) * d, packed_b.data() + size_t(j) * d, d, sum);
        run_best<add_tile_body<16>, add_tile_body<8>>(static_cast<const float*>(sum), std::min(kTileRows, rows - i),
                                                      std::min(kTileCols, cols - j), factor,
                                                      c + size_t(row + i) * ldc + col + j, ldc);
      }
  }
}

// c (m, n; rows ldc apart) += factor * the sum over k < depth of a(i, k) * b(j, k).
inline void multiply(Pool& pool, int m, int n, int depth, float factor, const Factor& a, const Factor& b, float* c,
                     size_t ldc, Part part = Part::all) {
  if (m <= 0 || n <= 0) return;
  // Few rows or columns are cut smaller, so that all threads have something to do.
  const auto cut = [](int size, int most) { return std::min(most, round_up((size + 1) / 2, kTileCols)); };
  const int rows = cut(m, kTaskRows), cols = cut(n, kTaskCols), across = (n + cols - 1) / cols;
  pool.parallel_for((m + rows - 1) / rows * across, [&](int task, int) {
    const int row = task / across * rows, col = task % across * cols;
    if (part == Part::lower && col > row + rows - 1) return;
    multiply_task(row, std::min(rows, m - row), col, std::min(cols, n - col), depth, factor, a, b, c, ldc, part);
  });
}

// Copies what lies below the diagonal of a square matrix to what lies above.
inline void mirror(Pool& pool, float* m, int n) {
  pool.parallel_for((n + 63) / 64, [&](int block, int) {
    for (int j0 = block * 64; j0 < n; j0 += 64)
      for (int i = block * 64; i < std::min(n, block * 64 + 64); i++)
        for (int j = std::max(j0, i + 1); j < std::min(n, j0 + 64); j++) m[size_t(i) * n + j] = m[size_t(j) * n + i];
  });
}

inline constexpr int kFactorBlock = 64;  // columns of a triangle that are eliminated together

// A block of a triangle's diagonal, to be eliminated row by row: column j of the block, behind its diagonal, in row j.
class DiagonalBlock {
 public:
  // l: the lower triangle (n, n); the block covers rows and columns first ... end - 1. transposed: of l^T.
  DiagonalBlock(const float* l, int n, int first, int end, bool transposed) : size_(end - first) {
    for (int j = 0; j < size_; j++)
      for (int i = 0; i < size_; i++)
        column_[j][i] = transposed ? (i <= j ? l[size_t(first + j) * n + first + i] : 0)
                                   : (i >= j ? l[size_t(first + i) * n + first + j] : 0);
  }

  // y (size) becomes the solution of y l^T = y.
  void solve(float* y) const {
    for (int j = 0; j < size_; j++) {
      y[j] /= column_[j][j];
      for (int i = j + 1; i < size_; i++) y[i] -= y[j] * column_[j][i];
    }
  }
  // The same of y l = y, from a transposed block.
  void solve_transposed(float* y) const {
    for (int j = size_ - 1; j >= 0; j--) {
      y[j] /= column_[j][j];
      for (int i = 0; i < j; i++) y[i] -= y[j] * column_[j][i];
    }
  }

 private:
  int size_;
  float column_[kFactorBlock][kFactorBlock];
};

// The Cholesky factor of a symmetric positive definite matrix (n, n), of which the lower half is given, in its place:
// a = l l^T, l lower triangular. False if a is not positive definite, as far as float32 can tell.
inline bool cholesky(Pool& pool, float* a, int n) {
  for (int k = 0; k < n; k += kFactorBlock) {
    const int end = std::min(n, k + kFactorBlock);
    for (int j = k; j < end; j++)
      for (int i = j; i < end; i++) {
        double sum = a[size_t(i) * n + j];
        for (int s = k; s < j; s++) sum -= double(a[size_t(i) * n + s]) * a[size_t(j) * n + s];
        if (i == j && !(sum > 0 && std::isfinite(sum))) return false;
        a[size_t(i) * n + j] = float(i == j ? std::sqrt(sum) : sum / a[size_t(j) * n + j]);
      }
    const DiagonalBlock block(a, n, k, end, false);
    pool.parallel_for(n - end, [&](int task, int) { block.solve(a + size_t(end + task) * n + k); });
    const Factor below = rows_of(a + size_t(end) * n + k, size_t(n));
    multiply(pool, n - end, n - end, end - k, -1, below, below, a + size_t(end) * n + end, size_t(n), Part::lower);
  }
  return true;
}

// x (rows, n) becomes y, the solution of y l l^T = x. l (n, n) is a Cholesky factor.
inline void solve(Pool& pool, const float* l, int n, float* x, int rows) {
  const size_t width = size_t(n);
  for (int k = 0; k < n; k += kFactorBlock) {  // z l^T = x, from the first column on
    const int end = std::min(n, k + kFactorBlock);
    const DiagonalBlock block(l, n, k, end, false);
    pool.parallel_for(rows, [&](int r, int) { block.solve(x + r * width + k); });
    multiply(pool, rows, n - end, end - k, -1, rows_of(x + k, width), rows_of(l + end * width + k, width), x + end,
             width);
  }
  for (int k = (n - 1) / kFactorBlock * kFactorBlock; k >= 0; k -= kFactorBlock) {  // y l = z, from the last column on
    const DiagonalBlock block(l, n, k, std::min(n, k + kFactorBlock), true);
    pool.parallel_for(rows, [&](int r, int) { block.solve_transposed(x + r * width + k); });
    multiply(pool, rows, k, std::min(n, k + kFactorBlock) - k, -1, rows_of(x + k, width),
             columns_of(l + k * width, width), x, width);
  }
}

}  // namespace pocket
