// fma.hpp: a * b + c of floats, rounded once, for WebAssembly, which has no such instruction. emscripten's fmaf rounds
// twice. POCKET_FMA names this function for run.cpp.
#pragma once

#include <cmath>
#include <cstdint>

namespace pocket_wasm {

// As doubles the product is exact, and the sum is rounded to odd: toward zero, then the last bit is set if any was lost.
// Rounding that once more is right (Boldo et al. 2008). Without a branch, so that compilers vectorize it.
inline float fma(float a, float b, float c) {
  const double p = double(a) * b, s = p + c, t = s - p, lost = (p - (s - t)) + (c - t);
  const uint64_t bits = __builtin_bit_cast(uint64_t, s), inexact = std::fabs(lost) > 0;
  const uint64_t away = (bits ^ __builtin_bit_cast(uint64_t, lost)) >> 63;
  return float(__builtin_bit_cast(double, (bits - (inexact & away)) | inexact));
}

}  // namespace pocket_wasm
