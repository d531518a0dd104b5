// driver.cpp: connects libFuzzer (llvm.org/docs/LibFuzzer.html) with the target of this program's name.
#include <cstdint>

#include "memory.hpp"
#include "targets/all.hpp"

// Set by LLVMFuzzerInitialize().
static const fuzz::Target* target = nullptr;

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t longest);

// --seeds FOLDER: writes the seeds to this folder and ends.
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  const std::string name = std::filesystem::path((*argv)[0]).filename().string();
  for (const fuzz::Target& t : fuzz::targets())
    if (t.name == name) target = &t;
  if (!target) {
    std::fprintf(stderr, "%s: expected a program with the name of a target, such as json\n", (*argv)[0]);
    std::exit(2);
  }
  if (*argc != 3 || std::string_view((*argv)[1]) != "--seeds") return 0;
  const std::filesystem::path folder = (*argv)[2];
  std::filesystem::create_directories(folder);
  int number = 0;
  for (const std::string& seed : target->seeds())
    std::ofstream(folder / ("seed" + std::to_string(number++)), std::ios::binary) << seed;
  std::exit(0);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::run(*target, {reinterpret_cast<const char*>(data), size});
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t longest, unsigned) {
  size = LLVMFuzzerMutate(data, size, longest);
  if (!target->repair) return size;
  std::string input(reinterpret_cast<const char*>(data), size);
  target->repair(input, longest);
  std::copy(input.begin(), input.end(), data);
  return input.size();
}
