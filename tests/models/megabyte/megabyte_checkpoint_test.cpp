// megabyte_checkpoint_test.cpp: the reader of MEGABYTE checkpoints: valid checkpoints, and errors in the tensors and in
// the configuration. megabyte_test.cpp tests the computations.
#include "../../../models/megabyte/megabyte_checkpoint.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "../../support/megabyte_model.hpp"
#include "../../support/test_data.hpp"

namespace megabyte_checkpoint_test {

using namespace pocket;
using bytes::small_config;
using Json = nlohmann::json;
using Tensors = std::vector<pytorch::NamedTensor>;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Json config_of(const MegabyteConfig& c) {
  return {{"num_tokens", 256},
          {"dim", {c.global.dim, c.local.dim}},
          {"depth", {c.global.n_layers, c.local.n_layers}},
          {"max_seq_len", {c.patches, c.patch_size}},
          {"dim_head", c.head_dim},
          {"heads", c.n_heads},
          {"rel_pos", c.rotary},
          {"pos_emb", c.positions}};
}

/// A checkpoint in its own folder, which tests can modify before it is read.
struct Files {
  TemporaryFolder folder;
  Json config = config_of(small_config());
  Tensors tensors = bytes::state_dict(small_config());
  MegabyteCheckpoint checkpoint;

  pytorch::NamedTensor& tensor(const std::string& name) {
    for (pytorch::NamedTensor& t : tensors)
      if (t.name == name) return t;
    ADD_FAILURE() << name;
    return tensors[0];
  }
  void erase(const std::string& name) {
    tensors.erase(std::remove_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.name == name; }),
                  tensors.end());
  }
  void add(const std::string& name, const std::vector<int64_t>& shape) {
    int64_t count = 1;
    for (const int64_t n : shape) count *= n;
    tensors.push_back({name, shape, std::string(size_t(count) * sizeof(float), '\0')});
  }
  /// Writes the files and opens them. Returns the error without the path, or "".
  std::string read(const std::function<void(pytorch::Pickle&, const std::function<void()>&)>& around = nullptr) {
    folder.write("model.pt", pytorch::save(tensors, around));
    folder.write("config.json", config.dump());
    return open();
  }
  std::string open() {
    std::string error;
    const bool ok = open_megabyte(folder.file("model.pt"), folder.file("config.json"), checkpoint, error);
    EXPECT_EQ(ok, error.empty()) << error;
    for (size_t at; (at = error.find(folder.path() + "/")) != std::string::npos;)
      error.erase(at, folder.path().size() + 1);
    return error;
  }
};

/// Expects the saved weights.
void expect_weights(const MegabyteCheckpoint& c) {
  for (const TensorSpec& spec : tensor_specs(small_config())) {
    std::vector<float> found(size_t(spec.rows) * spec.cols), expected(found);
    std::string error;
    ASSERT_TRUE(c.weights.read_rows(spec.name, 0, spec.rows, found.data(), error)) << error;
    ASSERT_TRUE(tiny::random_rows(spec, 0, spec.rows, expected.data(), error));
    EXPECT_EQ(found, expected) << spec.name;
  }
}

TEST(MegabyteCheckpoint, ReadsPlainAndWrappedStateDict) {
  Files f;
  ASSERT_EQ(f.read(), "");
  expect_weights(f.checkpoint);
  EXPECT_EQ(f.checkpoint.pad_id, 0);
  const auto wrapped = [](const char* key) {
    return [key](pytorch::Pickle& p, const std::function<void()>& inner) {
      p.op("}(").text("step").integer(7).text(key);
      inner();
      p.op("u");
    };
  };
  for (const char* key : {"model", "state_dict"}) {
    ASSERT_EQ(f.read(wrapped(key)), "");
    expect_weights(f.checkpoint);
  }
  for (pytorch::NamedTensor& t : f.tensors) t.name = "module." + t.name;
  ASSERT_EQ(f.read(), "");
  expect_weights(f.checkpoint);
}

TEST(MegabyteCheckpoint, AbsentKeysHaveDefaultsOfConstructor) {
  Files f;
  MegabyteConfig c = bytes::config_of({24, 24, 1, 1, 8, 64, 3, 2});
  f.tensors = bytes::state_dict(c);
  f.config = {{"num_tokens", 256}, {"dim", 24}, {"depth", {1, 1}}, {"max_seq_len", {3, 2}}};
  ASSERT_EQ(f.read(), "");
  EXPECT_EQ(f.checkpoint.config.n_heads, 8);
  EXPECT_EQ(f.checkpoint.config.head_dim, 64);
  EXPECT_EQ(f.checkpoint.config.local.dim, 24);
  EXPECT_EQ(f.checkpoint.config.local.hidden_dim, 96);
  EXPECT_FALSE(f.checkpoint.config.rotary || f.checkpoint.config.positions);
  for (const char* key : {"attn_dropout", "ff_dropout"}) f.config[key] = 0.1;
  f.config["flash_attn"] = true;
  f.config["pad_id"] = 7;
  f.config["ff_mult"] = 4;
  f.config["rel_pos"] = nullptr;
  ASSERT_EQ(f.read(), "") << "keys without effect";
  EXPECT_EQ(f.checkpoint.pad_id, 7);
}

TEST(MegabyteCheckpoint, RejectsInvalidConfig) {
  const auto error = [](const char* key, const Json& value) {
    Files f;
    f.config[key] = value;
    return f.read();
  };
  EXPECT_TRUE(contains(error("num_tokens", 257), "\"num_tokens\": expected 256, one for each byte, found 257"));
  EXPECT_TRUE(contains(error("num_tokens", nullptr), "\"num_tokens\": expected a number"));
  EXPECT_TRUE(contains(error("depth", {2, 2, 2}), "\"depth\": expected 2 numbers, one for each stage, found 3"));
  EXPECT_TRUE(contains(error("max_seq_len", {8, 4, 2}), "\"max_seq_len\": expected 2 numbers"));
  EXPECT_TRUE(contains(error("dim", {8, 4, 2, 1}), "\"dim\": expected 2 numbers, one for each stage, found 4"));
  EXPECT_TRUE(contains(error("depth", Json::array({2})), "\"depth\": expected 2 numbers"));
  EXPECT_TRUE(contains(error("depth", 2), "\"depth\": expected an array"));
  EXPECT_TRUE(contains(error("depth", {2, 0}), "\"depth\": expected integers from 1, found 0"));
  EXPECT_TRUE(contains(error("depth", {2, "x"}), "\"depth\": expected integers from 1"));
  EXPECT_TRUE(contains(error("depth", {1e9, 2}), "\"depth\": "));
  EXPECT_TRUE(contains(error("dim", {100000, 32}), "dim: expected 1 to 65536, found 100000"));
  EXPECT_TRUE(contains(error("max_seq_len", {1 << 21, 4}), "patches: expected 1 to 1048576"));
  EXPECT_TRUE(contains(error("max_seq_len", {1, 5000}), "patch_size: expected 1 to 4096, found 5000"));
  EXPECT_TRUE(contains(error("dim_head", 15), "head_dim: expected an even number, found 15"));
  EXPECT_TRUE(contains(error("dim_head", 0), "\"dim_head\": expected an integer from 1"));
  EXPECT_TRUE(contains(error("heads", -3), "\"heads\": expected an integer from 1"));
  EXPECT_TRUE(contains(error("rel_pos", "yes"), "\"rel_pos\": expected true or false"));
  EXPECT_TRUE(contains(error("pad_id", 256), "\"pad_id\": expected an integer from 0 to 255"));
  EXPECT_TRUE(contains(error("ff_mult", 0.5), "\"ff_mult\": expected an integer"));
  for (const char* key : {"rel_pos_bias", "rope_theta", "flash", "Dim"})
    EXPECT_TRUE(contains(error(key, true), "\"" + std::string(key) + "\": unknown argument of MEGABYTE"));
  Files f;
  f.config = {1, 2};
  EXPECT_TRUE(contains(f.read(), "config.json: expected an object, found an array"));
  f.folder.write("config.json", "{\"dim\": ");
  EXPECT_TRUE(contains(f.open(), "config.json:1:"));
}

TEST(MegabyteCheckpoint, RejectsConfigThatContradictsTensors) {
  const auto error = [](const char* key, const Json& value) {
    Files f;
    f.config[key] = value;
    return f.read();
  };
  EXPECT_TRUE(contains(error("dim", {48, 33}), "expected shape (256, 33) by config.json, found (256, 32)"));
  EXPECT_TRUE(contains(error("dim", {49, 32}), "expected shape (12, 49) by config.json, found (12, 48)"));
  EXPECT_TRUE(contains(error("depth", {3, 2}),
                       "tensor transformers.0.layers.2.0.norm.g: expected shape (48) by config.json, found no such"));
  EXPECT_TRUE(
      contains(error("depth", {2, 1}),
               "tensor transformers.1.layers.1.0.norm.g: not part of the model that config.json describes, found "
               "shape (32)"));
  EXPECT_TRUE(contains(error("max_seq_len", {13, 4}),
                       "tensor pos_embs.0.weight: expected shape (13, 48) by config.json, found (12, 48)"));
  EXPECT_TRUE(contains(error("max_seq_len", {12, 5}), "tensor pos_embs.1.weight: expected shape (5, 32)"));
  EXPECT_TRUE(contains(error("heads", 4), "to_q.weight: expected shape (64, 48) by config.json, found (48, 48)"));
  EXPECT_TRUE(contains(error("ff_mult", 3), "0.1.1.weight: expected shape (144, 48) by config.json, found (192, 48)"));
  EXPECT_TRUE(contains(error("pos_emb", false), "tensor pos_embs.0.weight: not part of the model that config.json"));
  EXPECT_TRUE(contains(error("rel_pos", false), "rotary_emb.inv_freq: not part of the model that config.json"));
}

TEST(MegabyteCheckpoint, NamesMissingTensor) {
  const Tensors all = bytes::state_dict(small_config());
  for (const pytorch::NamedTensor& t : all) {
    Files f;
    f.erase(t.name);
    const std::string error = f.read();
    EXPECT_TRUE(contains(error, "model.pt: tensor " + t.name + ": expected ") &&
                contains(error, "found no such tensor"))
        << error;
  }
}

TEST(MegabyteCheckpoint, NamesTensorOfWrongShape) {
  const Tensors all = bytes::state_dict(small_config());
  for (const pytorch::NamedTensor& t : all) {
    Files f;
    f.tensor(t.name).shape[0]++;
    f.tensor(t.name).elements += std::string(size_t(t.shape.size() > 1 ? t.shape[1] : 1) * sizeof(float), '\0');
    EXPECT_TRUE(contains(f.read(), "model.pt: tensor " + t.name + ": expected shape ")) << t.name;
  }
}

// 0.2 has a single head of keys and values, 0.1 another structure. A model with one head is the same in 0.2.
TEST(MegabyteCheckpoint, IdentifiesOlderVersions) {
  Files two;
  for (pytorch::NamedTensor& t : two.tensors)
    if (contains(t.name, "to_kv")) {
      t.shape[0] = 2 * 16;
      t.elements.resize(size_t(t.shape[0] * t.shape[1]) * 4);
    }
  const std::string error = two.read();
  EXPECT_TRUE(contains(error,
                       "0.to_kv.weight: expected shape (96, 48) by config.json, found (32, 48), a single head of keys "
                       "and values: the checkpoint is from MEGABYTE-pytorch 0.2 or older"))
      << error;
  Files one;
  one.erase("token_embs.0.weight");
  one.add("token_emb.weight", {256, 32});
  EXPECT_TRUE(contains(one.read(),
                       "tensor token_emb.weight: expected the name token_embs: the checkpoint is from "
                       "MEGABYTE-pytorch 0.2 or older"));
  Files single;
  const MegabyteConfig c = bytes::config_of({24, 16, 1, 1, 1, 8, 3, 2});
  single.config = config_of(c);
  single.tensors = bytes::state_dict(c);
  EXPECT_EQ(single.read(), "");
}

TEST(MegabyteCheckpoint, NamesUnknownTensor) {
  for (const char* name : {"transformers.2.norm.g", "transformers.0.layers.0.0.to_q.bias", "extra"}) {
    Files f;
    f.add(name, {3, 5});
    EXPECT_TRUE(contains(f.read(), "tensor " + std::string(name) +
                                       ": not part of the model that config.json describes, "
                                       "found shape (3, 5)"));
  }
}

TEST(MegabyteCheckpoint, RejectsRotaryFrequenciesOfOtherTheta) {
  for (const char* stage : {"0", "1"}) {
    Files f;
    pytorch::NamedTensor& t = f.tensor("transformers." + std::string(stage) + ".rotary_emb.inv_freq");
    t.elements.clear();
    for (int i = 0; i < 8; i++) pytorch::append(t.elements, float(std::pow(500000.0, -2.0 * i / 16)));
    const std::string error = f.read();
    EXPECT_TRUE(contains(error, "expected frequencies of theta 10000, ") && contains(error, " at index 1, found "))
        << error;
  }
}

TEST(MegabyteCheckpoint, RejectsOtherFiles) {
  Files f;
  ASSERT_EQ(f.read(), "");
  f.folder.write("model.pt", "GGUF and more");
  EXPECT_TRUE(contains(f.open(), "model.pt: expected a file saved by torch.save(), found a GGUF file"));
  f.folder.write("model.pt", "");
  EXPECT_NE(f.open(), "");
  const std::string whole = pytorch::save(f.tensors);
  for (size_t n = 0; n < whole.size(); n += 1 + n / 20) {
    f.folder.write("model.pt", whole.substr(0, n));
    EXPECT_NE(f.open(), "") << n;
  }
  std::filesystem::remove(f.folder.file("model.pt"));
  EXPECT_TRUE(contains(f.open(), "No such file"));
  std::filesystem::remove(f.folder.file("config.json"));
  EXPECT_TRUE(contains(f.open(), "config.json: No such file"));
}

TEST(MegabyteCheckpoint, ReadsFilesWrittenByPyTorch) {
  NEED_DATA(data, "megabyte");
  for (const auto& entry : std::filesystem::directory_iterator(data)) {
    MegabyteCheckpoint c;
    std::string error;
    const std::string folder = entry.path().string();
    EXPECT_TRUE(open_megabyte(folder + "/model.pt", folder + "/config.json", c, error)) << error;
    EXPECT_EQ(c.weights.tensors.size(), tensor_specs(c.config).size());
  }
}

}  // namespace megabyte_checkpoint_test
