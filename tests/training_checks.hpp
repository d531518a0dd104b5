// training_checks.hpp: what the tests of all models that can be trained share: gradients against differences of the
// loss.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "../models/optimizer.hpp"
#include "../models/training_text.hpp"
#include "tiny_model.hpp"

namespace checks {

using namespace pocket;

inline std::vector<const TrainKernels*> kernel_sets() {
  std::vector<const TrainKernels*> all;
  for (const TrainKernels& k : kTrainKernels)
    if (k.supported()) all.push_back(&k);
  return all;
}

inline const TrainKernels& best() { return *find_train_kernels(nullptr); }

// The slope of the mean loss along a direction, from four values of it: the error is of the fourth order in h.
inline double slope(LearnedWeights& m, Trainer& trainer, const std::vector<Window>& batch, const Parameter& p,
                    const std::vector<double>& direction, double h) {
  const std::vector<float> before(m.values.data() + p.offset, m.values.data() + p.offset + p.size());
  const auto loss = [&](double by) {
    for (size_t i = 0; i < p.size(); i++) m.values[p.offset + i] = float(double(before[i]) + by * direction[i]);
    trainer.repack();
    return trainer.evaluate(batch) / double(count_targets(batch));
  };
  const double result = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h);
  loss(0);
  return result;
}

inline double length(const std::vector<double>& v) {
  double sum = 0;
  for (double x : v) sum += x * x;
  return std::sqrt(sum);
}

// The gradient of every tensor: along itself within 5e-3 of its length, in steps so small that it hardly bends; along
// random directions, where the loss changes less and its rounding shows more, within 1e-4.
inline void check_gradients(LearnedWeights& m, const std::vector<Window>& batch, int tokens) {
  Trainer trainer(m, 2, tokens, best());
  trainer.learn(batch);
  for (const Parameter& p : m.parameters) {
    std::vector<double> gradient(trainer.gradient() + p.offset, trainer.gradient() + p.offset + p.size());
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
      EXPECT_NEAR(slope(m, trainer, batch, p, direction, i ? 0.04 : 0.02), expected, (i ? 1e-4 : 5e-3) * norm)
          << p.spec.name << " " << i;
    }
  }
}

}  // namespace checks
