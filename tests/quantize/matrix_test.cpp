// matrix_test.cpp: products, Cholesky factors and solutions are compared with naive versions in double on odd shapes;
// every instruction set and any number of threads give the same bits.
#include "../../export/matrix.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "../support/tiny_model.hpp"

namespace matrix_test {

using namespace pocket;
using tiny::Floats;
using tiny::Random;

TEST(Matrix, ProductMatchesNaiveProduct) {
  Random random(1);
  const int shapes[][3] = {{1, 1, 1}, {8, 32, 256}, {7, 33, 300}, {70, 5, 1}, {300, 400, 17}, {257, 385, 513}};
  for (const auto& [m, n, depth] : shapes)
    for (const bool by_rows : {true, false}) {
      const Floats a = tiny::normal_floats(random, size_t(m) * depth),
                   b = tiny::normal_floats(random, size_t(n) * depth);
      Pool pool(2);
      Floats c(size_t(m) * (n + 3), 1.f);
      const Factor fa = by_rows ? rows_of(a.data(), depth) : columns_of(a.data(), m);
      const Factor fb = by_rows ? rows_of(b.data(), depth) : columns_of(b.data(), n);
      multiply(pool, {m, n, depth}, -0.5f, fa, fb, {c.data(), size_t(n) + 3});
      for (int i = 0; i < m; i += 1 + m / 20)
        for (int j = 0; j < n + 3; j++) {
          double expected = 0;
          for (int k = 0; k < depth && j < n; k++)
            expected += double(by_rows ? a[i * depth + k] : a[k * m + i]) * (by_rows ? b[j * depth + k] : b[k * n + j]);
          ASSERT_NEAR(c[size_t(i) * (n + 3) + j], 1 - 0.5 * expected, 1e-5 * depth)
              << m << " x " << n << " x " << depth << ": " << i << ", " << j;
        }
    }
}

TEST(Matrix, LowerHalfOfProductHasSameBits) {
  Random random(2);
  const int n = 500, depth = 40;
  const Floats x = tiny::normal_floats(random, size_t(n) * depth);
  Pool pool(2);
  Floats all(size_t(n) * n), lower(all.size());
  const Factor f = columns_of(x.data(), n);
  multiply(pool, {n, n, depth}, 1, f, f, {all.data(), n});
  multiply(pool, {n, n, depth}, 1, f, f, {lower.data(), n}, Part::lower);
  for (int i = 0; i < n; i++) ASSERT_TRUE(tiny::same_bits(&all[size_t(i) * n], &lower[size_t(i) * n], size_t(i) + 1));
}

TEST(Matrix, EveryInstructionSetGivesSameBits) {
  Random random(3);
  for (const int depth : {1, 100, 256}) {
    const Floats a = tiny::normal_floats(random, size_t(depth) * kTileRows);
    const Floats b = tiny::normal_floats(random, size_t(depth) * kTileCols);
    Floats expected(kTileRows * kTileCols), found(expected.size());
    FloatScalar::call<multiply_tile_body<8>>(static_cast<const float*>(a.data()), static_cast<const float*>(b.data()),
                                             depth, expected.data());
    multiply_tile(a.data(), b.data(), depth, found.data());
    EXPECT_TRUE(tiny::same_bits(expected.data(), found.data(), expected.size()));
  }
}

// Also if the best kernel set is another: AMX is for the engine's integer products only.
TEST(Matrix, UsesWidestInstructionSet) {
  const std::vector<std::string> names = kernel_names();
  const auto has = [&](const char* name) { return std::find(names.begin(), names.end(), name) != names.end(); };
  EXPECT_EQ(best_float_set(), has("avx512vnni") ? FloatSet::avx512 : has("avx2") ? FloatSet::avx2 : FloatSet::scalar);
}

// A symmetric positive definite matrix: moments of correlated random vectors.
Floats moments(Random& random, int n) {
  Floats x = tiny::normal_floats(random, size_t(2 * n) * n), h(size_t(n) * n);
  for (int t = 0; t < 2 * n; t++)
    for (int j = 1; j < n; j++) x[size_t(t) * n + j] += 0.7f * x[size_t(t) * n + j - 1];
  for (int i = 0; i < n; i++)
    for (int j = 0; j < n; j++) {
      double sum = i == j ? 0.01 : 0;
      for (int t = 0; t < 2 * n; t++) sum += double(x[size_t(t) * n + i]) * x[size_t(t) * n + j] / (2 * n);
      h[size_t(i) * n + j] = float(sum);
    }
  return h;
}

TEST(Matrix, CholeskyAndSolveMatchNaiveVersions) {
  Random random(4);
  for (const int n : {1, 5, 63, 64, 65, 200}) {
    const Floats h = moments(random, n);
    Floats l = h, x = tiny::normal_floats(random, size_t(3) * n);
    std::vector<double> naive(h.begin(), h.end());
    for (int j = 0; j < n; j++)
      for (int i = j; i < n; i++) {
        double sum = naive[size_t(i) * n + j];
        for (int k = 0; k < j; k++) sum -= naive[size_t(i) * n + k] * naive[size_t(j) * n + k];
        naive[size_t(i) * n + j] = i == j ? std::sqrt(sum) : sum / naive[size_t(j) * n + j];
      }
    Pool pool(2);
    ASSERT_TRUE(cholesky(pool, l.data(), n));
    for (int i = 0; i < n; i++)
      for (int j = 0; j <= i; j++)
        ASSERT_NEAR(l[size_t(i) * n + j], naive[size_t(i) * n + j], 1e-4) << n << ": " << i << ", " << j;
    const Floats before = x;
    solve(pool, l.data(), n, x.data(), 3);
    for (int r = 0; r < 3; r++)
      for (int j = 0; j < n; j++) {
        double sum = 0;
        for (int i = 0; i < n; i++) sum += double(x[size_t(r) * n + i]) * h[size_t(i) * n + j];
        ASSERT_NEAR(sum, before[size_t(r) * n + j], 2e-3) << n << ": " << r << ", " << j;
      }
  }
}

TEST(Matrix, RejectsMatrixWithoutCholeskyFactor) {
  Pool pool(1);
  Floats indefinite = {1, 0, 2, 1}, nothing(4), infinite = {INFINITY, 0, 0, 1}, nan = {NAN, 0, 0, 1};
  for (Floats* m : {&indefinite, &nothing, &infinite, &nan}) EXPECT_FALSE(cholesky(pool, m->data(), 2));
}

TEST(Matrix, AnyNumberOfThreadsGivesSameBits) {
  Random random(5);
  const int n = 300;
  const Floats h = moments(random, n), x = tiny::normal_floats(random, size_t(20) * n);
  Floats expected;
  for (const int threads : {1, 2, 5}) {
    Pool pool(threads);
    Floats l = h, y = x;
    ASSERT_TRUE(cholesky(pool, l.data(), n));
    solve(pool, l.data(), n, y.data(), 20);
    if (expected.empty()) expected = y;
    EXPECT_TRUE(tiny::same_bits(expected.data(), y.data(), y.size())) << threads;
  }
}

}  // namespace matrix_test
