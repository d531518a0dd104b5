// llama_names.hpp: the tensor names of Llamas in safetensors and PyTorch files: Hugging Face's transformers, lit-gpt
// (which TinyLlama was trained with), and Meta's code, whose names llama2.c uses.
#pragma once

#include <cstring>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint.hpp"

namespace pocket {

/// A naming scheme.
struct LlamaNames {
  TensorNames names;
  bool interleaved;  // the order of wq's and wk's rows, as in StoredTensor::interleaved_heads
};

inline constexpr LlamaNames kHuggingFaceNames = {{"model.embed_tokens.weight",
                                                  "model.layers.",
                                                  {{{"attention_norm", ".input_layernorm.weight"},
                                                    {"wq", ".self_attn.q_proj.weight"},
                                                    {"wk", ".self_attn.k_proj.weight"},
                                                    {"wv", ".self_attn.v_proj.weight"},
                                                    {"wo", ".self_attn.o_proj.weight"},
                                                    {"ffn_norm", ".post_attention_layernorm.weight"},
                                                    {"w1", ".mlp.gate_proj.weight"},
                                                    {"w3", ".mlp.up_proj.weight"},
                                                    {"w2", ".mlp.down_proj.weight"},
                                                    {"bq", ".self_attn.q_proj.bias"},
                                                    {"bk", ".self_attn.k_proj.bias"},
                                                    {"bv", ".self_attn.v_proj.bias"},
                                                    {"bo", ".self_attn.o_proj.bias"},
                                                    {"q_norm", ".self_attn.q_norm.weight"},
                                                    {"k_norm", ".self_attn.k_norm.weight"},
                                                    {"b1", ".mlp.gate_proj.bias"},
                                                    {"b3", ".mlp.up_proj.bias"},
                                                    {"b2", ".mlp.down_proj.bias"}}},
                                                  "model.norm.weight",
                                                  "lm_head.weight"},
                                                 false};

// lit-gpt (github.com/Lightning-AI/litgpt, lit_gpt/model.py) rotates the halves of a head, as Hugging Face does. wq, wk
// and wv are one tensor, which split_fused() splits into three with these names.
inline constexpr LlamaNames kLitGptNames = {{"transformer.wte.weight",
                                             "transformer.h.",
                                             {{{"attention_norm", ".norm_1.weight"},
                                               {"wq", ".attn q"},
                                               {"wk", ".attn k"},
                                               {"wv", ".attn v"},
                                               {"wo", ".attn.proj.weight"},
                                               {"ffn_norm", ".norm_2.weight"},
                                               {"w1", ".mlp.fc_1.weight"},
                                               {"w3", ".mlp.fc_2.weight"},
                                               {"w2", ".mlp.proj.weight"}}},
                                             "transformer.ln_f.weight",
                                             "lm_head.weight"},
                                            false};

// The version of TinyLlama (github.com/jzhang38/TinyLlama, lit_gpt/model.py): its feed-forward block is xformers'
// SwiGLU, where w2 is the up and w3 the down projection, the reverse of Meta's names.
inline constexpr LlamaNames kTinyLlamaNames = {{"transformer.wte.weight",
                                                "transformer.h.",
                                                {{{"attention_norm", ".norm_1.weight"},
                                                  {"wq", ".attn q"},
                                                  {"wk", ".attn k"},
                                                  {"wv", ".attn v"},
                                                  {"wo", ".attn.proj.weight"},
                                                  {"ffn_norm", ".norm_2.weight"},
                                                  {"w1", ".mlp.swiglu.w1.weight"},
                                                  {"w3", ".mlp.swiglu.w2.weight"},
                                                  {"w2", ".mlp.swiglu.w3.weight"}}},
                                                "transformer.ln_f.weight",
                                                "lm_head.weight"},
                                               false};

inline constexpr LlamaNames kMetaNames = {{"tok_embeddings.weight",
                                           "layers.",
                                           {{{"attention_norm", ".attention_norm.weight"},
                                             {"wq", ".attention.wq.weight"},
                                             {"wk", ".attention.wk.weight"},
                                             {"wv", ".attention.wv.weight"},
                                             {"wo", ".attention.wo.weight"},
                                             {"ffn_norm", ".ffn_norm.weight"},
                                             {"w1", ".feed_forward.w1.weight"},
                                             {"w3", ".feed_forward.w3.weight"},
                                             {"w2", ".feed_forward.w2.weight"}}},
                                           "norm.weight",
                                           "output.weight"},
                                          true};

/// The naming scheme of these tensors; Hugging Face's if it is unknown, so that messages use its names.
inline const LlamaNames& names_of(const FoundTensors& found) {
  const LlamaNames* best = &kHuggingFaceNames;
  for (const LlamaNames* n : {&kHuggingFaceNames, &kLitGptNames, &kTinyLlamaNames, &kMetaNames}) {
    if (found.count(n->names.token_embedding) == 0) continue;
    best = n;
    if (found.count(n->names.name("layers.0.w1")) > 0) break;
  }
  return *best;
}

/// Splits lit-gpt's fused attention tensors. Each holds for every KV head its query heads, its key and its value
/// (attn.attn) or, since 2024, all queries, all keys, all values (attn.qkv).
inline bool split_fused(const Checkpoint& c, FoundTensors& found, std::string& error) {
  const Config& k = c.config;
  const TensorNames& names = kLitGptNames.names;
  for (int l = 0; l < k.n_layers; l++) {
    const std::string layer = names.layers + std::to_string(l);
    const std::vector<std::pair<std::string, int64_t>> parts = {{layer + names.suffix("wq"), k.q_dim()},
                                                                {layer + names.suffix("wk"), k.kv_dim()},
                                                                {layer + names.suffix("wv"), k.kv_dim()}};
    if (!split_rows(c, layer + ".attn.attn.weight", k.dim, parts, found, error, k.n_kv_heads) ||
        !split_rows(c, layer + ".attn.qkv.weight", k.dim, parts, found, error))
      return false;
  }
  return true;
}

/// Splits Phi-3's fused matrices: q, k and v; gate and up.
inline bool split_phi3(const Checkpoint& c, FoundTensors& found, std::string& error) {
  const Config& k = c.config;
  for (int l = 0; l < k.n_layers; l++) {
    const std::string layer = kHuggingFaceNames.names.layers + std::to_string(l), attention = layer + ".self_attn.";
    if (!split_rows(c, attention + "qkv_proj.weight", k.dim,
                    {{attention + "q_proj.weight", k.q_dim()},
                     {attention + "k_proj.weight", k.kv_dim()},
                     {attention + "v_proj.weight", k.kv_dim()}},
                    found, error) ||
        !split_rows(c, layer + ".mlp.gate_up_proj.weight", k.dim,
                    {{layer + ".mlp.gate_proj.weight", k.hidden_dim}, {layer + ".mlp.up_proj.weight", k.hidden_dim}},
                    found, error))
      return false;
  }
  return true;
}

/// Removes tensors that follow from the configuration.
inline void drop_derivable(FoundTensors& found) {
  for (auto it = found.begin(); it != found.end();)
    it = is_derivable(it->first, it->second.shape) ? found.erase(it) : std::next(it);
}

/// Adds "model." to the names of a model that was saved without its output matrix, as transformers' LlamaModel instead of
/// LlamaForCausalLM. Its output is then the embedding.
inline void name_base_model(Checkpoint& c, FoundTensors& found, const std::string& where) {
  const std::string prefix = "model.", embedding = kHuggingFaceNames.names.token_embedding;
  if (found.count(embedding.substr(prefix.size())) == 0 || found.count(embedding) > 0) return;
  FoundTensors named;
  for (auto& [name, t] : found) {
    const bool head = name.rfind("lm_head.", 0) == 0;
    named[(head ? "" : prefix) + name] = std::move(t);
  }
  found = std::move(named);
  if (c.config.tied || found.count(kHuggingFaceNames.names.output) > 0) return;
  c.config.tied = true;
  c.notes.push_back(where +
                    ": a base model without an output matrix (lm_head.weight); the embedding is used in its place, "
                    "which is right for models with tied embeddings only");
}

/// Whether two tensors of c have the same values. They have the same shape.
inline bool same_values(const Checkpoint& c, const std::string& a, const std::string& b, bool& same,
                        std::string& error) {
  const StoredTensor &x = c.tensors.at(a), &y = c.tensors.at(b);
  same = x.file == y.file && x.offset == y.offset && x.dtype == y.dtype;
  if (same) return true;
  std::vector<float> row_a(size_t(x.cols)), row_b(size_t(x.cols));
  same = true;
  for (int64_t r = 0; r < x.rows && same; r++) {
    if (!c.read_rows(a, r, 1, row_a.data(), error) || !c.read_rows(b, r, 1, row_b.data(), error)) return false;
    same = std::memcmp(row_a.data(), row_b.data(), row_a.size() * sizeof(float)) == 0;
  }
  return true;
}

/// Finds every tensor of the model. An output matrix in a checkpoint whose configuration says that it is the embedding
/// was trained if it differs from the embedding; then it is kept. interleaved: rows of wq and wk are in this order even
/// with names of Hugging Face.
inline bool bind_llama(Checkpoint& c, FoundTensors& found, const std::string& where, bool interleaved,
                       std::string& error) {
  drop_derivable(found);
  name_base_model(c, found, where);
  const LlamaNames& n = names_of(found);
  const bool compare = c.config.tied && found.count(n.names.output) > 0;
  if (compare) c.config.tied = false;
  if (!split_fused(c, found, error) || !split_phi3(c, found, error) ||
      !bind_tensors(c, n.names, n.interleaved || interleaved, found, where, error))
    return false;
  if (!compare) return true;
  if (!same_values(c, "output", "token_embedding", c.config.tied, error)) return false;
  if (c.config.tied)
    c.tensors["output"] = c.tensors["token_embedding"];
  else
    c.notes.push_back(
        text_of({where, ": tensor ", n.names.output,
                 " differs from the embedding, though the configuration says that they are the same; it is kept"}));
  return true;
}

}  // namespace pocket
