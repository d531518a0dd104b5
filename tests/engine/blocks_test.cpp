// blocks_test.cpp: the float blocks, each against the C library or a naive formula in double: exp, RoPE frequencies,
// rmsnorm, rope, swiglu, attention over many blocks of keys, and storing a vector in the KV cache.
#include "../../export/engine.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "../support/tiny_model.hpp"

namespace blocks_test {

using namespace pocket;
using tiny::Floats;
using tiny::Random;

const Kernels& scalar_set() { return *find_kernels("scalar"); }

/// |found - expected| in units in the last place of `expected`.
double ulps(double found, double expected) {
  const float e = float(expected);
  const double unit = double(std::nextafter(std::fabs(e), INFINITY)) - double(std::fabs(e));
  return std::fabs(found - expected) / unit;
}

// ---- exp, log, sine and cosine ----

TEST(Exp, IsWithinTwoUnitsInTheLastPlace) {
  double worst = 0;
  for (float x = -87; x < 88; x += 0.00037f) worst = std::max(worst, ulps(exp_body(x), std::exp(double(x))));
  Random random(1);
  for (int i = 0; i < 200000; i++) {
    const float x = float(random.uniform(-1, 1)) * bits_float(uint32_t(127 - random.below(30)) << 23);
    worst = std::max(worst, ulps(exp_body(x), std::exp(double(x))));
  }
  EXPECT_LT(worst, 2);
}

TEST(Exp, ClampsItsArgument) {
  EXPECT_EQ(exp_body(0.f), 1.f);
  EXPECT_EQ(exp_body(-0.f), 1.f);
  for (const float x : {-87.5f, -100.f, -1e30f, -INFINITY}) EXPECT_EQ(exp_body(x), exp_body(-87.f)) << x;
  for (const float x : {88.5f, 100.f, 1e30f, INFINITY}) EXPECT_EQ(exp_body(x), exp_body(88.f)) << x;
  EXPECT_GT(exp_body(-INFINITY), 0.f);
  EXPECT_TRUE(std::isfinite(exp_body(INFINITY)));
}

// Softmax depends on it: a smaller score must not get a larger weight.
TEST(Exp, IsMonotonic) {
  float last = 0;
  for (float x = -20; x < 0; x += 1e-5f) {
    const float y = exp_body(x);
    ASSERT_GE(y, last) << x;
    last = y;
  }
}

TEST(Exact, ExpAndLogMatchTheLibraryToOneInTenToThe15) {
  Random random(2);
  for (int i = 0; i < 20000; i++) {
    const double x = random.uniform(-40, 40), y = std::exp(random.uniform(-20, 20));
    EXPECT_NEAR(exact::exp(x) / std::exp(x), 1, 1e-15) << x;
    EXPECT_NEAR(exact::log(y), std::log(y), 1e-15 * (1 + std::fabs(std::log(y)))) << y;
  }
  EXPECT_EQ(exact::exp(0), 1);
  EXPECT_EQ(exact::log(1), 0);
}

TEST(Exact, SineAndCosineMatchTheLibraryUpTo2ToThe22) {
  Random random(3);
  const auto check = [](double x) {
    double s, c;
    exact::sincos(x, s, c);
    EXPECT_NEAR(s, double(std::sin((long double)(x))), 3e-16) << x;
    EXPECT_NEAR(c, double(std::cos((long double)(x))), 3e-16) << x;
  };
  for (int i = 0; i < 20000; i++) {
    check(random.uniform(0, 10));
    check(random.uniform(0, 1 << 22));
  }
  for (int i = 0; i < 64; i++)  // near the boundaries of the range reduction
    for (const double off : {-1e-9, 0.0, 1e-9}) check(i * 0.78539816339744831 + off);
  check((1 << 22) - 1);
}

// ---- RoPE ----

Config rope_config(RopeScaling scaling, float theta, int head_dim) {
  Config c;
  c.head_dim = head_dim;
  c.rope_theta = theta;
  c.rope_scaling = scaling;
  c.rope_factor = 8;
  c.rope_low_freq = 1;
  c.rope_high_freq = 4;
  c.rope_original_len = 8192;
  return c;
}

TEST(Rope, FrequenciesMatchTransformers) {
  for (const RopeScaling scaling : {RopeScaling::none, RopeScaling::linear, RopeScaling::llama3})
    for (const float theta : {10000.f, 100000.f, 500000.f})
      for (const int head_dim : {2, 8, 64, 80, 128}) {
        const Config c = rope_config(scaling, theta, head_dim);
        for (int i = 0; i < head_dim / 2; i++)
          EXPECT_NEAR(rope_frequency(c, i) / tiny::reference_frequency(c, i), 1, 1e-14) << head_dim << ", pair " << i;
      }
}

// A pair is a complex number: (a + bi) e^(i angle).
TEST(Rope, RotatesEveryPairByItsAngle) {
  Random random(4);
  for (const int head_dim : {2, 6, 64}) {
    const int half = head_dim / 2, heads = 3;
    const Floats x = tiny::normal_floats(random, size_t(heads) * head_dim);
    Floats cos, sin, y(x);
    std::vector<double> angle;
    for (int i = 0; i < half; i++) {
      angle.push_back(random.uniform(0, 6));
      cos.push_back(float(std::cos(angle[size_t(i)])));
      sin.push_back(float(std::sin(angle[size_t(i)])));
    }
    scalar_set().rope(y.data(), heads, head_dim, cos.data(), sin.data());
    for (int h = 0; h < heads; h++)
      for (int i = 0; i < half; i++) {
        const size_t at = size_t(h * head_dim + i);
        const double a = x[at], b = x[at + half], s = std::sin(angle[size_t(i)]), c = std::cos(angle[size_t(i)]);
        EXPECT_NEAR(y[at], a * c - b * s, 1e-6);
        EXPECT_NEAR(y[at + half], a * s + b * c, 1e-6);
      }
  }
}

// ---- rmsnorm and swiglu ----

TEST(Rmsnorm, DividesByTheRootOfTheMeanSquare) {
  Random random(5);
  for (const int n : {1, 15, 16, 17, 576, 2048}) {
    const size_t width = size_t(round_up(n, 16));
    Floats x = tiny::normal_floats(random, width, 5), weight = tiny::normal_floats(random, width), y(width);
    std::fill(x.begin() + n, x.end(), 0.f);
    double squares = 0;
    for (const float v : x) squares += double(v) * v;
    scalar_set().rmsnorm(x.data(), weight.data(), y.data(), n, 1e-5f);
    for (int i = 0; i < n; i++) {
      const double expected = x[size_t(i)] / std::sqrt(squares / n + 1e-5) * weight[size_t(i)];
      EXPECT_NEAR(y[size_t(i)], expected, 1e-6 * (1 + std::fabs(expected))) << i << " of " << n;
    }
    for (size_t i = size_t(n); i < width; i++) EXPECT_EQ(y[i], 0.f);
  }
}

TEST(Swiglu, IsSiluOfTheGateTimesUp) {
  Random random(6);
  Floats gate = tiny::normal_floats(random, 1000, 10), up = tiny::normal_floats(random, 1000), y(gate);
  scalar_set().swiglu(y.data(), up.data(), 1000);
  for (size_t i = 0; i < 1000; i++) {
    const double expected = gate[i] / (1 + std::exp(-double(gate[i]))) * up[i];
    EXPECT_NEAR(y[i], expected, 1e-6 * (1 + std::fabs(expected)));
  }
}

// ---- Attention ----

/// One query, and the keys and values of some positions in float.
struct AttentionCase {
  int head_dim, keys;
  Floats k, v, q;  // (keys, head_dim), (keys, head_dim), (head_dim)

  AttentionCase(int head_dim, int keys, float sharpness, Random& random)
      : head_dim(head_dim),
        keys(keys),
        k(tiny::normal_floats(random, size_t(keys) * head_dim)),
        v(tiny::normal_floats(random, size_t(keys) * head_dim)),
        q(tiny::normal_floats(random, size_t(head_dim), sharpness)) {}

  /// Softmax over all keys at once, in double.
  std::vector<double> naive() const {
    std::vector<double> score, out(size_t(head_dim), 0.0);
    for (int j = 0; j < keys; j++) {
      double s = 0;
      for (int i = 0; i < head_dim; i++) s += double(q[size_t(i)]) * k[size_t(j * head_dim + i)];
      score.push_back(s / std::sqrt(double(head_dim)));
    }
    const double top = *std::max_element(score.begin(), score.end());
    double sum = 0;
    for (double& s : score) sum += s = std::exp(s - top);
    for (int j = 0; j < keys; j++)
      for (int i = 0; i < head_dim; i++) out[size_t(i)] += score[size_t(j)] / sum * v[size_t(j * head_dim + i)];
    return out;
  }

  /// Block by block, as a session computes it.
  std::vector<double> blockwise(const Kernels& kernels) const {
    const int width = round_up(head_dim, 16);
    Floats state(attention_floats(head_dim)), part(state);
    for (int begin = 0; begin < keys; begin += kBlockKeys) {
      Floats block_k(size_t(kBlockKeys) * head_dim), block_v(size_t(kBlockKeys) * width);
      Floats k_scale(kBlockKeys, 1.f / std::sqrt(float(head_dim))), v_scale(kBlockKeys, 1.f);
      const int visible = std::min(kBlockKeys, keys - begin);
      for (int j = 0; j < visible; j++)
        for (int i = 0; i < head_dim; i++) {
          block_k[size_t((j / 16 * head_dim + i) * 16 + j % 16)] = k[size_t((begin + j) * head_dim + i)];
          block_v[size_t(j * width + i)] = v[size_t((begin + j) * head_dim + i)];
        }
      const KvBlock kv = {block_k.data(), block_v.data(), k_scale.data(), v_scale.data(), head_dim, width};
      const float* queries[] = {q.data()};
      float* out[] = {begin == 0 ? state.data() : part.data()};
      kernels.attend_f32(kv, 1, queries, &visible, out);
      if (begin > 0) kernels.fold(state.data(), part.data(), width);
    }
    std::vector<double> found;
    for (int i = 0; i < head_dim; i++) found.push_back(double(state[size_t(16 + i)]) / state[1]);
    return found;
  }
};

TEST(Attention, BlockwiseMatchesSoftmaxOverAllKeys) {
  Random random(7);
  for (const int head_dim : {2, 16, 64, 80})
    for (const int keys : {1, 2, 16, 17, 127, 128, 129, 256, 257, 700})
      for (const float sharpness : {0.1f, 1.f, 10.f}) {  // from even weights to nearly one-hot
        const AttentionCase attention(head_dim, keys, sharpness, random);
        const std::vector<double> expected = attention.naive();
        for (const Kernels* kernels : tiny::kernel_sets()) {
          const std::vector<double> found = attention.blockwise(*kernels);
          for (int i = 0; i < head_dim; i++)
            ASSERT_NEAR(found[size_t(i)], expected[size_t(i)], 2e-5)
                << kernels->name << ", " << keys << " keys of " << head_dim << ", sharpness " << sharpness;
        }
      }
}

// One score far above all others, in any block: the other keys must get weight 0, without overflow.
TEST(Attention, OneLargeScoreDominates) {
  Random random(8);
  for (const int winner : {0, 100, 128, 255, 299}) {
    AttentionCase attention(16, 300, 1, random);
    for (int i = 0; i < 16; i++) attention.k[size_t(winner * 16 + i)] = attention.q[size_t(i)] * 1000;
    const std::vector<double> found = attention.blockwise(scalar_set());
    for (int i = 0; i < 16; i++) EXPECT_NEAR(found[size_t(i)], attention.v[size_t(winner * 16 + i)], 1e-5) << winner;
  }
}

// ---- KV cache ----

TEST(StoreVector, KeepsFloatsAndRoundsToInt8) {
  Random random(9);
  const Floats x = tiny::normal_floats(random, 20);
  float largest = 0;
  for (const float v : x) largest = std::max(largest, std::fabs(v));
  Floats floats(20 * 16, 7.f);
  EXPECT_EQ(store_vector(x.data(), 20, floats.data(), 16), 1.f);
  std::vector<int8_t> bytes(20, 99);
  const float scale = store_vector(x.data(), 20, bytes.data(), 1);
  EXPECT_EQ(scale, largest / 127.f);
  for (size_t i = 0; i < 20; i++) {
    EXPECT_EQ(floats[i * 16], x[i]);
    EXPECT_EQ(floats[i * 16 + 1], 7.f);
    EXPECT_NEAR(double(bytes[i]) * scale, x[i], scale * 0.50001);
  }
  const Floats zeros(20);
  EXPECT_EQ(store_vector(zeros.data(), 20, bytes.data(), 1), 0.f);
  for (const int8_t b : bytes) EXPECT_EQ(b, 0);
}

}  // namespace blocks_test
