// training_model.hpp: shared by the tests of training: a small model, windows for it, and the comparison of gradients
// with differences of the loss.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <set>
#include <vector>

#include "../../models/trained_rows.hpp"
#include "../../models/training_state.hpp"
#include "../../models/training_text.hpp"
#include "tiny_model.hpp"

namespace training {

using namespace pocket;

// The kernel sets that this CPU supports.
inline std::vector<const TrainKernels*> kernel_sets() {
  std::vector<const TrainKernels*> all;
  for (const TrainKernels* k = train_kernel_table(); k->name; k++)
    if (k->supported()) all.push_back(k);
  return all;
}

inline const TrainKernels& best() { return *find_train_kernels(nullptr); }

// Sizes that are not multiples of vector widths: heads of 6, so that vectors extend past their ends.
inline Config odd_config(bool tied, int kv_heads) {
  Config c;
  c.dim = 24;
  c.hidden_dim = 42;
  c.n_layers = 2;
  c.n_heads = 4;
  c.n_kv_heads = kv_heads;
  c.head_dim = 6;
  c.vocab_size = 51;
  c.max_seq_len = 75;
  c.tied = tied;
  return c;
}

// A plan for such a model, as a checkpoint contains it.
inline TrainPlan small_plan(const Config& c) {
  TrainPlan plan;
  plan.config = c;
  plan.steps = 5;
  plan.every = 1;
  plan.batch = 2;
  plan.context = 8;
  plan.rate = 1e-2;
  plan.seed = 3;
  return plan;
}

// Large weights, so that every tensor has a large gradient; norms that are not 1, biases that are not 0.
template <class Model> void fill(Model& m, uint64_t seed) {
  initialize(m, seed);
  tiny::Random random(seed);
  for (const Parameter& p : m.parameters)
    for (int r = 0; r < p.spec.rows; r++)
      for (int k = 0; k < p.spec.cols; k++) {
        float& value = m.values[p.offset + size_t(r) * p.stride + size_t(k)];
        value = p.decays() ? 2 * value : std::fma(0.2f, random.normal(), value);
      }
}

// Windows of different lengths, with two texts in each and some tokens without a target.
inline std::vector<Window> windows_for(const Config& c, int count, uint64_t seed) {
  std::vector<Window> all;
  for (int i = 0; i < count; i++) {
    Window w;
    const int n = c.max_seq_len - 7 * i;
    w.ids = tiny::random_ids(n, c.vocab_size, seed + uint64_t(i));
    w.targets = tiny::random_ids(n, c.vocab_size, seed + 100 + uint64_t(i));
    for (int t = 0; t < n; t++) {
      w.first.push_back(t < 45 ? 0 : 45);
      if (t % 10 == 9) w.targets[size_t(t)] = -1;
    }
    all.push_back(w);
  }
  return all;
}

// The loss of a batch after 400 steps on it.
inline double overfit(Trainer& trainer, const std::vector<Window>& batch) {
  AdamOptions options;
  options.decay = 0;
  double loss = 0;
  for (int step = 1; step <= 400; step++) {
    loss = trainer.learn(batch);
    trainer.update(options, learning_rate(2e-2, step - 1, 20, 400), step);
  }
  return loss;
}

// Three steps, each on windows(step).
template <class Windows> void learn_three_steps(Trainer& trainer, const Windows& windows) {
  for (int step = 1; step < 4; step++) {
    trainer.learn(windows(uint64_t(step)));
    trainer.update(AdamOptions(), 1e-2, step);
  }
}

// Expects zeros after the columns of every row of a weight.
inline void expect_zero_padding(const std::vector<Parameter>& parameters, const Floats& values) {
  for (const Parameter& p : parameters)
    for (size_t i = 0; i < p.size(); i++)
      EXPECT_TRUE(i % p.stride < size_t(p.spec.cols) || values[p.offset + i] == 0) << p.spec.name << " " << i;
}

// Trains a model from make() for three steps on windows(seed), and evaluates it on others: expects the same weights and
// loss for every kernel set and number of threads.
template <class Make, class Windows> void expect_same_bits(const Make& make, int tokens, const Windows& windows) {
  std::set<uint64_t> hashes;
  for (const TrainKernels* k : kernel_sets())
    for (const int threads : {1, 2, 3, 8}) {
      auto m = make();
      Trainer trainer(*m, threads, tokens, *k);
      learn_three_steps(trainer, windows);
      const double loss = trainer.evaluate(windows(9));
      hashes.insert(hash_bytes(m->learned().data(), m->learned().size() * sizeof(float)) +
                    hash_bytes(&loss, sizeof loss));
    }
  EXPECT_EQ(hashes.size(), 1u);
}

inline double length(const std::vector<double>& v) {
  double sum = 0;
  for (double x : v) sum += x * x;
  return std::sqrt(sum);
}

// The slope of the loss along a direction, from four values of the loss; the error is of fourth order in h.
inline double slope(LearnedWeights& m, Trainer& trainer, const std::function<double()>& loss, const Parameter& p,
                    const std::vector<double>& direction, double h) {
  float* values = m.learned().data() + p.offset;
  const std::vector<float> before(values, values + p.size());
  const auto at = [&](double by) {
    for (size_t i = 0; i < p.size(); i++) values[i] = float(double(before[i]) + by * direction[i]);
    trainer.repack();
    return loss();
  };
  const double result = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
  at(0);
  return result;
}

// Compares the gradient of every trained tensor with the slope of the loss: along the gradient within 5e-3 of its norm,
// with a step h / 2 that keeps curvature small; along random directions, where rounding of the loss matters more,
// within 1e-4. `loss` returns the mean loss of the batch of the last trainer.learn().
inline void expect_gradients(LearnedWeights& m, Trainer& trainer, const std::function<double()>& loss,
                             double h = 0.04) {
  const std::vector<float> all(trainer.gradient(), trainer.gradient() + m.learned().size());
  for (const Parameter& p : m.learned_parameters()) {
    const std::vector<double> gradient(all.begin() + ptrdiff_t(p.offset), all.begin() + ptrdiff_t(p.offset + p.size()));
    const double norm = length(gradient);
    ASSERT_GT(norm, 1e-3) << p.spec.name;
    for (int i = 0; i < 4; i++) {
      std::vector<double> direction = gradient;
      if (i > 0) {
        tiny::Random random{uint64_t(i)};
        for (size_t k = 0; k < direction.size(); k++)
          direction[k] = k % p.stride < size_t(p.spec.cols) ? double(random.normal()) : 0;
      }
      const double scale = length(direction);
      double expected = 0;
      for (size_t k = 0; k < direction.size(); k++) expected += (direction[k] /= scale) * gradient[k];
      EXPECT_NEAR(slope(m, trainer, loss, p, direction, i ? h : h / 2), expected, (i ? 1e-4 : 5e-3) * norm)
          << p.spec.name << " " << i;
    }
  }
}

}  // namespace training
