// training_text.hpp: stories as token ids, and the windows of them for training and validation.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

#include "stories.hpp"
#include "train_blocks.hpp"

namespace pocket {

// Stories as token ids, one after the other.
struct TokenText {
  std::vector<int> ids;
  std::vector<size_t> begins;  // index of the first token of each story
  size_t bytes = 0;            // of the texts of the tokens that count, in UTF-8

  // Of examples, else empty: whether a token counts in the loss. An example is never split between windows.
  std::vector<bool> counts;
  bool whole() const { return !counts.empty(); }

  // Of text that a teacher wrote, else empty: its first choice at each token (-1: it was given the token), and its
  // candidates, those of token i from likely_at[i] to likely_at[i + 1].
  std::vector<int> likeliest;
  std::vector<Candidate> likely;
  std::vector<size_t> likely_at;

  size_t end(size_t story) const { return story + 1 < begins.size() ? begins[story + 1] : ids.size(); }

  // Adds a story of so many bytes.
  void add(const std::vector<int>& story, size_t story_bytes) {
    begins.push_back(ids.size());
    ids.insert(ids.end(), story.begin(), story.end());
    bytes += story_bytes;
  }

  // Adds token i, which follows the last token of a window, to the window. fresh: a new story begins with token i.
  void add_target(Window& w, size_t i, bool fresh) const {
    w.targets.push_back(fresh || (whole() && !counts[i]) ? -1 : ids[i]);
    if (likely_at.empty()) return;
    const Candidates candidates = {likely.data() + likely_at[i], likely.data() + likely_at[i + 1]};
    if (fresh || candidates.begin == candidates.end) w.targets.back() = -1;
    w.likely.push_back(candidates);
    w.likeliest.push_back(fresh ? -1 : likeliest[i]);
  }

  // Adds BOS, the story and EOS, as far as the tokenizer has them. Without BOS the first token of the story has no token
  // before it that could predict it, and its bytes do not count either.
  void add(std::string_view story, const Tokenizer& tokenizer) {
    std::vector<int> tokens = ids_of(tokenizer, story);
    const bool predicted = tokens.empty() || tokens[0] == tokenizer.bos();
    const size_t first = predicted ? 0 : text_of(tokenizer, {tokens[0]}).size();
    if (tokenizer.eos() >= 0) tokens.push_back(tokenizer.eos());
    add(tokens, story.size() - std::min(first, story.size()));
  }

  // Adds an example. counted: of each token, whether it counts; of their text, so many bytes.
  void add_example(const std::vector<int>& tokens, const std::vector<bool>& counted, size_t counted_bytes) {
    add(tokens, counted_bytes);
    counts.insert(counts.end(), counted.begin(), counted.end());
  }
};

// The windows for training. In each epoch the stories are shuffled and concatenated, and the result is cut into windows
// at an offset that differs between epochs. A window may begin and end within a story, but no token attends to an
// earlier story. Examples stay whole: a window has as many as fit. A window depends only on the seed, the epoch and the
// index.
class WindowStream {
 public:
  // The text stays in place, and has more tokens than a window, or examples that fit one.
  WindowStream(const TokenText& text, int context, uint64_t seed)
      : text_(text), context_(size_t(context)), seed_(seed) {
    seek(0, 0);
  }

  int64_t epoch() const { return epoch_; }
  int64_t index() const { return index_; }  // of the next window
  int64_t windows() const {                 // in this epoch
    return text_.whole() ? int64_t(packs_.size()) - 1 : int64_t((order_.size() - 1 - offset_) / context_);
  }

  void seek(int64_t epoch, int64_t index) {
    if (epoch != epoch_) shuffle(epoch);
    index_ = index;
  }

  Window next() {
    if (index_ == windows()) seek(epoch_ + 1, 0);
    Window w;
    const size_t index = size_t(index_++), begin = text_.whole() ? packs_[index] : offset_ + index * context_,
                 end = text_.whole() ? packs_[index + 1] : begin + context_;
    int first = 0;
    for (size_t t = 0, at = begin; at < end; t++, at++) {
      if (begins_[at]) first = int(t);
      w.ids.push_back(text_.ids[order_[at]]);
      w.first.push_back(first);
      const bool last = at + 1 == order_.size();
      text_.add_target(w, last ? 0 : order_[at + 1], last || begins_[at + 1]);
    }
    return w;
  }

 private:
  // The Fisher-Yates shuffle.
  void shuffle(int64_t epoch) {
    epoch_ = epoch;
    uint64_t state = seed_ + uint64_t(epoch) * 0xD1B54A32D192ED03;
    std::vector<size_t> order(text_.begins.size());
    for (size_t i = 0; i < order.size(); i++) order[i] = i;
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[size_t(next_random(state) % i)]);
    order_.clear();
    begins_.clear();
    for (size_t story : order)
      for (size_t i = text_.begins[story]; i < text_.end(story); i++) {
        order_.push_back(i);
        begins_.push_back(i == text_.begins[story]);
      }
    if (text_.whole()) return pack(order);
    offset_ = size_t(next_random(state)) % (std::min(context_, order_.size() - 1 - context_) + 1);
  }

  // Packs examples in this order into windows, each into the last one if it has room.
  void pack(const std::vector<size_t>& examples) {
    size_t end = 0;
    packs_.assign(1, 0);
    for (const size_t example : examples) {
      const size_t tokens = text_.end(example) - text_.begins[example];
      if (end > packs_.back() && end + tokens > packs_.back() + context_) packs_.push_back(end);
      end += tokens;
    }
    packs_.push_back(end);
  }

  const TokenText& text_;
  size_t context_;
  uint64_t seed_;
  int64_t epoch_ = -1, index_ = 0;
  std::vector<size_t> order_;  // of this epoch: the tokens, as indices of the text
  std::vector<bool> begins_;   // whether a story begins at this token
  size_t offset_ = 0;          // of the first window
  std::vector<size_t> packs_;  // of examples: where windows begin, and the end
};

// The windows for validation. Every token of every story except the first (BOS) counts once. A story longer than the
// context is read in windows that begin half a context apart, so that at least half a context precedes the tokens that
// count.
inline std::vector<Window> validation_windows(const TokenText& text, int context) {
  std::vector<Window> windows;
  for (size_t story = 0; story < text.begins.size(); story++) {
    if (text.end(story) == text.begins[story]) continue;
    const size_t end = text.end(story) - 1;  // the last token has no next token
    size_t counted = text.begins[story];
    for (size_t at = counted; counted < end; at += size_t(std::max(1, context / 2))) {
      Window w;
      for (size_t i = at; i < std::min(end, at + size_t(context)); i++) {
        w.ids.push_back(text.ids[i]);
        w.first.push_back(0);
        text.add_target(w, i + 1, i < counted);
      }
      counted = std::max(counted, at + w.ids.size());
      windows.push_back(std::move(w));
    }
  }
  return windows;
}

// The number of tokens that count in the loss.
inline size_t count_targets(const std::vector<Window>& windows) {
  size_t n = 0;
  for (const Window& w : windows) n += w.targets.size() - size_t(std::count(w.targets.begin(), w.targets.end(), -1));
  return n;
}

}  // namespace pocket
