// Checkpoints of llama2.c.
#include "../../../export/llama2c.hpp"
#include "checkpoint_rows.hpp"

namespace fuzz::llama2c {

using namespace pocket;

std::unique_ptr<InputFile> input_file(std::string_view input) {
  static ReusedFile file("model.bin");
  std::string error;
  return InputFile::open(file.write(input), error);
}

void run(std::string_view input) {
  Checkpoint c;
  std::string error;
  if (!open_llama2c(input_file(input), c, error)) return require(!error.empty(), "llama2.c: an error");
  read_rows(c);
}

// The size of the file, which must be that of the tensors.
void repair(std::string& input, size_t longest) {
  Checkpoint c;
  Llama2cHeader header;
  std::string error;
  const auto file = input_file(input);
  if (!read_llama2c_header(*file, header, c.config, error) || c.config.n_layers > 4) return;
  const uint64_t expected = Llama2cLayout(c, header, Llama2cScales::after_matrix).place();
  if (expected <= longest) input.resize(size_t(expected), '\1');
}

// Versions 0, 1 and 2: dim 4, hidden_dim 4, 1 layer, 2 heads, 3 tokens, 2 positions.
std::vector<std::string> seeds() {
  std::vector<std::string> all(3);
  for (int32_t version = 0; version < 3; version++) {
    std::string& file = all[size_t(version)];
    if (version > 0) file = "24ka" + raw(version);
    for (const int32_t n : {4, 4, 1, 2, 2, 3, 2}) file += raw(n);
    if (version > 0) file += '\1';
    if (version == 2) file += raw(int32_t(4));
    if (version > 0) file.resize(256);
    repair(file, 4096);
  }
  return all;
}

const Registered target({"llama2c", run, seeds, repair});

}  // namespace fuzz::llama2c
