// lookup_test.cpp: the guesses of prompt lookup: which tokens, how many, and that they never change a text.
#include "../../apps/cli/lookup.hpp"

#include <gtest/gtest.h>

#include "../support/tiny_model.hpp"

namespace lookup_test {

using namespace pocket;
using tiny::MemoryModel;
using tiny::Random;
using tiny::random_ids;
using tiny::small_config;
using Ids = std::vector<int>;

// A growing text on a machine where a forward pass takes 1 s and each guess adds `cost` s.
struct Machine {
  Ids text;
  double cost = 0.1, time = 1;
  size_t passes = 0;
  Lookup lookup{text, [this] { return time; }};

  explicit Machine(double cost_of_guess = 0.1) : cost(cost_of_guess) {}

  // A forward pass: appends the right guesses and one more token, where next(text) is the right token. Returns the
  // guesses.
  template <class Next> Ids pass(const Next& next) {
    const Ids guesses = lookup.propose();
    time += 1 + cost * double(guesses.size());
    passes++;
    for (size_t i = 0;; i++) {
      text.push_back(next(text));
      if (i == guesses.size() || guesses[i] != text.back()) return guesses;
    }
  }
};

// The guesses after a text.
Ids guesses_after(const Ids& text) {
  Machine m;
  m.text.assign(text.begin(), text.end() - 1);
  EXPECT_EQ(m.pass([&](const Ids&) { return text.back(); }), Ids()) << "the first pass is timed without guesses";
  return m.lookup.propose();
}

bool begins_with(const Ids& ids, const Ids& with) {
  return ids.size() >= with.size() && std::equal(with.begin(), with.end(), ids.begin());
}

int counter(const Ids& text) { return 1000 + int(text.size()); }  // a new token each time

TEST(Lookup, GuessesTheTokensAfterTheLongestLatestMatch) {
  EXPECT_TRUE(begins_with(guesses_after({1, 2, 3, 4, 5, 6, 1, 2}), {3}));
  EXPECT_TRUE(begins_with(guesses_after({1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5}), {6, 7}));
  EXPECT_TRUE(begins_with(guesses_after({1, 2, 3, 8, 1, 2, 4, 9, 1, 2}), {4})) << "the latest of equally long matches";
  EXPECT_TRUE(begins_with(guesses_after({7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2}), {3})) << "the longest match";
  EXPECT_EQ(guesses_after({1, 2, 3, 4, 5, 6, 7, 2}), Ids()) << "a match of one token is too short";
  EXPECT_EQ(guesses_after({1, 2, 3, 4, 5}), Ids());
  EXPECT_EQ(guesses_after({1, 2}), Ids());
}

TEST(Lookup, ContinuesALoopPastTheEndOfTheText) {
  const Ids found = guesses_after({9, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3});
  ASSERT_GT(found.size(), 3u);
  for (size_t i = 0; i < found.size(); i++) EXPECT_EQ(found[i], 1 + int(i % 3)) << i;
}

TEST(Lookup, GuessesMoreWhereGuessesAreRight) {
  Machine m;
  size_t most = 0;
  const auto loop = [](const Ids& text) { return int(text.size() % 20); };
  while (m.text.size() < 2000) most = std::max(most, m.pass(loop).size());
  EXPECT_EQ(most, Lookup::kMaxGuesses);
  EXPECT_LT(m.passes, 200u) << "for 2000 tokens";
  m.lookup.settle();
  EXPECT_GE(m.lookup.accepted, m.text.size() - m.passes);
  EXPECT_LE(m.lookup.accepted, m.lookup.proposed);
}

// Every match is followed by a new token.
int mislead(const Ids& text) { return text.size() % 3 < 2 ? int(text.size() % 3) : counter(text); }

TEST(Lookup, RarelyGuessesWhereGuessesAreWrong) {
  Machine m;
  while (m.text.size() < 3000) m.pass(mislead);
  EXPECT_EQ(m.lookup.accepted, 0u);
  EXPECT_GT(m.lookup.proposed, 1u);
  EXPECT_LT(m.lookup.proposed, 150u) << "guessing is tried again from time to time";
  EXPECT_LT(m.time / double(m.text.size()), 1.02);
}

TEST(Lookup, DoesNotGuessWhereGuessesCostAsMuchAsTheySave) {
  Machine m(1);
  while (m.text.size() < 3000) m.pass([](const Ids& text) { return int(text.size() % 20); });
  EXPECT_LT(m.time / double(m.text.size()), 1.02);
}

TEST(Lookup, DoesNotGuessWithoutRepetition) {
  Machine m;
  while (m.text.size() < 100) EXPECT_EQ(m.pass(counter), Ids());
}

// ---- Equal texts with and without guesses ----

// A generated text, and the state of the session and the sampler after it.
struct Written {
  Ids ids;
  int position;
  uint64_t random_state;
  bool operator==(const Written& o) const {
    return ids == o.ids && position == o.position && random_state == o.random_state;
  }
};

struct Task {
  Ids prompt, stops;
  SamplerOptions options;
  int tokens = 40, context = 0;
  size_t max_new = 1000;  // tokens after which on_token returns false
};

// guess: makes guesses from the text so far; null: no guesses.
Written write(const Model& model, const Task& task, const std::function<Ids(const Ids&)>& guess) {
  Session session(model, {task.context, 1});
  Sampler pick(task.options);
  Ids text = task.prompt;
  const auto on_token = [&](int id) {
    text.push_back(id);
    return text.size() < task.prompt.size() + task.max_new;
  };
  EXPECT_TRUE(generate(session, pick, task.prompt, task.tokens, task.stops, on_token,
                       guess ? Propose([&] { return guess(text); }) : Propose()))
      << session.error;
  return {Ids(text.begin() + long(task.prompt.size()), text.end()), session.position(), pick.random_state()};
}

Task task_of(int i, float temperature) {
  Task task;
  task.prompt = random_ids(4 + i % 9, 100, uint64_t(i));
  for (int k = 0; k < i % 12; k++) task.prompt.push_back(task.prompt[size_t(k)]);  // repetitions
  task.options = {temperature, i % 2 ? 0.9f : 0.1f, uint64_t(i), 0, 0, i % 3 == 1 ? 1.1f : 1.f};
  return task;
}

TEST(Lookup, DoesNotChangeTheTextsOf200Prompts) {
  const MemoryModel m(small_config(), Type::q4);
  for (const float temperature : {0.f, 0.8f}) {
    size_t proposed = 0, accepted = 0;
    for (int i = 0; i < 200; i++) {
      const Task task = task_of(i, temperature);
      const Written expected = write(m.model, task, nullptr);
      Ids text;
      double time = 1;
      Lookup lookup(text, [&] { return time += 1; });
      const Written found = write(m.model, task, [&](const Ids& all) {
        text = all;
        return lookup.propose();
      });
      EXPECT_TRUE(found == expected) << "prompt " << i << ", temperature " << temperature;
      lookup.settle();
      proposed += lookup.proposed;
      accepted += lookup.accepted;
    }
    EXPECT_GT(accepted, temperature == 0 ? 1000u : 100u) << "the test needs right guesses";
    EXPECT_GT(proposed - accepted, 100u);
  }
}

// Guesses that Lookup would not make: all right, right up to some token, wrong, too many.
TEST(Lookup, NoGuessesChangeATextOrItsEnd) {
  const MemoryModel m(small_config(), Type::q8);
  Random random(5);
  for (int i = 0; i < 60; i++) {
    Task task = task_of(i, i % 4 ? 1.f : 0.f);
    const int length = int(task.prompt.size());
    task.tokens = 1 + random.below(100);
    if (i % 3 == 0) task.context = length + random.below(70);
    if (i % 5 == 0) task.max_new = size_t(1 + random.below(30));
    const Ids whole = write(m.model, task, nullptr).ids;
    if (i % 2) task.stops = {whole[whole.size() / 2]};
    const Written expected = write(m.model, task, nullptr);
    for (const int wrong_after : {0, 1, 5, 1000})
      for (const size_t count : {1u, 7u, 63u, 64u, 200u}) {
        const auto guess = [&](const Ids& text) {
          Ids ids;
          for (size_t k = 0; k < count; k++) {
            const size_t at = text.size() - task.prompt.size() + k;
            ids.push_back(at < whole.size() && int(k) < wrong_after ? whole[at] : random.below(100));
          }
          return ids;
        };
        EXPECT_TRUE(write(m.model, task, guess) == expected) << i << ": " << count << ", wrong after " << wrong_after;
      }
  }
}

}  // namespace lookup_test
