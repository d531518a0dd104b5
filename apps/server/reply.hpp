// reply.hpp: a request in progress: what the worker computes of it, and hands to the thread of the client.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>

#include "../openai/service.hpp"

namespace pocket::server {

using openai::Completion;
using openai::Delta;
using openai::Refusal;

// One per request. The worker calls the functions of the first part, the client's thread those of the second.
class Reply {
 public:
  // fd: the client's socket. Throws Refusal.
  Reply(openai::Request r, openai::ServedModel& model, int client) : request(std::move(r)), fd(client) {
    for (size_t p = 0; p < request.prompts.size(); p++) {
      prompts_.push_back(openai::prompt_tokens(model.llama, request, model.context(), p));
      Choice first(request, model.llama.tokenizer());
      first.text = first.completion.start(prompts_[p], p);
      for (int i = 0; i < request.choices; i++) choices_.push_back(std::make_unique<Choice>(first));
    }
    running_ = choices_.size();
  }
  Reply(const Reply&) = delete;

  const openai::Request request;
  const int fd;
  openai::ResponseInfo info;
  const double started = seconds();

  size_t choices() const { return choices_.size(); }  // those of the first prompt, then those of the next one
  const std::vector<int>& prompt(size_t choice) const { return prompts_[choice / size_t(request.choices)]; }
  size_t prompt_tokens() const {
    size_t n = 0;
    for (const auto& prompt : prompts_) n += prompt.size();
    return n;
  }

  // ---- For the worker ----

  Completion& completion(size_t choice) { return choices_[choice]->completion; }

  // Passes on a part of the text.
  void add(size_t choice, const std::string& text) {
    Choice& c = *choices_[choice];
    c.text += text;
    if (request.stream && (!c.text.empty() || c.completion.calls().size() > c.sent_calls)) send(choice, nullptr);
  }
  void end(size_t choice, openai::End how, const std::string& error) {
    Choice& c = *choices_[choice];
    if (how == openai::End::failed) {
      fail({error, "", "server_error", 500});
    } else if (how == openai::End::no_memory) {
      fail({error, "", "out_of_memory", 503});
    } else if (how == openai::End::cancelled) {
      fail({"the server is shutting down", "", "shutting_down", 503});
    } else {  // a stream that failed ends with an error, not with a finish_reason
      c.text += c.completion.finish(how == openai::End::stop_token);
      if (request.stream) send(choice, c.completion.finish_reason());
    }
    std::lock_guard lock(mutex_);
    running_--;
    changed_.notify_one();
  }

  // ---- For the client's thread ----

  // Waits for all choices. Throws Refusal.
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return running_ == 0; });
    if (failed_) throw refusal_;
  }
  // The next parts of a stream; empty: that was all. Throws Refusal.
  std::deque<Delta> next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return running_ == 0 || !deltas_.empty(); });
    if (deltas_.empty() && failed_) throw refusal_;
    return std::exchange(deltas_, {});
  }
  // After wait(), or the last next().
  std::vector<const Completion*> completions() const {
    std::vector<const Completion*> all;
    for (const auto& choice : choices_) all.push_back(&choice->completion);
    return all;
  }
  size_t generated() const {
    size_t n = 0;
    for (const auto& choice : choices_) n += size_t(choice->completion.tokens());
    return n;
  }

 private:
  struct Choice {
    Choice(const openai::Request& r, const Tokenizer& tokenizer) : completion(r, tokenizer) {}
    Completion completion;
    std::string text;                 // that was not sent
    size_t sent = 0, sent_calls = 0;  // log probabilities, calls
    bool started = false;             // something was sent
  };

  void send(size_t choice, const char* finish_reason) {
    Choice& c = *choices_[choice];
    const auto& all = c.completion.logprobs();
    const auto& calls = c.completion.calls();
    Delta delta = {choice,
                   !std::exchange(c.started, true),
                   std::exchange(c.text, {}),
                   {all.begin() + ptrdiff_t(c.sent), all.end()},
                   {calls.begin() + ptrdiff_t(c.sent_calls), calls.end()},
                   c.sent_calls,
                   finish_reason};
    c.sent = all.size();
    c.sent_calls = calls.size();
    std::lock_guard lock(mutex_);
    deltas_.push_back(std::move(delta));
    changed_.notify_one();
  }
  void fail(Refusal why) {
    std::lock_guard lock(mutex_);
    if (!std::exchange(failed_, true)) refusal_ = std::move(why);
  }

  std::vector<std::vector<int>> prompts_;
  std::vector<std::unique_ptr<Choice>> choices_;
  std::mutex mutex_;  // of all that follows
  std::condition_variable changed_;
  std::deque<Delta> deltas_;
  size_t running_ = 0;  // choices
  bool failed_ = false;
  Refusal refusal_;
};

}  // namespace pocket::server
