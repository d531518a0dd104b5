// Folders of transformers. The input is config.json, generation_config.json, tokenizer_config.json, the index of shards
// ("": none) and tokenizer.json; the weights are those of a Llama or, if config.json contains the name, of a relative.
#include "../../../export/open_checkpoint.hpp"
#include "checkpoint_rows.hpp"
#include "safetensors_file.hpp"
#include "use_tokenizer.hpp"

namespace fuzz::hf_folder {

using namespace pocket;

// The tensors of a model with 1 layer, dim 4, hidden_dim 4, 2 heads and 5 tokens.
Shapes shapes(const std::string& type = "") {
  Config c;
  c.dim = c.hidden_dim = 4;
  c.n_layers = 1;
  c.n_heads = c.n_kv_heads = c.head_dim = 2;
  c.vocab_size = 5;
  c.qkv_bias = type == "qwen2" || type == "ernie4_5";
  c.o_bias = c.mlp_bias = type == "ernie4_5";
  c.qk_norm = type == "qwen3";
  Shapes shapes;
  for (const TensorSpec& spec : tensor_specs(c)) {
    const std::string name = kHuggingFaceNames.names.name(spec.name);
    shapes.push_back({name, {spec.rows, spec.cols}});
    if (spec.layout == Layout::vector) shapes.back().second = {spec.cols};
    if (type != "phi3") continue;
    const bool attention = name.find("q_proj") != std::string::npos, ffn = name.find("gate_proj") != std::string::npos;
    if (attention) shapes.back() = {"model.layers.0.self_attn.qkv_proj.weight", {12, 4}};
    if (ffn) shapes.back() = {"model.layers.0.mlp.gate_up_proj.weight", {8, 4}};
    for (const char* fused : {"k_proj", "v_proj", ".up_proj"})
      if (name.find(fused) != std::string::npos) shapes.pop_back();
  }
  return shapes;
}

// The path of weights for a configuration.
std::string weights_for(const std::string& config) {
  static const char* kTypes[] = {"qwen2", "qwen3", "ernie4_5", "phi3"};
  static const bool written = [] {
    folder().write("model.safetensors", safetensors_file(shapes()));
    for (const char* type : kTypes) folder().write(type + std::string(".safetensors"), safetensors_file(shapes(type)));
    return true;
  }();
  std::string name = written ? "model" : "";
  for (const char* type : kTypes)
    if (config.find(type) != std::string::npos) name = type;
  return folder().file(name + ".safetensors");
}

void run(std::string_view input) {
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
  if (!open_checkpoint(weights_for(std::string(parts[0])), "", c, error))
    return require(!error.empty(), "transformers: an error");
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
  std::vector<std::string> all = {join({config, generation, tokenizer, "", pieces}),
                                  join({config, generation, tokenizer, index + "}}", pieces})};
  for (const char* type : {"qwen2", "qwen3", "smollm3", "granite", "phi3", "ernie4_5", "minicpm"}) {
    std::string relative = config;
    relative.replace(relative.find("llama"), 5, type);
    const char* more = R"("head_dim": 2, "use_bias": true, "tie_word_embeddings": false, "embedding_multiplier": 3,
 "scale_emb": 3, )";
    all.push_back(join({relative.insert(1, more), generation, tokenizer, "", pieces}));
  }
  return all;
}

const Registered target({"hf_folder", run, seeds});

}  // namespace fuzz::hf_folder
