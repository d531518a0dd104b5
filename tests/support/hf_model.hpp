// hf_model.hpp: small models in the format of Hugging Face's transformers: config.json, tensors with names and shapes,
// and the bytes of a .safetensors file.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "tiny_model.hpp"

namespace hf {

using Json = nlohmann::json;

inline Json small_config() {
  return {{"model_type", "llama"},
          {"hidden_size", 8},
          {"intermediate_size", 6},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"vocab_size", 5},
          {"rms_norm_eps", 0.25},
          {"rope_theta", 500000.0},
          {"max_position_embeddings", 16},
          {"attention_bias", false},
          {"hidden_act", "silu"},
          {"tie_word_embeddings", false},
          {"torch_dtype", "float32"}};
}

struct Weights {
  std::vector<int> shape;
  std::vector<float> numbers;
};
using AllWeights = std::map<std::string, Weights>;

/// The tensor names of a Llama in transformers and in the engine.
inline std::vector<std::pair<std::string, std::string>> names(int layers) {
  std::vector<std::pair<std::string, std::string>> all = {{"model.embed_tokens.weight", "token_embedding"},
                                                          {"model.norm.weight", "final_norm"},
                                                          {"lm_head.weight", "output"}};
  for (int l = 0; l < layers; l++)
    for (const auto& [theirs, ours] : {std::pair{"input_layernorm", "attention_norm"},
                                       {"self_attn.q_proj", "wq"},
                                       {"self_attn.k_proj", "wk"},
                                       {"self_attn.v_proj", "wv"},
                                       {"self_attn.o_proj", "wo"},
                                       {"post_attention_layernorm", "ffn_norm"},
                                       {"mlp.gate_proj", "w1"},
                                       {"mlp.up_proj", "w3"},
                                       {"mlp.down_proj", "w2"}})
      all.push_back(
          {"model.layers." + std::to_string(l) + "." + theirs + ".weight", "layers." + std::to_string(l) + "." + ours});
  return all;
}

inline Weights random_weights(const std::vector<int>& shape, uint64_t seed) {
  tiny::Random random(seed);
  Weights w{shape, {}};
  size_t n = 1;
  for (int s : shape) n *= size_t(s);
  for (size_t i = 0; i < n; i++) w.numbers.push_back(random.normal());
  return w;
}

inline AllWeights weights_of(const Json& c) {
  const int dim = c["hidden_size"], hidden = c["intermediate_size"], heads = c["num_attention_heads"];
  const int head = c.value("head_dim", dim / heads), q = heads * head,
            kv = c.value("num_key_value_heads", heads) * head;
  const int vocab = c["vocab_size"];
  const std::map<std::string, std::vector<int>> shapes = {{"attention_norm", {dim}},
                                                          {"ffn_norm", {dim}},
                                                          {"final_norm", {dim}},
                                                          {"wq", {q, dim}},
                                                          {"wk", {kv, dim}},
                                                          {"wv", {kv, dim}},
                                                          {"wo", {dim, q}},
                                                          {"w1", {hidden, dim}},
                                                          {"w3", {hidden, dim}},
                                                          {"w2", {dim, hidden}},
                                                          {"token_embedding", {vocab, dim}},
                                                          {"output", {vocab, dim}}};
  AllWeights all;
  for (const auto& [theirs, ours] : names(c["num_hidden_layers"]))
    all[theirs] = random_weights(shapes.at(ours.substr(ours.rfind('.') + 1)), all.size());
  return all;
}

inline std::string safetensors_of(const AllWeights& weights) {
  Json header = Json::object();
  std::string data;
  for (const auto& [name, w] : weights) {
    const size_t begin = data.size();
    data.append(reinterpret_cast<const char*>(w.numbers.data()), w.numbers.size() * 4);
    header[name] = {{"dtype", "F32"}, {"shape", w.shape}, {"data_offsets", {begin, data.size()}}};
  }
  const std::string text = header.dump();
  const uint64_t n = text.size();
  return std::string(reinterpret_cast<const char*>(&n), 8) + text + data;
}

}  // namespace hf
