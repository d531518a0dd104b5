// statistics.hpp: medians of repeated measurements.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace pocket::bench {

/// The q-quantile of the values, interpolated linearly; q = 0.5 is the median. NaN if there are no values.
inline double quantile(std::vector<double> values, double q) {
  if (values.empty()) return std::nan("");
  std::sort(values.begin(), values.end(), [](double a, double b) { return std::isnan(b) ? !std::isnan(a) : a < b; });
  const double at = q * double(values.size() - 1);
  const size_t low = size_t(at), high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - double(low)) * (values[high] - values[low]);
}

inline double median(const std::vector<double>& values) { return quantile(values, 0.5); }

/// The median of the ratios a[i] / b[i], so that only measurements of the same round are compared.
inline double median_ratio(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> ratios;
  for (size_t i = 0; i < std::min(a.size(), b.size()); i++) ratios.push_back(a[i] / b[i]);
  return median(ratios);
}

}  // namespace pocket::bench
