// library_test.cpp: the engine as a library: two source files that include it, a session per thread on one model, the
// README's program as it is printed there, and a build in which the compiler may fuse multiplications and additions.
#define POCKET_NO_MAIN
#include "../../run.cpp"

#include <gtest/gtest.h>

#include <thread>
#include <typeinfo>

#include "../../tokenizer.hpp"
#include "../support/program.hpp"
#include "../support/test_data.hpp"
#include "../support/tiny_model.hpp"

std::string best_kernel_of_second_file();  // library_second.cpp
int next_token_of_second_file(const pocket::Model& model, const std::vector<int>& ids);
std::string type_of_wide_file();  // library_wide.cpp
std::string tokenizer_type_of_wide_file();

namespace library_test {

using namespace pocket;

int next_token(const Model& model, const std::vector<int>& ids) {
  Session session(model, {0, 2, KvType::automatic, nullptr});
  Sampler pick({0.f});
  const float* logits = session.forward(ids.data(), ids.size());
  EXPECT_NE(logits, nullptr) << session.error;
  return logits ? pick(logits, model.config.vocab_size) : -1;
}

TEST(Library, TwoSourceFilesMayIncludeTheEngine) {
  const tiny::MemoryModel m(tiny::small_config(), Type::q4);
  EXPECT_EQ(best_kernel_of_second_file(), kernel_names().front());
  for (const int n : {1, 5, 70}) {
    const std::vector<int> ids = tiny::random_ids(n, m.model.config.vocab_size, uint64_t(n));
    EXPECT_EQ(next_token_of_second_file(m.model, ids), next_token(m.model, ids));
  }
}

#if defined(__x86_64__)
// library_wide.cpp is compiled for AVX-512: the linker must not take its copy of an inline function for this file.
TEST(Library, FilesCompiledForOtherCpusShareNoFunctions) {
  EXPECT_NE(std::string(typeid(Model).name()), type_of_wide_file());
  EXPECT_NE(std::string(typeid(Tokenizer).name()), tokenizer_type_of_wide_file());
}
#endif

TEST(Library, SessionsOnSeveralThreadsShareOneModel) {
  const tiny::MemoryModel m(tiny::small_config(), Type::q4);
  constexpr int kThreads = 4;
  std::vector<int> text[kThreads], expected[kThreads];
  const auto generate_text = [&](int seed, std::vector<int>& out) {
    Session session(m.model, {0, 1 + seed % 2, KvType::automatic, nullptr});
    Sampler pick({1.f, 0.95f, uint64_t(seed)});
    return generate(session, pick, tiny::random_ids(20, 100, uint64_t(seed)), 40, {}, [&](int id) {
      out.push_back(id);
      return true;
    });
  };
  for (int i = 0; i < kThreads; i++) EXPECT_TRUE(generate_text(i, expected[i]));
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; i++) threads.emplace_back([&, i] { generate_text(i, text[i]); });
  for (std::thread& t : threads) t.join();
  for (int i = 0; i < kThreads; i++) {
    EXPECT_EQ(text[i].size(), 40u);
    EXPECT_EQ(text[i], expected[i]) << "seed " << i;
  }
}

std::string random_model(const TemporaryFolder& folder) {
  const ProgramResult r = run_program({POCKET_CONVERT, "--random", "tiny", "-o", folder.file("model.bin")});
  EXPECT_EQ(r.status, 0) << r.err;
  return folder.file("model.bin");
}

// The README's program ignores stop ids, so its text may be longer.
void expect_same_text_as_run(const std::string& model) {
  const ProgramResult story = run_program({POCKET_STORY, model});
  const ProgramResult run = run_program({POCKET_RUN, model, "-i", "Once upon a time", "-n", "100", "-s", "5", "-q"});
  EXPECT_EQ(story.status, 0) << story.out << story.err;
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_GT(run.out.size(), 50u);
  EXPECT_EQ(story.out.substr(0, run.out.size()), run.out);
  EXPECT_EQ(story.err, "");
}

TEST(ReadmeProgram, PrintsTheTextOfRun) {
  const TemporaryFolder folder;
  expect_same_text_as_run(random_model(folder));
}

TEST(ReadmeProgram, PrintsAStory) {
  NEED_DATA(checkpoint, "stories260K.bin");
  NEED_DATA(tokenizer, "tok512.model");
  const TemporaryFolder folder;
  ASSERT_EQ(run_program({POCKET_CONVERT, checkpoint, "-z", tokenizer, "-o", folder.file("s.bin")}).status, 0);
  expect_same_text_as_run(folder.file("s.bin"));
}

TEST(ReadmeProgram, ReportsErrors) {
  const TemporaryFolder folder;
  const ProgramResult missing = run_program({POCKET_STORY, folder.file("none.bin")});
  EXPECT_EQ(missing.status, 1);
  EXPECT_EQ(missing.out, folder.file("none.bin") + ": No such file or directory\n");
  ProgramOptions in_folder;
  in_folder.folder = folder.path();
  const ProgramResult by_default = run_program({POCKET_STORY}, in_folder);
  EXPECT_EQ(by_default.out, "model.bin: No such file or directory\n");
}

#if defined(__GNUC__) && !defined(__clang__)
// The compiler defines a macro for each of these; clang does not, so that there run.cpp is compiled without them.
TEST(Flags, ThatChangeFloatResultsAreRefused) {
  const auto compiles = [](std::vector<std::string> flags) {
    flags.insert(flags.begin(), {"/usr/bin/env", "g++", "-std=c++17", "-E", "-o", "/dev/null"});
    flags.push_back(POCKET_SOURCE_DIR "/run.cpp");
    return run_program(flags).status == 0;
  };
  EXPECT_TRUE(compiles({"-O3"}));
  for (const char* flag :
       {"-ffast-math", "-funsafe-math-optimizations", "-freciprocal-math", "-ffinite-math-only", "-fno-signed-zeros"})
    EXPECT_FALSE(compiles({flag})) << flag;
  EXPECT_FALSE(compiles({"-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"}));
  EXPECT_FALSE(compiles({"-U__BYTE_ORDER__", "-D__BYTE_ORDER__=4321"}));  // a big-endian machine
#if defined(__x86_64__)
  EXPECT_FALSE(compiles({"-mfpmath=387"}));  // the default of 32-bit x86
#endif
}
#endif

// fused_test is session_test.cpp compiled with -ffp-contract=fast -march=native.
TEST(FusedBuild, LogitsAreTheSameBits) {
  const ProgramResult r = run_program({POCKET_FUSED_TEST, "--gtest_filter=SameBits.*", "--gtest_brief=1"});
  EXPECT_EQ(r.status, 0) << r.out;
  EXPECT_NE(r.out.find("[  PASSED  ] 6 tests."), std::string::npos) << r.out;
}

}  // namespace library_test
