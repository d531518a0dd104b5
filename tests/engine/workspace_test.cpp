// workspace_test.cpp: several sessions in one pass. Each gets the bits that it gets alone, whatever runs beside it, and
// fails alone.
#include "../../export/engine.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <random>
#include <thread>

#include "../support/tiny_model.hpp"

namespace workspace_test {

using namespace pocket;
using tiny::MemoryModel;
using tiny::random_ids;
using tiny::same_bits;
using tiny::small_config;

using Ids = std::vector<int>;
using Random = std::mt19937;

int below(Random& random, int n) { return int(random() % unsigned(n)); }

SessionOptions options_of(int threads, int context, const char* kernel = nullptr, KvType kv = KvType::automatic) {
  return {context, threads, kv, kernel};
}

/// A text, and the hash of the logits of each of its tokens when its session runs alone.
struct Text {
  Ids ids;
  std::vector<uint64_t> hashes;

  Text(const Model& model, Ids text, KvType kv) : ids(std::move(text)) {
    Session session(model, options_of(1, 0, "scalar", kv));
    const int n = session.vocab_size();
    EXPECT_TRUE(session.forward(ids.data(), ids.size(), [&](size_t, const float* logits) {
      hashes.push_back(hash_logits(logits, n));
      return true;
    })) << session.error;
  }
};

/// Runs all texts in passes of a random mix of prompts and single tokens, and compares all logits. Now and then a
/// session is rewound, forked or reset.
void run_schedule(const Model& model, const std::vector<Text>& texts, const SessionOptions& options, unsigned seed) {
  Random random(seed);
  Workspace workspace(model, options);
  ASSERT_EQ(workspace.error, "");
  std::vector<std::unique_ptr<Session>> sessions;
  const int count = 1 + below(random, int(texts.size()));
  for (int i = 0; i < count; i++) sessions.push_back(std::make_unique<Session>(workspace, options));
  size_t left = 0;
  for (int i = 0; i < count; i++) left += texts[size_t(i)].ids.size();
  for (int pass = 0; left > 0; pass++) {
    ASSERT_LT(pass, 5000);
    std::vector<Step> steps;
    std::vector<size_t> text_of;
    for (size_t i = 0; i < size_t(count); i++) {
      Session& s = *sessions[i];
      const size_t room = texts[i].ids.size() - size_t(s.position());
      if (room == 0 || below(random, 4) == 0) continue;
      const int kind = below(random, 20);
      const size_t n = std::min(room, size_t(kind == 0  ? 1 + below(random, 300)
                                             : kind < 4 ? 1 + below(random, 20)
                                                        : 1));
      steps.push_back({&s, &texts[i].ids[size_t(s.position())], n});
      text_of.push_back(i);
    }
    ASSERT_TRUE(workspace.forward(steps.data(), steps.size()));
    for (size_t k = 0; k < steps.size(); k++) {
      const Session& s = *steps[k].session;
      ASSERT_NE(steps[k].logits, nullptr);
      ASSERT_EQ(hash_logits(steps[k].logits, s.vocab_size()), texts[text_of[k]].hashes[size_t(s.position()) - 1])
          << "seed " << seed << ", pass " << pass << ", session " << text_of[k] << ", position " << s.position();
      left -= steps[k].n;
    }
    if (below(random, 30) == 0) {
      const size_t i = size_t(below(random, count));
      const int before = sessions[i]->position(), to = below(random, before + 1);
      if (to % 3 == 0) {
        sessions[i]->reset();
      } else if (to % 3 == 1) {
        sessions[i]->rewind(to);
      } else {
        Session copy(workspace, options);
        ASSERT_TRUE(copy.fork(*sessions[i], to)) << copy.error;
        sessions[i]->reset();
        ASSERT_TRUE(sessions[i]->fork(copy, to)) << sessions[i]->error;
      }
      left += size_t(before - sessions[i]->position());
    }
  }
}

std::vector<Text> texts_for(const Model& model, int count, KvType kv) {
  std::vector<Text> texts;
  for (int i = 0; i < count; i++) {
    const int length = i % 5 == 0 ? 300 - i : 1 + 37 * i % 90;
    Ids ids = random_ids(size_t(length), model.vocab_size());
    for (int& id : ids) id = (id + 31 * i) % model.vocab_size();
    texts.emplace_back(model, ids, kv);
  }
  return texts;
}

TEST(SameBits, ForAnyMixOfSessions) {
  for (const Type type : {Type::q4, Type::q8, Type::f32})
    for (const KvType kv : {KvType::q8, KvType::f32}) {
      const MemoryModel m(small_config(), type);
      const std::vector<Text> texts = texts_for(m.model, 12, kv);
      for (const std::string& kernel : kernel_names())
        for (const int threads : {1, 3})
          run_schedule(m.model, texts, options_of(threads, 512, kernel.c_str(), kv),
                       unsigned(threads) * 7919 + unsigned(type));
    }
}

#if defined(POCKET_SANITIZED)
constexpr unsigned kSchedules = 40;
#else
constexpr unsigned kSchedules = 300;
#endif
TEST(SameBits, ForHundredsOfSchedules) {
  const MemoryModel m(small_config(), Type::q4);
  const std::vector<Text> texts = texts_for(m.model, 32, KvType::q8);
  for (unsigned seed = 0; seed < kSchedules; seed++)
    run_schedule(m.model, texts, options_of(1 + int(seed % 4), seed % 3 ? 512 : 300), seed);
}

TEST(Workspace, AStepFailsAlone) {
  const MemoryModel m(small_config(), Type::q4);
  Workspace workspace(m.model, options_of(2, 64));
  Session good(workspace, options_of(0, 64)), full(workspace, options_of(0, 4)), wrong(workspace, options_of(0, 64)),
      cancelled(workspace, options_of(0, 64)), none(workspace, options_of(0, 64)), alone(m.model, options_of(1, 64));
  const Ids ids = random_ids(20, 100);
  const int outside[] = {1, 2, 100};
  cancelled.cancel();
  Step steps[] = {{&full, ids.data(), 5},
                  {&good, ids.data(), 20},
                  {&wrong, outside, 3},
                  {&cancelled, ids.data(), 20},
                  {&none, ids.data(), 0}};
  EXPECT_FALSE(workspace.forward(steps, 5));
  EXPECT_EQ(full.error, "context: room for 4 more tokens, not for 5");
  EXPECT_EQ(wrong.error, "token 2: expected an id below 100, found 100");
  EXPECT_EQ(cancelled.error, "cancelled");
  EXPECT_EQ(none.error, "forward: no tokens");
  for (const Step& step : steps) {
    EXPECT_EQ(step.logits != nullptr, step.session == &good);
    EXPECT_EQ(step.session->position(), step.session == &good ? 20 : 0);
  }
  ASSERT_NE(steps[1].logits, nullptr) << good.error;
  EXPECT_EQ(good.error, "");
  EXPECT_TRUE(same_bits(steps[1].logits, alone.forward(ids.data(), 20), 100));
  // All of them work in the next pass.
  for (Step& step : steps) step = {step.session, ids.data(), 1};
  EXPECT_TRUE(workspace.forward(steps, 5));
}

TEST(Workspace, CancelDuringAPassStopsOneSession) {
  const MemoryModel m(small_config(), Type::q4);
  Workspace workspace(m.model, options_of(2, 512));
  Session first(workspace, options_of(0, 512)), second(workspace, options_of(0, 512)),
      alone(m.model, options_of(1, 512));
  const Ids ids = random_ids(200, 100);
  first.observe([&](const Observation& o) {
    if (o.position == 150) first.cancel();
  });
  Step steps[] = {{&first, ids.data(), 200}, {&second, ids.data(), 200}};
  EXPECT_FALSE(workspace.forward(steps, 2));
  EXPECT_EQ(first.error, "cancelled");
  EXPECT_EQ(first.position(), 0);
  ASSERT_NE(steps[1].logits, nullptr) << second.error;
  EXPECT_TRUE(same_bits(steps[1].logits, alone.forward(ids.data(), 200), 100));
}

TEST(Workspace, RejectsMisuse) {
  const MemoryModel m(small_config(), Type::q4), other(small_config(), Type::q8);
  Workspace workspace(m.model, options_of(1, 64)), elsewhere(m.model, options_of(1, 64));
  Session a(workspace, options_of(0, 64)), b(workspace, options_of(0, 64)), stranger(elsewhere, options_of(0, 64));
  const Ids ids = random_ids(20, 100);
  Step twice[] = {{&a, ids.data(), 1}, {&b, ids.data(), 1}, {&a, ids.data(), 1}};
  EXPECT_FALSE(workspace.forward(twice, 3));
  EXPECT_EQ(a.error, "step: expected one of this session in a pass, found another");
  EXPECT_EQ(a.position(), 0);
  EXPECT_EQ(b.position(), 1);
  for (Session* session : {static_cast<Session*>(nullptr), &stranger}) {
    Step steps[] = {{&a, ids.data(), 1}, {session, ids.data(), 1}};
    EXPECT_FALSE(workspace.forward(steps, 2));
    EXPECT_EQ(workspace.error, "step 1: expected one of at most 128 sessions of this workspace");
    EXPECT_EQ(a.position(), 0);
  }
  std::vector<Step> many(129, Step{&a, ids.data(), 1});
  EXPECT_FALSE(workspace.forward(many.data(), many.size()));
  EXPECT_EQ(workspace.error, "step 128: expected one of at most 128 sessions of this workspace");
  EXPECT_TRUE(Session(workspace, options_of(0, 64)).error.empty()) << "a rejected pass is no failed workspace";
  EXPECT_TRUE(workspace.forward(nullptr, 0));

  Session q8(other.model, options_of(1, 64)), floats(workspace, options_of(0, 64, nullptr, KvType::f32));
  EXPECT_FALSE(a.fork(q8, 0));
  EXPECT_FALSE(a.fork(floats, 0));
  EXPECT_EQ(a.error, "fork: expected the same model, adapter and KvType");
  for (const int n : {-1, 2}) EXPECT_FALSE(a.fork(b, n));
  EXPECT_EQ(a.error, "fork: expected 0 to 1 positions, found 2");
  EXPECT_TRUE(a.fork(b, 1));
  EXPECT_TRUE(a.fork(a, 1));
  EXPECT_EQ(a.position(), 1);
}

TEST(Workspace, ReportsAFailedConstruction) {
  const MemoryModel m(small_config(), Type::q4);
  const Model closed;
  Workspace no_model(closed), no_kernel(m.model, options_of(1, 64, "none"));
  EXPECT_EQ(no_model.error, "session: the model is not open");
  EXPECT_EQ(no_kernel.error.find("kernel 'none' is not supported"), 0u);
  for (Workspace* workspace : {&no_model, &no_kernel}) {
    Session session(*workspace);
    EXPECT_EQ(session.error, workspace->error);
    const int id = 1;
    const float before = 0;
    Step step = {&session, &id, 1, &before};
    EXPECT_FALSE(workspace->forward(&step, 1));
    EXPECT_EQ(step.logits, nullptr);
    EXPECT_EQ(session.forward(&id, 1), nullptr);
    EXPECT_EQ(session.context(), 0);
    session.reset();
    EXPECT_FALSE(session.fork(session, 0));
  }
  Workspace workspace(m.model, options_of(1, 64));
  Session broken(workspace, options_of(0, -1)), good(workspace, options_of(0, 64));
  EXPECT_EQ(broken.error, "session: context: expected 0 to 4194304, found -1");
  const int id = 1;
  Step steps[] = {{&broken, &id, 1}, {&good, &id, 1}};
  EXPECT_FALSE(workspace.forward(steps, 2));
  EXPECT_NE(steps[1].logits, nullptr);
  EXPECT_EQ(broken.error, "session: context: expected 0 to 4194304, found -1");
}

size_t resident() {
  long pages = 0;
  std::ifstream("/proc/self/statm") >> pages >> pages;
  return size_t(pages) * size_t(sysconf(_SC_PAGESIZE));
}

TEST(Workspace, ResetReturnsTheMemoryOfKeysAndValues) {
  const MemoryModel m(small_config(), Type::q4);
  if (resident() == 0) GTEST_SKIP() << "/proc/self/statm is not available";
  Session session(m.model, options_of(1, 1 << 13, nullptr, KvType::f32));
  const Ids ids = random_ids(6144, 100);
  ASSERT_NE(session.forward(ids.data(), 1), nullptr);
  const size_t before = resident();
  ASSERT_NE(session.forward(ids.data(), 6143), nullptr);
  EXPECT_GT(resident(), before + (2u << 20));
  session.reset();
  EXPECT_LT(resident(), before + (1u << 20));
  EXPECT_EQ(session.position(), 0);
  EXPECT_NE(session.forward(ids.data(), 10), nullptr);
}

TEST(Workspace, TwoInTwoThreadsShareAModel) {
  const MemoryModel m(small_config(), Type::q4);
  const std::vector<Text> texts = texts_for(m.model, 6, KvType::q8);
  std::thread other([&] { run_schedule(m.model, texts, options_of(2, 512), 1); });
  run_schedule(m.model, texts, options_of(2, 512), 2);
  other.join();
}

}  // namespace workspace_test
