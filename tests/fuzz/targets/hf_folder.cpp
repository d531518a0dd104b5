// Folders of transformers. The input is config.json, generation_config.json, tokenizer_config.json, the index of shards
// ("": none) and tokenizer.json; the weights are always the same.
#include "../../../export/open_checkpoint.hpp"
#include "checkpoint_rows.hpp"
#include "safetensors_file.hpp"
#include "use_tokenizer.hpp"

namespace fuzz::hf_folder {

using namespace pocket;

// The tensors of a model with 1 layer, dim 4, hidden_dim 4, 2 heads and 5 tokens.
Shapes shapes() {
  Config c;
  c.dim = c.hidden_dim = 4;
  c.n_layers = 1;
  c.n_heads = c.n_kv_heads = c.head_dim = 2;
  c.vocab_size = 5;
  Shapes shapes;
  for (const TensorSpec& spec : tensor_specs(c)) {
    const std::string name = kHuggingFaceNames.names.name(spec.name);
    shapes.push_back({name, {spec.rows, spec.cols}});
    if (spec.layout == Layout::vector) shapes.back().second = {spec.cols};
  }
  return shapes;
}

void run(std::string_view input) {
  static const std::string path = folder().write("model.safetensors", safetensors_file(shapes()));
  static ReusedFile config("config.json"), generation("generation_config.json"), tokenizer("tokenizer_config.json"),
      pieces("tokenizer.json");
  const std::vector<std::string> parts = split(input, 5);
  config.write(parts[0]);
  generation.write(parts[1]);
  tokenizer.write(parts[2]);
  const std::string index = folder().file("model.safetensors.index.json");
  if (parts[3].empty())
    unlink(index.c_str());
  else
    folder().write("model.safetensors.index.json", parts[3]);
  pieces.write(parts[4]);
  Checkpoint c;
  std::string error;
  if (!open_checkpoint(path, "", c, error)) return require(!error.empty(), "transformers: an error");
  read_rows(c);
  if (c.has_tokenizer) use(c.vocabulary);
}

std::vector<std::string> seeds() {
  const std::string config = R"({"model_type": "llama", "hidden_size": 4, "intermediate_size": 4, "vocab_size": 5,
 "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "eos_token_id": [2, 3]})";
  const std::string generation = R"({"eos_token_id": 2})";
  const std::string tokenizer = R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": true,
 "tokenizer_class": "LlamaTokenizer", "chat_template": [{"name": "default", "template": "x"}]})";
  const std::string pieces = R"({"added_tokens": [{"id": 1, "content": "<s>", "special": true},
 {"id": 2, "content": "</s>", "special": true}], "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
 "model": {"vocab": {"a": 0, "b": 3, "ab": 4}, "merges": ["a b"]}})";
  std::string index;
  for (const auto& [name, shape] : shapes())
    index += (index.empty() ? "{\"weight_map\": {\"" : ", \"") + name + "\": \"model.safetensors\"";
  return {join({config, generation, tokenizer, "", pieces}),
          join({config, generation, tokenizer, index + "}}", pieces})};
}

const Registered target({"hf_folder", run, seeds});

}  // namespace fuzz::hf_folder
