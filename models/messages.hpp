// messages.hpp: beginnings of messages to a chat model, one per line: "What is", "Tell me about the history of", or whole
// messages. Lines that are empty or begin with '#' do not count.
#pragma once

#include "../export/input_file.hpp"
#include "../export/text_lines.hpp"
#include "../run.cpp"

namespace pocket {

struct Messages {
  std::string path;
  std::vector<std::string> lines;
  uint64_t hash = 0;  // of the lines; 0: there are none

  // False with `error` set if the file is not readable or has no message.
  bool read(const std::string& file, std::string& error) {
    constexpr uint64_t kMostBytes = 64 << 20;
    std::string bytes;
    path = file;
    if (!read_small_file(file, kMostBytes, bytes, error)) return false;
    for (TextLine& line : lines_without_comments(bytes)) lines.push_back(std::move(line.text));
    if (lines.empty()) return fail(error, file + ": expected messages, one per line, found none");
    hash = hash_bytes(bytes.data(), bytes.size());
    return true;
  }
};

}  // namespace pocket
