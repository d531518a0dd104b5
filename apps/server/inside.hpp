// inside.hpp: POST /explain: what happens inside the model while it writes the reply to a request: the data of the page of
// --explain (apps/explain).
#pragma once

#include "../cli/token_text.hpp"
#include "../explain/explain.hpp"
#include "texts.hpp"

namespace pocket::server {

// The worker generates the reply, by the rules for all. Then the thread of the client processes the text again, in a
// session of its own, and looks inside: so the others wait for nothing. One text at a time, because its numbers take
// memory.
class Inside {
 public:
  Inside(openai::ServedModel& model, Worker& worker) : model_(model), worker_(worker) {}

  // The data, as JSON. Throws Refusal.
  std::string data(const openai::Request& request, int fd) {
    check(request);
    const std::unique_lock lock(one_, std::try_to_lock);
    if (!lock) throw Refusal{"another text is being explained; try again later", "", "rate_limit_exceeded", 429};
    Reply reply = generate(request, fd);
    SessionOptions options = model_.session_options();
    options.context = int(reply.ids.size());
    options.threads = 1;
    Session session(model_.llama.model, options);
    if (!session.error.empty()) throw Refusal{session.error, "", "out_of_memory", 503};
    cli::TokenText text_of(model_.llama.tokenizer());
    const explain::Text text = {model_.name,
                                request.endpoint == openai::Endpoint::chat ? "chat" : "generate",
                                std::move(reply.ids),
                                request.sampling,
                                false,
                                [&](int id) { return text_of(id); }};
    const auto go_on = [&] { return !worker_.draining() && !is_gone(fd); };
    const std::string data =
        explain::explain_again(session, text, reply.prompt, reply.ended, model_.llama.tokenizer(), go_on);
    if (!data.empty()) return data;
    throw Refusal{session.error.empty() ? "the server is shutting down" : session.error, "", "shutting_down", 503};
  }

 private:
  struct Reply {
    std::vector<int> ids;  // with those of the prompt
    size_t prompt = 0;
    bool ended = false;  // by a stop token
  };

  // What changes the choice of tokens in ways that the page does not show. Throws Refusal.
  static void check(const openai::Request& r) {
    const auto refuse_if = [](bool used, const char* name) {
      if (used) refuse(name, "none for a text that is explained", "one");
    };
    refuse_if(r.format != openai::Format::text, r.format_param.c_str());
    refuse_if(!r.tools.empty(), "tools");
    refuse_if(!r.logit_bias.empty(), "logit_bias");
    refuse_if(r.frequency_penalty != 0, "frequency_penalty");
    refuse_if(r.presence_penalty != 0, "presence_penalty");
    if (r.choices != 1) refuse("n", "1 for a text that is explained", std::to_string(r.choices));
    if (r.prompts.size() != 1) refuse("prompt", "one text", std::to_string(r.prompts.size()));
    if (!r.has_seed) refuse("seed", "that of the reply to explain", "nothing");
  }

  Reply generate(const openai::Request& request, int fd) {
    Reply reply;
    reply.ids = openai::prompt_tokens(model_.llama, request, model_.context(), 0);
    reply.prompt = reply.ids.size();
    openai::Completion completion(request, model_.llama.tokenizer());
    completion.start(reply.ids);
    std::mutex mutex;
    std::condition_variable changed;
    bool running = true;
    std::string failure;
    std::vector<Generation> one(1, model_.generation(request, reply.ids));
    Generation& g = one[0];
    const int room = explain::kMostTokens - int(std::min(reply.prompt, size_t(explain::kMostTokens)));
    g.max_tokens = g.max_tokens < 0 ? room : std::min(g.max_tokens, room);
    g.on_token = [&](int id, const float* logits) {
      reply.ids.push_back(id);
      completion.push(id, logits, model_.llama.vocab_size());
      return !completion.ended();
    };
    g.on_end = [&](openai::End end, const std::string& error) {
      std::lock_guard lock(mutex);
      reply.ended = end == openai::End::stop_token;
      if (end == openai::End::cancelled) failure = "the server is shutting down";
      if (end == openai::End::failed || end == openai::End::no_memory) failure = error;
      running = false;
      changed.notify_one();
    };
    worker_.submit(std::move(one), fd);
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return !running; });
    if (!failure.empty()) throw Refusal{failure, "", "server_error", 503};
    return reply;
  }

  // Whether the client has hung up.
  static bool is_gone(int fd) {
    pollfd p = {fd, POLLRDHUP, 0};
    return ::poll(&p, 1, 0) > 0 && p.revents != 0;
  }

  openai::ServedModel& model_;
  Worker& worker_;
  std::mutex one_;
};

}  // namespace pocket::server
