// kernels.cpp: the forward pass and the kernels that all programs of this project link: those of run.cpp, and on 64-bit ARM
// a set for the instruction smmla, which multiplies prompts faster than the dot products there.
#define POCKET_NO_MAIN
#define POCKET_DEFINE_KERNELS
#if defined(__aarch64__)
#define POCKET_MORE_KERNELS
#endif
#include "../run.cpp"

#if defined(__aarch64__)
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace pocket {
inline namespace POCKET_ISA {
namespace neon {

// As POCKET_DOTPROD.
#if defined(__clang__)
#define POCKET_I8MM __attribute__((target("i8mm")))
#else
#define POCKET_I8MM __attribute__((target("arch=armv8.2-a+i8mm")))
#endif

inline bool has_i8mm() {
#if defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_I8MM", &has, &size, nullptr, 0) == 0 && has;
#else
  return getauxval(AT_HWCAP2) >> 13 & 1;
#endif
}

// As smmla takes them.
inline void unpack_q4(const uint8_t* codes, const uint8_t* scales, const int8_t values[16], int cols,
                      uint8_t* out_codes, float* out_scales) {
  const simd128::Bytes table = load<simd128::Bytes>(values);
  for (int v = 0; v < cols / 8; v++)
    POCKET_FOR (j, 4) {
      simd128::Bytes w[2];
      simd128::lookup_pairs<Dotprod>(table, codes + 64 * v + 16 * j, w);
      const int32x4x2_t lanes = {{vreinterpretq_s32_s8(w[0]), vreinterpretq_s32_s8(w[1])}};
      // A lane of one, a lane of the other: 8 consecutive columns of a row.
      vst2q_s32(reinterpret_cast<int32_t*>(out_codes + 128 * v + 32 * j), lanes);
    }
  for (int g = 0; g < cols / kGroup; g++) {
    simd128::Floats m[4];
    simd128::scales_q4<Dotprod>(scales + g / 2 * 16, g & 1, m);
    POCKET_FOR (j, 4) simd128::store(out_scales + 16 * g + 4 * j, m[j]);
  }
}
struct I8mm : Dotprod {
  // The sums of two rows and two tokens (row 0 with both, row 1 with both) + their products over eight columns.
  POCKET_BODY static int32x4_t smmla(int32x4_t sum, int8x16_t w, int8x16_t x) {
    asm volatile("smmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(w), "w"(x));
    return sum;
  }
  template <Type type, int T>
  POCKET_BODY static void multiply(const int8_t* codes, const Activations& x, int k, simd128::Ints (*sum)[T]) {
    constexpr int kPairs = (T + 1) / 2;  // of tokens; an odd last one is computed twice and stored once
    int32x4_t square[8][kPairs] = {};    // rows 2i and 2i + 1, and two tokens
    for (int end = k + kGroup; k < end; k += 8, codes += 128) {
      int8x16_t xq[kPairs];
      POCKET_FOR (p, kPairs)
        xq[p] = vcombine_s8(vld1_s8(x.token(2 * p).q + k), vld1_s8(x.token(std::min(2 * p + 1, T - 1)).q + k));
      POCKET_FOR (j, 4) {
        int32x4x2_t w;
        if (type == Type::q4)
          POCKET_FOR (i, 2) w.val[i] = vreinterpretq_s32_s8(vld1q_s8(codes + 32 * j + 16 * i));
        else
          w = vzipq_s32(vreinterpretq_s32_s8(vld1q_s8(codes + 16 * j)),
                        vreinterpretq_s32_s8(vld1q_s8(codes + 64 + 16 * j)));
        POCKET_FOR (i, 2)
          POCKET_FOR (p, kPairs) {
            int32x4_t& s = square[2 * j + i][p];
            s = smmla(s, vreinterpretq_s8_s32(w.val[i]), xq[p]);
          }
      }
    }
    POCKET_FOR (j, 4)
      POCKET_FOR (t, T) {
        const int32x4_t a = square[2 * j][t / 2], b = square[2 * j + 1][t / 2];
        sum[j][t] = t % 2 ? vuzp2q_s32(a, b) : vuzp1q_s32(a, b);
      }
  }
};

// A single token leaves half of smmla idle: for q8 sdot is faster.
POCKET_I8MM inline void dot_i8mm(const BlockProduct& p) {
  if (p.type == Type::q4) return simd128::dot_tokens<I8mm, Type::q4>(p);
  p.n == 1 ? dot(p) : simd128::dot_tokens<I8mm, Type::q8>(p);
}

}  // namespace neon

Kernels more_kernels() {
  const auto supported = [] { return neon::has_dotprod() && neon::has_i8mm(); };
  return kernel_set<FloatScalar, 4>("neon-i8mm", supported, neon::unpack_q4, neon::gemv_q4, neon::dot_i8mm);
}

}  // namespace POCKET_ISA
}  // namespace pocket
#endif
