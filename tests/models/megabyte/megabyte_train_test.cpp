// megabyte_train_test.cpp: models/train --arch megabyte as its users run it: a small model of the bytes of simple
// stories, stopped and resumed, run, and what goes wrong.
#include <gtest/gtest.h>

#include "../../support/test_data.hpp"
#include "../../support/train_program.hpp"

namespace {

// A model so small that it learns in a second.
std::vector<std::string> tiny_bytes() {
  return {"--arch",  "megabyte", "--dim", "16", "--local-dim", "12", "--layers",  "1",
          "--patch", "4",        "--ctx", "64", "--batch",     "4",  "--threads", "1"};
}

// As Train.LearnsSimpleStories: 0.03 bits a character are free. It ends its stories itself.
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
  const ProgramResult told = run_program({POCKET_RUN, t.file("m.bin"), "-i", "Once upon", "-t", "0"});
  EXPECT_EQ(told.status, 0) << told.err;
  const std::string end = "were happy.";
  ASSERT_GE(told.out.size(), end.size());
  EXPECT_EQ(told.out.substr(told.out.size() - end.size()), end) << told.out;
  EXPECT_EQ(run_program({POCKET_RUN, t.file("m.bin"), "--selftest"}).status, 0);
  const std::string info = run_program({POCKET_RUN, t.file("m.bin"), "--info"}).out;
  for (const char* words : {"MEGABYTE, patches of 4 bytes", "made for 256 bytes", "trained on stories.txt"})
    EXPECT_NE(info.find(words), std::string::npos) << info;
}

// With another number of threads, with another instruction set, and in two parts; then as another type.
TEST(TrainMegabyte, TheSameModelHoweverItIsRun) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  expect_the_same_model(t, text, tiny_bytes(), {{"--threads", "3"}, {"--kernel", "portable"}});
  ASSERT_EQ(train({text, "-o", t.file("c.bin"), "--resume", "--type", "f32"}).status, 0);
  EXPECT_NE(run_program({POCKET_RUN, t.file("c.bin"), "--info"}).out.find("matrices f32"), std::string::npos);
}

TEST(TrainMegabyte, WrongUsageIsNamed) {
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
      {2, bytes({"--vocab", "512"}), {"--vocab: --arch megabyte learns bytes", "leave it out"}},
      {2, bytes({"-z", "tok.model"}), {"--tokenizer: --arch megabyte learns bytes"}},
      {2, bytes({"--kv-heads", "2"}), {"--kv-heads: --arch megabyte has one for each head"}},
      {2, bytes({"--init", "x.bin"}), {"--init: is for a Llama"}},
      {2, bytes({"--instruct"}), {"--instruct: is for a Llama"}},
      {2, bytes({"--teacher", "x.bin"}), {"--teacher: is for a Llama"}},
      {2, bytes({"--lora-rank", "2"}), {"--lora-rank: is for a Llama"}},
      {2, {text, "-o", o, "--patch", "4"}, {"--patch: is of patches", "expected --arch megabyte too"}},
      {2, {text, "-o", o, "--local-dim", "4"}, {"--local-dim: is of patches"}},
      {2, bytes({"--patch", "0"}), {"--patch: expected a whole number"}},
      {2, bytes({"--patch", "5", "--ctx", "64"}), {"--ctx: expected a multiple of the 5 bytes of a --patch, found 64"}},
      {2, bytes({"--dim", "7"}), {"--dim: expected", "found 7", "16 would do"}},
      {2, bytes({"--dim", "64", "--heads", "6"}), {"--dim: expected", "6 heads, found 64"}},
      {2, {text, "-o", o, "--resume", "--arch", "megabyte"}, {"--arch: with --resume"}},
      {2, {text, "-o", o, "--resume", "--patch", "4"}, {"--patch: with --resume"}},
      {1, bytes({"--ctx", "60000"}), {"s.txt: expected more bytes than --ctx 60000", "longer text"}},
      {1,
       {t.write("nul", std::string("a story\0of nothing", 18)), "-o", o, "--arch", "megabyte"},
       {"nul: ", "no byte 0", "offset 7"}},
      {1, bytes({"--valid", t.file("nul")}), {"nul: ", "no byte 0", "offset 7"}},
      {1, {t.write("bytes", "abc \xff"), "-o", o, "--arch", "megabyte"}, {"bytes: ", "UTF-8", "offset 4"}},
      {1, {t.write("empty", ""), "-o", o, "--arch", "megabyte"}, {"empty: ", "found none"}},
  };
  for (const auto& c : cases) expect_failed(train(c.args), c.status, c.words);
  EXPECT_EQ(t.list(), "bytes\nempty\nnul\ns.txt\n");
}

// A Llama's checkpoint and one of bytes say which they are; neither needs to be told.
TEST(TrainMegabyte, ACheckpointKnowsItsArchitecture) {
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

}  // namespace
