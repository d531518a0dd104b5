// dtype_test.cpp: blocks of every number format are packed here, weight by weight, by the description of the format,
// and decoded. Scales are powers of two, so that every number is exact. golden_test.cpp has complete models in these
// formats, made by llama-quantize.
#include "../../export/dtype.hpp"

#include <gtest/gtest.h>

#include <functional>

#include "../support/tiny_model.hpp"

namespace dtype_test {

using namespace pocket;

constexpr uint16_t kHalf = 0x3800, kQuarter = 0x3400, kMinusTwo = 0xC000;  // float16

/// Packs a block bit by bit.
struct Block {
  std::string bytes;
  std::vector<float> expected;

  explicit Block(DType type) : bytes(size_t(dtype_info(type).block_bytes), '\0') {}
  /// Sets `count` bits, starting at bit `bit` of byte `at`.
  void put(size_t at, int bit, int count, int value) {
    ASSERT_TRUE(value >= 0 && value < 1 << count) << value;
    ASSERT_LT(at, bytes.size());
    ASSERT_EQ(uint8_t(bytes[at]) >> bit & ((1 << count) - 1), 0) << "byte " << at << " is written twice";
    bytes[at] = char(uint8_t(bytes[at]) | value << bit);
  }
  void put_f16(size_t at, uint16_t value) {
    put(at, 0, 8, value & 255);
    put(at + 1, 0, 8, value >> 8);
  }
};

std::vector<float> decoded(DType type, const std::string& bytes) {
  const DTypeInfo& info = dtype_info(type);
  const int64_t blocks = int64_t(bytes.size()) / info.block_bytes;
  std::vector<float> out(size_t(blocks * info.block));
  info.decode(reinterpret_cast<const uint8_t*>(bytes.data()), blocks, out.data());
  return out;
}

/// Packs 20 random blocks and decodes them, one by one and all in one row.
void expect_blocks(DType type, const std::function<void(Block&, tiny::Random&)>& pack) {
  tiny::Random random(uint64_t(type) + 1);
  std::string row;
  std::vector<float> expected;
  for (int i = 0; i < 20; i++) {
    Block b(type);
    pack(b, random);
    EXPECT_EQ(decoded(type, b.bytes), b.expected);
    ASSERT_EQ(b.expected.size(), size_t(dtype_info(type).block));
    row += b.bytes;
    expected.insert(expected.end(), b.expected.begin(), b.expected.end());
  }
  EXPECT_EQ(decoded(type, row), expected);
}

/// Nibbles of 32 weights in 16 bytes: the first half low, the second half high.
void put_halves(Block& b, size_t at, int i, int nibble) { b.put(at + size_t(i % 16), i < 16 ? 0 : 4, 4, nibble); }

// ---- Blocks of 32 ----

TEST(DTypeBlocks32, Q8_0) {
  expect_blocks(DType::q8_0, [](Block& b, tiny::Random& random) {
    b.put_f16(0, kMinusTwo);
    for (int i = 0; i < 32; i++) {
      const int code = i < 2 ? 127 - i * 255 : random.below(256) - 128;
      b.put(size_t(2 + i), 0, 8, code & 255);
      b.expected.push_back(-2.f * float(code));
    }
  });
}

TEST(DTypeBlocks32, Q4_0) {
  expect_blocks(DType::q4_0, [](Block& b, tiny::Random& random) {
    b.put_f16(0, kMinusTwo);
    for (int i = 0; i < 32; i++) {
      const int code = random.below(16);
      put_halves(b, 2, i, code);
      b.expected.push_back(-2.f * float(code - 8));
    }
  });
}

TEST(DTypeBlocks32, Q4_1) {
  expect_blocks(DType::q4_1, [](Block& b, tiny::Random& random) {
    b.put_f16(0, kHalf), b.put_f16(2, kMinusTwo);
    for (int i = 0; i < 32; i++) {
      const int code = random.below(16);
      put_halves(b, 4, i, code);
      b.expected.push_back(0.5f * float(code) - 2);
    }
  });
}

TEST(DTypeBlocks32, Q5_0) {
  expect_blocks(DType::q5_0, [](Block& b, tiny::Random& random) {
    b.put_f16(0, kMinusTwo);
    for (int i = 0; i < 32; i++) {
      const int code = random.below(32);
      b.put(size_t(2 + i / 8), i % 8, 1, code / 16);
      put_halves(b, 6, i, code % 16);
      b.expected.push_back(-2.f * float(code - 16));
    }
  });
}

TEST(DTypeBlocks32, Q5_1) {
  expect_blocks(DType::q5_1, [](Block& b, tiny::Random& random) {
    b.put_f16(0, kHalf), b.put_f16(2, kMinusTwo);
    for (int i = 0; i < 32; i++) {
      const int code = random.below(32);
      b.put(size_t(4 + i / 8), i % 8, 1, code / 16);
      put_halves(b, 8, i, code % 16);
      b.expected.push_back(0.5f * float(code) - 2);
    }
  });
}

const int kLookup[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

TEST(DTypeBlocks32, IQ4_NL) {
  expect_blocks(DType::iq4_nl, [](Block& b, tiny::Random& random) {
    b.put_f16(0, kHalf);
    for (int i = 0; i < 32; i++) {
      const int code = i < 16 ? i : random.below(16);
      put_halves(b, 2, i, code);
      b.expected.push_back(0.5f * float(kLookup[code]));
    }
  });
}

// ---- Blocks of 256 ----

/// The 2-bit codes of 128 weights in 32 bytes: each byte holds four weights that are 32 apart.
void put_two_bits(Block& b, size_t at, int i, int code) {
  b.put(at + size_t(i / 128 * 32 + i % 32), i / 32 % 4 * 2, 2, code);
}

TEST(DTypeBlocks256, Q2_K) {
  expect_blocks(DType::q2_k, [](Block& b, tiny::Random& random) {
    b.put_f16(80, kHalf), b.put_f16(82, kQuarter);
    for (int group = 0; group < 16; group++) {
      const int scale = random.below(16), offset = random.below(16);
      b.put(size_t(group), 0, 4, scale), b.put(size_t(group), 4, 4, offset);
      for (int i = group * 16; i < group * 16 + 16; i++) {
        const int code = random.below(4);
        put_two_bits(b, 16, i, code);
        b.expected.push_back(0.5f * float(scale * code) - 0.25f * float(offset));
      }
    }
  });
}

TEST(DTypeBlocks256, Q3_K) {
  expect_blocks(DType::q3_k, [](Block& b, tiny::Random& random) {
    b.put_f16(108, kHalf);
    for (int group = 0; group < 16; group++) {
      const int scale = random.below(64);
      b.put(96 + size_t(group % 8), group < 8 ? 0 : 4, 4, scale % 16);
      b.put(104 + size_t(group % 4), group / 4 * 2, 2, scale / 16);
      for (int i = group * 16; i < group * 16 + 16; i++) {
        const int code = random.below(8);  // 3 bits, 4 represents 0
        put_two_bits(b, 32, i, code % 4);
        b.put(size_t(i % 32), i / 32, 1, code / 4);
        b.expected.push_back(0.5f * float((scale - 32) * (code - 4)));
      }
    }
  });
}

/// Eight pairs of 6 bits in 12 bytes.
void put_scales(Block& b, size_t at, int group, int scale, int offset) {
  const size_t j = size_t(group % 4);
  if (group < 4) {
    b.put(at + j, 0, 6, scale);
    b.put(at + j + 4, 0, 6, offset);
  } else {
    b.put(at + j + 8, 0, 4, scale % 16), b.put(at + j, 6, 2, scale / 16);
    b.put(at + j + 8, 4, 4, offset % 16), b.put(at + j + 4, 6, 2, offset / 16);
  }
}

/// Nibbles of 64 weights in 32 bytes: the first 32 low, the others high.
void put_pairs(Block& b, size_t at, int i, int nibble) {
  b.put(at + size_t(i / 64 * 32 + i % 32), i / 32 % 2 * 4, 4, nibble);
}

TEST(DTypeBlocks256, Q4_K) {
  expect_blocks(DType::q4_k, [](Block& b, tiny::Random& random) {
    b.put_f16(0, kHalf), b.put_f16(2, kQuarter);
    for (int group = 0; group < 8; group++) {
      const int scale = random.below(64), offset = random.below(64);
      put_scales(b, 4, group, scale, offset);
      for (int i = group * 32; i < group * 32 + 32; i++) {
        const int code = random.below(16);
        put_pairs(b, 16, i, code);
        b.expected.push_back(0.5f * float(scale * code) - 0.25f * float(offset));
      }
    }
  });
}

TEST(DTypeBlocks256, Q5_K) {
  expect_blocks(DType::q5_k, [](Block& b, tiny::Random& random) {
    b.put_f16(0, kHalf), b.put_f16(2, kQuarter);
    for (int group = 0; group < 8; group++) {
      const int scale = random.below(64), offset = random.below(64);
      put_scales(b, 4, group, scale, offset);
      for (int i = group * 32; i < group * 32 + 32; i++) {
        const int code = random.below(32);
        b.put(size_t(16 + i % 32), group, 1, code / 16);
        put_pairs(b, 48, i, code % 16);
        b.expected.push_back(0.5f * float(scale * code) - 0.25f * float(offset));
      }
    }
  });
}

TEST(DTypeBlocks256, Q6_K) {
  expect_blocks(DType::q6_k, [](Block& b, tiny::Random& random) {
    b.put_f16(208, kHalf);
    for (int group = 0; group < 16; group++) {
      const int scale = random.below(256) - 128;
      b.put(size_t(192 + group), 0, 8, scale & 255);
      for (int i = group * 16; i < group * 16 + 16; i++) {
        const int code = random.below(64);
        b.put(size_t(i / 128 * 64 + i % 64), i % 128 < 64 ? 0 : 4, 4, code % 16);
        put_two_bits(b, 128, i, code / 16);
        b.expected.push_back(0.5f * float(scale * (code - 32)));
      }
    }
  });
}

TEST(DTypeBlocks256, IQ4_XS) {
  expect_blocks(DType::iq4_xs, [](Block& b, tiny::Random& random) {
    b.put_f16(0, kHalf);
    for (int group = 0; group < 8; group++) {
      const int scale = random.below(64);
      b.put(size_t(2 + group / 4), group % 4 * 2, 2, scale / 16);
      b.put(size_t(4 + group / 2), group % 2 * 4, 4, scale % 16);
      for (int i = 0; i < 32; i++) {
        const int code = random.below(16);
        put_halves(b, size_t(8 + group * 16), i, code);
        b.expected.push_back(0.5f * float((scale - 32) * kLookup[code]));
      }
    }
  });
}

// ---- Single numbers ----

TEST(DTypeNumbers, DecodesFloat16) {
  for (const auto& [bits, value] : {std::pair{0x0000, 0.f},
                                    {0x3C00, 1.f},
                                    {0xC000, -2.f},
                                    {0x7BFF, 65504.f},
                                    {0x0001, 0x1p-24f},
                                    {0x8400, -0x1p-14f}})
    EXPECT_EQ(from_f16(uint16_t(bits)), value) << bits;
  EXPECT_TRUE(std::isinf(from_f16(0x7C00)) && std::isnan(from_f16(0x7E00)));
}

/// The model writer rejects the resulting weights.
TEST(DTypeNumbers, NonFiniteScaleGivesNonFiniteWeights) {
  for (int i = 0; i < kGgmlTypes; i++) {
    const DTypeInfo& info = dtype_info(DType(i));
    const std::string bytes(size_t(info.block_bytes), '\xFF');
    const std::vector<float> out = decoded(DType(i), bytes);
    for (float w : out) EXPECT_FALSE(std::isfinite(w)) << info.name;
  }
}

}  // namespace dtype_test
