// progress.hpp: the figures of a run, and its progress on stderr.
#pragma once

#include "../../export/progress.hpp"

namespace pocket::batch {

struct Figures {
  size_t done = 0, failed = 0;               // requests with a result; failed: with an error
  size_t resumed = 0;                        // of `done`: by an earlier run
  size_t prompt_tokens = 0, new_tokens = 0;  // of this run
};

// A line that is redrawn in place on a terminal; elsewhere a line every ten seconds.
class Progress {
 public:
  Progress(bool quiet, size_t requests, const Figures& figures)
      : quiet_(quiet), requests_(requests), figures_(figures) {}
  ~Progress() { erase(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void show() {
    const double now = seconds();
    if (quiet_ || now - shown_ < (terminal_ ? 0.2 : 10)) return;
    shown_ = now;
    drawn_ = terminal_;
    const size_t done = figures_.done - figures_.resumed;
    const double left = done > 0 ? elapsed() / double(done) * double(requests_ - figures_.done) : 0;
    std::fprintf(stderr, terminal_ ? "\r" : "run-batch: ");
    std::fprintf(stderr, "%zu of %zu requests, %zu failed, %.1f tok/s", figures_.done, requests_, figures_.failed,
                 double(figures_.new_tokens) / elapsed());
    if (done > 0) std::fprintf(stderr, ", %s left", duration(left).c_str());
    std::fprintf(stderr, terminal_ ? "\033[K" : "\n");
  }
  // Clears the line, so that a message can follow.
  void erase() {
    if (drawn_) std::fprintf(stderr, "\r\033[K");
    drawn_ = false;
  }
  double elapsed() const { return seconds() - start_; }

 private:
  bool quiet_;
  size_t requests_;
  const Figures& figures_;
  double start_ = seconds(), shown_ = start_;
  bool terminal_ = isatty(2), drawn_ = false;
};

}  // namespace pocket::batch
