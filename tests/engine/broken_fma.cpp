// broken_fma.cpp: the engine with an fma that rounds twice, like that of mingw-w64's C library. Opening a model fails.
#define POCKET_NO_MAIN
#include "../../run.cpp"

extern "C" double fma(double a, double b, double c) noexcept { return double((long double)(a)*b + c); }
extern "C" float fmaf(float a, float b, float c) noexcept { return float(double(a) * b + c); }

int main(int, char** argv) {
  pocket::Model model;
  if (model.open(argv[1])) return 0;
  std::printf("%s\n", model.error.c_str());
  return 1;
}
