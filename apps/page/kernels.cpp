// kernels.cpp: the forward pass and the kernels of the page: those of run.cpp, and a set for SIMD128 or relaxed SIMD. What a
// WebAssembly module may use is fixed when it is compiled, so there is a module for each.
#define POCKET_NO_MAIN
#define POCKET_DEFINE_KERNELS
#if defined(__wasm_simd128__)
#define POCKET_MORE_KERNELS
#endif
#include "../../run.cpp"

#if defined(__wasm_simd128__)
#include <wasm_simd128.h>

namespace pocket {
inline namespace POCKET_ISA {
namespace wasm {

using simd128::Bytes;
using simd128::Codes;
using simd128::Floats;
using simd128::Ints;

// Four rows at a time, as neon::Dotprod.
struct Simd128 {
#if defined(__wasm_relaxed_simd__)
  static constexpr const char* kName = "wasm-relaxed";
  POCKET_BODY static Floats fma(Floats a, Floats b, Floats c) { return __builtin_wasm_relaxed_madd_f32x4(a, b, c); }
#else
  static constexpr const char* kName = "wasm-simd128";
  // Doubles round twice. That is wrong only halfway between two floats, and for denormal results: rare cases.
  POCKET_BODY static Floats fma(Floats a, Floats b, Floats c) {
    typedef double Doubles __attribute__((vector_size(16)));
    const v128_t low = v128_t(Doubles{a[0], a[1]} * Doubles{b[0], b[1]} + Doubles{c[0], c[1]});
    const v128_t high = v128_t(Doubles{a[2], a[3]} * Doubles{b[2], b[3]} + Doubles{c[2], c[3]});
    const v128_t result =
        wasm_i64x2_shuffle(wasm_f32x4_demote_f64x2_zero(low), wasm_f32x4_demote_f64x2_zero(high), 0, 2);
    const v128_t halfway = wasm_i32x4_shuffle(low, high, 0, 2, 4, 6) << 3 == INT32_MIN;           // the last 29 bits
    const v128_t denormal = wasm_u32x4_lt((result << 1) - 1, wasm_i32x4_const_splat(0x1000000));  // and not zero
    if (__builtin_expect(!wasm_v128_any_true(halfway | denormal), 1)) return Floats(result);
    for (int i = 0; i < 4; i++) c[i] = pocket::fma(a[i], b[i], c[i]);
    return c;
  }
#endif
  // Whether it rounds once: the standard lets relaxed SIMD round twice.
  static bool supported() {
    const Floats a = Floats{} + (1 + 0x1p-23f), b = Floats{} + (0x1p-24f - 0x1p-47f);
    return fma(a, b, a)[3] == a[3];  // just below the middle of two floats
  }
  POCKET_BODY static Bytes lookup(Bytes table, Codes at) { return wasm_i8x16_swizzle(table, at); }
  POCKET_BODY static Floats load_floats(const int8_t* p) {
    const v128_t wide = wasm_i32x4_extend_low_i16x8(wasm_i16x8_extend_low_i8x16(wasm_v128_load32_zero(p)));
    return __builtin_convertvector(wide, Floats);
  }
  POCKET_BODY static void to_floats(Bytes bytes, Floats out[4]) {
    POCKET_FOR (i, 4) out[i] = load_floats(reinterpret_cast<const int8_t*>(&bytes) + 4 * i);
  }
  POCKET_BODY static Floats bf16_floats(const uint16_t* p) { return Floats(wasm_u32x4_load16x4(p) << 16); }
  // SIMD128 multiplies 16-bit numbers and adds pairs of products: two sums per row.
  template <int T> POCKET_BODY static void add_columns(Ints sum[T], const Bytes w[4], const Bytes x[T]) {
    POCKET_FOR (t, T) {
      v128_t low = {}, high = {};
      POCKET_FOR (i, 4) {
        const v128_t columns = wasm_i16x8_extend_low_i8x16(wasm_i32x4_splat(Ints(x[t])[i]));
        low += wasm_i32x4_dot_i16x8(wasm_i16x8_extend_low_i8x16(v128_t(w[i])), columns);
        high += wasm_i32x4_dot_i16x8(wasm_i16x8_extend_high_i8x16(v128_t(w[i])), columns);
      }
      sum[t] += wasm_i32x4_shuffle(low, high, 0, 2, 4, 6) + wasm_i32x4_shuffle(low, high, 1, 3, 5, 7);
    }
  }
};
using Columns = simd128::ByColumns<Simd128>;

}  // namespace wasm

template <> POCKET_BODY void Lanes<4>::load(const int8_t* p) { v = wasm::Simd128::load_floats(p); }
template <> POCKET_BODY void Lanes<4>::add_product(float a, const Lanes& b) {
  v = wasm::Simd128::fma(Floats{a, a, a, a}, b.v, v);
}

Kernels more_kernels() {
  return kernel_set<FloatScalar, 4>(wasm::Simd128::kName, wasm::Simd128::supported, nullptr,
                                    simd128::gemv_q4<wasm::Simd128>, simd128::dot_tokens<wasm::Columns, Type::q8>,
                                    kChunk);
}

}  // namespace POCKET_ISA
}  // namespace pocket
#endif
