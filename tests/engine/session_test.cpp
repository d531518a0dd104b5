// session_test.cpp: forward() computes a Llama, compared with the reference in tiny_model.hpp; returns the same bits
// for every kernel set, thread count and batch; and positions, errors, cancelling, observing and memory.
#include "../../export/memory.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <climits>
#include <thread>

#include "../support/tiny_model.hpp"

namespace session_test {

using namespace pocket;
using tiny::Floats;
using tiny::MemoryModel;
using tiny::random_ids;
using tiny::Reference;
using tiny::reference_for;
using tiny::same_bits;
using tiny::shape;
using tiny::small_config;

SessionOptions options_of(int threads, KvType kv = KvType::automatic, const char* kernel = nullptr, int context = 0) {
  return {context, threads, kv, kernel};
}

/// The logits of every token, (tokens, vocab_size), processed `batch` at a time.
Floats all_logits(Session& session, const std::vector<int>& ids, size_t batch) {
  Floats all;
  const auto keep = [&](size_t, const float* logits) {
    all.insert(all.end(), logits, logits + session.vocab_size());
    return true;
  };
  for (size_t i = 0; i < ids.size(); i += batch)
    EXPECT_TRUE(session.forward(&ids[i], std::min(batch, ids.size() - i), keep)) << session.error;
  return all;
}

Floats all_logits(const Model& model, const SessionOptions& options, const std::vector<int>& ids, size_t batch) {
  Session session(model, options);
  EXPECT_EQ(session.error, "");
  return all_logits(session, ids, batch);
}

/// The largest |found - expected| / (1 + |expected|).
double largest_error(const Floats& found, const std::vector<Reference::Vector>& expected) {
  double worst = found.size() == expected.size() * expected[0].size() ? 0 : 1e30;
  for (size_t t = 0; t < expected.size() && worst < 1e30; t++)
    for (size_t i = 0; i < expected[t].size(); i++) {
      const double e = expected[t][i], d = std::fabs(found[t * expected[t].size() + i] - e) / (1 + std::fabs(e));
      if (std::isnan(d)) return d;
      worst = std::max(worst, d);
    }
  return worst;
}

/// All that a layer may have besides a Llama's parts, and layers without rope.
Config with_all_additions() {
  Config c = shape(24, 20, 4, 6, 2, 20, 33);
  c.qkv_bias = c.o_bias = c.mlp_bias = c.qk_norm = true;
  c.no_rope[0] = c.no_rope[3] = true;
  return c;
}

/// Usual and odd shapes that a model file may have.
std::vector<std::pair<std::string, Config>> shapes() {
  std::vector<std::pair<std::string, Config>> all = {
      {"grouped heads", small_config()},
      {"as many KV heads as heads", shape(64, 96, 2, 4, 4, 16, 100)},
      {"one KV head", shape(64, 96, 2, 5, 1, 8, 100)},
      {"sizes without common divisors", shape(50, 70, 3, 3, 3, 10, 37)},
      {"heads of 2", shape(33, 31, 1, 2, 1, 2, 17)},
      {"heads wider than dim", shape(24, 20, 2, 2, 1, 80, 33)},
      {"seven queries a KV head", shape(40, 65, 1, 14, 2, 6, 50)},
      {"one of everything", shape(1, 1, 1, 1, 1, 2, 1)},
      {"wider than a block of columns", shape(520, 1030, 1, 4, 2, 130, 65)},
  };
  Config linear = small_config(), llama3 = small_config();
  linear.rope_scaling = RopeScaling::linear;
  linear.rope_factor = 4;
  llama3.rope_scaling = RopeScaling::llama3;
  llama3.rope_factor = 8;
  llama3.rope_original_len = 64;
  llama3.rope_low_freq = 1;
  llama3.rope_high_freq = 4;
  llama3.rope_theta = 500000;
  llama3.norm_eps = 1e-3f;
  all.push_back({"linear rope", linear});
  all.push_back({"llama3 rope", llama3});
  Config biases = small_config(), norms = shape(50, 70, 3, 3, 3, 10, 37);
  biases.qkv_bias = true;  // Qwen2
  norms.qk_norm = true;    // Qwen3
  all.push_back({"biases of q, k and v", biases});
  all.push_back({"norms of q and k", norms});
  all.push_back({"all additions", with_all_additions()});
  return all;
}

// ---- Against the reference ----

TEST(Forward, F32ModelsMatchTheReference) {
  for (const auto& [name, config] : shapes()) {
    const MemoryModel m(config, Type::f32);
    const std::vector<int> ids = random_ids(24, config.vocab_size);
    const Reference expected = reference_for(m.model, ids);
    for (const size_t batch : {size_t(1), ids.size()})
      EXPECT_LT(largest_error(all_logits(m.model, options_of(2), ids, batch), expected.logits), 1e-4)
          << name << ", batch " << batch;
  }
}

TEST(Forward, LongContextsMatchTheReference) {
  const Config config = shape(32, 40, 2, 4, 2, 8, 60);
  const MemoryModel m(config, Type::f32);
  const std::vector<int> ids = random_ids(270, config.vocab_size);
  const Reference expected = reference_for(m.model, ids);
  for (const size_t batch : {size_t(1), size_t(100), ids.size()})
    EXPECT_LT(largest_error(all_logits(m.model, options_of(2), ids, batch), expected.logits), 1e-4) << batch;
}

/// |found - expected| / |expected| over all logits.
double relative_error(const Floats& found, const std::vector<Reference::Vector>& expected) {
  double error = found.size() == expected.size() * expected[0].size() ? 0 : 1e30, squares = 0;
  for (size_t i = 0; i < found.size() && error < 1e30; i++) {
    const double e = expected[i / expected[0].size()][i % expected[0].size()];
    error += (found[i] - e) * (found[i] - e);
    squares += e * e;
  }
  return std::sqrt(error / squares);
}

// The error is 1e-7, unless an activation is so near the middle between two int8 steps that the two sums round it
// differently: then it is 0.002 to 0.01, almost as large as without rounding (0.012). One of a few prompts must be free
// of that; an engine that computed something else would be wrong for all of them.
TEST(Forward, QuantizedModelsMatchTheReferenceOfTheirDequantizedWeights) {
  for (const auto& [name, config] : shapes())
    for (const Type type : {Type::q8, Type::q4}) {
      const MemoryModel m(config, type);
      for (const KvType kv : {KvType::q8, KvType::f32}) {
        double least = 1;
        for (int seed = 1; seed <= 12 && least >= 0.001; seed++) {
          const std::vector<int> ids = random_ids(24, config.vocab_size, uint64_t(seed));
          const Reference expected = reference_for(m.model, ids, kv, tiny::MatmulInputs::int8);
          const double error = relative_error(all_logits(m.model, options_of(2, kv), ids, 10), expected.logits);
          least = std::min(least, error);
        }
        EXPECT_LT(least, 0.001) << name << ", " << type_name(type);
      }
    }
}

TEST(Forward, TiedModelMatchesTheUntiedOneWithTheSameMatrix) {
  const ReadRows rows = [](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& error) {
    TensorSpec source = spec;
    if (spec.name == "output") {
      source.name = "token_embedding";
      source.layout = Layout::rows;
    }
    return tiny::random_rows(source, first, count, out, error);
  };
  Config untied = small_config(), tied = untied;
  tied.tied = true;
  const MemoryModel a(tiny::model_bytes(tiny::parts_of(untied, Type::f32), rows));
  const MemoryModel b(tiny::model_bytes(tiny::parts_of(tied, Type::f32), rows));
  EXPECT_FALSE(a.model.config.tied);
  EXPECT_TRUE(b.model.config.tied);
  const std::vector<int> ids = random_ids(20, untied.vocab_size);
  const Floats found = all_logits(b.model, options_of(1), ids, 20), other = all_logits(a.model, options_of(1), ids, 20);
  EXPECT_TRUE(same_bits(found.data(), other.data(), found.size()));
  EXPECT_LT(largest_error(found, reference_for(b.model, ids).logits), 1e-4);
  // The output matrix is the embedding table.
  for (int row : {0, 7, 99})
    EXPECT_EQ(tiny::panel_weight(b.model.output, row, 5), tiny::embedding_weight(b.model.token_embedding, row, 5));
}

TEST(Forward, ReturnsTheLogitsOfTheLastToken) {
  const MemoryModel m(small_config(), Type::q4);
  const std::vector<int> ids = random_ids(130, 100);
  const Floats all = all_logits(m.model, options_of(2), ids, 130);
  for (const size_t n : {1u, 2u, 63u, 64u, 65u, 128u, 129u, 130u}) {
    Session session(m.model, options_of(2));
    const float* last = session.forward(ids.data(), n);
    ASSERT_NE(last, nullptr) << session.error;
    EXPECT_TRUE(same_bits(last, &all[(n - 1) * 100], 100)) << n << " tokens";
    EXPECT_EQ(session.position(), int(n));
  }
}

TEST(Forward, CallsBackOncePerTokenInOrder) {
  const MemoryModel m(small_config(), Type::q8);
  const std::vector<int> ids = random_ids(150, 100);
  Session session(m.model, options_of(1));
  std::vector<size_t> seen;
  ASSERT_TRUE(session.forward(ids.data(), ids.size(), [&](size_t i, const float*) {
    seen.push_back(i);
    return true;
  }));
  std::vector<size_t> expected(150);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(seen, expected);
}

TEST(Forward, CallbackMayStopAtAToken) {
  const MemoryModel m(small_config(), Type::q8);
  const std::vector<int> ids = random_ids(150, 100), tail = {5, 6, 7};
  for (const size_t stop : {0u, 1u, 7u, 8u, 62u, 63u, 64u, 100u, 149u}) {
    Session session(m.model, options_of(1)), straight(m.model, options_of(1));
    size_t calls = 0;
    EXPECT_TRUE(session.forward(ids.data(), ids.size(), [&](size_t i, const float*) {
      calls++;
      return i < stop;
    }));
    EXPECT_EQ(calls, stop + 1);
    ASSERT_EQ(session.position(), int(stop) + 1);
    ASSERT_TRUE(straight.forward(ids.data(), stop + 1));
    const float *found = session.forward(tail.data(), 3), *expected = straight.forward(tail.data(), 3);
    ASSERT_TRUE(found && expected);
    EXPECT_TRUE(same_bits(found, expected, 100)) << "stopped at " << stop;
  }
}

// ---- The same bits ----

/// How to process a prompt.
struct Way {
  const char* kernel;
  int threads;
  size_t batch;
};

std::vector<Way> ways(size_t tokens) {
  std::vector<Way> all;
  for (const Kernels* k : tiny::kernel_sets())
    for (const int threads : {1, 2, 3, 5})
      for (const size_t batch : {size_t(1), size_t(7), tokens})
        if (std::strcmp(k->name, "scalar") != 0 || threads == 1 + int(batch % 3))
          all.push_back({k->name, threads, batch});
  return all;
}

// 140 tokens: more than a chunk and more than a block of keys.
TEST(SameBits, ForEveryKernelSetThreadCountAndBatch) {
  const std::vector<int> ids = random_ids(140, 70);
  for (const Type type : {Type::f32, Type::q8, Type::q4}) {
    const MemoryModel m(shape(96, 130, 2, 4, 2, 12, 70), type);
    for (const KvType kv : {KvType::q8, KvType::f32}) {
      const Floats expected = all_logits(m.model, options_of(1, kv, "scalar"), ids, 1);
      for (const Way& way : ways(ids.size())) {
        const Floats found = all_logits(m.model, options_of(way.threads, kv, way.kernel), ids, way.batch);
        ASSERT_EQ(found.size(), expected.size());
        EXPECT_TRUE(same_bits(found.data(), expected.data(), found.size()))
            << type_name(type) << ", " << way.kernel << ", " << way.threads << " threads, batch " << way.batch;
      }
    }
  }
}

TEST(SameBits, ForOddShapes) {
  for (const auto& [name, config] : shapes())
    for (const Type type : {Type::f32, Type::q4}) {
      const MemoryModel m(config, type);
      const std::vector<int> ids = random_ids(19, config.vocab_size, 3);
      const Floats expected = all_logits(m.model, options_of(1, KvType::automatic, "scalar"), ids, 1);
      for (const Kernels* k : tiny::kernel_sets())
        for (const size_t batch : {1u, 4u, 19u}) {
          const Floats found = all_logits(m.model, options_of(2, KvType::automatic, k->name), ids, batch);
          EXPECT_TRUE(same_bits(found.data(), expected.data(), expected.size()))
              << name << ", " << type_name(type) << ", " << k->name << ", batch " << batch;
        }
    }
}

// Known hashes. If they change, the self-test of every published model file fails.
TEST(SameBits, LogitsMatchKnownHashes) {
  const std::vector<int> ids = random_ids(140, 100);
  const std::pair<Type, uint64_t> expected[] = {
      {Type::f32, 0xb6082c06d87c4de8}, {Type::q8, 0x7e45de1dda17e9cf}, {Type::q4, 0x732f13eb64806e92}};
  for (const auto& [type, hash] : expected) {
    const MemoryModel m(small_config(), type);
    Session session(m.model, options_of(2));
    const float* logits = session.forward(ids.data(), ids.size());
    ASSERT_NE(logits, nullptr);
    EXPECT_EQ(hash_logits(logits, 100), hash) << type_name(type) << std::hex << " 0x" << hash_logits(logits, 100);
  }
}

TEST(SameBits, AdditionsToALayerMatchKnownHashes) {
  const std::vector<int> ids = random_ids(20, 33);
  const std::pair<Type, uint64_t> expected[] = {
      {Type::f32, 0x8689ad65fde0fc8c}, {Type::q8, 0x63cd459fcdba613e}, {Type::q4, 0x62d48b062cbc2955}};
  for (const auto& [type, hash] : expected) {
    const MemoryModel m(with_all_additions(), type);
    for (const Kernels* k : tiny::kernel_sets()) {
      const Floats found = all_logits(m.model, options_of(2, KvType::automatic, k->name), ids, 7);
      EXPECT_EQ(hash_logits(found.data(), int(found.size())), hash)
          << type_name(type) << ", " << k->name << std::hex << " 0x" << hash_logits(found.data(), int(found.size()));
    }
  }
}

TEST(SameBits, FromFileAndFromMemory) {
  for (const Type type : {Type::f32, Type::q4}) {
    const MemoryModel m(small_config(), type);
    const TemporaryFolder folder;
    folder.write("model.bin", tiny::text_of(m.bytes));
    Model file;
    ASSERT_TRUE(file.open(folder.file("model.bin").c_str())) << file.error;
    const std::vector<int> ids = random_ids(30, 100);
    const Floats a = all_logits(m.model, options_of(1), ids, 30), b = all_logits(file, options_of(1), ids, 30);
    EXPECT_TRUE(same_bits(a.data(), b.data(), a.size()));
  }
}

TEST(SameBits, ForTwoSessionsOnTwoThreads) {
  const MemoryModel m(small_config(), Type::q4);
  const std::vector<int> ids[] = {random_ids(100, 100, 1), random_ids(90, 100, 2)};
  Floats alone[2], together[2];
  for (int i = 0; i < 2; i++) alone[i] = all_logits(m.model, options_of(1), ids[i], 9);
  std::thread threads[2];
  for (int i = 0; i < 2; i++)
    threads[i] = std::thread([&, i] { together[i] = all_logits(m.model, options_of(2), ids[i], 9); });
  for (std::thread& t : threads) t.join();
  for (int i = 0; i < 2; i++) EXPECT_TRUE(same_bits(alone[i].data(), together[i].data(), alone[i].size()));
}

// ---- Positions ----

TEST(Position, RewindDiscardsLaterTokens) {
  const std::vector<int> ids = random_ids(200, 100), other = random_ids(60, 100, 9);
  for (const KvType kv : {KvType::q8, KvType::f32}) {
    const MemoryModel m(small_config(), Type::q4);
    for (const int keep : {0, 1, 15, 16, 127, 128, 129, 199, 200}) {
      Session session(m.model, options_of(2, kv)), fresh(m.model, options_of(2, kv));
      ASSERT_TRUE(session.forward(ids.data(), ids.size()));
      session.rewind(keep);
      ASSERT_EQ(session.position(), keep);
      ASSERT_TRUE(keep == 0 || fresh.forward(ids.data(), size_t(keep)));
      const Floats found = all_logits(session, other, 13), expected = all_logits(fresh, other, 60);
      EXPECT_TRUE(same_bits(found.data(), expected.data(), found.size())) << "rewound to " << keep;
    }
  }
}

TEST(Position, RewindClampsThePosition) {
  const MemoryModel m(small_config(), Type::q8);
  Session session(m.model, options_of(1));
  const std::vector<int> ids = random_ids(10, 100);
  ASSERT_TRUE(session.forward(ids.data(), 10));
  session.rewind(11);
  EXPECT_EQ(session.position(), 10);
  session.rewind(INT_MAX);
  EXPECT_EQ(session.position(), 10);
  session.rewind(-3);
  EXPECT_EQ(session.position(), 0);
}

TEST(Position, AFullContextIsAnErrorThatKeepsTheState) {
  const MemoryModel m(small_config(), Type::q8);
  const std::vector<int> ids = random_ids(21, 100);
  Session session(m.model, options_of(1, KvType::automatic, nullptr, 20)), larger(m.model, options_of(1));
  EXPECT_EQ(session.context(), 20);
  EXPECT_EQ(larger.context(), 512);
  EXPECT_EQ(session.forward(ids.data(), 21), nullptr);
  EXPECT_EQ(session.error, "context: room for 20 more tokens, not for 21");
  EXPECT_EQ(session.position(), 0);
  ASSERT_TRUE(session.forward(ids.data(), 15)) << session.error;
  EXPECT_EQ(session.error, "");
  EXPECT_EQ(session.forward(ids.data() + 15, 6), nullptr);
  EXPECT_EQ(session.error, "context: room for 5 more tokens, not for 6");
  EXPECT_EQ(session.position(), 15);
  const float *found = session.forward(ids.data() + 15, 5), *expected = larger.forward(ids.data(), 20);
  ASSERT_TRUE(found && expected) << session.error;
  EXPECT_TRUE(same_bits(found, expected, 100));
  EXPECT_EQ(session.forward(ids.data(), 1), nullptr);
  EXPECT_EQ(session.error, "context: room for 0 more tokens, not for 1");
  EXPECT_EQ(session.forward(ids.data(), SIZE_MAX), nullptr);
  EXPECT_EQ(session.position(), 20);
  session.rewind(19);
  EXPECT_NE(session.forward(ids.data() + 19, 1), nullptr);
}

TEST(Position, EveryContextLengthCanBeFilled) {
  const MemoryModel m(shape(16, 16, 1, 2, 1, 4, 20), Type::q8);
  const std::vector<int> ids = random_ids(300, 20);
  const Floats expected = all_logits(m.model, options_of(1), ids, 300);
  for (const int context : {1, 2, 15, 16, 17, 64, 127, 128, 129, 255, 256, 257}) {
    Session session(m.model, options_of(1, KvType::automatic, nullptr, context));
    ASSERT_EQ(session.error, "");
    const float* logits = session.forward(ids.data(), size_t(context));
    ASSERT_NE(logits, nullptr) << session.error;
    EXPECT_TRUE(same_bits(logits, &expected[size_t(context - 1) * 20], 20)) << context;
  }
}

// ---- Errors ----

TEST(Errors, RejectsIdsOutsideTheVocabulary) {
  const MemoryModel m(small_config(), Type::q8);
  Session session(m.model, options_of(1));
  const std::pair<int, const char*> bad[] = {
      {-1, "-1"}, {100, "100"}, {INT_MAX, "2147483647"}, {INT_MIN, "-2147483648"}};
  for (const auto& [id, text] : bad)
    for (const size_t at : {0u, 1u, 69u}) {
      std::vector<int> ids = random_ids(70, 100);
      ids[at] = id;
      EXPECT_EQ(session.forward(ids.data(), ids.size()), nullptr);
      EXPECT_EQ(session.error, "token " + std::to_string(at) + ": expected an id below 100, found " + text);
      EXPECT_FALSE(session.forward(ids.data(), ids.size(), [](size_t, const float*) {
        ADD_FAILURE();
        return true;
      }));
      EXPECT_EQ(session.position(), 0);
    }
  const int last = 99;
  EXPECT_NE(session.forward(&last, 1), nullptr);
  EXPECT_EQ(session.error, "");
}

TEST(Errors, RejectsNoTokens) {
  const MemoryModel m(small_config(), Type::q8);
  Session session(m.model, options_of(1));
  const int id = 1;
  EXPECT_EQ(session.forward(&id, 0), nullptr);
  EXPECT_EQ(session.error, "forward: no tokens");
  EXPECT_EQ(session.forward(nullptr, 0), nullptr);
  EXPECT_EQ(session.forward(nullptr, 3), nullptr);
  EXPECT_EQ(session.error, "forward: no tokens");
  EXPECT_NE(session.forward(&id, 1), nullptr);
}

TEST(Errors, RejectsAClosedModel) {
  const Model closed;
  Session session(closed);
  EXPECT_EQ(session.error, "session: the model is not open");
  const int id = 0;
  EXPECT_EQ(session.forward(&id, 1), nullptr);
  EXPECT_EQ(session.error, "session: the model is not open");
  EXPECT_EQ(session.context(), 0);
  EXPECT_EQ(session.threads(), 0);
  session.cancel();
  session.rewind(5);
  EXPECT_EQ(session.position(), 0);
}

TEST(Errors, RejectsInvalidOptions) {
  const MemoryModel m(small_config(), Type::q8);
  Session context(m.model, options_of(1, KvType::automatic, nullptr, -1));
  EXPECT_EQ(context.error, "session: context: expected 0 to 4194304, found -1");
  for (const int too_large : {kMaxContext + 1, INT_MAX}) {
    const Session session(m.model, options_of(1, KvType::automatic, nullptr, too_large));
    EXPECT_EQ(session.error, "session: context: expected 0 to 4194304, found " + std::to_string(too_large));
  }
  Session kernel(m.model, options_of(1, KvType::automatic, "abacus"));
  EXPECT_EQ(kernel.error.find("kernel 'abacus' is not supported by this CPU; available: "), 0u) << kernel.error;
  EXPECT_NE(kernel.error.find("scalar"), std::string::npos) << kernel.error;
  const int id = 0;
  EXPECT_EQ(kernel.forward(&id, 1), nullptr);
}

// 262 kB a position times 2^22 positions.
TEST(Errors, ReportsAContextTooLargeForMemory) {
  Config config = shape(8, 8, 4, 8, 8, 1024, 10);
  const MemoryModel m(config, Type::q4);
  rlimit before, limited;
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
  limited = before;
  limited.rlim_cur = rlim_t(1) << 38;
  ASSERT_EQ(setrlimit(RLIMIT_AS, &limited), 0);
  Session session(m.model, options_of(1, KvType::f32, nullptr, kMaxContext));
  ASSERT_EQ(setrlimit(RLIMIT_AS, &before), 0);
  EXPECT_EQ(session.error.find("session: cannot reserve "), 0u) << session.error;
  const int id = 0;
  EXPECT_EQ(session.forward(&id, 1), nullptr);
  Session small(m.model, options_of(1, KvType::f32, nullptr, 10));
  EXPECT_NE(small.forward(&id, 1), nullptr) << small.error;
}

TEST(Options, KernelThreadsAndContextAreUsed) {
  const MemoryModel m(small_config(), Type::q8);
  for (const std::string& name : kernel_names()) {
    Session session(m.model, options_of(3, KvType::automatic, name.c_str()));
    EXPECT_EQ(session.kernel(), name);
    EXPECT_EQ(session.threads(), 3);
  }
  Session session(m.model);
  EXPECT_EQ(session.kernel(), kernel_names().front());
  EXPECT_GE(session.threads(), 1);
  EXPECT_EQ(session.context(), 512);
  EXPECT_EQ(session.vocab_size(), 100);
}

TEST(Errors, ReportsATruncatedFileDuringForward) {
  const MemoryModel m(small_config(), Type::f32);
  const TemporaryFolder folder;
  const std::string path = folder.write("model.bin", tiny::text_of(m.bytes));
  Model file;
  ASSERT_TRUE(file.open(path.c_str())) << file.error;
  Session session(file, options_of(1));
  const size_t table = tiny::header_of(m.bytes).tensors.offset;
  ASSERT_EQ(truncate(path.c_str(), off_t(table + 10 * 64 * 4)), 0);  // the first ten rows remain
  const int id = 50;
  EXPECT_EQ(session.forward(&id, 1), nullptr);
  EXPECT_EQ(session.error, "token_embedding: row 50 cannot be read; the file was changed");
  EXPECT_EQ(session.position(), 0);
}

// Whatever tensor has it, for both types of the KV cache: the logits of this token and of those after it are undefined.
TEST(Errors, RejectsWeightsThatAreNotFinite) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const Type type : {Type::f32, Type::q4})
    for (const float value : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity}) {
      MemoryModel m(small_config(), type);
      const Layer& first = m.model.layers[0];
      // A row scale of q4, an element of f32, in each matrix; an element of a norm.
      std::vector<const uint8_t*> places = {first.attention_norm.data, m.model.final_norm.data};
      const std::vector<const Tensor*> matrices = {&first.wq, &first.wk, &first.wv,      &first.wo,
                                                   &first.w1, &first.w2, &m.model.output};
      for (const Tensor* t : matrices)
        places.push_back(t->data + (type == Type::f32 ? 0 : panel_bytes(type, t->cols) - 64));
      for (const uint8_t* place : places) {
        float& weight = *reinterpret_cast<float*>(m.bytes.data() + (place - m.bytes.data()));
        const float before = weight;
        weight = value;
        for (const KvType kv : {KvType::f32, KvType::q8}) {
          Session session(m.model, options_of(1, kv));
          const int ids[] = {1, 2, 3};
          const bool good = session.forward(ids, 3);
          // A score of -infinity is a weight of nearly 0, the same on every CPU.
          if (good && std::isinf(value) && (place == places[2] || place == places[3])) continue;
          EXPECT_FALSE(good) << "place " << place - m.bytes.data() << ", value " << value;
          EXPECT_EQ(session.error.find("logits: expected finite numbers"), 0u) << session.error;
          EXPECT_EQ(session.position(), 0);
        }
        weight = before;
      }
      EXPECT_NE(Session(m.model).forward(std::vector<int>{1}.data(), 1), nullptr) << "the model is as before";
    }
}

TEST(Errors, AnExceptionOfACallbackKeepsThePosition) {
  const MemoryModel m(small_config(), Type::q8);
  const std::vector<int> ids = random_ids(300, 100);
  Session session(m.model, options_of(2)), fresh(m.model, options_of(2));
  ASSERT_NE(session.forward(ids.data(), 5), nullptr);
  const auto throws = [&](size_t i, const float*) {
    if (i == 200) throw std::runtime_error("of the caller");
    return true;
  };
  EXPECT_THROW(session.forward(&ids[5], 250, throws), std::runtime_error);
  EXPECT_EQ(session.position(), 5);
  session.observe([](const Observation&) { throw 7; });
  EXPECT_THROW(session.forward(&ids[5], 10), int);
  session.observe(nullptr);
  EXPECT_EQ(session.position(), 5);
  const float *found = session.forward(&ids[5], 295), *expected = fresh.forward(ids.data(), 300);
  ASSERT_TRUE(found && expected);
  EXPECT_TRUE(same_bits(found, expected, 100));
}

TEST(Errors, GuessesOutsideTheVocabularyAreIgnored) {
  const MemoryModel m(small_config(), Type::q8);
  const auto text = [&](const Propose& propose) {
    std::vector<int> ids;
    Session session(m.model, options_of(1));
    Sampler pick({1.f, 0.9f, 4});
    const auto keep = [&](int id) {
      ids.push_back(id);
      return true;
    };
    EXPECT_TRUE(generate(session, pick, {1, 2, 3}, 30, {}, keep, propose)) << session.error;
    return ids;
  };
  const std::vector<int> expected = text(nullptr);
  EXPECT_EQ(expected.size(), 30u);
  for (const int bad : {-1, 100, INT_MAX, INT_MIN}) {
    EXPECT_EQ(text([&] { return std::vector<int>{bad}; }), expected);
    EXPECT_EQ(text([&] { return std::vector<int>(500, bad); }), expected);
    EXPECT_EQ(text([&] { return std::vector<int>{5, bad, 7}; }), expected);
  }
}

TEST(Errors, KvBlocksOutsideTheCacheAreNull) {
  const MemoryModel m(small_config(), Type::q8);
  const Session session(m.model, options_of(1, KvType::automatic, nullptr, 200));
  EXPECT_NE(session.kv_block(1, 1, 1).k, nullptr);
  const int outside[][3] = {{-1, 0, 0}, {2, 0, 0}, {0, -1, 0}, {0, 2, 0}, {0, 0, -1}, {0, 0, 2}, {0, 0, INT_MAX}};
  for (const auto& [layer, head, block] : outside) EXPECT_EQ(session.kv_block(layer, head, block).k, nullptr);
  const Model closed;
  EXPECT_EQ(Session(closed).kv_block(0, 0, 0).k, nullptr);
}

TEST(Errors, ThePlainLlamaRejectsInvalidIds) {
  const MemoryModel m(small_config(), Type::q8);
  ReferenceLlama llama(m.model);
  for (const int id : {-1, 100, INT_MAX}) EXPECT_EQ(llama.forward(id, 0), nullptr);
  EXPECT_EQ(llama.forward(1, -1), nullptr);
  EXPECT_NE(llama.forward(1, 0), nullptr);
}

// ---- Cancelling ----

TEST(Cancel, StopsForwardFromAnotherThread) {
  const MemoryModel m(small_config(), Type::q4);
  const std::vector<int> ids = random_ids(200, 100);
  Session session(m.model, options_of(2)), fresh(m.model, options_of(2));
  ASSERT_TRUE(session.forward(ids.data(), 10));
  std::atomic<bool> running{false}, cancelled{false};
  int layers = 0;
  session.observe([&](const Observation& o) {
    if (o.kind != Observation::layer_output || o.position != 10 + kChunk) return;  // in the second chunk
    layers++;
    running = true;
    while (!cancelled) std::this_thread::yield();
  });
  std::thread other([&] {
    while (!running) std::this_thread::yield();
    session.cancel();
    cancelled = true;
  });
  EXPECT_EQ(session.forward(ids.data() + 10, 190), nullptr);
  other.join();
  EXPECT_EQ(session.error, "cancelled");
  EXPECT_EQ(layers, 1);  // of two
  EXPECT_EQ(session.position(), 10);
  session.observe(nullptr);
  const float *found = session.forward(ids.data() + 10, 190), *expected = fresh.forward(ids.data(), 200);
  ASSERT_TRUE(found && expected) << session.error;
  EXPECT_TRUE(same_bits(found, expected, 100));
}

TEST(Cancel, OfAnIdleSessionStopsTheNextForwardOnly) {
  const MemoryModel m(small_config(), Type::q4);
  Session session(m.model, options_of(1));
  const int id = 3;
  session.cancel();
  session.cancel();
  EXPECT_EQ(session.forward(&id, 1), nullptr);
  EXPECT_EQ(session.error, "cancelled");
  EXPECT_EQ(session.position(), 0);
  EXPECT_NE(session.forward(&id, 1), nullptr);
  EXPECT_EQ(session.error, "");
}

// ---- Observing ----

TEST(Observe, LayerOutputsAndAttentionMatchTheReference) {
  for (const KvType kv : {KvType::f32, KvType::q8}) {
    const Config config = small_config();
    const MemoryModel m(config, Type::f32);
    const std::vector<int> ids = random_ids(135, config.vocab_size);
    const Reference expected = reference_for(m.model, ids, kv);
    const double bound = kv == KvType::f32 ? 1e-4 : 0.02;
    Session session(m.model, options_of(2, kv));
    int layers = 0, heads = 0;
    double worst = 0;
    session.observe([&](const Observation& o) {
      const auto compare = [&](const Reference::Vector& e) {
        ASSERT_EQ(o.size, int(e.size()));
        for (int i = 0; i < o.size; i++)
          worst = std::max(worst, std::fabs(double(o.data[i]) - e[i]) / (1 + std::fabs(double(e[i]))));
      };
      if (o.kind == Observation::layer_output) {
        EXPECT_EQ(o.head, -1);
        EXPECT_EQ(o.size, config.dim);
        compare(expected.layer_output[o.layer][o.position]);
        layers++;
      } else if (o.kind == Observation::attention) {
        EXPECT_EQ(o.size, o.position + 1);
        EXPECT_NEAR(std::accumulate(o.data, o.data + o.size, 0.0), 1, 1e-5);
        compare(expected.attention[o.layer][o.head][o.position]);
        heads++;
      }
    });
    ASSERT_TRUE(session.forward(ids.data(), 100));
    for (size_t i = 100; i < ids.size(); i++) ASSERT_TRUE(session.forward(&ids[i], 1));
    EXPECT_EQ(layers, 135 * config.n_layers);
    EXPECT_EQ(heads, 135 * config.n_layers * config.n_heads);
    EXPECT_LT(worst, bound);
  }
}

TEST(Observe, DoesNotChangeTheBits) {
  const MemoryModel m(small_config(), Type::q4);
  const std::vector<int> ids = random_ids(140, 100);
  Session observed(m.model, options_of(1));
  size_t seen = 0;
  observed.observe([&](const Observation&) { seen++; });
  const Floats found = all_logits(observed, ids, 50), expected = all_logits(m.model, options_of(1), ids, 50);
  EXPECT_TRUE(same_bits(found.data(), expected.data(), found.size()));
  EXPECT_EQ(seen, 140u * 2 * (4 + 4));  // 4 heads; 4 vectors
}

TEST(Observe, CanLeaveOutAttention) {
  const MemoryModel m(small_config(), Type::q4);
  const std::vector<int> ids = random_ids(140, 100);
  std::vector<Floats> outputs[2];  // without attention, with
  for (const bool attention : {true, false}) {
    Session session(m.model, options_of(1));
    session.observe(
        [&](const Observation& o) {
          EXPECT_TRUE(attention || o.kind != Observation::attention);
          if (o.kind == Observation::layer_output) outputs[attention].emplace_back(o.data, o.data + o.size);
        },
        attention);
    ASSERT_TRUE(session.forward(ids.data(), ids.size()));
  }
  EXPECT_EQ(outputs[true].size(), 140u * 2);
  EXPECT_EQ(outputs[true], outputs[false]);
}

// ---- Memory ----

size_t item(const std::array<MemoryItem, 4>& items, const std::string& name) {
  for (const MemoryItem& i : items)
    if (name == i.name) return i.bytes;
  ADD_FAILURE() << name << " is missing";
  return 0;
}

TEST(Memory, EstimateCountsCacheAndWeights) {
  const MemoryModel q(small_config(), Type::q4), f(small_config(), Type::f32);
  // 2 layers of 2 KV heads: a float scale each for key and value, and 16 numbers each
  const size_t q8_position = 2 * 2 * (2 * 4 + 2 * 16), f32_position = 2 * 2 * (2 * 4 + 2 * 16 * 4);
  const SessionOptions some = options_of(1, KvType::automatic, nullptr, 256);
  EXPECT_EQ(item(memory_of(q.model, some, 100), "keys and values"), 100 * q8_position);
  EXPECT_EQ(item(memory_of(q.model, some, 1000), "keys and values"), 256 * q8_position);
  EXPECT_EQ(item(memory_of(q.model, options_of(1), 1000), "keys and values"), 512 * q8_position);
  EXPECT_EQ(item(memory_of(f.model, some, 100), "keys and values"), 100 * f32_position);
  EXPECT_EQ(item(memory_of(q.model, options_of(1, KvType::f32), 100), "keys and values"), 100 * f32_position);
  EXPECT_EQ(item(memory_of(q.model, some, 100), "weights"), q.model.bytes_per_token);
  // Everything except the embedding table: per layer wq, wo, wk, wv, w1, w3, and w2 with 96 columns padded to 128; the
  // output with 100 rows padded to 112; five norms.
  const size_t floats = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 2 * 96 * 64 + 64 * 128) + 112 * 64 + 5 * 64;
  EXPECT_EQ(item(memory_of(f.model, some, 100), "weights"), floats * 4);
  EXPECT_EQ(f.model.bytes_per_token, floats * 4);
  size_t items = 0;
  for (const MemoryItem& i : memory_of(q.model, some, 64)) items += i.bytes > 0;
  EXPECT_EQ(items, 4u);
}

size_t resident() {
  long pages = 0;
  std::ifstream("/proc/self/statm") >> pages >> pages;
  return size_t(pages) * size_t(sysconf(_SC_PAGESIZE));
}

// A full cache of 2^20 positions takes 544 MB; ten positions take only the pages they are in.
TEST(Memory, UnusedCacheIsNotResident) {
  const MemoryModel m(small_config(), Type::q4);
  const std::vector<int> ids = random_ids(10, 100);
  const size_t before = resident();
  if (before == 0) GTEST_SKIP() << "/proc/self/statm is not available";
  Session session(m.model, options_of(1, KvType::f32, nullptr, 1 << 20));
  ASSERT_NE(session.forward(ids.data(), 10), nullptr) << session.error;
  EXPECT_LT(resident(), before + (4u << 20));
}

}  // namespace session_test
