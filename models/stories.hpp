// stories.hpp: splits a text into stories, in the format of TinyStories: stories with a line <|endoftext|> between
// them.
#pragma once

#include <string_view>
#include <vector>

namespace pocket {

inline constexpr char kStoryEnd[] = "<|endoftext|>";

// The stories of a text in order, without surrounding white space and without empty ones. A text without kStoryEnd is
// one story. The results are views of the text.
inline std::vector<std::string_view> split_stories(std::string_view text) {
  constexpr char kSpaces[] = " \t\r\n";
  std::vector<std::string_view> stories;
  while (!text.empty()) {
    const size_t end = text.find(kStoryEnd);
    std::string_view story = text.substr(0, end);
    text.remove_prefix(end == text.npos ? text.size() : end + sizeof kStoryEnd - 1);
    const size_t first = story.find_first_not_of(kSpaces);
    if (first == story.npos) continue;
    story.remove_prefix(first);
    stories.push_back(story.substr(0, story.find_last_not_of(kSpaces) + 1));
  }
  return stories;
}

}  // namespace pocket
