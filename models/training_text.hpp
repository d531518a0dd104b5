// training_text.hpp: a text of stories as tokens, and the windows of it that a model learns from or is judged by.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

#include "../export/engine.hpp"
#include "megabyte/megabyte_train.hpp"
#include "stories.hpp"

namespace pocket {

inline constexpr int kEndByte = 0xFF;  // ends a story that is learnt as bytes: UTF-8 has no such byte

// Stories one after the other: BOS, the story, EOS each, as far as the tokenizer has these; or kStartId, the bytes of
// the story, kEndByte.
struct TokenText {
  std::vector<int> ids;
  std::vector<size_t> begins;  // where each story begins
  size_t bytes = 0;            // of the stories in UTF-8, without what stands between them

  size_t end(size_t story) const { return story + 1 < begins.size() ? begins[story + 1] : ids.size(); }

  void add(std::string_view story, const Tokenizer& tokenizer) {
    begins.push_back(ids.size());
    const std::vector<int> more = tokenizer.encode(story);
    ids.insert(ids.end(), more.begin(), more.end());
    if (tokenizer.eos() >= 0) ids.push_back(tokenizer.eos());
    bytes += story.size();
  }

  void add_bytes(std::string_view story) {
    begins.push_back(ids.size());
    ids.push_back(kStartId);
    for (const char byte : story) ids.push_back(uint8_t(byte));
    ids.push_back(kEndByte);
    bytes += story.size();
  }
};

// What a model learns from: in each epoch the stories are shuffled and put one behind the other, and what comes of it
// is cut into windows, from a place on that differs from epoch to epoch. A window may begin and end within a story, but
// no token looks back beyond the beginning of its own. The windows depend on the seed, the epoch and the index alone.
class WindowStream {
 public:
  // The text stays in place, and has more tokens than a window.
  WindowStream(const TokenText& text, int context, uint64_t seed)
      : text_(text), context_(size_t(context)), seed_(seed) {
    seek(0, 0);
  }

  int64_t epoch() const { return epoch_; }
  int64_t index() const { return index_; }
  int64_t windows() const { return int64_t((ids_.size() - 1 - offset_) / context_); }  // of this epoch

  void seek(int64_t epoch, int64_t index) {
    if (epoch != epoch_) shuffle(epoch);
    index_ = index;
  }

  Window next() {
    if (index_ == windows()) seek(epoch_ + 1, 0);
    Window w;
    size_t first = offset_ + size_t(index_++) * context_;
    int looks_back_to = 0;
    for (size_t t = 0; t < context_; t++, first++) {
      if (begins_[first]) looks_back_to = int(t);
      w.ids.push_back(ids_[first]);
      w.targets.push_back(begins_[first + 1] ? -1 : ids_[first + 1]);
      w.first.push_back(looks_back_to);
    }
    return w;
  }

 private:
  // Fisher and Yates.
  void shuffle(int64_t epoch) {
    epoch_ = epoch;
    uint64_t state = seed_ + uint64_t(epoch) * 0xD1B54A32D192ED03;
    std::vector<size_t> order(text_.begins.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = i;
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[size_t(next_random(state) % i)]);
    ids_.clear(), begins_.clear();
    for (size_t story : order) {
      const size_t begin = text_.begins[story];
      ids_.insert(ids_.end(), text_.ids.begin() + ptrdiff_t(begin), text_.ids.begin() + ptrdiff_t(text_.end(story)));
      begins_.resize(ids_.size(), false);
      begins_[begins_.size() - (text_.end(story) - begin)] = true;
    }
    offset_ = size_t(next_random(state)) % (std::min(context_, ids_.size() - 1 - context_) + 1);
  }

  const TokenText& text_;
  size_t context_;
  uint64_t seed_;
  int64_t epoch_ = -1, index_ = 0;
  std::vector<int> ids_;      // of this epoch
  std::vector<bool> begins_;  // whether a story begins there
  size_t offset_ = 0;         // of the first window
};

// What a model is judged by: every token of every story but the first (BOS) counts once. A story longer than the
// context is read in windows that begin half a context apart, so that those that count have that much before them.
inline std::vector<Window> judging_windows(const TokenText& text, int context) {
  std::vector<Window> windows;
  for (size_t story = 0; story < text.begins.size(); story++) {
    const size_t end = text.end(story) - 1;  // the last token has nothing behind it
    size_t counted = text.begins[story];
    for (size_t at = counted; counted < end; at += size_t(std::max(1, context / 2))) {
      Window w;
      for (size_t i = at; i < std::min(end, at + size_t(context)); i++) {
        w.ids.push_back(text.ids[i]);
        w.targets.push_back(i < counted ? -1 : text.ids[i + 1]);
        w.first.push_back(0);
      }
      counted = std::max(counted, at + w.ids.size());
      windows.push_back(std::move(w));
    }
  }
  return windows;
}

inline size_t count_targets(const std::vector<Window>& windows) {
  size_t n = 0;
  for (const Window& w : windows) n += w.targets.size() - size_t(std::count(w.targets.begin(), w.targets.end(), -1));
  return n;
}

}  // namespace pocket
