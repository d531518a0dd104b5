// fault_test.cpp: what is left when memory runs out, a call of the system fails, or a signal arrives, at any point of a
// program: a message, complete files under their names, no temporary files. support/fault.cpp makes the calls fail. By
// default a few calls of each kind are tested; with POCKET_FAULTS=all in the environment, every one.
#include <gtest/gtest.h>

#include <sys/stat.h>

#include <csignal>
#include <functional>
#include <map>

#include "../support/program.hpp"
#include "../support/train_program.hpp"

#ifdef POCKET_FAULT_LIBRARY  // not with sanitizers, which have allocators of their own

namespace fault_test {

using Args = std::vector<std::string>;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Runs a program that writes the file `out`, in a folder where `out` exists, with one fault at a time.
class Faults : public testing::Test {
 protected:
  // A small model with random weights.
  std::string model(const std::string& type = "q8") {
    const std::string path = inputs.file(type + ".bin");
    EXPECT_EQ(run_program({POCKET_CONVERT, "--random", "tiny", "--type", type, "-o", path}).status, 0);
    return path;
  }
  // The command of a training of two steps.
  Args training(const std::string& output, const Args& more = {}) {
    return Args{POCKET_TRAIN, inputs.write("stories", pattern_stories(8)), "-o", output, "--dim", "16"} +
           Args{"--layers", "1", "--ctx", "16", "--batch", "1", "--vocab", "300", "--steps", "2", "--threads", "1"} +
           more;
  }

  // The state of a folder after a run.
  struct State {
    ProgramResult result;
    std::string out, files;  // the contents of `out`; the names of all files, one per line
    mode_t mode = 0;         // of `out`
  };

  // Runs the command with POCKET_FAULT in a new folder.
  State run(const std::string& fault, const std::string& count_file = "") {
    const TemporaryFolder folder;
    if (!replaces_nothing) {
      folder.write("out", "old");
      chmod(folder.file("out").c_str(), 0600);
    }
    Args args = {"env", "LD_PRELOAD=" POCKET_FAULT_LIBRARY, "POCKET_FAULT=" + fault};
    if (!count_file.empty()) args.push_back("POCKET_FAULT_COUNT=" + count_file);
    ProgramOptions options;
    options.folder = folder.path();
    options.input = input;
    State s = {run_program(args + command, options), {}, folder.list()};
    s.out = read_file(folder.file(replaces_nothing ? "out/adapter_model.safetensors" : "out"));
    struct stat info = {};
    if (stat(folder.file("out").c_str(), &info) == 0) s.mode = info.st_mode & 0777;
    return s;
  }

  // A run without faults; returns the number of calls of a kind.
  long count(const std::string& kind) {
    expected = run(kind + ":0", inputs.file("count"));
    EXPECT_EQ(expected.result.status, 0) << expected.result.err;
    EXPECT_NE(expected.out, old());
    EXPECT_TRUE(replaces_nothing || expected.mode == 0600);
    const long calls = std::atol(read_file(inputs.file("count")).c_str());
    EXPECT_TRUE(calls > 0 || kind == "map") << kind;
    std::filesystem::remove(inputs.file("count"));
    return calls;
  }

  // The calls to test: 1 ... calls, or some of them. The first allocation, of the C++ runtime, is before main().
  static std::vector<long> points(const std::string& kind, long calls, long most) {
    const long first = kind == "memory" ? 2 : 1;
    std::vector<long> all;
    if (std::getenv("POCKET_FAULTS")) most = calls;
    for (long i = 0; i < std::min(calls - first + 1, most); i++)
      all.push_back(calls - first + 1 <= most ? first + i : first + (2 * i + 1) * (calls - first) / (2 * most));
    return all;
  }

  // Calls of a kind fail, alone or with all later ones. calls: all of them.
  void expect_clean_failures(const std::string& kind, long calls, long most) {
    for (const long n : points(kind, calls, most))
      for (const char* later : {"", "+"}) {
        const std::string fault = kind + ":" + std::to_string(n) + later;
        const State s = run(fault);
        const bool failed = s.result.status != 0;
        EXPECT_TRUE(!failed || s.result.status == 1) << fault << ": " << s.result.status << s.result.err;
        EXPECT_TRUE(!failed || !s.result.err.empty()) << fault;
        // After the rename, only the durability of the name can fail, or what the program does next.
        const bool written = !failed || contains(s.result.err, "out: is complete, but");
        EXPECT_TRUE(s.out == (written ? expected.out : old()) || (continues && s.out == expected.out))
            << fault << ": " << s.result.err;
        expect_no_traces(s, fault);
      }
  }

  // A signal at calls of a kind.
  void expect_clean_ends(int signal, const std::string& kind, long calls, long most) {
    for (const long n : points(kind, calls, most)) {
      const std::string fault = kind + ":" + std::to_string(n) + ":" + std::to_string(signal);
      const State s = run(fault);
      // A signal to a thread of the engine, which blocks it, is lost. 130: Ctrl-C was handled.
      EXPECT_TRUE(s.result.status == 0 || s.result.status == 128 + signal) << fault << ": " << s.result.err;
      EXPECT_TRUE(s.out == old() || s.out == expected.out || (signal == SIGINT && complete(s.out))) << fault;
      if (signal != SIGKILL) expect_no_traces(s, fault);
    }
  }

  void expect_no_traces(const State& s, const std::string& fault) const {
    std::string files = "\n" + s.files;
    EXPECT_FALSE(contains(files, ".tmp.")) << fault << ": " << files;
    const size_t kept = files.find("\nout.calibrating\n");
    if (kept != files.npos) {
      EXPECT_TRUE(s.result.status != 1 || contains(s.result.err, "repeat the command to resume") ||
                  contains(s.result.err, "out of memory"))
          << fault << s.result.err;
      files.erase(kept, std::strlen("\nout.calibrating"));
    }
    for (size_t at = 1, end; at < files.size(); at = end + 1) {
      end = files.find('\n', at);
      EXPECT_TRUE(contains("\n" + expected.files, files.substr(at - 1, end - at + 2))) << fault << ": " << files;
    }
  }

  void expect_clean(long most) {
    for (const std::string kind : {"write", "sync", "rename", "map", "memory"}) {
      const long calls = count(kind);
      expect_clean_failures(kind, calls, kind == "memory" ? 2 * most : most);
      for (const int signal : {SIGTERM, SIGHUP, SIGINT, SIGKILL})
        if (kind == "write" || kind == "memory") expect_clean_ends(signal, kind, calls, (most + 1) / 2);
    }
  }

  std::string old() const { return replaces_nothing ? "" : "old"; }

  const TemporaryFolder inputs;
  Args command;
  std::string input;  // stdin
  // Whether `out` is a result after Ctrl-C, if it is another one then.
  std::function<bool(const std::string& out)> complete = [](const std::string&) { return false; };
  bool replaces_nothing = false;  // `out` is an adapter folder
  bool continues = false;         // the program goes on after it has written `out`
  State expected;                 // without faults
};

TEST_F(Faults, Convert) {
  command = {POCKET_CONVERT, model("f32"), "--type", "q8", "-o", "out"};
  expect_clean(6);
}

TEST_F(Faults, ConvertCalibrate) {
  command = {POCKET_CONVERT, "--random",  "tiny", "-o", "out", "--calibrate", inputs.write("text", "Hello world."),
             "--report",     "report.csv"};
  expect_clean(1);
}

TEST_F(Faults, RunSaveAndResume) {
  const std::string session = inputs.file("session"), file = model();
  complete = [&](const std::string& out) {
    return run_program({POCKET_RUN, file, "-n", "1", "--resume", inputs.write("interrupted", out)}).status == 0;
  };
  command = {POCKET_RUN, file, "-i", "Hello", "-n", "5", "-s", "1", "--save", "out"};
  expect_clean(4);
  ASSERT_EQ(run_program({POCKET_RUN, file, "-i", "Hello", "-n", "5", "-s", "1", "--save", session}).status, 0);
  command = {POCKET_RUN, file, "-n", "5", "-s", "1", "--resume", session, "--save", "out"};
  expect_clean(4);
}

TEST_F(Faults, RunLogitsAndChat) {
  const std::string file = model();
  command = {POCKET_RUN, file, "--ids", "1,2,3", "--logits", "out"};
  expect_clean(2);
  command = {POCKET_RUN, file, "-m", "chat", "--template", "plain", "-n", "3", "-s", "1", "--threads", "1"};
  input = "hello\n/save out\n";
  continues = true;
  complete = [](const std::string& out) { return out[0] == '[' && out.rfind("]\n") == out.size() - 2; };
  expect_clean(4);
}

TEST_F(Faults, Train) {
  command = training("out");
  expect_clean(4);
}

TEST_F(Faults, TrainResume) {
  ASSERT_EQ(run_program(training(inputs.file("m"))).status, 0);
  command = {POCKET_TRAIN,   inputs.file("stories"),     "-o", "out", "--resume",
             "--checkpoint", inputs.file("m.checkpoint")};
  expect_clean(4);
}

TEST_F(Faults, TrainAdapter) {
  ASSERT_EQ(run_program(training(inputs.file("m"), {"--type", "f32"})).status, 0);
  const Args options = {"--init", inputs.file("m"), "--lora-rank", "2", "--ctx", "16", "--batch", "1", "--steps", "1"};
  ASSERT_EQ(run_program(Args{POCKET_TRAIN, inputs.file("stories"), "-o", inputs.file("a")} + options).status, 0);
  command = {POCKET_TRAIN,   inputs.file("stories"),     "-o", "out", "--resume",
             "--checkpoint", inputs.file("a.checkpoint")};
  replaces_nothing = true;
  expect_clean(4);
}

// A whole training of an adapter. Killed between any two changes of its files, it gives the same adapter when resumed.
TEST_F(Faults, TrainAdapterOfQuantizedModel) {
  std::string lines;
  for (const char* what : {"ball", "kite", "cake", "boat"})
    for (const char* where : {"here", "lost"})
      lines += std::string("{\"prompt\": \"The ") + what + "\", \"completion\": \" was " + where + ".\"}\n";
  const std::string data = inputs.write("data.jsonl", lines), base = model();
  command = {POCKET_TRAIN, data,   "--init",    base, "--lora-rank", "2",    "--ctx",   "32",
             "--batch",    "1",    "--steps",   "6",  "--every",     "2",    "--valid", data,
             "--keep",     "best", "--threads", "1",  "--lr",        "0.01", "-o",      "out"};
  replaces_nothing = true;
  const long writes = count("write");
  expect_clean_failures("write", writes, 8);
  std::map<std::string, long> calls = {{"write", writes}};
  for (const char* kind : {"sync", "rename"}) calls[kind] = count(kind);
  const auto first_columns = [](const std::string& csv) {
    std::string steps;
    for (size_t at = 0; at < csv.size(); at = csv.find('\n', at) + 1)
      steps += csv.substr(at, csv.find(',', at) - at) + " ";
    return steps;
  };
  std::string losses;
  size_t resumed = 0;
  for (const auto& [kind, n] : calls)
    for (const long point : points(kind, n, kind == "write" ? 8 : 4)) {
      const std::string fault = kind + ":" + std::to_string(point) + ":" + std::to_string(SIGKILL);
      const TemporaryFolder folder;
      ProgramOptions options;
      options.folder = folder.path();
      const Args preload = {"env", "LD_PRELOAD=" POCKET_FAULT_LIBRARY, "POCKET_FAULT=" + fault};
      EXPECT_EQ(run_program(preload + command, options).status, 128 + SIGKILL) << fault;
      if (!std::filesystem::exists(folder.file("out"))) {
        const bool begun = std::filesystem::exists(folder.file("out.checkpoint"));
        resumed += begun;
        const Args resume = {POCKET_TRAIN, data, "--valid", data, "--init", base, "-o", "out", "--resume"};
        const ProgramResult r = run_program(begun ? resume : command, options);
        EXPECT_EQ(r.status, 0) << fault << r.err;
      }
      EXPECT_TRUE(read_file(folder.file("out/adapter_model.safetensors")) == expected.out) << fault;
      EXPECT_FALSE(read_file(folder.file("out/adapter_config.json")).empty()) << fault;
      const std::string steps = first_columns(read_file(folder.file("out.loss.csv")));
      if (losses.empty()) losses = steps;
      EXPECT_EQ(steps, losses) << fault;
    }
  EXPECT_GT(resumed, 8u);
}

// A second Ctrl-C, and the signals that end a program by default.
TEST_F(Faults, BusErrorsAndOtherSignalsDeleteTemporaryFiles) {
  command = {POCKET_CONVERT, "--random", "tiny", "-o", "out"};
  const long calls = count("write");
  for (const int signal : {SIGQUIT, SIGPIPE, SIGXCPU}) expect_clean_ends(signal, "write", calls, 3);
  const State s = run("write:3:" + std::to_string(SIGBUS));
  EXPECT_EQ(s.result.status, 1);
  EXPECT_EQ(s.result.err,
            "convert: a mapped file was truncated or became unreadable while in use; do not modify a model that is in "
            "use\n");
  EXPECT_EQ(s.files, "out\n");
}

// The prompt is a FIFO, which is opened after the model. The file keeps its embedding table.
TEST_F(Faults, ModelThatIsTruncatedWhileInUseEndsTheProgramWithAMessage) {
  const std::string script =
      "mkfifo p; $0 $1 -f p -n 3 -q --save s & pid=$!; exec 3> p; truncate -s 80000 $1; echo hello >&3; exec 3>&-; "
      "wait $pid";
  const TemporaryFolder folder;
  ProgramOptions options;
  options.folder = folder.path();
  const ProgramResult r = run_program({"sh", "-c", script, POCKET_RUN, model()}, options);
  EXPECT_EQ(r.status, 1);
  EXPECT_EQ(r.err,
            "run: a mapped file was truncated or became unreadable while in use; do not modify a model that is in use; "
            "or use --no-mmap\n");
  EXPECT_EQ(folder.list(), "p\n");
}

}  // namespace fault_test

#endif
