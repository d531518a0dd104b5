// draft_test.cpp: the guesses of a draft model: how many, and that they never change a text.
#include "../../apps/cli/draft.hpp"

#include <gtest/gtest.h>

#include <optional>

#include "../support/tiny_model.hpp"

namespace draft_test {

using namespace pocket;
using tiny::MemoryModel;
using tiny::random_ids;
using tiny::small_config;
using Ids = std::vector<int>;

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
  Ids prompt;
  SamplerOptions options;
  int tokens = 40, context = 0;
};

Task task_of(int i, float temperature) {
  return {random_ids(4 + i % 9, 100, uint64_t(i)),
          {temperature, i % 2 ? 0.9f : 1.f, uint64_t(i), 0, 0, i % 3 ? 1.f : 1.1f}};
}

// A machine where a pass takes 1 s, and 0.1 s more for each guess; a guess takes 0.05 s.
struct Machine {
  double time = 1, pass = 1, check = 0.1, guess = 0.05;
  size_t passes = 0, proposed = 0, accepted = 0;
};

// small: the draft model; null: no guesses.
Written write(const Model& model, const Task& task, const Model* small, Machine& machine, int small_context = 0) {
  Session session(model, {task.context, 1});
  Sampler pick(task.options);
  Ids text = task.prompt;
  const auto on_token = [&](int id) {
    text.push_back(id);
    return true;
  };
  // A pass reads the clock before and after each guess and at its end, and all but the first one at their start.
  int reads = 0;
  std::optional<Draft> draft;
  if (small)
    draft.emplace(*small, SessionOptions{small_context, 1}, text,
                  [&] { return machine.time += reads++ % 2 == 1 ? machine.guess : 0; });
  const auto propose = [&] {
    Ids guesses = draft->propose(pick);
    reads = 3;
    machine.passes++;
    machine.time += machine.pass + machine.check * double(guesses.size()) - machine.guess;  // the read that comes next
    return guesses;
  };
  EXPECT_TRUE(generate(session, pick, task.prompt, task.tokens, {}, on_token, small ? Propose(propose) : Propose()))
      << session.error;
  if (draft) {
    draft->settle();
    machine.proposed += draft->proposed;
    machine.accepted += draft->accepted;
  }
  return {Ids(text.begin() + long(task.prompt.size()), text.end()), session.position(), pick.random_state()};
}

// The same weights in another type make similar guesses, other weights make bad ones.
TEST(Draft, DoesNotChangeTheTextsOf200Prompts) {
  const MemoryModel large(small_config(), Type::q8), similar(small_config(), Type::q4);
  for (const float temperature : {0.f, 0.8f}) {
    Machine machine;
    for (int i = 0; i < 200; i++) {
      const Task task = task_of(i, temperature);
      Machine none;
      EXPECT_TRUE(write(large.model, task, &similar.model, machine) == write(large.model, task, nullptr, none))
          << "prompt " << i << ", temperature " << temperature;
    }
    EXPECT_GT(machine.accepted, 1000u);
    EXPECT_GT(machine.proposed - machine.accepted, 100u) << "the test needs wrong guesses";
    EXPECT_LT(machine.passes, 200u * 35) << "for 200 times 40 tokens";
  }
}

// The same model agrees with itself at every temperature, since both use the same random numbers.
TEST(Draft, OfTheSameModelIsAlwaysRight) {
  const MemoryModel m(small_config(), Type::q8);
  for (const float temperature : {0.f, 0.8f, 1.5f}) {
    Machine machine;
    Task task = task_of(1, temperature);
    task.tokens = 300;
    write(m.model, task, &m.model, machine);
    EXPECT_GE(machine.accepted * 100, machine.proposed * 95) << "but for those after the last token";
    EXPECT_LT(machine.passes, 60u) << "temperature " << temperature;
  }
}

TEST(Draft, FallsBackToNoGuessesWhereTheyDoNotPay) {
  Config other = small_config();
  other.rope_theta = 3;
  other.norm_eps = 1;
  const MemoryModel m(small_config(), Type::q8), wrong(other, Type::q8);
  Task task = task_of(3, 1.5f);
  task.tokens = 480;
  Machine unlike;
  write(m.model, task, &wrong.model, unlike);
  EXPECT_LT(unlike.time / 480, 1.15) << unlike.accepted << " of " << unlike.proposed << " guesses right";
  Machine slow;  // as slow as the large model
  slow.guess = 1;
  write(m.model, task, &m.model, slow);
  EXPECT_LT(slow.time / 480, 1.1);
}

TEST(Draft, EndsQuietlyAtTheEndOfItsContext) {
  const MemoryModel m(small_config(), Type::q8);
  Task task = task_of(5, 0.8f);
  task.tokens = 120;
  Machine machine, none;
  EXPECT_TRUE(write(m.model, task, &m.model, machine, 50) == write(m.model, task, nullptr, none));
  EXPECT_GT(machine.accepted, 20u);
  EXPECT_LT(machine.accepted, 50u);
}

TEST(Draft, FollowsATextThatIsReplaced) {
  const MemoryModel m(small_config(), Type::q8);
  Ids text = random_ids(20, 100);
  double time = 1;
  Draft draft(m.model, {0, 1}, text, [&] { return time += 0.01; });
  const Sampler pick({0});
  const auto expected = [&] {  // the first guess of a new object
    Ids copy = text;
    double now = 1;
    Draft fresh(m.model, {0, 1}, copy, [&] { return now += 0.01; });
    fresh.propose(pick);
    now += 1;
    copy.push_back(7);
    return fresh.propose(pick);
  };
  draft.propose(pick);
  time += 1;
  for (const Ids& next : {random_ids(20, 100), random_ids(9, 100, 2), random_ids(30, 100, 2), random_ids(20, 100)}) {
    text = next;
    draft.restart();
    draft.propose(pick);
    text = next;
    const Ids first = expected();
    text.push_back(7);
    time += 1;
    const Ids found = draft.propose(pick);
    ASSERT_FALSE(found.empty());
    ASSERT_FALSE(first.empty());
    EXPECT_EQ(found[0], first[0]);
  }
}

TEST(Draft, ReportsASessionThatCannotBeMade) {
  const MemoryModel m(small_config(), Type::q8);
  const Ids text;
  EXPECT_EQ(Draft(m.model, {0, 1}, text, [] { return 0.0; }).error(), "");
  EXPECT_NE(Draft(m.model, {-1, 1}, text, [] { return 0.0; }).error(), "");
}

}  // namespace draft_test
