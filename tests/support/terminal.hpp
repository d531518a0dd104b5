// terminal.hpp: a program on a terminal of its own: types, waits for output, presses Ctrl-C.
#pragma once

#include "program.hpp"

class TerminalProgram {
 public:
  // Starts args[0] with a terminal as its standard input, output and error. The terminal echoes typed text.
  explicit TerminalProgram(const std::vector<std::string>& args) {
    child_ = forkpty(&terminal_, nullptr, nullptr, nullptr);
    if (child_ < 0) abort();
    if (child_ == 0) program_detail::start_child(args, {}, 0, 1, 2);
  }
  ~TerminalProgram() {
    if (child_ > 0) {
      kill(child_, SIGKILL);
      waitpid(child_, nullptr, 0);
    }
    close(terminal_);
  }
  TerminalProgram(const TerminalProgram&) = delete;
  TerminalProgram& operator=(const TerminalProgram&) = delete;

  // All output so far.
  const std::string& output() const { return output_; }

  // Types a text; "\3" is Ctrl-C, "\4" Ctrl-D.
  void type(const std::string& text) { EXPECT_EQ(write(terminal_, text.data(), text.size()), ssize_t(text.size())); }

  // Waits at most a minute for a text, after the one that was waited for last. Returns whether it was found.
  bool wait_for(const std::string& text) {
    const bool found = read_until([&] {
      const size_t at = output_.find(text, checked_);
      if (at == std::string::npos) return false;
      checked_ = at + text.size();
      return true;
    });
    EXPECT_TRUE(found) << text << " in " << output_.substr(checked_);
    return found;
  }

  // Waits at most a minute for n more bytes of output.
  bool wait_for_bytes(size_t n) {
    const size_t total = output_.size() + n;
    return read_until([&] { return output_.size() >= total; });
  }

  // Waits for the end of the program. Returns its exit status, or 128 + the signal that killed it.
  int wait_for_exit() {
    read_until([] { return false; });
    int status = 0;
    if (open_) kill(child_, SIGKILL);
    waitpid(child_, &status, 0);
    child_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  template <class F> bool read_until(const F& done) {
    const auto start = std::chrono::steady_clock::now();
    while (!done()) {
      if (!open_ || std::chrono::steady_clock::now() - start > std::chrono::minutes(1)) return false;
      pollfd fd = {terminal_, POLLIN, 0};
      if (poll(&fd, 1, 100) > 0) open_ = program_detail::drain(terminal_, output_);
    }
    return true;
  }

  int terminal_ = -1;
  pid_t child_ = -1;
  bool open_ = true;  // the program has the terminal open
  std::string output_;
  size_t checked_ = 0;  // end of the text that was waited for last
};
