// matrix.hpp: the linear algebra of calibration in float32: a cache-blocked matrix product, and Cholesky factorization
// and triangular solution built on it. Every element of a product is summed in the order of k, in blocks of 256, for
// any number of threads and any instruction set: the same bits everywhere.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "engine.hpp"

namespace pocket {

/// The instruction sets that float kernels are compiled for.
enum class FloatSet { scalar, avx2, avx512 };

/// The best of them on this CPU.
inline FloatSet best_float_set() {
#if defined(__x86_64__)
  static const X86Features cpu;
  if (cpu.avx512vnni) return FloatSet::avx512;
  if (cpu.avx2) return FloatSet::avx2;
#endif
  return FloatSet::scalar;
}

/// Calls a float kernel compiled for the best instruction set: Wide has 16 lanes, Narrow 8.
template <auto Wide, auto Narrow, class... A> void run_best(A... args) {
#if defined(__x86_64__)
  if (best_float_set() == FloatSet::avx512) return FloatAvx512::call<Wide>(args...);
  if (best_float_set() == FloatSet::avx2) return FloatAvx2::call<Narrow>(args...);
#endif
  FloatScalar::call<Narrow>(args...);
}

/// A factor of a product: element (i, k) is data[i * step + k * k_step]; the product sums over k.
struct Factor {
  const float* data;
  size_t step, k_step;

  Factor at(int i, int k) const { return {data + size_t(i) * step + size_t(k) * k_step, step, k_step}; }
};
inline Factor rows_of(const float* m, size_t cols) { return {m, cols, 1}; }     // i: rows of a row-major matrix
inline Factor columns_of(const float* m, size_t cols) { return {m, 1, cols}; }  // i: columns of it

/// The size of a product: rows and columns of the result, and the length of the sums.
struct ProductSize {
  int rows, cols, depth;
};

/// The result of a product: a row-major matrix whose rows are `stride` apart.
struct ResultMatrix {
  float* data;
  size_t stride;
};

inline constexpr int kTileRows = 8, kTileCols = 32;  // of the result, held in registers
inline constexpr int kDepth = 256;                   // length of a sum before it is added to the result in memory
inline constexpr int kTaskRows = 256, kTaskCols = 384;

/// out (8, 32) = sum over k < depth of a (depth, 8) times b (depth, 32).
template <int W> POCKET_BODY void multiply_tile_body(const float* a, const float* b, int depth, float* out) {
  constexpr int kRows = W == 16 ? 8 : 4, kVectors = 2;  // as many sums as fit the registers
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

/// The same, compiled for this CPU.
inline void multiply_tile(const float* a, const float* b, int depth, float* out) {
  run_best<multiply_tile_body<16>, multiply_tile_body<8>>(a, b, depth, out);
}

/// c (rows, cols; row stride ldc) += factor * tile.
template <int W>
POCKET_BODY void add_tile_body(const float* tile, int rows, int cols, float factor, float* c, size_t ldc) {
  for (int r = 0; r < rows; r++, tile += kTileCols, c += ldc) {
    int j = 0;
    for (; j + W <= cols; j += W) {
      Lanes<W> sum, product;
      sum.load(c + j);
      product.load(tile + j);
      sum.add_product(factor, product);
      sum.store(c + j);
    }
    for (; j < cols; j++) c[j] = std::fma(factor, tile[j], c[j]);
  }
}

/// Packs elements (i < count, k < depth) of a factor into tiles: (count / Width, depth, Width), padded with zeros.
template <int Width> void pack(const Factor& f, int count, int depth, float* out) {
  for (int i = 0; i < count; i += Width, out += size_t(depth) * Width) {
    const int width = std::min(Width, count - i);
    const Factor from = f.at(i, 0);
    if (width < Width) std::fill(out, out + size_t(depth) * Width, 0.f);
    if (from.step == 1 && width == Width) {  // a size known at compile time
      for (int k = 0; k < depth; k++) std::memcpy(out + k * Width, from.data + k * from.k_step, sizeof(float[Width]));
    } else if (from.step == 1) {
      for (int k = 0; k < depth; k++) std::memcpy(out + k * Width, from.data + k * from.k_step, width * sizeof(float));
    } else {
      // Four rows at a time: the lines of many rows, often a power of two apart, would evict each other from the cache.
      for (int first = 0; first < width; first += 4)
        for (int k = 0; k < depth; k++)
          for (int w = first; w < std::min(first + 4, width); w++)
            out[k * Width + w] = from.data[w * from.step + k * from.k_step];
    }
  }
}

enum class Part { all, lower };  // lower: on and below the diagonal; the rest of the result is unspecified

/// A block of a result: at most kTaskRows rows and kTaskCols columns.
struct ResultBlock {
  int row, rows, col, cols;
};

inline constexpr size_t kPackedFloats = size_t(kTaskRows + kTaskCols) * kDepth;  // of the packed factors of a block

/// Computes one block of multiply(). packed (kPackedFloats): scratch memory.
inline void multiply_block(int depth, float factor, const Factor& a, const Factor& b, const ResultMatrix& c, Part part,
                           const ResultBlock& block, float* packed) {
  float *packed_a = packed, *packed_b = packed + size_t(kTaskRows) * kDepth;
  alignas(64) float sum[kTileRows * kTileCols];
  for (int k = 0; k < depth; k += kDepth) {
    const int d = std::min(kDepth, depth - k);
    pack<kTileRows>(a.at(block.row, k), block.rows, d, packed_a);
    pack<kTileCols>(b.at(block.col, k), block.cols, d, packed_b);
    for (int j = 0; j < block.cols; j += kTileCols)
      for (int i = 0; i < block.rows; i += kTileRows) {
        const int row = block.row + i, col = block.col + j;
        if (part == Part::lower && col > row + kTileRows - 1) continue;
        multiply_tile(packed_a + size_t(i) * d, packed_b + size_t(j) * d, d, sum);
        run_best<add_tile_body<16>, add_tile_body<8>>(
            static_cast<const float*>(sum), std::min(kTileRows, block.rows - i), std::min(kTileCols, block.cols - j),
            factor, c.data + size_t(row) * c.stride + col, c.stride);
      }
  }
}

/// c (size.rows, size.cols) += factor * sum over k < size.depth of a(i, k) * b(j, k).
inline void multiply(Pool& pool, const ProductSize& size, float factor, const Factor& a, const Factor& b,
                     const ResultMatrix& c, Part part = Part::all) {
  if (size.rows <= 0 || size.cols <= 0) return;
  // Few rows or columns are split into smaller blocks, so that all threads have work.
  const auto block_size = [](int n, int most) { return std::min(most, round_up((n + 1) / 2, kTileCols)); };
  const int rows = block_size(size.rows, kTaskRows), cols = block_size(size.cols, kTaskCols);
  const int across = (size.cols + cols - 1) / cols;
  const std::unique_ptr<float[]> packed(new float[size_t(pool.threads()) * kPackedFloats]);
  pool.parallel_for((size.rows + rows - 1) / rows * across, [&](int task, int thread) {
    const int row = task / across * rows, col = task % across * cols;
    if (part == Part::lower && col > row + rows - 1) return;
    multiply_block(size.depth, factor, a, b, c, part,
                   {row, std::min(rows, size.rows - row), col, std::min(cols, size.cols - col)},
                   packed.get() + size_t(thread) * kPackedFloats);
  });
}

inline constexpr int kFactorBlock = 64;  // columns of a triangular matrix that are eliminated together

/// A diagonal block of a triangular matrix, for elimination row by row. Row j holds column j of the block, from the
/// diagonal on.
class DiagonalBlock {
 public:
  // l (n, n): lower triangular; the block covers rows and columns first ... end - 1. transposed: a block of l^T.
  DiagonalBlock(const float* l, int n, int first, int end, bool transposed) : size_(end - first) {
    for (int j = 0; j < size_; j++)
      for (int i = 0; i < size_; i++)
        column_[j][i] = transposed ? (i <= j ? l[size_t(first + j) * n + first + i] : 0)
                                   : (i >= j ? l[size_t(first + i) * n + first + j] : 0);
  }

  // Replaces y (size) by the solution x of x l^T = y.
  void solve(float* y) const {
    for (int j = 0; j < size_; j++) {
      y[j] /= column_[j][j];
      for (int i = j + 1; i < size_; i++) y[i] -= y[j] * column_[j][i];
    }
  }
  // Replaces y by the solution x of x l = y; the block is transposed.
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

/// Replaces the lower half of a symmetric positive definite matrix a (n, n) by its Cholesky factor l: a = l l^T. False
/// if a is not positive definite in float32 precision.
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
    multiply(pool, {n - end, n - end, end - k}, -1, below, below, {a + size_t(end) * n + end, size_t(n)}, Part::lower);
  }
  return true;
}

/// Replaces x (rows, n) by the solution y of y l l^T = x, where l (n, n) is a Cholesky factor.
inline void solve(Pool& pool, const float* l, int n, float* x, int rows) {
  const size_t width = size_t(n);
  for (int k = 0; k < n; k += kFactorBlock) {  // z l^T = x, from the first column
    const int end = std::min(n, k + kFactorBlock);
    const DiagonalBlock block(l, n, k, end, false);
    pool.parallel_for(rows, [&](int r, int) { block.solve(x + r * width + k); });
    multiply(pool, {rows, n - end, end - k}, -1, rows_of(x + k, width), rows_of(l + end * width + k, width),
             {x + end, width});
  }
  for (int k = (n - 1) / kFactorBlock * kFactorBlock; k >= 0; k -= kFactorBlock) {  // y l = z, from the last column
    const DiagonalBlock block(l, n, k, std::min(n, k + kFactorBlock), true);
    pool.parallel_for(rows, [&](int r, int) { block.solve_transposed(x + r * width + k); });
    const ProductSize size = {rows, k, std::min(n, k + kFactorBlock) - k};
    multiply(pool, size, -1, rows_of(x + k, width), columns_of(l + k * width, width), {x, width});
  }
}

}  // namespace pocket
