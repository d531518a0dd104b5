// dtype.hpp: how checkpoints store numbers, and how to get float32 out of them.
//
// The block formats are those of ggml (github.com/ggml-org/ggml, ggml-common.h and ggml-quants.c): so many weights of a
// row are stored together, as small integers with a scale, and in some with an offset. What a block holds is drawn
// above its decoder, in the order of its bytes; a float16 is written f16. Every decoder multiplies and adds float32 in
// the order in which ggml does.
#pragma once

#include <cstdint>
#include <cstring>

#include "engine.hpp"

namespace pocket {

enum class DType { f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, i8 };
inline constexpr int kGgmlTypes = int(DType::iq4_xs) + 1;  // the first so many are found in GGUF files

// IEEE 754 binary16: 1 sign, 5 exponent, 10 mantissa bits.
inline float from_f16(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, rest = h & 0x7fff;
  const float tiny = float(rest) * 0x1p-24f;  // of a subnormal number
  uint32_t bits;
  if (rest >= 0x7c00)
    bits = 0x7f800000 | (rest & 0x3ff) << 13;  // infinite, or not a number
  else if (rest >= 0x400)
    bits = (rest + (112 << 10)) << 13;  // the exponent's bias is 15 here, 127 there
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
// Integers, whose scales lie elsewhere (StoredTensor::group).
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

// f16 scale, 16 bytes of nibbles: weight i is the low one of byte i, weight 16 + i its high one; 8 stands for 0.
inline void decode_q4_0(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 18, out += 32) {
    const float scale = load_f16(in);
    for (int i = 0; i < 16; i++) {
      out[i] = scale * float((in[2 + i] & 15) - 8);
      out[16 + i] = scale * float((in[2 + i] >> 4) - 8);
    }
  }
}

// f16 scale, f16 smallest weight, nibbles as before; 0 stands for the smallest.
inline void decode_q4_1(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 20, out += 32) {
    const float scale = load_f16(in), least = load_f16(in + 2);
    for (int i = 0; i < 16; i++) {
      out[i] = scale * float(in[4 + i] & 15) + least;
      out[16 + i] = scale * float(in[4 + i] >> 4) + least;
    }
  }
}

// Code i, 0 to 31, of 32 with 5 bits: bit i of 4 bytes is the highest of it; the nibbles behind them are the rest.
inline int code_of_5_bits(const uint8_t* in, int i) {
  const int nibble = i < 16 ? in[4 + i] & 15 : in[4 + i - 16] >> 4;
  return nibble | int(load<uint32_t>(in) >> i & 1) << 4;
}

// f16 scale, 32 codes of 5 bits; 16 stands for 0.
inline void decode_q5_0(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 22, out += 32) {
    const float scale = load_f16(in);
    for (int i = 0; i < 32; i++) out[i] = scale * float(code_of_5_bits(in + 2, i) - 16);
  }
}

// f16 scale, f16 smallest weight, 32 codes of 5 bits.
inline void decode_q5_1(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 24, out += 32) {
    const float scale = load_f16(in), least = load_f16(in + 2);
    for (int i = 0; i < 32; i++) out[i] = scale * float(code_of_5_bits(in + 4, i)) + least;
  }
}

// What the 16 codes of IQ4_NL and IQ4_XS stand for: steps that are finer near zero.
inline constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// 16 bytes of nibbles in the order of Q4_0, each looked up.
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
// Blocks of 256: "K quants", whose scales are quantized too
// ====================================================================================================================

// Code of weight i where 2 bits of each are stored in 64 bytes: 32 bytes are bits 0-1 of 32 weights, bits 2-3 of the
// next 32, and so on; the other 32 bytes are the second half of the block.
inline int two_bits(const uint8_t* in, int i) { return in[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3; }

// 16 bytes, one for 16 weights: scale in the low nibble, offset in the high one; 64 bytes of 2-bit codes; f16 scale of
// the scales, f16 scale of the offsets.
inline void decode_q2_k(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 84, out += 256) {
    const float scale = load_f16(in + 80), offset = load_f16(in + 82);
    for (int i = 0; i < 256; i++) {
      const uint8_t s = in[i / 16];
      out[i] = scale * float(s & 15) * float(two_bits(in + 16, i)) - offset * float(s >> 4);
    }
  }
}

// Scale j of 16 in 12 bytes, -32 to 31: nibbles as in Q4_0 are the lower bits; bits 2 (j / 4) of the last 4 bytes the
// upper ones.
inline int q3_k_scale(const uint8_t* in, int j) {
  const int low = j < 8 ? in[j] & 15 : in[j - 8] >> 4;
  return (low | (in[8 + j % 4] >> (j / 4 * 2) & 3) << 4) - 32;
}

// 32 bytes, bit b of byte j set: weight 32 b + j has nothing subtracted; 64 bytes of 2-bit codes, from which else 4 is;
// 12 bytes of scales; f16 scale of the scales.
inline void decode_q3_k(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 110, out += 256) {
    const float scale = load_f16(in + 108);
    for (int i = 0; i < 256; i++) {
      const int code = two_bits(in + 32, i) - (in[i % 32] >> (i / 32) & 1 ? 0 : 4);
      out[i] = scale * float(q3_k_scale(in + 96, i / 16)) * float(code);
    }
  }
}

// Scale and offset j of 8, 6 bits each, in 12 bytes: those of the first four are the low 6 bits of bytes j and 4 + j;
// of the others the nibbles of byte 4 + j, with the top 2 bits of bytes j - 4 and j above them.
inline int q4_k_scale(const uint8_t* in, int j) { return j < 4 ? in[j] & 63 : (in[j + 4] & 15) | in[j - 4] >> 6 << 4; }
inline int q4_k_offset(const uint8_t* in, int j) { return j < 4 ? in[j + 4] & 63 : in[j + 4] >> 4 | in[j] >> 6 << 4; }

// The nibble of weight i where 32 bytes hold 32 weights in their low nibbles and the next 32 in their high ones.
inline int nibble_of_pairs(const uint8_t* in, int i) { return in[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15; }

// f16 scale of the scales, f16 scale of the offsets, 12 bytes of them, 128 bytes of nibbles.
inline void decode_q4_k(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 144, out += 256)
    for (int i = 0; i < 256; i++) {
      const float scale = load_f16(in) * float(q4_k_scale(in + 4, i / 32));
      const float offset = load_f16(in + 2) * float(q4_k_offset(in + 4, i / 32));
      out[i] = scale * float(nibble_of_pairs(in + 16, i)) - offset;
    }
}

// The same with 32 bytes before the nibbles: bit b of byte j is the fifth of weight 32 b + j.
inline void decode_q5_k(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 176, out += 256)
    for (int i = 0; i < 256; i++) {
      const float scale = load_f16(in) * float(q4_k_scale(in + 4, i / 32));
      const float offset = load_f16(in + 2) * float(q4_k_offset(in + 4, i / 32));
      const int high = in[16 + i % 32] >> (i / 32) & 1;
      out[i] = scale * float(nibble_of_pairs(in + 48, i) | high << 4) - offset;
    }
}

// 128 bytes of nibbles: 64 bytes hold 64 weights in their low nibbles, the next 64 in their high ones; 64 bytes with
// the 2 bits above them; 16 int8 scales; f16 scale of the scales. 32 stands for 0.
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

// f16 scale of the scales; uint16 with the upper 2 bits of 8 scales; 4 bytes with their lower nibbles, 32 standing for
// 0; 8 times 16 bytes of nibbles as in IQ4_NL.
inline void decode_iq4_xs(const uint8_t* in, int64_t blocks, float* out) {
  for (; blocks > 0; blocks--, in += 136)
    for (int j = 0; j < 8; j++, out += 32) {
      const int low = in[4 + j / 2] >> (j % 2 * 4) & 15, high = load<uint16_t>(in + 2) >> (j * 2) & 3;
      decode_iq4_codes(in + 8 + j * 16, load_f16(in) * float((low | high << 4) - 32), out);
    }
}

// ====================================================================================================================
// All of them
// ====================================================================================================================

struct DTypeInfo {
  const char* name;
  int block;        // weights of a row that are stored together
  int block_bytes;  //
  void (*decode)(const uint8_t* in, int64_t blocks, float* out);
};

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
