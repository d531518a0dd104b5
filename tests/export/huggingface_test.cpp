// huggingface_test.cpp: folders as transformers saves them, read by the converter's reader, against logits that
// transformers computed in float64.
//
// The references of the folders in 16 bits were computed by a model that had been rounded to 16 bits as a whole, its
// table of RoPE frequencies with it. Loading such a checkpoint never does that: the frequencies are not in the file,
// and are computed in float32. So those references are met in two steps: the naive Llama of tiny_model.hpp agrees with
// them when its frequencies are rounded so, which shows that it reads and computes everything else as transformers
// does; and the engine agrees with the naive Llama when they are not.
#include "../../export/open_checkpoint.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "../support/test_data.hpp"
#include "../support/tiny_model.hpp"

namespace {

using namespace pocket;
using Json = nlohmann::json;

double bf16_frequency(const Config& c, int i) {
  const float f = float(tiny::reference_frequency(c, i));
  uint32_t bits = load<uint32_t>(&f);
  bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
  return from_bf16(uint16_t(bits));
}

// Nearest of the 65,536 float16: a table has no arithmetic to get wrong.
double f16_frequency(const Config& c, int i) {
  const double f = tiny::reference_frequency(c, i);
  double nearest = 0;
  for (uint32_t h = 0; h < 0x7C00; h++)
    if (const double value = from_f16(uint16_t(h)); std::fabs(value - f) < std::fabs(nearest - f)) nearest = value;
  return nearest;
}

struct Folder {
  const char* name;
  tiny::Reference::Frequency frequency;
};

class HuggingFace : public testing::TestWithParam<Folder> {};

TEST_P(HuggingFace, LogitsAreThoseOfTransformers) {
  NEED_DATA(folder, std::string("hf/") + GetParam().name);
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
  const auto bound = [](double logit) { return 1e-4 * (1 + std::fabs(logit)); };

  const tiny::Reference as_saved(m.model, ids, false, false, GetParam().frequency);
  for (size_t i = 0; i < golden["positions"].size(); i++)
    for (size_t v = 0; v < golden["logits"][i].size(); v++) {
      const double expected = golden["logits"][i][v];
      ASSERT_NEAR(as_saved.logits[golden["positions"][i].get<size_t>()][v], expected, bound(expected));
    }

  const tiny::Reference exact(m.model, ids);
  Session session(m.model);
  ASSERT_TRUE(session.forward(ids.data(), ids.size(), [&](size_t t, const float* logits) {
    for (size_t v = 0; v < exact.logits[t].size(); v++)
      EXPECT_NEAR(logits[v], exact.logits[t][v], bound(exact.logits[t][v])) << "token " << t;
    return !HasFailure();
  })) << session.error;
}

INSTANTIATE_TEST_SUITE_P(Folders, HuggingFace,
                         testing::Values(Folder{"gqa-f32", tiny::reference_frequency},
                                         Folder{"llama3-rope-sharded", tiny::reference_frequency},
                                         Folder{"tied-bf16", bf16_frequency}, Folder{"linear-rope-f16", f16_frequency},
                                         Folder{"pytorch-bin", tiny::reference_frequency},
                                         Folder{"pytorch-bin-sharded-bf16", bf16_frequency}),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
