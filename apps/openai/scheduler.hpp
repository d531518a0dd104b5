// scheduler.hpp: generates several texts at once, with continuous batching: the next tokens of all of them go through
// the model in one pass, which reads the weights once, and the place of a finished text goes to the next one at once.
//
//     Scheduler scheduler(workspace, {}, {16, kv_bytes});
//     scheduler.submit({prompt_ids, 100, sampling, stop_ids, on_token, on_end});   // any number of times, at any time
//     while (scheduler.step()) {}
//
// A pass has up to kChunk tokens: one for each text that is being generated, and as many tokens of the prompts of new
// texts as there is room for. A text's logits are the same bits as alone, so that no text depends on the others.
//
// With Limits::kept, sessions of finished texts are kept, and a text that begins as one of them, or as one that is
// running, continues from the keys and values of their common beginning: the same bits as if it had computed them.
#pragma once

#include <deque>
#include <list>
#include <optional>
#include <unordered_map>

#include "../../export/memory.hpp"
#include "../../export/program.hpp"
#include "../grammar/grammar.hpp"

namespace pocket::openai {

// How the generation of a text ended. stopped: by on_token. limit: of tokens, or the context is full. failed: this text
// cannot be generated. no_memory: it could be, with more memory.
enum class End { stop_token, stopped, limit, failed, no_memory, cancelled };

// A text to be generated.
struct Generation {
  std::vector<int> prompt;  // at least one token, at most the context
  int max_tokens = -1;      // of the reply; -1: until the context is full; 0: the prompt is processed only
  SamplerOptions sampling;
  float frequency_penalty = 0, presence_penalty = 0;  // subtracted from the logit of a token: per occurrence in the
                                                      // reply, and once if it occurs
  std::vector<std::pair<int, float>> logit_bias;      // token id, what is added to its logit
  std::vector<int> stop_ids;                          // tokens that end the text; not handed out
  // Receives each token and the model's logits (vocab_size,) that it was chosen by. Returns false to end the text.
  std::function<bool(int id, const float* logits)> on_token;
  // The last call for this text. error: why it failed, else "".
  std::function<void(End end, const std::string& error)> on_end;
  // Receives the logits (vocab_size,) after token i of the prompt, for each i in order; null: they are not needed.
  std::function<void(size_t i, const float* logits)> on_prompt = nullptr;
  Observer observe = nullptr;                 // receives the outputs of the layers; null: not needed
  std::optional<Constraint> constraint = {};  // of the reply

  // Whether all of the prompt has to be processed, even if its keys and values are known.
  bool needs_prompt() const { return on_prompt || observe; }
};

// The number of tokens that two texts begin with in common, at most n.
inline int common_prefix(const std::vector<int>& a, const std::vector<int>& b, int n) {
  n = int(std::min({a.size(), b.size(), size_t(std::max(n, 0))}));
  return int(std::mismatch(a.begin(), a.begin() + n, b.begin()).first - a.begin());
}

// Sessions of finished texts, for texts that begin as they do. The oldest are dropped first; used ones become young.
class KeptSessions {
 public:
  struct Entry {
    std::unique_ptr<Session> session;
    std::vector<int> tokens;  // that it has processed
    size_t bytes;             // of its keys and values
  };
  using Place = std::list<Entry>::iterator;

  size_t size() const { return entries_.size(); }
  size_t bytes() const { return bytes_; }
  Place none() { return entries_.end(); }

  // The entry with the longest common beginning with a text, of which at most `most` tokens count, and its length. The
  // entry becomes the youngest.
  std::pair<Place, int> find(const std::vector<int>& text, int most) {
    std::pair<Place, int> best = {none(), 0};
    for (Place entry = entries_.begin(); entry != entries_.end(); ++entry)
      if (const int n = common_prefix(entry->tokens, text, most); n > best.second) best = {entry, n};
    if (best.first != none()) entries_.splice(entries_.end(), entries_, best.first);
    return best;
  }
  // Adds an entry. Returns the sessions that are not needed beside it: of texts that it begins with, or its own, if it
  // is the beginning of another.
  std::vector<std::unique_ptr<Session>> add(Entry entry) {
    std::vector<std::unique_ptr<Session>> unneeded;
    for (Place other = entries_.begin(); other != entries_.end();) {
      const Place at = other++;
      const int n = common_prefix(at->tokens, entry.tokens, INT_MAX);
      if (size_t(n) == entry.tokens.size()) {
        entries_.splice(entries_.end(), entries_, at);
        unneeded.push_back(std::move(entry.session));
        return unneeded;
      }
      if (size_t(n) == at->tokens.size()) unneeded.push_back(take(at));
    }
    bytes_ += entry.bytes;
    entries_.push_back(std::move(entry));
    return unneeded;
  }
  // Removes an entry and returns its session.
  std::unique_ptr<Session> take(Place entry) {
    std::unique_ptr<Session> session = std::move(entry->session);
    bytes_ -= entry->bytes;
    entries_.erase(entry);
    return session;
  }
  std::unique_ptr<Session> take_oldest() { return take(entries_.begin()); }

 private:
  std::list<Entry> entries_;  // the oldest first
  size_t bytes_ = 0;
};

// Runs generations. One thread at a time may use it. Callbacks may call submit() and cancel().
class Scheduler {
 public:
  struct Limits {
    int parallel = 1;     // texts at once, 1 to kChunk
    size_t kv_bytes = 0;  // memory of their keys and values
    size_t kept = 0;      // sessions of finished texts that are kept, as far as kv_bytes suffices
  };
  using Ticket = uint64_t;

  // The workspace must outlive the scheduler. options: context and kv of the sessions.
  Scheduler(Workspace& workspace, const SessionOptions& options, const Limits& limits)
      : workspace_(workspace), options_(options), limits_(limits) {
    limits_.parallel = std::max(1, std::min(limits.parallel, kChunk));
    if (options_.context == 0) options_.context = workspace.model().config.max_seq_len;
    SessionOptions two = options_;
    two.context = std::max(2, options_.context);
    const auto kv_bytes = [&](int n) { return memory_of(workspace.model(), two, n)[1].bytes; };
    position_bytes_ = kv_bytes(2) - kv_bytes(1);
  }

  // Bytes of the keys and values of a text, which are allocated in blocks.
  size_t kv_bytes(int tokens) const { return round_up(size_t(tokens), size_t(kBlockKeys)) * position_bytes_; }
  // The memory that a text needs which fills the context.
  size_t kv_bytes_of_context() const { return kv_bytes(options_.context); }

  Ticket submit(Generation generation) {
    waiting_.push_back({next_ticket_, std::move(generation)});
    return next_ticket_++;
  }
  // Ends a text in the next step(). Without effect if it has ended.
  void cancel(Ticket ticket) {
    for (auto& [waiting, generation] : waiting_)
      if (waiting == ticket) cancelled_.push_back(ticket);
    for (const auto& text : running_)
      if (text->ticket == ticket) cancelled_.push_back(ticket);
  }

  // Ends the texts that have not started, in the next step().
  void cancel_waiting() {
    for (const auto& waiting : waiting_) cancelled_.push_back(waiting.first);
  }

  size_t running() const { return running_.size(); }
  size_t waiting() const { return waiting_.size(); }
  int context() const { return options_.context; }
  uint64_t processed() const { return processed_; }  // tokens of all passes so far
  uint64_t reused() const { return reused_; }        // tokens of prompts whose keys and values were known
  uint64_t passes() const { return passes_; }
  size_t kept() const { return kept_.size(); }  // sessions of finished texts
  // Memory that is reserved for running texts, and that kept sessions occupy.
  size_t reserved_bytes() const { return used_; }
  size_t kept_bytes() const { return kept_.bytes(); }

  // One pass. Returns false if there is nothing left to do.
  bool step() {
    end_cancelled();
    admit();
    if (running_.empty()) return !waiting_.empty();
    std::vector<Step> steps;
    std::vector<Text*> texts, alone;  // texts: of each step; alone: those that need the logits of their whole prompt
    share_pass();
    for (const auto& text : running_) {
      if (text->share == 0) continue;
      if (text->in_prompt() && text->generation.on_prompt) {
        alone.push_back(text.get());
        continue;
      }
      steps.push_back({text->session.get(), text->next_ids(), size_t(text->share)});
      texts.push_back(text.get());
    }
    if (!steps.empty()) workspace_.forward(steps.data(), steps.size());
    for (size_t i = 0; i < steps.size(); i++) take(*texts[i], steps[i].logits);
    for (Text* text : alone) process_alone(*text);
    passes_++;
    remove_ended();
    return !running_.empty() || !waiting_.empty();
  }

 private:
  // A text in progress.
  struct Text {
    Ticket ticket;
    Generation generation;
    Sampler sampler;
    std::unique_ptr<Session> session;
    size_t kv_bytes;                                // reserved for it
    std::vector<int> tokens;                        // the prompt and the generated tokens
    std::unordered_map<int, int> occurrences = {};  // of generated tokens, for the penalties
    int share = 0;                                  // tokens in the next pass
    bool fresh = true, ended = false;               // fresh: no known beginning was looked up yet

    bool in_prompt() const { return size_t(session->position()) < generation.prompt.size(); }
    int unprocessed() const { return int(tokens.size()) - session->position(); }
    const int* next_ids() const { return tokens.data() + session->position(); }
    int generated() const { return int(tokens.size() - generation.prompt.size()); }
  };

  static constexpr int kLeastReused = 16;  // tokens of a common beginning; copying fewer is not worth while

  // Positions that a text fills at most. The last token is not processed.
  int positions(const Generation& g) const {
    const int64_t all = int64_t(g.prompt.size()) + (g.max_tokens < 0 ? INT_MAX : std::max(0, g.max_tokens - 1));
    return int(std::min<int64_t>(all, options_.context));
  }

  // Distributes the tokens of a pass: one to each text that is being generated. Of the rest the oldest prompt gets
  // half, so that it never waits for ever; then the shortest prompts come first, so that they do not wait for long ones.
  void share_pass() {
    int room = kChunk;
    std::vector<Text*> prompts;
    for (const auto& text : running_) {
      text->share = text->in_prompt() ? 0 : 1;
      room -= text->share;
      if (text->in_prompt() && is_ready(*text)) prompts.push_back(text.get());
    }
    if (prompts.empty()) return;
    const auto give = [&](Text& text, int most) {
      const int n = std::min({room, most, text.unprocessed() - text.share});
      text.share += n;
      room -= n;
    };
    give(*prompts[0], (room + 1) / 2);
    std::stable_sort(prompts.begin() + 1, prompts.end(),
                     [](const Text* a, const Text* b) { return a->unprocessed() < b->unprocessed(); });
    for (size_t i = 1; i < prompts.size(); i++) give(*prompts[i], room);
    give(*prompts[0], room);
  }

  // ---- Known beginnings ----

  // Whether the prompt of a text can be processed. If an older text has the same prompt, it is processed once.
  bool is_ready(Text& text) {
    if (!text.fresh || limits_.kept == 0) return true;
    const Generation& g = text.generation;
    for (const auto& older : running_) {
      if (older.get() == &text) break;
      if (older->in_prompt() && !g.needs_prompt() && older->generation.prompt == g.prompt) return false;
    }
    text.fresh = false;
    if (!g.needs_prompt()) continue_known(text);
    return true;
  }

  // Continues a new text from the session with the longest common beginning. The last token of the prompt is processed
  // in any case, for its logits.
  void continue_known(Text& text) {
    const std::vector<int>& prompt = text.generation.prompt;
    const int most = int(prompt.size()) - 1;
    auto [entry, longest] = kept_.find(prompt, most);
    const Session* parent = entry == kept_.none() ? nullptr : entry->session.get();
    for (const auto& other : running_) {
      const int n = common_prefix(other->tokens, prompt, std::min(most, other->session->position()));
      if (other.get() == &text || n <= longest) continue;
      longest = n;
      parent = other->session.get();
      entry = kept_.none();
    }
    if (longest < kLeastReused) return;
    if (entry != kept_.none() && size_t(longest) == entry->tokens.size()) {
      idle_.push_back(std::move(text.session));
      text.session = kept_.take(entry);
    } else if (!text.session->fork(*parent, longest)) {
      return;
    }
    reused_ += size_t(longest);
  }

  void recycle(std::unique_ptr<Session> session) {
    session->observe(nullptr);
    session->reset();
    session->error.clear();  // of the text that failed
    idle_.push_back(std::move(session));
  }

  // Keeps the session of an ended text for others that begin like it.
  void keep(Text& text) {
    const int n = text.session->position();
    text.session->observe(nullptr);
    if (limits_.kept == 0 || n < kLeastReused) return recycle(std::move(text.session));
    text.tokens.resize(size_t(n));
    for (auto& session : kept_.add({std::move(text.session), std::move(text.tokens), kv_bytes(n)}))
      recycle(std::move(session));
    while (kept_.size() > limits_.kept) recycle(kept_.take_oldest());
    make_room(0);
  }

  // Drops kept sessions, the oldest first, until so many bytes are free or none is left.
  void make_room(size_t bytes) {
    while (kept_.size() > 0 && used_ + kept_.bytes() + bytes > limits_.kv_bytes) recycle(kept_.take_oldest());
  }

  // ---- Texts ----

  // Starts waiting texts, in order, while there are places and memory for them.
  void admit() {
    while (!waiting_.empty() && running_.size() < size_t(limits_.parallel)) {
      const Generation& next = waiting_.front().second;
      const size_t needed = kv_bytes(positions(next));
      if (!running_.empty() && used_ + needed > limits_.kv_bytes) return;
      kept_.find(next.prompt, int(next.prompt.size()) - 1);  // which becomes the last to be dropped
      make_room(needed);
      auto [ticket, generation] = std::move(waiting_.front());
      waiting_.pop_front();
      start(ticket, std::move(generation), needed);
    }
  }

  void start(Ticket ticket, Generation generation, size_t needed) {
    std::unique_ptr<Session> session = take_session();
    if (!session->error.empty()) return generation.on_end(End::no_memory, session->error);
    if (generation.prompt.empty() || generation.prompt.size() > size_t(options_.context))
      return generation.on_end(End::failed,
                               generation.prompt.empty() ? "the prompt is empty" : "the prompt is too long");
    const Sampler sampler(generation.sampling);
    session->observe(generation.observe, false);
    std::vector<int> tokens = generation.prompt;
    auto text = std::make_unique<Text>(
        Text{ticket, std::move(generation), sampler, std::move(session), needed, std::move(tokens)});
    for (const int id : text->generation.prompt) text->sampler.remember(id);
    used_ += needed;
    running_.push_back(std::move(text));
  }

  std::unique_ptr<Session> take_session() {
    if (idle_.empty()) return std::make_unique<Session>(workspace_, options_);
    std::unique_ptr<Session> session = std::move(idle_.back());
    idle_.pop_back();
    return session;
  }

  // Processes a part of a prompt, with the logits of each token.
  void process_alone(Text& text) {
    const size_t first = size_t(text.session->position()), n = size_t(text.share);
    bool taken = false;
    const bool good = text.session->forward(text.next_ids(), n, [&](size_t i, const float* logits) {
      text.generation.on_prompt(first + i, logits);
      taken = i + 1 == n;
      if (taken) take(text, logits);
      return true;
    });
    if (!good && !taken) take(text, nullptr);
  }

  // Uses the logits after the last token of a text that was processed; null: that failed.
  void take(Text& text, const float* logits) {
    if (!logits) {
      const std::string error = text.session->error;
      return end(text, error == kNoMemory ? End::no_memory : End::failed, error);
    }
    processed_ += size_t(text.share);
    if (text.in_prompt()) return;
    const Generation& g = text.generation;
    if (g.max_tokens == 0) return end(text, End::limit);
    const int id = choose(text, logits);
    if (id < 0 && g.constraint && g.constraint->stuck()) return end(text, End::limit);
    if (id < 0) return end(text, End::no_memory, kNoMemory);
    if (std::find(g.stop_ids.begin(), g.stop_ids.end(), id) != g.stop_ids.end()) return end(text, End::stop_token);
    text.tokens.push_back(id);
    if (!g.on_token(id, logits)) return end(text, End::stopped);
    if (g.constraint && g.constraint->must_end()) return end(text, End::stop_token);
    if (text.generated() == g.max_tokens || text.session->position() == text.session->context()) end(text, End::limit);
  }

  int choose(Text& text, const float* logits) {
    Generation& g = text.generation;
    const int n = workspace_.model().config.vocab_size;
    const auto pick = [&](const float* from) {
      return g.constraint ? sample_allowed(text.sampler, *g.constraint, from, n) : text.sampler(from, n);
    };
    const bool penalized = g.frequency_penalty != 0 || g.presence_penalty != 0;
    if (!penalized && g.logit_bias.empty()) return pick(logits);
    adjusted_.assign(logits, logits + n);
    for (const auto& [id, bias] : g.logit_bias) adjusted_[size_t(id)] += bias;
    for (const auto& [id, count] : text.occurrences)
      adjusted_[size_t(id)] -= std::fma(g.frequency_penalty, float(count), g.presence_penalty);
    const int id = pick(adjusted_.data());
    if (penalized && id >= 0) text.occurrences[id]++;
    return id;
  }

  void end(Text& text, End how, const std::string& error = "") {
    text.ended = true;
    text.generation.on_end(how, error);
  }

  void end_cancelled() {
    for (const Ticket ticket : std::exchange(cancelled_, {})) {
      for (const auto& text : running_)
        if (text->ticket == ticket && !text->ended) end(*text, End::cancelled);
      const auto at = std::find_if(waiting_.begin(), waiting_.end(), [&](const auto& w) { return w.first == ticket; });
      if (at == waiting_.end()) continue;
      const Generation generation = std::move(at->second);
      waiting_.erase(at);
      generation.on_end(End::cancelled, "");
    }
    remove_ended();
  }

  // Gives back the places of the texts that have ended.
  void remove_ended() {
    for (const auto& text : running_) {
      if (!text->ended) continue;
      used_ -= text->kv_bytes;
      keep(*text);
    }
    running_.erase(std::remove_if(running_.begin(), running_.end(), [](const auto& text) { return text->ended; }),
                   running_.end());
  }

  static constexpr const char* kNoMemory = "out of memory";  // as in Session::error

  Workspace& workspace_;
  SessionOptions options_;
  Limits limits_;
  size_t position_bytes_;  // of the keys and values of one position
  size_t used_ = 0;        // of limits_.kv_bytes
  uint64_t processed_ = 0, reused_ = 0, passes_ = 0;
  Ticket next_ticket_ = 1;
  std::deque<std::pair<Ticket, Generation>> waiting_;
  std::vector<std::unique_ptr<Text>> running_;  // in the order of their start
  std::vector<std::unique_ptr<Session>> idle_;  // sessions at position 0
  KeptSessions kept_;
  std::vector<Ticket> cancelled_;
  std::vector<float> adjusted_;  // logits with penalties
};

}  // namespace pocket::openai
