// terminal.hpp: a program on a terminal of its own, as a user talks to it: types, waits for what it says, presses
// Ctrl-C.
#pragma once

#include "program.hpp"

class TerminalProgram {
 public:
  // Starts args[0]. Its input, output and errors are the terminal, and what is typed is echoed as terminals do.
  explicit TerminalProgram(const std::vector<std::string>& args) {
    child_ = forkpty(&terminal_, nullptr, nullptr, nullptr);
    if (child_ < 0) abort();
    if (child_ == 0) program_detail::start_child(args, {}, 0, 1, 2);
  }
  ~TerminalProgram() {
    if (child_ > 0) kill(child_, SIGKILL), waitpid(child_, nullptr, 0);
    close(terminal_);
  }
  TerminalProgram(const TerminalProgram&) = delete;
  TerminalProgram& operator=(const TerminalProgram&) = delete;

  // All that came to the terminal.
  const std::string& output() const { return output_; }

  // Types a text; "\3" is Ctrl-C, "\4" Ctrl-D.
  void type(const std::string& text) { EXPECT_EQ(write(terminal_, text.data(), text.size()), ssize_t(text.size())); }

  // Waits, a minute at most, for a text behind those that were waited for before. Returns whether it came.
  bool hears(const std::string& text) {
    const bool came = read_until([&] {
      const size_t found = output_.find(text, heard_);
      if (found == std::string::npos) return false;
      heard_ = found + text.size();
      return true;
    });
    EXPECT_TRUE(came) << text << " in " << output_.substr(heard_);
    return came;
  }
  // The same for so many more bytes, whatever they are.
  bool hears_bytes(size_t n) {
    const size_t wanted = output_.size() + n;
    return read_until([&] { return output_.size() >= wanted; });
  }

  // Waits for its end. The exit status; 128 + signal where it was killed by one.
  int ends() {
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
  bool open_ = true;
  std::string output_;
  size_t heard_ = 0;  // where in output_ the text that was waited for last ends
};
