// pytorch_folder.hpp: PyTorch checkpoints without Hugging Face's config.json: of lit-gpt (TinyLlama), with
// lit_config.json, or model_config.yaml since it is called litgpt; of Meta, with params.json; and of llama2.c's train.py,
// whose configuration is in the file itself.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "safetensors.hpp"
#include "yaml_settings.hpp"

namespace pocket {

/// Reads from the tensors what these configurations lack: the sizes of vocabulary and feed-forward block, and whether
/// the output matrix is the embedding.
inline bool read_shapes(const Checkpoint& c, const FoundTensors& found, Config& k, std::string& error) {
  const TensorNames& names = names_of(found).names;
  const std::string w1 = names.name("layers.0.w1");
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

/// Reads the numbers of heads, and head_dim if it is set.
inline bool read_heads(const JsonValue& root, const char* heads, const char* kv_heads, const char* head_dim, Config& k,
                       std::string& error) {
  constexpr int kAny = INT32_MAX;  // check_config() has the limits
  if (!root.need(heads, JsonKind::number, error) || !root.get(heads, 0, kAny, k.n_heads, error)) return false;
  k.n_kv_heads = k.n_heads;
  if (k.n_heads < 1 || (k.dim % k.n_heads && root.find(head_dim).missing()))
    return root.refuse(heads, {"a divisor of ", k.dim}, error);
  k.head_dim = k.dim / k.n_heads;
  return root.get(head_dim, 0, kAny, k.head_dim, error) && root.get(kv_heads, 0, kAny, k.n_kv_heads, error);
}

inline constexpr FieldNames kLitGptFields = {{{"dim", "n_embd"},
                                              {"n_layers", "n_layer"},
                                              {"n_heads", "n_head"},
                                              {"n_kv_heads", "n_query_groups"},
                                              {"head_dim", "head_size"},
                                              {"max_seq_len", "block_size"},
                                              {"rope_theta", "rope_base"},
                                              {"rope_factor", "rope_condense_ratio"}}};

/// The present one of a setting's names. lit-gpt renamed some settings.
inline const char* present(const JsonValue& root, const char* name, const char* old_name) {
  return root.find(name).is(JsonKind::absent) ? old_name : name;
}

/// Rejects settings of which nothing is known, unless they are off: later versions add settings that change the
/// computation.
inline bool check_unknown_lit_gpt_settings(const JsonValue& root, std::string& error) {
  constexpr std::string_view kKnown[] = {
      // read here or from the tensors
      "n_embd", "n_layer", "n_head", "n_query_groups", "head_size", "block_size", "vocab_size", "padded_vocab_size",
      "intermediate_size", "norm_eps", "parallel_residual", "bias", "shared_attention_norm", "norm_1", "norm_2",
      "rotary_percentage", "norm_class_name", "_norm_class", "mlp_class_name", "_mlp_class", "rope_base",
      "rope_condense_ratio", "condense_ratio", "rope_adjustments", "attention_scores_scalar", "sliding_window_size",
      // of no effect on a Llama
      "name", "org", "hf_config", "padding_multiple", "gelu_approximate", "norm_qk_type",
      "sliding_window_layer_placing", "sliding_window_indices", "n_expert_per_token"};
  for (const auto& [key, value] : root.members()) {
    if (std::find(std::begin(kKnown), std::end(kKnown), key) != std::end(kKnown)) continue;
    const bool off = value.is(JsonKind::null) || (value.is(JsonKind::boolean) && !value.boolean()) ||
                     (value.is(JsonKind::number) && value.number() == 0);
    if (!off) return root.refuse(key, "null, false or 0: this setting is not supported", error);
  }
  return true;
}

/// Rejects other architectures. lit-gpt supports many, and its defaults are not a Llama's, so some settings are required.
inline bool check_lit_gpt_variant(const JsonValue& root, const Config& k, std::string& error) {
  const struct {
    const char* key;
    bool expected, needed;
  } flags[] = {{"parallel_residual", false, true},
               {"bias", false, true},
               {"shared_attention_norm", false, false},
               {"norm_1", true, false},
               {"norm_2", true, false}};
  for (const auto& [key, expected, needed] : flags) {
    bool value = expected;
    if ((needed && !root.need(key, JsonKind::boolean, error)) || !root.get(key, value, error)) return false;
    if (value != expected) return root.refuse(key, expected ? "true" : "false", error);
  }
  double rotated = 0, scores = k.head_dim, window = k.max_seq_len;
  if (!root.need("rotary_percentage", JsonKind::number, error) || !root.get("rotary_percentage", rotated, error) ||
      !root.get("attention_scores_scalar", scores, error) || !root.get("sliding_window_size", window, error))
    return false;
  if (rotated != 1) return root.refuse("rotary_percentage", "1", error);
  if (scores != k.head_dim) return root.refuse("attention_scores_scalar", {"null or ", k.head_dim}, error);
  if (window < k.max_seq_len) return root.refuse("sliding_window_size", "null, or at least block_size", error);
  const char *norm_key = present(root, "norm_class_name", "_norm_class"),
             *mlp_key = present(root, "mlp_class_name", "_mlp_class");
  const std::string norm = root.find(norm_key).string(), mlp = root.find(mlp_key).string();
  if (norm != "RMSNorm" && norm != "FusedRMSNorm") return root.refuse(norm_key, "\"RMSNorm\"", error);
  if (mlp != "LLaMAMLP") return root.refuse(mlp_key, "\"LLaMAMLP\"", error);
  return check_unknown_lit_gpt_settings(root, error);
}

/// Reads the RoPE settings: positions divided by a ratio, or Llama 3's scaling.
inline bool read_lit_gpt_rope(const JsonValue& root, Config& k, std::string& error) {
  const char* ratio_key = present(root, "rope_condense_ratio", "condense_ratio");
  const JsonValue adjusted = root.find("rope_adjustments");
  double theta = 10000, ratio = 1, factor = 1, low = 0, high = 0;
  if (!root.get("rope_base", theta, error) || !root.get(ratio_key, ratio, error)) return false;
  k.rope_theta = float(theta);
  k.rope_factor = float(ratio);
  if (ratio != 1) k.rope_scaling = RopeScaling::linear;
  if (adjusted.missing()) return true;
  if (!root.need("rope_adjustments", JsonKind::object, error)) return false;
  if (ratio != 1) return root.refuse(ratio_key, "1 with rope_adjustments", error);
  const bool llama3 = adjusted.size() > 1;
  for (const char* key : {"factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"})
    if ((llama3 || key == std::string_view("factor")) && !adjusted.need(key, JsonKind::number, error)) return false;
  if (adjusted.size() > 4) return root.refuse("rope_adjustments", "Llama 3's four settings", error);
  k.rope_scaling = llama3 ? RopeScaling::llama3 : RopeScaling::linear;
  if (!adjusted.get("factor", factor, error) || !adjusted.get("low_freq_factor", low, error) ||
      !adjusted.get("high_freq_factor", high, error) ||
      !adjusted.get("original_max_seq_len", 0, INT32_MAX, k.rope_original_len, error))
    return false;
  k.rope_factor = float(factor);
  k.rope_low_freq = float(low);
  k.rope_high_freq = float(high);
  return true;
}

/// Reads lit_config.json or model_config.yaml.
inline bool read_lit_gpt_config(const JsonValue& root, Config& k, std::string& error) {
  constexpr int kAny = INT32_MAX;
  for (const char* key : {"n_embd", "n_layer", "block_size"})
    if (!root.need(key, JsonKind::number, error)) return false;
  double eps = 1e-5;
  if (!root.get("n_embd", 0, kAny, k.dim, error) || !root.get("n_layer", 0, kAny, k.n_layers, error) ||
      !root.get("block_size", 0, kAny, k.max_seq_len, error) || !root.get("norm_eps", eps, error))
    return false;
  k.norm_eps = float(eps);
  return read_heads(root, "n_head", "n_query_groups", "head_size", k, error) && check_lit_gpt_variant(root, k, error) &&
         read_lit_gpt_rope(root, k, error);
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
  return root.get("max_seq_len", 0, kAny, k.max_seq_len, error) &&
         read_heads(root, "n_heads", "n_kv_heads", "head_dim", k, error);
}

inline constexpr uint64_t kLargestYaml = 1 << 16;  // bytes; a model_config.yaml has 2,000

/// Reads the configuration beside the weights, or in the file of the weights, to c.config.
inline bool read_own_config(const std::string& folder, const FoundTensors& found, Checkpoint& c, std::string& error) {
  const std::string lit_gpt = join_path(folder, "lit_config.json"), litgpt = join_path(folder, "model_config.yaml"),
                    meta = join_path(folder, "params.json");
  JsonDocument settings;
  if (!read_shapes(c, found, c.config, error)) return false;
  if (is_file(lit_gpt))
    return read_settings(lit_gpt, settings, error) && read_lit_gpt_config(settings.root(), c.config, error) &&
           check_config(c.config, lit_gpt, kLitGptFields, error);
  if (std::string yaml; is_file(litgpt)) {
    if (!read_small_file(litgpt, kLargestYaml, yaml, error)) return false;
    if (!settings.parse(litgpt, yaml_to_json(yaml))) return fail(error, settings.error);
    return read_lit_gpt_config(settings.root(), c.config, error) &&
           check_config(c.config, litgpt, kLitGptFields, error);
  }
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
    return fail(error, {folder, ": expected config.json, lit_config.json, model_config.yaml or params.json beside ",
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
  for (const char* name : {"lit_config.json", "model_config.yaml", "params.json"})
    if (is_file(join_path(folder, name))) return true;
  const auto file = weights.empty() ? nullptr : InputFile::open(join_path(folder, weights), ignored);
  return file && looks_like_zip(*file);
}

/// Opens such a folder.
inline bool open_pytorch_folder(const std::string& folder, const std::string& weights, bool own_tokenizer,
                                Checkpoint& out, std::string& error) {
  FoundTensors found;
  if (!open_weights(folder, weights, out, found, error) || !read_own_config(folder, found, out, error) ||
      !bind_llama(out, found, folder, false, error))
    return false;
  out.format = weights_format(out);
  out.licence = licence_of_card(folder);
  HfTokenizer tokenizer(folder, out);
  return tokenizer.read(JsonValue(), own_tokenizer) || fail(error, tokenizer.error);
}

}  // namespace pocket
