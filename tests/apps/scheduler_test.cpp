// scheduler_test.cpp: texts that are generated together are the texts that each of them is alone.
#include "../../apps/openai/scheduler.hpp"

#include <gtest/gtest.h>

#include "../support/tiny_model.hpp"

namespace scheduler_test {

using namespace pocket;
using openai::End;
using openai::Generation;
using openai::Scheduler;

constexpr int kContext = 300;

SessionOptions options() {
  SessionOptions o;
  o.context = kContext;
  o.threads = 2;
  return o;
}

// A text as it ended.
struct Result {
  std::vector<int> ids;
  std::vector<float> logits;  // of the last token
  End end = End::failed;
  std::string error;
  int ends = 0;  // calls of on_end

  Generation generation(std::vector<int> prompt, int max_tokens, uint64_t seed) {
    Generation g;
    g.prompt = std::move(prompt);
    g.max_tokens = max_tokens;
    g.sampling = {1, 1, seed};
    g.stop_ids = {7};
    g.on_token = [this](int id, const float* values) {
      ids.push_back(id);
      logits.assign(values, values + tiny::small_config().vocab_size);
      return true;
    };
    g.on_end = [this](End how, const std::string& why) {
      end = how;
      error = why;
      ends++;
    };
    return g;
  }
};

class OpenAiScheduler : public testing::Test {
 protected:
  std::vector<int> prompt(int n, uint64_t seed = 1) { return tiny::random_ids(n, 100, seed); }
  Scheduler scheduler(int parallel, size_t kv_bytes = SIZE_MAX) {
    return Scheduler(workspace, options(), {parallel, kv_bytes});
  }

  tiny::MemoryModel model{tiny::small_config(), Type::q8};
  Workspace workspace{model.model, options()};
};

TEST_F(OpenAiScheduler, TextsAreThoseOfASessionOfTheirOwn) {
  struct Case {
    std::vector<int> prompt;
    int max_tokens;
    std::vector<int> alone;
    Result together;
  };
  std::vector<Case> cases(40);
  tiny::Random random(3);
  for (size_t i = 0; i < cases.size(); i++) {
    Case& c = cases[i];
    c.prompt = prompt(i % 8 == 0 ? kContext - random.below(3) : 1 + random.below(i % 4 == 0 ? 200 : 20), i + 1);
    c.max_tokens = 1 + random.below(30);
    Session session(model.model, options());
    Sampler sampler({1, 1, i});
    ASSERT_TRUE(generate(session, sampler, c.prompt, c.max_tokens, {7}, [&](int id) {
      c.alone.push_back(id);
      return true;
    }));
  }
  for (const int parallel : {1, 2, 3, 16, 32, 128}) {
    Scheduler s = scheduler(parallel);
    for (size_t i = 0; i < cases.size(); i++) {
      cases[i].together = {};
      s.submit(cases[i].together.generation(cases[i].prompt, cases[i].max_tokens, i));
      for (int steps = random.below(3); steps > 0; steps--) s.step();  // some are submitted while others run
      EXPECT_LE(s.running(), size_t(parallel));
    }
    while (s.step()) {
    }
    for (size_t i = 0; i < cases.size(); i++) {
      EXPECT_EQ(cases[i].together.ids, cases[i].alone) << parallel << ", " << i;
      EXPECT_EQ(cases[i].together.ends, 1);
      const bool limit = int(cases[i].alone.size()) == cases[i].max_tokens ||
                         cases[i].prompt.size() + cases[i].alone.size() == kContext + 1;
      EXPECT_EQ(cases[i].together.end, limit ? End::limit : End::stop_token) << i;
    }
  }
}

TEST_F(OpenAiScheduler, AFailureEndsOneTextOnly) {
  Scheduler s = scheduler(4);
  Result good, empty, long_one, wrong_id;
  s.submit(empty.generation({}, 5, 1));
  s.submit(long_one.generation(prompt(kContext + 1), 5, 1));
  s.submit(wrong_id.generation({1, 100}, 5, 1));
  s.submit(good.generation({1, 2}, 5, 1));
  while (s.step()) {
  }
  EXPECT_EQ(good.end, End::limit);
  EXPECT_EQ(good.ids.size(), 5u);
  for (const Result* r : {&empty, &long_one, &wrong_id}) {
    EXPECT_EQ(r->end, End::failed);
    EXPECT_EQ(r->ends, 1);
    EXPECT_NE(r->error, "");
  }
  Result later[2];  // in the sessions of `good` and `wrong_id`
  for (Result& r : later) s.submit(r.generation({1, 2}, 5, 1));
  while (s.step()) {
  }
  for (const Result& r : later) {
    EXPECT_EQ(r.end, End::limit) << r.error;
    EXPECT_EQ(r.ids, good.ids);
  }
}

TEST_F(OpenAiScheduler, MemoryLimitsTheTextsThatRunAtOnce) {
  Scheduler s = scheduler(8, 2 * scheduler(1).kv_bytes(kContext));
  std::vector<Result> results(6);
  for (Result& r : results) s.submit(r.generation(prompt(10), kContext, 1));
  EXPECT_TRUE(s.step());
  EXPECT_EQ(s.running(), 2u) << "two texts of the whole context";
  while (s.step()) EXPECT_LE(s.running(), 2u);
  for (const Result& r : results) EXPECT_EQ(r.ends, 1);

  std::vector<Result> short_ones(6);
  for (Result& r : short_ones) s.submit(r.generation(prompt(10), 5, 1));
  s.step();
  EXPECT_EQ(s.running(), 6u) << "short texts need less";

  Scheduler tight = scheduler(8, 0);
  Result alone;
  tight.submit(alone.generation(prompt(10), 5, 1));
  while (tight.step()) {
  }
  EXPECT_EQ(alone.end, End::limit) << "one text always runs";
}

TEST_F(OpenAiScheduler, CancelsWaitingAndRunningTexts) {
  Scheduler s = scheduler(1);
  Result first, second, third;
  const auto a = s.submit(first.generation(prompt(3), 200, 1));
  const auto b = s.submit(second.generation(prompt(3), 200, 1));
  s.submit(third.generation(prompt(3), 4, 1));
  s.step();
  s.step();
  s.cancel(a);
  s.cancel(b);
  s.cancel(b);
  s.cancel(12345);
  s.step();
  EXPECT_EQ(first.end, End::cancelled);
  EXPECT_EQ(first.ids.size(), 2u);
  EXPECT_EQ(second.end, End::cancelled);
  EXPECT_EQ(second.ends, 1);
  EXPECT_EQ(third.ids.size(), 1u) << "its place goes to the next text at once";
  while (s.step()) {
  }
  EXPECT_EQ(third.end, End::limit);
  s.cancel(a);
  EXPECT_FALSE(s.step());
  EXPECT_EQ(first.ends, 1);
}

TEST_F(OpenAiScheduler, CallbacksMaySubmitAndCancel) {
  Scheduler s = scheduler(2);
  Result next, other;
  Result first;
  Generation g = first.generation(prompt(3), 5, 1);
  const auto ticket = s.submit(other.generation(prompt(3), 200, 2));
  g.on_token = [&](int, const float*) { return false; };
  g.on_end = [&](End end, const std::string&) {
    EXPECT_EQ(end, End::stopped);
    s.cancel(ticket);
    s.submit(next.generation(prompt(4), 3, 3));
  };
  s.submit(std::move(g));
  while (s.step()) {
  }
  EXPECT_EQ(other.end, End::cancelled);
  EXPECT_EQ(next.end, End::limit);
}

TEST_F(OpenAiScheduler, PenaltiesAndBiasesChangeTheChoiceButNotTheLogits) {
  const auto run = [&](float frequency, float presence, std::vector<std::pair<int, float>> bias) {
    Scheduler s = scheduler(1);
    Result r;
    Generation g = r.generation(prompt(5), 40, 1);
    g.sampling.temperature = 0;
    g.stop_ids = {};
    g.frequency_penalty = frequency;
    g.presence_penalty = presence;
    g.logit_bias = std::move(bias);
    s.submit(std::move(g));
    while (s.step()) {
    }
    return r;
  };
  const Result plain = run(0, 0, {}), forced = run(0, 0, {{42, 100}});
  EXPECT_EQ(forced.ids, std::vector<int>(40, 42));
  EXPECT_LT(forced.logits[42], 50) << "the model's own";
  EXPECT_EQ(run(0, 0, {{plain.ids[0], -100}}).ids[0] == plain.ids[0], false);
  const auto repetitions = [](const std::vector<int>& ids) {
    int most = 0;
    for (const int id : ids) most = std::max(most, int(std::count(ids.begin(), ids.end(), id)));
    return most;
  };
  EXPECT_LT(repetitions(run(2, 2, {}).ids), repetitions(run(-2, 0, {}).ids));
  // Exactly: a forced token with frequency penalty 2 loses its lead of b over the others after b / 2 occurrences.
  const Result limited = run(2, 0, {{42, 20}});
  const auto count = std::count(limited.ids.begin(), limited.ids.end(), 42);
  EXPECT_GT(count, 3);
  EXPECT_LT(count, 20);
}

TEST_F(OpenAiScheduler, AShortPromptDoesNotWaitForLongOnes) {
  Scheduler s = scheduler(16);
  std::vector<Result> results(16);
  for (size_t i = 0; i < 15; i++) s.submit(results[i].generation(prompt(280, i + 1), 10, i));
  s.step();
  s.submit(results[15].generation(prompt(20, 99), 5, 99));
  int passes = 0;
  for (; results[15].ids.empty() && passes < 100; passes++) s.step();
  EXPECT_LE(passes, 4) << "until its first token";
  while (s.step()) {
  }
  for (const Result& r : results) EXPECT_EQ(r.ends, 1);
}

TEST_F(OpenAiScheduler, TheOldestPromptAdvancesBesideShortOnes) {
  Scheduler s = scheduler(4);
  Result old;
  s.submit(old.generation(prompt(280), 2, 1));
  std::vector<Result> others(400);
  size_t next = 0;
  int passes = 0;
  for (; old.ids.empty() && passes < 100; passes++) {
    while (s.running() + s.waiting() < 8 && next < others.size()) {
      Result& r = others[next++];
      s.submit(r.generation(prompt(60, next), 1, next));
    }
    s.step();
  }
  EXPECT_LE(passes, 6) << "280 tokens, half a pass each at least";
}

TEST_F(OpenAiScheduler, KnownBeginningsAreContinuedWithTheSameBits) {
  struct Case {
    std::vector<int> prompt;
    Result alone, together;
  };
  // Conversations that grow, branch off, and start in common.
  std::vector<Case> cases(60);
  tiny::Random random(5);
  for (size_t i = 0; i < cases.size(); i++) {
    std::vector<int>& p = cases[i].prompt;
    if (i % 3 > 0) {
      p = cases[size_t(random.below(int(i)))].prompt;
      p.resize(size_t(1 + random.below(int(p.size()))));
    }
    const std::vector<int> more = prompt(1 + random.below(60), i + 1);
    p.insert(p.end(), more.begin(), more.end());
    if (p.size() > kContext) p.resize(kContext);
    Scheduler s = scheduler(1);
    s.submit(cases[i].alone.generation(p, 8, i));
    while (s.step()) {
    }
  }
  for (const int parallel : {1, 5}) {
    Scheduler s(workspace, options(), {parallel, SIZE_MAX, 6});
    for (size_t i = 0; i < cases.size(); i++) {
      cases[i].together = {};
      s.submit(cases[i].together.generation(cases[i].prompt, 8, i));
      for (int steps = random.below(4); steps > 0; steps--) s.step();
    }
    while (s.step()) {
    }
    EXPECT_GT(s.reused(), 100u);
    EXPECT_LE(s.kept(), 6u);
    for (size_t i = 0; i < cases.size(); i++) {
      EXPECT_EQ(cases[i].together.ids, cases[i].alone.ids) << parallel << ", " << i;
      EXPECT_EQ(cases[i].together.logits, cases[i].alone.logits) << parallel << ", " << i;
      EXPECT_EQ(cases[i].together.end, cases[i].alone.end);
    }
  }
}

TEST_F(OpenAiScheduler, TheSamePromptIsProcessedOnce) {
  Scheduler s(workspace, options(), {8, SIZE_MAX, 4});
  std::vector<Result> results(8);
  for (size_t i = 0; i < results.size(); i++) s.submit(results[i].generation(prompt(200), 3, i));
  while (s.step()) {
  }
  EXPECT_EQ(s.reused(), 7u * 199);
  EXPECT_LT(s.processed(), 250u);
  for (size_t i = 0; i < results.size(); i++) {
    Result alone;
    Scheduler one = scheduler(1);
    one.submit(alone.generation(prompt(200), 3, i));
    while (one.step()) {
    }
    EXPECT_EQ(results[i].ids, alone.ids);
  }
}

TEST_F(OpenAiScheduler, KeptSessionsGiveWayToRunningTexts) {
  const size_t one = scheduler(1).kv_bytes(kContext);
  Scheduler s(workspace, options(), {2, 2 * one, 10});
  std::vector<Result> results(6);
  for (size_t i = 0; i < results.size(); i++) {
    s.submit(results[i].generation(prompt(250, i + 1), 10, i));
    EXPECT_LE(s.reserved_bytes() + s.kept_bytes(), 2 * one);
    while (s.step()) EXPECT_LE(s.reserved_bytes() + s.kept_bytes(), 2 * one);
    EXPECT_GT(s.kept(), 0u);
  }
  Result two[2];
  for (Result& r : two) s.submit(r.generation(prompt(9), kContext, 1));
  s.step();
  EXPECT_EQ(s.running(), 2u);
  EXPECT_EQ(s.kept(), 0u);
}

TEST_F(OpenAiScheduler, HandsOutTheLogitsOfThePrompt) {
  const std::vector<int> ids = prompt(150);
  std::vector<float> expected;
  Session session(model.model, options());
  ASSERT_TRUE(session.forward(ids.data(), ids.size(), [&](size_t, const float* logits) {
    expected.insert(expected.end(), logits, logits + tiny::small_config().vocab_size);
    return true;
  }));
  for (const int max_tokens : {0, 4}) {
    Scheduler s(workspace, options(), {4, SIZE_MAX, 4});
    Result other, plain, result;
    std::vector<float> found;
    s.submit(plain.generation(ids, 4, 1));
    while (s.step()) {
    }
    s.submit(other.generation(prompt(40, 2), 20, 2));
    Generation g = result.generation(ids, max_tokens, 1);
    g.on_prompt = [&](size_t i, const float* logits) {
      EXPECT_EQ(i * size_t(tiny::small_config().vocab_size), found.size());
      found.insert(found.end(), logits, logits + tiny::small_config().vocab_size);
    };
    s.submit(std::move(g));
    while (s.step()) {
    }
    EXPECT_EQ(found, expected);
    EXPECT_EQ(result.end, max_tokens ? plain.end : End::limit);
    EXPECT_EQ(result.ids, max_tokens ? plain.ids : std::vector<int>());
    EXPECT_EQ(other.ends, 1);
  }
}

TEST_F(OpenAiScheduler, ObservesAllTokensOfAPromptThatIsKnown) {
  Scheduler s(workspace, options(), {4, SIZE_MAX, 4});
  Result plain, observed;
  s.submit(plain.generation(prompt(100), 1, 1));
  while (s.step()) {
  }
  size_t seen = 0;
  Generation g = observed.generation(prompt(100), 0, 1);
  g.observe = [&](const Observation& o) { seen += o.kind == Observation::layer_output && o.layer == 1; };
  s.submit(std::move(g));
  while (s.step()) {
  }
  EXPECT_EQ(seen, 100u);
  EXPECT_EQ(observed.end, End::limit);
  Result again;
  s.submit(again.generation(prompt(100), 1, 1));
  while (s.step()) {
  }
  EXPECT_EQ(seen, 100u) << "only that text";
}

TEST_F(OpenAiScheduler, CancelsTextsThatHaveNotStarted) {
  Scheduler s = scheduler(1);
  Result first, second;
  s.submit(first.generation(prompt(3), 5, 1));
  s.step();
  s.submit(second.generation(prompt(3), 5, 1));
  s.cancel_waiting();
  while (s.step()) {
  }
  EXPECT_EQ(first.end, End::limit);
  EXPECT_EQ(second.end, End::cancelled);
}

}  // namespace scheduler_test
