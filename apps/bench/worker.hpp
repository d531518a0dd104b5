// worker.hpp: a process of its own that runs a model and measures itself, told what to do line by line. So that its
// memory is the model's alone, and so that other programs can be measured in turn with it.
//
//     prompt N      forget everything, take N tokens in; seconds, to the first token that follows
//     generate N    N more tokens, then forget them again; seconds
//     peak          resident memory at its highest so far; bytes
//     expected N    what it should be after N tokens, by memory_of(); bytes
//
// Each line on stdin is answered by one number on stdout.
#pragma once

#include <spawn.h>
#include <sys/wait.h>

#include "../cli/job.hpp"
#include "../cli/open_model.hpp"

extern char** environ;

namespace pocket::bench {

/// A session that takes tokens in and tells how long that took. Throws Failure where the session fails.
class Meter {
 public:
  Meter(const Model& model, const SessionOptions& options) : open_(model, options), pick_(SamplerOptions{0}) {}

  void forget() { open_.session.rewind(0), next_ = 0; }

  /// Seconds that a prompt of n tokens takes, to the choice of the token that follows. Starts from nothing.
  double prompt(int n) {
    std::vector<int> ids;
    for (int i = 0; i < n; i++) ids.push_back(int(uint64_t(i + 1) * 0x9E3779B97F4A7C15 >> 33) % vocab_size());
    forget();
    const double start = seconds();
    feed(ids.data(), ids.size());
    return seconds() - start;
  }

  /// Seconds that n tokens take from here on, one by one, the likeliest each. Then the session is here again.
  double generate(int n) {
    const int from = open_.session.position(), first = next_;
    const double start = seconds();
    for (int i = 0; i < n; i++) feed(&next_, 1);
    const double taken = seconds() - start;
    open_.session.rewind(from);
    next_ = first;
    return taken;
  }

 private:
  int vocab_size() const { return open_.session.vocab_size(); }
  void feed(const int* ids, size_t n) {
    const float* logits = open_.session.forward(ids, n);
    if (!logits) cli::throw_failure(open_);
    next_ = pick_(logits, vocab_size());
  }

  cli::LlamaSession open_;
  Sampler pick_;
  int next_ = 0;
};

/// Throws Failure unless the model is a Llama, the only architecture that is measured here.
inline const std::string& checked_architecture(const std::string& model) {
  if (is_megabyte(model.c_str()))
    throw Failure{1, model + ": is a MEGABYTE model, which is not measured here; ./run reports its speed"};
  return model;
}

/// A Llama, and the options of its sessions.
struct OpenModel {
  explicit OpenModel(const cli::Arguments& a)
      : args(a), llama(checked_architecture(a.model)), model(llama.model), tokenizer(llama.tokenizer()) {}

  SessionOptions session_options() const { return cli::session_options(args); }

  const cli::Arguments& args;
  cli::Llama llama;
  const Model& model;
  const Tokenizer& tokenizer;
};

/// The process's own part: answers stdin's lines until there are no more.
inline void work(const cli::Arguments& a) {
  const OpenModel run(a);
  cli::Output out;
  const size_t before = cli::resident_memory();
  Meter meter(run.model, run.session_options());
  char line[64], verb[16];
  while (std::fgets(line, sizeof line, stdin)) {
    line[std::strcspn(line, "\n")] = 0;
    double answer = 0;
    int n = 0;
    const int words = std::sscanf(line, "%15s %d", verb, &n);
    const std::string what = words > 0 ? verb : "";
    if (what == "prompt" && n > 0)
      answer = meter.prompt(n);
    else if (what == "generate" && n > 0)
      answer = meter.generate(n);
    else if (what == "peak")
      answer = double(cli::peak_memory());
    else if (what == "expected" && n > 0)
      for (const MemoryItem& item : memory_of(run.model, run.session_options(), n)) answer += double(item.bytes);
    else
      throw Failure{2,
                    std::string("--worker: expected prompt N, generate N, peak or expected N, found '") + line + "'"};
    if (what == "expected") answer += double(before);
    out.write(std::to_string(answer) + "\n");
  }
  stop_if_interrupted();
}

/// The other end: starts this program as a worker. Throws Failure where that does not work.
class Worker {
 public:
  /// options: of the command line, the model among them
  explicit Worker(const std::vector<std::string>& options) {
    char self[4096];
    const ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length < 0) throw Failure{1, std::string("/proc/self/exe: ") + std::strerror(errno)};
    self[length] = 0;
    std::vector<std::string> words = {self, "--worker"};
    words.insert(words.end(), options.begin(), options.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(&word[0]);
    argv.push_back(nullptr);
    start(argv.data());
  }
  ~Worker() {
    ::close(to_);
    ::close(from_);
    waitpid(child_, nullptr, 0);
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  double ask(const std::string& command) {
    const std::string line = command + "\n";
    std::string answer;
    bool good = write(to_, line.data(), line.size()) == ssize_t(line.size());
    for (char c = 0; good && c != '\n'; answer += c) good = read(from_, &c, 1) == 1;
    stop_if_interrupted();
    if (!good) throw Failure{1, "the process that measures '" + command + "' ended"};
    return std::strtod(answer.c_str(), nullptr);
  }

 private:
  void start(char** argv) {
    std::signal(SIGPIPE, SIG_IGN);  // what it does not take is told by ask()
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0) throw Failure{1, std::string("pipe: ") + std::strerror(errno)};
    if (pipe2(out, O_CLOEXEC) != 0) throw Failure{1, std::string("pipe: ") + std::strerror(errno)};
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, in[0], 0);
    posix_spawn_file_actions_adddup2(&files, out[1], 1);
    const int failed = posix_spawn(&child_, argv[0], &files, nullptr, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    ::close(in[0]);
    ::close(out[1]);
    to_ = in[1], from_ = out[0];
    if (failed) throw Failure{1, std::string(argv[0]) + ": " + std::strerror(failed)};
  }

  int to_ = -1, from_ = -1;
  pid_t child_ = -1;
};

}  // namespace pocket::bench
