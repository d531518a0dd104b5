// completion.hpp: the text of a reply, from its tokens: calls of tools, stop texts, log probabilities, and the reason of
// its end.
#pragma once

#include "../cli/portable_log_sum_exp.hpp"
#include "../cli/stop_filter.hpp"
#include "../grammar/grammar.hpp"
#include "request.hpp"

namespace pocket::openai {

// Log probabilities in nats, of a softmax at temperature 1 over logits (n,).
class LogProbabilities {
 public:
  LogProbabilities(const float* logits, int n)
      : logits_(logits), n_(n), log_sum_(cli::portable_log_sum_exp(logits, n)) {}
  // With six decimals.
  double operator()(int id) const { return std::round((logits_[id] - log_sum_) * 1e6) / 1e6; }
  // The most likely tokens, best first; of equals, the lowest id.
  std::vector<int> top(int count) const {
    std::vector<int> ids(static_cast<size_t>(n_));
    for (int i = 0; i < n_; i++) ids[size_t(i)] = i;
    const auto end = ids.begin() + std::min(count, n_);
    std::partial_sort(ids.begin(), end, ids.end(),
                      [this](int a, int b) { return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b; });
    ids.erase(end, ids.end());
    return ids;
  }

 private:
  const float* logits_;
  int n_;
  double log_sum_;
};

// A token of a reply, or with echo of the prompt, and what the model thought of it.
struct TokenLogprob {
  int id;
  size_t offset;                            // in the text of the reply, in characters
  double logprob;                           // of the first token of a prompt, which nothing predicts: NaN
  std::vector<std::pair<int, double>> top;  // id, log probability
};

// The reply to a request, token by token.
class Completion {
 public:
  // The request and the tokenizer must outlive the completion.
  Completion(const Request& request, const Tokenizer& tokenizer)
      : request_(request),
        tokenizer_(tokenizer),
        stream_(tokenizer),
        filter_(request.stop),
        calls_(request.tool_format, request.tools) {}

  // To be called first, with the tokens of the prompt, and its number in the request: a text continues it, while a reply
  // in a chat begins anew. Returns the beginning of the reply: with echo the prompt, else nothing.
  std::string start(const std::vector<int>& prompt, size_t which = 0) {
    calls_.set_seed(hash_bytes(prompt.data(), prompt.size() * sizeof(int)) + request_.sampling.seed);
    if (request_.endpoint == Endpoint::chat) return "";
    std::string text;
    for (const int id : prompt) {
      if (wants_prompt()) prompt_offsets_.push_back(offset_);
      text += text_of(id);
    }
    if (!request_.echo) text.clear();
    if (request_.echo && request_.prompts[which].ids.empty()) text = request_.prompts[which].text;
    offset_ = tokenizer_detail::count_characters(text);
    if (wants_prompt() && !prompt.empty())
      logprobs_.push_back({prompt[0], 0, std::numeric_limits<double>::quiet_NaN(), {}});
    return append(text);
  }

  // With echo: adds the next token of the prompt, and the logits (vocab_size,) after the tokens before it.
  void push_prompt(int id, const float* logits, int vocab_size) {
    add_logprob(id, prompt_offsets_[logprobs_.size()], LogProbabilities(logits, vocab_size));
  }
  // Whether the next token begins a text: then it drops the space that SentencePiece adds.
  bool at_start() const { return at_text_start(tokenizer_, stream_); }

  // Whether push_prompt() is needed.
  bool wants_prompt() const { return request_.echo && request_.top_logprobs >= 0; }

  // Adds a token, chosen by these logits (vocab_size,). Returns the text that is certain now: it may end before `text`
  // does, while that may be the beginning of a stop text.
  std::string push(int id, const float* logits, int vocab_size) {
    tokens_++;
    if (request_.top_logprobs >= 0) add_logprob(id, offset_, LogProbabilities(logits, vocab_size));
    if (request_.max_tokens < 0 && loop_.push(id)) looped_ = true;
    return append(filter_.push(text_of(id)));
  }
  // Whether the reply ends here: with a stop text, after as many calls as the request allows, or in an endless
  // repetition, if the request sets no limit.
  bool ended() const { return filter_.stopped || looped_ || has_all_calls(); }

  // Ends the reply. stopped: by a stop token. Returns the rest of its text. An incomplete character at the end of a
  // reply that was cut off is left out. A stop text cuts off a reply in a format too.
  std::string finish(bool stopped) {
    std::string rest;
    if (stopped && !filter_.stopped) rest += append(filter_.push(printed_rest(stream_)));
    if (!filter_.stopped) rest += append(filter_.flush());
    stopped_ = stopped || has_all_calls() || (filter_.stopped && request_.format == Format::text);
    if (request_.tools.empty()) return rest;
    const std::string last = calls_.finish();
    text_ += last;
    return rest + last;
  }

  // After finish().
  const char* finish_reason() const { return !stopped_ ? "length" : calls().empty() ? "stop" : "tool_calls"; }
  const std::vector<ToolCall>& calls() const { return calls_.calls(); }
  const std::string& text() const { return text_; }
  int tokens() const { return tokens_; }
  const std::vector<TokenLogprob>& logprobs() const { return logprobs_; }
  const Request& request() const { return request_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  bool has_all_calls() const { return calls().size() >= request_.most_calls; }

  // The text that a token adds.
  std::string text_of(int id) {
    std::string text = printed_text(tokenizer_, stream_, id);
    offset_ += tokenizer_detail::count_characters(text);
    return text;
  }

  // Returns the part that is not of a call.
  std::string append(std::string more) {
    if (!request_.tools.empty()) more = calls_.push(more);
    text_ += more;
    return more;
  }

  void add_logprob(int id, size_t offset, const LogProbabilities& logprob) {
    TokenLogprob token = {id, offset, logprob(id), {}};
    if (request_.top_logprobs > 0)
      for (const int other : logprob.top(request_.top_logprobs)) token.top.push_back({other, logprob(other)});
    logprobs_.push_back(std::move(token));
  }

  const Request& request_;
  const Tokenizer& tokenizer_;
  Tokenizer::Stream stream_;
  cli::StopFilter filter_;
  ToolCallReader calls_;
  LoopWatch loop_;
  std::string text_;
  size_t offset_ = 0;  // in characters, of the next token in the text
  std::vector<size_t> prompt_offsets_;
  int tokens_ = 0;
  bool looped_ = false, stopped_ = false;
  std::vector<TokenLogprob> logprobs_;
};

}  // namespace pocket::openai
