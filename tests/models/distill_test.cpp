// distill_test.cpp: distillation: the loss against its definition in double, its gradient against differences, the
// teacher's logits, and the same bits for every instruction set and number of threads.
#include <gtest/gtest.h>

#include <set>

#include "../support/training_model.hpp"

namespace distill_test {

using namespace pocket;
using namespace training;

// ---- The loss of a row ----

struct RowLoss {
  double loss;
  std::vector<double> gradient;
};

RowLoss row_loss(const std::vector<float>& logits, const std::vector<float>& teacher, int target, double weight,
                 double share, double temperature) {
  const auto softmax = [](const std::vector<float>& x, double t) {
    std::vector<double> p;
    double sum = 0;
    for (float v : x) {
      p.push_back(std::exp(double(v) / t));
      sum += p.back();
    }
    for (double& v : p) v /= sum;
    return p;
  };
  const auto own = softmax(logits, 1), p = softmax(logits, temperature), q = softmax(teacher, temperature);
  RowLoss r = {-(1 - share) * std::log(own[size_t(target)]), {}};
  for (size_t i = 0; i < p.size(); i++) {
    r.loss += share * temperature * temperature * q[i] * std::log(q[i] / p[i]);
    const double hard = own[i] - (int(i) == target), soft = (p[i] - q[i]) * temperature;
    r.gradient.push_back(weight * ((1 - share) * hard + share * soft));
  }
  return r;
}

TEST(DistillRow, MatchesDefinitionForEveryKernel) {
  for (const int n : {1, 16, 51, 100})
    for (const float share : {0.f, 0.3f, 1.f})
      for (const float temperature : {0.5f, 1.f, 3.f}) {
        tiny::Random random{uint64_t(n)};
        std::vector<float> logits, teacher;
        for (int i = 0; i < n; i++) {
          logits.push_back(2 * random.normal());
          teacher.push_back(2 * random.normal());
        }
        const int target = n / 2, width = int(padded16(n));
        const RowLoss expected = row_loss(logits, teacher, target, 0.7, double(share), double(temperature));
        std::set<uint64_t> hashes;
        for (const TrainKernels* k : kernel_sets()) {
          std::vector<float> row = logits, teacher_row = teacher, scratch(size_t(width) * 2);
          row.resize(size_t(width));
          teacher_row.resize(size_t(width));
          double loss = -1;
          k->distill({row.data(), n, width, target, 0.7f}, {teacher_row.data(), scratch.data(), share, temperature},
                     &loss);
          EXPECT_NEAR(loss, expected.loss, 1e-5) << k->name << " " << n << " " << share << " " << temperature;
          for (int i = 0; i < n; i++) EXPECT_NEAR(row[size_t(i)], expected.gradient[size_t(i)], 1e-6) << k->name << i;
          for (int i = n; i < width; i++) EXPECT_EQ(row[size_t(i)], 0);
          hashes.insert(hash_bytes(row.data(), row.size() * sizeof(float)) + hash_bytes(&loss, sizeof loss));
        }
        EXPECT_EQ(hashes.size(), 1u);
      }
}

// ---- Teachers ----

// A shape that differs from the students', with the same 51 tokens.
Config teacher_config() {
  Config c = odd_config(false, 4);
  c.dim = 32;
  c.head_dim = 8;
  c.n_layers = 3;
  return c;
}

// A model file, open as a teacher.
struct TestTeacher {
  TemporaryFolder folder;
  ModelTeacher teacher;

  explicit TestTeacher(float share = 0.4f, float temperature = 2, Type type = Type::f32, int threads = 2) {
    TrainModel m(teacher_config());
    fill(m, 9);
    ModelWriter writer;
    EXPECT_TRUE(writer.write(folder.file("t.bin"), tiny::parts_of(m.config, type), rows_of_model(m), nullptr));
    EXPECT_TRUE(teacher.open(folder.file("t.bin"))) << teacher.error;
    EXPECT_TRUE(teacher.start({share, temperature, 1}, threads, 75)) << teacher.error;
  }
};

// The logits do not depend on how a window is divided into calls.
TEST(Teacher, ProcessesEachTextSeparately) {
  for (const Type type : {Type::f32, Type::q8, Type::q4}) {
    TestTeacher t(0.4f, 2, type);
    const Window w = windows_for(odd_config(true, 2), 1, 1)[0];
    std::vector<float> expected;
    for (const auto& [begin, end] : {std::pair<size_t, size_t>(0, 45), {45, w.ids.size()}}) {
      Session session(t.teacher.model(), {75, 1, KvType::automatic, nullptr});
      ASSERT_TRUE(session.forward(&w.ids[begin], end - begin, [&](size_t, const float* logits) {
        expected.insert(expected.end(), logits, logits + 51);
        return true;
      }));
    }
    for (const int piece : {75, 64, 45, 10, 1}) {
      std::vector<float> memory(75 * 64), found;
      for (int first = 0; first < 75; first += piece) {
        const int count = std::min(piece, 75 - first);
        t.teacher.logits(1, w, first, count, {memory.data(), 64});
        for (int i = 0; i < count; i++)
          found.insert(found.end(), memory.begin() + i * 64, memory.begin() + i * 64 + 51);
      }
      EXPECT_TRUE(found == expected) << piece;
    }
    EXPECT_EQ(t.teacher.failure(), "");
  }
}

TEST(Teacher, RejectsFileThatIsNotAModel) {
  const TemporaryFolder t;
  ModelTeacher teacher;
  EXPECT_FALSE(teacher.open(t.write("x", "hello")));
  EXPECT_NE(teacher.error.find("x: "), std::string::npos) << teacher.error;
}

// ---- Students ----

void check_gradients(const Config& c, const LoraPlan& lora, float share, float temperature) {
  TestTeacher t(share, temperature);
  TrainModel m(c);
  fill(m, 1);
  if (lora.rank > 0) {
    m.adapt(adapters_for(c, lora));
    tiny::Random random(3);
    for (const Parameter& p : m.adapters.parameters)
      for (int r = 0; r < p.spec.rows; r++)
        for (int k = 0; k < p.spec.cols; k++)
          m.adapters.values[p.offset + size_t(r) * p.stride + size_t(k)] = 0.2f * random.normal();
  }
  Trainer trainer(m, 2, c.max_seq_len, best(), &t.teacher);
  const auto batch = windows_for(c, 3, 1);
  trainer.learn(batch);
  expect_gradients(m, trainer, [&] { return trainer.learn(batch); });
}

TEST(DistillGradient, MatchesDifferences) { check_gradients(odd_config(true, 2), {}, 0.4f, 2); }
TEST(DistillGradient, MatchesDifferencesWithTeacherOnly) { check_gradients(odd_config(false, 2), {}, 1, 1); }
TEST(DistillGradient, MatchesDifferencesForAdapters) {
  const Config c = odd_config(false, 4);
  check_gradients(c, {3, 3, 0xff}, 0.5f, 1.5f);
}

// Three steps; sets `hash` to that of the weights and the loss.
void train_briefly(float share, int threads, const TrainKernels& k, bool with_teacher, uint64_t& hash) {
  const Config c = odd_config(true, 2);
  TestTeacher t(share, 2, Type::q8, threads);
  TrainModel m(c);
  fill(m, 1);
  Trainer trainer(m, threads, c.max_seq_len, k, with_teacher ? &t.teacher : nullptr);
  double loss = 0;
  for (int step = 1; step < 4; step++) {
    loss = trainer.learn(windows_for(c, 10, uint64_t(step)));
    trainer.update(AdamOptions(), 1e-2, step);
  }
  hash = hash_bytes(m.values.data(), m.values.size() * sizeof(float)) + hash_bytes(&loss, sizeof loss);
}

TEST(Distill, SameBitsForEveryKernelAndThreadCount) {
  std::set<uint64_t> hashes;
  for (const TrainKernels* k : kernel_sets())
    for (const int threads : {1, 2, 3, 8}) {
      uint64_t hash = 0;
      train_briefly(0.4f, threads, *k, true, hash);
      hashes.insert(hash);
    }
  EXPECT_EQ(hashes.size(), 1u);
}

TEST(Distill, TeacherWithWeightZeroChangesNothing) {
  uint64_t none = 0, weight_0 = 0, weight_10 = 0;
  train_briefly(0, 2, best(), false, none);
  train_briefly(0, 2, best(), true, weight_0);
  train_briefly(0.1f, 2, best(), true, weight_10);
  EXPECT_EQ(weight_0, none);
  EXPECT_NE(weight_10, none);
}

// The divergence of a model from its copy is 0, and so is the gradient.
TEST(Distill, CopyOfTeacherHasZeroLoss) {
  const Config c = teacher_config();
  TestTeacher t(1, 2);
  TrainModel m(c);
  fill(m, 9);
  Trainer trainer(m, 2, c.max_seq_len, best(), &t.teacher);
  EXPECT_NEAR(trainer.learn(windows_for(c, 3, 1)), 0, 1e-5);
  EXPECT_LT(trainer.gradient_norm(), 1e-4);
}

TEST(Distill, StudentApproachesTeacher) {
  const Config c = odd_config(true, 2);
  TestTeacher t(1, 1);
  TrainModel m(c);
  initialize(m, 1);
  Trainer trainer(m, 2, c.max_seq_len, best(), &t.teacher);
  const auto batch = windows_for(c, 2, 1);
  AdamOptions options;
  options.decay = 0;
  const double before = trainer.learn(batch);
  double after = 0;
  for (int step = 1; step <= 300; step++) {
    after = trainer.learn(batch);
    trainer.update(options, learning_rate(2e-2, step - 1, 20, 300), step);
  }
  EXPECT_LT(after, 0.2 * before);
}

}  // namespace distill_test
