// progress.hpp: a progress bar on stderr, and a model file written with one.
#pragma once

#include <cstdio>
#include <string>

#include "model_writer.hpp"
#include "program.hpp"

namespace pocket {

/// "42 s" or "3 min".
inline std::string duration(double seconds) {
  const bool minutes = seconds >= 100;
  return std::to_string(int((minutes ? seconds / 60 : seconds) + 0.5)) + (minutes ? " min" : " s");
}

/// A line that is redrawn in place on a terminal; elsewhere one line every ten seconds.
class ProgressBar {
 public:
  /// share: the part of the work that is done, 0 to 1; the first call sets the starting point. task: shown beside the
  /// bar. False if the user has interrupted the program.
  bool operator()(double share, const std::string& task) {
    const double now = seconds(), elapsed = now - start_;
    const bool terminal = platform::is_terminal(2);
    if (first_ < 0) first_ = share;
    if (!interrupted && share < 1 && now - shown_ < (terminal ? 0.1 : 10)) return true;
    if (elapsed < 1 && share < 1) return !interrupted;
    shown_ = now;
    const std::string left = share > first_ ? duration(elapsed / (share - first_) * (1 - share)) + " left" : "";
    if (terminal && elapsed > 1)
      draw(share, task, left);
    else if (!terminal && share < 1)
      std::fprintf(stderr, "convert: %.0f%%, %s, %s\n", share * 100, task.c_str(), left.c_str());
    return !interrupted;
  }

  /// Clears the line, so that a message can follow.
  static void erase() {
    if (platform::is_terminal(2)) std::fprintf(stderr, "\r\033[K");
  }

 private:
  static void draw(double share, const std::string& task, const std::string& left) {
    const int bars = int(share * 30);
    std::fprintf(stderr, "\r[%.*s%*s] %3.0f%%  %-28s %s \033[K", bars, "##############################", 30 - bars, "",
                 share * 100, task.c_str(), left.c_str());
    if (share >= 1) erase();
  }

  double start_ = seconds(), shown_ = start_, first_ = -1;
};

/// Writes a model file; returns its size in bytes. Throws Failure, and then leaves no file behind.
inline uint64_t write_with_progress(const std::string& path, const ModelParts& parts, const ReadRows& read) {
  ModelWriter writer;
  ProgressBar bar;
  const bool written = writer.write(path, parts, read, [&](const TensorSpec& spec, uint64_t done, uint64_t total) {
    return bar(double(done) / double(total), spec.name);
  });
  if (written) return writer.file_bytes();
  ProgressBar::erase();
  if (interrupted) throw Failure{130, "interrupted; nothing was written"};
  throw Failure{1, writer.error};
}

}  // namespace pocket
