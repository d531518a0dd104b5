// Stop texts: the same text in one piece and in pieces, compared with a search in the whole text. The input is two stop
// texts and the text; the first byte of the text is the size of the pieces.
#include "../../../apps/cli/stop_filter.hpp"
#include "../target.hpp"
#include "use_tokenizer.hpp"

namespace fuzz::stop_filter {

// The text before the stop text that is complete first; of those that end together, before the longest.
std::string before_stop(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); end++) {
    size_t longest = 0;
    for (const std::string& stop : stops)
      if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0)
        longest = std::max(longest, stop.size());
    if (longest > 0) return text.substr(0, end - longest);
  }
  return text;
}

std::string filtered(const std::string& text, const std::vector<std::string>& stops, size_t piece) {
  pocket::cli::StopFilter filter(stops);
  std::string out;
  for (size_t at = 0; at < text.size(); at += piece) out += filter.push(text.substr(at, piece));
  return out + filter.flush();
}

void run(std::string_view input) {
  std::vector<std::string> parts = split(valid_utf8(input, false), 3);  // the text of a model is always valid
  if (parts[2].empty()) return;
  const std::string text = parts[2].substr(1);
  const std::vector<std::string> stops = {parts[0], parts[1]};
  const std::string expected = before_stop(text, stops);
  require(filtered(text, stops, text.size() + 1) == expected, "stop texts: found in one piece");
  require(filtered(text, stops, 1 + static_cast<unsigned char>(parts[2][0]) % 8) == expected,
          "stop texts: found in pieces");
}

std::vector<std::string> seeds() {
  return {join({"The end", "\n\n", "\2Once upon a time. The en The end\n\n"}), join({"", "aab", "\1aaaaaab"})};
}

const Registered target({"stop_filter", run, seeds});

}  // namespace fuzz::stop_filter
