// driver.cpp: connects libFuzzer (llvm.org/docs/LibFuzzer.html) with the target that is linked to it.
#include <cstdint>

#include "memory.hpp"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t longest);

// --seeds FOLDER: writes the seeds to this folder and ends.
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  if (*argc != 3 || std::string_view((*argv)[1]) != "--seeds") return 0;
  const std::filesystem::path folder = (*argv)[2];
  std::filesystem::create_directories(folder);
  int number = 0;
  for (const std::string& seed : fuzz::targets().front().seeds())
    std::ofstream(folder / ("seed" + std::to_string(number++)), std::ios::binary) << seed;
  std::exit(0);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::run(fuzz::targets().front(), {reinterpret_cast<const char*>(data), size});
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t longest, unsigned) {
  size = LLVMFuzzerMutate(data, size, longest);
  const fuzz::Target& target = fuzz::targets().front();
  if (!target.repair) return size;
  std::string input(reinterpret_cast<const char*>(data), size);
  target.repair(input, longest);
  std::copy(input.begin(), input.end(), data);
  return input.size();
}
