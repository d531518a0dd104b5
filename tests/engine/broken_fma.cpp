// broken_fma.cpp: the engine with two fma that round twice, like those of mingw-w64's C libraries: in a wider type, or
// in two parts. Opening a model fails with both.
#define POCKET_NO_MAIN
#include "../../run.cpp"

static bool in_parts = false;

extern "C" double fma(double a, double b, double c) noexcept {
  if (!in_parts) return double((long double)(a)*b + c);
  const double high = float(a);
  return double((high * b + c) + (a - high) * b);
}
extern "C" float fmaf(float a, float b, float c) noexcept {
  if (!in_parts) return float(double(a) * b + c);
  const float high = std::ldexp(std::trunc(std::ldexp(a, 11)), -11);
  return float(double(high) * b + c) + float(double(a - high) * b);
}

int main(int, char** argv) {
  pocket::Model model;
  for (const bool parts : {false, true}) {
    in_parts = parts;
    if (model.open(argv[1])) return 1;
    std::printf("%s\n", model.error.c_str());
    if (model.error.find("expected one rounding") == std::string::npos) return 1;
  }
}
