// progress_line.hpp: the progress of long work on stderr.
#pragma once

#include <cstdio>
#include <string>

#include "../export/program.hpp"

namespace pocket {

inline std::string duration_text(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, seconds < 100 ? "%.0f s" : "%.0f min", seconds < 100 ? seconds : seconds / 60);
  return text;
}

// A line on stderr that is overwritten on a terminal; elsewhere a new line every ten seconds.
class ProgressLine {
 public:
  explicit ProgressLine(const char* program = "train") : program_(program) {}

  void show(const std::string& text) {
    const bool terminal = platform::is_terminal(2);
    if (seconds() - shown_ < (terminal ? 0.2 : 10)) return;
    shown_ = seconds();
    if (terminal)
      std::fprintf(stderr, "\r%s\033[K", text.c_str());
    else
      std::fprintf(stderr, "%s: %s\n", program_, text.c_str());
    open_ = terminal;
  }
  void clear() {
    if (open_) std::fprintf(stderr, "\r\033[K");
    open_ = false;
  }

 private:
  const char* program_;
  double shown_ = seconds();
  bool open_ = false;
};

}  // namespace pocket
