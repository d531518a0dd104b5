// quantize_test.cpp: quantized weights are as close to the originals as the formats allow, and the scale search gives
// the same result on every CPU.
#include "../../export/quantize.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "../support/tiny_model.hpp"

namespace quantize_test {

using namespace pocket;
using tiny::Floats;
using tiny::Random;

// A panel of 16 rows (cols padded with zeros), encoded.
struct Panel {
  tiny::Bytes bytes;
  Tensor tensor;

  Panel(Type type, const Floats& rows, int cols) : bytes(panel_bytes(type, cols)) {
    PanelEncoder encoder(type, cols);
    encoder.encode(rows.data(), bytes.data());
    tensor = {type, kPanelRows, cols, bytes.data(), bytes.size()};
    std::memcpy(tensor.codebook, encoder.codebook(), 16);
  }
};

Floats random_rows(Random& random, int cols, float deviation = 1) {
  Floats rows(size_t(kPanelRows) * padded(cols));
  for (int r = 0; r < kPanelRows; r++)
    for (int k = 0; k < cols; k++) rows[size_t(r) * padded(cols) + k] = random.normal() * deviation;
  return rows;
}

/// Mean squared error of a panel relative to the mean square of its rows.
double relative_error(const Panel& p, const Floats& rows) {
  double error = 0, size = 0;
  const int width = padded(p.tensor.cols);
  for (int r = 0; r < kPanelRows; r++)
    for (int k = 0; k < p.tensor.cols; k++) {
      const double w = rows[size_t(r * width + k)], d = tiny::panel_weight(p.tensor, r, k) - w;
      error += d * d;
      size += w * w;
    }
  return error / size;
}

// ---- q8 ----

TEST(QuantizeQ8, RoundsScaleUp) {
  Random random(1);
  EXPECT_EQ(from_bf16(to_bf16_up(0.f)), 0.f);
  EXPECT_EQ(from_bf16(to_bf16_up(1.f)), 1.f);
  for (int i = 0; i < 10000; i++) {
    const float f = std::fabs(random.normal()) * bits_float(uint32_t(127 - 20 + random.below(40)) << 23);
    const float up = from_bf16(to_bf16_up(f));
    EXPECT_GE(up, f);
    EXPECT_LE(up, f * (1 + 1.f / 128));
  }
}

TEST(QuantizeQ8, WeightsAreWithinHalfAStep) {
  Random random(2);
  for (const int cols : {1, 32, 33, 64, 100, 576})
    for (const float deviation : {1e-6f, 0.02f, 1000.f}) {
      const Floats rows = random_rows(random, cols, deviation);
      const Panel p(Type::q8, rows, cols);
      for (int r = 0; r < kPanelRows; r++)
        for (int k = 0; k < padded(cols); k++) {
          const float* group = &rows[size_t(r * padded(cols) + k / 32 * 32)];
          float largest = 0;
          for (int i = 0; i < 32; i++) largest = std::max(largest, std::fabs(group[i]));
          EXPECT_NEAR(tiny::panel_weight(p.tensor, r, k), group[k % 32], largest / 127 * 0.51) << r << ", " << k;
        }
    }
}

TEST(QuantizeQ8, TinyWeightsBecomeZero) {
  for (const float tiny_value : {0.f, 1e-45f, 1e-35f, -1e-31f}) {
    const Floats rows(size_t(kPanelRows) * 64, tiny_value);
    const Panel p(Type::q8, rows, 64);
    for (int k = 0; k < 64; k++) EXPECT_EQ(tiny::panel_weight(p.tensor, 3, k), 0.0);
  }
}

TEST(QuantizeQ8, EmbeddingRowEqualsPanelRow) {
  Random random(3);
  const Floats rows = random_rows(random, 100);
  const Panel p(Type::q8, rows, 100);
  tiny::Bytes row(embedding_row_bytes(Type::q8, 100));
  encode_embedding_row(Type::q8, rows.data(), 100, row.data());
  const Tensor embedding = {Type::q8, 1, 100, row.data(), row.size()};
  for (int k = 0; k < 100; k++)
    EXPECT_EQ(tiny::embedding_weight(embedding, 0, k), tiny::panel_weight(p.tensor, 0, k)) << k;
}

// ---- f32 ----

TEST(QuantizeF32, KeepsEveryBit) {
  Random random(4);
  for (const int cols : {1, 64, 100}) {
    const Floats rows = random_rows(random, cols);
    const Panel p(Type::f32, rows, cols);
    for (int r = 0; r < kPanelRows; r++)
      for (int k = 0; k < cols; k++)
        EXPECT_EQ(tiny::panel_weight(p.tensor, r, k), double(rows[size_t(r * padded(cols) + k)]));
  }
}

// ---- q4 ----

// Lloyd's optimal 16 levels for a normal distribution have a relative squared error of 0.0095; group scales add a
// little.
TEST(QuantizeQ4, NormalWeightsHaveUnderOnePercentError) {
  Random random(5);
  for (const int cols : {64, 576, 2048})
    for (const float deviation : {1e-4f, 0.02f, 50.f}) {
      const Floats rows = random_rows(random, cols, deviation);
      const double error = relative_error(Panel(Type::q4, rows, cols), rows);
      EXPECT_LT(error, 0.0105) << cols;
      EXPECT_GT(error, 0.002) << cols;  // 4 bits cannot do better
    }
}

TEST(QuantizeQ4, WeightsGetNearestCode) {
  Random random(6);
  const Floats rows = random_rows(random, 128);
  const Panel p(Type::q4, rows, 128);
  for (int r = 0; r < kPanelRows; r++) {
    const float rs = load<float>(p.bytes.data() + p.bytes.size() - 64 + 4 * r);
    for (int k = 0; k < 128; k++) {
      const uint8_t pair = p.bytes[code_bytes(Type::q4, 128) + size_t(k / 64 * 16 + r)];
      const double scale = double(rs) * q4_scale(k % 64 < 32 ? pair & 15 : pair >> 4), w = rows[size_t(r * 128 + k)];
      double nearest = 1e30;
      for (const int8_t code : kCodebook) nearest = std::min(nearest, std::fabs(code * scale - w));
      EXPECT_NEAR(std::fabs(tiny::panel_weight(p.tensor, r, k) - w), nearest, 1e-5) << r << ", " << k;
    }
  }
}

// The chosen one of the sixteen scales has the least error.
TEST(QuantizeQ4, GroupsGetBestScale) {
  Random random(7);
  const Floats rows = random_rows(random, 64);
  const Panel p(Type::q4, rows, 64);
  for (int r = 0; r < kPanelRows; r++)
    for (int g = 0; g < 2; g++) {
      const float rs = load<float>(p.bytes.data() + p.bytes.size() - 64 + 4 * r);
      const float* w = &rows[size_t(r * 64 + g * 32)];
      double least = 1e30, found = 0;
      for (int s = 0; s < 16; s++) {
        double error = 0;
        for (int i = 0; i < 32; i++) {
          double nearest = 1e30;
          for (const int8_t code : kCodebook)
            nearest = std::min(nearest, std::fabs(double(code) * rs * q4_scale(s) - w[i]));
          error += nearest * nearest;
        }
        least = std::min(least, error);
      }
      for (int i = 0; i < 32; i++) {
        const double d = tiny::panel_weight(p.tensor, r, g * 32 + i) - w[i];
        found += d * d;
      }
      EXPECT_NEAR(found, least, 1e-4 * least) << "row " << r << ", group " << g;
    }
}

TEST(QuantizeQ4, KeepsRowOfZeros) {
  Random random(8);
  Floats rows = random_rows(random, 100);
  std::fill(rows.begin() + 5 * 128, rows.begin() + 6 * 128, 0.f);
  const Panel p(Type::q4, rows, 100);
  for (int k = 0; k < 100; k++) EXPECT_EQ(tiny::panel_weight(p.tensor, 5, k), 0.0);
  EXPECT_NE(tiny::panel_weight(p.tensor, 6, 0), 0.0);
}

// The scales of a row differ by at most 12 / 5, so an outlier makes the whole row coarser.
TEST(QuantizeQ4, HandlesOutliersAndAsymmetricRows) {
  Random random(9);
  Floats rows = random_rows(random, 256, 0.02f);
  for (int r = 0; r < kPanelRows; r++) {
    rows[size_t(r * 256 + 17)] = 1;                                                  // fifty deviations
    for (int k = 64; k < 96; k++) rows[size_t(r * 256 + k)] = 0.01f * float(k % 7);  // one sign only
  }
  const Panel p(Type::q4, rows, 256);
  EXPECT_LT(relative_error(p, rows), 0.04);
  for (int r = 0; r < kPanelRows; r++) EXPECT_NEAR(tiny::panel_weight(p.tensor, r, 17), 1, 0.1);
}

TEST(QuantizeQ4, SearchIsTheSameOnEveryCpu) {
  Random random(10);
  using Search = void (*)(const Codebook*, const float*, const float*, int, uint8_t*, float*, float*);
  std::vector<std::pair<const char*, Search>> searches = {{"scalar", FloatScalar::call<search_scales_body>}};
#if defined(__x86_64__)
  for (const std::string& name : kernel_names()) {
    if (name == "avx2") searches.push_back({"avx2", FloatAvx2::call<search_scales_body>});
    if (name == "avx512vnni") searches.push_back({"avx512vnni", FloatAvx512::call<search_scales_body>});
  }
#endif
  const Codebook codebook;
  for (const int cols : {64, 576, 2048})
    for (int round = 0; round < 20; round++) {
      const Floats rows = random_rows(random, cols, round % 2 ? 0.02f : 3.f);
      Floats weights(size_t(cols), 1.f);
      for (float& w : weights) w = round < 10 ? 1.f : float(random.uniform(0, 2));
      std::vector<uint8_t> expected;
      float expected_scale = 0;
      for (const auto& [name, search] : searches) {
        std::vector<uint8_t> scales(size_t(cols / 32));
        std::vector<float> work(search_scratch(cols));
        float rs;
        search(&codebook, rows.data(), weights.data(), cols, scales.data(), &rs, work.data());
        if (expected.empty()) expected = scales, expected_scale = rs;
        EXPECT_EQ(scales, expected) << name << ", " << cols << " columns";
        EXPECT_EQ(rs, expected_scale) << name;
      }
    }
}

}  // namespace quantize_test
