// scheduler.hpp: generates several texts at once, with continuous batching: the next tokens of all of them go through
// the model in one pass, which reads the weights once, and the place of a finished text goes to the next one at once.
//
//     Scheduler scheduler(workspace, {16, kv_bytes});
//     scheduler.submit({prompt_ids, 100, sampling, stop_ids, on_token, on_end});   // any number of times, at any time
//     while (scheduler.step()) {}
//
// A pass has up to kChunk tokens: one for each text that is being generated, and as many tokens of the prompts of new
// texts as there is room for. A text's logits are the same bits as alone, so that no text depends on the others.
#pragma once

#include <deque>
#include <unordered_map>

#include "../../export/engine.hpp"
#include "../../export/program.hpp"

namespace pocket::openai {

// How the generation of a text ended. stopped: by on_token. limit: of tokens, or the context is full. failed: this text
// cannot be generated. no_memory: it could be, with more memory.
enum class End { stop_token, stopped, limit, failed, no_memory, cancelled };

// A text to be generated.
struct Generation {
  std::vector<int> prompt;  // at least one token, at most the context
  int max_tokens = -1;      // of the reply; -1: until the context is full
  SamplerOptions sampling;
  float frequency_penalty = 0, presence_penalty = 0;  // subtracted from the logit of a token: per occurrence in the
                                                      // reply, and once if it occurs
  std::vector<std::pair<int, float>> logit_bias;      // token id, what is added to its logit
  std::vector<int> stop_ids;                          // tokens that end the text; not handed out
  // Receives each token and the model's logits (vocab_size,) that it was chosen by. Returns false to end the text.
  std::function<bool(int id, const float* logits)> on_token;
  // The last call for this text. error: why it failed, else "".
  std::function<void(End end, const std::string& error)> on_end;
};

// Runs generations. One thread at a time may use it. Callbacks may call submit() and cancel().
class Scheduler {
 public:
  struct Limits {
    int parallel = 1;     // texts at once, 1 to kChunk
    size_t kv_bytes = 0;  // memory of their keys and values
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

  size_t running() const { return running_.size(); }
  size_t waiting() const { return waiting_.size(); }
  int context() const { return options_.context; }
  uint64_t processed() const { return processed_; }  // tokens of all passes so far

  // One pass. Returns false if there is nothing left to do.
  bool step() {
    end_cancelled();
    admit();
    if (running_.empty()) return !waiting_.empty();
    std::vector<Step> steps;
    std::vector<Text*> texts;  // of each step
    int room = kChunk;
    for (const bool prompts : {false, true})
      for (const auto& text : running_) {
        if (text->in_prompt() != prompts || room == 0) continue;
        const int n = std::min(room, text->unprocessed());
        steps.push_back({text->session.get(), text->next_ids(), size_t(n)});
        texts.push_back(text.get());
        room -= n;
      }
    workspace_.forward(steps.data(), steps.size());
    for (size_t i = 0; i < steps.size(); i++) take(*texts[i], steps[i]);
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
    size_t kv_bytes;  // reserved for it
    int generated = 0;
    int last = -1;                                  // the last generated token, which is not processed yet; -1: none
    std::unordered_map<int, int> occurrences = {};  // of generated tokens, for the penalties
    bool ended = false;

    bool in_prompt() const { return size_t(session->position()) < generation.prompt.size(); }
    int unprocessed() const { return in_prompt() ? int(generation.prompt.size()) - session->position() : 1; }
    const int* next_ids() const { return in_prompt() ? generation.prompt.data() + session->position() : &last; }
  };

  // Positions that a text fills at most. The last token is not processed.
  int positions(const Generation& g) const {
    const int64_t all = int64_t(g.prompt.size()) + (g.max_tokens < 0 ? INT_MAX : g.max_tokens - 1);
    return int(std::min<int64_t>(all, options_.context));
  }

  // Starts waiting texts, in order, while there are places and memory for them.
  void admit() {
    while (!waiting_.empty() && running_.size() < size_t(limits_.parallel)) {
      const Generation& next = waiting_.front().second;
      const size_t needed = kv_bytes(positions(next));
      if (!running_.empty() && used_ + needed > limits_.kv_bytes) return;
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
    auto text = std::make_unique<Text>(Text{ticket, std::move(generation), sampler, std::move(session), needed});
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

  // Uses the result of a step.
  void take(Text& text, const Step& step) {
    if (!step.logits) {
      const std::string error = text.session->error;
      return end(text, error == kNoMemory ? End::no_memory : End::failed, error);
    }
    processed_ += step.n;
    if (text.in_prompt()) return;
    const Generation& g = text.generation;
    const int id = choose(text, step.logits);
    if (id < 0) return end(text, End::no_memory, kNoMemory);
    if (std::find(g.stop_ids.begin(), g.stop_ids.end(), id) != g.stop_ids.end()) return end(text, End::stop_token);
    text.last = id;
    text.generated++;
    if (!g.on_token(id, step.logits)) return end(text, End::stopped);
    if (text.generated == g.max_tokens || text.session->position() == text.session->context()) end(text, End::limit);
  }

  int choose(Text& text, const float* logits) {
    const Generation& g = text.generation;
    const int n = workspace_.model().config.vocab_size;
    const bool penalized = g.frequency_penalty != 0 || g.presence_penalty != 0;
    if (!penalized && g.logit_bias.empty()) return text.sampler(logits, n);
    adjusted_.assign(logits, logits + n);
    for (const auto& [id, bias] : g.logit_bias) adjusted_[size_t(id)] += bias;
    for (const auto& [id, count] : text.occurrences)
      adjusted_[size_t(id)] -= std::fma(g.frequency_penalty, float(count), g.presence_penalty);
    const int id = text.sampler(adjusted_.data(), n);
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
      text->session->reset();
      idle_.push_back(std::move(text->session));
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
  uint64_t processed_ = 0;
  Ticket next_ticket_ = 1;
  std::deque<std::pair<Ticket, Generation>> waiting_;
  std::vector<std::unique_ptr<Text>> running_;  // in the order of their start
  std::vector<std::unique_ptr<Session>> idle_;  // sessions at position 0
  std::vector<Ticket> cancelled_;
  std::vector<float> adjusted_;  // logits with penalties
};

}  // namespace pocket::openai
