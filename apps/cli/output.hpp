// output.hpp: stdout, which gets the text and nothing else, how lines on stderr keep clear of it, and opening the files
// of --save and --logits.
#pragma once

#include "../../export/engine.hpp"
#include "../../export/output_file.hpp"
#include "../../export/program.hpp"

namespace pocket::cli {

// Opens an output file. Throws Failure, also if Ctrl-C ends the wait for the reader of a FIFO.
inline void open_output(OutputFile& file, const std::string& path) {
  if (file.open(path)) return;
  stop_if_interrupted();
  throw Failure{1, file.error()};
}

// Standard output. A terminal gets no control characters but newline and tab, so that a model cannot send escape
// sequences to it.
class Output {
 public:
  // Throws Failure.
  void write(const std::string& text) {
    const std::string out = terminal_ ? without_controls(text) : text;
    if (std::fwrite(out.data(), 1, out.size(), stdout) != out.size() || std::fflush(stdout) != 0)
      throw Failure{1, std::string("standard output: ") + std::strerror(errno)};
    if (!out.empty()) line_open_ = out.back() != '\n';
  }

  // Ends the last line of a text on a terminal. A file or pipe gets the text unchanged.
  void end_text() {
    if (terminal_ && line_open_) write("\n");
  }

  // To be called before a line on stderr: if the text ends in the middle of a line and stderr is a terminal, where the
  // text may be shown as well, starts a new line there.
  void start_stderr_line() {
    if (line_open_ && platform::is_terminal(2)) std::fputc('\n', stderr);
    line_open_ = false;
  }

 private:
  bool terminal_ = platform::is_terminal(1);
  bool line_open_ = false;  // the text so far does not end with a newline
};

}  // namespace pocket::cli
