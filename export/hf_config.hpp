// hf_config.hpp: config.json of Hugging Face's transformers. Each model type has a configuration class there, which
// states the values of absent keys; kHfFamilies lists these classes. null is a value of its own: it means "none" or
// "derived" for some keys, and transformers accepts it for no others. Settings for which the model computes something
// that the engine does not are rejected by name.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "checkpoint.hpp"
#include "json_reader.hpp"

namespace pocket {

// ====================================================================================================================
// Model types
// ====================================================================================================================

/// A model as config.json describes it.
struct HfModel {
  Config config;
  Multipliers multipliers;
  bool interleaved = false;  // the order of wq's and wk's rows, as in StoredTensor::interleaved_heads
};

/// What a model type has that a plain Llama lacks; combined by |.
enum HfTrait : unsigned {
  kQkvBias = 1,          // always biases on q, k and v, and none on o
  kQkNorm = 2,           // an RMSNorm of each head of q and k
  kNoRopeLayers = 4,     // layers without RoPE
  kInterleavedRope = 8,  // rotates adjacent rows
  kSlidingWindow = 16,   // sliding_window
  kSlidingLayers = 32,   // sliding_window if use_sliding_window, for layers from max_window_layers or without RoPE
  kGraniteScales = 64,   // embedding_multiplier and others
  kMiniCpmScales = 128   // scale_emb and others
};

inline constexpr int kNoWindow = INT32_MAX;

/// A configuration class: the values of absent keys, and what the model type has.
struct HfFamily {
  const char* model_type;
  int max_seq_len;
  int n_kv_heads;  // 0: num_attention_heads
  int head_dim;    // 0: hidden_size / num_attention_heads
  double norm_eps, rope_theta;
  bool tied;
  int window;                  // sliding_window
  const char* attention_bias;  // the key of biases on q, k, v and o; null: none
  const char* mlp_bias;        // the key of biases on the feed-forward matrices; null: none
  unsigned traits;
};

// As in transformers 4.57 and 5.24, which agree; minicpm as in the code beside its weights (configuration_minicpm.py).
inline constexpr HfFamily kHfFamilies[] = {
    {"llama", 2048, 0, 0, 1e-6, 10000, false, kNoWindow, "attention_bias", "mlp_bias", 0},
    {"mistral", 131072, 8, 0, 1e-6, 10000, false, 4096, nullptr, nullptr, kSlidingWindow},
    {"qwen2", 32768, 32, 0, 1e-6, 10000, false, 4096, nullptr, nullptr, kQkvBias | kSlidingLayers},
    {"qwen3", 32768, 32, 128, 1e-6, 10000, false, 4096, "attention_bias", nullptr, kQkNorm | kSlidingLayers},
    {"smollm3", 32768, 4, 0, 1e-6, 2000000, true, kNoWindow, "attention_bias", "mlp_bias",
     kNoRopeLayers | kSlidingLayers},
    {"granite", 2048, 0, 0, 1e-6, 10000, false, kNoWindow, "attention_bias", "mlp_bias", kGraniteScales},
    {"phi3", 4096, 0, 0, 1e-5, 10000, false, kNoWindow, nullptr, nullptr, kSlidingWindow},
    {"ernie4_5", 131072, 2, 128, 1e-5, 500000, true, kNoWindow, "use_bias", "use_bias", kInterleavedRope},
    {"minicpm", 2048, 0, 0, 1e-6, 10000, true, kNoWindow, "attention_bias", nullptr, kMiniCpmScales}};

/// Finds the family of "model_type"; null with `error` set if it is not supported.
inline const HfFamily* find_hf_family(const JsonValue& root, std::string& error) {
  if (!root.need("model_type", JsonKind::string, error)) return nullptr;
  std::string names;
  for (const HfFamily& family : kHfFamilies) {
    if (root.find("model_type").string() == family.model_type) return &family;
    names += (names.empty() ? "\"" : ", \"") + std::string(family.model_type) + "\"";
  }
  root.refuse("model_type", {"one of ", names}, error);
  return nullptr;
}

/// Rejects null for keys where transformers accepts none. An absent key is not an error.
inline bool reject_null(const JsonValue& root, std::initializer_list<const char*> keys, const char* expected,
                        std::string& error) {
  for (const char* key : keys)
    if (root.find(key).is(JsonKind::null)) return root.refuse(key, expected, error);
  return true;
}

/// Reads a switch. null is false, as in transformers 4.
inline bool get_switch(const JsonValue& root, const char* key, bool& out, std::string& error) {
  if (root.find(key).is(JsonKind::null)) out = false;
  return root.get(key, out, error);
}

// ====================================================================================================================
// RoPE
// ====================================================================================================================

/// The RoPE settings of a model. Unused ones keep these values, so that settings can be compared.
struct HfRope {
  RopeScaling scaling = RopeScaling::none;
  double theta = 0, factor = 1, low_freq = 1, high_freq = 4;
  int original_len = 0;

  bool operator==(const HfRope& o) const {
    return scaling == o.scaling && theta == o.theta && factor == o.factor && low_freq == o.low_freq &&
           high_freq == o.high_freq && original_len == o.original_len;
  }
};

/// Rejects two keys for one setting that disagree: transformers 4 and 5 prefer different ones. a, b: the objects that
/// contain them; an absent or null value agrees with any. a_name: how the message calls the first.
inline bool same_setting(const JsonValue& a, const char* a_key, const std::string& a_name, const JsonValue& b,
                         const char* b_key, std::string& error) {
  const JsonValue first = a.find(a_key), second = b.find(b_key);
  if (first.missing() || second.missing()) return true;
  const bool same = first.is(JsonKind::number) ? second.is(JsonKind::number) && first.number() == second.number()
                                               : first.describe() == second.describe();
  return same || b.refuse(b_key, {first.describe(), ", the value of ", a_name}, error);
}

/// Reads the type of scaling. Older files have "type" instead of "rope_type".
inline bool read_hf_rope_type(const JsonValue& rope, RopeScaling& out, std::string& error) {
  if (!same_setting(rope, "rope_type", "\"rope_type\"", rope, "type", error)) return false;
  const char* key = rope.find("rope_type").is(JsonKind::absent) ? "type" : "rope_type";
  if (rope.find(key).is(JsonKind::absent)) return true;
  if (!rope.need(key, JsonKind::string, error)) return false;
  const std::string type = rope.find(key).string();
  if (type == "linear") out = RopeScaling::linear;
  if (type == "llama3") out = RopeScaling::llama3;
  return type == "default" || type == "linear" || type == "llama3" ||
         rope.refuse(key, "\"default\", \"linear\" or \"llama3\"", error);
}

/// Reads the settings in `rope`, the value of `name`: rope_scaling, rope_parameters, or absent.
inline bool read_hf_rope_settings(const JsonValue& root, const char* name, const JsonValue& rope, HfRope& out,
                                  std::string& error) {
  constexpr const char* kOriginal = "original_max_position_embeddings";
  const auto same_outside = [&](const char* key) {
    const std::string outside = "\"" + std::string(key) + "\" outside \"" + name + "\"";
    return same_setting(root, key, outside, rope, key, error);
  };
  if (!same_outside("rope_theta")) return false;
  const JsonValue theta = rope.find("rope_theta").is(JsonKind::absent) ? root : rope;
  if (!reject_null(theta, {"rope_theta"}, "a number", error) || !theta.get("rope_theta", out.theta, error))
    return false;
  for (const JsonValue& object : {root, rope}) {
    double rotated = 1;
    if (!object.get("partial_rotary_factor", rotated, error)) return false;
    if (rotated != 1) return object.refuse("partial_rotary_factor", "1", error);
  }
  for (const auto& [key, value] : rope.members())
    if (value.is(JsonKind::object)) return rope.refuse(key, "a setting for all layers", error);
  if (!read_hf_rope_type(rope, out.scaling, error)) return false;
  if (out.scaling == RopeScaling::none) return true;
  if (!rope.need("factor", JsonKind::number, error) || !rope.get("factor", out.factor, error)) return false;
  if (out.scaling == RopeScaling::linear) return true;
  for (const char* needed : {"low_freq_factor", "high_freq_factor", kOriginal})
    if (!rope.need(needed, JsonKind::number, error)) return false;
  return same_outside(kOriginal) && rope.get("low_freq_factor", out.low_freq, error) &&
         rope.get("high_freq_factor", out.high_freq, error) &&
         rope.get(kOriginal, 0, INT32_MAX, out.original_len, error);
}

/// Reads the RoPE settings: in rope_scaling (transformers 4) or rope_parameters (5); if both exist, they must agree.
inline bool read_hf_rope(const JsonValue& root, double default_theta, Config& c, std::string& error) {
  HfRope rope;
  std::string before;  // the first of the two keys that has settings
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const JsonValue settings = root.find(key);
    if (!settings.missing() && !root.need(key, JsonKind::object, error)) return false;
    if (settings.size() == 0) continue;  // transformers 5 takes {} as null
    HfRope read;
    read.theta = default_theta;
    if (!read_hf_rope_settings(root, key, settings, read, error)) return false;
    if (!before.empty() && !(read == rope)) return root.refuse(key, {"the settings of \"", before, "\""}, error);
    before = key;
    rope = read;
  }
  if (before.empty()) {
    rope.theta = default_theta;
    if (!read_hf_rope_settings(root, "", JsonValue(), rope, error)) return false;
  }
  c.rope_theta = float(rope.theta);
  c.rope_scaling = rope.scaling;
  c.rope_factor = float(rope.factor);
  c.rope_low_freq = float(rope.low_freq);
  c.rope_high_freq = float(rope.high_freq);
  c.rope_original_len = rope.original_len;
  return true;
}

/// Reads the layers without RoPE: no_rope_layers has 0 for them and 1 for others. Without this list, every
/// no_rope_layer_interval-th layer has none.
inline bool read_no_rope_layers(const JsonValue& root, Config& c, std::string& error) {
  const JsonValue list = root.find("no_rope_layers");
  const size_t layers = size_t(std::min(c.n_layers, 1 << 10));  // check_config() has the limit
  std::vector<bool> rotates;
  for (const JsonValue& element : list.elements()) {
    int64_t value = element.boolean();
    if (!element.is(JsonKind::boolean) && !element.integer(value))
      return root.refuse("no_rope_layers", "a list of 0 and 1", error);
    rotates.push_back(value != 0);
  }
  if (list.missing()) {
    int interval = 4;
    if (!reject_null(root, {"no_rope_layer_interval"}, "a number", error) ||
        !root.get("no_rope_layer_interval", 1, INT32_MAX, interval, error))
      return false;
    for (size_t l = 0; l < layers; l++) rotates.push_back((l + 1) % size_t(interval) != 0);
  }
  if (rotates.size() < layers) return root.refuse("no_rope_layers", {"a list for ", c.n_layers, " layers"}, error);
  for (size_t l = 0; l < layers; l++) {
    if (!rotates[l] && l >= c.no_rope.size())
      return root.refuse("no_rope_layers", {"RoPE in all layers from ", c.no_rope.size()}, error);
    if (!rotates[l]) c.no_rope.set(l);
  }
  return true;
}

// ====================================================================================================================
// Sliding windows
// ====================================================================================================================

/// Whether layer_types names layers with a sliding window. Rejects other kinds of layers.
inline bool read_layer_types(const JsonValue& root, bool& sliding, std::string& error) {
  for (const JsonValue& type : root.find("layer_types").elements()) {
    if (type.string() == "sliding_attention") sliding = true;
    if (type.string() != "sliding_attention" && type.string() != "full_attention")
      return root.refuse("layer_types", {"\"full_attention\" for all layers, also instead of ", type.describe()},
                         error);
  }
  return true;
}

/// Whether some layer has a sliding window, in families where layers differ. listed: layer_types names one.
inline bool has_sliding_layer(const JsonValue& root, const HfFamily& family, const Config& c, bool listed, bool& out,
                              std::string& error) {
  int first = 28;
  out = listed;
  if (!root.find("layer_types").missing()) return true;
  if (!(family.traits & kNoRopeLayers) && (!reject_null(root, {"max_window_layers"}, "a number", error) ||
                                           !root.get("max_window_layers", 0, INT32_MAX, first, error)))
    return false;
  out = (family.traits & kNoRopeLayers) ? c.no_rope.any() : first < c.n_layers;
  return true;
}

/// Rejects sliding windows shorter than the context; wider ones change nothing. An absent sliding_window differs from
/// null, which means none.
inline bool check_windows(const JsonValue& root, const HfFamily& family, const Config& c, std::string& error) {
  const bool by_layer = (family.traits & kSlidingLayers) != 0;
  bool on = (family.traits & kSlidingWindow) != 0, listed = false, slides = on;
  int window = family.window;
  if (!read_layer_types(root, listed, error)) return false;
  if (by_layer && !get_switch(root, "use_sliding_window", on, error)) return false;
  if (on && !root.get("sliding_window", 0, INT32_MAX, window, error)) return false;
  if (!on || root.find("sliding_window").is(JsonKind::null)) window = kNoWindow;
  if (listed && window == kNoWindow) return root.refuse("layer_types", "\"full_attention\" for all layers", error);
  if (window >= c.max_seq_len) return true;
  if (by_layer && !has_sliding_layer(root, family, c, listed, slides, error)) return false;
  if (!slides) return true;
  root.refuse("sliding_window", "null, or at least max_position_embeddings", error);
  error += "; the model can be converted for texts within its window if max_position_embeddings is " +
           std::to_string(window);
  return false;
}

// ====================================================================================================================
// The whole configuration
// ====================================================================================================================

/// Reads one of the multipliers.
inline bool get_multiplier(const JsonValue& root, const char* key, double& out, std::string& error) {
  if (!reject_null(root, {key}, "a number", error) || !root.get(key, out, error)) return false;
  return is_multiplier(out) || root.refuse(key, kMultiplierRange, error);
}

/// Reads Granite's multipliers.
inline bool read_granite_scales(const JsonValue& root, Multipliers& m, std::string& error) {
  double logits = 1;
  m.attention = 1;
  if (!get_multiplier(root, "embedding_multiplier", m.embedding, error) ||
      !get_multiplier(root, "residual_multiplier", m.residual, error) ||
      !get_multiplier(root, "attention_multiplier", m.attention, error) ||
      !get_multiplier(root, "logits_scaling", logits, error))
    return false;
  m.logits = 1 / logits;
  return true;
}

/// Reads MiniCPM's scales (github.com/OpenBMB/MiniCPM, of "maximal update parametrization").
inline bool read_minicpm_scales(const JsonValue& root, const Config& c, Multipliers& m, std::string& error) {
  double depth = 1, base = 1;
  int experts = 0;
  if (!root.get("num_experts", 0, INT32_MAX, experts, error)) return false;
  if (experts > 0) return root.refuse("num_experts", "0: a mixture of experts is not supported", error);
  if (!get_multiplier(root, "scale_emb", m.embedding, error) || !get_multiplier(root, "scale_depth", depth, error) ||
      !get_multiplier(root, "dim_model_base", base, error))
    return false;
  m.residual = depth / std::sqrt(double(std::max(c.n_layers, 1)));
  m.logits = base / std::max(c.dim, 1);
  return true;
}

/// Reads the sizes.
inline bool read_hf_sizes(const JsonValue& root, const HfFamily& family, Config& c, std::string& error) {
  for (const char* key : {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"})
    if (!root.need(key, JsonKind::number, error)) return false;
  if (!reject_null(root, {"max_position_embeddings", "rms_norm_eps"}, "a number", error)) return false;
  double eps = family.norm_eps;
  c.max_seq_len = family.max_seq_len;
  constexpr int kAny = INT32_MAX;  // check_config() has the limits
  if (!root.get("hidden_size", 0, kAny, c.dim, error) || !root.get("intermediate_size", 0, kAny, c.hidden_dim, error) ||
      !root.get("num_hidden_layers", 0, kAny, c.n_layers, error) ||
      !root.get("num_attention_heads", 0, kAny, c.n_heads, error) ||
      !root.get("vocab_size", 0, kAny, c.vocab_size, error) || !root.get("rms_norm_eps", eps, error) ||
      !root.get("max_position_embeddings", 0, kAny, c.max_seq_len, error))
    return false;
  c.norm_eps = float(eps);
  const bool all_heads = family.n_kv_heads == 0 || root.find("num_key_value_heads").is(JsonKind::null);
  c.n_kv_heads = all_heads ? c.n_heads : family.n_kv_heads;
  const JsonValue head_dim = root.find("head_dim");
  c.head_dim = family.head_dim;
  if (head_dim.is(JsonKind::null) || (head_dim.is(JsonKind::absent) && family.head_dim == 0)) {
    if (c.n_heads > 0 && c.dim % c.n_heads)
      return root.refuse("hidden_size", "a multiple of num_attention_heads", error);
    c.head_dim = c.n_heads > 0 ? c.dim / c.n_heads : 0;
  }
  return root.get("num_key_value_heads", 0, kAny, c.n_kv_heads, error) &&
         root.get("head_dim", 0, kAny, c.head_dim, error);
}

/// Reads what a layer consists of.
inline bool read_hf_layer(const JsonValue& root, const HfFamily& family, Config& c, std::string& error) {
  bool bias = false;
  c.qk_norm = (family.traits & kQkNorm) != 0;
  if (family.attention_bias && !get_switch(root, family.attention_bias, bias, error)) return false;
  c.o_bias = bias;
  c.qkv_bias = bias || (family.traits & kQkvBias);
  if (family.mlp_bias && !get_switch(root, family.mlp_bias, c.mlp_bias, error)) return false;
  return !(family.traits & kNoRopeLayers) || read_no_rope_layers(root, c, error);
}

/// Rejects settings for which any model type computes another function.
inline bool check_hf_variant(const JsonValue& root, std::string& error) {
  std::string activation = "silu";
  if (!reject_null(root, {"hidden_act"}, "\"silu\"", error) || !root.get("hidden_act", activation, error)) return false;
  if (activation != "silu") return root.refuse("hidden_act", "\"silu\"", error);
  const JsonValue quantized = root.find("quantization_config");
  return quantized.missing() ||
         root.refuse("quantization_config",
                     {"none: quantized weights are not supported (", quantized.find("quant_method").describe(), ")"},
                     error);
}

inline constexpr FieldNames kHuggingFaceFields = {{{"dim", "hidden_size"},
                                                   {"hidden_dim", "intermediate_size"},
                                                   {"n_layers", "num_hidden_layers"},
                                                   {"n_heads", "num_attention_heads"},
                                                   {"n_kv_heads", "num_key_value_heads"},
                                                   {"max_seq_len", "max_position_embeddings"},
                                                   {"norm_eps", "rms_norm_eps"},
                                                   {"rope_factor", "factor"},
                                                   {"rope_low_freq", "low_freq_factor"},
                                                   {"rope_high_freq", "high_freq_factor"},
                                                   {"rope_original_len", "original_max_position_embeddings"}}};

/// Reads config.json. check_config() has the limits of the sizes.
inline bool read_hf_config(const JsonValue& root, HfModel& out, std::string& error) {
  const HfFamily* family = find_hf_family(root, error);
  if (!family || !check_hf_variant(root, error)) return false;
  Config& c = out.config;
  c.tied = family->tied;
  out.interleaved = (family->traits & kInterleavedRope) != 0;
  return read_hf_sizes(root, *family, c, error) && get_switch(root, "tie_word_embeddings", c.tied, error) &&
         read_hf_layer(root, *family, c, error) && read_hf_rope(root, family->rope_theta, c, error) &&
         check_windows(root, *family, c, error) &&
         (!(family->traits & kGraniteScales) || read_granite_scales(root, out.multipliers, error)) &&
         (!(family->traits & kMiniCpmScales) || read_minicpm_scales(root, c, out.multipliers, error));
}

}  // namespace pocket
