// kernels_test.cpp: the scalar kernels implement the number formats of run.cpp, and every kernel set that this CPU
// supports returns the same bits as the scalar one, for matrix products and for float blocks.
#include "../../export/engine.hpp"

#include <gtest/gtest.h>

#include "../support/tiny_model.hpp"

namespace kernels_test {

using namespace pocket;
using tiny::Bytes;
using tiny::Floats;
using tiny::Random;
using tiny::same_bits;

constexpr Type kTypes[] = {Type::f32, Type::q8, Type::q4};
constexpr float kGuard = 12345.f;  // marks elements that must not be written
const float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
const std::vector<std::vector<float>> kNonFinite = {{kNan},        {kInf},       {-kInf},
                                                    {kInf, -kInf}, {kNan, kInf}, {kNan, -kNan}};

const Kernels& scalar_set() { return *find_kernels("scalar"); }

float random_scale(Random& random) { return random.normal() * bits_float(uint32_t(127 - 8 + random.below(16)) << 23); }

// A matrix of random bytes, so that every code and every 4-bit scale occurs, with a random codebook.
struct Matrix {
  Bytes bytes;
  Tensor tensor;

  Matrix(Type type, int rows, int cols, Random& random) : bytes(size_t(panels_of(rows)) * panel_bytes(type, cols)) {
    for (uint8_t& byte : bytes) byte = uint8_t(random.bits());
    tensor = {type, rows, cols, bytes.data(), bytes.size()};
    for (int8_t& value : tensor.codebook) value = int8_t(random.below(128) - 64);
    tensor.codebook[3] = -64;  // the limits
    tensor.codebook[12] = 63;
    for (int row = 0; row < panels() * kPanelRows; row++) {
      if (type == Type::q4) set_row_scale(row, random_scale(random));
      for (int g = 0; type == Type::q8 && g < padded(cols) / kGroup; g++) set_q8_scale(row, g, random_scale(random));
    }
    for (size_t at = 0; type == Type::f32 && at < bytes.size(); at += 4) tiny::put(bytes, at, random.normal());
  }

  int panels() const { return panels_of(tensor.rows); }
  uint8_t* panel(int row) { return &bytes[size_t(row / 16) * panel_bytes(tensor.type, tensor.cols)]; }
  void set_row_scale(int row, float scale) {
    std::memcpy(panel(row) + panel_bytes(Type::q4, tensor.cols) - 64 + row % 16 * 4, &scale, 4);
  }
  void set_q8_scale(int row, int g, float scale) {  // truncated to bfloat16
    std::memcpy(panel(row) + code_bytes(Type::q8, tensor.cols) + g * 32 + row % 16 * 2,
                reinterpret_cast<const char*>(&scale) + 2, 2);
  }
};

// Activations of n tokens, zero in the padding.
struct Inputs {
  int n;
  int cols;  // padded
  Floats f, scale;
  std::vector<int8_t> q;
  std::vector<int32_t> sum;

  Inputs(int n, int cols) : n(n), cols(padded(cols)), f(size_t(n) * this->cols), scale(f.size() / kGroup) {
    q.resize(f.size());
    sum.resize(scale.size());
  }

  // Random floats, codes and scales, independent of each other.
  Inputs(int n, int cols, Random& random) : Inputs(n, cols) {
    for (size_t i = 0; i < f.size(); i++)
      if (int(i % size_t(this->cols)) < cols) {
        f[i] = random.normal();
        q[i] = int8_t(random.below(255) - 127);
      }
    for (float& s : scale) s = std::fabs(random_scale(random));
    update_sums();
  }

  void update_sums() {
    for (size_t i = 0; i < sum.size(); i++)
      sum[i] = std::accumulate(q.begin() + i * kGroup, q.begin() + (i + 1) * kGroup, 0);
  }

  Activations get() { return {cols, f.data(), q.data(), scale.data(), sum.data()}; }

  // Padding after the last token is unspecified; here it is 0xff.
  tiny::Bytes pack() {
    tiny::Bytes packed(packed_bytes(n, cols), 0xff);
    for (int t = 0; t < n; t++) {
      const Activations token = get().token(t);
      pack_groups(token.q, token.scale, t, 0, cols / kGroup, n, packed.data());
    }
    return packed;
  }
};

// y (n, rows of all panels + 16 of guard), filled by fill(y, ldy).
template <class F> Floats product(const Matrix& w, int n, const F& fill) {
  const size_t ldy = size_t(w.panels() + 1) * kPanelRows;
  Floats y(size_t(n) * ldy, kGuard);
  fill(y.data(), ldy);
  return y;
}

// IEEE 754 does not define which NaN an operation returns, and compilers may swap operands.
void canonicalize_nans(Floats& values) {
  for (float& v : values)
    if (std::isnan(v)) v = kNan;
}

#if defined(__x86_64__)
// The AMX instructions in plain C++, so that the code that uses them is tested on every CPU with AVX-512.
struct EmulatedTiles {
  static inline bool configured = false;
  static inline int8_t w[64 * kPanelRows];
  static inline int32_t sums[2][2][16 * kPanelRows];

  static void configure() { configured = true; }
  static void release() { configured = false; }
  static void weights(const uint8_t* bytes) { std::memcpy(w, bytes, sizeof w); }
  template <int odd> static void multiply(const uint8_t* x) {
    ASSERT_TRUE(configured);
    for (int g = 0; g < 2; g++)
      for (int t = 0; t < 16; t++)
        for (int r = 0; r < kPanelRows; r++) {
          int32_t sum = g == 0 ? 0 : int32_t(float_bits(kRound));
          for (int k = g * kGroup; k < (g + 1) * kGroup; k++)
            sum += int8_t(x[t * 64 + k]) * w[k / 4 * 64 + 4 * r + k % 4];
          sums[odd][g][t * kPanelRows + r] = sum;
        }
  }
  template <int odd> static void store(int32_t* out) { std::memcpy(out, sums[odd], sizeof sums[odd]); }
};
#endif

// The kernel sets that this CPU supports, and AMX with emulated tiles if the CPU has AVX-512 VNNI.
std::vector<const Kernels*> matmul_sets() {
  std::vector<const Kernels*> sets = tiny::kernel_sets();
#if defined(__x86_64__)
  static Kernels emulated;
  if (const Kernels* base = find_kernels("avx512vnni")) {
    emulated = *base;
    emulated.name = "amx, emulated";
    emulated.matmul_packed = amx::matmul_packed<EmulatedTiles>;
    sets.push_back(&emulated);
  }
#endif
  return sets;
}

// Every matmul function of every kernel set returns the bits of the scalar kernel and writes nothing else.
void expect_same_products(const Matrix& w, Inputs in) {
  const Activations x = in.get();
  const int n = in.n, panels = w.panels();
  for (const int first : {0, 1}) {
    const int count = panels - first;
    if (count < 1) continue;
    Floats expected = product(w, n, [&](float* y, size_t ldy) {
      matmul_scalar({w.tensor, first, count, x, n, y, ldy});
    });
    canonicalize_nans(expected);
    const auto check = [&](const Kernels& k, const char* path, const auto& fill) {
      Floats found = product(w, n, fill);
      canonicalize_nans(found);
      EXPECT_TRUE(same_bits(found.data(), expected.data(), expected.size()))
          << k.name << ", " << path << ", " << type_name(w.tensor.type) << " (" << w.tensor.rows << ", "
          << w.tensor.cols << "), " << n << " tokens, from panel " << first;
    };
    for (const Kernels* k : matmul_sets()) {
      check(*k, "matmul_panels", [&](float* y, size_t ldy) {
        matmul_panels(*k, {w.tensor, first, count, x, n, y, ldy});
      });
      if (w.tensor.type == Type::f32 || !k->dot) continue;
      if (w.tensor.type == Type::q8 || k->unpack_q4)
        check(*k, "matmul_blocked", [&](float* y, size_t ldy) {
          matmul_blocked(*k, {w.tensor, first, count, x, n, y, ldy});
        });
      if (k->matmul_packed) {
        tiny::Bytes packed = in.pack();
        Activations all = x;
        all.packed = packed.data();
        all.use_packed = true;
        check(*k, "matmul_packed", [&](float* y, size_t ldy) {
          k->matmul_packed({w.tensor, first, count, all, n, y, ldy});
        });
      }
      if (w.tensor.type == Type::q8 && !k->gemv_q8) continue;
      check(*k, "gemv", [&](float* y, size_t ldy) { k->gemv({w.tensor, first, count, x, n, y, ldy}); });
    }
  }
}

// ---- The formats ----

TEST(Formats, OneHotActivationsReturnTheWeight) {
  Random random(1);
  for (const Type type : kTypes)
    for (const int cols : {1, 33, 64, 100, 130}) {
      Matrix w(type, 40, cols, random);
      for (int k = 0; k < cols; k++) {
        Inputs in(1, cols);
        in.f[size_t(k)] = 1;
        in.q[size_t(k)] = 1;
        std::fill(in.scale.begin(), in.scale.end(), 1.f);
        in.update_sums();
        const Floats y = product(w, 1, [&](float* out, size_t ldy) {
          matmul_scalar({w.tensor, 0, w.panels(), in.get(), 1, out, ldy});
        });
        for (int r = 0; r < w.tensor.rows; r++)
          ASSERT_EQ(y[size_t(r)], float(tiny::panel_weight(w.tensor, r, k)))
              << type_name(type) << " row " << r << ", column " << k << " of " << cols;
      }
    }
}

TEST(Formats, WeightReadsEveryTypeAndLayout) {
  Random random(20);
  for (const Type type : kTypes) {
    Matrix w(type, 40, 100, random);
    for (int r = 0; r < w.tensor.rows; r++)
      for (int k = 0; k < w.tensor.cols; k++)
        ASSERT_EQ(weight(w.tensor, r, k), float(tiny::panel_weight(w.tensor, r, k))) << type_name(type);
  }
  for (const Type type : {Type::f32, Type::q8}) {
    const tiny::MemoryModel m(tiny::small_config(), type);
    const Tensor &table = m.model.token_embedding, &norm = m.model.layers[1].ffn_norm;
    for (int r = 0; r < table.rows; r++)
      for (int k = 0; k < table.cols; k++)
        ASSERT_EQ(weight(table, r, k), float(tiny::embedding_weight(table, r, k))) << type_name(type);
    for (int k = 0; k < norm.cols; k++) ASSERT_EQ(weight(norm, 0, k), float(tiny::vector_weight(norm, k)));
  }
}

// The error of a float sum of n terms is at most n + 2 roundings of the sum of their magnitudes.
TEST(Formats, ScalarProductsMatchDequantizedWeights) {
  Random random(2);
  for (const Type type : kTypes)
    for (const int cols : {1, 31, 32, 63, 64, 65, 100, 512, 513, 576, 1100}) {
      Matrix w(type, 33, cols, random);
      Inputs in(3, cols, random);
      const Floats y = product(w, in.n, [&](float* out, size_t ldy) {
        matmul_scalar({w.tensor, 0, w.panels(), in.get(), in.n, out, ldy});
      });
      for (int t = 0; t < in.n; t++)
        for (int r = 0; r < w.tensor.rows; r++) {
          double sum = 0, magnitudes = 0;
          for (int k = 0; k < cols; k++) {
            const size_t at = size_t(t) * in.cols + k;
            const double x = type == Type::f32 ? in.f[at] : in.q[at] * double(in.scale[at / kGroup]);
            const double term = tiny::panel_weight(w.tensor, r, k) * x;
            sum += term;
            magnitudes += std::fabs(term);
          }
          const int terms = type == Type::f32 ? cols : (cols + 31) / 32;
          EXPECT_NEAR(y[size_t(t) * (w.panels() + 1) * kPanelRows + r], sum, (terms + 2) * magnitudes / (1 << 24))
              << type_name(type) << " row " << r << ", " << cols << " columns";
        }
    }
}

TEST(Formats, PanelAndEmbeddingRowSizes) {
  EXPECT_EQ(panel_bytes(Type::f32, 64), 64u * 64);
  EXPECT_EQ(panel_bytes(Type::f32, 65), 128u * 64);
  EXPECT_EQ(panel_bytes(Type::q8, 64), 64u * 16 + 2 * 32);
  EXPECT_EQ(panel_bytes(Type::q8, 2048), 2048u * 16 * 17 / 16);       // 8.5 bits
  EXPECT_EQ(panel_bytes(Type::q4, 2048), 2048u * 16 * 33 / 64 + 64);  // 4.125 bits and the row scales
  EXPECT_EQ(panel_bytes(Type::q4, 64), 64u * 8 + 64 + 64);            // group scales are padded to a cache line
  EXPECT_EQ(panel_bytes(Type::q4, 576), 576u * 8 + 192 + 64);
  EXPECT_EQ(embedding_row_bytes(Type::q8, 33), 2u * 34);
  EXPECT_EQ(embedding_row_bytes(Type::f32, 33), 2u * 128);
}

TEST(Formats, Q4GroupScalesArePlusMinusFiveToTwelve) {
  const int expected[16] = {5, 6, 7, 8, 9, 10, 11, 12, -5, -6, -7, -8, -9, -10, -11, -12};
  for (int s = 0; s < 16; s++) EXPECT_EQ(q4_scale(s), float(expected[s]));
}

TEST(Formats, Bfloat16IsTheUpperHalfOfAFloat) {
  EXPECT_EQ(from_bf16(0x3f80), 1.f);
  EXPECT_EQ(from_bf16(0xc000), -2.f);
  EXPECT_EQ(from_bf16(0x0001), std::ldexp(1.f, -133));
  EXPECT_EQ(from_bf16(0x7f80), kInf);
}

// ---- Matrix products: the bits of the scalar kernel ----

TEST(Matmul, SameBitsForEveryRowCount) {
  Random random(3);
  for (const Type type : kTypes)
    for (int rows = 1; rows <= 40; rows++) {
      Matrix w(type, rows, rows % 2 ? 65 : 513, random);
      for (const int n : {1, 2, 3, 5}) expect_same_products(w, Inputs(n, w.tensor.cols, random));
    }
}

TEST(Matmul, SameBitsForEveryTokenCountAndOddColumns) {
  Random random(4);
  std::vector<int> counts = {64};
  for (int n = 1; n <= 20; n++) counts.push_back(n);
  for (const Type type : kTypes)
    for (const int cols : {1, 31, 32, 63, 64, 65, 100, 512, 513, 576, 1100}) {
      Matrix w(type, 33, cols, random);
      for (const int n : counts) expect_same_products(w, Inputs(n, cols, random));
    }
}

TEST(Matmul, SameBitsForManyPanels) {
  Random random(5);
  for (const Type type : kTypes)
    for (const int panels : {4, 5, 6, 7, 8, 9}) {
      Matrix w(type, panels * 16, 128, random);
      for (const int n : {1, 2, 7}) expect_same_products(w, Inputs(n, 128, random));
    }
}

// Integer sums of a group must not saturate or wrap.
TEST(Matmul, SameBitsForLargestIntegerSums) {
  Random random(6);
  for (const Type type : {Type::q8, Type::q4})
    for (const int weight : {-128, -127, 127, 0})
      for (const int code : {127, -127, 0}) {
        Matrix w(type, 33, 100, random);
        for (int8_t& value : w.tensor.codebook) value = int8_t(weight < 0 ? -64 : weight ? 63 : 0);
        for (int p = 0; p < w.panels() && type == Type::q8; p++)
          std::memset(w.panel(p * 16), weight, code_bytes(type, 100));
        for (const int n : {1, 2, 3, 6, 11, 16, 17, 33, 100}) {
          Inputs in(n, 100, random);
          for (size_t i = 0; i < in.q.size(); i++) in.q[i] = int8_t(i % in.cols < 100 ? code : 0);
          in.update_sums();
          expect_same_products(w, in);
        }
      }
}

TEST(Matmul, SameBitsForEveryPairOfCodes) {
  Random random(7);
  for (int round = 0; round < 8; round++) {
    Matrix w(Type::q4, 32, 512, random);
    for (size_t p = 0; p < 2; p++)  // every byte, hence every pair of codes, in every row
      for (size_t i = 0; i < 512 * 8; i++) w.panel(int(p) * 16)[i] = uint8_t(i / 64 * 4 + i % 4 + i / 4 % 16 * 17);
    if (round == 0) std::fill(w.tensor.codebook, w.tensor.codebook + 16, int8_t(-64));
    if (round == 1) std::fill(w.tensor.codebook, w.tensor.codebook + 16, int8_t(63));
    if (round == 2) std::memcpy(w.tensor.codebook, kCodebook, 16);
    for (const int n : {1, 2, 9, 40, 128}) expect_same_products(w, Inputs(n, 512, random));
  }
}

TEST(Matmul, SameBitsForScalesFromDenormalToHuge) {
  Random random(8);
  const float scales[] = {0.f, -0.f, 1e-45f, -1e-40f, 1e-38f, 1e-30f, -1e30f, 3e38f, -3e38f};
  for (const Type type : {Type::q8, Type::q4})
    for (const float weight_scale : scales)
      for (const float input_scale : scales) {
        Matrix w(type, 17, 128, random);
        for (int r = 0; r < 17; r++) {
          if (type == Type::q4) w.set_row_scale(r, weight_scale);
          for (int g = 0; type == Type::q8 && g < 4; g++) w.set_q8_scale(r, g, weight_scale);
        }
        for (const int n : {1, 4}) {
          Inputs in(n, 128, random);
          for (float& s : in.scale) s = std::fabs(input_scale);
          expect_same_products(w, in);
        }
      }
}

// A broken model may produce NaN and infinity: the bits are the same everywhere, and nothing is undefined behaviour.
TEST(Matmul, SameBitsForNanAndInfinity) {
  Random random(9);
  for (const Type type : kTypes)
    for (const std::vector<float>& special : kNonFinite)
      for (const int n : {1, 2, 3, 7}) {
        Matrix w(type, 33, 300, random);
        Inputs in(n, 300, random);
        for (int t = 0; t < n; t++)
          for (const float value : special) in.f[size_t(t) * in.cols + random.below(300)] = value;
        scalar_set().quantize(in.f.data(), int(in.f.size()), in.q.data(), in.scale.data(), in.sum.data());
        expect_same_products(w, in);
      }
}

// ---- Float blocks: the bits of the scalar set ----

TEST(FloatBlocks, RmsnormHasTheSameBits) {
  Random random(10);
  std::vector<int> sizes = {100, 576, 1000, 2048};
  for (int n = 1; n <= 70; n++) sizes.push_back(n);
  for (const int n : sizes) {
    const size_t width = size_t(round_up(n, 16));
    Floats x = tiny::normal_floats(random, width, 3), weight = tiny::normal_floats(random, width);
    std::fill(x.begin() + n, x.end(), 0.f);
    const auto compute = [&](const Kernels& k) {
      Floats y(width + 16, kGuard);
      k.rmsnorm(x.data(), weight.data(), y.data(), n, 1e-5f);
      return y;
    };
    const Floats expected = compute(scalar_set());
    EXPECT_EQ(expected[width], kGuard);
    for (const Kernels* k : tiny::kernel_sets())
      EXPECT_TRUE(same_bits(compute(*k).data(), expected.data(), expected.size())) << k->name << ", n = " << n;
  }
}

// Groups of 32: normal, zero, nearly zero, huge, denormal, with ties to round, NaN and infinity.
Floats groups_to_quantize(Random& random) {
  Floats x;
  const auto group = [&](const auto& value) {
    for (int i = 0; i < kGroup; i++) x.push_back(value(i));
  };
  for (int g = 0; g < 20; g++) group([&](int) { return random.normal(); });
  for (const float size : {0.f, -0.f, 1e-45f, 1e-38f, 9.99e-31f, 1e-30f, 1.01e-30f, 1e-20f, 1e20f, 3.4e38f})
    group([&](int i) { return size * float(i - 16) / 16; });
  group([](int i) { return i == 0 ? 127.f : float(i) - 16.5f; });  // ties
  group([](int i) { return i == 31 ? -254.f : float(2 * i) - 31.f; });
  group([](int i) { return i == 5 ? -1e6f : 1.f; });
  for (const float special : {kNan, -kNan, kInf, -kInf}) {
    group([&](int i) { return i == 7 ? special : 1.f; });
    group([&](int) { return special; });
  }
  group([](int i) { return i == 3 ? kNan : i == 9 ? kInf : 0.5f; });
  return x;
}

struct Quantized {
  std::vector<int8_t> q;
  Floats scale;
  std::vector<int32_t> sum;

  Quantized(const Kernels& k, const Floats& x) : q(x.size()), scale(x.size() / kGroup), sum(scale.size()) {
    k.quantize(x.data(), int(x.size()), q.data(), scale.data(), sum.data());
  }
};

TEST(FloatBlocks, QuantizeHasTheSameBits) {
  Random random(11);
  Floats x = groups_to_quantize(random);
  const Quantized expected(scalar_set(), x);
  for (const Kernels* k : tiny::kernel_sets()) {
    const Quantized found(*k, x);
    EXPECT_EQ(found.q, expected.q) << k->name;
    EXPECT_EQ(found.sum, expected.sum) << k->name;
    EXPECT_TRUE(same_bits(found.scale.data(), expected.scale.data(), expected.scale.size())) << k->name;
  }
}

TEST(FloatBlocks, QuantizeErrsByAtMostHalfAStep) {
  Random random(12);
  const Floats x = groups_to_quantize(random);
  const Quantized found(scalar_set(), x);
  for (size_t g = 0; g < found.scale.size(); g++) {
    float largest = 0;
    for (int i = 0; i < kGroup; i++) largest = std::max(largest, std::fabs(x[g * kGroup + i]));
    bool finite = true;
    for (int i = 0; i < kGroup; i++) finite = finite && std::isfinite(x[g * kGroup + i]);
    if (!finite) continue;
    EXPECT_EQ(found.scale[g], largest < 1e-30f ? 0.f : largest / 127.f) << "group " << g;
    int sum = 0, highest = 0;
    for (int i = 0; i < kGroup; i++) {
      const size_t at = g * kGroup + i;
      sum += found.q[at];
      highest = std::max(highest, std::abs(int(found.q[at])));
      const double step = found.scale[g];
      EXPECT_NEAR(found.q[at] * step, double(x[at]), largest < 1e-30f ? 1e-30 : step * (0.5 + 1e-5)) << "group " << g;
    }
    EXPECT_EQ(found.sum[g], sum) << "group " << g;
    EXPECT_EQ(highest, largest < 1e-30f ? 0 : 127) << "group " << g;
  }
}

TEST(FloatBlocks, QuantizeRoundsHalfToEven) {
  Floats x(kGroup);
  x[0] = 127;  // the scale is 1
  const float ties[] = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 125.5f, 126.5f};
  const int even[] = {0, 2, 2, 0, -2, -2, 126, 126};
  std::copy(std::begin(ties), std::end(ties), x.begin() + 1);
  for (const Kernels* k : tiny::kernel_sets())
    for (int i = 0; i < 8; i++) EXPECT_EQ(Quantized(*k, x).q[size_t(i) + 1], even[i]) << k->name << ", " << ties[i];
}

TEST(FloatBlocks, RopeHasTheSameBits) {
  Random random(13);
  for (const int head_dim : {2, 6, 8, 16, 20, 64, 80, 96, 128})
    for (const int heads : {1, 2, 3, 5}) {
      const size_t width = size_t(heads) * head_dim, half = size_t(head_dim) / 2;
      const Floats x = tiny::normal_floats(random, width), cos = tiny::normal_floats(random, half),
                   sin = tiny::normal_floats(random, half);
      const auto compute = [&](const Kernels& k) {
        Floats y(x);
        y.resize(width + 16, kGuard);
        k.rope(y.data(), heads, head_dim, cos.data(), sin.data());
        return y;
      };
      const Floats expected = compute(scalar_set());
      for (const Kernels* k : tiny::kernel_sets())
        EXPECT_TRUE(same_bits(compute(*k).data(), expected.data(), width + 16)) << k->name << ", head_dim " << head_dim;
    }
}

TEST(FloatBlocks, SwigluAndExpHaveTheSameBits) {
  Random random(14);
  for (int n = 1; n <= 80; n++) {
    Floats x = tiny::normal_floats(random, size_t(n), 30), up = tiny::normal_floats(random, size_t(n));
    const float special[] = {kNan, kInf, -kInf, 200, -200, -0.f};
    if (n % 8 == 0) std::copy(std::begin(special), std::end(special), x.begin());
    const auto swiglu = [&](const Kernels& k) {
      Floats y(x);
      y.push_back(kGuard);
      k.swiglu(y.data(), up.data(), n);
      return y;
    };
    const auto exp = [&](const Kernels& k) {
      Floats y(x);
      y.push_back(kGuard);
      k.exp(y.data(), n);
      return y;
    };
    const Floats expected_swiglu = swiglu(scalar_set()), expected_exp = exp(scalar_set());
    for (const Kernels* k : tiny::kernel_sets()) {
      EXPECT_TRUE(same_bits(swiglu(*k).data(), expected_swiglu.data(), size_t(n) + 1)) << k->name << ", n = " << n;
      EXPECT_TRUE(same_bits(exp(*k).data(), expected_exp.data(), size_t(n) + 1)) << k->name << ", n = " << n;
    }
  }
}

// max, sum and values of a state, as floats.
Floats flat(const AttentionState& state, size_t width) {
  Floats all = {state.max, state.sum};
  all.insert(all.end(), state.values, state.values + width);
  return all;
}

TEST(FloatBlocks, MergeHasTheSameBits) {
  Random random(15);
  for (const int width : {16, 32, 64, 80, 96, 128})
    for (const float difference : {0.f, 0.3f, -2.f, 50.f, -50.f, 200.f, -200.f}) {
      const Floats state = tiny::normal_floats(random, size_t(width) + 16);
      Floats part = tiny::normal_floats(random, size_t(width) + 16);
      part[0] = state[0] + difference;
      const auto compute = [&](const Kernels& k) {
        Floats values(state.begin() + 16, state.end());
        values.resize(size_t(width) + 16, kGuard);
        AttentionState y = {state[0], state[1], values.data()};
        k.merge(y, {part[0], part[1], part.data() + 16}, width);
        return flat(y, size_t(width) + 16);
      };
      const Floats expected = compute(scalar_set());
      for (const Kernels* k : tiny::kernel_sets())
        EXPECT_TRUE(same_bits(compute(*k).data(), expected.data(), expected.size())) << k->name << ", width " << width;
    }
}

// A block of 128 keys and values, and queries.
template <class T> struct AttentionCase {
  int head_dim, width;
  std::vector<T, tiny::Aligned<T>> k, v;
  Floats k_scale, v_scale, q;

  AttentionCase(int head_dim, Random& random)
      : head_dim(head_dim),
        width(round_up(head_dim, 16)),
        k(size_t(kBlockKeys) * head_dim),
        v(size_t(kBlockKeys) * width),
        k_scale(kBlockKeys),
        v_scale(kBlockKeys),
        q(tiny::normal_floats(random, size_t(kQueries) * head_dim, 2)) {
    for (int key = 0; key < kBlockKeys; key++) {
      const bool f32 = sizeof(T) == 4;
      k_scale[key] = f32 ? 0.25f : 0.004f * float(random.uniform(0.5, 2));
      v_scale[key] = f32 ? 1.f : 0.01f * float(random.uniform(0.5, 2));
      for (int i = 0; i < head_dim; i++) {
        k_at(key, i) = f32 ? T(random.normal()) : T(random.below(255) - 127);
        v[size_t(key) * width + i] = f32 ? T(random.normal()) : T(random.below(255) - 127);
      }
    }
  }

  T& k_at(int key, int i) { return k[(size_t(key) / 16 * head_dim + i) * 16 + key % 16]; }

  // The worst contents of cache positions that were not stored yet.
  void fill_with_garbage(int from) {
    for (int key = from; key < kBlockKeys; key++) {
      k_scale[key] = kNan;
      v_scale[key] = kNan;
      for (int i = 0; i < head_dim; i++) k_at(key, i) = sizeof(T) == 4 ? T(kNan) : T(-128);
      for (int i = 0; i < width; i++) v[size_t(key) * width + i] = sizeof(T) == 4 ? T(kInf) : T(127);
    }
  }

  // The results of consecutive queries from `first` on; unspecified elements are set to 0.
  Floats attend(const Kernels& kernels, int first, const std::vector<int>& keys) {
    const KvBlock kv = {k.data(), v.data(), k_scale.data(), v_scale.data(), head_dim, width};
    Floats values(keys.size() * width + 16, kGuard), results;
    const float* queries[kQueries];
    AttentionState state[kQueries], *out[kQueries];
    for (size_t n = 0; n < keys.size(); n++) {
      queries[n] = &q[(size_t(first) + n) * head_dim];
      state[n].values = &values[n * width];
      out[n] = &state[n];
    }
    (sizeof(T) == 4 ? kernels.attend_f32 : kernels.attend_q8)(kv, int(keys.size()), queries, keys.data(), out);
    for (size_t n = 0; n < keys.size(); n++)
      for (const float f : flat(state[n], size_t(width))) results.push_back(f);
    results.insert(results.end(), values.end() - 16, values.end());  // must be untouched
    return results;
  }
};

const std::vector<std::vector<int>> kKeyCounts = {{1},
                                                  {2},
                                                  {15},
                                                  {16},
                                                  {17},
                                                  {127},
                                                  {128},
                                                  {1, 2},
                                                  {16, 17},
                                                  {128, 128},
                                                  {1, 128},
                                                  {15, 16, 17},
                                                  {126, 127, 128},
                                                  {128, 1, 64},
                                                  {1, 1, 1},
                                                  {7, 7, 8, 8},
                                                  {1, 2, 3, 4},
                                                  {15, 16, 17, 128},
                                                  {128, 127, 1, 33},
                                                  {128, 128, 128, 128},
                                                  {5, 40, 41, 80, 128},
                                                  {100, 100, 100, 101, 101, 101},
                                                  {64, 65, 66, 67, 68, 69, 70},
                                                  {113, 114, 115, 116, 117, 118, 119, 120},
                                                  {128, 128, 128, 128, 128, 128, 128, 128}};
constexpr int kHeadDims[] = {2, 6, 8, 16, 64, 80, 96, 128};

template <class T> void expect_same_attention() {
  Random random(16);
  for (const int head_dim : kHeadDims)
    for (const std::vector<int>& keys : kKeyCounts) {
      AttentionCase<T> c(head_dim, random);
      const Floats expected = c.attend(scalar_set(), 0, keys);
      EXPECT_EQ(expected.back(), kGuard);
      for (const Kernels* k : tiny::kernel_sets())
        EXPECT_TRUE(same_bits(c.attend(*k, 0, keys).data(), expected.data(), expected.size()))
            << k->name << ", head_dim " << head_dim << ", " << keys.size() << " queries, " << keys[0] << " keys";
    }
}

TEST(FloatBlocks, AttendF32HasTheSameBits) { expect_same_attention<float>(); }
TEST(FloatBlocks, AttendQ8HasTheSameBits) { expect_same_attention<int8_t>(); }

template <class T> void expect_independent_queries() {
  Random random(17);
  for (const int head_dim : kHeadDims)
    for (const std::vector<int>& keys : kKeyCounts) {
      AttentionCase<T> c(head_dim, random);
      const size_t record = 2 + size_t(c.width);  // max, sum and values
      for (const Kernels* k : tiny::kernel_sets()) {
        const Floats together = c.attend(*k, 0, keys);
        for (size_t n = 0; n < keys.size(); n++)
          EXPECT_TRUE(same_bits(c.attend(*k, int(n), {keys[n]}).data(), &together[n * record], record))
              << k->name << ", head_dim " << head_dim << ", query " << n << " of " << keys.size();
      }
    }
}

TEST(FloatBlocks, AttentionOfAQueryDoesNotDependOnOthers) {
  expect_independent_queries<float>();
  expect_independent_queries<int8_t>();
}

template <class T> void expect_garbage_ignored() {
  Random random(18);
  for (const int head_dim : kHeadDims)
    for (const std::vector<int>& keys : kKeyCounts) {
      AttentionCase<T> c(head_dim, random);
      const Floats expected = c.attend(scalar_set(), 0, keys);
      c.fill_with_garbage(*std::max_element(keys.begin(), keys.end()));
      for (const Kernels* k : tiny::kernel_sets())
        EXPECT_TRUE(same_bits(c.attend(*k, 0, keys).data(), expected.data(), expected.size()))
            << k->name << ", head_dim " << head_dim << ", " << keys.size() << " queries, " << keys[0] << " keys";
    }
}

TEST(FloatBlocks, AttentionIgnoresKeysAfterTheLast) {
  expect_garbage_ignored<float>();
  expect_garbage_ignored<int8_t>();
}

TEST(FloatBlocks, SameBitsForNanAndInfinity) {
  Random random(19);
  for (const std::vector<float>& special : kNonFinite)
    for (int round = 0; round < 20; round++) {
      Floats x = tiny::normal_floats(random, 96), weight = tiny::normal_floats(random, 96);
      AttentionCase<float> c(16, random);
      for (const float value : special) {
        x[size_t(random.below(96))] = value;
        c.q[size_t(random.below(int(c.q.size())))] = value;
        c.k[size_t(random.below(int(c.k.size())))] = value;
        c.v[size_t(random.below(int(c.v.size())))] = value;
      }
      const auto compute = [&](const Kernels& k) {
        Floats all = c.attend(k, 0, {100, 128, 17, 128});
        Floats norm(96), turned(x), merged(weight);
        k.rmsnorm(x.data(), weight.data(), norm.data(), 96, 1e-5f);
        k.rope(turned.data(), 3, 32, weight.data(), weight.data() + 16);
        AttentionState state = {merged[0], merged[1], merged.data() + 16};
        k.merge(state, {x[0], x[1], x.data() + 16}, 80);
        merged[0] = state.max;
        merged[1] = state.sum;
        for (const Floats* block : {&norm, &turned, &merged}) all.insert(all.end(), block->begin(), block->end());
        canonicalize_nans(all);
        return all;
      };
      const Floats expected = compute(scalar_set());
      for (const Kernels* k : tiny::kernel_sets())
        EXPECT_TRUE(same_bits(compute(*k).data(), expected.data(), expected.size())) << k->name << ", round " << round;
    }
}

// ---- The table ----

#if defined(__x86_64__)
TEST(KernelSets, CpuFeaturesMatchThoseOfTheCompiler) {  // whose functions find nothing in programs that zig compiles
  const X86Features cpu;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  EXPECT_EQ(cpu.avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
  EXPECT_EQ(cpu.avx512vnni, cpu.avx2 && avx512 && __builtin_cpu_supports("avx512vnni"));
  EXPECT_EQ(cpu.intel, bool(__builtin_cpu_is("intel")));
}
#endif

TEST(KernelSets, BestComesFirstAndScalarLast) {
  const std::vector<std::string> names = kernel_names();
  ASSERT_FALSE(names.empty());
  EXPECT_EQ(names.back(), "scalar");
  EXPECT_STREQ(find_kernels(nullptr)->name, names.front().c_str());
  for (const std::string& name : names) EXPECT_STREQ(find_kernels(name.c_str())->name, name.c_str());
  EXPECT_EQ(find_kernels("abacus"), nullptr);
  EXPECT_EQ(find_kernels(""), nullptr);
}

}  // namespace kernels_test
