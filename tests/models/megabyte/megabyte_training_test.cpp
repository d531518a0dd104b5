// megabyte_training_test.cpp: the computations of training a MEGABYTE: the logits of MEGABYTE-pytorch, gradients
// against differences of the loss, and the same bits for every instruction set and number of threads.
#include "../../../models/megabyte/megabyte_train.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "../../../models/megabyte/megabyte_checkpoint.hpp"
#include "../../../models/megabyte/megabyte_writer.hpp"
#include "../../../models/trained_rows.hpp"
#include "../../../models/training_state.hpp"
#include "../../support/test_data.hpp"
#include "../../support/training_model.hpp"

namespace megabyte_training_test {

using namespace pocket;
using Json = nlohmann::json;
using namespace training;

// ---- The public implementation's logits ----

MegabyteConfig config_of(const Json& json) {
  MegabyteConfig c;
  const int multiple = json.value("ff_mult", 4);
  c.global = {json["dim"][0], int(json["dim"][0]) * multiple, json["depth"][0]};
  c.local = {json["dim"][1], int(json["dim"][1]) * multiple, json["depth"][1]};
  c.patches = json["max_seq_len"][0], c.patch_size = json["max_seq_len"][1];
  c.n_heads = json["heads"], c.head_dim = json["dim_head"];
  c.rotary = json.value("rel_pos", false), c.positions = json.value("pos_emb", false);
  return c;
}

// Reads the weights of a state_dict. Its other tensor, inv_freq, is a buffer.
void read_weights(const std::string& path, MegabyteWeights& m) {
  std::string error;
  const auto file = InputFile::open(path, error);
  ASSERT_TRUE(file) << error;
  FoundTensors found;
  PyTorchFile reader(*file);
  ASSERT_TRUE(reader.read(0, found)) << reader.error;
  std::set<std::string> used;
  for (const Parameter& p : m.parameters) {
    const std::string name = megabyte_name(p.spec.name), last = p.spec.name.substr(p.spec.name.rfind('.') + 1);
    ASSERT_TRUE(found.count(name)) << name;
    const FoundTensor& t = found.at(name);
    const int64_t parts = last == "wk" || last == "wv" ? 2 : 1;
    const std::vector<int64_t> shape = {parts * p.spec.rows, p.spec.cols};
    ASSERT_EQ(t.shape, std::vector<int64_t>(shape.begin() + (p.spec.layout == Layout::vector), shape.end())) << name;
    ASSERT_EQ(int(t.dtype), int(DType::f32));
    const size_t bytes = size_t(p.spec.cols) * sizeof(float);
    for (int r = 0; r < p.spec.rows; r++)
      ASSERT_TRUE(file->read(t.offset + uint64_t(r + (last == "wv" ? p.spec.rows : 0)) * bytes,
                             m.values.data() + p.offset + size_t(r) * p.stride, bytes, error))
          << error;
    used.insert(name);
  }
  for (const auto& [name, t] : found)
    EXPECT_TRUE(used.count(name) || name.find("rotary_emb.inv_freq") != std::string::npos) << name;
}

class MegabyteGolden : public testing::TestWithParam<const char*> {};

TEST_P(MegabyteGolden, LogitsMatchMegabytePytorch) {
  NEED_DATA(folder, std::string("megabyte/") + GetParam());
  const MegabyteConfig c = config_of(Json::parse(read_file(folder + "/config.json")));
  const Json golden = Json::parse(read_file(folder + "/golden.json"));
  MegabyteWeights m(c);
  read_weights(folder + "/model.pt", m);
  if (HasFatalFailure()) return;
  Trainer trainer(m, 1, c.max_seq_len() + 1, best());
  const std::vector<int> bytes = golden["bytes"];
  std::vector<int> ids = {kStartId};
  const auto compare = [&](const Json& expected) {
    const float* found = trainer.next_logits(ids);
    ASSERT_EQ(expected.size(), size_t(kByteValues));
    for (int v = 0; v < kByteValues; v++) {
      const double logit = expected[size_t(v)];
      ASSERT_NEAR(found[v], logit, 1e-4 * (1 + std::fabs(logit))) << ids.size() - 1 << " bytes, logit " << v;
    }
  };
  compare(golden["first"]);
  const std::vector<int> positions = golden["positions"];
  ASSERT_EQ(golden["logits"].size(), positions.size());
  for (size_t i = 0; i < positions.size(); i++) {
    ids.resize(1);
    ids.insert(ids.end(), bytes.begin(), bytes.begin() + positions[i] + 1);
    compare(golden["logits"][i]);
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, MegabyteGolden, testing::Values("plain", "pos-emb", "rel-pos", "both-wide"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

// ---- Kernels ----

TEST(MegabyteTrainKernels, GeluMatchesErrorFunction) {
  std::vector<float> x, found(4001), dx(4001);
  for (int i = -2000; i <= 2000; i++) x.push_back(float(i) * 0.005f);
  const std::vector<float> ones(x.size(), 1.f);
  const MegabyteTrainKernels& kernels = megabyte_train_kernels(best());
  kernels.gelu(x.data(), found.data(), int(x.size()));
  std::vector<float> again(x.size());
  kernels.gelu_backward(x.data(), ones.data(), again.data(), dx.data(), int(x.size()));
  EXPECT_EQ(again, found);
  for (size_t i = 0; i < x.size(); i++) {
    const double v = x[i], share = 0.5 * std::erfc(-v / std::sqrt(2.0));
    EXPECT_NEAR(found[i], v * share, 4e-7 * (1 + std::fabs(v))) << v;
    EXPECT_NEAR(dx[i], share + v * std::exp(-v * v / 2) / std::sqrt(2 * 3.14159265358979), 1e-6) << v;
  }
}

// Rows with a smaller norm than the floor are multiplied by a constant, and so is the gradient.
TEST(MegabyteTrainKernels, NormHasFloor) {
  constexpr int n = 20;
  std::vector<float> x(32), dy(32), weight(32), y(32), dx(32), dweight(32);
  for (int i = 0; i < n; i++) {
    x[size_t(i)] = float(i) * 1e-11f;
    dy[size_t(i)] = float(3 - i);
    weight[size_t(i)] = 2;
  }
  for (const TrainKernels* k : kernel_sets()) {
    std::fill(dx.begin(), dx.end(), 0.f);
    std::fill(dweight.begin(), dweight.end(), 0.f);
    const MegabyteTrainKernels& kernels = megabyte_train_kernels(*k);
    kernels.shift_norm(x.data(), x.data() + n / 2, weight.data(), y.data(), n);
    kernels.floor_norm_backward({dy.data(), x.data(), weight.data(), dx.data(), dweight.data(), n});
    for (size_t i = 0; i < n; i++) {
      EXPECT_FLOAT_EQ(y[i], float(i) * 2e-3f);
      EXPECT_FLOAT_EQ(dx[i], dy[i] * 2e8f);
      EXPECT_FLOAT_EQ(dweight[i], dy[i] * float(i) * 1e-3f);
    }
  }
}

// ---- Training ----

// Sizes that are not multiples of vector widths: heads of 6, so that vectors extend past their ends; 5 bytes per patch.
MegabyteConfig odd_config(bool rotary, bool positions) {
  MegabyteConfig c;
  c.global = {26, 70, 2};
  c.local = {14, 50, 2};
  c.patches = 15;
  c.patch_size = 5;
  c.n_heads = 3;
  c.head_dim = 6;
  c.rotary = rotary;
  c.positions = positions;
  return c;
}

// Windows of different lengths. Even ones begin at the beginning of a text, odd ones within a text. Two more texts
// begin in each, one of which ends within its first patch. Some tokens have no target.
std::vector<Window> windows_for(const MegabyteConfig& c, int count, uint64_t seed) {
  std::vector<Window> all;
  for (int i = 0; i < count; i++) {
    Window w;
    const int n = c.max_seq_len() - 7 * i;
    w.ids = tiny::random_ids(n, kByteValues, seed + uint64_t(i));
    w.targets = tiny::random_ids(n, kByteValues, seed + 100 + uint64_t(i));
    for (int t = 0; t < n; t++) {
      w.first.push_back(t < 36 ? 0 : t < 39 ? 36 : 39);
      if (t % 10 == 9) w.targets[size_t(t)] = -1;
    }
    for (int t : {36, 39}) w.ids[size_t(t)] = kStartId;
    if (i % 2 == 0) w.ids[0] = kStartId;
    all.push_back(w);
  }
  return all;
}

void check_gradients(const MegabyteConfig& c) {
  MegabyteWeights m(c);
  fill(m, 1);
  Trainer trainer(m, 2, c.max_seq_len(), best());
  const auto batch = windows_for(c, 3, 1);
  trainer.learn(batch);
  expect_gradients(m, trainer, [&] { return trainer.evaluate(batch) / double(count_targets(batch)); });
}

TEST(MegabyteGradient, MatchesDifferencesWithRotaryPositions) { check_gradients(odd_config(true, false)); }
TEST(MegabyteGradient, MatchesDifferencesWithLearnedPositions) { check_gradients(odd_config(false, true)); }
TEST(MegabyteGradient, MatchesDifferencesWithBoth) {
  MegabyteConfig c = odd_config(true, true);
  c.global = {24, 96, 1};
  c.local = {25, 32, 3};
  c.patches = 75;
  c.patch_size = 1;
  check_gradients(c);
}

TEST(MegabyteTraining, PaddingStaysZero) {
  const MegabyteConfig c = odd_config(true, true);
  MegabyteWeights m(c);
  fill(m, 1);
  Trainer trainer(m, 1, c.max_seq_len(), best());
  learn_three_steps(trainer, [&](uint64_t step) { return windows_for(c, 3, step); });
  expect_zero_padding(m.parameters, m.values);
}

TEST(MegabyteTraining, SameBitsForEveryKernelAndThreadCount) {
  const MegabyteConfig c = odd_config(true, true);
  const auto make = [&] {
    auto m = std::make_unique<MegabyteWeights>(c);
    fill(*m, 1);
    return m;
  };
  expect_same_bits(make, c.max_seq_len(), [&](uint64_t seed) { return windows_for(c, 5, seed); });
}

TEST(MegabyteTraining, OverfitsABatch) {
  const MegabyteConfig c = odd_config(true, false);
  MegabyteWeights m(c);
  initialize(m, 1);
  Trainer trainer(m, 2, c.max_seq_len(), best());
  // The same start predicts the first byte of all three texts.
  auto batch = windows_for(c, 2, 1);
  for (Window& w : batch)
    for (size_t t = 0; t < w.ids.size(); t++)
      if (w.ids[t] == kStartId) w.targets[t] = 7;
  EXPECT_LT(overfit(trainer, batch), 0.05);
}

// Three texts in one window have the loss of the texts in separate windows.
TEST(MegabyteTraining, TextsOfOneWindowAreIndependent) {
  const MegabyteConfig c = odd_config(true, true);
  MegabyteWeights m(c);
  fill(m, 1);
  Trainer trainer(m, 1, c.max_seq_len(), best());
  for (const Window& both : windows_for(c, 2, 1)) {
    std::vector<Window> alone(3);
    for (size_t t = 0; t < both.ids.size(); t++) {
      Window& w = alone[t < 36 ? 0 : t < 39 ? 1 : 2];
      w.ids.push_back(both.ids[t]), w.targets.push_back(both.targets[t]), w.first.push_back(0);
    }
    const double together = trainer.evaluate({both});
    EXPECT_NEAR(together, trainer.evaluate(alone), 1e-5 * together);
  }
}

// Changing a byte does not change the logits before it by a bit.
TEST(MegabyteTraining, LogitsDependOnEarlierBytesOnly) {
  const MegabyteConfig c = odd_config(true, true);
  MegabyteWeights m(c);
  fill(m, 1);
  std::vector<int> ids = tiny::random_ids(40, kByteValues, 3);
  ids[0] = kStartId;
  Pool pool(1);
  m.pack_weights(pool, best());
  const auto pass = m.new_pass(best(), {int(ids.size()), nullptr, 0});
  std::vector<std::vector<float>> before;
  const auto logits = [&] {
    std::vector<std::vector<float>> all;
    pass->forward({ids, {}, std::vector<int>(ids.size(), 0)});
    const Rows& rows = pass->logits(0, int(ids.size()));
    for (size_t t = 0; t < ids.size(); t++) all.emplace_back(rows.row(int(t)), rows.row(int(t)) + kByteValues);
    return all;
  };
  const auto expected = logits();
  for (size_t changed = 1; changed < ids.size(); changed++) {
    const int byte = ids[changed];
    ids[changed] = (byte + 1) % kByteValues;
    const auto found = logits();
    for (size_t t = 0; t < changed; t++) EXPECT_EQ(found[t], expected[t]) << "byte " << changed << " affects " << t;
    for (size_t t = changed; t < ids.size(); t++)
      EXPECT_NE(found[t], expected[t]) << changed << " does not affect " << t;
    ids[changed] = byte;
  }
}

TEST(MegabyteTraining, LogitsMatchEngine) {
  for (const bool rotary : {true, false})
    for (const bool positions : {true, false}) {
      const MegabyteConfig c = odd_config(rotary, positions);
      MegabyteWeights m(c);
      fill(m, 1);
      ModelParts parts;
      set_architecture(c, parts);
      parts.type = Type::f32;
      parts.threads = 1;
      const tiny::Bytes file = tiny::model_bytes(parts, rows_of_model(m));
      MegabyteModel model;
      ASSERT_TRUE(model.open_memory(file.data(), file.size())) << model.error;
      MegabyteSession session(model, {0, 1, KvType::automatic, nullptr});
      ASSERT_EQ(session.error, "");
      Trainer trainer(m, 1, c.max_seq_len() + 1, best());
      std::vector<int> ids = {kStartId};
      const auto compare = [&](const float* expected) {
        ASSERT_TRUE(expected) << session.error;
        const float* found = trainer.next_logits(ids);
        for (int i = 0; i < kByteValues; i++) ASSERT_NEAR(found[i], expected[i], 1e-4) << ids.size() << " " << i;
      };
      compare(session.start());
      for (int byte : tiny::random_ids(c.max_seq_len(), kByteValues, 4)) {
        ids.push_back(byte);
        compare(session.forward(&byte, 1));
        if (HasFatalFailure()) return;
      }
    }
}

// Copying the state to another trainer and continuing gives the same bits.
TEST(MegabyteTraining, ContinuesFromCopiedState) {
  const MegabyteConfig c = odd_config(true, false);
  MegabyteWeights straight(c), first(c), second(c);
  for (MegabyteWeights* m : {&straight, &first}) fill(*m, 1);
  const auto run = [&](Trainer& trainer, int from, int to) {
    for (int step = from; step <= to; step++) {
      trainer.learn(windows_for(c, 3, uint64_t(step)));
      trainer.update(AdamOptions(), 1e-2, step);
    }
  };
  Trainer one(straight, 2, c.max_seq_len(), best()), two(first, 1, c.max_seq_len(), best());
  run(one, 1, 6);
  run(two, 1, 3);
  Trainer three(second, 3, c.max_seq_len(), best());
  const std::pair<Floats*, Floats*> copies[] = {
      {&second.values, &first.values}, {&three.mean, &two.mean}, {&three.square, &two.square}};
  for (const auto& [to, from] : copies) std::memcpy(to->data(), from->data(), from->size() * sizeof(float));
  three.repack();
  run(three, 4, 6);
  EXPECT_EQ(std::memcmp(second.values.data(), straight.values.data(), straight.values.size() * sizeof(float)), 0);
}

}  // namespace megabyte_training_test
