// lora_test.cpp: LoRA adapters in PEFT's format, with random A and B. A model with merged adapters has the logits of a
// model whose weights are merged naively here, for every format of the base. Invalid and unsupported adapters are
// rejected with the name of the setting or tensor.
#include "../../export/lora.hpp"

#include <gtest/gtest.h>

#include "../../export/open_checkpoint.hpp"
#include "../support/allocation_limit.hpp"
#include "../support/gguf_file.hpp"
#include "../support/hf_model.hpp"
#include "../support/program.hpp"

namespace lora_test {

using namespace pocket;
using hf::AllWeights;
using hf::Json;
using hf::Weights;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// ---- Bases ----

/// 2 heads of width 8, 1 KV head; settings that llama2.c's format does not store have its defaults.
Json base_config() {
  Json json = hf::small_config();
  json["hidden_size"] = 16;
  json["intermediate_size"] = 12;
  json["num_attention_heads"] = 2;
  json["num_key_value_heads"] = 1;
  json["rms_norm_eps"] = 1e-5;
  json["rope_theta"] = 10000.0;
  return json;
}

/// A folder with a base model.
struct Base {
  TemporaryFolder folder;
  std::string path;
};

void write_hf(const Base& base, const AllWeights& weights, const Json& config = base_config()) {
  base.folder.write("config.json", config.dump());
  base.folder.write("model.safetensors", hf::safetensors_of(weights));
}

std::string floats_of(const Weights& w) {
  return {reinterpret_cast<const char*>(w.numbers.data()), w.numbers.size() * 4};
}

/// With the engine's names, and the rows of queries and keys in the order of Meta, GGUF and llama2.c: the two rows that
/// rotate together are adjacent.
AllWeights interleaved(const AllWeights& weights) {
  AllWeights out;
  for (const auto& [theirs, ours] : hf::names(2)) {
    const Weights& from = weights.at(theirs);
    Weights& to = out[ours] = from;
    const std::string last = ours.substr(ours.rfind('.') + 1);
    for (int row = 0; (last == "wq" || last == "wk") && row < from.shape[0]; row++) {
      const int stored = row / 8 * 8 + row % 4 * 2 + row % 8 / 4;
      std::copy_n(&from.numbers[size_t(row) * 16], 16, &to.numbers[size_t(stored) * 16]);
    }
  }
  return out;
}

void write_llama2c(Base& base, const AllWeights& weights) {
  const AllWeights w = interleaved(weights);
  std::string file;
  for (const int32_t n : {16, 12, 2, 2, 1, -5, 16}) file += gguf::raw(n);
  const auto per_layer = [&](const char* name) {
    for (const char* layer : {"layers.0.", "layers.1."}) file += floats_of(w.at(std::string(layer) + name));
  };
  file += floats_of(w.at("token_embedding"));
  for (const char* name : {"attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3"}) per_layer(name);
  file += floats_of(w.at("final_norm")) + std::string(16 * 8 * 4, '\0') + floats_of(w.at("output"));
  base.path = base.folder.write("model.bin", file);
}

void write_gguf(Base& base, const AllWeights& weights) {
  const AllWeights w = interleaved(weights);
  gguf::GgufFile g;
  g["general.architecture"] = gguf::string("llama");
  g["llama.context_length"] = gguf::u32(16);
  g["llama.embedding_length"] = gguf::u32(16);
  g["llama.block_count"] = gguf::u32(2);
  g["llama.feed_forward_length"] = gguf::u32(12);
  g["llama.attention.head_count"] = gguf::u32(2);
  g["llama.attention.head_count_kv"] = gguf::u32(1);
  g["llama.attention.layer_norm_rms_epsilon"] = gguf::f32(1e-5f);
  const Config c = [] {
    Config k;
    k.n_layers = 2;
    return k;
  }();
  for (const TensorSpec& spec : tensor_specs(c)) {
    const Weights& tensor = w.at(spec.name);
    std::vector<uint64_t> sizes(tensor.shape.rbegin(), tensor.shape.rend());
    g.tensors.push_back({kGgufNames.name(spec.name), sizes, gguf::kF32, floats_of(tensor)});
  }
  base.path = base.folder.write("model.gguf", g.bytes());
}

// ---- Adapters ----

constexpr const char* kModules[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};

/// The folder of a valid adapter of every matrix, which tests corrupt.
struct Adapter {
  TemporaryFolder outside;  // contains the adapter's folder
  std::string path = outside.file("adapter");
  Json config = {
      {"peft_type", "LORA"},
      {"r", 3},
      {"lora_alpha", 5},
      {"bias", "none"},
      {"target_modules", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}},
      {"fan_in_fan_out", false},
      {"use_dora", false},
      {"modules_to_save", nullptr},
      {"rank_pattern", Json::object()}};
  AllWeights factors;

  explicit Adapter(uint64_t seed, const std::map<std::string, int>& other_ranks = {}, int rank = 3) {
    std::filesystem::create_directory(path);
    const AllWeights weights = hf::weights_of(base_config());
    std::vector<std::string> modules = {"lm_head"};
    for (int l = 0; l < 2; l++)
      for (const char* module : kModules) modules.push_back("model.layers." + std::to_string(l) + "." + module);
    for (const std::string& module : modules) {
      const std::vector<int>& shape = weights.at(module + ".weight").shape;
      const auto other = other_ranks.find(module);
      const int r = other == other_ranks.end() ? rank : other->second;
      factors["base_model.model." + module + ".lora_A.weight"] = hf::random_weights({r, shape[1]}, seed++);
      factors["base_model.model." + module + ".lora_B.weight"] = hf::random_weights({shape[0], r}, seed++);
    }
    save();
  }

  void write(const std::string& name, const std::string& bytes) const {
    std::filesystem::remove(path + "/" + name);
    outside.write("adapter/" + name, bytes);
  }
  void save() const {
    write("adapter_config.json", config.dump());
    write("adapter_model.safetensors", hf::safetensors_of(factors));
  }

  /// The error after the folder's name, "" if it opens.
  std::string what(const Json& model = base_config()) const {
    HfModel base;
    LoraAdapter adapter;
    std::string error;
    JsonDocument document;
    EXPECT_TRUE(document.parse("", model.dump()) && read_hf_config(document.root(), base, error)) << error;
    if (adapter.open({path, 1}, base.config)) return "";
    EXPECT_EQ(adapter.error.rfind(path, 0), 0u) << adapter.error;
    const size_t more = adapter.error.rfind(path + "/", 0) == 0 ? 1 : 2;  // "FOLDER/FILE: ..." or "FOLDER: ..."
    return adapter.error.substr(std::min(adapter.error.size(), path.size() + more));
  }
  std::string with(const std::string& key, const Json& value) const {
    Json json = config;
    json[key] = value;
    write("adapter_config.json", json.dump());
    return what();
  }
};

/// weights += scale(module) * B A.
template <class Scale> void add(AllWeights& weights, const Adapter& adapter, const Scale& scale) {
  for (auto& [name, w] : weights) {
    const std::string module = name.substr(0, name.rfind('.')), key = "base_model.model." + module;
    if (adapter.factors.count(key + ".lora_A.weight") == 0) continue;
    const Weights &a = adapter.factors.at(key + ".lora_A.weight"), &b = adapter.factors.at(key + ".lora_B.weight");
    const size_t cols = size_t(w.shape[1]), rank = size_t(a.shape[0]);
    for (size_t i = 0; i < w.numbers.size(); i++) {
      double product = 0;
      for (size_t k = 0; k < rank; k++)
        product += double(b.numbers[i / cols * rank + k]) * double(a.numbers[k * cols + i % cols]);
      w.numbers[i] = float(double(w.numbers[i]) + scale(module) * product);
    }
  }
}

/// Logits (3, vocab_size) of the base with these adapters for some tokens.
std::vector<float> logits(const std::string& base, const std::vector<LoraSource>& sources) {
  Checkpoint c;
  std::string error;
  EXPECT_TRUE(open_checkpoint(base, "", c, error)) << error;
  std::vector<LoraAdapter> adapters(sources.size());
  for (size_t i = 0; i < sources.size(); i++)
    EXPECT_TRUE(adapters[i].open(sources[i], c.config, c.interleaved_adapters)) << adapters[i].error;
  const tiny::MemoryModel m(
      tiny::model_bytes(tiny::parts_of(c.config, Type::f32),
                        [&](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& why) {
                          return c.read_rows(spec.name, first, count, out, why) &&
                                 merge_lora(adapters, spec, first, count, out, why, c.tensors.at(spec.name).scale);
                        }));
  std::vector<float> all;
  for (const int n : {1, 3, 5}) {
    const int ids[] = {1, 4, 0, 2, 3};
    Session session(m.model, {});
    const float* l = session.forward(ids, size_t(n));
    EXPECT_TRUE(l) << session.error;
    if (l) all.insert(all.end(), l, l + c.config.vocab_size);
  }
  return all;
}

std::vector<float> merged_logits(const AllWeights& merged, const Json& config = base_config()) {
  Base base;
  write_hf(base, merged, config);
  return logits(base.folder.path(), {});
}

void expect_close(const std::vector<float>& found, const std::vector<float>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); i++)
    EXPECT_NEAR(found[i], expected[i], 1e-5 * (1 + std::fabs(expected[i]))) << i;
}

// ---- Merging ----

TEST(Lora, LogitsMatchMergedWeights) {
  AllWeights weights = hf::weights_of(base_config());
  Base base;
  write_hf(base, weights);
  const Adapter adapter(100);
  const std::vector<float> found = logits(base.folder.path(), {{adapter.path, 1}});
  EXPECT_NE(found, logits(base.folder.path(), {}));
  add(weights, adapter, [](const std::string&) { return 5.0 / 3; });
  expect_close(found, merged_logits(weights));
}

TEST(Lora, MergesTwoAdaptersWithScales) {
  AllWeights weights = hf::weights_of(base_config());
  Base base;
  write_hf(base, weights);
  const Adapter one(100), two(900);
  const std::vector<float> found = logits(base.folder.path(), {{one.path, 0.5}, {two.path, -0.75}});
  add(weights, one, [](const std::string&) { return 0.5 * 5 / 3; });
  add(weights, two, [](const std::string&) { return -0.75 * 5 / 3; });
  expect_close(found, merged_logits(weights));
  EXPECT_EQ(logits(base.folder.path(), {{one.path, 0}}), logits(base.folder.path(), {})) << "scale 0 changes no bit";
}

TEST(Lora, MergesIntoEveryBaseFormat) {
  const AllWeights weights = hf::weights_of(base_config());
  Base folder, llama2c, gguf_file;
  write_hf(folder, weights);
  write_llama2c(llama2c, weights);
  write_gguf(gguf_file, weights);
  const Adapter adapter(100);
  const std::vector<float> expected = logits(folder.folder.path(), {{adapter.path, 1}});
  EXPECT_EQ(logits(llama2c.path, {{adapter.path, 1}}), expected);
  EXPECT_EQ(logits(gguf_file.path, {{adapter.path, 1}}), expected);
}

// Multipliers are folded into the weights, so that an adapter is multiplied, too.
TEST(Lora, MergesIntoWeightsWithMultipliers) {
  Json config = base_config();
  config["model_type"] = "granite";
  config["embedding_multiplier"] = 3;
  config["residual_multiplier"] = 0.5;
  config["attention_multiplier"] = 0.25;
  config["logits_scaling"] = 4;
  AllWeights weights = hf::weights_of(config);
  Base base;
  write_hf(base, weights, config);
  const Adapter adapter(100);
  const std::vector<float> found = logits(base.folder.path(), {{adapter.path, 1}});
  add(weights, adapter, [](const std::string&) { return 5.0 / 3; });
  expect_close(found, merged_logits(weights, config));
}

// ERNIE 4.5 has the rows of q and k in another order than other models of transformers; so have its adapters.
TEST(Lora, MergesIntoInterleavedRows) {
  Json config = base_config();
  config["model_type"] = "ernie4_5";
  config["head_dim"] = 8;
  AllWeights weights = hf::weights_of(config);
  Base base;
  write_hf(base, weights, config);
  const Adapter adapter(100);
  const std::vector<float> found = logits(base.folder.path(), {{adapter.path, 1}});
  add(weights, adapter, [](const std::string&) { return 5.0 / 3; });
  expect_close(found, merged_logits(weights, config));
}

TEST(Lora, UsesRankAndAlphaPatterns) {
  for (const bool rank_stabilized : {false, true}) {
    AllWeights weights = hf::weights_of(base_config());
    Base base;
    write_hf(base, weights);
    Adapter adapter(100, {{"model.layers.0.self_attn.q_proj", 2}, {"model.layers.1.self_attn.q_proj", 7}});
    adapter.config["use_rslora"] = rank_stabilized;
    adapter.config["rank_pattern"] = {{"layers.0.self_attn.q_proj", 2}, {"q_proj", 7}};
    adapter.config["alpha_pattern"] = {{"mlp.up_proj", 0.5}};
    adapter.save();
    add(weights, adapter, [&](const std::string& module) {
      const double r = module == "model.layers.0.self_attn.q_proj"   ? 2
                       : module == "model.layers.1.self_attn.q_proj" ? 7
                                                                     : 3;
      return (contains(module, "up_proj") ? 0.5 : 5) / (rank_stabilized ? std::sqrt(r) : r);
    });
    expect_close(logits(base.folder.path(), {{adapter.path, 1}}), merged_logits(weights));
  }
}

TEST(Lora, MergesSomeModulesOnly) {
  AllWeights weights = hf::weights_of(base_config());
  Base base;
  write_hf(base, weights);
  Adapter adapter(100);
  for (auto it = adapter.factors.begin(); it != adapter.factors.end();)
    it = contains(it->first, "layers.1.self_attn.v_proj") ? std::next(it) : adapter.factors.erase(it);
  for (const Json& targets :
       {Json::array({"v_proj"}), Json::array({"self_attn.v_proj"}), Json(".*\\.v_proj"), Json()}) {
    adapter.config["target_modules"] = targets;
    adapter.save();
    AllWeights merged = weights;
    add(merged, adapter, [](const std::string&) { return 5.0 / 3; });
    expect_close(logits(base.folder.path(), {{adapter.path, 1}}), merged_logits(merged));
  }
}

/// PEFT sets it to false for linear layers.
TEST(Lora, IgnoresFanInFanOut) { EXPECT_EQ(Adapter(1).with("fan_in_fan_out", true), ""); }

// ---- Rejected adapters ----

TEST(LoraRejects, OtherFolders) {
  const Adapter a(1);
  const auto error_of = [](const std::string& path) {
    LoraAdapter adapter;
    EXPECT_FALSE(adapter.open({path, 1}, Config()));
    return adapter.error;
  };
  EXPECT_TRUE(contains(error_of(a.path + "/none"),
                       "none: expected the folder of a LoRA adapter (adapter_config.json, "
                       "adapter_model.safetensors), found no such folder"));
  EXPECT_TRUE(contains(error_of(a.path + "/adapter_config.json"), "found a file"));
  std::filesystem::remove(a.path + "/adapter_model.safetensors");
  EXPECT_EQ(a.what(), "expected adapter_model.safetensors or adapter_model.bin, found neither");
  a.write("adapter_model.bin", "x");
  EXPECT_TRUE(contains(a.what(), "adapter_model.bin: ")) << a.what();
  std::filesystem::remove(a.path + "/adapter_config.json");
  EXPECT_EQ(a.what(), "expected adapter_config.json, found none");
  a.write("config.json", "{}");
  EXPECT_EQ(a.what(), "expected adapter_config.json, found a complete model; convert it without --lora");
}

TEST(LoraRejects, UnsupportedSettings) {
  const Adapter a(1);
  const std::tuple<const char*, Json, const char*> all[] = {
      {"peft_type", "IA3", "\"peft_type\": expected \"LORA\", found \"IA3\""},
      {"peft_type", nullptr, "\"peft_type\": expected a string, found null"},
      {"bias", "all", "\"bias\": expected \"none\", found \"all\""},
      {"use_dora", true,
       "\"use_dora\": expected none; only plain LoRA is supported: merge the adapter in Python with "
       "merge_and_unload(), found true"},
      {"lora_bias", true, "\"lora_bias\": expected none"},
      {"modules_to_save", {"embed_tokens"}, "\"modules_to_save\": expected none"},
      {"layer_replication", {{0, 1}}, "\"layer_replication\": expected none"},
      {"init_lora_weights", "pissa_niter_4", "\"init_lora_weights\": expected an adapter of the unchanged model"},
      {"r", nullptr, "\"r\": expected a number, found null"},
      {"r", 0, "\"r\": expected an integer from 1 to 65536, found 0"},
      {"r", 2.5, "\"r\": expected an integer"},
      {"r", 4, "tensor base_model.model.lm_head.lora_A.weight: expected shape (4, 16), found (3, 16)"},
      {"lora_alpha", "5", "\"lora_alpha\": expected a number, found \"5\""},
      {"use_rslora", 1, "\"use_rslora\": expected true or false, found 1"},
      {"rank_pattern", {{"q_proj", 2}}, "self_attn.q_proj.lora_A.weight: expected shape (2, 16), found (3, 16)"},
      {"rank_pattern", {{"q_proj", 0}}, "\"q_proj\": expected a number above 0, found 0"},
      {"rank_pattern", {{"q_proj", 2.5}}, "\"q_proj\": expected an integer from 1 to 65536, found 2.5"},
      {"rank_pattern", {{"q_proj", 1e300}}, "\"q_proj\": expected an integer from 1 to 65536"},
      {"rank_pattern",
       {{".*q_proj", 2}},
       "\"rank_pattern\": expected module names as keys (this one is not a plain name"},
      {"alpha_pattern", {{"q_proj", -1}}, "\"q_proj\": expected a number above 0, found -1"},
      {"alpha_pattern", {"q_proj"}, "\"alpha_pattern\": expected an object, found an array"},
      {"target_modules",
       {"q_proj", "c_attn"},
       "\"target_modules\": expected matrices of the model (q_proj, k_proj, v_proj, "
       "o_proj, gate_proj, up_proj, down_proj, lm_head), also for \"c_attn\""},
      {"target_modules", {"embed_tokens"}, "also for \"embed_tokens\""},
      {"target_modules", {1}, "\"target_modules\": expected a list of names"},
      {"target_modules", 1, "\"target_modules\": expected a list of names, found 1"},
      {"target_modules",
       {"q_proj"},
       "lm_head.lora_A.weight: expected a module of target_modules, found another module"}};
  for (const auto& [key, value, expected] : all)
    EXPECT_TRUE(contains(a.with(key, value), expected)) << a.with(key, value);
  for (const char* text : {"", "[]", "{", "null", "5"}) {
    a.write("adapter_config.json", text);
    EXPECT_EQ(a.what().rfind("adapter_config.json", 0), 0u) << a.what();
  }
}

TEST(LoraRejects, WrongTensors) {
  const std::string q = "base_model.model.model.layers.0.self_attn.q_proj.lora_";
  const auto error_with = [&](const std::function<void(AllWeights&)>& spoil) {
    Adapter a(1);
    spoil(a.factors);
    a.save();
    return a.what();
  };
  const std::string file = "adapter_model.safetensors: ";
  EXPECT_EQ(error_with([&](AllWeights& w) { w.erase(q + "B.weight"); }),
            file + "tensor " + q + "B.weight: expected shape (16, 3), found no such tensor");
  EXPECT_EQ(error_with([&](AllWeights& w) {
              w[q + "B.weight"] = hf::random_weights({8, 3}, 1);
            }),
            file + "tensor " + q + "B.weight: expected shape (16, 3), found (8, 3)");
  EXPECT_EQ(error_with([&](AllWeights& w) {
              w[q + "A.weight"] = hf::random_weights({16, 3}, 1);
            }),
            file + "tensor " + q + "A.weight: expected shape (3, 16), found (16, 3)");
  EXPECT_EQ(error_with([&](AllWeights& w) { w[q + "A.weight"] = hf::random_weights({48}, 1); }),
            file + "tensor " + q + "A.weight: expected shape (3, 16), found (48)");
  for (const char* other : {"base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight",
                            "base_model.model.model.embed_tokens.lora_embedding_A",
                            "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
                            "model.layers.0.self_attn.q_proj.lora_A.weight"})
    EXPECT_EQ(error_with([&](AllWeights& w) {
                w[other] = hf::random_weights({3, 16}, 1);
              }),
              file + "tensor " + other +
                  ": expected lora_A.weight and lora_B.weight of the model's matrices, found "
                  "another; is this another model's adapter?");
  for (const char* whole : {"base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight",
                            "base_model.model.lm_head.modules_to_save.weight"})
    EXPECT_EQ(error_with([&](AllWeights& w) {
                w[whole] = hf::random_weights({5, 16}, 1);
              }),
              file + "tensor " + whole +
                  ": expected the factors of a LoRA, found a whole tensor (5, 16), which PEFT saves for "
                  "modules_to_save and for a changed vocabulary; merge the adapter in Python (merge_and_unload()), "
                  "save the model and convert it");
  EXPECT_EQ(
      error_with([&](AllWeights& w) {
        for (const char* layer : {"0", "1"})
          for (const char* factor : {"A", "B"})
            w.erase("base_model.model.model.layers." + std::string(layer) + ".mlp.up_proj.lora_" + factor + ".weight");
      }),
      file + "expected tensors for \"up_proj\" of target_modules, found none");
  for (const float bad : {NAN, INFINITY})
    EXPECT_TRUE(contains(error_with([&](AllWeights& w) { w[q + "B.weight"].numbers[4] = bad; }),
                         file + "tensor " + q + "B.weight: row 1: expected finite numbers, found "));
}

TEST(LoraRejects, AdapterOfAnotherModel) {
  Json wider = base_config();
  wider["hidden_size"] = 32;
  EXPECT_TRUE(contains(Adapter(1).what(wider), "expected shape (3, 32), found (3, 16)"));
  Json tied = base_config();
  tied["tie_word_embeddings"] = true;
  EXPECT_TRUE(contains(Adapter(1).what(tied), "down_proj; its output is the embedding), also for \"lm_head\""));
}

TEST(LoraRejects, TruncatedAndDamagedFiles) {
  const Adapter a(1);
  const std::string config = read_file(a.path + "/adapter_config.json");
  for (size_t n = 0; n < config.size(); n++) {
    a.write("adapter_config.json", config.substr(0, n));
    ASSERT_NE(a.what(), "") << n;
  }
  a.write("adapter_config.json", config);
  const std::string tensors = read_file(a.path + "/adapter_model.safetensors");
  const size_t header = 8 + size_t(load<uint64_t>(tensors.data()));
  for (size_t n = 0; n < tensors.size(); n += n < header ? 1 : 97) {
    a.write("adapter_model.safetensors", tensors.substr(0, n));
    ASSERT_NE(a.what(), "") << n;
  }
  a.write("adapter_model.safetensors", tensors);
  tiny::Random random(5);
  for (int i = 0; i < 2000; i++) {
    std::string damaged = i % 2 ? config : tensors;
    for (int n = 1 + random.below(3); n > 0; n--)
      damaged[size_t(random.below(int(i % 2 ? config.size() : header)))] =
          "0123456789abc{}[]\",: _.-e"[random.below(24)];
    a.write(i % 2 ? "adapter_config.json" : "adapter_model.safetensors", damaged);
    a.what();
    if (i % 2) a.write("adapter_config.json", config);
  }
}

// ---- The command line ----

TEST(LoraArgument, IsAFolderAndAScale) {
  const TemporaryFolder t;
  std::filesystem::create_directory(t.file("a"));
  std::filesystem::create_directory(t.file("a:2"));
  const auto parsed = [&](const std::string& text) {
    LoraSource source;
    std::string error;
    EXPECT_TRUE(parse_lora(text, source, error)) << error;
    return std::pair(source.folder, source.scale);
  };
  EXPECT_EQ(parsed(t.file("a")), std::pair(t.file("a"), 1.0));
  EXPECT_EQ(parsed(t.file("a:0.5")), std::pair(t.file("a"), 0.5));
  EXPECT_EQ(parsed(t.file("a:-1e-1")), std::pair(t.file("a"), -0.1));
  EXPECT_EQ(parsed(t.file("a:2")), std::pair(t.file("a:2"), 1.0)) << "a folder of that name";
  EXPECT_EQ(parsed(t.file("none:2")), std::pair(t.file("none:2"), 1.0)) << "this folder does not exist";
  for (const char* bad : {"a:", "a:x", "a:1x", "a: 1", "a:nan", "a:inf", "a:1e999", "a:0.5:2"}) {
    LoraSource source;
    std::string error;
    EXPECT_EQ(parse_lora(t.file(bad), source, error), bad == std::string("a:0.5:2")) << bad;
    EXPECT_TRUE(error.empty() || contains(error, "expected a number after the colon, found '")) << error;
  }
}

constexpr char kFiveTokens[] =
    R"({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}, "model": {"type": "BPE", "merges": [],
        "vocab": {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}}})";

// The adapter was trained for weights that the model file does not contain.
TEST(LoraConvert, RejectsModelFileWithMultipliers) {
  Json config = base_config();
  config["model_type"] = "granite";
  const Adapter adapter(100);
  const TemporaryFolder out;
  const std::string model = out.file("m.bin");
  for (const double residual : {1.0, 0.5}) {
    Base base;
    config["residual_multiplier"] = residual;
    config["attention_multiplier"] = 1 / std::sqrt(8.0);
    write_hf(base, hf::weights_of(config), config);
    base.folder.write("tokenizer.json", kFiveTokens);
    ASSERT_EQ(run_program({POCKET_CONVERT, base.folder.path(), "--type", "f32", "-o", model}).status, 0);
    const ProgramResult r = run_program({POCKET_CONVERT, model, "--lora", adapter.path, "-o", out.file("n.bin")});
    EXPECT_EQ(r.status, residual == 1 ? 0 : 2) << r.err;
    EXPECT_EQ(contains(r.err, "--lora: not valid for " + model), residual != 1) << r.err;
  }
}

TEST(LoraConvert, TwoAdaptersWithScales) {
  AllWeights weights = hf::weights_of(base_config());
  Base base, merged;
  const Adapter one(100), two(900);
  write_hf(base, weights);
  add(weights, one, [](const std::string&) { return 0.5 * 5 / 3; });
  add(weights, two, [](const std::string&) { return 5.0 / 3; });
  write_hf(merged, weights);
  const TemporaryFolder out;
  const auto convert = [&](const Base& from, std::vector<std::string> more) {
    from.folder.write("tokenizer.json", kFiveTokens);
    more.insert(more.begin(), {POCKET_CONVERT, from.folder.path(), "--type", "f32", "-o", out.file("m.bin")});
    return run_program(more);
  };
  const auto logits_of_file = [&] {
    const ProgramResult r =
        run_program({POCKET_RUN, out.file("m.bin"), "--ids", "1,4,0,2", "--logits", out.file("logits"), "-q"});
    EXPECT_EQ(r.status, 0) << r.err;
    const std::string bytes = read_file(out.file("logits"));
    std::vector<float> all(bytes.size() / 4);
    std::memcpy(all.data(), bytes.data(), bytes.size());
    return all;
  };
  ASSERT_EQ(convert(merged, {}).status, 0);
  const std::vector<float> expected = logits_of_file();
  EXPECT_EQ(expected.size(), 20u);
  const ProgramResult r = convert(base, {"--lora", one.path + ":0.5", "--lora", two.path});
  ASSERT_EQ(r.status, 0) << r.err;
  expect_close(logits_of_file(), expected);
  const std::string info = run_program({POCKET_RUN, out.file("m.bin"), "--info"}).out;
  EXPECT_TRUE(contains(info, "adapter, scale 0.5")) << info;

  std::filesystem::remove(out.file("m.bin"));
  std::filesystem::remove(out.file("logits"));
  expect_failed_in_a_line(convert(base, {"--lora", one.path + ":x"}), "convert", 2,
                          {"--lora", "after the colon", "'x'"});
  expect_failed_in_a_line(convert(base, {"--lora"}), "convert", 2, {"--lora", "FOLDER"});
  expect_failed_in_a_line(convert(base, {"--lora", one.path + "/none"}), "convert", 1, {"none", "LoRA adapter"});
  expect_failed_in_a_line(
      run_program({POCKET_CONVERT, "--random", "tiny", "--lora", one.path, "-o", out.file("m.bin")}), "convert", 2,
      {"--lora", "--random"});
  Adapter overflows(5);
  overflows.config["lora_alpha"] = 1e300;
  overflows.save();
  expect_failed(convert(base, {"--lora", overflows.path}), 1, {"expected a finite number"});
  EXPECT_EQ(out.list(), "");
}

}  // namespace lora_test
