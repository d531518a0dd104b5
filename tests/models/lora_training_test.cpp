// lora_training_test.cpp: training of adapters: gradients of every factor against differences of the loss, unchanged
// base weights, the same bits for every instruction set and number of threads, a folder that export/lora.hpp merges
// into the same model, and checkpoints.
#include <gtest/gtest.h>

#include "../support/training_model.hpp"

namespace lora_training_test {

using namespace pocket;
using namespace training;

constexpr float kScale = 2;  // factor of B A
LoraPlan plan_of(const Config& c, int rank, uint32_t targets) {
  return {rank, kScale * float(rank), targets & (c.tied ? 0x7fu : 0xffu)};
}

// Adds adapters. B is not zero, as after some steps; otherwise A would have no gradient. The size of B A does not
// depend on the rank.
void adapt(TrainModel& m, const LoraPlan& plan) {
  m.adapt(adapters_for(m.config, plan));
  initialize(m.adapters, 7);
  tiny::Random random(5);
  const float deviation = 0.35f / std::sqrt(float(plan.rank));
  for (const Parameter& p : m.adapters.parameters)
    for (int r = 0; r < p.spec.rows && p.spec.name.back() == 'B'; r++)
      for (int k = 0; k < p.spec.cols; k++)
        m.adapters.values[p.offset + size_t(r) * p.stride + size_t(k)] = deviation * random.normal();
}

void check_gradients(const Config& c, const LoraPlan& plan) {
  TrainModel m(c);
  fill(m, 1);
  adapt(m, plan);
  Trainer trainer(m, 2, c.max_seq_len, best());
  const auto batch = windows_for(c, 3, 1);
  trainer.learn(batch);
  const auto loss = [&] { return trainer.evaluate(batch) / double(count_targets(batch)); };
  expect_gradients(m, trainer, loss, 0.04 / double(kScale));  // the same step of the weights as without adapters
}

TEST(LoraGradient, MatchesDifferencesTiedAndGrouped) {
  const Config c = odd_config(true, 2);
  check_gradients(c, plan_of(c, 3, 0xff));
}
TEST(LoraGradient, MatchesDifferencesUntiedWithOneKeyValueHead) {
  const Config c = odd_config(false, 1);
  check_gradients(c, plan_of(c, 6, 0xff));
}
TEST(LoraGradient, MatchesDifferencesWithRankAboveVectorWidth) {
  const Config c = odd_config(false, 4);
  check_gradients(c, plan_of(c, 20, 0xff));
}
TEST(LoraGradient, MatchesDifferencesForEachTarget) {
  const Config c = odd_config(false, 2);
  for (uint32_t t = 0; t < std::size(kLoraTargets); t++) {
    SCOPED_TRACE(kLoraTargets[t]);
    const LoraPlan plan = plan_of(c, 2, 1u << t);
    EXPECT_EQ(adapters_for(c, plan).parameters.size(), t == 7 ? 2u : 4u);
    check_gradients(c, plan);
  }
}

TEST(LoraTraining, StartsWithSameLossAndKeepsBaseWeights) {
  const Config c = odd_config(true, 2);
  TrainModel plain(c), m(c);
  fill(plain, 1);
  fill(m, 1);
  m.adapt(adapters_for(c, plan_of(c, 3, 0x7f)));
  initialize(m.adapters, 7);
  Trainer before(plain, 1, c.max_seq_len, best()), trainer(m, 1, c.max_seq_len, best());
  const auto batch = windows_for(c, 2, 1);
  const double loss = before.evaluate(batch);
  EXPECT_EQ(trainer.evaluate(batch), loss);
  EXPECT_EQ(trainer.mean.size(), m.adapters.values.size()) << "the optimizer must have state for the adapters only";
  AdamOptions options;
  options.decay = 0;
  for (int step = 1; step <= 300; step++) {
    trainer.learn(batch);
    trainer.update(options, 5e-3, step);
  }
  EXPECT_LT(trainer.evaluate(batch), 0.6 * loss);
  EXPECT_EQ(std::memcmp(m.values.data(), plain.values.data(), m.values.size() * sizeof(float)), 0);
  expect_zero_padding(m.adapters.parameters, m.adapters.values);
}

TEST(LoraTraining, SameBitsForEveryKernelAndThreadCount) {
  const Config c = odd_config(true, 2);
  const auto make = [&] {
    auto m = std::make_unique<TrainModel>(c);
    fill(*m, 1);
    adapt(*m, plan_of(c, 3, 0x7f));
    return m;
  };
  expect_same_bits(make, c.max_seq_len, [&](uint64_t seed) { return windows_for(c, 10, seed); });
}

// Initial values: A is uniform in +-1 / sqrt(cols), B is zero.
TEST(LoraTraining, InitializesAUniformlyAndBToZero) {
  const Config c = odd_config(true, 2);
  TrainModel m(c);
  m.adapt(adapters_for(c, plan_of(c, 9, 0x7f)));
  initialize(m.adapters, 7);
  for (const LearnedLowRank& l : m.adapters.all) {
    const double bound = 1 / std::sqrt(double(l.cols));
    double sum = 0, highest = 0;
    for (int i = 0; i < l.cols; i++)
      for (int k = 0; k < 9; k++) {
        const double a = double(m.adapters.values[l.a + size_t(i) * 16 + size_t(k)]);
        sum += a * a;
        highest = std::max(highest, std::fabs(a));
      }
    EXPECT_LE(highest, bound);
    EXPECT_GT(highest, 0.95 * bound);
    EXPECT_NEAR(sum / (9 * l.cols), bound * bound / 3, 0.25 * bound * bound / 3);
    for (size_t i = 0; i < size_t(l.rows) * 16; i++) ASSERT_EQ(m.adapters.values[l.b + i], 0);
  }
}

TEST(LoraFolder, MergesIntoSameModel) {
  for (const bool tied : {true, false}) {
    const Config c = odd_config(tied, 2);
    const LoraPlan plan = plan_of(c, 3, tied ? 0x7f : 0x85);
    TrainModel m(c);
    fill(m, 1);
    adapt(m, plan);
    const TemporaryFolder t;
    std::string error;
    ASSERT_TRUE(write_adapter(t.file("a"), plan, m.adapters, error)) << error;
    EXPECT_EQ(t.list(), "a\n");
    std::vector<LoraAdapter> adapters(1);
    ASSERT_TRUE(adapters[0].open({t.file("a"), 1}, c)) << adapters[0].error;
    const ReadRows base = rows_of_model(m);
    const tiny::MemoryModel file(
        tiny::model_bytes(tiny::parts_of(c, Type::f32),
                          [&](const TensorSpec& spec, int64_t first, int64_t n, float* out, std::string& e) {
                            return base(spec, first, n, out, e) && merge_lora(adapters, spec, first, n, out, e);
                          }));
    Session session(file.model, {0, 1, KvType::automatic, nullptr});
    Trainer trainer(m, 1, c.max_seq_len, best());
    const std::vector<int> ids = tiny::random_ids(70, c.vocab_size);
    const float* expected = session.forward(ids.data(), ids.size());
    const float* found = trainer.next_logits(ids);
    ASSERT_TRUE(expected) << session.error;
    for (int i = 0; i < c.vocab_size; i++) EXPECT_NEAR(found[i], expected[i], 1e-4) << i;
    TrainModel plain(c);
    fill(plain, 1);
    Trainer without(plain, 1, c.max_seq_len, best());
    double change = 0;
    for (int i = 0; i < c.vocab_size; i++) change += std::fabs(double(without.next_logits(ids)[i] - expected[i]));
    EXPECT_GT(change, 1) << "the adapter has no effect";
  }
}

TEST(LoraFolder, KeepsExistingFilesAndLeavesNoPartialOnes) {
  const Config c = odd_config(true, 2);
  const LoraPlan plan = plan_of(c, 3, 0x7f);
  TrainModel m(c);
  adapt(m, plan);
  const TemporaryFolder t;
  std::string error;
  ASSERT_TRUE(write_adapter(t.file("a"), plan, m.adapters, error)) << error;
  const std::string bytes = read_file(t.file("a/adapter_model.safetensors"));
  EXPECT_FALSE(write_adapter(t.file("a"), plan, m.adapters, error));
  EXPECT_NE(error.find("a: already exists; delete the folder"), std::string::npos) << error;
  t.write("file", "x");
  EXPECT_FALSE(write_adapter(t.file("file"), plan, m.adapters, error));
  EXPECT_NE(error.find("file: already exists; choose the name of a new folder"), std::string::npos) << error;
  EXPECT_FALSE(write_adapter(t.file("no/a"), plan, m.adapters, error));
  EXPECT_NE(error.find("no/a: No such file"), std::string::npos) << error;
  EXPECT_EQ(t.list(), "a\nfile\n");
  EXPECT_EQ(read_file(t.file("a/adapter_model.safetensors")), bytes);
}

TEST(LoraPlan, RejectsInvalidTargetsAndRanks) {
  uint32_t targets = 0;
  std::string error;
  EXPECT_TRUE(parse_lora_targets("", targets, error));
  EXPECT_EQ(targets, 0x7fu);
  EXPECT_TRUE(parse_lora_targets("v_proj,q_proj,lm_head", targets, error));
  EXPECT_EQ(targets, 0x85u);
  for (const char* bad : {"w_proj", "q_proj,", ",", "q_proj v_proj", "proj"}) {
    EXPECT_FALSE(parse_lora_targets(bad, targets, error)) << bad;
    EXPECT_NE(error.find("expected some of q_proj, k_proj,"), std::string::npos) << error;
  }
  const Config c = odd_config(true, 1);
  EXPECT_FALSE(check_lora(c, {7, 7, 0x7f}, error));
  EXPECT_NE(error.find("expected at most 6, the smaller side of model.layers.0.self_attn.k_proj (6, 24), found 7"),
            std::string::npos)
      << error;
  EXPECT_TRUE(check_lora(c, {24, 7, 0x01}, error));
  EXPECT_FALSE(check_lora(c, {2, 2, 0x80}, error));
  EXPECT_NE(error.find("lm_head: this model's output is its embedding"), std::string::npos) << error;
}

TEST(LoraCheckpoint, RestoresTraining) {
  const TemporaryFolder t;
  TrainPlan plan = small_plan(odd_config(true, 2));
  plan.lora = plan_of(plan.config, 3, 0x7f);
  TrainModel m(plan.config), other(plan.config);
  fill(m, 1);
  adapt(m, plan.lora);
  other.adapt(adapters_for(plan.config, plan.lora));
  Trainer trainer(m, 1, 75, best()), second(other, 1, 75, best());
  trainer.learn(windows_for(plan.config, 2, 1));
  trainer.update(AdamOptions(), 1e-2, 1);
  std::string error;
  ASSERT_TRUE(write_checkpoint(t.file("c"), plan, {}, {"blob"}, m, trainer, error)) << error;
  CheckpointFile file;
  ASSERT_TRUE(file.read(t.file("c"), error)) << error;
  file.restore(other, second);
  const std::pair<const Floats*, const Floats*> pairs[] = {{&m.values, &other.values},
                                                           {&m.adapters.values, &other.adapters.values},
                                                           {&trainer.mean, &second.mean},
                                                           {&trainer.square, &second.square}};
  for (const auto& [a, b] : pairs) EXPECT_EQ(std::memcmp(a->data(), b->data(), a->size() * sizeof(float)), 0);
  EXPECT_EQ(trainer.next_logits({1, 2, 3})[5], second.next_logits({1, 2, 3})[5]);
}

}  // namespace lora_training_test
