// worker.hpp: a separate process that runs a model and measures itself, controlled by commands, one per line. The peak
// memory of the process is then that of the model alone, and other programs can be measured in turns with it.
//
//     prompt N      reset the session, process N tokens and choose the next one; seconds
//     generate N    generate N more tokens, then rewind; seconds
//     parallel N    generate 32 tokens each in N conversations that share the passes, after 32 tokens each, then
//                   rewind; seconds, without the first 32 tokens (llama-batched-bench -npp 32 -ntg 32 -npl N)
//     peak          peak resident memory so far; bytes
//     expected N    memory predicted by memory_of() for N tokens; bytes
//
// Each line on stdin is answered by one number on stdout.
#pragma once

#include <spawn.h>
#include <sys/wait.h>

#include "conversations.hpp"
#include "text_model.hpp"

extern char** environ;

namespace pocket::bench {

/// A session that measures the time of its work. Throws Failure if the session fails.
class Meter {
 public:
  Meter(const Model& model, const SessionOptions& options) : session_(model, options), pick_(SamplerOptions{0}) {
    check_open(session_);
  }

  void reset() {
    session_.rewind(0);
    next_ = 0;
  }

  /// Resets the session and processes a prompt of n tokens. Returns the seconds until the next token is chosen.
  double prompt(int n) {
    std::vector<int> ids;
    for (int i = 0; i < n; i++) ids.push_back(int(uint64_t(i + 1) * 0x9E3779B97F4A7C15 >> 33) % session_.vocab_size());
    reset();
    const double start = seconds();
    forward(ids.data(), ids.size());
    return seconds() - start;
  }

  /// Generates n tokens, always the most likely one, and rewinds to the current position. Returns the seconds.
  double generate(int n) {
    const int position = session_.position(), next = next_;
    const double start = seconds();
    for (int i = 0; i < n; i++) forward(&next_, 1);
    const double taken = seconds() - start;
    session_.rewind(position);
    next_ = next;
    return taken;
  }

 private:
  void forward(const int* ids, size_t n) {
    stop_if_interrupted();
    const float* logits = session_.forward(ids, n);
    if (!logits) throw_failure(session_);
    next_ = pick_(logits, session_.vocab_size());
  }

  Session session_;
  Sampler pick_;
  int next_ = 0;
};

inline constexpr int kParallelTokens = 32;  // of each conversation of `parallel N`, before and while it is measured

/// The worker process: answers the commands on stdin until it ends. Throws Failure.
inline void serve_commands(const std::string& file, const SessionOptions& options) {
  const TextModel opened(file);
  const size_t base = platform::resident_memory();  // the program and the tokenizer
  Meter meter(opened.model, options);
  std::unique_ptr<Conversations> conversations;
  char line[64], verb[16];
  while (std::fgets(line, sizeof line, stdin)) {
    line[std::strcspn(line, "\n")] = 0;
    double answer = 0;
    int n = 0;
    const std::string command = std::sscanf(line, "%15s %d", verb, &n) > 0 ? verb : "";
    if (command == "prompt" && n > 0) {
      answer = meter.prompt(n);
    } else if (command == "generate" && n > 0) {
      answer = meter.generate(n);
    } else if (command == "parallel" && n > 0 && n <= kChunk) {
      if (!conversations || conversations->size() < n)
        conversations = std::make_unique<Conversations>(opened.model, options, n, kParallelTokens);
      answer = conversations->generate(n, kParallelTokens);
    } else if (command == "peak") {
      answer = double(platform::peak_memory());
    } else if (command == "expected" && n > 0) {
      answer = double(base);
      for (const MemoryItem& item : memory_of(opened.model, options, n)) answer += double(item.bytes);
    } else {
      throw Failure{2, std::string("--worker: expected prompt N, generate N, parallel N, peak or expected N, found '") +
                           line + "'"};
    }
    std::printf("%f\n", answer);
    if (std::fflush(stdout) != 0) throw Failure{1, std::string("standard output: ") + std::strerror(errno)};
  }
  stop_if_interrupted();
}

/// Starts this program as a worker process and sends it commands. Throws Failure if the process cannot be started, or
/// ends.
class Worker {
 public:
  /// options: command-line options, including the model file
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

  /// Sends a command and returns the answer.
  double ask(const std::string& command) {
    const std::string line = command + "\n";
    std::string answer;
    bool good = write(to_, line.data(), line.size()) == ssize_t(line.size());
    for (char c = 0; good && c != '\n'; answer += c) good = read(from_, &c, 1) == 1;
    stop_if_interrupted();
    if (!good) throw Failure{1, "the worker process ended during '" + command + "'"};
    return std::strtod(answer.c_str(), nullptr);
  }

 private:
  void start(char** argv) {
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
    to_ = in[1];
    from_ = out[0];
    if (failed) throw Failure{1, std::string(argv[0]) + ": " + std::strerror(failed)};
  }

  int to_ = -1, from_ = -1;  // file descriptors of the worker's stdin and stdout
  pid_t child_ = -1;
};

}  // namespace pocket::bench
