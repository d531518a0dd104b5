// run_program.hpp: a fixture for tests that execute ./run on small models.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "program.hpp"

// Executes ./run. The suite has a small model with random weights of each type.
class RunProgram : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder = new TemporaryFolder;
    for (const char* type : {"f32", "q8", "q4"}) {
      const auto made = run_program(
          {POCKET_CONVERT, "--random", "tiny", "--type", type, "-o", folder->file(std::string(type) + ".bin")});
      ASSERT_EQ(made.status, 0) << made.err;
    }
  }
  static void TearDownTestSuite() { delete folder; }

  static std::string model(const std::string& type = "q8") { return folder->file(type + ".bin"); }

  static ProgramResult run(std::vector<std::string> args, const ProgramOptions& options = {}) {
    args.insert(args.begin(), POCKET_RUN);
    return run_program(args, options);
  }

  // The text on stdout of a run with -q. Expects success and nothing on stderr.
  static std::string text(std::vector<std::string> args, const ProgramOptions& options = {}) {
    args.push_back("-q");
    const ProgramResult r = run(args, options);
    EXPECT_EQ(r.status, 0) << r.err;
    EXPECT_EQ(r.err, "");
    return r.out;
  }

  // Expects a run with this exit status, one line on stderr that contains `words`, and nothing on stdout.
  static void expect_failure(int status, const std::vector<std::string>& args, const std::vector<std::string>& words,
                             const ProgramOptions& options = {}) {
    expect_failed_in_a_line(run(args, options), "run", status, words);
  }

  static TemporaryFolder* folder;
};
inline TemporaryFolder* RunProgram::folder = nullptr;
