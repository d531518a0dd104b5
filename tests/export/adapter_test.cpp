// adapter_test.cpp: adapters that sessions add to a model at run time: the logits of the merged float32 model; the same
// bits for every kernel set, number of threads, batch and neighbour in a pass; and adapters that do not fit.
#include "../../export/adapter.hpp"

#include <gtest/gtest.h>

#include "../support/adapter_folder.hpp"

namespace adapter_test {

using namespace pocket;
using tiny::MemoryModel;
using tiny::shape;

std::vector<Config> shapes() {
  Config additions = shape(24, 20, 2, 6, 2, 20, 90), tied = shape(50, 70, 2, 3, 3, 10, 90);
  tied.tied = true;
  additions.qkv_bias = additions.o_bias = additions.mlp_bias = additions.qk_norm = true;
  return {shape(64, 96, 2, 4, 2, 16, 90), tied, additions};
}

std::vector<float> all_logits(Session& session, const std::vector<int>& ids, size_t batch) {
  std::vector<float> all;
  const auto keep = [&](size_t, const float* logits) {
    all.insert(all.end(), logits, logits + session.vocab_size());
    return true;
  };
  for (size_t i = 0; i < ids.size(); i += batch)
    EXPECT_TRUE(session.forward(&ids[i], std::min(batch, ids.size() - i), keep)) << session.error;
  return all;
}

LoadedAdapter* open(LoadedAdapter& adapter, const std::vector<LoraSource>& sources, const Model& model) {
  EXPECT_TRUE(adapter.open(sources, model)) << adapter.error;
  return &adapter;
}

TEST(Adapter, HasLogitsOfMergedModel) {
  for (const Config& c : shapes())
    for (const int rank : {1, 16, 21}) {
      const AdapterFolder first(c, rank, 1), second(c, 3, 1000, 2);
      const std::vector<LoraSource> sources = {{first.path(), 1}, {second.path(), -0.5}};
      std::vector<LoraAdapter> merged(2);
      for (size_t i = 0; i < 2; i++) ASSERT_TRUE(merged[i].open(sources[i], c)) << merged[i].error;
      const MemoryModel base(c, Type::f32);
      const MemoryModel expected(tiny::model_bytes(
          tiny::parts_of(c, Type::f32),
          [&](const TensorSpec& spec, int64_t at, int64_t n, float* out, std::string& why) {
            return tiny::random_rows(spec, at, n, out, why) && merge_lora(merged, spec, at, n, out, why);
          }));
      LoadedAdapter adapter;
      Session plain(base.model, {0, 1}), a(expected.model, {0, 1});
      Session b(base.model, {0, 1, KvType::automatic, nullptr, &open(adapter, sources, base.model)->adapter()});
      const std::vector<int> ids = tiny::random_ids(40, c.vocab_size);
      const std::vector<float> wanted = all_logits(a, ids, ids.size()), found = all_logits(b, ids, ids.size()),
                               without = all_logits(plain, ids, ids.size());
      double change = 0;
      for (size_t i = 0; i < wanted.size(); i++) {
        ASSERT_NEAR(found[i], wanted[i], 1e-4 * (1 + std::fabs(wanted[i]))) << i << ", rank " << rank;
        change = std::max(change, std::fabs(double(without[i] - wanted[i])));
      }
      EXPECT_GT(change, 0.05) << "the adapter must matter";
    }
}

// Three sessions in one pass: with one adapter, with another, and without.
TEST(Adapter, SameBitsForEveryKernelThreadCountBatchAndNeighbour) {
  for (const Config& c : shapes())
    for (const Type type : {Type::f32, Type::q8, Type::q4}) {
      const MemoryModel m(c, type);
      const AdapterFolder first(c, 16, 1), second(c, 21, 1000, 3);
      LoadedAdapter one, two;
      const Adapter* adapters[] = {&open(one, {{first.path(), 1}}, m.model)->adapter(),
                                   &open(two, {{first.path(), 0.3}, {second.path(), 1}}, m.model)->adapter(), nullptr};
      const std::vector<int> ids = tiny::random_ids(140, c.vocab_size);
      std::vector<float> expected[3];
      for (int i = 0; i < 3; i++) {
        Session session(m.model, {0, 1, KvType::automatic, "scalar", adapters[i]});
        expected[i] = all_logits(session, ids, 1);
      }
      EXPECT_NE(expected[0], expected[2]);
      EXPECT_NE(expected[1], expected[2]);
      Session plain(m.model, {0, 1});
      EXPECT_EQ(all_logits(plain, ids, 140), expected[2]);
      for (const std::string& kernel : kernel_names())
        for (const int threads : {1, 3}) {
          const SessionOptions options = {0, threads, KvType::automatic, kernel.c_str(), adapters[1]};
          for (const size_t batch : {size_t(1), size_t(40), size_t(140)}) {
            Session session(m.model, options);
            EXPECT_EQ(all_logits(session, ids, batch), expected[1]) << kernel << ", batch " << batch;
          }
          Workspace workspace(m.model, options);
          std::vector<std::unique_ptr<Session>> sessions;
          for (const Adapter* adapter : adapters)
            sessions.push_back(std::make_unique<Session>(
                workspace, SessionOptions{0, threads, KvType::automatic, kernel.c_str(), adapter}));
          for (size_t at = 0, n; at < ids.size(); at += n) {
            n = std::min(ids.size() - at, at == 0 ? size_t(50) : size_t(1 + at % 40));
            std::vector<Step> steps;
            for (auto& session : sessions) steps.push_back({session.get(), &ids[at], n});
            ASSERT_TRUE(workspace.forward(steps.data(), steps.size()));
            for (size_t i = 0; i < 3; i++)
              ASSERT_TRUE(tiny::same_bits(steps[i].logits, &expected[i][(at + n - 1) * size_t(c.vocab_size)],
                                          size_t(c.vocab_size)))
                  << kernel << ", session " << i << ", position " << at + n;
          }
        }
    }
}

TEST(Adapter, ChecksumTellsValuesScalesAndOrderApart) {
  const Config c = shapes()[0];
  const MemoryModel m(c, Type::q8);
  const AdapterFolder first(c, 4, 1), second(c, 4, 2);
  std::vector<uint64_t> all = {0};
  for (const std::vector<LoraSource>& sources : {std::vector<LoraSource>{{first.path(), 1}},
                                                 {{first.path(), 0.5}},
                                                 {{second.path(), 1}},
                                                 {{first.path(), 1}, {second.path(), 1}},
                                                 {{second.path(), 1}, {first.path(), 1}}}) {
    LoadedAdapter adapter;
    all.push_back(open(adapter, sources, m.model)->adapter().checksum);
  }
  std::sort(all.begin(), all.end());
  EXPECT_EQ(std::unique(all.begin(), all.end()), all.end());
}

TEST(Adapter, ForkRequiresTheSameAdapter) {
  const Config c = shapes()[0];
  const MemoryModel m(c, Type::q8);
  const AdapterFolder folder(c, 4, 1);
  LoadedAdapter adapter;
  Session with(m.model, {0, 1, KvType::automatic, nullptr, &open(adapter, {{folder.path(), 1}}, m.model)->adapter()});
  Session without(m.model, {0, 1});
  const int id = 1;
  ASSERT_TRUE(with.forward(&id, 1));
  EXPECT_FALSE(without.fork(with, 1));
  EXPECT_EQ(without.error, "fork: expected the same model, adapter and KvType");
}

TEST(Adapter, RejectsOtherModelsAndTooManyRanks) {
  const Config c = shapes()[0], other = shapes()[1];
  const MemoryModel m(c, Type::q4);
  const AdapterFolder folder(other, 4, 1), large(c, 60, 1);
  LoadedAdapter a, b, d;
  EXPECT_FALSE(a.open({{folder.path(), 1}}, m.model));
  EXPECT_NE(a.error.find("expected shape (4, 96), found (4, 70)"), std::string::npos) << a.error;
  EXPECT_FALSE(b.open(std::vector<LoraSource>(17, {large.path(), 1}), m.model));
  EXPECT_NE(b.error.find("expected at most 1024 ranks in all, found 1088"), std::string::npos) << b.error;
  EXPECT_FALSE(d.open({{large.path(), 1e41}}, m.model));
  EXPECT_NE(d.error.find("expected B times its scale to be finite"), std::string::npos) << d.error;
  ModelParts parts = tiny::parts_of(c, Type::q8);
  parts.provenance = provenance_line(kAdapters, kOfCheckpoint);
  const MemoryModel folded(tiny::model_bytes(parts));
  LoadedAdapter e;
  EXPECT_FALSE(e.open({{large.path(), 1}}, folded.model));
  EXPECT_NE(e.error.find("convert that with the adapter"), std::string::npos) << e.error;
}

}  // namespace adapter_test
