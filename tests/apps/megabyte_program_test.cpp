// megabyte_program_test.cpp: MEGABYTE models as users convert and run them.
#include <gtest/gtest.h>

#include <filesystem>

#include "../support/program.hpp"
#include "../support/test_data.hpp"

namespace megabyte_program_test {

ProgramResult convert(std::vector<std::string> args) {
  args.insert(args.begin(), POCKET_CONVERT);
  return run_program(args);
}

// A model of the public implementation, converted to each type.
class MegabyteProgram : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const std::string data = data_path("megabyte/rel-pos");
    if (data.empty()) return;
    folder = new TemporaryFolder;
    for (const char* type : {"f32", "q8", "q4"}) {
      const ProgramResult r = convert({data + "/model.pt", "--config", data + "/config.json", "--type", type, "-o",
                                       folder->file(std::string(type) + ".bin")});
      ASSERT_EQ(r.status, 0) << r.err;
    }
  }
  static void TearDownTestSuite() { delete folder; }

  static std::string model(const std::string& type = "q8") { return folder->file(type + ".bin"); }
  static ProgramResult run(std::vector<std::string> args, const ProgramOptions& options = {}) {
    args.insert(args.begin(), POCKET_RUN);
    return run_program(args, options);
  }
  // The text on stdout of a run with -q. Expects success and nothing on stderr.
  static std::string text(std::vector<std::string> args) {
    args.push_back("-q");
    const ProgramResult r = run(args);
    EXPECT_EQ(r.status, 0) << r.err;
    EXPECT_EQ(r.err, "");
    return r.out;
  }
  static void expect_failure(int status, const std::vector<std::string>& args, const std::vector<std::string>& words) {
    expect_failed_in_a_line(run(args), "run", status, words);
  }

  static TemporaryFolder* folder;
};
TemporaryFolder* MegabyteProgram::folder = nullptr;

#define NEED_MODEL()           \
  NEED_DATA(data, "megabyte"); \
  ASSERT_NE(folder, nullptr)

TEST_F(MegabyteProgram, TextDoesNotDependOnKernelThreadsAndBatch) {
  NEED_MODEL();
  for (const char* type : {"f32", "q8", "q4"}) {
    const std::string expected = text({model(type), "-i", "Hello", "-n", "30", "-s", "1", "--threads", "1"});
    EXPECT_EQ(expected.substr(0, 5), "Hello");
    EXPECT_GT(expected.size(), 5u);
    EXPECT_TRUE(is_utf8(expected));
    const ProgramResult kernels = run({"--kernels"});
    for (size_t at = 0, end; (end = kernels.out.find('\n', at)) != std::string::npos; at = end + 1)
      for (const char* batch : {"1", "3", "100"})
        EXPECT_EQ(text({model(type), "-i", "Hello", "-n", "30", "-s", "1", "--threads", "2", "--batch", batch,
                        "--kernel", kernels.out.substr(at, end - at)}),
                  expected);
  }
}

TEST_F(MegabyteProgram, StartsFromAnEmptyPrompt) {
  NEED_MODEL();
  const std::string one = text({model(), "-n", "20", "-s", "1"});
  EXPECT_FALSE(one.empty());
  EXPECT_EQ(text({model(), "-n", "20", "-s", "1", "-i", ""}), one);
  EXPECT_NE(text({model(), "-n", "20", "-s", "2"}), one);
}

TEST_F(MegabyteProgram, TextIsAtMostAsLongAsTheTrainedContext) {
  NEED_MODEL();
  const std::string ids = "104,101,108,108,111";
  const ProgramResult r = run({model(), "--ids", ids, "-n", "0", "-t", "0", "--json"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("\"new_tokens\": 59"), std::string::npos) << r.err;  // 64 in all
  EXPECT_NE(r.err.find("\"end\": \"context\""), std::string::npos) << r.err;
  EXPECT_NE(r.err.find("\"context\": 64"), std::string::npos) << r.err;
  EXPECT_EQ(text({model(), "-i", std::string(64, 'a'), "-n", "5"}), std::string(64, 'a'));
  expect_failure(1, {model(), "-i", std::string(65, 'a')}, {"prompt: 65 bytes", "room for 64"});
  expect_failure(1, {model(), "--ctx", "65"}, {"context: expected 0 to 64", "65"});
  expect_failure(1, {model(), "-i", "abcde", "--ctx", "4"}, {"prompt: 5 bytes", "room for 4"});
}

TEST_F(MegabyteProgram, PromptMayBeAnyBytes) {
  NEED_MODEL();
  const std::string raw = folder->write("raw", "a\xFF\xC3(\x01");
  EXPECT_EQ(text({model(), "--encode", "a\xFF\xC3\xA9"}), "97,255,195,169\n");
  for (const char* type : {"f32", "q4"}) {
    text({model(type), "-f", raw, "--logits", folder->file("file")});
    text({model(type), "--ids", "97,255,195,40,1", "--logits", folder->file("ids")});
    EXPECT_EQ(read_file(folder->file("file")).size(), 5u * 256 * sizeof(float));
    EXPECT_EQ(read_file(folder->file("file")), read_file(folder->file("ids")));
  }
  const std::string zero = folder->write("zero", std::string("ab\0c", 4));
  expect_failure(1, {model(), "-f", zero}, {zero, "byte 0 at offset 2", "only as the end of a text"});
  expect_failure(1, {model(), "--ids", "1,0"}, {"--ids: byte 0 at offset 1"});
  expect_failure(1, {model(), "--perplexity", zero}, {"byte 0 at offset 2"});
  expect_failure(2, {model(), "--ids", "256"}, {"--ids", "0 to 255"});
}

TEST_F(MegabyteProgram, RejectsUnsupportedOptions) {
  NEED_MODEL();
  expect_failure(1, {model(), "-m", "chat"}, {"-m chat", "MEGABYTE", "has no chat format"});
  expect_failure(1, {model(), "--words", "dog"}, {"--words", "MEGABYTE", "was not trained on instructions"});
  expect_failure(1, {model(), "--save", folder->file("s")}, {"--save", "MEGABYTE"});
  expect_failure(1, {model(), "--resume", folder->file("s")}, {"--resume", "MEGABYTE"});
  expect_failure(1, {model(), "-z", folder->file("t")}, {"--tokenizer", "MEGABYTE"});
  expect_failure(2, {model(), "--kernel", "mmx"}, {"mmx"});
  EXPECT_FALSE(std::filesystem::exists(folder->file("s")));
}

TEST_F(MegabyteProgram, InfoSelfTestAndPerplexity) {
  NEED_MODEL();
  const ProgramResult info = run({model("q4"), "--info"});
  EXPECT_EQ(info.status, 0) << info.err;
  for (const char* word :
       {"0.6 M parameters: MEGABYTE, patches of 4 bytes, 4 heads of 32", "global: dim 96", "local: dim 64",
        "trained for 64 bytes", "rotary yes", "embedded no", "matrices q4", "source: model.pt", "memory in MB"})
    EXPECT_NE(info.out.find(word), std::string::npos) << word << " in " << info.out;
  for (const char* type : {"f32", "q8", "q4"}) {
    const std::string tested = text({model(type), "--selftest"});
    EXPECT_NE(tested.find("kernel scalar: logits match the self-test hash"), std::string::npos) << tested;
    EXPECT_NE(tested.find("tensor checksum: ok"), std::string::npos) << tested;
  }
  std::string damaged = read_file(model("q4"));
  damaged[damaged.size() - 500] = char(damaged[damaged.size() - 500] ^ 1);
  expect_failure(1, {folder->write("damaged.bin", damaged), "--selftest"}, {"checksum"});
  const std::string english = folder->write("english", "The quick brown fox jumps over the lazy dog, again and again.");
  const std::string perplexity = text({model(), "--perplexity", english});
  EXPECT_NE(perplexity.find(" bits a byte; perplexity "), std::string::npos) << perplexity;
  EXPECT_NE(perplexity.find("(60 bytes of 61)"), std::string::npos) << perplexity;
  const ProgramResult top = run({model(), "-i", "a", "-n", "2", "-t", "0", "--top", "3", "-q"});
  EXPECT_EQ(top.status, 0) << top.err;
  EXPECT_EQ(std::count(top.err.begin(), top.err.end(), '\n'), 2) << top.err;
}

TEST_F(MegabyteProgram, LookupDoesNotChangeTheText) {
  NEED_MODEL();
  for (const char* seed : {"1", "2"})
    EXPECT_EQ(text({model(), "-i", "abababab", "-n", "40", "-s", seed, "--lookup"}),
              text({model(), "-i", "abababab", "-n", "40", "-s", seed}));
}

TEST_F(MegabyteProgram, StopTextsAndInterrupts) {
  NEED_MODEL();
  const std::string whole = text({model(), "-i", "x", "-n", "40", "-s", "3"});
  const auto letter = std::find_if(whole.begin() + 1, whole.end(), [](char c) { return c > ' ' && c < 127; });
  ASSERT_NE(letter, whole.end());
  EXPECT_EQ(text({model(), "-i", "x", "-n", "40", "-s", "3", "--stop", std::string(1, *letter)}),
            std::string(whole.begin(), letter));
  ProgramOptions options;
  options.interrupt_after_output = "x";
  const ProgramResult made = convert({"--random", "megabyte-24m", "--type", "f32", "-o", folder->file("large.bin")});
  ASSERT_EQ(made.status, 0) << made.err;
  const ProgramResult stopped = run({folder->file("large.bin"), "-i", "x", "-n", "0", "--threads", "1"}, options);
  EXPECT_EQ(stopped.status, 130) << stopped.err;
  EXPECT_TRUE(is_utf8(stopped.out));
}

TEST_F(MegabyteProgram, ConverterHelpDescribesMegabyte) {
  const ProgramResult r = convert({"--help"});
  for (const char* word : {"MEGABYTE", "--config", "megabyte-24m"})
    EXPECT_NE(r.out.find(word), std::string::npos) << word;
}

TEST_F(MegabyteProgram, ConverterRejectsInvalidInputAndLeavesNoFile) {
  NEED_MODEL();
  const TemporaryFolder out;
  const std::string pt = data_path("megabyte/plain/model.pt"), config = data_path("megabyte/plain/config.json");
  const auto rejects = [&](int status, std::vector<std::string> args, const std::vector<std::string>& words) {
    args.insert(args.end(), {"-o", out.file("m.bin")});
    const ProgramResult r = convert(args);
    expect_failed(r, status, words);
    EXPECT_EQ(out.list(), "");
  };
  rejects(1, {pt, "--config", data_path("megabyte/rel-pos/config.json")}, {"inv_freq", "rel_pos is true"});
  rejects(1, {pt, "--config", data_path("megabyte/both-wide/config.json")}, {"expected shape"});
  rejects(1, {pt, "--config", out.file("none.json")}, {"none.json", "No such file"});
  rejects(1, {pt}, {"--config", "MEGABYTE"});
  rejects(2, {pt, "--config", config, "-z", "t.model"}, {"--tokenizer", "bytes"});
  rejects(2, {pt, "--config", config, "--lora", "x"}, {"--lora", "bytes"});
  rejects(2, {pt, "--config", config, "--calibrate", "x"}, {"--calibrate", "bytes"});
  rejects(2, {"--random", "megabyte-24m", "--config", config}, {"--config", "--random"});
  rejects(2, {"--random", "megabyte-24m", "--template", "chatml"}, {"--template", "bytes"});
}

#undef NEED_MODEL

}  // namespace megabyte_program_test
