// hf_config_test.cpp: config.json of each model type is read as transformers reads it. The expected values are those of
// the configuration classes of transformers 4.57.6 and 5.24.0, and for minicpm of the code beside its weights.
#include "../../export/hf_config.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace hf_config_test {

using namespace pocket;
using Json = nlohmann::json;

/// config.json of a model type with the keys that are required.
Json minimal(const std::string& type) {
  return {{"model_type", type},      {"hidden_size", 96},        {"intermediate_size", 256},
          {"num_hidden_layers", 10}, {"num_attention_heads", 6}, {"vocab_size", 512}};
}

/// A configuration, read.
struct Read {
  HfModel model;
  std::string error;

  explicit Read(const Json& json) {
    JsonDocument document;
    EXPECT_TRUE(document.parse("config.json", json.dump())) << document.error;
    const bool ok = read_hf_config(document.root(), model, error);
    EXPECT_EQ(ok, error.empty()) << error;
  }
  const Config* operator->() const { return &model.config; }
};

Json with(Json json, const std::vector<std::pair<const char*, Json>>& changes) {
  for (const auto& [key, value] : changes) json[key] = value;
  return json;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// The layers without RoPE, "0001000100": 1 for them.
std::string no_rope(const Config& c) {
  std::string layers;
  for (int l = 0; l < c.n_layers; l++) layers += c.no_rope[size_t(l)] ? '1' : '0';
  return layers;
}

// ---- Model types ----

TEST(HfConfig, UsesTheDefaultsOfEachModelType) {
  const struct {
    const char* type;
    int n_kv_heads, head_dim, max_seq_len;
    float norm_eps, rope_theta;
    bool tied, qkv_bias, qk_norm, interleaved;
    const char* no_rope;
  } all[] = {{"llama", 6, 16, 2048, 1e-6f, 10000, false, false, false, false, "0000000000"},
             {"mistral", 8, 16, 131072, 1e-6f, 10000, false, false, false, false, "0000000000"},
             {"qwen2", 32, 16, 32768, 1e-6f, 10000, false, true, false, false, "0000000000"},
             {"qwen3", 32, 128, 32768, 1e-6f, 10000, false, false, true, false, "0000000000"},
             {"smollm3", 4, 16, 32768, 1e-6f, 2000000, true, false, false, false, "0001000100"},
             {"granite", 6, 16, 2048, 1e-6f, 10000, false, false, false, false, "0000000000"},
             {"phi3", 6, 16, 4096, 1e-5f, 10000, false, false, false, false, "0000000000"},
             {"ernie4_5", 2, 128, 131072, 1e-5f, 500000, true, false, false, true, "0000000000"},
             {"minicpm", 6, 16, 2048, 1e-6f, 10000, true, false, false, false, "0000000000"}};
  for (const auto& f : all) {
    Json json = minimal(f.type);
    if (f.type == std::string("mistral")) json["sliding_window"] = nullptr;  // its default is below max_seq_len
    const Read r(json);
    EXPECT_EQ(r.error, "");
    EXPECT_TRUE(r->n_kv_heads == f.n_kv_heads && r->head_dim == f.head_dim && r->max_seq_len == f.max_seq_len)
        << f.type;
    EXPECT_TRUE(r->norm_eps == f.norm_eps && r->rope_theta == f.rope_theta && r->tied == f.tied) << f.type;
    EXPECT_TRUE(r->qkv_bias == f.qkv_bias && r->qk_norm == f.qk_norm && !r->o_bias && !r->mlp_bias) << f.type;
    EXPECT_EQ(r.model.interleaved, f.interleaved) << f.type;
    EXPECT_EQ(no_rope(r.model.config), f.no_rope) << f.type;
    EXPECT_EQ(r->rope_scaling, RopeScaling::none);
    EXPECT_EQ(std::size(all), std::size(kHfFamilies));
  }
}

TEST(HfConfig, ReadsBiasesByTheKeysOfTheModelType) {
  const struct {
    const char *type, *key;
    bool qkv, o, mlp;
  } all[] = {{"llama", "attention_bias", true, true, false},   {"llama", "mlp_bias", false, false, true},
             {"qwen3", "attention_bias", true, true, false},   {"qwen3", "mlp_bias", false, false, false},
             {"qwen2", "attention_bias", true, false, false},  {"smollm3", "mlp_bias", false, false, true},
             {"granite", "attention_bias", true, true, false}, {"granite", "mlp_bias", false, false, true},
             {"ernie4_5", "use_bias", true, true, true},       {"minicpm", "attention_bias", true, true, false},
             {"phi3", "attention_bias", false, false, false}};
  for (const auto& [type, key, qkv, o, mlp] : all) {
    const Read r(with(minimal(type), {{key, true}}));
    EXPECT_TRUE(r->qkv_bias == qkv && r->o_bias == o && r->mlp_bias == mlp) << type << ": " << key << r.error;
  }
}

TEST(HfConfig, ReadsMultipliers) {
  const Read granite(with(minimal("granite"), {{"embedding_multiplier", 12},
                                               {"residual_multiplier", 0.22},
                                               {"attention_multiplier", 0.015625},
                                               {"logits_scaling", 8.0}}));
  const Multipliers& g = granite.model.multipliers;
  EXPECT_TRUE(g.embedding == 12 && g.residual == 0.22 && g.attention == 0.015625 && g.logits == 1 / 8.0);
  EXPECT_EQ(Read(minimal("granite")).model.multipliers.attention, 1) << "not 1 / sqrt(head_dim)";
  const Read minicpm(with(minimal("minicpm"), {{"scale_emb", 12}, {"scale_depth", 1.4}, {"dim_model_base", 32}}));
  const Multipliers& m = minicpm.model.multipliers;
  EXPECT_TRUE(m.embedding == 12 && m.attention == 0 && m.logits == 32 / 96.0);
  EXPECT_DOUBLE_EQ(m.residual, 1.4 / std::sqrt(10));
  EXPECT_EQ(Read(with(minimal("llama"), {{"embedding_multiplier", 12}})).model.multipliers.embedding, 1);
  for (const char* key : {"embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"})
    for (const Json& bad : {Json(0), Json(-1), Json(1e30), Json("1"), Json(nullptr)})
      EXPECT_TRUE(contains(Read(with(minimal("granite"), {{key, bad}})).error, key)) << key << bad;
}

TEST(HfConfig, ReadsLayersWithoutRope) {
  const Json base = minimal("smollm3"), ten = {1, 0, 1, 0, 1, 1, 1, 1, 0, 1};
  Json longer = ten;
  longer.push_back(0);
  const std::pair<Json, const char*> all[] = {
      {with(base, {{"no_rope_layers", ten}}), "0101000010"},
      {with(base, {{"no_rope_layers", ten}, {"no_rope_layer_interval", 1}}), "0101000010"},
      {with(base, {{"no_rope_layers", longer}}), "0101000010"},
      {with(base, {{"no_rope_layers", nullptr}, {"no_rope_layer_interval", 3}}), "0010010010"},
      {with(base, {{"no_rope_layer_interval", 1}}), "1111111111"},
      {with(minimal("llama"), {{"no_rope_layers", ten}}), "0000000000"}};
  for (const auto& [json, layers] : all) EXPECT_EQ(no_rope(Read(json).model.config), layers) << json;
  const std::pair<Json, const char*> bad[] = {
      {with(base, {{"no_rope_layers", Json::array()}}), "\"no_rope_layers\": expected a list for 10 layers"},
      {with(base, {{"no_rope_layers", {"1"}}}), "\"no_rope_layers\": expected a list of 0 and 1"},
      {with(base, {{"no_rope_layers", 1}}), "\"no_rope_layers\": expected a list for 10 layers, found 1"},
      {with(base, {{"no_rope_layer_interval", 0}}), "\"no_rope_layer_interval\": expected an integer from 1"},
      {with(base, {{"no_rope_layer_interval", nullptr}}), "\"no_rope_layer_interval\": expected a number, found null"},
      {with(base, {{"num_hidden_layers", 300}}), "\"no_rope_layers\": expected RoPE in all layers from 256"}};
  for (const auto& [json, error] : bad) EXPECT_TRUE(contains(Read(json).error, error)) << json << Read(json).error;
}

// ---- null ----

TEST(HfConfig, NullIsNotAbsent) {
  for (const HfFamily& f : kHfFamilies) {
    const Json base = with(minimal(f.model_type), {{"sliding_window", nullptr}});
    EXPECT_EQ(Read(with(base, {{"num_key_value_heads", nullptr}}))->n_kv_heads, 6) << f.model_type;
    EXPECT_EQ(Read(with(base, {{"head_dim", nullptr}}))->head_dim, 16) << f.model_type;
    EXPECT_FALSE(Read(with(base, {{"tie_word_embeddings", nullptr}}))->tied) << f.model_type;
    for (const char* key : {"attention_bias", "mlp_bias", "use_bias", "use_sliding_window", "layer_types",
                            "no_rope_layers", "rope_scaling", "rope_parameters", "quantization_config"})
      EXPECT_EQ(Read(with(base, {{key, nullptr}})).error, "") << f.model_type;
    for (const char* key : {"hidden_act", "rms_norm_eps", "max_position_embeddings", "rope_theta"}) {
      const std::string error = Read(with(base, {{key, nullptr}})).error;
      EXPECT_TRUE(contains(error, "\"" + std::string(key) + "\": expected ") && contains(error, "found null")) << error;
    }
  }
  EXPECT_TRUE(contains(Read(minimal("mistral")).error, "\"sliding_window\": expected null")) << "4096 by default";
}

// ---- RoPE ----

TEST(HfConfigRope, ReadsTheKeysOfTransformers4And5) {
  const Json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 1024}};
  const Json llama3_with_theta = with(llama3, {{"rope_theta", 500000.0}}), linear = {{"type", "linear"}, {"factor", 2}};
  const Json base = minimal("llama");
  const struct {
    Json json;
    RopeScaling scaling;
    float theta, factor;
  } all[] = {
      {with(base, {{"rope_theta", 500000.0}, {"rope_scaling", llama3}}), RopeScaling::llama3, 500000, 8},
      {with(base, {{"rope_parameters", llama3_with_theta}}), RopeScaling::llama3, 500000, 8},
      {with(base, {{"rope_parameters", llama3}, {"rope_theta", 20000}}), RopeScaling::llama3, 20000, 8},
      {with(base, {{"rope_parameters", {{"rope_theta", 1e6}}}}), RopeScaling::none, 1e6, 1},
      {with(base, {{"rope_scaling", linear}}), RopeScaling::linear, 10000, 2},
      // Both keys, which agree.
      {with(base, {{"rope_scaling", linear}, {"rope_parameters", linear}}), RopeScaling::linear, 10000, 2},
      {with(base, {{"rope_theta", 500000}, {"rope_scaling", llama3}, {"rope_parameters", llama3_with_theta}}),
       RopeScaling::llama3, 500000, 8},
      {with(base, {{"rope_scaling", {{"type", "linear"}, {"rope_type", "linear"}, {"factor", 2}}}}),
       RopeScaling::linear, 10000, 2},
      {with(base, {{"rope_scaling", nullptr}, {"rope_parameters", llama3_with_theta}}), RopeScaling::llama3, 500000, 8},
      {with(base, {{"rope_scaling", Json::object()}, {"rope_parameters", linear}}), RopeScaling::linear, 10000, 2},
      {with(base, {{"rope_theta", nullptr}, {"rope_parameters", llama3_with_theta}}), RopeScaling::llama3, 500000, 8},
      {with(minimal("smollm3"), {{"rope_parameters", {{"rope_type", "default"}}}}), RopeScaling::none, 2000000, 1}};
  for (const auto& [json, scaling, theta, factor] : all) {
    const Read r(json);
    EXPECT_EQ(r.error, "") << json;
    EXPECT_TRUE(r->rope_scaling == scaling && r->rope_theta == theta && r->rope_factor == factor) << json;
  }
}

// transformers 4 and 5 take different ones of these settings, or the engine does not know which.
TEST(HfConfigRope, RejectsKeysThatDisagree) {
  const Json base = with(minimal("llama"), {{"rope_theta", 10000.0}});
  const Json four = {{"type", "linear"}, {"factor", 4.0}}, two = {{"rope_type", "linear"}, {"factor", 2.0}};
  const Json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 1024}};
  const std::tuple<Json, const char*, const char*> all[] = {
      {with(base, {{"rope_parameters", {{"rope_theta", 500000.0}}}}), "\"rope_theta\"", "outside \"rope_parameters\""},
      {with(base, {{"rope_scaling", with(four, {{"rope_theta", 500000.0}})}}), "\"rope_theta\"",
       "outside \"rope_scaling\""},
      {with(base, {{"rope_scaling", four}, {"rope_parameters", two}}), "\"rope_scaling\"", "\"rope_parameters\""},
      {with(base, {{"rope_scaling", four}, {"rope_parameters", llama3}}), "\"rope_scaling\"", "\"rope_parameters\""},
      {with(base, {{"rope_scaling", four}, {"rope_parameters", {{"rope_type", "default"}}}}), "\"rope_scaling\"",
       "\"rope_parameters\""},
      {with(minimal("llama"), {{"rope_scaling", four}, {"rope_parameters", with(four, {{"rope_theta", 1e6}})}}),
       "\"rope_scaling\"", "\"rope_parameters\""},
      {with(base, {{"rope_scaling", {{"type", "linear"}, {"rope_type", "llama3"}, {"factor", 2}}}}), "\"type\"",
       "\"rope_type\""},
      {with(base, {{"rope_parameters", {{"type", "yarn"}, {"rope_type", "default"}}}}), "\"type\"", "\"rope_type\""},
      {with(base, {{"rope_scaling", llama3}, {"original_max_position_embeddings", 4096}}),
       "\"original_max_position_embeddings\"", "outside \"rope_scaling\""}};
  for (const auto& [json, first, second] : all) {
    const std::string error = Read(json).error;
    EXPECT_TRUE(contains(error, first) && contains(error, second) && contains(error, ": expected ")) << json << error;
  }
}

TEST(HfConfigRope, RejectsOtherKindsByName) {
  const std::pair<Json, const char*> all[] = {
      {{{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}}}, "found \"yarn\""},
      {{{"rope_scaling", {{"type", "longrope"}, {"short_factor", {1.0}}, {"long_factor", {1.0}}}}}, "\"longrope\""},
      {{{"rope_scaling", {{"type", "su"}}}}, "found \"su\""},
      {{{"rope_parameters", {{"rope_type", "dynamic"}, {"factor", 2.0}}}}, "found \"dynamic\""},
      {{{"rope_parameters", {{"rope_type", nullptr}}}}, "\"rope_type\": expected a string, found null"},
      {{{"rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}}},
       "\"full_attention\": expected a setting"},
      {{{"partial_rotary_factor", 0.75}}, "\"partial_rotary_factor\": expected 1, found 0.75"},
      {{{"rope_parameters", {{"rope_theta", 1e4}, {"partial_rotary_factor", 0.5}}}}, "\"partial_rotary_factor\""}};
  for (const HfFamily& f : kHfFamilies)
    for (const auto& [change, error] : all) {
      Json json = with(minimal(f.model_type), {{"sliding_window", nullptr}});
      json.update(change);
      EXPECT_TRUE(contains(Read(json).error, error)) << json << Read(json).error;
    }
}

// ---- Sliding windows ----

TEST(HfConfigWindow, MustNotBeShorterThanTheContext) {
  const auto config = [](const char* type, const std::vector<std::pair<const char*, Json>>& changes) {
    return with(with(minimal(type), {{"max_position_embeddings", 256}}), changes);
  };
  const Json full(10, "full_attention"), list = Json::array({"full_attention", "sliding_attention"});
  const std::pair<Json, bool> all[] = {
      {config("mistral", {{"sliding_window", 256}}), true},
      {config("mistral", {{"sliding_window", 255}}), false},
      {config("mistral", {}), true},
      {config("phi3", {}), true},
      {config("phi3", {{"sliding_window", 2047}}), true},
      {config("phi3", {{"sliding_window", 128}}), false},
      {config("llama", {{"sliding_window", 128}}), true},
      {config("qwen2", {{"sliding_window", 128}}), true},
      {config("qwen2", {{"sliding_window", 128}, {"use_sliding_window", true}}), true},  // from layer 28
      {config("qwen2", {{"sliding_window", 128}, {"use_sliding_window", true}, {"max_window_layers", 9}}), false},
      {config("qwen3", {{"sliding_window", 128}, {"use_sliding_window", true}, {"max_window_layers", 10}}), true},
      {config("qwen3", {{"use_sliding_window", true}, {"max_window_layers", 0}}), true},
      {config("qwen3", {{"sliding_window", 128}, {"use_sliding_window", true}, {"layer_types", list}}), false},
      {config("qwen3", {{"sliding_window", 256}, {"use_sliding_window", true}, {"layer_types", list}}), true},
      {config("qwen2",
              {{"sliding_window", 9}, {"use_sliding_window", true}, {"max_window_layers", 0}, {"layer_types", full}}),
       true},
      {config("smollm3", {{"sliding_window", 128}, {"use_sliding_window", true}}), false},
      {config("smollm3", {{"sliding_window", 128}, {"use_sliding_window", true}, {"no_rope_layer_interval", 11}}),
       true},
      {config("smollm3", {{"sliding_window", 128}}), true}};
  for (const auto& [json, accepted] : all) {
    const std::string error = Read(json).error;
    EXPECT_EQ(error.empty(), accepted) << json << error;
    EXPECT_TRUE(accepted || contains(error, "\"sliding_window\": expected null, or at least max_position_embeddings"));
  }
  EXPECT_TRUE(contains(Read(config("mistral", {{"sliding_window", 128}})).error, "if max_position_embeddings is 128"));
  for (const char* type : {"llama", "qwen2", "qwen3", "smollm3", "granite"})
    EXPECT_TRUE(contains(Read(config(type, {{"layer_types", list}})).error, "\"layer_types\": expected")) << type;
  const std::string error = Read(config("qwen3", {{"layer_types", {"linear_attention"}}})).error;
  EXPECT_TRUE(contains(error, "\"layer_types\": expected \"full_attention\"") && contains(error, "linear_attention"));
}

// ---- Other architectures ----

TEST(HfConfig, RejectsOtherModelTypesByName) {
  for (const char* type : {"gemma", "qwen2_moe", "qwen3_moe", "mixtral", "phimoe", "granitemoe", "granitemoehybrid",
                           "minicpm3", "ernie4_5_moe", "llama4", "Llama", "cohere", "olmo2", "mpt", ""})
    EXPECT_TRUE(contains(Read(minimal(type)).error, "\"model_type\": expected one of \"llama\", \"mistral\"") &&
                contains(Read(minimal(type)).error, ", found \"" + std::string(type) + "\""))
        << type;
  EXPECT_TRUE(contains(Read(with(minimal("minicpm"), {{"num_experts", 8}})).error, "\"num_experts\": expected 0"));
  for (const HfFamily& f : kHfFamilies)
    for (const char* activation : {"gelu", "relu", "gelu_pytorch_tanh"})
      EXPECT_TRUE(contains(Read(with(minimal(f.model_type), {{"hidden_act", activation}})).error, "\"hidden_act\""));
}

}  // namespace hf_config_test
