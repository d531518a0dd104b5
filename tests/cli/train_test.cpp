// train_test.cpp: models/train as its users run it: a small model of simple stories, stopped and resumed, and what goes
// wrong.
#include <gtest/gtest.h>

#include <regex>

#include "../test_data.hpp"
#include "../tiny_model.hpp"
#include "program.hpp"

namespace {

ProgramResult train(std::vector<std::string> args, const ProgramOptions& options = {}) {
  args.insert(args.begin(), POCKET_TRAIN);
  return run_program(args, options);
}

// Stories of one pattern: whoever reads some knows what the next may say.
std::string pattern_stories(int count) {
  tiny::Random random(1);
  const auto one_of = [&](std::initializer_list<const char*> all) {
    return std::string(all.begin()[random.below(int(all.size()))]);
  };
  std::string text;
  for (int i = 0; i < count; i++) {
    const std::string name = one_of({"Tom", "Lily", "Ben", "Anna", "Max", "Sue"});
    const std::string what = one_of({"ball", "kite", "cake", "boat", "drum", "book"});
    const std::string friend_name = one_of({"dog", "cat", "bird", "frog"});
    text += "Once upon a time there was a child named " + name + ". " + name + " had a big red " + what +
            ". One day the " + what + " was lost. \"Where is my " + what + "?\" said " + name + ". A little " +
            friend_name + " came and said, \"I found it!\" " + name + " and the " + friend_name +
            " were happy.\n<|endoftext|>\n";
  }
  return text;
}

// A model so small that it learns in a second.
std::vector<std::string> tiny_shape() {
  return {"--dim", "16", "--layers", "1", "--ctx", "32", "--batch", "4", "--vocab", "320", "--threads", "1"};
}

std::vector<std::string> operator+(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

double last_bits(const std::string& err) {
  const std::regex pattern("validation ([0-9.]+) nats a token, ([0-9.]+) bits a character");
  double bits = 1e9;
  for (auto it = std::sregex_iterator(err.begin(), err.end(), pattern); it != std::sregex_iterator(); ++it)
    bits = std::stod((*it)[2]);
  return bits;
}

// The 2.6 + 2.6 + 2 bits that a story chooses freely are 0.03 bits for each of its 230 characters.
TEST(Train, LearnsSimpleStories) {
  const TemporaryFolder t;
  const std::string text = t.write("stories.txt", pattern_stories(600));
  const auto start = std::chrono::steady_clock::now();
  const ProgramResult r =
      train({text, "-o", t.file("story.bin"), "--steps", "150", "--batch", "8", "--ctx", "128", "--type", "f32"});
  ASSERT_EQ(r.status, 0) << r.err;
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  RecordProperty("seconds", std::to_string(seconds));
  EXPECT_LT(last_bits(r.err), 0.06) << r.err;
  EXPECT_NE(r.out.find("[step 150] Once upon a time there was a child named "), std::string::npos) << r.out;
  const ProgramResult told = run_program({POCKET_RUN, t.file("story.bin"), "-i", "Once upon", "-t", "0", "-n", "120"});
  EXPECT_EQ(told.status, 0) << told.err;
  EXPECT_NE(told.out.find("were happy."), std::string::npos) << told.out;
  EXPECT_EQ(run_program({POCKET_RUN, t.file("story.bin"), "--selftest"}).status, 0);
  EXPECT_NE(run_program({POCKET_RUN, t.file("story.bin"), "--info"}).out.find("trained on stories.txt"),
            std::string::npos);
}

// With another number of threads, with another instruction set, and in two parts.
TEST(Train, TheSameModelHoweverItIsRun) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  const auto args = tiny_shape() + std::vector<std::string>{text, "--steps", "40", "--every", "10", "-o"};
  ASSERT_EQ(train(args + std::vector<std::string>{t.file("a.bin")}).status, 0);
  const std::string expected = read_file(t.file("a.bin"));
  const std::vector<std::vector<std::string>> ways = {{"--threads", "2"}, {"--threads", "5"}, {"--kernel", "portable"}};
  for (const auto& way : ways) {
    ASSERT_EQ(train(args + std::vector<std::string>{t.file("b.bin")} + way).status, 0);
    EXPECT_TRUE(read_file(t.file("b.bin")) == expected) << way[1];
  }
  ProgramOptions stop;
  stop.interrupt_after_output = "[step 20]";
  const ProgramResult stopped = train(args + std::vector<std::string>{t.file("c.bin")}, stop);
  ASSERT_EQ(stopped.status, 130) << stopped.err;
  EXPECT_NE(stopped.err.find("--resume"), std::string::npos) << stopped.err;
  EXPECT_EQ(t.list().find("c.bin\n"), std::string::npos) << t.list();
  const ProgramResult r = train({text, "-o", t.file("c.bin"), "--resume", "--threads", "2"});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("going on after step "), std::string::npos);
  EXPECT_TRUE(read_file(t.file("c.bin")) == expected);
  for (const char* name : {"c.bin.checkpoint\n", "c.loss.csv\n", "c.loss.svg\n"})
    EXPECT_NE(t.list().find(name), std::string::npos) << t.list();
  EXPECT_EQ(t.list().find(".tmp"), std::string::npos) << t.list();
}

// When it is done the checkpoint still gives the model in another type, and --init trains on.
TEST(Train, GoesOnFromWhatIsDone) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60)), more = t.write("more.txt", pattern_stories(90));
  ASSERT_EQ(train(tiny_shape() + std::vector<std::string>{text, "--steps", "60", "-o", t.file("a.bin")}).status, 0);
  const ProgramResult other =
      train({text, "-o", t.file("f.bin"), "--checkpoint", t.file("a.bin.checkpoint"), "--resume", "--type", "f32"});
  ASSERT_EQ(other.status, 0) << other.err;
  const ProgramResult tuned =
      train({more, "-o", t.file("g.bin"), "--init", t.file("f.bin"), "--ctx", "32", "--steps", "30"});
  ASSERT_EQ(tuned.status, 0) << tuned.err;
  EXPECT_LT(last_bits(tuned.err), last_bits(other.err));
  expect_failed(train({more, "-o", t.file("h.bin"), "--init", t.file("a.bin"), "--ctx", "32"}), 1,
                {"a.bin: expected a model of type f32", "--type f32"});
  expect_failed(train({more, "-o", t.file("h.bin"), "--init", t.file("f.bin"), "--ctx", "64"}), 2,
                {"--ctx: expected at most the model's 32, found 64"});
  expect_failed(train({more, "-o", t.file("h.bin"), "--resume", "--checkpoint", t.file("a.bin.checkpoint")}), 1,
                {"expected the texts that the training began with"});
}

// The model says that it knows the form, so that run hands it on.
TEST(Train, InstructionsAreWrittenIntoTheModel) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  const ProgramResult r =
      train(tiny_shape() + std::vector<std::string>{text, "--steps", "30", "--instruct", "-o", t.file("a.bin")});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("Words: dog, cake\nStory:"), std::string::npos) << r.out;
  const ProgramResult told = run_program({POCKET_RUN, t.file("a.bin"), "--words", "ball", "-n", "10"});
  EXPECT_EQ(told.status, 0) << told.err;
  EXPECT_EQ(train({text, "-o", t.file("a.bin"), "--resume"}).status, 0)
      << "the same stories are asked for in the same ways";
}

TEST(Train, MinutesPlanSteps) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  const auto start = std::chrono::steady_clock::now();
  const ProgramResult r =
      train(tiny_shape() + std::vector<std::string>{text, "-o", t.file("a.bin"), "--minutes", "0.12"});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("plan: --steps "), std::string::npos) << r.err;
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), 60);
}

TEST(Train, HelpTeaches) {
  const ProgramResult r = train({"--help"});
  EXPECT_EQ(r.status, 0);
  for (const char* word : {"<|endoftext|>", "-o", "--minutes", "--resume", "--init", "--valid", "--dim"})
    EXPECT_NE(r.out.find(word), std::string::npos) << word;
}

TEST(Train, WrongUsageIsNamed) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60)), o = t.file("o.bin");
  const struct {
    int status;
    std::vector<std::string> args, words;
  } cases[] = {
      {2, {}, {"expected a text"}},
      {2, {text}, {"-o OUT.bin"}},
      {2, {text, "-o", o, "--type", "q5"}, {"--type: expected q8, f32 or q4, found 'q5'"}},
      {2, {text, "-o", o, "--steps", "0"}, {"--steps: expected a whole number"}},
      {2, {text, "-o", o, "--steps", "5", "--minutes", "1"}, {"--steps, --minutes: expected one"}},
      {2, {text, "-o", o, "--stepz", "5"}, {"did you mean --steps"}},
      {2, {text, "-o", o, "--resume", "--lr", "1"}, {"--lr: with --resume"}},
      {2, {text, "-o", o, "--init", "x", "--dim", "64"}, {"--dim: with --init"}},
      {2, {text, "-o", o, "--kernel", "mmx"}, {"--kernel", "mmx"}},
      {2, {text, "-o", o, "--dim", "7", "--vocab", "320"}, {"--dim: expected", "found 7", "16 would do"}},
      {2, {text, "-o", o, "--dim", "64", "--heads", "6", "--vocab", "320"}, {"--dim: expected", "6 heads, found 64"}},
      {2, {text, "-o", o, "--heads", "4", "--kv-heads", "3", "--vocab", "320"}, {"--kv-heads: expected"}},
      {1, {text, "-o", o, "--vocab", "100"}, {"s.txt: vocabulary: expected at least"}},
      {1,
       {text, "-o", o, "--vocab", "320", "--ctx", "60000"},
       {"s.txt: expected more tokens than --ctx 60000", "longer text"}},
      {1, {text, "-o", o, "-z", text}, {"s.txt: "}},
      {1, {t.file("none.txt"), "-o", o}, {"none.txt: No such file"}},
      {1, {t.write("empty", ""), "-o", o}, {"empty: ", "expected stories", "found none"}},
      {1, {t.write("white", " \n<|endoftext|>\n"), "-o", o}, {"white: ", "found none"}},
      {1, {t.write("bytes", "abc \xff"), "-o", o}, {"bytes: ", "UTF-8", "offset 4"}},
      {1, {text, "-o", o, "--valid", t.file("empty")}, {"empty: ", "found none"}},
      {1, {text, "-o", o, "--resume"}, {"o.bin.checkpoint: No such file"}},
      {1, {text, "-o", o, "--resume", "--checkpoint", text}, {"s.txt: expected a checkpoint of models/train"}},
      {1, {text, "-o", o, "--init", text}, {"s.txt"}},
  };
  for (const auto& c : cases) expect_failed(train(c.args), c.status, c.words);
  EXPECT_EQ(t.list(), "bytes\nempty\ns.txt\nwhite\n");
}

TEST(Train, AFolderThatIsNotThereShowsAtOnce) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  expect_failed(train(tiny_shape() + std::vector<std::string>{text, "-o", t.file("no/o.bin"), "--steps", "1000000"}), 1,
                {"no/o.bin", "No such file"});
}

TEST(Train, ADiskThatIsFullLosesNothing) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  const auto args = tiny_shape() + std::vector<std::string>{text, "--steps", "10", "-o", t.file("o.bin")};
  ASSERT_EQ(train(args).status, 0);
  const std::string model = read_file(t.file("o.bin")), checkpoint = read_file(t.file("o.bin.checkpoint"));
  ProgramOptions small;
  small.largest_file = 30000;
  expect_failed(train(args, small), 1, {"o.bin.checkpoint", "File too large"});
  small.largest_file = checkpoint.size() / 8;  // the model alone does not fit
  expect_failed(train({text, "-o", t.file("o.bin"), "--resume", "--type", "f32"}, small), 1,
                {"o.bin: ", "File too large", "nothing is lost"});
  EXPECT_EQ(t.list(), "o.bin\no.bin.checkpoint\no.loss.csv\no.loss.svg\ns.txt\n");
  EXPECT_TRUE(read_file(t.file("o.bin")) == model && read_file(t.file("o.bin.checkpoint")) == checkpoint);
}

TEST(Train, ALossThatIsNoNumberEndsIt) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  const ProgramResult r =
      train(tiny_shape() + std::vector<std::string>{text, "--steps", "50", "-o", t.file("o.bin"), "--lr", "1e30"});
  EXPECT_EQ(r.status, 1);
  for (const char* word : {"the loss is no finite number", "o.bin.checkpoint", "--lr below"})
    EXPECT_NE(r.err.find(word), std::string::npos) << r.err;
  EXPECT_EQ(t.list(), "o.bin.checkpoint\no.loss.csv\ns.txt\n");
}

}  // namespace
