// tiny_llama.hpp: a model file of a Llama with a dozen tokens.
#pragma once

#include "../../../export/model_writer.hpp"
#include "../target.hpp"

namespace fuzz {

inline pocket::Config tiny_config() {
  pocket::Config c;
  c.dim = c.hidden_dim = 8;
  c.n_layers = 1;
  c.n_heads = 2;
  c.n_kv_heads = 1;
  c.head_dim = 4;
  c.vocab_size = 12;
  c.max_seq_len = 16;
  return c;
}

// Writes a model with some weights, and returns its bytes.
inline std::string write_model(const pocket::ModelParts& parts) {
  const auto rows = [](const pocket::TensorSpec& spec, int64_t first, int64_t count, float* out, std::string&) {
    for (int64_t i = 0; i < count * spec.cols; i++) out[i] = float((first * 31 + i * 17) % 13 - 6) / 8;
    return true;
  };
  pocket::ModelWriter writer;
  const std::string path = folder().file("written.bin");
  require(writer.write(path, parts, rows, nullptr), writer.error.c_str());
  return read_file(path);
}

inline std::string tiny_llama(pocket::Type type) {
  pocket::ModelParts parts;
  parts.config = tiny_config();
  parts.type = type;
  parts.threads = 1;
  return write_model(parts);
}

}  // namespace fuzz
