// report.hpp: what the measuring program says while it works, and what it makes of many numbers.
#pragma once

#include "../cli/cli.hpp"
#include "../../export/json_writer.hpp"

namespace pocket::bench {

/// Where the work is, on stderr: on a terminal a line that is written over, elsewhere a line now and then.
class Progress {
 public:
  explicit Progress(size_t steps) : steps_(steps) {}
  ~Progress() {
    if (terminal_ && written_) std::fprintf(stderr, "\r\033[K");
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Before each of the steps. Throws Failure if Ctrl-C was pressed.
  void operator()(const std::string& what) {
    stop_if_interrupted();
    step_++;
    const double now = seconds();
    if (now - shown_ < (terminal_ ? 0.1 : 5)) return;
    shown_ = now, written_ = true;
    if (terminal_)
      std::fprintf(stderr, "\r[%zu/%zu] %s \033[K", step_, steps_, what.c_str());
    else
      std::fprintf(stderr, "bench: %zu of %zu: %s\n", step_, steps_, what.c_str());
  }

 private:
  size_t steps_, step_ = 0;
  double shown_ = seconds();  // what is over soon needs no word
  bool terminal_ = isatty(2), written_ = false;
};

// ---- Numbers ----

/// The value below which a share q of the values lie, between two of them where need be; q = 0.5: the median.
inline double quantile(std::vector<double> values, double q) {
  if (values.empty()) return std::nan("");
  std::sort(values.begin(), values.end());
  const double at = q * double(values.size() - 1);
  const size_t low = size_t(at), high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - double(low)) * (values[high] - values[low]);
}

inline double median(const std::vector<double>& values) { return quantile(values, 0.5); }

/// The median of the ratios a[i] / b[i]: what was measured side by side is compared with each other alone.
inline double median_ratio(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> ratios;
  for (size_t i = 0; i < std::min(a.size(), b.size()); i++) ratios.push_back(a[i] / b[i]);
  return median(ratios);
}

}  // namespace pocket::bench
