// huggingface_test.cpp: folders in the format of Hugging Face's transformers. The engine's logits match the logits that
// transformers computed in float64 (golden.json in each folder), and the logits of a naive Llama.
#include "../../export/open_checkpoint.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "../support/test_data.hpp"
#include "../support/tiny_model.hpp"

namespace huggingface_test {

using namespace pocket;
using Json = nlohmann::json;

class HuggingFace : public testing::TestWithParam<const char*> {};

TEST_P(HuggingFace, MatchesLogitsOfTransformers) {
  NEED_DATA(model, GetParam());
  const std::string folder = is_directory(model) ? model : folder_of(model);
  Checkpoint checkpoint;
  std::string error;
  ASSERT_TRUE(open_checkpoint(model, "", checkpoint, error)) << error;
  const tiny::MemoryModel m(
      tiny::model_bytes(tiny::parts_of(checkpoint.config, Type::f32),
                        [&](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& why) {
                          return checkpoint.read_rows(spec.name, first, count, out, why);
                        }));
  const Json golden = Json::parse(read_file(folder + "/golden.json"));
  const std::vector<int> ids = golden["ids"];
  std::vector<std::vector<float>> logits;  // (tokens, vocab_size)
  Session session(m.model);
  ASSERT_TRUE(session.forward(ids.data(), ids.size(), [&](size_t, const float* row) {
    logits.emplace_back(row, row + m.model.config.vocab_size);
    return true;
  })) << session.error;
  const auto expect_close = [&](size_t t, const auto& expected) {
    ASSERT_EQ(logits.at(t).size(), expected.size());
    for (size_t v = 0; v < logits[t].size(); v++) {
      const double logit = expected[v];
      ASSERT_NEAR(logits[t][v], logit, 1e-4 * (1 + std::fabs(logit))) << "token " << t << ", logit " << v;
    }
  };

  ASSERT_EQ(logits.size(), ids.size());
  ASSERT_FALSE(golden["positions"].empty());
  for (size_t i = 0; i < golden["positions"].size(); i++) expect_close(golden["positions"][i], golden["logits"][i]);

  // The plain Llama, which is slow, agrees with the engine on the first tokens.
  const std::vector<int> start(ids.begin(), ids.begin() + std::min<std::ptrdiff_t>(24, std::ptrdiff_t(ids.size())));
  const std::vector<std::vector<float>> reference = tiny::reference_for(m.model, start).logits;
  for (size_t t = 0; t < start.size(); t++) expect_close(t, reference[t]);
}

std::string test_name(const testing::TestParamInfo<const char*>& info) {
  std::string name = info.param;
  name = name.substr(name.find('/') + 1);
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(uint8_t(c)); }, '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Folders, HuggingFace,
                         testing::Values("hf/gqa-f32", "hf/llama3-rope-sharded", "hf/tied-bf16", "hf/linear-rope-f16",
                                         "hf/pytorch-bin", "hf/pytorch-bin-sharded-bf16"),
                         test_name);

// Relatives of Llama: with biases, norms of q and k, layers without RoPE, multipliers, fused matrices.
INSTANTIATE_TEST_SUITE_P(Relatives, HuggingFace,
                         testing::Values("hf-more/llama-bias", "hf-more/llama-attention-bias",
                                         "hf-more/mistral-head-dim", "hf-more/qwen2", "hf-more/qwen3",
                                         "hf-more/qwen3-untied", "hf-more/smollm3", "hf-more/granite", "hf-more/phi3",
                                         "hf-more/ernie4_5"),
                         test_name);

// The same models as GGUF, by llama.cpp's converter.
INSTANTIATE_TEST_SUITE_P(GgufRelatives, HuggingFace,
                         testing::Values("hf-more/llama-attention-bias/model.gguf",
                                         "hf-more/mistral-head-dim/model.gguf", "hf-more/qwen2/model.gguf",
                                         "hf-more/qwen3/model.gguf", "hf-more/smollm3/model.gguf",
                                         "hf-more/granite/model.gguf", "hf-more/phi3/model.gguf",
                                         "hf-more/ernie4_5/model.gguf"),
                         test_name);

}  // namespace huggingface_test
