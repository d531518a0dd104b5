// training_test.cpp: the computations of training: products against their definition, gradients against differences of
// the loss, the same bits for every instruction set and number of threads, the engine's logits, windows of a text, and
// checkpoints.
#include "../../models/gemm.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "../support/training_model.hpp"

namespace training_test {

using namespace pocket;
using namespace training;

std::vector<float> random_floats(size_t n, uint64_t seed) {
  tiny::Random random(seed);
  std::vector<float> all(n);
  for (float& f : all) f = random.normal();
  return all;
}

// ---- Products ----

// m, n, depth; n is a multiple of 16.
const int kShapes[][3] = {{1, 16, 1},    {1, 32, 5},    {2, 48, 17},   {5, 16, 64},   {6, 64, 33},
                          {7, 32, 100},  {11, 48, 3},   {12, 80, 128}, {13, 16, 511}, {25, 96, 513},
                          {64, 32, 256}, {37, 112, 40}, {3, 16, 1500}};

TEST(Gemm, EveryKernelMatchesDefinitionBitForBit) {
  for (const auto& [m, n, depth] : kShapes)
    for (const bool transposed : {false, true})
      for (const bool panels : {false, true})
        for (const bool add : {false, true}) {
          const size_t a_stride = row_stride(transposed ? m : depth), ldc = row_stride(n);
          const auto a = random_floats(a_stride * size_t(transposed ? depth : m), 1);
          const auto b = random_floats(panels ? packed_size(depth, n) : row_stride(n) * size_t(depth), 2);
          const auto before = random_floats(ldc * size_t(m), 3);
          auto expected = before;
          FloatProduct p = {m,
                            n,
                            depth,
                            transposed ? columns_of(a.data(), a_stride) : rows_of(a.data(), a_stride),
                            panels ? packed(b.data(), depth) : row_major(b.data(), row_stride(n)),
                            expected.data(),
                            ldc,
                            add};
          multiply_scalar(p);
          for (const TrainKernels* k : kernel_sets()) {
            auto found = before;
            p.c = found.data();
            k->gemm(p);
            EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)), 0)
                << k->name << " " << m << " " << n << " " << depth << " " << transposed << panels << add;
          }
        }
}

TEST(Gemm, PackingKeepsElements) {
  constexpr int kDepth = 7, kCols = 75;
  const auto w = random_floats(kCols * kDepth, 1);
  std::vector<float> out(packed_size(kDepth, kCols), -1);
  for (int p = 0; p < 3; p++) pack_panel(rows_of(w.data(), kDepth), kDepth, kCols, p, out.data());
  for (int k = 0; k < kDepth; k++)
    for (int j = 0; j < 96; j++)
      EXPECT_EQ(packed(out.data(), kDepth).from(k, j).data[j % 32], j < kCols ? w[size_t(j * kDepth + k)] : 0)
          << k << " " << j;
}

// ---- The model ----

void check_gradients(const Config& c) {
  TrainModel m(c);
  fill(m, 1);
  Trainer trainer(m, 2, c.max_seq_len, best());
  const auto batch = windows_for(c, 3, 1);
  trainer.learn(batch);
  expect_gradients(m, trainer, [&] { return trainer.evaluate(batch) / double(count_targets(batch)); });
}

TEST(Gradient, MatchesDifferencesTiedAndGrouped) { check_gradients(odd_config(true, 2)); }
TEST(Gradient, MatchesDifferencesUntiedWithOneKeyValueHead) { check_gradients(odd_config(false, 1)); }
TEST(Gradient, MatchesDifferencesWithoutGroups) { check_gradients(odd_config(false, 4)); }

// The backward pass does not know them: training would ignore them without a word.
TEST(Training, RefusesLayersWithAdditions) {
  std::string error;
  EXPECT_TRUE(check_trainable(odd_config(true, 2), "model.bin", error));
  for (int part = 0; part < 5; part++) {
    Config c = odd_config(true, 2);
    c.qkv_bias = part == 0;
    c.o_bias = part == 1;
    c.mlp_bias = part == 2;
    c.qk_norm = part == 3;
    c.no_rope[1] = part == 4;
    EXPECT_FALSE(check_trainable(c, "model.bin", error));
    const char* const found[] = {"biases", "biases", "biases", "norms of q and k", "layers without rope"};
    EXPECT_EQ(error,
              std::string("model.bin: expected a Llama without additions, which can be trained, found ") + found[part]);
  }
}

TEST(Training, PaddingStaysZero) {
  const Config c = odd_config(false, 2);
  TrainModel m(c);
  fill(m, 1);
  Trainer trainer(m, 1, c.max_seq_len, best());
  learn_three_steps(trainer, [&](uint64_t step) { return windows_for(c, 3, step); });
  expect_zero_padding(m.parameters, m.values);
}

TEST(Training, SameBitsForEveryKernelAndThreadCount) {
  const Config c = odd_config(true, 2);
  const auto make = [&] {
    auto m = std::make_unique<TrainModel>(c);
    fill(*m, 1);
    return m;
  };
  expect_same_bits(make, c.max_seq_len, [&](uint64_t seed) { return windows_for(c, 10, seed); });
}

TEST(Training, OverfitsABatch) {
  const Config c = odd_config(true, 2);
  TrainModel m(c);
  initialize(m, 1);
  Trainer trainer(m, 2, c.max_seq_len, best());
  EXPECT_LT(overfit(trainer, windows_for(c, 2, 1)), 0.05);
}

// Two texts in one window have the loss of the texts in separate windows: rotary positions are relative.
TEST(Training, TextsOfOneWindowAreIndependent) {
  const Config c = odd_config(true, 2);
  TrainModel m(c);
  fill(m, 1);
  Trainer trainer(m, 1, c.max_seq_len, best());
  const Window both = windows_for(c, 1, 1)[0];
  std::vector<Window> alone(2);
  for (size_t t = 0; t < both.ids.size(); t++) {
    Window& w = alone[t >= 45];
    w.ids.push_back(both.ids[t]), w.targets.push_back(both.targets[t]), w.first.push_back(0);
  }
  const double together = trainer.evaluate({both});
  EXPECT_NEAR(together, trainer.evaluate(alone), 1e-4 * together);
  Window open = both;
  open.first.assign(open.first.size(), 0);
  EXPECT_GT(std::fabs(together - trainer.evaluate({open})), 1e-2) << "the test model does not use its context";
}

TEST(Training, LogitsMatchEngine) {
  for (const bool tied : {true, false}) {
    const Config c = odd_config(tied, 2);
    TrainModel m(c);
    fill(m, 1);
    const tiny::MemoryModel file(tiny::model_bytes(tiny::parts_of(c, Type::f32), rows_of_model(m)));
    Session session(file.model, {0, 1, KvType::automatic, nullptr});
    Trainer trainer(m, 1, c.max_seq_len, best());
    const std::vector<int> ids = tiny::random_ids(70, c.vocab_size);
    const float* expected = session.forward(ids.data(), ids.size());
    const float* found = trainer.next_logits(ids);
    ASSERT_TRUE(expected) << session.error;
    for (int i = 0; i < c.vocab_size; i++) EXPECT_NEAR(found[i], expected[i], 1e-4) << i;
  }
}

TEST(Training, LoadsWeightsFromModelFile) {
  const Config c = odd_config(false, 2);
  TrainModel m(c), again(c);
  fill(m, 1);
  const tiny::MemoryModel file(tiny::model_bytes(tiny::parts_of(c, Type::f32), rows_of_model(m)));
  std::string error;
  ASSERT_TRUE(load_weights(file.model, "m.bin", again, error)) << error;
  EXPECT_EQ(std::memcmp(again.values.data(), m.values.data(), m.values.size() * sizeof(float)), 0);
  const tiny::MemoryModel q8(tiny::model_bytes(tiny::parts_of(c, Type::q8), rows_of_model(m)));
  EXPECT_FALSE(load_weights(q8.model, "m.bin", again, error));
  EXPECT_NE(error.find("m.bin: expected a model of type f32"), std::string::npos) << error;
}

TEST(LearningRate, RisesLinearlyThenFollowsCosine) {
  EXPECT_DOUBLE_EQ(learning_rate(1, 0, 9, 109), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate(1, 8, 9, 109), 0.9);
  EXPECT_DOUBLE_EQ(learning_rate(1, 9, 9, 109), 1);
  EXPECT_NEAR(learning_rate(1, 59, 9, 109), 0.5, 1e-12);
  EXPECT_NEAR(learning_rate(1, 109, 9, 109), 0, 1e-12);
  EXPECT_DOUBLE_EQ(learning_rate(1, 0, 0, 1), 1);
}

// Against AdamW as in the paper, in double.
TEST(Optimizer, MatchesAdamW) {
  const Config c = odd_config(true, 2);
  TrainModel m(c);
  fill(m, 1);
  Trainer trainer(m, 2, c.max_seq_len, best());
  AdamOptions o;
  o.clip = 0.5;
  std::vector<double> value(m.values.data(), m.values.data() + m.values.size()), mean(value.size()),
      square(value.size());
  for (int step = 1; step <= 3; step++) {
    trainer.learn(windows_for(c, 3, uint64_t(step)));
    const std::vector<double> gradient(trainer.gradient(), trainer.gradient() + value.size());
    const double norm = length(gradient), clip = std::min(1.0, o.clip / norm);
    ASSERT_NEAR(trainer.gradient_norm(), norm, 1e-5 * norm);
    ASSERT_LT(clip, 1) << "clipping is not tested";
    trainer.update(o, 1e-2, step);
    for (const Parameter& p : m.parameters)
      for (size_t i = p.offset; i < p.offset + p.size(); i++) {
        const double g = gradient[i] * clip;
        mean[i] = o.beta1 * mean[i] + (1 - o.beta1) * g;
        square[i] = o.beta2 * square[i] + (1 - o.beta2) * g * g;
        const double up = mean[i] / (1 - std::pow(o.beta1, step)),
                     down = std::sqrt(square[i] / (1 - std::pow(o.beta2, step)));
        value[i] -= 1e-2 * (up / (down + o.eps) + (p.decays() ? o.decay * value[i] : 0));
        ASSERT_NEAR(m.values[i], value[i], 2e-4) << p.spec.name << " " << i - p.offset << " step " << step;
      }
  }
}

// ---- Windows ----

// Stories of ids 0, 1, 2, ..., each once in the text.
TokenText numbered_text(const std::vector<int>& lengths) {
  TokenText text;
  for (int length : lengths) {
    text.begins.push_back(text.ids.size());
    for (int i = 0; i < length; i++) text.ids.push_back(int(text.ids.size()));
  }
  return text;
}

TEST(WindowStream, CoversTextOncePerEpochInNewOrder) {
  const TokenText text = numbered_text({30, 5, 17, 44, 1, 23});
  WindowStream stream(text, 10, 7);
  std::vector<std::vector<int>> epochs(2);
  for (int epoch = 0; epoch < 2; epoch++) {
    std::set<int> seen;
    const int64_t windows = stream.windows();
    EXPECT_GE(windows, 10);
    for (int64_t i = 0; i < windows; i++) {
      const Window w = stream.next();
      ASSERT_EQ(stream.epoch(), epoch);
      for (size_t t = 0; t < 10; t++) {
        EXPECT_TRUE(seen.insert(w.ids[t]).second) << w.ids[t];
        epochs[size_t(epoch)].push_back(w.ids[t]);
        const bool begins = std::count(text.begins.begin(), text.begins.end(), size_t(w.ids[t])) > 0;
        EXPECT_EQ(w.first[t], begins ? int(t) : t == 0 ? 0 : w.first[t - 1]);
        const bool ends = std::count(text.begins.begin(), text.begins.end(), size_t(w.ids[t]) + 1) > 0 ||
                          w.ids[t] + 1 == int(text.ids.size());
        EXPECT_EQ(w.targets[t], ends ? -1 : w.ids[t] + 1);
      }
    }
    if (epoch == 0) {
      stream.next();
      EXPECT_EQ(stream.epoch(), 1);
      stream.seek(1, 0);
    }
  }
  EXPECT_NE(epochs[0], epochs[1]);
}

TEST(WindowStream, SeeksToAnyWindow) {
  const TokenText text = numbered_text({30, 5, 17, 44, 1, 23});
  WindowStream stream(text, 10, 7), other(text, 10, 7), seed(text, 10, 8);
  std::vector<Window> all;
  for (int i = 0; i < 40; i++) all.push_back(stream.next());
  for (int i = 0; i < 25; i++) other.next();
  WindowStream third(text, 10, 7);
  third.seek(other.epoch(), other.index());
  for (size_t i = 25; i < 40; i++) EXPECT_EQ(third.next().ids, all[i].ids) << i;
  EXPECT_NE(seed.next().ids, all[0].ids);
}

TEST(ValidationWindows, SkipStoriesWithoutTokens) {
  const auto windows = validation_windows(numbered_text({0, 3, 0, 2, 0}), 8);
  ASSERT_EQ(windows.size(), 2u);
  EXPECT_EQ(windows[0].ids.size() + windows[1].ids.size(), 3u);
}

TEST(ValidationWindows, CountEveryTokenOnceWithItsContext) {
  const TokenText text = numbered_text({8, 1, 9, 40, 2, 21});
  const auto windows = validation_windows(text, 8);
  std::multiset<int> targets;
  for (const Window& w : windows) {
    EXPECT_LE(w.ids.size(), 8u);
    for (size_t t = 0; t < w.ids.size(); t++) {
      EXPECT_EQ(w.first[t], 0);
      if (w.targets[t] < 0) continue;
      EXPECT_EQ(w.targets[t], w.ids[t] + 1);
      targets.insert(w.targets[t]);
      const size_t story =
          size_t(std::upper_bound(text.begins.begin(), text.begins.end(), size_t(w.ids[t])) - text.begins.begin()) - 1;
      EXPECT_GE(t + 1, std::min<size_t>(5, size_t(w.ids[t]) - text.begins[story] + 1)) << w.ids[t];
    }
  }
  std::multiset<int> expected;
  for (size_t i = 0; i < text.ids.size(); i++)
    if (!std::count(text.begins.begin(), text.begins.end(), i)) expected.insert(int(i));
  EXPECT_EQ(targets, expected);
  EXPECT_EQ(count_targets(windows), expected.size());
}

// ---- Checkpoints ----

TEST(TrainCheckpoint, RestoresTraining) {
  const TemporaryFolder t;
  const TrainPlan plan = small_plan(odd_config(true, 2));
  TrainProgress progress;
  progress.step = 2;
  progress.epoch = 1;
  progress.index = 4;
  TrainModel m(plan.config), other(plan.config);
  fill(m, 1);
  Trainer trainer(m, 1, 75, best()), second(other, 1, 75, best());
  trainer.learn(windows_for(plan.config, 2, 1));
  trainer.update(AdamOptions(), 1e-2, 1);
  std::string error;
  ASSERT_TRUE(write_checkpoint(t.file("c"), plan, progress, {"blob"}, m, trainer, error)) << error;
  CheckpointFile file;
  ASSERT_TRUE(file.read(t.file("c"), error)) << error;
  EXPECT_EQ(file.plan.steps, 5);
  EXPECT_EQ(file.progress.index, 4);
  EXPECT_EQ(file.texts.tokenizer, "blob");
  file.restore(other, second);
  const std::pair<const Floats*, const Floats*> pairs[] = {
      {&m.values, &other.values}, {&trainer.mean, &second.mean}, {&trainer.square, &second.square}};
  for (const auto& [a, b] : pairs) EXPECT_EQ(std::memcmp(a->data(), b->data(), a->size() * sizeof(float)), 0);
  EXPECT_EQ(trainer.next_logits({1, 2, 3})[5], second.next_logits({1, 2, 3})[5]);
}

// A training that has not begun, with its checkpoint.
struct NewTraining {
  const TemporaryFolder t;
  const std::string path = t.file("c");
  TrainPlan plan = small_plan(odd_config(true, 2));
  TrainModel m{plan.config};
  Trainer trainer{m, 1, 8, best()};
  std::string error;

  bool write(const TrainProgress& progress = {}) {
    return write_checkpoint(path, plan, progress, {"blob"}, m, trainer, error);
  }
};

TEST(TrainCheckpoint, RejectsDamagedFile) {
  NewTraining training;
  ASSERT_TRUE(training.write()) << training.error;
  const std::string good = read_file(training.path);
  for (size_t n = 0; n < good.size(); n += n < 400 ? 5 : 9973) {
    CheckpointFile file;
    EXPECT_FALSE(file.read(training.t.write("short", good.substr(0, n)), training.error)) << n;
    EXPECT_NE(training.error.find("short: "), std::string::npos) << training.error;
  }
  for (size_t at = 0; at < good.size(); at += at < 400 ? 5 : 9973) {
    std::string bad = good;
    bad[at] = char(bad[at] ^ 4);
    CheckpointFile file;
    EXPECT_FALSE(file.read(training.t.write("bad", bad), training.error)) << at;
  }
}

// The state of a training that has diverged: the file could not be resumed.
TEST(TrainCheckpoint, IsNotReplacedByAStateThatCannotBeRead) {
  NewTraining training;
  ASSERT_TRUE(training.write()) << training.error;
  const std::string good = read_file(training.path);
  TrainProgress progress;
  progress.bits = INFINITY;
  EXPECT_FALSE(training.write(progress));
  EXPECT_EQ(training.error, training.path + ": bits per character: expected -1e+300 to 1e+300, found inf");
  training.m.values[5] = NAN;
  EXPECT_FALSE(training.write());
  EXPECT_EQ(training.error, training.path + ": weights: expected finite numbers, found nan");
  EXPECT_TRUE(read_file(training.path) == good);
}

// The fields of a checkpoint in the order of the file.
struct Field {
  std::string name;
  bool real;
  double low, high;
};

std::vector<Field> fields_of(TrainPlan plan) {
  std::vector<Field> all;
  const auto each = [&](const char* name, const auto& value, auto low, auto high) {
    all.push_back({name, std::is_floating_point_v<std::decay_t<decltype(value)>>, double(low), double(high)});
    return true;
  };
  TrainProgress progress;
  for_each_field(plan, each);
  for_each_field(progress, plan, each);
  return all;
}

std::string with_checksum(std::string bytes) {
  const uint64_t hash = hash_bytes(bytes.data(), bytes.size() - sizeof(uint64_t));
  std::memcpy(&bytes[bytes.size() - sizeof hash], &hash, sizeof hash);
  return bytes;
}

// Anyone can compute the checksum: every field of every kind of training has a range.
TEST(TrainCheckpoint, RejectsFieldsOutOfRangeByName) {
  const TemporaryFolder t;
  std::string error;
  TrainPlan with_lora = small_plan(odd_config(true, 2)), megabyte = small_plan({});
  with_lora.lora = {3, 3, 0x7f};
  megabyte.architecture = kMegabyte;
  megabyte.megabyte = {{8, 8, 1}, {8, 8, 1}, 2, 4, 4, 4, true, false};
  for (const TrainPlan& plan : {small_plan(odd_config(true, 2)), with_lora, megabyte}) {
    std::unique_ptr<LearnedWeights> m;
    if (plan.architecture == kMegabyte)
      m = std::make_unique<MegabyteWeights>(plan.megabyte);
    else
      m = std::make_unique<TrainModel>(plan.config);
    if (plan.lora.rank > 0) m->adapt(adapters_for(plan.config, plan.lora));
    Trainer trainer(*m, 1, 8, best());
    ASSERT_TRUE(write_checkpoint(t.file("c"), plan, {}, {"blob"}, *m, trainer, error)) << error;
    const std::string good = read_file(t.file("c"));
    const std::vector<Field> fields = fields_of(plan);
    for (size_t i = 0; i < fields.size(); i++) {
      const Field& f = fields[i];
      if (!f.real && f.low < -1e18) continue;  // a hash
      const auto expect_rejected = [&](auto value) {
        std::string bad = good;
        std::memcpy(&bad[12 + 8 * i], &value, sizeof value);
        CheckpointFile file;
        EXPECT_FALSE(file.read(t.write("bad", with_checksum(bad)), error)) << f.name << " " << value;
        EXPECT_EQ(error.find(t.file("bad") + ": " + f.name + ": expected "), 0u) << error;
      };
      if (f.real) {
        for (double value : {f.low * 1.01 - 1, f.high * 1.01 + 1e-6, double(NAN), double(INFINITY), -1e308})
          expect_rejected(value);
      } else {
        for (int64_t value : {int64_t(f.low) - 1, int64_t(f.high) + 1, INT64_MAX, INT64_MIN}) expect_rejected(value);
      }
    }
  }
}

TEST(TrainCheckpoint, RejectsStateThatDoesNotFitTheModel) {
  NewTraining training;
  std::string& error = training.error;
  ASSERT_TRUE(training.write()) << error;
  const std::string good = read_file(training.path);
  const auto error_of = [&](const std::string& bytes) {
    CheckpointFile file;
    EXPECT_FALSE(file.read(training.t.write("bad", with_checksum(bytes)), error));
    return error;
  };
  EXPECT_NE(error_of(good + "1234").find("bytes of weights, found"), std::string::npos) << error;
  EXPECT_NE(error_of(good.substr(4)).find("is not a checkpoint"), std::string::npos) << error;
  std::string bad = good;
  const float nan = NAN;
  std::memcpy(&bad[bad.size() - 12], &nan, sizeof nan);
  EXPECT_NE(error_of(bad).find("weights: expected finite numbers, found nan"), std::string::npos) << error;
  training.plan.context = 76;
  ASSERT_TRUE(training.write()) << error;
  EXPECT_NE(error_of(read_file(training.path)).find("context: expected at most the model's 75, found 76"),
            std::string::npos)
      << error;
}

}  // namespace training_test
