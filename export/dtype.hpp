// dtype.hpp: the number formats of checkpoints, and their decoders to float32.
// The block formats are those of ggml (github.com/ggml-org/ggml, ggml-common.h and ggml-quants.c): a block of weights
// of a row is stored as small integers with a scale, in some formats also with an offset. The comment above a decoder
// lists the contents of a block in the order of the bytes; f16 is a float16. Every decoder multiplies and adds in
// float32 in the same order as ggml.
#pragma once

#include <cstdint>
#include <cstring>

#include "engine.hpp"

namespace pocket {

/// All number formats. Those up to iq4_xs occur in GGUF files.
enum class DType { f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, i8 };
inline constexpr int kGgmlTypes = int(DType::iq4_xs) + 1;

/// IEEE 754 binary16: 1 sign, 5 exponent, 10 mantissa bits.
inline float from_f16(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, rest = h & 0x7fff;
  const float tiny = float(rest) * 0x1p-24f;  // the value if subnormal
  uint32_t bits;
  if (rest >= 0x7c00)
    bits = 0x7f800000 | (rest & 0x3ff) << 13;  // infinity or NaN
  else if (rest >= 0x400)
    bits = (rest + (112 << 10)) << 13;  // exponent bias 15 to 127
  else
    std::memcpy(&bits, &tiny, 4);
  bits |= sign;
  return load<float>(&bits);
}

inline void decode_f32(const uint8_t* in, int64_t n, float* out) { std::memcpy(out, in, size_t(n) * 4); }
inline void decode_f16(const uint8_t* in, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i++) out[i] = from_f16(load<uint16_t>(in + 2 * i));
}
inline void decode_bf16(const uint8_t* in, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i++) out[i] = from_bf16(load<uint16_t>(in + 2 * i));
}
// Integers whose scales are stored separately (StoredTensor::group).
inline void decode_i8(const uint8_t* in, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i++) out[i] = float(int8_t(in[i]));
}

// ====================================================================================================================
// Blocks of 32
// ====================================================================================================================

inline float load_f16(const uint8_t* in) { return from_f16(load<uint16_t>(in)); }

// f16 scale, 32 int8
inline void decode_q8_0(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 34, out += 32) {
    const float scale = load_f16(in);
    for (int i = 0; i < 32; i++) out[i] = scale * float(int8_t(in[2 + i]));
  }
}

// f16 scale, 16 bytes of nibbles: weight i is the low nibble of byte i, weight 16 + i the high nibble; 8 represents 0.
inline void decode_q4_0(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 18, out += 32) {
    const float scale = load_f16(in);
    for (int i = 0; i < 16; i++) {
      out[i] = scale * float((in[2 + i] & 15) - 8);
      out[16 + i] = scale * float((in[2 + i] >> 4) - 8);
    }
  }
}

// f16 scale, f16 minimum, nibbles as above; 0 represents the minimum.
inline void decode_q4_1(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 20, out += 32) {
    const float scale = load_f16(in), least = load_f16(in + 2);
    for (int i = 0; i < 16; i++) {
      out[i] = scale * float(in[4 + i] & 15) + least;
      out[16 + i] = scale * float(in[4 + i] >> 4) + least;
    }
  }
}

// 5-bit code i of 32: bit i of the first 4 bytes is its highest bit; the nibbles after them are the lower bits.
inline int code_of_5_bits(const uint8_t* in, int i) {
  const int nibble = i < 16 ? in[4 + i] & 15 : in[4 + i - 16] >> 4;
  return nibble | int(load<uint32_t>(in) >> i & 1) << 4;
}

// f16 scale, 32 codes of 5 bits; 16 represents 0.
inline void decode_q5_0(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 22, out += 32) {
    const float scale = load_f16(in);
    for (int i = 0; i < 32; i++) out[i] = scale * float(code_of_5_bits(in + 2, i) - 16);
  }
}

// f16 scale, f16 minimum, 32 codes of 5 bits.
inline void decode_q5_1(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 24, out += 32) {
    const float scale = load_f16(in), least = load_f16(in + 2);
    for (int i = 0; i < 32; i++) out[i] = scale * float(code_of_5_bits(in + 4, i)) + least;
  }
}

// The values of the 16 codes of IQ4_NL and IQ4_XS, denser near zero.
inline constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// 16 bytes of nibbles in the order of Q4_0, used as indices of kIq4Values.
inline void decode_iq4_codes(const uint8_t* in, float scale, float* out) {
  for (int i = 0; i < 16; i++) {
    out[i] = scale * float(kIq4Values[in[i] & 15]);
    out[16 + i] = scale * float(kIq4Values[in[i] >> 4]);
  }
}

// f16 scale, 16 bytes of nibbles
inline void decode_iq4_nl(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 18, out += 32) decode_iq4_codes(in + 2, load_f16(in), out);
}

// ====================================================================================================================
// Blocks of 256: "K quants", with quantized scales
// ====================================================================================================================

// The 2-bit code of weight i in 64 bytes: the first 32 bytes hold in bits 0-1 the first 32 weights, in bits 2-3 the
// next 32, and so on; the other 32 bytes hold the second half of the block.
inline int two_bits(const uint8_t* in, int i) { return in[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3; }

// 16 bytes, each for 16 weights: scale in the low nibble, offset in the high nibble; 64 bytes of 2-bit codes; f16 scale
// of the scales, f16 scale of the offsets.
inline void decode_q2_k(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 84, out += 256) {
    const float scale = load_f16(in + 80), offset = load_f16(in + 82);
    for (int i = 0; i < 256; i++) {
      const uint8_t s = in[i / 16];
      out[i] = scale * float(s & 15) * float(two_bits(in + 16, i)) - offset * float(s >> 4);
    }
  }
}

// Scale j of 16 in 12 bytes, -32 to 31: the lower bits are nibbles as in Q4_0; the upper 2 bits start at bit 2 (j / 4)
// of byte 8 + j % 4.
inline int q3_k_scale(const uint8_t* in, int j) {
  const int low = j < 8 ? in[j] & 15 : in[j - 8] >> 4;
  return (low | (in[8 + j % 4] >> (j / 4 * 2) & 3) << 4) - 32;
}

// 32 bytes: if bit b of byte j is 0, 4 is subtracted from the code of weight 32 b + j; 64 bytes of 2-bit codes; 12
// bytes of scales; f16 scale of the scales.
inline void decode_q3_k(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 110, out += 256) {
    const float scale = load_f16(in + 108);
    for (int i = 0; i < 256; i++) {
      const int code = two_bits(in + 32, i) - (in[i % 32] >> (i / 32) & 1 ? 0 : 4);
      out[i] = scale * float(q3_k_scale(in + 96, i / 16)) * float(code);
    }
  }
}

// Scale and offset j of 8, 6 bits each, in 12 bytes: for j < 4 the low 6 bits of bytes j and 4 + j; for the others the
// nibbles of byte 4 + j and, as upper bits, the top 2 bits of bytes j - 4 and j.
inline int q4_k_scale(const uint8_t* in, int j) { return j < 4 ? in[j] & 63 : (in[j + 4] & 15) | in[j - 4] >> 6 << 4; }
inline int q4_k_offset(const uint8_t* in, int j) { return j < 4 ? in[j + 4] & 63 : in[j + 4] >> 4 | in[j] >> 6 << 4; }

// The nibble of weight i, if 32 bytes hold 32 weights in their low nibbles and the next 32 in their high nibbles.
inline int nibble_of_pairs(const uint8_t* in, int i) { return in[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15; }

// f16 scale of the scales, f16 scale of the offsets, 12 bytes of scales and offsets, 128 bytes of nibbles.
inline void decode_q4_k(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 144, out += 256)
    for (int i = 0; i < 256; i++) {
      const float scale = load_f16(in) * float(q4_k_scale(in + 4, i / 32));
      const float offset = load_f16(in + 2) * float(q4_k_offset(in + 4, i / 32));
      out[i] = scale * float(nibble_of_pairs(in + 16, i)) - offset;
    }
}

// As Q4_K, with 32 bytes before the nibbles: bit b of byte j is the fifth bit of weight 32 b + j.
inline void decode_q5_k(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 176, out += 256)
    for (int i = 0; i < 256; i++) {
      const float scale = load_f16(in) * float(q4_k_scale(in + 4, i / 32));
      const float offset = load_f16(in + 2) * float(q4_k_offset(in + 4, i / 32));
      const int high = in[16 + i % 32] >> (i / 32) & 1;
      out[i] = scale * float(nibble_of_pairs(in + 48, i) | high << 4) - offset;
    }
}

// 128 bytes of nibbles: 64 bytes hold 64 weights in their low nibbles and the next 64 in their high nibbles; 64 bytes
// with the upper 2 bits; 16 int8 scales; f16 scale of the scales. 32 represents 0.
inline void decode_q6_k(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 210, out += 256) {
    const float scale = load_f16(in + 208);
    for (int i = 0; i < 256; i++) {
      const int nibble = in[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
      const int code = (nibble | two_bits(in + 128, i) << 4) - 32;
      out[i] = scale * float(int8_t(in[192 + i / 16])) * float(code);
    }
  }
}

// f16 scale of the scales; uint16 with the upper 2 bits of 8 scales; 4 bytes with their lower nibbles, 32 represents 0;
// 8 times 16 bytes of nibbles as in IQ4_NL.
inline void decode_iq4_xs(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 136)
    for (int j = 0; j < 8; j++, out += 32) {
      const int low = in[4 + j / 2] >> (j % 2 * 4) & 15, high = load<uint16_t>(in + 2) >> (j * 2) & 3;
      decode_iq4_codes(in + 8 + j * 16, load_f16(in) * float((low | high << 4) - 32), out);
    }
}

// ====================================================================================================================
// The table of formats
// ====================================================================================================================

/// A number format.
struct DTypeInfo {
  const char* name;
  int block;        // weights per block
  int block_bytes;  // of their numbers and scales
  void (*decode)(const uint8_t* in, int64_t blocks, float* out);
};

/// The format of a type.
inline const DTypeInfo& dtype_info(DType type) {
  static constexpr DTypeInfo kTable[] = {
      {"F32", 1, 4, decode_f32},       {"F16", 1, 2, decode_f16},         {"BF16", 1, 2, decode_bf16},
      {"Q8_0", 32, 34, decode_q8_0},   {"Q4_0", 32, 18, decode_q4_0},     {"Q4_1", 32, 20, decode_q4_1},
      {"Q5_0", 32, 22, decode_q5_0},   {"Q5_1", 32, 24, decode_q5_1},     {"Q2_K", 256, 84, decode_q2_k},
      {"Q3_K", 256, 110, decode_q3_k}, {"Q4_K", 256, 144, decode_q4_k},   {"Q5_K", 256, 176, decode_q5_k},
      {"Q6_K", 256, 210, decode_q6_k}, {"IQ4_NL", 32, 18, decode_iq4_nl}, {"IQ4_XS", 256, 136, decode_iq4_xs},
      {"I8", 1, 1, decode_i8},
  };
  return kTable[int(type)];
}

}  // namespace pocket
