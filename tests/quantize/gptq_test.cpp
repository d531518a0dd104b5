// gptq_test.cpp: quantization for given inputs has less error on them than quantization without inputs. Zero inputs and
// linearly dependent inputs are handled.
#include "../../export/gptq.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "../support/tiny_model.hpp"

namespace gptq_test {

using namespace pocket;
using tiny::Floats;
using tiny::Random;

// Moments (n, n), n padded, of correlated inputs of different magnitudes.
Floats moments(Random& random, int cols, int tokens) {
  const int n = padded(cols);
  Floats h(size_t(n) * n), x(size_t(n), 0.f);
  Floats size(size_t(n), 0.f);
  for (int k = 0; k < cols; k++) size[k] = float(std::exp(random.normal()));
  for (int t = 0; t < tokens; t++) {
    const float common = random.normal();
    for (int k = 0; k < cols; k++) x[k] = size[k] * (random.normal() + common);
    for (int i = 0; i < n; i++)
      for (int j = 0; j < n; j++) h[size_t(i) * n + j] += x[i] * x[j] / float(tokens);
  }
  return h;
}

struct Problem {
  int cols, n;
  Floats rows, h;  // (16, n), (n, n)

  Problem(Random& random, int cols)
      : cols(cols), n(padded(cols)), rows(size_t(16) * n), h(moments(random, cols, 4 * n)) {
    for (int r = 0; r < 16; r++)
      for (int k = 0; k < cols; k++) rows[size_t(r) * n + k] = random.normal() * 0.02f;
  }

  // The sum over the rows of e^T h e.
  double error(const tiny::Bytes& panel) const {
    Tensor t = {Type::q4, 16, cols, panel.data(), panel.size()};
    std::memcpy(t.codebook, kCodebook, 16);
    double sum = 0;
    std::vector<double> e(size_t(n), 0.0);
    for (int r = 0; r < 16; r++) {
      for (int k = 0; k < cols; k++) e[k] = rows[size_t(r) * n + k] - tiny::panel_weight(t, r, k);
      for (int i = 0; i < cols; i++)
        for (int j = 0; j < cols; j++) sum += e[i] * e[j] * h[size_t(i) * n + j];
    }
    return sum;
  }

  tiny::Bytes searched() const {
    tiny::Bytes panel(panel_bytes(Type::q4, cols));
    PanelEncoder(Type::q4, cols).encode(rows.data(), panel.data());
    return panel;
  }

  // costs: the sum of the results of quantize().
  tiny::Bytes calibrated(double shrink = 0, double damping = 0.01, double* costs = nullptr, int threads = 2) const {
    Pool pool(threads);
    Hessian hessian;
    EXPECT_TRUE(hessian.factor(pool, h.data(), cols, shrink, damping));
    RowQuantizer quantizer(hessian, Codebook(kCodebook));
    tiny::Bytes panel(panel_bytes(Type::q4, cols));
    for (int r = 0; r < 16; r++) {
      const double cost = quantizer.quantize(rows.data() + size_t(r) * n, r, panel.data());
      if (costs) *costs += cost;
    }
    return panel;
  }
};

TEST(Gptq, HasLessErrorThanPlainSearch) {
  Random random(1);
  for (const int cols : {32, 100, 256, 576}) {
    const Problem p(random, cols);
    const double plain = p.error(p.searched()), calibrated = p.error(p.calibrated());
    EXPECT_LT(calibrated, (cols < 64 ? 0.8 : 0.6) * plain) << cols << " columns";
    EXPECT_LT(p.error(p.calibrated(0.3)), 0.8 * plain) << cols << " columns, shrunk";
  }
}

// The cost is the actual error under the damped moments.
TEST(Gptq, CostEqualsTheError) {
  Random random(2);
  Problem p(random, 192);
  double costs = 0;
  const tiny::Bytes panel = p.calibrated(0, 0.01, &costs);
  double mean = 0;
  for (int k = 0; k < p.cols; k++) mean += p.h[size_t(k) * p.n + k] / p.cols;
  for (int k = 0; k < p.cols; k++) p.h[size_t(k) * p.n + k] += float(0.01 * mean);
  EXPECT_NEAR(costs, p.error(panel), 0.01 * costs);
}

// Without correlations there is no feedback, and every group gets its best scale.
TEST(Gptq, IsAtLeastAsGoodWithIndependentInputs) {
  Random random(3);
  Problem p(random, 128);
  for (int i = 0; i < p.n; i++)
    for (int j = 0; j < p.n; j++)
      if (i != j) p.h[size_t(i) * p.n + j] = 0;
  EXPECT_LE(p.error(p.calibrated()), 1.001 * p.error(p.searched()));
}

TEST(Gptq, HandlesDeadColumnsAndSingularMoments) {
  Random random(4);
  Problem p(random, 128);
  const auto clear = [&](int k) {
    for (int i = 0; i < p.n; i++) p.h[size_t(i) * p.n + k] = p.h[size_t(k) * p.n + i] = 0;
  };
  for (int k = 32; k < 70; k++) clear(k);  // more than a group of columns that are always zero
  for (int i = 0; i < p.n; i++) {          // a duplicate column
    p.h[size_t(i) * p.n + 5] = p.h[size_t(i) * p.n + 6];
    p.h[size_t(5) * p.n + i] = p.h[size_t(6) * p.n + i];
  }
  p.h[size_t(5) * p.n + 5] = p.h[size_t(6) * p.n + 5] = p.h[size_t(5) * p.n + 6] = p.h[size_t(6) * p.n + 6];
  for (const double damping : {0.01, 0.0}) {
    const double plain = p.error(p.searched()), calibrated = p.error(p.calibrated(0, damping));
    EXPECT_LT(calibrated, 0.7 * plain) << damping;
  }
}

TEST(Gptq, HandlesZeroMoments) {
  Random random(5);
  Problem p(random, 100);
  std::fill(p.h.begin(), p.h.end(), 0.f);
  const tiny::Bytes panel = p.calibrated();
  for (int k = 0; k < p.n; k++) p.h[size_t(k) * p.n + k] = 1;
  EXPECT_LT(p.error(panel), 1.1 * p.error(p.searched()));
}

TEST(Gptq, RejectsNonFiniteMoments) {
  Random random(9);
  Problem p(random, 64);
  Pool pool(1);
  Hessian hessian;
  for (const float bad : {INFINITY, NAN}) {
    p.h[size_t(7) * p.n + 7] = bad;
    EXPECT_FALSE(hessian.factor(pool, p.h.data(), p.cols, 0.3, 0.01)) << bad;
  }
}

TEST(Gptq, KeepsRowOfZeros) {
  Random random(6);
  Problem p(random, 100);
  std::fill(p.rows.begin() + 3 * p.n, p.rows.begin() + 4 * p.n, 0.f);
  const tiny::Bytes panel = p.calibrated();
  Tensor t = {Type::q4, 16, p.cols, panel.data(), panel.size()};
  std::memcpy(t.codebook, kCodebook, 16);
  for (int k = 0; k < p.cols; k++) EXPECT_EQ(tiny::panel_weight(t, 3, k), 0.0);
}

TEST(Gptq, GivesSameBytesForAnyNumberOfThreads) {
  Random random(7);
  const Problem p(random, 200);
  const tiny::Bytes one = p.calibrated(0.3, 0.01, nullptr, 1);
  for (const int threads : {2, 5}) EXPECT_TRUE(one == p.calibrated(0.3, 0.01, nullptr, threads)) << threads;
}

TEST(Gptq, GroupSearchGivesSameBitsOnEveryCpu) {
  Random random(8);
  const Codebook codebook;
  for (int round = 0; round < 20; round++) {
    const Floats original = tiny::normal_floats(random, 32, 0.02f), target = tiny::normal_floats(random, 32, 0.02f);
    Floats weights = tiny::normal_floats(random, 32), feedback = tiny::normal_floats(random, 32 * 32, 0.1f);
    for (float& w : weights) w *= w;
    GroupSearch expected = {};
    expected.original = original.data();
    expected.weights = weights.data();
    expected.feedback = feedback.data();
    for (int n = 0; n < kTogether; n++) {
      expected.target[n] = target.data();
      expected.row_scale[n] = 1e-4f * float(n + 1);
    }
    GroupSearch found = expected;
    FloatScalar::call<search_group_body<8>>(&codebook, &expected);
    run_best<search_group_body<16>, search_group_body<8>>(&codebook, &found);
    EXPECT_EQ(std::memcmp(&expected, &found, sizeof found), 0) << "round " << round;
  }
}

}  // namespace gptq_test
