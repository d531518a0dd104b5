// Safetensors files: the header, and the places of all tensors.
#include "../../../export/safetensors.hpp"
#include "../target.hpp"
#include "safetensors_file.hpp"

namespace fuzz::safetensors {

using namespace pocket;

void run(std::string_view input) {
  static ReusedFile file("model.safetensors");
  Checkpoint c;
  FoundTensors found;
  std::string error;
  c.files.push_back(InputFile::open(file.write(input), error));
  if (!list_safetensors(c, 0, found, error)) return require(!error.empty(), "safetensors: an error");
  for (const auto& [name, t] : found)
    require(t.offset <= input.size() && t.bytes <= input.size() - t.offset, "safetensors: tensors within the file");
}

// The length of the header, up to its last brace.
void repair(std::string& input, size_t) {
  const size_t end = input.rfind('}');
  if (end == input.npos || end < 8) return;
  const uint64_t length = end + 1 - 8;
  std::memcpy(input.data(), &length, sizeof length);
}

std::vector<std::string> seeds() { return {safetensors_file({{"a.weight", {2, 3}}, {"b", {4}}, {"c", {}}})}; }

const Registered target({"safetensors", run, seeds, repair});

}  // namespace fuzz::safetensors
