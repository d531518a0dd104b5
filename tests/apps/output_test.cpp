// output_test.cpp: the files of --save, --logits and /save: only regular files are replaced, and a file that cannot be
// written is reported before the text.
#include <gtest/gtest.h>

#include <sys/stat.h>

#include "../support/run_program.hpp"

namespace output_test {

class RunOutputs : public RunProgram {
 protected:
  // A run that writes `path` with one of the options.
  ProgramResult write(const std::string& option, const std::string& path) {
    ProgramOptions chat;
    chat.input = "hello\n/save " + path + "\n";
    if (option == "/save") return run({model(), "-m", "chat", "--template", "plain", "-n", "1", "-q"}, chat);
    if (option == "--logits") return run({model(), "--ids", "1,2", option, path, "-q"});
    return run({model(), "-i", "Hello", "-n", "1", "-q", option, path});
  }
  static mode_t mode_of(const std::string& path) {
    struct stat info = {};
    EXPECT_EQ(lstat(path.c_str(), &info), 0) << path;
    return info.st_mode;
  }

  const TemporaryFolder t;
  const std::vector<std::string> options = {"--save", "--logits", "/save"};
};

TEST_F(RunOutputs, DoNotReplaceWhatIsRead) {
  const std::string copy = t.write("model.bin", read_file(model()));
  std::filesystem::create_symlink("model.bin", t.file("link"));
  for (const std::string& name : {copy, t.file("link")}) {
    for (const char* option : {"--save", "--logits"}) {
      const ProgramResult r = run({copy, "--ids", "1,2", "-n", "1", "-q", option, name});
      EXPECT_EQ(r.status, 1) << option;
      EXPECT_NE(r.err.find("expected another file to write than " + copy), std::string::npos) << r.err;
    }
    ProgramOptions chat;
    chat.input = "hello\n/save " + name + "\n";
    const ProgramResult r = run({copy, "-m", "chat", "--template", "plain", "-n", "1", "-q"}, chat);
    EXPECT_NE(r.err.find("expected another file to write than " + copy), std::string::npos) << r.err;
  }
  EXPECT_EQ(read_file(copy), read_file(model()));
}

TEST_F(RunOutputs, ReplaceTargetsOfLinksAndKeepTheirMode) {
  const std::string target = t.write("target", "old");
  chmod(target.c_str(), 0600);
  std::filesystem::create_symlink("target", t.file("link"));
  for (const std::string& option : options) {
    t.write("target", "old");
    const ProgramResult r = write(option, t.file("link"));
    EXPECT_EQ(r.status, 0) << option << r.err;
    EXPECT_TRUE(S_ISLNK(mode_of(t.file("link")))) << option;
    EXPECT_EQ(mode_of(target) & 0777, 0600u) << option;
    EXPECT_NE(read_file(target), "old") << option;
  }
  EXPECT_EQ(t.list(), "link\ntarget\n");
}

TEST_F(RunOutputs, AreWrittenDirectlyToDevices) {
  const std::string null = t.null_device("null"), full = t.full_device("full");
  if (null.empty() || full.empty()) GTEST_SKIP() << "devices cannot be created here";
  std::filesystem::create_symlink("null", t.file("link"));
  for (const std::string& option : options) {
    for (const std::string& path : {null, t.file("link")}) EXPECT_EQ(write(option, path).status, 0) << option;
    EXPECT_TRUE(S_ISCHR(mode_of(null))) << option;
    const ProgramResult r = write(option, full);
    EXPECT_EQ(r.status, 1) << option;
    EXPECT_NE(r.err.find(full + ": No space left on device"), std::string::npos) << r.err;
  }
  EXPECT_EQ(t.list(), "full\nlink\nnull\n");
}

TEST_F(RunOutputs, AreWrittenDirectlyToPipes) {
  std::filesystem::create_symlink("/proc/self/fd/1", t.file("stdout"));
  EXPECT_EQ(write("--logits", t.file("stdout")).out.size(), 2u * 512 * sizeof(float));
  const std::string script = "mkfifo $1/fifo && { cat $1/fifo & } && $0 $2 --ids 1,2 --logits $1/fifo -q && wait";
  EXPECT_EQ(run_program({"sh", "-c", script, POCKET_RUN, t.path(), model()}).out.size(), 2u * 512 * sizeof(float));
  EXPECT_EQ(t.list(), "fifo\nstdout\n");
}

TEST_F(RunOutputs, AreCheckedBeforeTheText) {
  std::filesystem::create_symlink("none", t.file("dangling"));
  for (const std::string& path : {t.path(), t.file("none/a"), t.file("dangling"), t.file("a/")})
    for (const char* option : {"--save", "--logits"}) {
      const ProgramResult r = write(option, path);
      EXPECT_EQ(r.status, 1) << option << " " << path;
      EXPECT_EQ(r.out, "");
      EXPECT_EQ(r.err.rfind("run: " + path + ": ", 0), 0u) << r.err;
    }
  EXPECT_EQ(t.list(), "dangling\n");
}

}  // namespace output_test
