// megabyte_test.cpp: the MEGABYTE engine: logits of the public implementation, and of the naive one in
// megabyte_model.hpp on many shapes; the same bits for every kernel, number of threads and batch; the session's
// contract; the model file.
#include "../../../models/megabyte/megabyte.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cfloat>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "../../support/megabyte_model.hpp"
#include "../../support/test_data.hpp"

namespace megabyte_test {

using namespace pocket;
using bytes::config_of;
using bytes::MemoryModel;
using bytes::Reference;
using bytes::small_config;
using bytes::Vector;
using tiny::Floats;
using tiny::random_ids;
using tiny::same_bits;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// The logits after every byte (bytes, 256), for a text in pieces of these sizes; the last size is repeated.
Floats all_logits(MegabyteSession& session, const std::vector<int>& text, const std::vector<size_t>& pieces) {
  Floats all;
  for (size_t i = 0, n, turn = 0; i < text.size(); i += n, turn++) {
    n = std::min(pieces[std::min(turn, pieces.size() - 1)], text.size() - i);
    EXPECT_TRUE(session.forward(&text[i], n, [&](size_t, const float* logits) {
      all.insert(all.end(), logits, logits + kByteValues);
      return true;
    })) << session.error;
  }
  return all;
}

Floats all_logits(const MegabyteModel& model, const SessionOptions& options, const std::vector<int>& text,
                  const std::vector<size_t>& pieces) {
  MegabyteSession session(model, options);
  EXPECT_EQ(session.error, "");
  return all_logits(session, text, pieces);
}

/// |found - expected| / (1 + |expected|) of 256 logits, the largest; a NaN is the largest of all.
double error_of(const float* found, const Vector& expected) {
  double worst = 0;
  for (size_t i = 0; i < kByteValues; i++) {
    const double d = std::fabs(found[i] - expected[i]) / (1 + std::fabs(expected[i]));
    worst = d <= worst ? worst : d == d ? d : INFINITY;
  }
  return worst;
}

// ---- Logits ----

/// A checkpoint, and the logits of the public implementation for it, in double.
struct Golden {
  MegabyteCheckpoint checkpoint;
  tiny::Bytes file;
  std::vector<int> text;
  Vector first;
  std::vector<std::pair<int, Vector>> after;  // logits after the byte at this index

  Golden(const std::string& folder, Type type) {
    std::string error;
    EXPECT_TRUE(open_megabyte(folder + "/model.pt", folder + "/config.json", checkpoint, error)) << error;
    file = tiny::model_bytes(bytes::parts_of(checkpoint.config, type),
                             [this](const TensorSpec& spec, int64_t row, int64_t count, float* out, std::string& why) {
                               return checkpoint.weights.read_rows(spec.name, row, count, out, why);
                             });
    const auto json = nlohmann::json::parse(std::ifstream(folder + "/golden.json"));
    text = json.at("bytes").get<std::vector<int>>();
    first = json.at("first").get<Vector>();
    for (size_t i = 0; i < json.at("positions").size(); i++)
      after.emplace_back(json.at("positions")[i], json.at("logits")[i].get<Vector>());
  }
};

std::vector<std::string> golden_folders(const std::string& in) {
  std::vector<std::string> folders;
  for (const auto& entry : std::filesystem::directory_iterator(in)) folders.push_back(entry.path().string());
  std::sort(folders.begin(), folders.end());
  return folders;
}

TEST(MegabyteLogits, MatchPublicImplementation) {
  NEED_DATA(data, "megabyte");
  for (const std::string& folder : golden_folders(data)) {
    const Golden g(folder, Type::f32);
    const MemoryModel m(g.file);
    const size_t size = size_t(m.model.config.patch_size);
    for (const std::vector<size_t>& pieces :
         {std::vector<size_t>{1}, {g.text.size()}, {size - 1, size}, {size}, {size + 1}, {5, 1, 2, 7, 3}}) {
      MegabyteSession session(m.model, {0, 2, KvType::automatic, nullptr});
      const Floats found = all_logits(session, g.text, pieces);
      ASSERT_EQ(found.size(), g.text.size() * kByteValues);
      EXPECT_LT(error_of(session.start(), g.first), 1e-5) << folder;
      for (const auto& [at, expected] : g.after)
        EXPECT_LT(error_of(&found[size_t(at) * kByteValues], expected), 1e-5)
            << folder << ", byte " << at << ", pieces of " << pieces[0];
    }
  }
}

/// Valid shapes, usual and odd.
std::vector<std::pair<std::string, MegabyteConfig>> shapes() {
  std::vector<std::pair<std::string, MegabyteConfig>> all = {
      {"all features", small_config()},
      {"no positions", config_of({48, 32, 2, 2, 3, 16, 12, 4})},
      {"rotary", config_of({48, 32, 2, 2, 3, 16, 12, 4, true})},
      {"embedded", config_of({48, 32, 2, 2, 3, 16, 12, 4, false, true})},
      {"sizes without common factors", config_of({50, 37, 2, 1, 3, 10, 9, 5, true, true})},
      {"odd widths", config_of({33, 21, 1, 2, 3, 7, 9, 3, false, true})},
      {"local stage wider than the global one", config_of({20, 70, 1, 1, 2, 18, 6, 3, true})},
      {"one byte per patch", config_of({24, 16, 1, 1, 2, 8, 70, 1, true, true})},
      {"a single patch", config_of({24, 16, 1, 1, 2, 8, 1, 10, true, true})},
      {"patches longer than a chunk and a block of keys", config_of({24, 16, 1, 1, 2, 8, 2, 150, true})},
      {"patches divided by chunks", config_of({24, 16, 1, 2, 2, 8, 5, 60, false, true})},
      {"more patches than a chunk and a block of keys", config_of({24, 16, 2, 1, 2, 8, 150, 2, true})},
      {"one of everything", config_of({1, 1, 1, 1, 1, 1, 2, 2})},
      {"heads wider than either stage", config_of({16, 12, 1, 1, 2, 90, 5, 4, true})},
  };
  MegabyteConfig hidden = small_config();
  hidden.global.hidden_dim = 50;
  hidden.local.hidden_dim = 130;
  all.emplace_back("unusual hidden widths", hidden);
  return all;
}

TEST(MegabyteLogits, MatchNaiveImplementationOnAllShapes) {
  for (const auto& [name, config] : shapes()) {
    const MemoryModel m(config, Type::f32);
    const std::vector<int> text = random_ids(std::min(config.max_seq_len(), 310), kByteValues);
    const std::vector<Vector> expected = Reference(config).logits(text);
    MegabyteSession session(m.model, {0, 2, KvType::automatic, nullptr});
    const Floats found = all_logits(session, text, {3, 1, 40, 200, 7});
    ASSERT_EQ(found.size(), text.size() * kByteValues) << name;
    EXPECT_LT(error_of(session.start(), expected[0]), 1e-5) << name;
    for (size_t t = 0; t < text.size(); t++)
      ASSERT_LT(error_of(&found[t * kByteValues], expected[t + 1]), 1e-5) << name << ", byte " << t;
  }
}

TEST(MegabyteLogits, OfQuantizedModelsAreClose) {
  const MegabyteConfig config = config_of({128, 64, 1, 2, 2, 64, 16, 4, true, true});
  const std::vector<int> text = random_ids(64, kByteValues);
  const std::vector<Vector> expected = Reference(config).logits(text);
  const auto distance = [&](Type type) {
    const MemoryModel m(config, type);
    const Floats found = all_logits(m.model, {}, text, {64});
    double sum = 0, squares = 0;
    for (size_t t = 0; t < text.size(); t++)
      for (size_t i = 0; i < kByteValues; i++) {
        sum += std::pow(found[t * kByteValues + i] - expected[t + 1][i], 2);
        squares += std::pow(expected[t + 1][i], 2);
      }
    return std::sqrt(sum / squares);
  };
  EXPECT_LT(distance(Type::q8), 0.05);
  EXPECT_LT(distance(Type::q4), 0.35);
  EXPECT_GT(distance(Type::q4), distance(Type::q8));
}

TEST(MegabyteBlocks, GeluMatchesErrorFunction) {
  for (int i = -200000; i <= 200000; i++) {
    const float x = float(i) * 1e-4f;
    const double expected = 0.5 * x * std::erfc(-double(x) / std::sqrt(2.0));
    ASSERT_NEAR(gelu_body(x), expected, 1.5e-7 * std::max(1.0, std::fabs(expected))) << x;
  }
  for (const float x : {100.f, 1e10f, FLT_MAX, INFINITY}) {
    EXPECT_EQ(gelu_body(x), x);
    EXPECT_LE(std::fabs(gelu_body(-std::min(x, FLT_MAX))), 1e-37f * std::min(x, FLT_MAX)) << x;
  }
  EXPECT_EQ(gelu_body(0.f), 0.f);
  EXPECT_TRUE(std::isnan(gelu_body(NAN)));
}

TEST(MegabyteBlocks, NormOfZerosIsZero) {  // the smallest root mean square is 1e-8
  alignas(64) float x[48] = {}, y[48], ones[48];
  std::fill(ones, ones + 48, 1.f);
  shift_norm_body(x, x, ones, y, 33);
  for (int i = 0; i < 48; i++) EXPECT_EQ(y[i], 0.f);
  std::fill(x, x + 33, 1e-10f);
  shift_norm_body(x, x, ones, y, 33);
  for (int i = 0; i < 33; i++) EXPECT_NEAR(y[i], 0.01f, 1e-8f);
}

// A weight that is not finite gives logits that are not: an error, with every kernel set.
TEST(MegabyteLogits, ThatAreNotFiniteAreAnError) {
  const std::vector<TensorSpec> specs = tensor_specs(small_config());
  for (const Type type : {Type::f32, Type::q8}) {
    const tiny::Bytes file = tiny::model_bytes(bytes::parts_of(small_config(), type));
    for (size_t i = 0; i < specs.size(); i++) {
      if (specs[i].layout != Layout::vector) continue;
      const size_t at = size_t(load<TensorEntry>(file.data() + tiny::entry_at(file, i)).offset);
      for (const float value : {std::nanf(""), INFINITY}) {
        const MemoryModel m(tiny::patched(file, at, value));
        for (const Kernels* k : tiny::kernel_sets()) {
          MegabyteSession session(m.model, {0, 2, KvType::automatic, k->name});
          const std::vector<int> text(size_t(3 * small_config().patch_size), 'a');
          EXPECT_EQ(session.forward(text.data(), text.size()), nullptr) << specs[i].name << ", " << k->name;
          EXPECT_TRUE(contains(session.error, "logits: expected finite numbers")) << session.error;
        }
      }
    }
  }
}

// ---- The same bits ----

TEST(MegabyteSameBits, ForEveryKernelThreadCountAndBatch) {
  for (const MegabyteConfig& config : {small_config(), config_of({50, 37, 2, 1, 3, 10, 30, 5, true, true})})
    for (const Type type : {Type::f32, Type::q8, Type::q4}) {
      const MemoryModel m(config, type);
      const std::vector<int> text = random_ids(config.max_seq_len(), kByteValues);
      const size_t size = size_t(config.patch_size);
      const Floats expected = all_logits(m.model, {0, 1, KvType::automatic, "scalar"}, text, {1});
      const Floats start = [&] {
        MegabyteSession session(m.model, {0, 1, KvType::automatic, "scalar"});
        return Floats(session.start(), session.start() + kByteValues);
      }();
      for (const Kernels* k : tiny::kernel_sets())
        for (const int threads : {1, 2, 3})
          for (const std::vector<size_t>& pieces :
               {std::vector<size_t>{1}, {text.size()}, {size - 1, size}, {size}, {size + 1}, {7, 1, 30}}) {
            MegabyteSession session(m.model, {0, threads, KvType::automatic, k->name});
            EXPECT_TRUE(same_bits(session.start(), start.data(), start.size())) << k->name;
            const Floats found = all_logits(session, text, pieces);
            ASSERT_TRUE(same_bits(found.data(), expected.data(), expected.size()))
                << type_name(type) << ", " << k->name << ", " << threads << " threads, pieces of " << pieces[0];
          }
    }
}

TEST(MegabyteSameBits, OfBlocksForEveryKernel) {
  tiny::Random random(3);
  for (const int n : {1, 2, 15, 16, 17, 33, 64, 100}) {
    const size_t room = size_t(round_up(n, 16));
    const auto made = [&](int count) {
      Floats x = tiny::normal_floats(random, room);
      std::fill(x.begin() + count, x.end(), 0.f);
      return x;
    };
    const Floats x = made(n), before = made(n / 2), weight = made(n), bias = made(n);
    std::vector<Floats> expected;
    for (const Kernels* k : tiny::kernel_sets()) {
      const MegabyteKernels own = megabyte_kernels(*k);
      Floats a(room), b(room), c = x;
      own.shift_norm(x.data(), before.data(), weight.data(), a.data(), n);
      own.layer_norm(x.data(), bias.data(), weight.data(), bias.data(), b.data(), n);
      own.gelu(c.data(), bias.data(), int(room));
      if (expected.empty()) expected = {a, b, c};
      EXPECT_TRUE(same_bits(a.data(), expected[0].data(), room)) << k->name << " " << n;
      EXPECT_TRUE(same_bits(b.data(), expected[1].data(), room)) << k->name << " " << n;
      EXPECT_TRUE(same_bits(c.data(), expected[2].data(), room)) << k->name << " " << n;
    }
  }
}

// ---- The session ----

TEST(MegabyteSessions, RewindToAnyPosition) {
  for (const MegabyteConfig& config :
       {small_config(), config_of({24, 16, 1, 1, 2, 8, 150, 2, true}),
        config_of({24, 16, 1, 1, 2, 8, 70, 1, true, true}), config_of({24, 16, 1, 1, 2, 8, 2, 150, true})})
    for (const Type type : {Type::f32, Type::q8}) {
      const MemoryModel m(config, type);
      const std::vector<int> text = random_ids(config.max_seq_len(), kByteValues),
                             other = random_ids(9, kByteValues, 2);
      MegabyteSession session(m.model, {0, 2, KvType::automatic, nullptr}), fresh(m.model);
      const Floats expected = all_logits(session, text, {text.size()});
      for (size_t to = 0; to < text.size(); to += text.size() / 20 | 1) {
        // A different text from there, then the original one again.
        std::vector<int> changed(text.begin(), text.begin() + long(to));
        changed.insert(changed.end(), other.begin(), other.begin() + long(std::min(other.size(), text.size() - to)));
        session.rewind(int(to));
        ASSERT_EQ(session.position(), int(to));
        const float* found_other = session.forward(&changed[to], changed.size() - to);
        fresh.rewind(0);
        const float* expected_other = fresh.forward(changed.data(), changed.size());
        ASSERT_TRUE(found_other && expected_other) << session.error << fresh.error;
        ASSERT_TRUE(same_bits(found_other, expected_other, kByteValues)) << "to " << to;
        session.rewind(int(to));
        const std::vector<int> rest(text.begin() + long(to), text.end());
        const Floats found = all_logits(session, rest, {1 + to % 7, rest.size()});
        ASSERT_TRUE(same_bits(found.data(), &expected[to * kByteValues], found.size())) << "to " << to;
      }
    }
}

TEST(MegabyteSessions, StopWhenCallbackReturnsFalse) {
  const MemoryModel m(small_config(), Type::q8);
  const std::vector<int> text = random_ids(40, kByteValues);
  const Floats expected = all_logits(m.model, {}, text, {40});
  for (const size_t last : {0u, 2u, 3u, 4u, 17u, 38u, 39u}) {
    MegabyteSession session(m.model);
    size_t calls = 0;
    ASSERT_TRUE(session.forward(text.data(), text.size(), [&](size_t i, const float*) {
      EXPECT_EQ(i, calls++);
      return i < last;
    }));
    EXPECT_EQ(session.position(), int(last) + 1);
    EXPECT_EQ(calls, last + 1);
    const std::vector<int> rest(text.begin() + session.position(), text.end());
    const Floats found = all_logits(session, rest, {3});
    EXPECT_TRUE(same_bits(found.data(), expected.data() + (last + 1) * kByteValues, found.size())) << last;
  }
}

TEST(MegabyteSessions, StartWithoutPrompt) {
  const MemoryModel m(small_config(), Type::f32);
  MegabyteSession session(m.model);
  const Floats start(session.start(), session.start() + kByteValues);
  const float* same = session.forward(nullptr, 0);
  ASSERT_NE(same, nullptr);
  EXPECT_TRUE(same_bits(same, start.data(), start.size()));
  EXPECT_EQ(session.position(), 0);
  const int byte = 65;
  ASSERT_NE(session.forward(&byte, 1), nullptr);
  EXPECT_TRUE(same_bits(session.start(), start.data(), start.size())) << "start() must not depend on the position";
  EXPECT_EQ(session.forward(&byte, 0), nullptr);
  EXPECT_EQ(session.error, "forward: no bytes");
  Sampler pick({0});
  std::vector<int> made;
  session.rewind(0);
  const auto keep = [&](int id) {
    made.push_back(id);
    return true;
  };
  EXPECT_TRUE(generate(session, pick, std::vector<int>(), 10, {}, keep)) << session.error;
  EXPECT_EQ(made.size(), 10u);
  EXPECT_EQ(made[0], int(std::max_element(start.begin(), start.end()) - start.begin()));
}

TEST(MegabyteSessions, RejectInvalidBytesAndKeepPosition) {
  const MemoryModel m(small_config(), Type::f32);
  MegabyteSession session(m.model, {10, 1, KvType::automatic, nullptr});
  EXPECT_EQ(session.context(), 10);
  const std::vector<int> good = {1, 2, 3, 4, 5}, bad[] = {{1, 256}, {-1}, {2, 3, 1 << 30}};
  ASSERT_NE(session.forward(good.data(), 5), nullptr);
  for (const std::vector<int>& b : bad) {
    EXPECT_EQ(session.forward(b.data(), b.size()), nullptr);
    EXPECT_TRUE(contains(session.error, ": expected 0 to 255, found ")) << session.error;
    EXPECT_EQ(session.position(), 5);
  }
  EXPECT_EQ(session.forward(nullptr, 3), nullptr);
  ASSERT_NE(session.forward(good.data(), 5), nullptr) << session.error;
  EXPECT_EQ(session.forward(good.data(), 1), nullptr);
  EXPECT_EQ(session.error, "context: room for 0 more bytes, not for 1");
  EXPECT_EQ(session.position(), 10);
}

TEST(MegabyteSessions, RejectInvalidOptions) {
  const MemoryModel m(small_config(), Type::f32);
  const auto error = [](const MegabyteModel& model, const SessionOptions& options) {
    MegabyteSession session(model, options);
    const int byte = 65;
    EXPECT_EQ(session.start(), nullptr);
    EXPECT_EQ(session.forward(&byte, 1), nullptr);
    EXPECT_EQ(session.context(), 0);
    return session.error;
  };
  EXPECT_TRUE(contains(error(m.model, {49}), "context: expected 0 to 48"));
  EXPECT_TRUE(contains(error(m.model, {-1}), "context: expected 0 to 48"));
  EXPECT_TRUE(contains(error(m.model, {0, 1, KvType::automatic, "mmx"}), "kernel 'mmx'"));
  EXPECT_TRUE(contains(error(MegabyteModel(), {}), "not open"));
}

TEST(MegabyteSessions, CancelStopsForwardAndKeepsState) {
  const MemoryModel m(small_config(), Type::q8);
  const std::vector<int> text = random_ids(48, kByteValues);
  const Floats expected = all_logits(m.model, {}, text, {48});
  MegabyteSession session(m.model);
  ASSERT_NE(session.forward(text.data(), 6), nullptr);
  session.cancel();
  EXPECT_EQ(session.forward(text.data() + 6, 20), nullptr);
  EXPECT_EQ(session.error, "cancelled");
  EXPECT_EQ(session.position(), 6);
  const std::vector<int> rest(text.begin() + 6, text.end());
  const Floats found = all_logits(session, rest, {5});
  EXPECT_TRUE(same_bits(found.data(), &expected[6 * kByteValues], found.size()));
  // At any time, from another thread.
  std::atomic<bool> done{false};
  std::thread other([&] {
    while (!done) session.cancel();
  });
  for (int i = 0; i < 200; i++) {
    session.rewind(i % 40);
    if (!session.forward(text.data() + session.position(), text.size() - size_t(session.position()))) {
      EXPECT_EQ(session.error, "cancelled");
      EXPECT_EQ(session.position(), std::min(i % 40, session.position()));
    }
  }
  done = true;
  other.join();
  session.cancel(false);
  session.rewind(0);
  const Floats again = all_logits(session, text, {48});
  EXPECT_TRUE(same_bits(again.data(), expected.data(), expected.size()));
}

TEST(MegabyteSessions, SupportQuantizedCache) {
  const MemoryModel m(small_config(), Type::f32);
  const std::vector<int> text = random_ids(48, kByteValues);
  const Floats exact = all_logits(m.model, {}, text, {48});
  MegabyteSession small(m.model, {0, 1, KvType::q8, nullptr});
  EXPECT_FALSE(small.kv_f32());
  EXPECT_TRUE(MegabyteSession(m.model).kv_f32());
  const Floats near = all_logits(small, text, {1});
  double worst = 0;
  for (size_t i = 0; i < exact.size(); i++) worst = std::max(worst, double(std::fabs(exact[i] - near[i])));
  EXPECT_GT(worst, 0);
  EXPECT_LT(worst, 0.2);
}

TEST(MegabyteSessions, ReportMemory) {
  const MemoryModel m(small_config(), Type::q8);
  size_t before = 0;
  for (const int n : {0, 4, 48}) {
    size_t sum = 0;
    for (const MemoryItem& item : memory_of(m.model, {}, n)) sum += item.bytes;
    EXPECT_GT(sum, before);
    EXPECT_LT(sum, size_t(16) << 20);
    before = sum;
  }
}

// ---- The file ----

std::string error_of_file(const tiny::Bytes& file) {
  const tiny::Bytes exact(file.begin(), file.end());
  MegabyteModel model;
  const bool ok = model.open_memory(exact.data(), exact.size());
  EXPECT_EQ(ok, model.error.empty()) << model.error;
  EXPECT_EQ(model.global.layers.empty(), !ok);
  return model.error;
}

const tiny::Bytes& whole() {
  static const tiny::Bytes file = [] {
    ModelParts parts = bytes::parts_of(small_config(), Type::q4);
    parts.provenance = "source: a test\n";
    parts.chat.stop_ids = {0};
    parts.self_test_ids = self_test_prompt(kByteValues, -1, 11);
    return tiny::model_bytes(parts);
  }();
  return file;
}

TEST(MegabyteFile, RoundTrips) {
  const MemoryModel m(whole());
  const MegabyteConfig &c = m.model.config, expected = small_config();
  EXPECT_EQ(c.global.dim, expected.global.dim);
  EXPECT_EQ(c.global.hidden_dim, expected.global.hidden_dim);
  EXPECT_EQ(c.global.n_layers, expected.global.n_layers);
  EXPECT_EQ(c.local.dim, expected.local.dim);
  EXPECT_EQ(c.local.hidden_dim, expected.local.hidden_dim);
  EXPECT_EQ(c.local.n_layers, expected.local.n_layers);
  EXPECT_EQ(c.n_heads, expected.n_heads);
  EXPECT_EQ(c.head_dim, expected.head_dim);
  EXPECT_EQ(c.patches, expected.patches);
  EXPECT_EQ(c.patch_size, expected.patch_size);
  EXPECT_TRUE(c.rotary && c.positions);
  EXPECT_EQ(m.model.vocab_size(), 256);
  EXPECT_EQ(m.model.provenance(), "source: a test\n");
  EXPECT_EQ(m.model.tokenizer_bytes(), "");
  EXPECT_EQ(m.model.stop_ids, std::vector<int>{0});
  EXPECT_FALSE(m.model.all_f32);
  EXPECT_EQ(m.model.local.layers[1].w2_bias.cols, 32);
  EXPECT_EQ(m.model.output.type, Type::q4);
  EXPECT_EQ(m.model.global.embedding.type, Type::q8);
  MegabyteSession session(m.model);
  const std::vector<int>& ids = m.model.self_test_ids;
  const float* logits = session.forward(ids.data(), ids.size());
  ASSERT_NE(logits, nullptr);
  EXPECT_EQ(hash_logits(logits, kByteValues), m.model.self_test_hash);
}

TEST(MegabyteFile, IsTheSameForAnyThreadCount) {
  ModelParts parts = bytes::parts_of(small_config(), Type::q4);
  const tiny::Bytes one = tiny::model_bytes(parts);
  parts.threads = 3;
  EXPECT_EQ(tiny::model_bytes(parts), one);
}

TEST(MegabyteFile, EachArchitectureNamesTheOther) {
  Model llama;
  const tiny::Bytes file = whole();
  EXPECT_FALSE(llama.open_memory(file.data(), file.size()));
  EXPECT_EQ(llama.error, "memory: architecture: expected 1 (llama), found 2 (megabyte)");
  EXPECT_TRUE(
      contains(error_of_file(tiny::model_bytes(tiny::parts_of(tiny::small_config(), Type::q4))), "found 1 (llama)"));
  const TemporaryFolder folder;
  EXPECT_TRUE(is_megabyte(folder.write("m.bin", tiny::text_of(file)).c_str()));
  EXPECT_FALSE(is_megabyte(folder.write("short.bin", tiny::text_of(file).substr(0, 15)).c_str()));
  EXPECT_FALSE(is_megabyte(folder.file("none").c_str()));
  EXPECT_FALSE(is_megabyte(folder.path().c_str()));
}

TEST(MegabyteFile, ChecksEveryHeaderField) {
  using tiny::patched;
  ASSERT_EQ(error_of_file(whole()), "");
  const size_t own = kMegabyteHeaderAt;
  const struct {
    const char* name;
    size_t at;
  } sizes[] = {{"dim", offsetof(Header, dim)},
               {"hidden_dim", offsetof(Header, hidden_dim)},
               {"n_layers", offsetof(Header, n_layers)},
               {"n_heads", offsetof(Header, n_heads)},
               {"head_dim", offsetof(Header, head_dim)},
               {"max_seq_len", offsetof(Header, max_seq_len)},
               {"local dim", own + offsetof(MegabyteHeader, local_dim)},
               {"local hidden_dim", own + offsetof(MegabyteHeader, local_hidden_dim)},
               {"local n_layers", own + offsetof(MegabyteHeader, local_layers)},
               {"patch_size", own + offsetof(MegabyteHeader, patch_size)}};
  for (const auto& [name, at] : sizes) {
    for (const uint32_t value : {0u, 0xffffffffu, 0x80000000u, 0x7fffffffu})
      EXPECT_NE(error_of_file(patched(whole(), at, value)), "") << name << " " << value;
    const uint32_t is = load<uint32_t>(&whole()[at]);
    for (const uint32_t value : {is - 1, is + 1, 2 * is, is / 2})
      EXPECT_NE(error_of_file(patched(whole(), at, value)), "") << name << " " << value;
  }
  const auto error = [&](size_t at, uint32_t value) { return error_of_file(patched(whole(), at, value)); };
  EXPECT_EQ(error(own + offsetof(MegabyteHeader, rotary), 2), "memory: rotary: expected 0 or 1, found 2");
  EXPECT_EQ(error(own + offsetof(MegabyteHeader, positions), 9), "memory: positions: expected 0 or 1, found 9");
  EXPECT_TRUE(contains(error(own + offsetof(MegabyteHeader, positions), 0), "section tensor_table.bytes"));
  EXPECT_EQ(error(offsetof(Header, vocab_size), 255), "memory: vocab_size: expected 256, found 255");
  EXPECT_EQ(error(offsetof(Header, n_kv_heads), 1), "memory: n_kv_heads: expected 3, found 1");
  EXPECT_EQ(error(offsetof(Header, max_seq_len), 49),
            "memory: max_seq_len: expected a multiple of patch_size, 4, found 49");
  EXPECT_TRUE(contains(error(offsetof(Header, head_dim), 15), "head_dim: expected an even number, found 15"));
  for (const size_t at :
       {offsetof(Header, tied), offsetof(Header, norm_eps), offsetof(Header, rope_theta),
        offsetof(Header, rope_scaling), offsetof(Header, rope_factor), offsetof(Header, rope_low_freq),
        offsetof(Header, rope_high_freq), offsetof(Header, rope_original_len)}) {
    EXPECT_TRUE(contains(error(at, 0x3f800000u), "expected 0, found ")) << at;
    EXPECT_TRUE(contains(error(at, 0x7fc00000u), "expected 0, found ")) << at;  // not a number
  }
  for (size_t i = offsetof(MegabyteHeader, reserved); i < sizeof(MegabyteHeader); i++)
    EXPECT_TRUE(contains(error_of_file(patched(whole(), own + i, uint8_t(1))), "reserved: expected 0, found ")) << i;
}

// The largest sizes: products exceed 2^40 and must not overflow.
TEST(MegabyteFile, HandlesLargestSizes) {
  tiny::Bytes file = whole();
  const size_t own = kMegabyteHeaderAt;
  const std::pair<size_t, uint32_t> largest[] = {{offsetof(Header, dim), 1 << 16},
                                                 {offsetof(Header, hidden_dim), 1 << 20},
                                                 {offsetof(Header, n_heads), 1 << 10},
                                                 {offsetof(Header, n_kv_heads), 1 << 10},
                                                 {offsetof(Header, head_dim), 1 << 10},
                                                 {offsetof(Header, max_seq_len), 1 << 22},
                                                 {own + offsetof(MegabyteHeader, local_dim), 1 << 16},
                                                 {own + offsetof(MegabyteHeader, local_hidden_dim), 1 << 20},
                                                 {own + offsetof(MegabyteHeader, patch_size), 1 << 6}};
  for (const auto& [at, value] : largest) tiny::put(file, at, value);
  tiny::update_checksums(file);
  EXPECT_TRUE(contains(error_of_file(file), "tensor global.embedding.cols: expected 65536, found 32"))
      << error_of_file(file);
  EXPECT_TRUE(contains(error_of_file(tiny::patched(file, own + offsetof(MegabyteHeader, patch_size), uint32_t(128))),
                       "patch_size: expected at most 2^22"));
  tiny::put(file, offsetof(Header, n_layers), uint32_t(1 << 10));
  tiny::put(file, own + offsetof(MegabyteHeader, local_layers), uint32_t(1 << 10));
  tiny::update_checksums(file);
  EXPECT_TRUE(
      contains(error_of_file(file), "section tensor_table.bytes: expected " + std::to_string((2048 * 10 + 18) * 64)));
}

TEST(MegabyteFile, RejectsTruncatedAndDamagedFiles) {
  for (size_t n = 0; n < whole().size(); n += 1 + n / 50)
    EXPECT_NE(error_of_file(tiny::Bytes(whole().begin(), whole().begin() + long(n))), "") << n;
  tiny::Bytes file = whole();
  for (size_t at = 0; at < tiny::header_of(file).tensors.offset; at += 11) {
    file[at] ^= 4;
    EXPECT_NE(error_of_file(file), "") << at;
    file[at] ^= 4;
  }
  MegabyteModel model;
  ASSERT_TRUE(model.open_memory(file.data(), file.size()));
  EXPECT_TRUE(model.verify_tensors());
  file[file.size() - 100] ^= 1;
  EXPECT_FALSE(model.verify_tensors());
  const std::vector<TensorSpec> specs = tensor_specs(small_config());
  for (size_t i = 0; i < specs.size(); i++) {
    const size_t at = tiny::entry_at(whole(), i);
    for (const size_t field : {offsetof(TensorEntry, type), offsetof(TensorEntry, rows), offsetof(TensorEntry, cols)})
      EXPECT_TRUE(contains(error_of_file(tiny::patched(whole(), at + field, 0xffffffffu)), "tensor " + specs[i].name));
    for (const size_t field : {offsetof(TensorEntry, offset), offsetof(TensorEntry, bytes)})
      EXPECT_TRUE(contains(error_of_file(tiny::patched(whole(), at + field, ~uint64_t(0))), "tensor " + specs[i].name));
  }
}

}  // namespace megabyte_test
