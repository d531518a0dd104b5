// chat_input.hpp: the lines that a user types in a chat, and Ctrl-C.
#pragma once

#include "job.hpp"

namespace pocket::cli {

inline volatile std::sig_atomic_t chat_interrupts = 0;  // number of Ctrl-C since the last line of input

// The first Ctrl-C stops a reply, the second one ends the program in good order. A third one kills it, should that take
// long.
inline void on_chat_interrupt(int signal) {
  chat_interrupts = chat_interrupts + 1;
  if (chat_interrupts > 1) std::signal(signal, end_by_signal);
  interrupt();
}

// Installs on_chat_interrupt(). Throws Failure if Ctrl-C was pressed before.
inline void catch_chat_interrupts() {
  platform::catch_interrupt(on_chat_interrupt, true);
  stop_if_interrupted();
}

// Reads standard input line by line, with a prompt "> " on a terminal.
class LineReader {
 public:
  enum class Result { line, end, interrupted };

  // Reads a line without its line break. `interrupted`: Ctrl-C was pressed first, and the text typed so far is lost.
  // Throws Failure if the line is longer than any message may be.
  Result read(std::string& line) {
    const bool terminal = platform::is_terminal(0);
    interrupted = 0;
    if (terminal) std::fprintf(stderr, "> ");
    line.clear();
    int c;
    while ((c = next_byte()) >= 0 && c != '\n') {
      line += char(c);
      if (line.size() > kLongestPrompt)
        throw Failure{
            1, "standard input: line: expected at most " + std::to_string(kLongestPrompt) + " bytes, found more"};
    }
    interrupted = 0;
    if (c != '\n' && terminal) std::fprintf(stderr, "\n");
    if (c == kInterrupted) return Result::interrupted;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    return c == EOF && line.empty() ? Result::end : Result::line;
  }

 private:
  static constexpr int kInterrupted = -2;
  static constexpr int kPollMs = 100;

  // The next byte of standard input, EOF or kInterrupted. The wait is limited because the signal may arrive just before
  // poll(), or in another thread.
  int next_byte() {
    if (next_ == input_.size()) {
      int64_t n = -1;
      char bytes[4096];
      while (n < 0) {
        while (!interrupted && platform::wait_for_input(kPollMs) == 0) continue;
        if (interrupted) return kInterrupted;
        n = platform::read_input(bytes, sizeof bytes);
        if (n < 0 && errno != EINTR) throw Failure{1, std::string("standard input: ") + std::strerror(errno)};
      }
      input_.assign(bytes, size_t(n));
      next_ = 0;
      if (n == 0) return EOF;
    }
    return uint8_t(input_[next_++]);
  }

  std::string input_;  // bytes that were read
  size_t next_ = 0;    // index of the first one that belongs to no line yet
};

}  // namespace pocket::cli
