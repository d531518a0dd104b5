// hash_test.cpp: Hash64 is XXH64 with seed 0. Expected values: Python package xxhash.
#include "../../export/engine.hpp"

#include <gtest/gtest.h>

#include "../support/tiny_model.hpp"

namespace hash_test {

using namespace pocket;

std::vector<uint8_t> pattern(size_t n) {
  std::vector<uint8_t> bytes(n);
  for (size_t i = 0; i < n; i++) bytes[i] = uint8_t(i * 131 + 7 + (i >> 8) * 29);
  return bytes;
}

uint64_t hash(const std::vector<uint8_t>& bytes) { return hash_bytes(bytes.data(), bytes.size()); }

TEST(Hash, WholeStripesMatchXxh64) {
  const struct {
    size_t n;
    uint64_t expected;
  } vectors[] = {
      {32, 0x07F7B8E3BC5D6E25},   {64, 0x50D4159A0411632E},   {96, 0x18C8F362EB735341},
      {128, 0x0430E433B792E757},  {160, 0x3538D14012B643AC},  {256, 0xA2DBE913965256FC},
      {1024, 0x22DCD3F6E5775C50}, {4096, 0xE330C82B3C98E5C4}, {65536, 0xCB310BD380814BCE},
  };
  for (const auto& v : vectors) EXPECT_EQ(hash(pattern(v.n)), v.expected) << v.n << " bytes";
  EXPECT_EQ(hash(std::vector<uint8_t>(32, 0)), 0xF6E9BE5D70632CF5);
  EXPECT_EQ(hash(std::vector<uint8_t>(64, 255)), 0x2E54FAE2959DBB84);
}

TEST(Hash, PadsAShortLastStripeWithZeros) {
  EXPECT_EQ(hash_bytes("abc", 3), 0x173FD3DB65F644ED);  // XXH64 of "abc" and 29 zeros
  EXPECT_EQ(hash(pattern(33)), 0xDA0BB00CDF375C7A);     // XXH64 of 33 bytes and 31 zeros
  for (size_t n = 1; n <= 200; n++) {
    std::vector<uint8_t> filled = pattern(n);
    filled.resize((n + 31) / 32 * 32);
    EXPECT_EQ(hash(pattern(n)), hash(filled)) << n << " bytes";
  }
}

TEST(Hash, UpdatesOfWholeStripesMatchOneUpdate) {
  const std::vector<uint8_t> bytes = pattern(1000);
  const uint64_t whole = hash(bytes);
  for (size_t cut = 0; cut <= 992; cut += 32) {
    Hash64 two;
    two.update(bytes.data(), cut);
    two.update(bytes.data() + cut, bytes.size() - cut);
    EXPECT_EQ(two.digest(), whole) << "cut at " << cut;
  }
  Hash64 many;
  for (size_t at = 0; at < 992; at += 32) many.update(bytes.data() + at, 32);
  many.update(bytes.data() + 992, 8);
  EXPECT_EQ(many.digest(), whole);
}

TEST(Hash, PadsEveryUpdateOnItsOwn) {
  Hash64 pieces;
  pieces.update("abc", 3);
  pieces.update("defg", 4);
  std::vector<uint8_t> filled(64);
  std::memcpy(filled.data(), "abc", 3);
  std::memcpy(filled.data() + 32, "defg", 4);
  EXPECT_EQ(pieces.digest(), hash(filled));
}

TEST(Hash, DigestDoesNotChangeTheState) {
  const std::vector<uint8_t> bytes = pattern(128);
  Hash64 h;
  h.update(bytes.data(), 64);
  EXPECT_EQ(h.digest(), hash(pattern(64)));
  EXPECT_EQ(h.digest(), hash(pattern(64)));
  h.update(bytes.data() + 64, 64);
  EXPECT_EQ(h.digest(), hash(bytes));
}

TEST(Hash, DoesNotDependOnAlignment) {
  const std::vector<uint8_t> bytes = pattern(160);
  for (size_t shift = 1; shift < 16; shift++) {
    std::vector<uint8_t> moved(shift);
    moved.insert(moved.end(), bytes.begin(), bytes.end());
    EXPECT_EQ(hash_bytes(moved.data() + shift, bytes.size()), hash(bytes)) << "moved by " << shift;
  }
}

TEST(Hash, DependsOnEveryBit) {
  std::vector<uint8_t> bytes = pattern(96);
  const uint64_t before = hash(bytes);
  for (size_t bit = 0; bit < bytes.size() * 8; bit++) {
    bytes[bit / 8] ^= uint8_t(1 << bit % 8);
    EXPECT_NE(hash(bytes), before) << "bit " << bit;
    bytes[bit / 8] ^= uint8_t(1 << bit % 8);
  }
}

TEST(Hash, LogitsAreHashedAsBytes) {
  float logits[10];
  for (int i = 0; i < 10; i++) logits[i] = float(i) * 0.5f - 2;
  EXPECT_EQ(hash_logits(logits, 10), 0x2C856C0B277BC9F6);
}

}  // namespace hash_test
