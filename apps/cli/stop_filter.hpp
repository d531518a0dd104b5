// stop_filter.hpp: ends a text before a stop text (--stop), which may be split over several tokens.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace pocket::cli {

// Passes a text through up to the first stop text. Holds back the end of the text while it may be the beginning of a
// stop text.
class StopFilter {
 public:
  // `stops` must outlive the filter. Empty stop texts are ignored.
  explicit StopFilter(const std::vector<std::string>& stops) : stops_(stops) {}

  bool stopped = false;  // a stop text was found

  // Appends a text and returns the part that may be printed now, in whole UTF-8 characters. The stop text that is
  // complete first counts; of those that end together, the longest.
  std::string push(const std::string& text) {
    if (stopped) return "";
    held_ += text;
    size_t printable = find_stop();
    if (!stopped) printable = held_.size() - possible_stop();
    while (printable > 0 && printable < held_.size() && is_continuation(held_[printable])) printable--;
    const std::string out = held_.substr(0, printable);
    held_ = stopped ? "" : held_.substr(printable);
    return out;
  }

  // Returns the text that is held back, at the end of a text without a stop text.
  std::string flush() { return std::exchange(held_, ""); }

 private:
  static bool is_continuation(char c) { return (uint8_t(c) & 0xC0) == 0x80; }  // byte of a UTF-8 character

  // Sets `stopped` and returns where the stop text starts.
  size_t find_stop() {
    size_t start = 0, end = std::string::npos;
    for (const std::string& stop : stops_) {
      const size_t at = stop.empty() ? std::string::npos : held_.find(stop);
      if (at == std::string::npos || at + stop.size() > end || (at + stop.size() == end && at > start)) continue;
      stopped = true;
      start = at;
      end = at + stop.size();
    }
    return start;
  }

  // Length of the longest end of the text that is the beginning of a stop text.
  size_t possible_stop() const {
    size_t longest = 0;
    for (const std::string& stop : stops_)
      for (size_t n = std::min(stop.size(), held_.size()); n > longest; n--)
        if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) longest = n;
    return longest;
  }

  const std::vector<std::string>& stops_;
  std::string held_;
};

}  // namespace pocket::cli
