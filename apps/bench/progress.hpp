// progress.hpp: the progress of a measurement, on stderr.
#pragma once

#include "../../export/program.hpp"

namespace pocket::bench {

/// On a terminal, one line that is overwritten and erased at the end; otherwise a line every five seconds.
class Progress {
 public:
  explicit Progress(size_t steps) : steps_(steps) {}
  ~Progress() {
    if (terminal_ && written_) std::fprintf(stderr, "\r\033[K");
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Announces the next step. Throws Failure after Ctrl-C.
  void operator()(const std::string& what) {
    stop_if_interrupted();
    step_++;
    const double now = seconds();
    if (now - shown_ < (terminal_ ? 0.1 : 5)) return;
    shown_ = now;
    written_ = true;
    if (terminal_)
      std::fprintf(stderr, "\r[%zu/%zu] %s \033[K", step_, steps_, what.c_str());
    else
      std::fprintf(stderr, "bench: %zu of %zu: %s\n", step_, steps_, what.c_str());
  }

 private:
  size_t steps_, step_ = 0;
  double shown_ = seconds();  // time of the last line; short measurements show none
  bool terminal_ = isatty(2), written_ = false;
};

}  // namespace pocket::bench
