// text_lines.hpp: the lines of a text file in which '#' begins a comment.
#pragma once

#include <sstream>
#include <string>
#include <vector>

namespace pocket {

/// A line. number: from 1.
struct TextLine {
  size_t number;
  std::string text;
};

/// The lines that are not empty and do not begin with '#', without the end of the line, which may be CR LF.
inline std::vector<TextLine> lines_without_comments(const std::string& text) {
  std::vector<TextLine> lines;
  std::istringstream in(text);
  size_t number = 0;
  for (std::string line; std::getline(in, line);) {
    number++;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (!line.empty() && line[0] != '#') lines.push_back({number, line});
  }
  return lines;
}

}  // namespace pocket
