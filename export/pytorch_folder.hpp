// pytorch_folder.hpp: PyTorch checkpoints without Hugging Face's config.json: of lit-gpt (TinyLlama), with
// lit_config.json; of Meta, with params.json; and of llama2.c's train.py, whose configuration is in the file itself.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "safetensors.hpp"

namespace pocket {

/// Reads from the tensors what these configurations lack: the sizes of vocabulary and feed-forward block, and whether
/// the output matrix is the embedding.
inline bool read_shapes(const Checkpoint& c, const FoundTensors& found, Config& k, std::string& error) {
  const TensorNames& names = names_of(found).names;
  const std::string w1 = names.layers + std::string("0") + names.of_layer[6];
  const struct {
    std::string name;
    int& into;
  } sizes[] = {{names.token_embedding, k.vocab_size}, {w1, k.hidden_dim}};
  for (const auto& [name, into] : sizes) {
    const auto it = found.find(name);
    if (it == found.end() || it->second.shape.size() != 2)
      return fail(error, {c.files[0]->path(), ": tensor ", name, ": expected a matrix, found ",
                          (it == found.end() ? "no such tensor" : shape_text(it->second.shape))});
    into = int(std::min<int64_t>(it->second.shape[0], INT32_MAX));
  }
  const FoundTensor& embedding = found.at(names.token_embedding);
  const auto output = found.find(names.output);
  k.tied =
      output == found.end() || (output->second.file == embedding.file && output->second.offset == embedding.offset &&
                                output->second.shape == embedding.shape);
  return true;
}

/// Reads the numbers of heads and sets head_dim.
inline bool read_heads(const JsonValue& root, const char* heads, const char* kv_heads, Config& k, std::string& error) {
  constexpr int kAny = INT32_MAX;  // check_config() has the limits
  if (!root.need(heads, JsonKind::number, error) || !root.get(heads, 0, kAny, k.n_heads, error)) return false;
  k.n_kv_heads = k.n_heads;
  if (k.n_heads < 1 || k.dim % k.n_heads) return root.refuse(heads, {"a divisor of ", k.dim}, error);
  k.head_dim = k.dim / k.n_heads;
  return root.get(kv_heads, 0, kAny, k.n_kv_heads, error);
}

inline constexpr FieldNames kLitGptFields = {{{"dim", "n_embd"},
                                              {"n_layers", "n_layer"},
                                              {"n_heads", "n_head"},
                                              {"n_kv_heads", "n_query_groups"},
                                              {"max_seq_len", "block_size"},
                                              {"rope_factor", "condense_ratio"}}};

/// Rejects other architectures. lit-gpt supports many, and its defaults are not a Llama's, so these settings are
/// required.
inline bool check_lit_gpt_variant(const JsonValue& root, std::string& error) {
  const struct {
    const char* key;
    bool needed;
  } flags[] = {{"parallel_residual", true}, {"bias", true}, {"shared_attention_norm", false}};
  for (const auto& [key, needed] : flags) {
    bool value = false;
    if ((needed && !root.need(key, JsonKind::boolean, error)) || !root.get(key, value, error)) return false;
    if (value) return root.refuse(key, "false", error);
  }
  double rotated = 0;
  if (!root.need("rotary_percentage", JsonKind::number, error) || !root.get("rotary_percentage", rotated, error))
    return false;
  if (rotated != 1) return root.refuse("rotary_percentage", "1", error);
  const std::string norm = root.find("_norm_class").string(), mlp = root.find("_mlp_class").string();
  if (norm != "RMSNorm" && norm != "FusedRMSNorm") return root.refuse("_norm_class", "\"RMSNorm\"", error);
  return mlp == "LLaMAMLP" || root.refuse("_mlp_class", "\"LLaMAMLP\"", error);
}

/// Reads lit_config.json.
inline bool read_lit_gpt_config(const JsonValue& root, Config& k, std::string& error) {
  if (!check_lit_gpt_variant(root, error)) return false;
  constexpr int kAny = INT32_MAX;
  for (const char* key : {"n_embd", "n_layer", "block_size"})
    if (!root.need(key, JsonKind::number, error)) return false;
  double eps = 1e-5, theta = 10000, condensed = 1;
  if (!root.get("n_embd", 0, kAny, k.dim, error) || !root.get("n_layer", 0, kAny, k.n_layers, error) ||
      !root.get("block_size", 0, kAny, k.max_seq_len, error) || !root.get("norm_eps", eps, error) ||
      !root.get("rope_base", theta, error) || !root.get("condense_ratio", condensed, error))
    return false;
  k.norm_eps = float(eps);
  k.rope_theta = float(theta);
  if (condensed != 1) k.rope_scaling = RopeScaling::linear;
  k.rope_factor = float(condensed);
  return read_heads(root, "n_head", "n_query_groups", k, error);
}

/// The context length of Meta's models. params.json does not contain it; the other settings identify the model.
inline int meta_context(double eps, double theta) {
  if (theta == 1e6) return 16384;    // Code Llama
  if (theta == 500000) return 8192;  // Llama 3
  return eps == 1e-5 ? 4096 : 2048;  // Llama 2, Llama 1
}

/// Reads params.json, or the configuration in a checkpoint of llama2.c.
inline bool read_meta_config(const JsonValue& root, Config& k, std::string& error) {
  constexpr int kAny = INT32_MAX;
  for (const char* key : {"dim", "n_layers"})
    if (!root.need(key, JsonKind::number, error)) return false;
  bool scaled = false;
  double eps = 1e-5, theta = 10000;
  if (!root.get("dim", 0, kAny, k.dim, error) || !root.get("n_layers", 0, kAny, k.n_layers, error) ||
      !root.get("norm_eps", eps, error) || !root.get("rope_theta", theta, error) ||
      !root.get("use_scaled_rope", scaled, error))
    return false;
  if (scaled) return root.refuse("use_scaled_rope", "false; use the Hugging Face version of this model", error);
  k.norm_eps = float(eps);
  k.rope_theta = float(theta);
  k.max_seq_len = meta_context(eps, theta);
  return root.get("max_seq_len", 0, kAny, k.max_seq_len, error) && read_heads(root, "n_heads", "n_kv_heads", k, error);
}

/// Reads the configuration beside the weights, or in the file of the weights, to c.config.
inline bool read_own_config(const std::string& folder, const FoundTensors& found, Checkpoint& c, std::string& error) {
  const std::string lit_gpt = join_path(folder, "lit_config.json"), meta = join_path(folder, "params.json");
  JsonDocument settings;
  if (!read_shapes(c, found, c.config, error)) return false;
  if (is_file(lit_gpt))
    return read_settings(lit_gpt, settings, error) && read_lit_gpt_config(settings.root(), c.config, error) &&
           check_config(c.config, lit_gpt, kLitGptFields, error);
  if (is_file(meta)) {
    if (is_file(join_path(folder, "consolidated.01.pth")))
      return fail(error, {folder,
                          ": expected consolidated.00.pth alone, found also consolidated.01.pth: the tensors are split "
                          "over several files; use the Hugging Face version of this model"});
    return read_settings(meta, settings, error) && read_meta_config(settings.root(), c.config, error) &&
           check_config(c.config, meta, {}, error);
  }
  const std::string where = c.files[0]->path() + ": model_args";
  PyTorchFile own(*c.files[0]);
  FoundTensors again;
  if (!own.read(0, again)) return fail(error, own.error);
  const std::string text = own.settings("model_args");
  if (text.empty())
    return fail(error, {folder, ": expected config.json, lit_config.json or params.json beside ",
                        base_name(c.files[0]->path()), ", with the model's configuration, found none"});
  if (!settings.parse(where, text)) return fail(error, settings.error);
  // llama2.c stops at BOS
  return read_meta_config(settings.root(), c.config, error) && check_config(c.config, where, {}, error) &&
         add_stop_id(
             c, 1, [&] { return where; }, error);
}

/// Whether a folder without config.json has one of these configurations. weights: the name of a file, or "".
inline bool has_own_config(const std::string& folder, const std::string& weights) {
  std::string ignored;
  for (const char* name : {"lit_config.json", "params.json"})
    if (is_file(join_path(folder, name))) return true;
  const auto file = weights.empty() ? nullptr : InputFile::open(join_path(folder, weights), ignored);
  return file && looks_like_zip(*file);
}

/// Opens such a folder.
inline bool open_pytorch_folder(const std::string& folder, const std::string& weights, bool own_tokenizer,
                                Checkpoint& out, std::string& error) {
  FoundTensors found;
  if (!open_weights(folder, weights, out, found, error) || !read_own_config(folder, found, out, error) ||
      !bind_llama(out, found, folder, error))
    return false;
  out.format = weights_format(out);
  out.licence = licence_of_card(folder);
  HfTokenizer tokenizer(folder, out);
  return tokenizer.read(JsonValue(), own_tokenizer) || fail(error, tokenizer.error);
}

}  // namespace pocket
