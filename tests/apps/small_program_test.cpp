// small_program_test.cpp: the small program inside run.cpp, compiled from run.cpp and tokenizer.hpp alone, prints the
// same text and the same errors as the full program.
#include <gtest/gtest.h>

#include <thread>

#include "../support/program.hpp"
#include "../support/test_data.hpp"

namespace small_program_test {

// Runs both programs and expects the same text and status. Returns the result of the small one.
ProgramResult expect_same(const std::vector<std::string>& args, const std::string& input = "") {
  ProgramOptions options;
  options.input = input;
  ProgramResult results[2];
  const char* programs[] = {POCKET_RUN, POCKET_RUN_SMALL};
  for (int i = 0; i < 2; i++) {
    std::vector<std::string> command = args;
    command.insert(command.begin(), programs[i]);
    results[i] = run_program(command, options);
  }
  EXPECT_EQ(results[0].out, results[1].out);
  EXPECT_EQ(results[0].status, results[1].status) << results[0].err << results[1].err;
  if (results[0].status != 0) {
    EXPECT_EQ(results[0].err, results[1].err);
  }
  return results[1];
}

const std::string kStories = std::string(POCKET_SOURCE_DIR) + "/models/stories.bin";

TEST(SmallProgram, ContinuesATextLikeTheFullProgram) {
  const TemporaryFolder t;
  t.write("prompt.txt", "The dog had a red ball.\nOne day");
  EXPECT_GT(expect_same({kStories, "-i", "Once upon a time", "-s", "5"}).out.size(), 200u);
  expect_same({kStories, "-i", "Once upon a time", "-t", "0", "-n", "30", "--threads", "1"});
  expect_same({kStories, "--prompt", "Tom", "--temperature", "1.2", "--top-p", "0.7", "--seed", "9", "--tokens", "40"});
  expect_same({kStories, "-f", t.file("prompt.txt"), "-s", "3", "-n", "40"});
  expect_same({kStories, "-f", "-", "-s", "3", "-n", "40"}, "A cat");
  expect_same({kStories, "-s", "4", "-n", "20", "-m", "generate"});
}

TEST(SmallProgram, ReportsErrorsLikeTheFullProgram) {
  const TemporaryFolder t;
  t.write("short.bin", "PKTLLAMA");
  for (const std::vector<std::string>& args :
       std::vector<std::vector<std::string>>{{kStories, "-n", "x"},
                                             {kStories, "-t", "-1"},
                                             {kStories, "-p", "2"},
                                             {kStories, "-s", "1.5"},
                                             {kStories, "--threads", "0"},
                                             {kStories, "-m", "poem"},
                                             {kStories, "-i"},
                                             {kStories, "another.bin"},
                                             {kStories, "-z", t.file("none.model")},
                                             {kStories, "-f", t.file("none.txt")},
                                             {t.file("short.bin"), "-i", "a"}})
    EXPECT_NE(expect_same(args).status, 0);
}

TEST(SmallProgram, ReportsAModelThatIsTruncatedWhileItRuns) {
  const TemporaryFolder t;
  const std::string model = t.write("m.bin", read_file(kStories)), prompt = t.file("prompt");
  ASSERT_EQ(mkfifo(prompt.c_str(), 0600), 0);
  std::thread other([&] {
    int file = -1;  // opened once the program, which has opened the model then, reads it
    for (int wait = 0; file < 0 && wait < 20000; wait++) {
      file = open(prompt.c_str(), O_WRONLY | O_NONBLOCK);
      usleep(1000);
    }
    ASSERT_GE(file, 0);
    EXPECT_EQ(truncate(model.c_str(), 4096), 0);
    EXPECT_EQ(write(file, "Once", 4), 4);
    close(file);
  });
  const ProgramResult r = run_program({POCKET_RUN_SMALL, model, "-f", prompt});
  other.join();
  EXPECT_EQ(r.status, 1);
  EXPECT_NE(r.err.find("run: "), std::string::npos) << r.err;
}

TEST(SmallProgram, PrintsHelp) {
  const ProgramResult r = run_program({POCKET_RUN_SMALL, "--help"});
  EXPECT_EQ(r.status, 0);
  for (const char* option : {"--prompt", "--file", "--tokens", "--mode", "--system", "--temperature", "--top-p",
                             "--seed", "--threads", "--tokenizer"})
    EXPECT_NE(r.out.find(option), std::string::npos) << option;
  EXPECT_EQ(run_program({POCKET_RUN_SMALL}).status, 2);
  EXPECT_EQ(run_program({POCKET_RUN_SMALL, kStories, "--min-p", "0.1"}).status, 2);
}

TEST(SmallProgram, ChatsLikeTheFullProgram) {
  NEED_DOWNLOAD(model, "smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf");
  const TemporaryFolder t;
  ASSERT_EQ(run_program({POCKET_CONVERT, model, "--type", "q8", "-o", t.file("m.bin")}).status, 0);
  const std::string input = "What is the capital of Finland?\n\nAnd of Sweden?\n";
  EXPECT_NE(expect_same({t.file("m.bin"), "-m", "chat", "-t", "0", "-n", "60"}, input).out.find("Helsinki"),
            std::string::npos);
  expect_same({t.file("m.bin"), "-m", "chat", "-s", "5", "-y", "Answer in rhyme.", "-i", "Hello", "-n", "30"}, input);
  expect_same({t.file("m.bin"), "-i", "The sea", "-s", "2", "-n", "30"});
}

}  // namespace small_program_test
