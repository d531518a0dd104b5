// sampler_test.cpp: greedy and random choice of the next token: frequencies under temperature, top-k, top-p and min-p
// against a naive definition, the same choices for a seed on every machine, and the repetition penalty.
#include "../../export/engine.hpp"

#include <gtest/gtest.h>

#include <climits>
#include <cmath>
#include <map>
#include <set>

#include "../support/tiny_model.hpp"

namespace sampler_test {

using namespace pocket;
using tiny::Random;

const float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();

SamplerOptions options(float temperature, float top_p = 1, int top_k = 0, float min_p = 0, uint64_t seed = 1) {
  SamplerOptions o;
  o.temperature = temperature;
  o.top_p = top_p;
  o.top_k = top_k;
  o.min_p = min_p;
  o.seed = seed;
  return o;
}

std::vector<float> random_logits(int n, uint64_t seed) {
  Random random(seed);
  std::vector<float> logits;
  for (int i = 0; i < n; i++) logits.push_back(2 * random.normal());
  return logits;
}

int pick_one(const SamplerOptions& o, const std::vector<float>& logits) {
  Sampler pick(o);
  return pick(logits.data(), int(logits.size()));
}

// The definition in double: softmax, then min-p, top-k and top-p, then normalized to a sum of 1.
std::map<int, double> probabilities(const SamplerOptions& o, const std::vector<float>& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  std::vector<std::pair<double, int>> all;
  for (size_t i = 0; i < logits.size(); i++) {
    const double p = std::exp((logits[i] - top) / o.temperature);
    if (p >= o.min_p) all.push_back({-p, int(i)});
  }
  std::sort(all.begin(), all.end());
  if (o.top_k > 0 && all.size() > size_t(o.top_k)) all.resize(size_t(o.top_k));
  double total = 0, sum = 0, kept = 0;
  for (const auto& c : all) total -= c.first;
  std::map<int, double> result;
  for (const auto& [p, id] : all) {
    if (o.top_p < 1 && sum > o.top_p * total) break;
    sum -= p;
    result[id] = -p;
  }
  for (const auto& [id, p] : result) kept += p;
  for (auto& [id, p] : result) p /= kept;
  return result;
}

// The frequency of every token must be within five standard deviations of its expectation.
void expect_frequencies(const SamplerOptions& o, const std::vector<float>& logits) {
  constexpr int kDraws = 40000;
  const std::map<int, double> expected = probabilities(o, logits);
  std::map<int, int> found;
  Sampler pick(o);
  for (int i = 0; i < kDraws; i++) found[pick(logits.data(), int(logits.size()))]++;
  for (const auto& [id, count] : found) EXPECT_TRUE(expected.count(id)) << "token " << id << " has probability 0";
  for (const auto& [id, p] : expected)
    EXPECT_NEAR(found[id], p * kDraws, 5 * std::sqrt(kDraws * p * (1 - p)) + 1) << "token " << id;
}

// ---- Greedy ----

TEST(Sampler, TemperatureZeroTakesTheFirstLargestLogit) {
  EXPECT_EQ(pick_one(options(0), {1, 3, 2}), 1);
  EXPECT_EQ(pick_one(options(0), {1, 3, 3}), 1);
  EXPECT_EQ(pick_one(options(0), {7}), 0);
  EXPECT_EQ(pick_one(options(0), {-5, -3, -4}), 1);
  EXPECT_EQ(pick_one(options(0, 0.1f, 1, 0.9f), {0, 0, 9}), 2);
  EXPECT_EQ(pick_one(options(-1), {0, 4, 1}), 1);  // negative means 0
}

TEST(Sampler, IgnoresNanAndReturnsAValidId) {
  EXPECT_EQ(pick_one(options(0), {kNan, 1, 2}), 2);
  EXPECT_EQ(pick_one(options(0), {1, kNan, 0}), 0);
  EXPECT_EQ(pick_one(options(0), {-kInf, -kInf, -9}), 2);
  for (const float temperature : {0.f, 0.5f, 1.f})
    for (const std::vector<float>& odd : std::vector<std::vector<float>>{
             {kNan, kNan}, {-kInf, -kInf}, {kInf, kInf}, {kNan, kInf}, {kInf, 0}, {kNan, 0, -kInf}})
      for (uint64_t seed = 0; seed < 20; seed++) {
        const int id = pick_one(options(temperature, 0.9f, 0, 0, seed), odd);
        EXPECT_TRUE(id >= 0 && id < int(odd.size())) << id;
      }
}

// ---- Random ----

TEST(Sampler, NeverChoosesMinusInfinity) {
  EXPECT_NE(pick_one(options(1, 1, 0, 0, 5618432), {-kInf, 5, 6}), 0) << "its random number is 0";
  for (const float top_p : {1.f, 0.9f})
    for (uint64_t seed = 0; seed < 2000; seed++)
      EXPECT_EQ(pick_one(options(100, top_p, 0, 0, seed), {-kInf, -kInf, 3, -kInf, kNan}), 2);
  EXPECT_EQ(pick_one(options(1), {-kInf, -kInf}), 0) << "nothing else is left";
}

TEST(Sampler, AlwaysChoosesPlusInfinity) {
  std::set<int> chosen;
  for (uint64_t seed = 0; seed < 200; seed++) {
    EXPECT_EQ(pick_one(options(1, 0.9f, 0, 0, seed), {3, kInf, 1e30f, -kInf, kNan}), 1);
    chosen.insert(pick_one(options(1, 1, 0, 0, seed), {kInf, 3, kInf}));
  }
  EXPECT_EQ(chosen, (std::set<int>{0, 2})) << "several have the same probability";
  EXPECT_EQ(pick_one(options(0), {3, kInf}), 1);
}

TEST(Sampler, WithoutLogitsReturnsMinusOne) {
  Sampler pick(options(1));
  const float logit = 1;
  for (const int n : {0, -1, INT_MIN}) EXPECT_EQ(pick(&logit, n), -1);
}

TEST(Sampler, FrequenciesMatchTheSoftmax) {
  const std::vector<float> logits = random_logits(20, 1);
  for (const float temperature : {0.3f, 1.f, 3.f}) expect_frequencies(options(temperature), logits);
}

TEST(Sampler, TopKMatchesItsDefinition) {
  const std::vector<float> logits = random_logits(50, 2);
  for (const int k : {1, 2, 5, 49, 50, 51, 1000}) expect_frequencies(options(1, 1, k), logits);
}

TEST(Sampler, TopPMatchesItsDefinition) {
  const std::vector<float> logits = random_logits(50, 3);
  for (const float p : {0.f, 0.1f, 0.5f, 0.9f, 0.99f}) expect_frequencies(options(1, p), logits);
  EXPECT_EQ(probabilities(options(1, 0), logits).size(), 1u);
}

TEST(Sampler, MinPMatchesItsDefinition) {
  const std::vector<float> logits = random_logits(50, 4);
  for (const float p : {0.01f, 0.1f, 0.5f, 1.f}) expect_frequencies(options(1, 1, 0, p), logits);
}

TEST(Sampler, CombinedFiltersMatchTheirDefinition) {
  const std::vector<float> logits = random_logits(80, 5);
  expect_frequencies(options(1.5f, 0.8f, 30, 0.02f), logits);
  expect_frequencies(options(0.7f, 0.95f, 3, 0.f), logits);
}

TEST(Sampler, TopPCutsALargeVocabulary) {
  const std::vector<float> logits = random_logits(50000, 6);
  for (const float p : {0.3f, 0.9f}) {
    const SamplerOptions o = options(0.6f, p);
    const std::map<int, double> expected = probabilities(o, logits);
    Sampler pick(o);
    for (int i = 0; i < 300; i++) {
      const int id = pick(logits.data(), 50000);
      EXPECT_TRUE(expected.count(id)) << id;
    }
  }
}

TEST(Sampler, AcceptsExtremeTemperatures) {
  const std::vector<float> logits = {1, 1.001f, 0.5f, -2};
  for (uint64_t seed = 0; seed < 50; seed++) EXPECT_EQ(pick_one(options(1e-6f, 1, 0, 0, seed), logits), 1);
  EXPECT_EQ(pick_one(options(1e-40f), logits), 1);
  expect_frequencies(options(1e6f), logits);
}

// ---- Seeds ----

TEST(Sampler, ASeedGivesTheSameChoicesOnEveryMachine) {
  const std::vector<float> logits = random_logits(1000, 7);
  const auto choices = [&](uint64_t seed) {
    Sampler pick(options(1, 0.95f, 0, 0, seed));
    std::vector<int> ids;
    for (int i = 0; i < 8; i++) ids.push_back(pick(logits.data(), 1000));
    return ids;
  };
  EXPECT_EQ(choices(42), (std::vector<int>{8, 233, 815, 953, 265, 757, 398, 156}));
  EXPECT_EQ(choices(42), choices(42));
  EXPECT_NE(choices(42), choices(43));
  EXPECT_NE(choices(0), choices(1));
}

// ---- The repetition penalty ----

TEST(Penalty, DividesPositiveAndMultipliesNegativeLogitsOnce) {
  SamplerOptions o = options(0);
  o.repeat_penalty = 2;
  Sampler pick(o);
  const std::vector<float> logits = {4, 3, -1, -1.5f, 0};
  EXPECT_EQ(pick(logits.data(), 5), 0);  // 4, then 2
  EXPECT_EQ(pick(logits.data(), 5), 1);  // 3, then 1.5
  EXPECT_EQ(pick(logits.data(), 5), 0);  // 2 against 1.5: applied once, not once per occurrence
  EXPECT_EQ(pick(logits.data(), 5), 0);
  const std::vector<float> negative = {-9, -9, -1, -1.5f, -9};
  EXPECT_EQ(pick(negative.data(), 5), 2);  // -1, then -2
  EXPECT_EQ(pick(negative.data(), 5), 3);
}

TEST(Penalty, CoversTheLast64TokensIncludingThePrompt) {
  SamplerOptions o = options(0);
  o.repeat_penalty = 1.5f;
  const std::vector<float> logits = {3, 2.5f, 0};
  for (const int others : {0, 62, 63, 64, 100}) {
    Sampler pick(o);
    pick.remember(0);
    for (int i = 0; i < others; i++) pick.remember(2);
    EXPECT_EQ(pick(logits.data(), 3), others < 64 ? 1 : 0) << others;
  }
}

TEST(Penalty, IgnoresInvalidIds) {
  SamplerOptions o = options(0);
  o.repeat_penalty = 1.5f;
  Sampler pick(o);
  for (const int id : {-1, -100, 3, 1 << 30}) pick.remember(id);
  const std::vector<float> logits = {3, 2.5f, 0};
  EXPECT_EQ(pick(logits.data(), 3), 0);
}

}  // namespace sampler_test
