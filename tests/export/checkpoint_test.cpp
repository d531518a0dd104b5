// checkpoint_test.cpp: folders in the format of Hugging Face's transformers, made here. config.json is read or rejected
// with the name of the field; every tensor must exist once with the right shape; an index of shards must be correct and
// stay within the folder.
#include "../../export/open_checkpoint.hpp"

#include <gtest/gtest.h>

#include "../support/allocation_limit.hpp"
#include "../support/hf_model.hpp"
#include "../support/test_data.hpp"
#include "../support/tiny_model.hpp"

namespace checkpoint_test {

using namespace pocket;
using namespace hf;
using tiny::Floats;

/// A folder with a valid model, which tests corrupt.
struct HfFolder {
  TemporaryFolder outside;  // contains the model's folder
  std::string path = outside.file("model");
  Json config = small_config();
  AllWeights weights;
  Checkpoint c;
  std::string error;

  HfFolder() : HfFolder(small_config()) {}
  explicit HfFolder(const Json& json) : config(json), weights(weights_of(json)) {
    std::filesystem::create_directory(path);
    save();
  }

  void write(const std::string& name, const std::string& bytes) {
    std::filesystem::remove(path + "/" + name);
    outside.write("model/" + name, bytes);
  }
  void remove(const std::string& name) { ASSERT_TRUE(std::filesystem::remove(path + "/" + name)) << name; }
  void save() {
    write("config.json", config.dump());
    write("model.safetensors", safetensors_of(weights));
  }

  bool open(const std::string& file = "") {
    error.clear();
    const bool ok = open_checkpoint(file.empty() ? path : path + "/" + file, "", c, error);
    EXPECT_EQ(ok, error.empty()) << error;
    EXPECT_TRUE(ok || error.rfind(path, 0) == 0) << error;
    return ok;
  }
  /// The error after the folder's name; "" if it opens.
  std::string what(const std::string& file = "") {
    open(file);
    const size_t more = error.rfind(path + "/", 0) == 0 ? 1 : 2;  // "FOLDER/FILE: ..." or "FOLDER: ..."
    return error.substr(std::min(error.size(), path.size() + more));
  }
  /// The error with another config.json.
  std::string with(const Json& json) {
    write("config.json", json.dump());
    return what();
  }
  std::string with(const std::string& key, const Json& value) {
    Json json = config;
    json[key] = value;
    return with(json);
  }
  std::string without(const std::string& key) {
    Json json = config;
    json.erase(key);
    return with(json);
  }

  Floats read(const std::string& name) {
    const StoredTensor& t = c.tensors.at(name);
    Floats out(size_t(t.rows * t.cols));
    EXPECT_TRUE(c.read_rows(name, 0, t.rows, out.data(), error)) << error;
    return out;
  }
  void expect_all_numbers() {
    for (const auto& [theirs, ours] : names(config["num_hidden_layers"])) {
      const Floats found = read(ours);
      const std::vector<float>& expected = weights.at(theirs).numbers;
      EXPECT_TRUE(found.size() == expected.size() && std::equal(found.begin(), found.end(), expected.begin())) << ours;
    }
  }
};

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// ---- Valid folders ----

TEST(HuggingFaceFolder, ReadsConfiguration) {
  HfFolder f;
  ASSERT_TRUE(f.open()) << f.error;
  const Config& k = f.c.config;
  EXPECT_EQ(k.dim, 8);
  EXPECT_EQ(k.hidden_dim, 6);
  EXPECT_EQ(k.n_layers, 2);
  EXPECT_EQ(k.n_heads, 4);
  EXPECT_EQ(k.n_kv_heads, 2);
  EXPECT_EQ(k.head_dim, 2);
  EXPECT_EQ(k.vocab_size, 5);
  EXPECT_EQ(k.max_seq_len, 16);
  EXPECT_EQ(k.norm_eps, 0.25f);
  EXPECT_EQ(k.rope_theta, 500000.f);
  EXPECT_EQ(k.rope_scaling, RopeScaling::none);
  EXPECT_FALSE(k.tied);
  EXPECT_EQ(f.c.format, "safetensors");
  EXPECT_EQ(f.c.source, "model");
  EXPECT_FALSE(f.c.has_tokenizer);
}

TEST(HuggingFaceFolder, ReadsEveryTensorInStoredRowOrder) {
  HfFolder f;
  ASSERT_TRUE(f.open()) << f.error;
  f.expect_all_numbers();
  EXPECT_EQ(f.c.tensors.size(), 21u);
  for (const TensorSpec& spec : tensor_specs(f.c.config)) {
    ASSERT_EQ(f.c.tensors.count(spec.name), 1u) << spec.name;
    EXPECT_EQ(f.c.tensors[spec.name].interleaved_heads, 0) << "wq and wk are half-split already";
  }
}

TEST(HuggingFaceFolder, ReadsHeadDim) {
  Json json = small_config();
  json["head_dim"] = 6;
  HfFolder f(json);
  ASSERT_TRUE(f.open()) << f.error;
  EXPECT_EQ(f.c.config.head_dim, 6);
  EXPECT_EQ(f.c.tensors["layers.0.wq"].rows, 24);
  f.expect_all_numbers();
  f.config["num_attention_heads"] = 3;
  f.config["num_key_value_heads"] = 3;  // 8 is not a multiple of 3; with head_dim this is valid
  f.weights = weights_of(f.config);
  f.save();
  EXPECT_TRUE(f.open()) << f.error;
}

TEST(HuggingFaceFolder, UsesTransformersDefaults) {
  HfFolder f;
  Json json = small_config();
  for (const char* key : {"num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings", "hidden_act",
                          "attention_bias", "tie_word_embeddings", "rope_scaling", "head_dim", "torch_dtype"})
    json.erase(key);
  f.config["num_key_value_heads"] = 4;
  f.weights = weights_of(f.config);
  f.save();
  EXPECT_EQ(f.with(json), "");
  EXPECT_EQ(f.c.config.n_kv_heads, 4);
  EXPECT_EQ(f.c.config.norm_eps, 1e-6f);
  EXPECT_EQ(f.c.config.rope_theta, 10000.f);
  EXPECT_EQ(f.c.config.max_seq_len, 2048);
  EXPECT_FALSE(f.c.config.tied);
}

TEST(HuggingFaceFolder, TiesOutputToEmbedding) {
  HfFolder f;
  f.config["tie_word_embeddings"] = true;
  f.weights["lm_head.weight"] = f.weights["model.embed_tokens.weight"];
  for (const bool has_head : {true, false}) {
    if (!has_head) f.weights.erase("lm_head.weight");
    f.save();
    ASSERT_TRUE(f.open()) << f.error;
    EXPECT_TRUE(f.c.config.tied && f.c.notes.empty());
    EXPECT_EQ(f.read("output"), f.read("token_embedding"));
  }
  f.config["tie_word_embeddings"] = false;
  f.save();
  EXPECT_EQ(f.what(), "tensor lm_head.weight: expected shape (5, 8), found no such tensor");
}

// One changed weight, in any row, makes the output matrix another one.
TEST(HuggingFaceFolder, KeepsTrainedOutputMatrixOfTiedModel) {
  HfFolder f;
  f.config["tie_word_embeddings"] = true;
  for (const size_t changed : {0, 17, 39}) {
    f.weights["lm_head.weight"] = f.weights["model.embed_tokens.weight"];
    f.weights["lm_head.weight"].numbers[changed] += 0.001f;
    f.save();
    ASSERT_TRUE(f.open()) << f.error;
    EXPECT_FALSE(f.c.config.tied);
    f.expect_all_numbers();
    EXPECT_EQ(f.c.notes, std::vector<std::string>{
                             f.path + ": tensor lm_head.weight differs from the embedding, though the configuration "
                                      "says that they are the same; it is kept"});
  }
}

TEST(HuggingFaceFolder, ReadsBaseModels) {
  HfFolder f;
  const auto without_prefix = [](const AllWeights& weights) {
    AllWeights named;
    for (const auto& [name, w] : weights) named[name.rfind("model.", 0) == 0 ? name.substr(6) : name] = w;
    return named;
  };
  f.write("model.safetensors", safetensors_of(without_prefix(f.weights)));
  ASSERT_TRUE(f.open()) << f.error;
  EXPECT_TRUE(!f.c.config.tied && f.c.notes.empty());
  f.expect_all_numbers();
  AllWeights headless = f.weights;
  headless.erase("lm_head.weight");
  for (const bool tied : {true, false}) {
    f.config["tie_word_embeddings"] = tied;
    f.save();
    f.write("model.safetensors", safetensors_of(without_prefix(headless)));
    ASSERT_TRUE(f.open()) << f.error;
    EXPECT_TRUE(f.c.config.tied);
    EXPECT_EQ(f.read("output"), f.read("token_embedding"));
    EXPECT_EQ(f.c.notes.size(), tied ? 0u : 1u);
  }
  headless["layers.0.self_attn.q_proj.scale"] = {{8}, std::vector<float>(8)};
  f.write("model.safetensors", safetensors_of(without_prefix(headless)));
  EXPECT_TRUE(contains(f.what(), "tensor model.layers.0.self_attn.q_proj.scale: expected the tensors of a Llama"))
      << f.error;
}

TEST(HuggingFaceFolder, OpensByFileName) {
  HfFolder f;
  EXPECT_EQ(f.what("model.safetensors"), "");
  f.expect_all_numbers();
  EXPECT_EQ(f.what("/"), "");
  std::filesystem::rename(f.path + "/model.safetensors", f.path + "/other.safetensors");
  EXPECT_EQ(f.what("other.safetensors"), "");
  EXPECT_EQ(f.what(),
            "expected weights (model.safetensors, pytorch_model.bin, or the index of shards), found none; to read a "
            "file with another name, name the file");
}

// dtypes are those of float32 bytes under another name.
TEST(HuggingFaceFolder, IgnoresSavedBuffersOfAnyType) {
  HfFolder f;
  const std::pair<const char*, std::vector<int>> all[] = {
      {"model.layers.1.self_attn.rotary_emb.inv_freq", {2}},
      {"model.rotary_emb.inv_freq", {2}},
      {"model.layers.0.self_attn.rotary_emb.cos_cached", {1, 1, 2, 2}},
      {"rope.freqs", {2}},
      {"freqs_cos", {16, 2}},
      {"model.freqs_sin", {16, 2}},
      {"model.layers.0.attention.mask", {1, 1, 4, 4}},
      {"model.layers.0.attention.bias", {1, 1, 4, 4}},
      {"model.layers.0.attn.masked_bias", {1}},
  };
  for (const auto& [name, shape] : all)
    for (const char* dtype : {"F32", "F64", "I64", "BOOL", "U8"}) {
      AllWeights more = f.weights;
      more[name] = random_weights(shape, 1);
      std::string file = safetensors_of(more);
      const size_t entry = file.find(std::string("\"") + name + "\""), length = file.find("F32\"", entry);
      file.replace(file.rfind("F32", length), 4, std::string(dtype) + "\"");
      const uint64_t header = load<uint64_t>(file.data()) + std::string(dtype).size() - 3;
      std::memcpy(file.data(), &header, 8);
      f.write("model.safetensors", file);
      ASSERT_EQ(f.what(), "") << name << " " << dtype;
      f.expect_all_numbers();
    }
  for (const char* real :
       {"model.layers.0.self_attn.bias", "model.layers.0.attention.bias", "model.mask", "inv_freq"}) {
    AllWeights more = f.weights;
    more[real] = {{8}, std::vector<float>(8)};
    f.write("model.safetensors", safetensors_of(more));
    EXPECT_TRUE(contains(f.what(), "this is another architecture")) << real;
  }
}

TEST(HuggingFaceFolder, ReadsLicenceFromModelCard) {
  HfFolder f;
  const std::pair<const char*, const char*> all[] = {{"---\nlanguage: en\nlicense: mit\n---\n# Model", "mit"},
                                                     {"---\r\nlicense: mit\r\n---\n", ""},
                                                     {"---\nlicense:   apache-2.0\r\n---\n", "apache-2.0"},
                                                     {"---\nlicense:", ""},
                                                     {"---\nname: x\n---\nlicense: mit\n", ""},
                                                     {"license: mit\n", ""},
                                                     {"---\n", ""},
                                                     {"", ""}};
  for (const auto& [card, expected] : all) {
    f.write("README.md", card);
    ASSERT_EQ(f.what(), "");
    EXPECT_EQ(f.c.licence, expected) << card;
  }
}

// ---- Tokenizer and end-of-text ids ----

TEST(HuggingFaceFolder, ReadsTokenizer) {
  NEED_DATA(data, "hf/gqa-f32");
  Json json = small_config();
  json["vocab_size"] = 512;
  HfFolder f(json);
  for (const char* name : {"tokenizer.model", "tokenizer_config.json"}) f.write(name, read_file(data + "/" + name));
  f.write("generation_config.json", "{\"eos_token_id\": [2, 7, 9, 7]}");
  ASSERT_TRUE(f.open()) << f.error;
  EXPECT_TRUE(f.c.has_tokenizer);
  EXPECT_EQ(f.c.vocabulary.pieces.size(), 512u);
  EXPECT_EQ(f.c.bos_token, "<s>");
  EXPECT_EQ(f.c.eos_token, "</s>");
  EXPECT_EQ(f.c.stop_ids, (std::vector<int>{2, 7, 9}));
  f.write("tokenizer.model", "");
  EXPECT_EQ(f.what().find("tokenizer.model: expected a tokenizer (SentencePiece, tokenizer.json or llama2.c), found "),
            0u)
      << f.error;
}

TEST(HuggingFaceFolder, RejectsTokenizerOfAnotherModel) {
  NEED_DATA(data, "hf/gqa-f32/tokenizer.model");
  HfFolder f;
  f.write("tokenizer.model", read_file(data));
  EXPECT_EQ(f.what(),
            "tokenizer.model: expected the model's 5 tokens, found 512; this is the tokenizer of another model");
}

TEST(HuggingFaceFolder, ChecksEndOfTextIds) {
  HfFolder f;
  EXPECT_EQ(f.with("eos_token_id", 4), "");
  EXPECT_EQ(f.c.stop_ids, std::vector<int>{4});
  EXPECT_EQ(f.with("eos_token_id", Json::array({1, 3})), "");
  EXPECT_EQ(f.c.stop_ids, (std::vector<int>{1, 3}));
  EXPECT_EQ(f.with("eos_token_id", -1) + f.with("eos_token_id", nullptr) + f.with("eos_token_id", Json::array()), "");
  EXPECT_TRUE(f.c.stop_ids.empty());
  for (const char* outside : {"5", "-2", "2147483648", "9223372036854775807", "[1, 5]", "[-2]"}) {
    EXPECT_EQ(f.with("eos_token_id", Json::parse(outside)), "");
    EXPECT_EQ(f.c.stop_ids, (outside == std::string("[1, 5]") ? std::vector<int>{1} : std::vector<int>()));
    EXPECT_TRUE(f.c.notes.size() == 1 && contains(f.c.notes[0], "\"eos_token_id\": expected an id below 5, found "))
        << outside;
  }
  EXPECT_EQ(f.with("eos_token_id", Json(std::vector<int>(100000, 7))), "");
  EXPECT_LT(f.c.notes.size(), 10u);
  for (const char* bad : {"1.0", "\"2\"", "{}", "true", "9223372036854775808", "[1.5]", "[\"2\"]", "[[2]]", "[null]"})
    EXPECT_TRUE(contains(f.with("eos_token_id", Json::parse(bad)), "\"eos_token_id\": expected ")) << bad << f.error;
  f.save();
  f.write("generation_config.json", "{\n \"eos_token_id\": 99}");
  EXPECT_EQ(f.what(), "");
  EXPECT_EQ(f.c.notes,
            std::vector<std::string>{
                f.path + "/generation_config.json:2:18: \"eos_token_id\": expected an id below 5, found 99; ignored"});
  f.write("generation_config.json", "{\"eos_token_id\": 1");
  EXPECT_EQ(f.what(), "generation_config.json:1:19: expected ',' or '}', found the end");
}

TEST(HuggingFaceFolder, ReadsAddedTokens) {
  NEED_DATA(data, "hf/gqa-f32/tokenizer.model");
  Json json = small_config();
  json["vocab_size"] = 520;
  HfFolder f(json);
  f.write("tokenizer.model", read_file(data));
  const auto added = [&](const std::string& id, const Json& token) {
    f.write("tokenizer_config.json", Json{{"added_tokens_decoder", {{id, token}}}}.dump());
    return f.what();
  };
  EXPECT_EQ(added("514", {{"content", "<|user|>"}, {"special", true}}), "");
  EXPECT_EQ(f.c.vocabulary.pieces[514].text, "<|user|>");
  EXPECT_EQ(f.c.vocabulary.pieces[514].type, Tokenizer::PieceType::control);
  EXPECT_EQ(f.c.vocabulary.pieces[513].type, Tokenizer::PieceType::unused);
  EXPECT_EQ(f.c.vocabulary.pieces.size(), 520u);
  EXPECT_EQ(added("520", {{"content", "<|user|>"}}) + added("2147483647", {{"content", "<|end|>"}}), "")
      << "the model has no row for it";
  const std::string field = "tokenizer_config.json:1:";
  for (const char* id : {"-1", "", "x", "5x", "99999999999999999999999"})
    EXPECT_TRUE(added(id, {{"content", "a"}}).find(field) == 0 &&
                contains(f.error, "\"added_tokens_decoder\": expected ids and texts"))
        << f.error;
  for (const Json& token : {Json(1), Json("a"), Json(nullptr), Json::object(), Json{{"content", 1}}})
    EXPECT_TRUE(added("514", token).find(field) == 0 && contains(f.error, "\"content\": expected a string, found "))
        << f.error;
  EXPECT_EQ(added("1", {{"content", "<bos>"}}),
            "tokenizer_config.json: token 1: expected \"<s>\", as in " + f.path + "/tokenizer.model, found \"<bos>\"");
  EXPECT_TRUE(
      contains(added("514", {{"content", "a"}, {"special", 1}}), "\"special\": expected true or false, found 1"))
      << f.error;
  for (const char* key : {"bos_token", "eos_token"}) {
    f.write("tokenizer_config.json", Json{{key, "<new>"}}.dump());
    EXPECT_EQ(f.what(), "");
    EXPECT_EQ(f.c.vocabulary.pieces[512].text, "<new>") << "the next id";
    json["vocab_size"] = 512;
    HfFolder full(json);
    full.write("tokenizer.model", read_file(data));
    full.write("tokenizer_config.json", Json{{key, "<none>"}}.dump());
    EXPECT_TRUE(
        contains(full.what(), std::string("\"") + key + "\": expected a token of the vocabulary, found \"<none>\""))
        << full.error;
  }
}

TEST(HuggingFaceFolder, RejectsSettingsThatAreNotAnObject) {
  for (const char* name : {"generation_config.json", "tokenizer_config.json"}) {
    HfFolder f;
    for (const char* bad : {" ", "{", "[2", "{\"eos_token_id\": }"}) {
      f.write(name, bad);
      EXPECT_EQ(f.what().find(std::string(name) + ":1:"), 0u) << f.error;
    }
    for (const char* bad : {"[2]", "\"text\"", "5", "true"}) {
      f.write(name, bad);
      EXPECT_EQ(f.what().find(name), 0u) << name << " with " << bad << " opened";
    }
  }
}

TEST(HuggingFaceFolder, Reads16BitWeights) {
  for (const bool bf16 : {false, true}) {
    HfFolder f;
    Json header = Json::object();
    std::string data;
    for (auto& [name, w] : f.weights) {
      const size_t begin = data.size();
      for (float& number : w.numbers) {  // -1, 1.5 or 2, which both formats represent exactly
        const int which = std::abs(int(number * 100)) % 3;
        const uint16_t f16[] = {0xBC00, 0x3E00, 0x4000}, b16[] = {0xBF80, 0x3FC0, 0x4000};
        const uint16_t bits = bf16 ? b16[which] : f16[which];
        data += {char(bits & 255), char(bits >> 8)};
        number = which == 0 ? -1.f : which == 1 ? 1.5f : 2.f;
      }
      header[name] = {{"dtype", bf16 ? "BF16" : "F16"}, {"shape", w.shape}, {"data_offsets", {begin, data.size()}}};
    }
    const uint64_t n = header.dump().size();
    f.write("model.safetensors", std::string(reinterpret_cast<const char*>(&n), 8) + header.dump() + data);
    ASSERT_TRUE(f.open()) << f.error;
    f.expect_all_numbers();
  }
}

// ---- config.json ----

struct Field {
  const char* name;
  int64_t most;
  bool needed;
};
const Field kFields[] = {{"hidden_size", 1 << 16, true},
                         {"intermediate_size", 1 << 20, true},
                         {"num_hidden_layers", 1 << 10, true},
                         {"num_attention_heads", 1 << 10, true},
                         {"vocab_size", 1 << 22, true},
                         {"num_key_value_heads", 4, false},
                         {"max_position_embeddings", 1 << 22, false},
                         {"head_dim", 1024, false}};

TEST(ConfigJson, RejectsMissingFields) {
  HfFolder f;
  for (const Field& field : kFields) {
    if (!field.needed) continue;
    const std::string expected = std::string("\"") + field.name + "\": expected a number, found ";
    EXPECT_EQ(f.without(field.name), "config.json:1:1: " + expected + "nothing");
    EXPECT_TRUE(contains(f.with(field.name, nullptr), expected + "null")) << f.error;
  }
  EXPECT_EQ(f.without("model_type"), "config.json:1:1: \"model_type\": expected a string, found nothing");
}

TEST(ConfigJson, RejectsFieldsOfWrongKind) {
  HfFolder f;
  for (const Field& field : kFields) {
    for (const Json& value : {Json("8"), Json(true), Json::array({8}), Json::object(), Json(8.0), Json(8.5)})
      EXPECT_TRUE(contains(f.with(field.name, value), std::string("\"") + field.name + "\": expected ")) << f.error;
    for (const char* value : {"-1", "2147483648", "-2147483649", "4294967304", "18446744073709551624"}) {
      Json json = f.config;
      json[field.name] = "VALUE";
      std::string text = json.dump();
      text.replace(text.find("\"VALUE\""), 7, value);
      f.write("config.json", text);
      EXPECT_TRUE(contains(
          f.what(), std::string("\"") + field.name + "\": expected an integer from 0 to 2147483647, found " + value))
          << f.error;
    }
  }
  const std::pair<const char*, Json> others[] = {{"rms_norm_eps", "1e-5"},
                                                 {"rms_norm_eps", true},
                                                 {"rope_theta", "10000"},
                                                 {"rope_theta", Json::array()},
                                                 {"hidden_act", 1},
                                                 {"tie_word_embeddings", 1},
                                                 {"tie_word_embeddings", "no"},
                                                 {"attention_bias", 0},
                                                 {"mlp_bias", "false"},
                                                 {"model_type", 1},
                                                 {"model_type", Json::array({"llama"})},
                                                 {"partial_rotary_factor", "1"}};
  for (const auto& [key, value] : others)
    EXPECT_TRUE(contains(f.with(key, value), std::string("\"") + key + "\": expected ") &&
                contains(f.error, ", found "))
        << key << ": " << f.error;
}

TEST(ConfigJson, RejectsInvalidSizes) {
  HfFolder f;
  for (const Field& field : kFields)
    for (const int64_t value : {int64_t(0), field.most + 1, int64_t(INT32_MAX)}) {
      const std::string error = f.with(field.name, value);
      const bool divides = contains(error, "\"hidden_size\": expected a multiple of num_attention_heads, found ");
      const std::string expected = std::string("config.json: ") + field.name + ": expected ";
      EXPECT_TRUE(divides || (error.find(expected) == 0 && contains(error, ", found " + std::to_string(value))))
          << field.name << ": " << f.error;
    }
  for (const char* key : {"rms_norm_eps", "rope_theta"})
    for (const double value : {0., -1., 1e-60, 1e39, 1e300, -1e300})
      EXPECT_TRUE(contains(f.with(key, value), std::string("config.json: ") + key + ": expected "))
          << key << " = " << value << f.error;
  f.write("config.json",
          "{\"model_type\": \"llama\", \"hidden_size\": 8, \"intermediate_size\": 6, \"num_hidden_layers\": 2,"
          "\"num_attention_heads\": 4, \"vocab_size\": 5, \"rms_norm_eps\": 1e999}");
  EXPECT_TRUE(contains(f.what(), "\"rms_norm_eps\": expected a finite number, found 1e999")) << f.error;
}

TEST(ConfigJson, ComparesLargestSizesWithTensors) {
  HfFolder f;
  for (const Field& field : kFields) {
    if (field.name == std::string("max_position_embeddings") || field.name == std::string("num_key_value_heads"))
      continue;
    Json json = f.config;
    json["head_dim"] = 2;
    json[field.name] = field.most;
    EXPECT_TRUE(contains(f.with(json), "tensor ") && contains(f.error, ": expected shape (")) << f.error;
  }
  Json json = f.config;
  for (const Field& field : kFields) json[field.name] = field.most;
  EXPECT_EQ(f.with(json),
            "model.safetensors: tensor model.embed_tokens.weight: expected shape (4194304, 65536), found (5, 8)");
  EXPECT_EQ(f.with("max_position_embeddings", 1 << 22), "") << "no tensor depends on it";
}

TEST(ConfigJson, RejectsHeadsThatDoNotDivide) {
  HfFolder f;
  EXPECT_TRUE(contains(f.with("num_attention_heads", 3),
                       "\"hidden_size\": expected a multiple of num_attention_heads, found 8"));
  EXPECT_TRUE(contains(f.with("num_attention_heads", 8), "head_dim: expected 2 to 1024, found 1")) << f.error;
  EXPECT_TRUE(contains(f.with("num_key_value_heads", 3), "num_key_value_heads: expected a divisor of 4 heads, found 3"))
      << f.error;
  EXPECT_TRUE(contains(f.with("num_key_value_heads", 5), "num_key_value_heads: expected 1 to 4, found 5")) << f.error;
  EXPECT_TRUE(contains(f.with("head_dim", 3), "head_dim: expected an even number, found 3")) << f.error;
}

TEST(ConfigJson, RejectsOtherArchitectures) {
  HfFolder f;
  const auto refused = [&](const std::string& key, const Json& value, const std::string& why) {
    EXPECT_TRUE(contains(f.with(key, value), "config.json:1:") && contains(f.error, "\"" + key + "\": expected " + why))
        << f.error;
  };
  for (const char* type : {"gemma", "gpt2", "mixtral", "LLAMA", "llama4", ""})
    refused("model_type", type, "one of \"llama\", ");
  for (const char* activation : {"gelu", "gelu_new", "relu", "swish", "SiLU", ""})
    refused("hidden_act", activation, "\"silu\", found " + Json(activation).dump());
  refused("quantization_config", {{"quant_method", "gptq"}}, "none: quantized weights are not supported (\"gptq\")");
  refused("quantization_config", "awq", "none: quantized weights are not supported");
  f.with("partial_rotary_factor", 0.5);
  EXPECT_TRUE(contains(f.error, "\"partial_rotary_factor\": expected 1")) << f.error;
  EXPECT_EQ(f.with("partial_rotary_factor", 1.0), "");
}

TEST(ConfigJson, AcceptsMistralWithinItsWindow) {
  Json json = small_config();
  json["model_type"] = "mistral";
  HfFolder f(json);
  EXPECT_EQ(f.what() + f.with("sliding_window", nullptr) + f.with("sliding_window", 16), "")
      << "4096 and more positions";
  EXPECT_TRUE(contains(f.with("sliding_window", 15),
                       "\"sliding_window\": expected null, or at least max_position_embeddings, found 15"));
  EXPECT_TRUE(contains(f.without("max_position_embeddings"), "\"sliding_window\": expected null, or at least"))
      << f.error;
  EXPECT_TRUE(contains(f.without("num_key_value_heads"), "num_key_value_heads: expected 1 to 4, found 8")) << f.error;
}

TEST(ConfigJson, RejectsInvalidJson) {
  HfFolder f;
  const std::pair<const char*, const char*> all[] = {
      {"", "config.json: expected JSON, found an empty file"},
      {"{\n\"model_type\": }", "config.json:2:15: expected a value, found '}'"},
      {"[]", "config.json: expected an object, found an array"},
      {"null", "config.json: expected an object, found null"},
      {"\"{}\"", "config.json: expected an object, found \"{}\""}};
  for (const auto& [text, expected] : all) {
    f.write("config.json", text);
    EXPECT_EQ(f.what(), expected);
  }
  f.remove("config.json");
  EXPECT_EQ(f.what(), "expected config.json, found weights without it; download config.json too");
  f.remove("model.safetensors");
  EXPECT_EQ(f.what(),
            "expected config.json, found none; name a file, or a folder in the format of Hugging Face's transformers");
  f.write("model.safetensors", safetensors_of(f.weights));
  f.write("params.json", "{}");
  EXPECT_EQ(f.what(), "params.json:1:1: \"dim\": expected a number, found nothing");
  f.remove("params.json");
  f.write("adapter_config.json", "{}");
  EXPECT_TRUE(contains(f.what(), "found a LoRA adapter; name its base model, and the adapter with --lora"));
}

TEST(ConfigJson, SurvivesTruncationAndDamage) {
  HfFolder f;
  const std::string whole = f.config.dump();
  for (size_t n = 0; n < whole.size(); n++) {
    f.write("config.json", whole.substr(0, n));
    ASSERT_EQ(f.what().find("config.json:"), 0u) << n;
  }
  tiny::Random random(9);
  for (int i = 0; i < 1500; i++) {
    std::string text = whole;
    for (int n = 1 + random.below(3); n > 0; n--) {
      const size_t at = size_t(random.below(int(text.size())));
      if (random.below(3) == 0)
        text[at] = char(random.bits());
      else if (random.below(2))
        text.erase(at, 1);
      else
        text.insert(at, 1, "0123456789-.e\"{}[],:"[random.below(20)]);
    }
    f.write("config.json", text);
    f.what();
  }
}

// ---- Rotary frequencies ----

TEST(ConfigJsonRope, ReadsLinearScaling) {
  HfFolder f;
  for (const char* key : {"type", "rope_type"}) {
    ASSERT_EQ(f.with("rope_scaling", {{key, "linear"}, {"factor", 2.5}}), "");
    EXPECT_EQ(f.c.config.rope_scaling, RopeScaling::linear);
    EXPECT_EQ(f.c.config.rope_factor, 2.5f);
    EXPECT_EQ(f.c.config.rope_theta, 500000.f);
  }
}

const Json kLlama3 = {{"rope_type", "llama3"},
                      {"factor", 8.0},
                      {"low_freq_factor", 1.5},
                      {"high_freq_factor", 6.0},
                      {"original_max_position_embeddings", 8192}};

TEST(ConfigJsonRope, ReadsLlama3Scaling) {
  HfFolder f;
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    ASSERT_EQ(f.with(key, kLlama3), "");
    const Config& c = f.c.config;
    EXPECT_EQ(c.rope_scaling, RopeScaling::llama3);
    EXPECT_EQ(c.rope_factor, 8.f);
    EXPECT_EQ(c.rope_low_freq, 1.5f);
    EXPECT_EQ(c.rope_high_freq, 6.f);
    EXPECT_EQ(c.rope_original_len, 8192);
  }
}

TEST(ConfigJsonRope, ReadsThetaFromRopeParameters) {
  HfFolder f;
  f.config.erase("rope_theta");
  ASSERT_EQ(f.with("rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1000000.0}}), "");
  EXPECT_EQ(f.c.config.rope_theta, 1000000.f);
  EXPECT_EQ(f.c.config.rope_scaling, RopeScaling::none);
}

TEST(ConfigJsonRope, RejectsUnknownTypes) {
  HfFolder f;
  for (const char* type : {"dynamic", "yarn", "longrope", "su", "Linear", ""})
    for (const char* key : {"type", "rope_type"}) {
      f.with("rope_scaling", {{key, type}, {"factor", 2.0}});
      EXPECT_TRUE(contains(f.error, std::string("config.json:1:")) &&
                  contains(f.error, std::string("\"") + key +
                                        "\": expected \"default\", \"linear\" or \"llama3\", found " +
                                        Json(type).dump()))
          << f.error;
    }
  EXPECT_TRUE(contains(f.with("rope_scaling", {{"type", 1}, {"factor", 2.0}}), "\"type\": expected a string, found 1"));
}

TEST(ConfigJsonRope, RejectsMissingAndInvalidSettings) {
  HfFolder f;
  for (const char* key : {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
    Json rope = kLlama3;
    rope.erase(key);
    EXPECT_TRUE(
        contains(f.with("rope_scaling", rope), std::string("\"") + key + "\": expected a number, found nothing"))
        << f.error;
    for (const Json& bad : {Json("8"), Json(nullptr), Json(true), Json::array()}) {
      rope[key] = bad;
      EXPECT_TRUE(contains(f.with("rope_scaling", rope), std::string("\"") + key + "\": expected a number, found "))
          << f.error;
    }
    for (const double bad : {0., -1., 1e38, 1e300}) {
      rope[key] = bad;
      if (bad == 0 || bad == -1) rope[key] = int(bad);
      f.with("rope_scaling", rope);
      EXPECT_TRUE(contains(f.error, "config.json") &&
                  (contains(f.error, std::string(key) + ": expected ") ||
                   contains(f.error, std::string(key) + "\": expected ") ||
                   contains(f.error, "high_freq_factor: expected more than rope_low_freq")))
          << key << " = " << bad << ": " << f.error;
    }
  }
  for (const Json& bad : {Json(64.0), Json(0), Json(-1), Json((1 << 24) + 1)}) {
    Json rope = kLlama3;
    rope["original_max_position_embeddings"] = bad;
    EXPECT_TRUE(contains(f.with("rope_scaling", rope), "original_max_position_embeddings") &&
                contains(f.error, ": expected "))
        << f.error;
  }
  Json rope = kLlama3;
  rope["high_freq_factor"] = 1.5;
  EXPECT_TRUE(contains(f.with("rope_scaling", rope), "high_freq_factor: expected more than rope_low_freq"));
  EXPECT_TRUE(contains(f.with("rope_scaling", {{"type", "linear"}}), "\"factor\": expected a number, found nothing"));
}

TEST(ConfigJsonRope, RejectsScalingThatIsNotAnObject) {
  HfFolder f;
  for (const char* key : {"rope_scaling", "rope_parameters"})
    for (const Json& bad : {Json("linear"), Json(4.0), Json::array({"linear", 4.0}), Json(true)})
      EXPECT_TRUE(contains(f.with(key, bad), std::string("\"") + key + "\": expected "))
          << key << ": " << bad << ": opened " << f.error;
}

// ---- Tensors ----

TEST(FolderTensors, ReportsMissingTensors) {
  HfFolder f;
  for (const auto& [theirs, ours] : names(2)) {
    AllWeights left = f.weights;
    left.erase(theirs);
    f.write("model.safetensors", safetensors_of(left));
    EXPECT_EQ(f.what(), "tensor " + theirs + ": expected shape " +
                            shape_text({f.weights[theirs].shape.begin(), f.weights[theirs].shape.end()}) +
                            ", found no such tensor");
  }
}

TEST(FolderTensors, ReportsWrongShapes) {
  HfFolder f;
  for (const auto& [theirs, ours] : names(2)) {
    const std::vector<int> shape = f.weights[theirs].shape;
    std::vector<std::vector<int>> others = {{}, {1}, {int(shape[0]), shape.back(), 1}, {1, shape[0], shape.back()}};
    if (shape.size() == 1) others.insert(others.end(), {{shape[0] + 1}, {1, shape[0]}, {shape[0], 1}});
    if (shape.size() == 2)
      others.insert(others.end(), {{shape[0] * shape[1]}, {shape[0] + 1, shape[1]}, {shape[0], shape[1] - 1}});
    for (const std::vector<int>& other : others) {
      AllWeights changed = f.weights;
      changed[theirs] = random_weights(other, 1);
      f.write("model.safetensors", safetensors_of(changed));
      EXPECT_EQ(f.what(), "model.safetensors: tensor " + theirs + ": expected shape " +
                              shape_text({shape.begin(), shape.end()}) + ", found " +
                              shape_text({other.begin(), other.end()}));
    }
  }
}

TEST(FolderTensors, ReportsExtraTensors) {
  HfFolder f;
  for (const char* extra :
       {"model.layers.0.self_attn.q_proj.bias", "model.layers.1.self_attn.q_norm.weight", "lm_head.bias",
        "model.layers.2.input_layernorm.weight", "model.layers.00.mlp.up_proj.weight", "score.weight", ""}) {
    AllWeights more = f.weights;
    more[extra] = {{8}, std::vector<float>(8)};
    f.write("model.safetensors", safetensors_of(more));
    EXPECT_EQ(f.what(),
              std::string("model.safetensors: tensor ") + extra +
                  ": expected the tensors of a Llama, found another tensor, (8); this is another architecture");
  }
}

TEST(FolderTensors, RejectsTruncatedFiles) {
  HfFolder f;
  const std::string whole = safetensors_of(f.weights);
  for (size_t n = 0; n < whole.size(); n += 13) {
    f.write("model.safetensors", whole.substr(0, n));
    ASSERT_EQ(f.what().find("model.safetensors: "), 0u) << n << f.error;
  }
}

TEST(FolderTensors, ExplainsOldPyTorchFiles) {
  HfFolder f;
  f.remove("model.safetensors");
  f.write("pytorch_model.bin", "\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19.");
  EXPECT_EQ(f.what(),
            "pytorch_model.bin: expected a safetensors or PyTorch file, found a Python pickle (old PyTorch "
            "checkpoint); load the model in Python and save it again in the format of PyTorch 1.6 or later "
            "(torch.save(torch.load(OLD), NEW)) or as safetensors");
}

// A repository that was cloned without Git LFS has a pointer in place of any large file; a failed download leaves a web
// page or an empty file.
TEST(FolderTensors, NamesFilesThatWereNotDownloaded) {
  const std::pair<const char*, const char*> all[] = {
      {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n", "found a Git LFS pointer"},
      {"<!DOCTYPE html><html><head><title>404</title></head></html>", "found a web page (HTML)"},
      {"", "found an empty file"}};
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json", "tokenizer.model",
                           "tokenizer_config.json", "generation_config.json"})
    for (const auto& [bytes, expected] : all) {
      HfFolder f;
      f.write(name, bytes);
      EXPECT_EQ(f.what().find(std::string(name) + ": expected "), 0u) << f.error;
      EXPECT_TRUE(contains(f.error, expected)) << name << f.error;
    }
  HfFolder f;
  f.write("tokenizer.model", "IQ== 0\nIg== 1\nIw== 2\n");
  EXPECT_TRUE(contains(f.what(),
                       "tokenizer.model: expected a tokenizer (SentencePiece, tokenizer.json or llama2.c), "
                       "found a vocabulary of tiktoken"))
      << f.error;
}

// ---- Shards ----

struct Sharded : HfFolder {
  Json map = Json::object();
  std::map<std::string, AllWeights> shards;

  Sharded() {
    remove("model.safetensors");
    int i = 0;
    for (const auto& [name, w] : weights) {
      const std::string shard = "model-0000" + std::to_string(1 + i++ % 3) + "-of-00003.safetensors";
      map[name] = shard;
      shards[shard][name] = w;
    }
    save_shards();
    save_map(map);
  }
  void save_shards() {
    for (const auto& [name, w] : shards) write(name, safetensors_of(w));
  }
  void save_map(const Json& weight_map) {
    write("model.safetensors.index.json", Json{{"metadata", {{"total_size", 1}}}, {"weight_map", weight_map}}.dump());
  }
  std::string with_shard(const std::string& tensor, const Json& shard) {
    Json changed = map;
    changed[tensor] = shard;
    save_map(changed);
    return what();
  }
};
const char kFirst[] = "model-00001-of-00003.safetensors", kSecond[] = "model-00002-of-00003.safetensors";
const char kIndex[] = "model.safetensors.index.json";

TEST(FolderShards, FormTheModel) {
  Sharded f;
  ASSERT_EQ(f.what(), "");
  EXPECT_EQ(f.c.files.size(), 3u);
  f.expect_all_numbers();
  ASSERT_EQ(f.what(kSecond), "") << "named by one of them";
  f.expect_all_numbers();
}

TEST(FolderShards, ASingleFileTakesPrecedence) {
  Sharded f;
  f.save();
  ASSERT_EQ(f.what(), "");
  EXPECT_EQ(f.c.files.size(), 1u);
}

TEST(FolderShards, RejectsPathsOutsideTheFolder) {
  Sharded f;
  std::filesystem::copy(f.path + "/" + kFirst, f.outside.file(kFirst));
  std::filesystem::create_directory(f.path + "/sub");
  std::filesystem::copy(f.path + "/" + kFirst, f.path + "/sub/" + kFirst);
  for (const std::string& name :
       {std::string("../") + kFirst, f.path + "/" + kFirst, f.outside.file(kFirst), std::string("/etc/passwd"),
        std::string("sub/") + kFirst, std::string("./") + kFirst, std::string(".."), std::string("."), std::string("/"),
        std::string(""), std::string("x\0y", 3)}) {
    Json changed = f.map;
    for (const auto& [tensor, w] : f.shards[kFirst]) changed[tensor] = name;
    f.save_map(changed);
    EXPECT_TRUE(f.what().find(kIndex) == 0 &&
                contains(f.error, "expected the name of a file in the same folder, found ") &&
                contains(f.error, ": \"" + f.shards[kFirst].begin()->first + "\": "))
        << f.error;
  }
  for (const Json& bad : {Json(1), Json(nullptr), Json::array({kFirst}), Json::object()})
    EXPECT_TRUE(contains(f.with_shard("lm_head.weight", bad),
                         "\"lm_head.weight\": expected the name of a file in the same folder, found "))
        << f.error;
}

TEST(FolderShards, RejectsMissingShards) {
  Sharded f;
  EXPECT_EQ(f.with_shard("lm_head.weight", "none.safetensors"), "none.safetensors: No such file or directory");
  std::filesystem::create_directory(f.path + "/sub");
  EXPECT_EQ(f.with_shard("lm_head.weight", "sub"), "sub: expected a regular file, found a folder");
  EXPECT_EQ(f.with_shard("lm_head.weight", "config.json")
                .find("config.json: expected a safetensors or PyTorch file, found a JSON file"),
            0u)
      << f.error;
  f.save_map(f.map);
  f.write(kSecond, safetensors_of(f.shards[kSecond]).substr(0, 100));
  EXPECT_TRUE(contains(f.what(), kSecond) && contains(f.error, "(truncated?)")) << f.error;
}

// transformers reads all tensors of all files that the index names.
TEST(FolderShards, StaleEntriesOfIndexAreIgnored) {
  Sharded f;
  const std::string tensor = f.shards[kFirst].begin()->first;
  EXPECT_EQ(f.with_shard(tensor, kSecond), "");
  EXPECT_TRUE(f.c.notes.empty());
  f.expect_all_numbers();
  Json less = f.map;
  less.erase(tensor);
  f.save_map(less);
  EXPECT_EQ(f.what(), "");
  f.expect_all_numbers();
  EXPECT_EQ(f.with_shard("model.layers.0.self_attn.rotary_emb.inv_freq", kFirst), "");
  EXPECT_TRUE(f.c.notes.empty());
  Json stale = f.map;
  for (const char* name : {"model.ghost", "model.layers.7.mlp.up_proj.weight"}) stale[name] = kFirst;
  f.save_map(stale);
  EXPECT_EQ(f.what(), "");
  EXPECT_TRUE(f.c.notes.size() == 1 &&
              contains(f.c.notes[0], "names 2 tensors that are in none of the shards, such as model.ghost; ignored"));
  f.shards[kFirst].erase(tensor);
  f.save_shards();
  EXPECT_TRUE(contains(f.what(), "tensor " + tensor + ": expected shape ")) << f.error;
}

TEST(FolderShards, RejectsTensorInTwoShards) {
  Sharded f;
  const std::string tensor = f.shards[kFirst].begin()->first;
  f.shards[kSecond][tensor] = f.weights[tensor];
  f.save_shards();
  EXPECT_EQ(f.what(),
            std::string(kSecond) + ": tensor " + tensor + ": expected once, found also in " + f.path + "/" + kFirst);
}

TEST(FolderShards, RequireTheirIndex) {
  Sharded f;
  f.remove(kIndex);
  const std::string expected =
      ": one of several shards: expected their index beside it (such as model.safetensors.index.json), found none; "
      "download it too";
  EXPECT_TRUE(contains(f.what(), "-of-00003.safetensors" + expected)) << f.error;
  EXPECT_EQ(f.what(kSecond), kSecond + expected);
  for (const auto& [name, w] : f.shards) f.remove(name);
  f.write("pytorch_model-00001-of-00002.bin", "");
  EXPECT_TRUE(contains(f.what(), "(such as pytorch_model.bin.index.json), found none")) << f.error;
  f.write("model-00001-of-00001.safetensors", safetensors_of(f.weights));
  EXPECT_EQ(f.what("model-00001-of-00001.safetensors"), "");
  f.expect_all_numbers();
}

TEST(FolderShards, RejectsInvalidIndex) {
  Sharded f;
  const std::pair<const char*, const char*> all[] = {
      {"", ": expected JSON, found an empty file"},
      {"{}", ":1:1: \"weight_map\": expected an object, found nothing"},
      {"[]", ":1:1: \"weight_map\": expected an object, found nothing"},
      {"{\"weight_map\": []}", ":1:16: \"weight_map\": expected an object, found an array"},
      {"{\"weight_map\": null}", ":1:16: \"weight_map\": expected an object, found null"}};
  for (const auto& [text, expected] : all) {
    f.write(kIndex, text);
    EXPECT_EQ(f.what(), std::string(kIndex) + expected);
  }
  f.write(kIndex, "{\"weight_map\": {}}");
  EXPECT_EQ(f.what(), "tensor model.embed_tokens.weight: expected shape (5, 8), found no such tensor");
  f.save_map(f.map);
  const std::string whole = read_file(f.path + "/" + kIndex);
  tiny::Random random(10);
  for (int i = 0; i < 500; i++) {
    std::string text = whole;
    const size_t at = size_t(random.below(int(text.size())));
    if (i % 2)
      text[at] = char(random.bits());
    else
      text.resize(at);
    f.write(kIndex, text);
    const std::string what = f.what();
    ASSERT_TRUE(i % 2 || what.find(kIndex) == 0) << what;
  }
}

}  // namespace checkpoint_test
