// megabyte_train_test.cpp: models/train --arch megabyte as a program: small models of simple stories, interrupted and
// resumed runs, and errors.
#include <gtest/gtest.h>

#include "../../support/test_data.hpp"
#include "../../support/train_program.hpp"

namespace megabyte_train_test {

// Options of a model that trains in a second.
std::vector<std::string> tiny_bytes() {
  return {"--arch",  "megabyte", "--dim", "16", "--local-dim", "12", "--layers",  "1",
          "--patch", "4",        "--ctx", "64", "--batch",     "4",  "--threads", "1"};
}

// As in Train.LearnsSimpleStories, 0.03 bits per character are random. The model ends its stories itself.
TEST(TrainMegabyte, LearnsSimpleStories) {
  const TemporaryFolder t;
  const std::string text = t.write("stories.txt", pattern_stories(600));
  const ProgramResult r = train({text, "-o", t.file("m.bin"), "--arch", "megabyte", "--dim", "64", "--layers", "2",
                                 "--steps", "600", "--batch", "8", "--lr", "0.003", "--ctx", "256", "--type", "f32"});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_LT(last_bits(r.err), 0.06) << r.err;
  EXPECT_NE(r.err.find("--arch megabyte --patch 4 --dim 64 --local-dim 48 --layers 2 --local-layers 2 --heads 4"),
            std::string::npos)
      << r.err;
  EXPECT_NE(r.out.find("[step 600] Once upon a time there was a child named "), std::string::npos) << r.out;
  const ProgramResult output = run_program({POCKET_RUN, t.file("m.bin"), "-i", "Once upon", "-t", "0"});
  EXPECT_EQ(output.status, 0) << output.err;
  const std::string end = "were happy.";
  ASSERT_GE(output.out.size(), end.size());
  EXPECT_EQ(output.out.substr(output.out.size() - end.size()), end) << output.out;
  EXPECT_EQ(run_program({POCKET_RUN, t.file("m.bin"), "--selftest"}).status, 0);
  const std::string info = run_program({POCKET_RUN, t.file("m.bin"), "--info"}).out;
  for (const char* words : {"MEGABYTE, patches of 4 bytes", "trained for 256 bytes", "trained on stories.txt"})
    EXPECT_NE(info.find(words), std::string::npos) << info;
}

TEST(TrainMegabyte, SameModelForAnyThreadsAndKernelAndWhenResumed) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  expect_same_model(t, text, tiny_bytes(), {{"--threads", "3"}, {"--kernel", "portable"}});
  ASSERT_EQ(train({text, "-o", t.file("c.bin"), "--resume", "--type", "f32"}).status, 0);
  EXPECT_NE(run_program({POCKET_RUN, t.file("c.bin"), "--info"}).out.find("matrices f32"), std::string::npos);
}

TEST(TrainMegabyte, ReportsWrongUsage) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60)), o = t.file("o.bin");
  const auto bytes = [&](const std::vector<std::string>& more) {
    return std::vector<std::string>{text, "-o", o, "--arch", "megabyte"} + more;
  };
  const struct {
    int status;
    std::vector<std::string> args, words;
  } cases[] = {
      {2, {text, "-o", o, "--arch", "gpt"}, {"--arch: expected llama or megabyte, found 'gpt'"}},
      {2, bytes({"--vocab", "512"}), {"--vocab: is not valid with --arch megabyte, which has no vocabulary"}},
      {2, bytes({"-z", "tok.model"}), {"--tokenizer: is not valid with --arch megabyte, which has no vocabulary"}},
      {2,
       bytes({"--kv-heads", "2"}),
       {"--kv-heads: is not valid with --arch megabyte, which has one key/value head per query head"}},
      {2, bytes({"--init", "x.bin"}), {"--init: is not valid with --arch megabyte"}},
      {2, bytes({"--instruct"}), {"--instruct: is not valid with --arch megabyte"}},
      {2, bytes({"--teacher", "x.bin"}), {"--teacher: is not valid with --arch megabyte"}},
      {2, bytes({"--lora-rank", "2"}), {"--lora-rank: is not valid with --arch megabyte"}},
      {2, {text, "-o", o, "--patch", "4"}, {"--patch: is only valid with --arch megabyte"}},
      {2, {text, "-o", o, "--local-dim", "4"}, {"--local-dim: is only valid with --arch megabyte"}},
      {2, bytes({"--patch", "0"}), {"--patch: expected a whole number"}},
      {2, bytes({"--patch", "5", "--ctx", "64"}), {"--ctx: expected a multiple of the patch size, 5, found 64"}},
      {2, bytes({"--dim", "7"}), {"--dim: expected", "found 7", "try 16"}},
      {2, bytes({"--dim", "64", "--heads", "6"}), {"--dim: expected", "6 heads, found 64"}},
      {2, {text, "-o", o, "--resume", "--arch", "megabyte"}, {"--arch: is not valid with --resume"}},
      {2, {text, "-o", o, "--resume", "--patch", "4"}, {"--patch: is not valid with --resume"}},
      {1, bytes({"--ctx", "60000"}), {"s.txt: expected more bytes than --ctx 60000", "longer text"}},
      {1,
       {t.write("nul", std::string("a story\0of nothing", 18)), "-o", o, "--arch", "megabyte"},
       {"nul: ", "byte 0 is not supported by --arch megabyte", "offset 7"}},
      {1, bytes({"--valid", t.file("nul")}), {"nul: ", "byte 0 is not supported by --arch megabyte", "offset 7"}},
      {1, {t.write("bytes", "abc \xff"), "-o", o, "--arch", "megabyte"}, {"bytes: ", "UTF-8", "offset 4"}},
      {1, {t.write("empty", ""), "-o", o, "--arch", "megabyte"}, {"empty: ", "found none"}},
  };
  for (const auto& c : cases) expect_failed(train(c.args), c.status, c.words);
  EXPECT_EQ(t.list(), "bytes\nempty\nnul\ns.txt\n");
}

TEST(TrainMegabyte, CheckpointStoresArchitecture) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  ASSERT_EQ(train(tiny_bytes() + std::vector<std::string>{text, "--steps", "4", "-o", t.file("m.bin")}).status, 0);
  ASSERT_EQ(train(tiny_shape() + std::vector<std::string>{text, "--steps", "4", "-o", t.file("l.bin")}).status, 0);
  for (const char* name : {"m", "l"}) {
    const std::string made = t.file(name + std::string(".bin")), again = t.file("again.bin");
    ASSERT_EQ(train({text, "-o", again, "--resume", "--checkpoint", made + ".checkpoint"}).status, 0);
    EXPECT_TRUE(read_file(again) == read_file(made)) << name;
  }
}

}  // namespace megabyte_train_test
