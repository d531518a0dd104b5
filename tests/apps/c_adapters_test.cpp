// c_adapters_test.cpp: adapters by the C interface: the logits of the engine's sessions and of ./run --lora, bit for bit;
// sessions with different adapters over one model; handles that are freed in any order; wrong arguments.
#include <pocketllama.h>

#include <gtest/gtest.h>

#include <filesystem>
#include <limits>
#include <thread>

#include "../../export/adapter.hpp"
#include "../../export/random_model.hpp"
#include "../support/adapter_folder.hpp"
#include "../support/program.hpp"

namespace c_adapters_test {

using namespace pocket;

const std::vector<int32_t> kIds = {1, 5, 9, 30, 2, 77, 12, 3};

// A small model with random weights, and two adapters of it.
class CAdapters : public testing::Test {
 protected:
  void SetUp() override {
    ModelParts parts = tiny::parts_of(config, Type::q8);
    parts.tokenizer = Tokenizer::to_blob(random_vocabulary(config.vocab_size));
    folder.write("m.bin", tiny::text_of(tiny::model_bytes(parts)));
    model = pocket_model_open(folder.file("m.bin").c_str(), 0);
    ASSERT_TRUE(model) << pocket_error();
    one = pocket_adapter_open(model, first.path().c_str());
    two = pocket_adapter_open(model, second.path().c_str());
    ASSERT_TRUE(one && two) << pocket_error();
  }
  void TearDown() override {
    pocket_adapter_free(one);
    pocket_adapter_free(two);
    pocket_model_free(model);
  }

  pocket_session* start(const std::vector<pocket_scaled_adapter>& adapters) const {
    const pocket_options options = {0, 1, 0};
    return pocket_session_new_with_adapters(model, &options, adapters.data(), int(adapters.size()));
  }
  // The logits after kIds, of a session that it frees.
  std::vector<float> logits(pocket_session* session) const {
    std::vector<float> all;
    if (pocket_append(session, kIds.data(), int(kIds.size())) > 0)
      if (const float* found = pocket_logits(session)) all.assign(found, found + config.vocab_size);
    EXPECT_FALSE(all.empty()) << pocket_error();
    pocket_session_free(session);
    return all;
  }
  std::vector<float> logits(const std::vector<pocket_scaled_adapter>& adapters) const {
    return logits(start(adapters));
  }
  void expect_refused(const std::vector<pocket_scaled_adapter>& adapters, const std::string& why) const {
    EXPECT_EQ(start(adapters), nullptr);
    EXPECT_NE(std::string(pocket_error()).find(why), std::string::npos) << pocket_error();
  }
  void expect_not_opened(const std::string& path, const std::string& why) const {
    EXPECT_EQ(pocket_adapter_open(model, path.c_str()), nullptr);
    EXPECT_NE(std::string(pocket_error()).find(why), std::string::npos) << pocket_error();
  }

  const Config config = tiny::shape(64, 96, 2, 4, 2, 16, 300);
  const TemporaryFolder folder;
  const AdapterFolder first{config, 16, 1}, second{config, 21, 1000, 3};
  pocket_model* model = nullptr;
  pocket_adapter *one = nullptr, *two = nullptr;
};

TEST_F(CAdapters, SameLogitsAsSessionOfTheEngineAndRun) {
  Model engine;
  ASSERT_TRUE(engine.open(folder.file("m.bin").c_str())) << engine.error;
  const struct {
    std::vector<LoraSource> sources;
    std::vector<pocket_scaled_adapter> adapters;
    std::vector<std::string> options;
  } cases[] = {
      {{{first.path(), 1}}, {{one, 1}}, {"--lora", first.path()}},
      {{{first.path(), -0.3}}, {{one, -0.3}}, {"--lora", first.path() + ":-0.3"}},
      {{{first.path(), 0.3}, {second.path(), 1.7}},
       {{one, 0.3}, {two, 1.7}},
       {"--lora", first.path() + ":0.3", "--lora", second.path() + ":1.7"}},
      {{{second.path(), 1}, {second.path(), 0.1}},
       {{two, 1}, {two, 0.1}},
       {"--lora", second.path(), "--lora", second.path() + ":0.1"}},
  };
  std::vector<std::vector<float>> all = {logits(pocket_session_new(model, nullptr)), logits({{two, 1}})};
  EXPECT_EQ(logits({{one, 0}}), all[0]);
  for (const auto& c : cases) {
    const std::vector<float> found = logits(c.adapters);
    LoadedAdapter adapter;
    ASSERT_TRUE(adapter.open(c.sources, engine)) << adapter.error;
    Session session(engine, {0, 1, KvType::automatic, nullptr, &adapter.adapter()});
    const std::vector<int> ids(kIds.begin(), kIds.end());
    const float* expected = session.forward(ids.data(), ids.size());
    ASSERT_TRUE(expected) << session.error;
    ASSERT_EQ(found.size(), size_t(config.vocab_size));
    EXPECT_TRUE(tiny::same_bits(expected, found.data(), found.size()));
    std::string list;
    for (const int id : ids) list += (list.empty() ? "" : ",") + std::to_string(id);
    std::vector<std::string> command = {POCKET_RUN, folder.file("m.bin"), "--ids", list, "--logits", folder.file("l")};
    command.insert(command.end(), c.options.begin(), c.options.end());
    const ProgramResult r = run_program(command);
    ASSERT_EQ(r.status, 0) << r.err;
    const std::string bytes(reinterpret_cast<const char*>(found.data()), found.size() * sizeof(float)),
        written = read_file(folder.file("l"));
    ASSERT_EQ(written.size(), kIds.size() * bytes.size());
    EXPECT_TRUE(written.substr(written.size() - bytes.size()) == bytes);
    for (const std::vector<float>& other : all) EXPECT_NE(found, other);
    all.push_back(found);
  }
}

TEST_F(CAdapters, SessionsKeepTheirOwnAdaptersWhenHandlesAreFreed) {
  const std::vector<float> plain = logits(start({})), with_one = logits({{one, 0.5}}),
                           with_both = logits({{one, 1}, {two, 2}});
  pocket_session* sessions[] = {start({}), start({{one, 0.5}}), start({{one, 1}, {two, 2}})};
  for (pocket_session* s : sessions) ASSERT_EQ(pocket_append(s, kIds.data(), 3), 3) << pocket_error();
  std::filesystem::remove_all(first.path());  // the files are open
  const std::vector<float> another = logits({{one, 0.25}});
  EXPECT_NE(another, with_one);
  for (pocket_adapter** adapter : {&one, &two}) pocket_adapter_free(std::exchange(*adapter, nullptr));
  pocket_model_free(std::exchange(model, nullptr));
  for (int i = 0; i < 3; i++) {
    pocket_session* fork = pocket_session_fork(sessions[i]);
    ASSERT_TRUE(fork) << pocket_error();
    for (pocket_session* s : {sessions[i], fork}) {
      ASSERT_EQ(pocket_rewind(s, 0), 0);
      EXPECT_EQ(logits(s), (i == 0 ? plain : i == 1 ? with_one : with_both)) << i;  // frees s
    }
  }
}

// Without a session. Sanitizers report an access to freed memory.
TEST_F(CAdapters, AdaptersMayBeFreedAfterTheirModel) {
  pocket_model_free(std::exchange(model, nullptr));
  pocket_adapter_free(std::exchange(one, nullptr));
}

TEST_F(CAdapters, ThreadsShareAnAdapter) {
  const double scales[] = {1, 0.5, 1, 2};
  std::vector<float> expected[4], found[4];
  for (int i = 0; i < 4; i++) expected[i] = logits({{one, scales[i]}});
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; i++)
    threads.emplace_back([&, i] {
      for (int k = 0; k < 5; k++) found[i] = logits({{one, scales[i]}});
    });
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 4; i++) EXPECT_EQ(found[i], expected[i]) << i;
}

TEST_F(CAdapters, RejectsFoldersThatAreNoAdapterOfTheModel) {
  const TemporaryFolder t;
  expect_not_opened(t.file("none"), "none: expected the folder of a LoRA adapter");
  expect_not_opened(t.path(), "expected adapter_config.json, found none");
  const Config wide = tiny::shape(64, 70, 2, 4, 2, 16, 300);
  const AdapterFolder other(wide, 4, 1), large(config, 60, 1);
  expect_not_opened(other.path(), "expected shape (4, 96), found (4, 70)");
  const std::string weights = other.path() + "/adapter_model.safetensors", bytes = read_file(weights);
  std::filesystem::resize_file(weights, bytes.size() / 2);
  expect_not_opened(other.path(), "adapter_model.safetensors");
  EXPECT_EQ(pocket_adapter_open(model, nullptr), nullptr);
  EXPECT_STREQ(pocket_error(), "folder: expected the name of a folder, found NULL");
  pocket_adapter* sixty = pocket_adapter_open(model, large.path().c_str());
  ASSERT_TRUE(sixty) << pocket_error();
  expect_refused(std::vector<pocket_scaled_adapter>(17, {sixty, 1}), "expected at most 1024 ranks in all, found 1088");
  pocket_adapter_free(sixty);
}

TEST_F(CAdapters, RejectsWrongArguments) {
  using Limits = std::numeric_limits<double>;
  for (const double scale : {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity()})
    expect_refused({{two, 1}, {one, scale}}, "adapters[1]: scale: expected a finite number, found ");
  expect_refused({{one, 1e308}}, "expected B times its scale to be finite");
  pocket_model* same_file = pocket_model_open(folder.file("m.bin").c_str(), 0);
  pocket_adapter* of_another = pocket_adapter_open(same_file, first.path().c_str());
  ASSERT_TRUE(of_another) << pocket_error();
  expect_refused({{of_another, 1}}, "adapters[0]: expected an adapter of this model, found another's");
  pocket_adapter_free(of_another);
  pocket_model_free(same_file);

  // Null handles keep the reason why they are null.
  EXPECT_EQ(pocket_adapter_open(model, "no such folder"), nullptr);
  expect_refused({{one, 1}, {nullptr, 1}}, "no such folder: expected the folder");
  EXPECT_EQ(pocket_adapter_open(nullptr, first.path().c_str()), nullptr);
  EXPECT_EQ(pocket_session_new_with_adapters(model, nullptr, nullptr, 1), nullptr);
  const pocket_scaled_adapter adapter = {one, 1};
  EXPECT_EQ(pocket_session_new_with_adapters(nullptr, nullptr, &adapter, 1), nullptr);
  EXPECT_NE(std::string(pocket_error()).find("no such folder"), std::string::npos) << pocket_error();
  pocket_adapter_free(nullptr);
  const std::vector<float> plain = logits(start({}));
  for (const int n : {0, -5}) EXPECT_EQ(logits(pocket_session_new_with_adapters(model, nullptr, nullptr, n)), plain);
}

}  // namespace c_adapters_test
