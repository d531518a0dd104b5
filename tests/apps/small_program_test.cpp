// small_program_test.cpp: the small program inside run.cpp, compiled from run.cpp and tokenizer.hpp alone, prints the
// same text and the same errors as the full program.
#include <gtest/gtest.h>

#include "../support/program.hpp"
#include "../support/test_data.hpp"

namespace small_program_test {

// Runs both programs and expects the same text and status. Returns the result of the small one.
ProgramResult expect_same(const std::vector<std::string>& args) {
  ProgramResult results[2];
  const char* programs[] = {POCKET_RUN, POCKET_RUN_SMALL};
  for (int i = 0; i < 2; i++) {
    std::vector<std::string> command = args;
    command.insert(command.begin(), programs[i]);
    results[i] = run_program(command);
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
  EXPECT_GT(expect_same({kStories, "-i", "Once upon a time", "-s", "5"}).out.size(), 200u);
  expect_same({kStories, "-i", "Once upon a time", "-t", "0", "-n", "30"});
  expect_same({kStories, "-i", "Tom", "-t", "1.2", "-p", "0.7", "-s", "9", "-n", "40"});
  expect_same({kStories, "-i", "The dog had a red ball.\nOne day", "-s", "3", "-n", "40"});
  expect_same({kStories, "-s", "4", "-n", "20"});
}

TEST(SmallProgram, ReportsErrorsLikeTheFullProgram) {
  const TemporaryFolder t;
  t.write("short.bin", "PKTLLAMA");
  for (const std::vector<std::string>& args : std::vector<std::vector<std::string>>{{kStories, "-n", "x"},
                                                                                    {kStories, "-t", "-1"},
                                                                                    {kStories, "-p", "2"},
                                                                                    {kStories, "-s", "1.5"},
                                                                                    {kStories, "--no-such-option"},
                                                                                    {kStories, "another.bin"},
                                                                                    {t.file("short.bin"), "-i", "a"}})
    EXPECT_NE(expect_same(args).status, 0);
}

// The pipe is full, so that the program waits with its first word until the model, which it has read, is truncated.
TEST(SmallProgram, DoesNotNeedTheFileWhileItRuns) {
  const TemporaryFolder t;
  const std::string model = t.write("m.bin", read_file(kStories)), status = t.file("status");
  const std::string program = std::string(POCKET_RUN_SMALL) + " " + model + " -i Once -s 1";
  const std::string script = "( head -c 65536 /dev/zero; " + program + "; echo $? > " + status +
                             " ) | ( sleep 0.5; truncate -s 4096 " + model + "; tail -c +65537 )";
  const ProgramResult r = run_program({"/bin/sh", "-c", script});
  EXPECT_EQ(read_file(status), "0\n") << r.err;
  EXPECT_EQ(r.out, run_program({POCKET_RUN_SMALL, kStories, "-i", "Once", "-s", "1"}).out);
}

TEST(SmallProgram, PrintsHelp) {
  const ProgramResult r = run_program({POCKET_RUN_SMALL, "--help"});
  EXPECT_EQ(r.status, 0);
  for (const char* option : {"-i TEXT", "-n N", "-t T", "-p P", "-s N"})
    EXPECT_NE(r.out.find(option), std::string::npos) << option;
  EXPECT_EQ(run_program({POCKET_RUN_SMALL}).status, 2);
  EXPECT_EQ(run_program({POCKET_RUN_SMALL, kStories, "-i"}).status, 2);
}

TEST(SmallProgram, RunsARealModelLikeTheFullProgram) {
  NEED_DOWNLOAD(model, "smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf");
  const TemporaryFolder t;
  ASSERT_EQ(run_program({POCKET_CONVERT, model, "--type", "q8", "-o", t.file("m.bin")}).status, 0);
  EXPECT_GT(expect_same({t.file("m.bin"), "-i", "The sea", "-s", "2", "-n", "30"}).out.size(), 60u);
}

}  // namespace small_program_test
