// megabyte_text.hpp: stories as bytes, for training a MEGABYTE.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "../training_text.hpp"
#include "megabyte_train.hpp"

namespace pocket {

inline constexpr int kEndByte = 0xFF;  // ends a story; UTF-8 does not contain this byte

// A prompt or the beginning of a story: kStartId and the bytes.
inline std::vector<int> start_and_bytes(std::string_view text) {
  std::vector<int> ids = {kStartId};
  for (const char byte : text) ids.push_back(uint8_t(byte));
  return ids;
}

// Adds kStartId, the bytes of the story and kEndByte.
inline void add_bytes(TokenText& text, std::string_view story) {
  std::vector<int> ids = start_and_bytes(story);
  ids.push_back(kEndByte);
  text.add(ids, story.size());
}

}  // namespace pocket
