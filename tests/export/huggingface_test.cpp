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
  NEED_DATA(folder, std::string("hf/") + GetParam());
  Checkpoint checkpoint;
  std::string error;
  ASSERT_TRUE(open_checkpoint(folder, "", checkpoint, error)) << error;
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

  // The plain Llama agrees with the engine on every token.
  const std::vector<std::vector<float>> reference = tiny::reference_for(m.model, ids).logits;
  for (size_t t = 0; t < ids.size(); t++) expect_close(t, reference[t]);
}

INSTANTIATE_TEST_SUITE_P(Folders, HuggingFace,
                         testing::Values("gqa-f32", "llama3-rope-sharded", "tied-bf16", "linear-rope-f16",
                                         "pytorch-bin", "pytorch-bin-sharded-bf16"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace huggingface_test
