// train_test.cpp: models/train as a program: small models of simple stories, interrupted and resumed runs, adapters,
// distillation, and errors.
#include <gtest/gtest.h>

#include "../../export/program.hpp"
#include "../../models/train_texts.hpp"
#include "../../models/training_state.hpp"
#include "../support/test_data.hpp"
#include "../support/train_program.hpp"

namespace train_test {

using namespace pocket;

// The random choices of a story, 2.6 + 2.6 + 2 bits, are 0.03 bits for each of its 230 characters.
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
  const ProgramResult output =
      run_program({POCKET_RUN, t.file("story.bin"), "-i", "Once upon", "-t", "0", "-n", "120"});
  EXPECT_EQ(output.status, 0) << output.err;
  EXPECT_NE(output.out.find("were happy."), std::string::npos) << output.out;
  EXPECT_EQ(run_program({POCKET_RUN, t.file("story.bin"), "--selftest"}).status, 0);
  EXPECT_NE(run_program({POCKET_RUN, t.file("story.bin"), "--info"}).out.find("trained on stories.txt"),
            std::string::npos);
}

TEST(Train, SameModelForAnyThreadsAndKernelAndWhenResumed) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  expect_same_model(t, text, tiny_shape(), {{"--threads", "2"}, {"--threads", "5"}, {"--kernel", "portable"}});
}

// After a complete run the checkpoint gives the model in another type, and --init continues training.
TEST(Train, ContinuesFromFinishedModel) {
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
                {"--ctx: expected at most 32, the context of the model, found 64"});
  expect_failed(train({more, "-o", t.file("h.bin"), "--resume", "--checkpoint", t.file("a.bin.checkpoint")}), 1,
                {"is of a training on other texts"});
}

// More different characters than the default vocabulary of a short text has pieces.
TEST(Train, DefaultVocabularyHasRoomForTheCharactersOfTheText) {
  const TemporaryFolder t;
  tiny::Random random(1);
  std::string text;
  for (int i = 0; i < 6000; i++) {
    const int code = 0x4E00 + (i < 600 ? i : random.below(600));
    text += {char(0xE0 | code >> 12), char(0x80 | (code >> 6 & 63)), char(0x80 | (code & 63))};
    if (i % 10 == 9) text += "\n";
  }
  const ProgramResult r = train({t.write("s.txt", text), "-o", t.file("a.bin"), "--dim", "16", "--layers", "1", "--ctx",
                                 "32", "--batch", "4", "--threads", "1", "--steps", "2"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("trained a vocabulary of "), std::string::npos) << r.err;
}

// As in Chinese and Japanese.
TEST(Train, HoldsBackPartOfATextWithoutSpaces) {
  const TemporaryFolder t;
  tiny::Random random(1);
  std::string text;
  for (int i = 0; i < 4000; i++) {
    const int code = 0x4E00 + random.below(60);
    text += {char(0xE0 | code >> 12), char(0x80 | (code >> 6 & 63)), char(0x80 | (code & 63))};
  }
  TrainOptions o;
  for (const std::string& more : {text, "a" + text, "ab" + text}) {
    o.model = t.write("s.txt", more);
    const Texts texts = read_texts(o);
    ASSERT_EQ(texts.valid.size(), 1u);
    EXPECT_EQ(std::string(texts.train[0]) + std::string(texts.valid[0]), more);
    EXPECT_NE(texts.valid[0][0] & 0xC0, 0x80) << "within a character";
    EXPECT_NEAR(double(texts.valid[0].size()), double(more.size()) / 50, 3);
  }
  for (const std::string space : {" ", "\n"}) {
    o.model = t.write("s.txt", text + space + text.substr(0, 30));
    EXPECT_EQ(read_texts(o).valid[0], text.substr(0, 30));
  }
  const ProgramResult r =
      train(tiny_shape() + std::vector<std::string>{o.model, "-o", t.file("a.bin"), "--steps", "2"});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_LT(last_bits(r.err), 10) << r.err;
}

// A model file without weights, which cannot be trained, nor teach.
TEST(Train, RejectsOutlineAsInput) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60)), outline = t.file("m.bin"), o = t.file("o");
  ASSERT_EQ(run_program({POCKET_CONVERT, "--random", "tiny", "--type", "f32", "--outline", "-o", outline}).status, 0);
  const std::vector<std::vector<std::string>> all = {{text, "--init", outline},
                                                     {text, "--init", outline, "--lora-rank", "2"},
                                                     {text, "--teacher", outline},
                                                     {"--teacher", outline}};
  for (const auto& args : all)
    expect_failed(train(args + std::vector<std::string>{"-o", o}), 1, {"m.bin: a file without weights (--outline)"});
  EXPECT_EQ(t.list(), "m.bin\ns.txt\n");
}

TEST(Train, WidthMayBeAsSmallAsTwo) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  const ProgramResult r =
      train(tiny_shape() + std::vector<std::string>{text, "--dim", "2", "--steps", "2", "-o", t.file("a.bin")});
  EXPECT_EQ(r.status, 0) << r.err;
}

// A text that does not fit in memory with its tokens is refused before it is read. The file is sparse.
TEST(Train, RefusesATextTooLargeForTheMemory) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60)), large = t.write("large.txt", pattern_stories(60));
  std::filesystem::resize_file(large, longest_training_text() + 1);
  for (const std::vector<std::string>& args :
       {std::vector<std::string>{large, "-o", t.file("o.bin")}, {text, "--valid", large, "-o", t.file("o.bin")}}) {
    const ProgramResult r = train(args);
    expect_failed(r, 1, {"large.txt: expected at most " + std::to_string(longest_training_text()), "found more"});
    EXPECT_LT(r.peak_bytes, size_t(200) << 20);
  }
  EXPECT_EQ(t.list(), "large.txt\ns.txt\n");
}

// A checkpoint with `value` in a field and a valid checksum.
std::string with_field(std::string bytes, TrainPlan plan, const std::string& field, int64_t value) {
  size_t at = sizeof kCheckpointMagic + sizeof kCheckpointVersion, found = 0;
  const auto each = [&](const char* name, auto&, auto, auto) {
    if (name == field) found = at;
    at += sizeof value;
    return true;
  };
  TrainProgress progress;
  for_each_field(plan, each);
  for_each_field(progress, plan, each);
  EXPECT_GT(found, 0u) << field;
  std::memcpy(&bytes[found], &value, sizeof value);
  const uint64_t hash = hash_bytes(bytes.data(), bytes.size() - sizeof hash);
  std::memcpy(&bytes[bytes.size() - sizeof hash], &hash, sizeof hash);
  return bytes;
}

TEST(Train, RejectsCheckpointThatDoesNotFitTheText) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  ASSERT_EQ(train(tiny_shape() + std::vector<std::string>{text, "--steps", "100", "-o", t.file("a.bin")}).status, 0);
  const std::string good = read_file(t.file("a.bin.checkpoint"));
  CheckpointFile file;
  std::string error;
  ASSERT_TRUE(file.read(t.file("a.bin.checkpoint"), error)) << error;
  const auto resume = [&](const std::string& bytes) {
    t.write("a.bin.checkpoint", bytes);
    return train({text, "-o", t.file("a.bin"), "--resume"});
  };
  expect_failed(resume(with_field(good, file.plan, "index", 399)), 1, {"a.bin.checkpoint: index: expected 0 to "});
  expect_failed(resume(with_field(good, file.plan, "index", INT64_MAX)), 1, {"index: expected 0 to 400, found 9223"});
  expect_failed(resume(with_field(good, file.plan, "batch", 0)), 1, {"batch: expected 1 to 65536, found 0"});
  expect_failed(resume(with_field(good, file.plan, "context", 33)), 1, {"context: expected at most the model's 32"});
  expect_failed(resume(with_field(good, file.plan, "vocab_size", 319)), 1, {"bytes of weights, found"});
  EXPECT_EQ(resume(good).status, 0);
}

// Trains a model of type f32 on `text`, for --init.
std::string f32_model(const TemporaryFolder& t, const std::string& text, const std::vector<std::string>& more = {}) {
  const ProgramResult r = train(
      tiny_shape() + std::vector<std::string>{text, "--steps", "60", "--type", "f32", "-o", t.file("base.bin")} + more);
  EXPECT_EQ(r.status, 0) << r.err;
  return t.file("base.bin");
}

TEST(Train, DefaultContextIsAtMostThatOfTheModels) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60)), base = f32_model(t, text);
  for (const std::string from : {"--init", "--teacher"}) {
    std::vector<std::string> args = {text, from, base, "--batch", "4", "--steps", "2", "-o", t.file("a.bin")};
    if (from == "--teacher") args = args + std::vector<std::string>{"--dim", "16", "--layers", "1"};
    const ProgramResult r = train(args);
    ASSERT_EQ(r.status, 0) << r.err;
    EXPECT_NE(r.err.find(" --ctx 32\n"), std::string::npos) << r.err;
  }
}

// The adapter is the same for any number of threads and kernel and when resumed; merged, it has the same loss.
// Interrupted during the validation after step 20: the checkpoint has the step, but not its validation.
TEST(Train, RepeatsInterruptedValidation) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  ASSERT_EQ(train(tiny_shape() + std::vector<std::string>{text, "--steps", "20", "--every", "10", "--keep", "best",
                                                          "-o", t.file("a.bin")})
                .status,
            0);
  CheckpointFile file;
  std::string error;
  ASSERT_TRUE(file.read(t.file("a.bin.checkpoint"), error)) << error;
  EXPECT_EQ(file.progress.validated, 20);
  const std::string interrupted = with_field(read_file(t.file("a.bin.checkpoint")), file.plan, "validated", 10);
  t.write("a.bin.checkpoint", with_field(interrupted, file.plan, "steps", 30));
  const ProgramResult r = train({text, "-o", t.file("a.bin"), "--resume"});
  ASSERT_EQ(r.status, 0) << r.err;
  for (const char* step : {"20", "30"}) {
    EXPECT_NE(r.err.find("train: step " + std::string(step) + ": validation"), std::string::npos) << r.err;
    EXPECT_NE(r.out.find("[step " + std::string(step) + "]"), std::string::npos) << r.out;
  }
  const std::string table = read_file(t.file("a.loss.csv"));
  EXPECT_NE(table.find("\n20,"), std::string::npos) << table;
  EXPECT_EQ(table.find("\n20,"), table.rfind("\n20,")) << table;
}

TEST(Train, KeepsTheCheckpointOfAnInterruptedTraining) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  const std::vector<std::string> args =
      tiny_shape() + std::vector<std::string>{text, "--steps", "20", "--every", "10", "-o", t.file("a.bin")};
  ASSERT_EQ(train(args).status, 0);
  ASSERT_EQ(train(args).status, 0);  // a complete training is replaced
  CheckpointFile file;
  std::string error;
  ASSERT_TRUE(file.read(t.file("a.bin.checkpoint"), error)) << error;
  const std::string interrupted = with_field(read_file(t.file("a.bin.checkpoint")), file.plan, "steps", 30);
  t.write("a.bin.checkpoint", interrupted);
  expect_failed(train(args), 1, {"a.bin.checkpoint: has the state of a training after step 20 of 30", "--resume"});
  EXPECT_TRUE(read_file(t.file("a.bin.checkpoint")) == interrupted);
  for (const std::string& other : {std::string("notes"), interrupted.substr(0, interrupted.size() / 2)}) {
    t.write("a.bin.checkpoint", other);
    expect_failed(train(args), 1, {"a.bin.checkpoint: ", "to start a new training, delete the file or give another"});
    EXPECT_TRUE(read_file(t.file("a.bin.checkpoint")) == other);
  }
}

// The bits per character in the model file are those of its weights, not of the last validation.
TEST(Train, WritesBitsOfTheStateThatIsKept) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  const auto written_bits = [&] {
    const std::string info = run_program({POCKET_RUN, t.file("a.bin"), "--info"}).out;
    std::smatch found;
    EXPECT_TRUE(std::regex_search(info, found, std::regex("([0-9.]+) bits a character"))) << info;
    return found.empty() ? 0 : std::stod(found[1]);
  };
  ASSERT_EQ(train(tiny_shape() + std::vector<std::string>{text, "--steps", "20", "--every", "10", "--keep", "best",
                                                          "-o", t.file("a.bin")})
                .status,
            0);
  const double bits = written_bits();
  CheckpointFile file;
  std::string error;
  ASSERT_TRUE(file.read(t.file("a.bin.checkpoint"), error)) << error;
  const double half = file.progress.best_loss / 2;
  t.write("a.bin.checkpoint",
          with_field(read_file(t.file("a.bin.checkpoint")), file.plan, "best loss", load<int64_t>(&half)));
  ASSERT_EQ(train({text, "-o", t.file("a.bin"), "--resume"}).status, 0);
  EXPECT_NEAR(written_bits(), bits / 2, 2e-4);
}

TEST(TrainLora, TrainsAdapterThatConvertMerges) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60)), base = f32_model(t, text);
  const std::string bytes = read_file(base), more = t.write("more.txt", pattern_stories(90));
  const auto args = std::vector<std::string>{more, "--init",      base, "--ctx",        "32", "--batch",
                                             "4",  "--steps",     "40", "--every",      "10", "--threads",
                                             "1",  "--lora-rank", "3",  "--lora-alpha", "6",  "-o"};
  const ProgramResult tuned = train(args + std::vector<std::string>{t.file("a/")});
  ASSERT_EQ(tuned.status, 0) << tuned.err;
  EXPECT_NE(tuned.err.find("adapter: 0.001 M parameters, rank 3, alpha 6"), std::string::npos) << tuned.err;
  EXPECT_NE(tuned.out.find("[step 40] Once upon a time"), std::string::npos) << tuned.out;
  const auto files = [&](const std::string& folder) {
    return read_file(t.file(folder + "/adapter_config.json")) +
           read_file(t.file(folder + "/adapter_model.safetensors"));
  };
  const std::string expected = files("a");
  EXPECT_NE(expected.find("base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"), std::string::npos);
  const std::vector<std::vector<std::string>> ways = {{"--threads", "2"}, {"--kernel", "portable"}};
  for (const auto& way : ways) {
    ASSERT_EQ(train(args + std::vector<std::string>{t.file(way[1])} + way).status, 0);
    EXPECT_EQ(files(way[1]), expected) << way[1];
  }
  const ProgramResult stopped = interrupt_training(args + std::vector<std::string>{t.file("b")}, t.file("b"));
  ASSERT_EQ(stopped.status, 130) << stopped.err;
  EXPECT_NE(stopped.err.find("give the same text and -o, and --resume"), std::string::npos) << stopped.err;
  EXPECT_EQ(t.list().find("b\n"), std::string::npos) << t.list();
  for (const auto& [option, value] : {std::pair<std::string, std::string>("--type", "f32"), {"--licence", "MIT"}})
    expect_failed(train({more, "-o", t.file("b"), "--resume", option, value}), 2,
                  {option + ": is not valid for an adapter"});
  ASSERT_EQ(train({more, "-o", t.file("b"), "--resume"}).status, 0);
  EXPECT_EQ(files("b"), expected);
  EXPECT_EQ(t.list().find(".tmp"), std::string::npos) << t.list();
  EXPECT_TRUE(read_file(base) == bytes) << "the base model changed";

  // With a negligible learning rate, the validation is of the initial weights.
  ASSERT_EQ(run_program({POCKET_CONVERT, base, "--lora", t.file("a"), "--type", "f32", "-o", t.file("m.bin")}).status,
            0);
  const ProgramResult merged =
      train({more, "--init", t.file("m.bin"), "--ctx", "32", "--steps", "1", "--lr", "1e-9", "-o", t.file("n.bin")});
  ASSERT_EQ(merged.status, 0) << merged.err;
  EXPECT_NEAR(last_bits(merged.err), last_bits(tuned.err), 2e-4);
  const ProgramResult before =
      train({more, "--init", base, "--ctx", "32", "--steps", "1", "--lr", "1e-9", "-o", t.file("n.bin")});
  EXPECT_GT(last_bits(before.err), last_bits(tuned.err) + 0.05);
  const std::string info = run_program({POCKET_RUN, t.file("m.bin"), "--info"}).out;
  EXPECT_NE(info.find("trained on s.txt"), std::string::npos) << info;
  EXPECT_NE(info.find("lora: a\nweights: f32, unchanged\n"), std::string::npos) << info;
}

// Before the vocabulary is trained.
TEST(Train, ChecksOutputsFirst) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60)), o = t.file("o.bin");
  std::filesystem::create_directory(t.file("m.loss.csv"));
  ASSERT_EQ(mkfifo(t.file("fifo").c_str(), 0600), 0);
  const std::vector<std::vector<std::string>> refused = {{"-o", t.path()},
                                                         {"-o", t.file("fifo")},
                                                         {"-o", t.file("no/o.bin")},
                                                         {"-o", t.file("m.bin")},
                                                         {"-o", o, "--checkpoint", t.path()},
                                                         {"-o", o, "--checkpoint", t.file("fifo")},
                                                         {"-o", o, "--checkpoint", t.file("no/c")}};
  for (const auto& options : refused)
    expect_failed_in_a_line(train(std::vector<std::string>{text} + options), "train", 1, {});
  EXPECT_EQ(t.list(), "fifo\nm.loss.csv\ns.txt\n");
}

TEST(Train, RefusesToReplaceItsInputs) {
  const TemporaryFolder t;
  const std::string text = t.write("text.txt", pattern_stories(20)), valid = t.write("valid.txt", "mine"),
                    model = t.write("model.bin", "mine");
  std::filesystem::create_symlink("text.txt", t.file("link"));
  std::filesystem::create_hard_link(text, t.file("story.loss.csv"));
  const std::vector<std::vector<std::string>> all = {{"-o", text},
                                                     {"-o", t.file("link")},
                                                     {"-o", t.file("story.bin")},
                                                     {"-o", t.file("o.bin"), "--checkpoint", t.path() + "/./text.txt"},
                                                     {"-o", valid, "--valid", valid},
                                                     {"-o", model, "--init", model},
                                                     {"-o", model, "--teacher", model},
                                                     {"-o", model, "-z", model}};
  for (const std::vector<std::string>& arguments : all)
    expect_failed_in_a_line(train(std::vector<std::string>{text} + arguments), "train", 1,
                            {": expected another file to write than ", ", which is read"});
  EXPECT_EQ(read_file(text), pattern_stories(20));
  EXPECT_EQ(read_file(valid) + read_file(model), "minemine");
}

TEST(Train, KeepsModeOfReplacedFiles) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  const std::vector<std::string> files = {"o.bin", "o.bin.checkpoint", "o.loss.csv", "o.loss.svg"};
  const auto args = tiny_shape() + std::vector<std::string>{text, "-o", t.file("o.bin")};
  ASSERT_EQ(train(args + std::vector<std::string>{"--steps", "2"}).status, 0);
  std::vector<std::string> old;
  for (const std::string& name : files) {
    std::filesystem::permissions(t.file(name), std::filesystem::perms(0600));
    old.push_back(read_file(t.file(name)));
  }
  ASSERT_EQ(train(args + std::vector<std::string>{"--steps", "3"}).status, 0);
  for (size_t i = 0; i < files.size(); i++) {
    EXPECT_EQ(std::filesystem::status(t.file(files[i])).permissions(), std::filesystem::perms(0600)) << files[i];
    EXPECT_FALSE(read_file(t.file(files[i])) == old[i]) << files[i];
  }
}

TEST(TrainLora, DoesNotReplaceExistingFiles) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60)), base = f32_model(t, text);
  const auto args =
      std::vector<std::string>{text, "--init", base, "--ctx", "32", "--steps", "5", "--lora-rank", "3", "-o"};
  std::filesystem::create_directory(t.file("old"));
  expect_failed(train(args + std::vector<std::string>{t.file("old")}), 1,
                {"old: already exists; delete the folder or choose another"});
  expect_failed(train(args + std::vector<std::string>{t.write("file", "")}), 1,
                {"file: already exists", "choose the name of a new folder"});
  expect_failed(train(args + std::vector<std::string>{t.file("no/a")}), 1, {"no/a", "No such file"});
  const std::string before = t.list();
  ProgramOptions small;
  small.largest_file = 20000;
  const auto disk = args + std::vector<std::string>{t.file("a"), "--checkpoint", "/dev/null/c"};
  expect_failed(train(disk, small), 1, {"/dev/null/c"});
  EXPECT_EQ(t.list(), before);
}

TEST(TrainLora, AdaptsModelTrainedOnInstructions) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60)), base = f32_model(t, text, {"--instruct"});
  const ProgramResult r = train({text, "--init", base, "--ctx", "32", "--steps", "5", "--lora-rank", "3", "--instruct",
                                 "--lora-targets", "q_proj,v_proj", "-o", t.file("a")});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_EQ(run_program({POCKET_CONVERT, base, "--lora", t.file("a"), "--type", "q8", "-o", t.file("m.bin")}).status,
            0);
  EXPECT_EQ(run_program({POCKET_RUN, t.file("m.bin"), "--words", "ball", "-n", "5"}).status, 0);
}

TEST(TrainLora, ReportsWrongUsage) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60)), base = f32_model(t, text), o = t.file("a");
  const std::string q8 = t.file("q8.bin");
  ASSERT_EQ(run_program({POCKET_CONVERT, base, "--type", "q8", "-o", q8}).status, 0);
  const std::string before = t.list();
  const auto args = std::vector<std::string>{text, "-o", o, "--ctx", "32", "--steps", "5"};
  const struct {
    int status;
    std::vector<std::string> more, words;
  } cases[] = {
      {2, {"--init", base, "--lora-rank", "0"}, {"--lora-rank: expected a whole number from 1"}},
      {2, {"--init", base, "--lora-rank", "x"}, {"--lora-rank: expected a whole number from 1"}},
      {2, {"--init", base, "--lora-rank", "17"}, {"--lora-rank: expected at most 16, the smaller side of", "q_proj"}},
      {2, {"--lora-rank", "4"}, {"--lora-rank: requires --init"}},
      {2, {"--init", base, "--lora-alpha", "4"}, {"--lora-alpha: requires --lora-rank R"}},
      {2, {"--init", base, "--lora-targets", "q_proj"}, {"--lora-targets: requires --lora-rank R"}},
      {2, {"--init", base, "--lora-rank", "4", "--lora-alpha", "0"}, {"--lora-alpha: expected a number"}},
      {2, {"--init", base, "--lora-rank", "4", "--lora-targets", "wq"}, {"--lora-targets: expected some of q_proj,"}},
      {2, {"--init", base, "--lora-rank", "4", "--lora-targets", "lm_head"}, {"lm_head: this model's output is"}},
      {2,
       {"--init", base, "--lora-rank", "4", "--type", "q8"},
       {"--type: is not valid for an adapter", "convert --lora"}},
      {2,
       {"--init", base, "--lora-rank", "4", "--instruct"},
       {"--instruct: ", "base.bin was not trained on instructions"}},
      {2, {"--init", base, "--lora-rank", "4", "--resume"}, {"is not valid with --resume"}},
      {1, {"--init", q8}, {"q8.bin: expected a model of type f32"}},
      {2,
       {"--init", q8, "--lora-rank", "4", "--teacher", base},
       {"--teacher: is only valid for adapters of models of"}},
      {1, {"--init", t.file("none"), "--lora-rank", "4"}, {"none: "}},
  };
  for (const auto& c : cases) expect_failed(train(args + c.more), c.status, c.words);
  expect_failed(run_program({POCKET_CONVERT, q8, "-o", t.file("m.bin")}), 1, {"converted already", "f32"});
  for (const char* own : {"-z", "--template"})
    expect_failed(run_program({POCKET_CONVERT, base, own, "plain", "-o", t.file("m.bin")}), 2, {"has its own"});
  EXPECT_EQ(t.list(), before);
}

TEST(TrainTeacher, SameStudentForAnyThreadsAndKernelAndWhenResumed) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60)), teacher = f32_model(t, text, {"--dim", "32"});
  const std::string q8 = t.file("q8.bin");
  ASSERT_EQ(run_program({POCKET_CONVERT, teacher, "--type", "q8", "-o", q8}).status, 0);
  const auto args =
      std::vector<std::string>{text, "--dim",   "16", "--layers",  "1", "--ctx",     "32", "--batch", "4", "--steps",
                               "40", "--every", "10", "--threads", "1", "--teacher", q8,   "-o"};
  const ProgramResult r = train(args + std::vector<std::string>{t.file("a.bin"), "--temperature", "2"});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("teacher: 0.02 M parameters, --teacher-weight 0.5 --temperature 2"), std::string::npos) << r.err;
  const std::string expected = read_file(t.file("a.bin"));
  const std::vector<std::vector<std::string>> ways = {{"--threads", "2"}, {"--kernel", "portable"}};
  for (const auto& way : ways) {
    ASSERT_EQ(train(args + std::vector<std::string>{t.file("b.bin"), "--temperature", "2"} + way).status, 0);
    EXPECT_TRUE(read_file(t.file("b.bin")) == expected) << way[1];
  }
  ASSERT_EQ(train(args + std::vector<std::string>{t.file("b.bin")}).status, 0);
  EXPECT_FALSE(read_file(t.file("b.bin")) == expected) << "the temperature has no effect";
  const ProgramResult stopped =
      interrupt_training(args + std::vector<std::string>{t.file("c.bin"), "--temperature", "2"}, t.file("c.bin"));
  ASSERT_EQ(stopped.status, 130) << stopped.err;
  EXPECT_NE(stopped.err.find("give the same text, --teacher and -o, and --resume"), std::string::npos) << stopped.err;
  const auto resumed = std::vector<std::string>{text, "-o", t.file("c.bin"), "--resume"};
  expect_failed(train(resumed), 2, {"--teacher: the training has a teacher; give the same model"});
  expect_failed(train(resumed + std::vector<std::string>{"--teacher", teacher}), 1,
                {"base.bin: is not the teacher of this training"});
  expect_failed(train(resumed + std::vector<std::string>{"--teacher", q8, "--temperature", "1"}), 2,
                {"--temperature: is not valid with --resume"});
  ASSERT_EQ(train(resumed + std::vector<std::string>{"--teacher", q8, "--threads", "2"}).status, 0);
  EXPECT_TRUE(read_file(t.file("c.bin")) == expected);
  EXPECT_EQ(train(resumed).status, 0) << "a finished training does not need the teacher";
  EXPECT_TRUE(read_file(t.file("c.bin")) == expected);
  EXPECT_NE(run_program({POCKET_RUN, t.file("c.bin"), "--info"}).out.find("trained on s.txt, and by a teacher"),
            std::string::npos);
}

TEST(TrainTeacher, ReportsWrongUsage) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60)), teacher = f32_model(t, text), o = t.file("o.bin");
  const std::string other = t.file("other.bin");
  ASSERT_EQ(train(tiny_shape() + std::vector<std::string>{t.write("t.txt", pattern_stories(40) + "zebra"), "--steps",
                                                          "1", "--type", "f32", "-o", other})
                .status,
            0);
  ASSERT_EQ(train(tiny_shape() + std::vector<std::string>{text, "--steps", "9", "-o", t.file("plain.bin")}).status, 0);
  const std::string before = t.list();
  const struct {
    int status;
    std::vector<std::string> more, words;
  } cases[] = {
      {1, {"--teacher", t.file("none"), "--ctx", "32"}, {"none: No such file"}},
      {1, {"--teacher", text, "--ctx", "32"}, {"s.txt: "}},
      {1,
       {"--teacher", teacher, "--init", other, "--ctx", "32"},
       {"base.bin: the vocabulary of the teacher differs from that of the model", "without --init and -z"}},
      {2, {"--teacher", teacher, "--ctx", "64"}, {"--ctx: expected at most 32, the context of the teacher, found 64"}},
      {2, {"--teacher", teacher, "--vocab", "320"}, {"--vocab: is not valid with --teacher"}},
      {2, {"--teacher", teacher, "--label-smoothing", "0.1"}, {"--label-smoothing: is not valid with --teacher"}},
      {2, {"--teacher", teacher, "--teacher-weight", "1.5"}, {"--teacher-weight: expected a number from 0 to 1"}},
      {2, {"--teacher", teacher, "--temperature", "0"}, {"--temperature: expected a number from 0.1"}},
      {2, {"--teacher-weight", "0.5"}, {"--teacher-weight: requires --teacher MODEL"}},
      {2, {"--temperature", "2"}, {"--temperature: requires --teacher MODEL"}},
      {2,
       {"--resume", "--checkpoint", t.file("plain.bin.checkpoint"), "--teacher", teacher},
       {"--teacher: the training has no teacher"}},
  };
  for (const auto& c : cases) expect_failed(train(std::vector<std::string>{text, "-o", o} + c.more), c.status, c.words);
  EXPECT_EQ(t.list(), before);
}

// The provenance of the model enables --words.
TEST(Train, InstructedModelAcceptsWords) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  const ProgramResult r =
      train(tiny_shape() + std::vector<std::string>{text, "--steps", "30", "--instruct", "-o", t.file("a.bin")});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("Words: dog, cake\nStory:"), std::string::npos) << r.out;
  const ProgramResult output = run_program({POCKET_RUN, t.file("a.bin"), "--words", "ball", "-n", "10"});
  EXPECT_EQ(output.status, 0) << output.err;
  EXPECT_EQ(train({text, "-o", t.file("a.bin"), "--resume"}).status, 0) << "the seed must give the same instructions";
}

TEST(Train, MinutesDetermineSteps) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  const auto start = std::chrono::steady_clock::now();
  const ProgramResult r =
      train(tiny_shape() + std::vector<std::string>{text, "-o", t.file("a.bin"), "--minutes", "0.12"});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("plan: --steps "), std::string::npos) << r.err;
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), 60);
}

TEST(Train, HelpNamesMainOptions) {
  const ProgramResult r = train({"--help"});
  EXPECT_EQ(r.status, 0);
  for (const char* word : {"<|endoftext|>", "-o", "--minutes", "--resume", "--init", "--valid", "--dim"})
    EXPECT_NE(r.out.find(word), std::string::npos) << word;
}

TEST(Train, ReportsWrongUsage) {
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
      {2, {text, "-o", o, "--steps", "5", "--minutes", "1"}, {"--steps, --minutes: give only one"}},
      {2, {text, "-o", o, "--vocab", "320", "-z", "x"}, {"--vocab, --tokenizer: give only one"}},
      {1, {text, "-o", o, "--checkpoint", o}, {"o.bin: expected a file for each output, found one for two"}},
      {2, {text, "-o", o, "--stepz", "5"}, {"did you mean --steps"}},
      {2, {text, "-o", o, "--resume", "--lr", "1"}, {"--lr: is not valid with --resume"}},
      {2, {text, "-o", o, "--init", "x", "--dim", "64"}, {"--dim: is not valid with --init"}},
      {2, {text, "-o", o, "--kernel", "mmx"}, {"--kernel", "mmx", "available: "}},
      {2, {text, "-o", o, "--dim", "7", "--vocab", "320"}, {"--dim: expected", "found 7", "try 16"}},
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
      {1, {text, "-o", o, "--resume", "--checkpoint", t.file("white")}, {"white: is not a checkpoint of models/train"}},
      {1, {text, "-o", o, "--init", text}, {"s.txt"}},
      {2,
       {text, "-o", o, "--valid", t.write("e.jsonl", "")},
       {"--valid: expected stories", "found examples: ", "e.jsonl"}},
      {1, {t.write("F.JSONL", ""), "-o", o}, {"F.JSONL: expected examples, one JSON object per line, found none"}},
  };
  for (const auto& c : cases) expect_failed(train(c.args), c.status, c.words);
  EXPECT_EQ(t.list(), "F.JSONL\nbytes\ne.jsonl\nempty\ns.txt\nwhite\n");
}

TEST(Train, ReportsMissingFolderBeforeTraining) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  expect_failed(train(tiny_shape() + std::vector<std::string>{text, "-o", t.file("no/o.bin"), "--steps", "1000000"}), 1,
                {"no/o.bin", "No such file"});
}

TEST(Train, FullDiskKeepsExistingFiles) {
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
                {"o.bin: ", "File too large", "the checkpoint is complete"});
  EXPECT_EQ(t.list(), "o.bin\no.bin.checkpoint\no.loss.csv\no.loss.svg\ns.txt\n");
  EXPECT_TRUE(read_file(t.file("o.bin")) == model && read_file(t.file("o.bin.checkpoint")) == checkpoint);
}

TEST(Train, StopsWhenLossIsNotFinite) {
  const TemporaryFolder t;
  const std::string text = t.write("s.txt", pattern_stories(60));
  const ProgramResult r =
      train(tiny_shape() + std::vector<std::string>{text, "--steps", "50", "-o", t.file("o.bin"), "--lr", "1e30"});
  EXPECT_EQ(r.status, 1);
  for (const char* word : {"the loss is not finite", "o.bin.checkpoint", "--lr below"})
    EXPECT_NE(r.err.find(word), std::string::npos) << r.err;
  EXPECT_EQ(t.list(), "o.bin.checkpoint\no.loss.csv\ns.txt\n");
}

}  // namespace train_test
