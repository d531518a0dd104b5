// program.hpp: executes a program as a user does, and returns its output and exit status.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "files.hpp"

#ifdef POCKET_SANITIZED  // set by CMake
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif
// A program that takes longer is killed. Sanitizers make calibration, the longest task, some twenty times slower.
inline constexpr int kTimeoutMs = (kSanitized ? 20 : 4) * 60 * 1000;

struct ProgramOptions {
  std::string input;  // of stdin
  bool close_stdin = false, close_stdout = false;
  bool broken_stdout = false;          // stdout is a pipe that nobody reads
  std::string stdout_file;             // a file in place of the pipe of stdout
  bool terminal = false;               // stdout is a terminal
  bool stderr_terminal = false;        // stderr is a terminal
  std::string folder;                  // working directory
  size_t largest_file = 0;             // RLIMIT_FSIZE in bytes; 0: no limit
  int interrupt_after_ms = -1;         // send SIGINT after this time
  std::string interrupt_after_output;  // send SIGINT after this text on stdout
};

struct ProgramResult {
  int status = -1;  // exit status, or 128 + the signal that killed the program
  std::string out, err;
  size_t peak_bytes = 0;  // peak resident memory
};

namespace program_detail {

inline void start_child(const std::vector<std::string>& args, const ProgramOptions& o, int in, int out, int err) {
  if (!o.folder.empty() && chdir(o.folder.c_str()) != 0) _exit(126);
  dup2(in, 0);
  dup2(out, 1);
  dup2(err, 2);
  for (int fd = 3; fd < 64; fd++) close(fd);
  if (o.close_stdin) close(0);
  if (o.close_stdout) close(1);
  if (int ends[2]; o.broken_stdout && pipe(ends) == 0) {
    dup2(ends[1], 1);
    close(ends[0]);
    close(ends[1]);
  }
  if (!o.stdout_file.empty()) {
    const int file = open(o.stdout_file.c_str(), O_WRONLY);
    dup2(file, 1);
    close(file);
  }
  if (o.largest_file) {
    const rlimit limit = {o.largest_file, o.largest_file};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  std::vector<char*> argv;
  for (const std::string& a : args) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  execvp(argv[0], argv.data());
  _exit(127);
}

// Appends the available bytes of fd to text. Returns false at its end.
inline bool drain(int fd, std::string& text) {
  char piece[65536];
  const ssize_t n = read(fd, piece, sizeof piece);
  if (n > 0) text.append(piece, size_t(n));
  return n > 0;
}

// A pipe, or a terminal. ends: the reading and the writing end.
inline void open_output(bool terminal, int ends[2]) {
  if (terminal ? openpty(&ends[0], &ends[1], nullptr, nullptr, nullptr) : pipe(ends)) abort();
}

}  // namespace program_detail

// Executes args[0] with the other arguments, and waits for its end.
inline ProgramResult run_program(const std::vector<std::string>& args, const ProgramOptions& o = {}) {
  using namespace program_detail;
  using Clock = std::chrono::steady_clock;
  signal(SIGPIPE, SIG_IGN);
  int in[2], out[2], err[2];
  if (pipe(in)) abort();
  open_output(o.terminal, out);
  open_output(o.stderr_terminal, err);
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGPIPE, SIG_DFL);
    start_child(args, o, in[0], out[1], err[1]);
  }
  close(in[0]);
  close(out[1]);
  close(err[1]);
  fcntl(in[1], F_SETFL, O_NONBLOCK);
  ProgramResult result;
  size_t given = 0;
  bool out_open = true, err_open = true, in_open = true, interrupted = false;
  const auto start = Clock::now();
  while (out_open || err_open) {
    if (in_open && given == o.input.size()) {
      close(in[1]);
      in_open = false;
    }
    pollfd fds[] = {
        {out_open ? out[0] : -1, POLLIN, 0}, {err_open ? err[0] : -1, POLLIN, 0}, {in_open ? in[1] : -1, POLLOUT, 0}};
    poll(fds, 3, 10);
    if (fds[0].revents) out_open = drain(out[0], result.out);
    if (fds[1].revents) err_open = drain(err[0], result.err);
    if (fds[2].revents) {
      const ssize_t n = write(in[1], o.input.data() + given, o.input.size() - given);
      if (n > 0) given += size_t(n);
      if (n < 0 && errno != EAGAIN) given = o.input.size();
    }
    const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start).count();
    const bool printed =
        !o.interrupt_after_output.empty() && result.out.find(o.interrupt_after_output) != std::string::npos;
    if (!interrupted && ((o.interrupt_after_ms >= 0 && ms >= o.interrupt_after_ms) || printed))
      interrupted = kill(child, SIGINT) == 0;
    if (ms > kTimeoutMs) kill(child, SIGKILL);
  }
  if (in_open) close(in[1]);
  close(out[0]);
  close(err[0]);
  int status = 0;
  rusage usage = {};
  wait4(child, &status, 0, &usage);
  result.peak_bytes = size_t(usage.ru_maxrss) * 1024;
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

// The number of characters that a terminal must not get: control characters except newline, tab and carriage return,
// which terminals add to newlines, separators of lines, and changes of the writing direction.
inline int count_controls(const std::string& text) {
  int n = 0;
  for (size_t i = 0; i < text.size(); i++) {
    const std::string c = text.substr(i, 3);
    n += (uint8_t(c[0]) < 32 && !std::strchr("\n\t\r", c[0])) || c[0] == 127;
    n += c[0] == '\xC2' && c.size() > 1 && uint8_t(c[1]) < 0xA0;
    n += c >= "\u2028" && c <= "\u202E";
    n += c >= "\u2066" && c <= "\u2069";
  }
  return n;
}

// Expects a program that failed with this status, with `words` on stderr and nothing on stdout.
inline void expect_failed(const ProgramResult& r, int status, const std::vector<std::string>& words) {
  EXPECT_EQ(r.status, status) << r.err;
  for (const std::string& word : words) EXPECT_NE(r.err.find(word), std::string::npos) << word << " in " << r.err;
  EXPECT_EQ(r.out, "");
}

// Expects the same, and that stderr is a single line that starts with the name of the program.
inline void expect_failed_in_a_line(const ProgramResult& r, const std::string& program, int status,
                                    const std::vector<std::string>& words) {
  expect_failed(r, status, words);
  EXPECT_EQ(r.err.rfind(program + ": ", 0), 0u) << r.err;
  EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), 1) << r.err;
}
