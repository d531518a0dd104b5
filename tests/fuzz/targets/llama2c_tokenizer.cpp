// tokenizer.bin of llama2.c. The first byte is the model's vocab_size.
#include "../../../export/llama2c.hpp"
#include "use_tokenizer.hpp"

namespace fuzz::llama2c_tokenizer {

using namespace pocket;

void run(std::string_view input) {
  if (input.empty()) return;
  Tokenizer::Vocabulary vocabulary;
  std::string error;
  if (!read_llama2c_tokenizer("tokenizer.bin", input.substr(1), uint8_t(input[0]), vocabulary, error))
    return require(!error.empty(), "tokenizer.bin: an error");
  use(vocabulary);
}

std::vector<std::string> seeds() {
  std::string file = "\x05" + raw(int32_t(8));
  for (const char* text : {"<unk>", "\n<s>\n", "\n</s>\n", " a", "b"})
    file += raw(-1.f) + raw(int32_t(std::strlen(text))) + text;
  return {file};
}

const Registered target({"llama2c_tokenizer", run, seeds});

}  // namespace fuzz::llama2c_tokenizer
