// job.hpp: one execution of ./run: its arguments, model, output and figures; sessions that Ctrl-C can stop; and the
// steps that generating and chatting share.
#pragma once

#include <atomic>

#include "../explain/explain.hpp"
#include "figures.hpp"
#include "language_model.hpp"
#include "options.hpp"
#include "output.hpp"

namespace pocket::cli {

// Options of a session, by the command line.
inline SessionOptions session_options(const Arguments& a) {
  const KvType kv = a.kv == "q8" ? KvType::q8 : a.kv == "f32" ? KvType::f32 : KvType::automatic;
  const int threads = a.threads > 0 ? a.threads : platform::cpu_count();
  return {a.context, threads, kv, a.kernel.empty() ? nullptr : a.kernel.c_str()};
}

struct Job {
  const Arguments& args;
  std::unique_ptr<LanguageModel> model;
  Output out;
  Figures figures;
  uint64_t seed;                                      // of the sampler
  std::shared_ptr<explain::Explanation> explanation;  // --explain; else null

  // Throws Failure.
  Job(const Arguments& a, std::unique_ptr<LanguageModel> opened) : args(a), model(std::move(opened)) {
    const auto now = std::chrono::system_clock::now().time_since_epoch().count();
    seed = a.seed.empty() ? uint64_t(now) % 1000000 : uint64_t(number("-s", a.seed, 0, 9007199254740992.0, true));
  }

  SamplerOptions sampler_options() const {
    return {args.temperature, args.top_p, seed, args.top_k, args.min_p, args.repeat_penalty};
  }

  // New tokens that a text may have.
  int token_limit() const {
    if (args.max_tokens > 0) return args.max_tokens;
    return args.max_tokens == 0 || args.chat() ? std::numeric_limits<int>::max() : 256;
  }
};

// ---- Sessions ----

inline std::atomic<TextSession*> active_session{nullptr};  // the session that Ctrl-C cancels

// Stops what is being computed.
inline void interrupt() {
  interrupted = 1;
  if (TextSession* session = active_session.load()) session->cancel();
}

// The handler of SIGINT. A second SIGINT ends the process.
inline void on_signal(int number) {
  std::signal(number, end_by_signal);
  interrupt();
}

// A session that Ctrl-C cancels while this object lives.
class ActiveSession {
 public:
  // Throws Failure.
  ActiveSession(const LanguageModel& model, const SessionOptions& options) : session_(model.open_session(options)) {
    active_session.store(session_.get());
  }
  ~ActiveSession() { active_session.store(nullptr); }
  ActiveSession(const ActiveSession&) = delete;
  ActiveSession& operator=(const ActiveSession&) = delete;

  TextSession& operator*() const { return *session_; }
  TextSession* operator->() const { return session_.get(); }

 private:
  std::unique_ptr<TextSession> session_;
};

// Throws the Failure of a session: interrupted, or its error.
[[noreturn]] inline void throw_failure(const TextSession& session) {
  stop_if_interrupted();
  throw Failure{1, session.error()};
}

// ---- Prompts ----

// Control tokens print as nothing, so a stop text that is the text of one becomes a stop id.
inline void add_stop_ids(Job& job) {
  const Tokenizer& tokenizer = job.model->tokenizer();
  for (const std::string& text : job.args.stop) {
    const int id = tokenizer.find(text);
    if (tokenizer.type(id) != Tokenizer::PieceType::control) continue;
    job.model->file().stop_ids.push_back(id);
    if (ChatTemplate* chat = job.model->chat_template()) chat->stop_ids.push_back(id);
  }
}

// Throws Failure if a text has tokens that the model cannot process inside a text. `source` names the text.
inline void check_forbidden(const LanguageModel& model, const std::vector<int>& ids, const std::string& source) {
  const std::vector<int> forbidden = model.forbidden_ids();
  const auto found = std::find_first_of(ids.begin(), ids.end(), forbidden.begin(), forbidden.end());
  if (found == ids.end()) return;
  throw Failure{1, source + ": " + model.unit().singular + " " + std::to_string(*found) + " at offset " +
                       std::to_string(found - ids.begin()) +
                       ": the model was trained on it only as the end of a text; remove it"};
}

// Throws Failure if the context has no room for so many tokens of a prompt. `least`: "at least ", or "".
inline void check_room(const Job& job, const TextSession& session, size_t tokens, const char* least = "") {
  const size_t room = size_t(session.context() - session.position());
  if (tokens > room)
    throw Failure{1, "prompt: " + (least + std::to_string(tokens)) + " " + job.model->unit().plural +
                         ", but the context has room for " + std::to_string(room) + "; shorten it" +
                         (job.model->can_extend_context() ? ", or enlarge the context with --ctx" : "")};
}

// The tokens of a text that continues another one. SentencePiece begins a text with a space, but not after a line break.
inline std::vector<int> continuation_ids(const LanguageModel& model, const std::string& text) {
  const std::vector<int> before = model.encode("\n", false), ids = model.encode("\n" + text, false);
  if (ids.size() < before.size() || !std::equal(before.begin(), before.end(), ids.begin()))
    return model.encode(text, false);
  return {ids.begin() + ptrdiff_t(before.size()), ids.end()};
}

// The tokens of the prompt. `first`: the prompt starts the text of the session. Throws Failure.
inline std::vector<int> prompt_ids(const Job& job, const TextSession& session, bool first = true) {
  const Arguments& a = job.args;
  LanguageModel& model = *job.model;
  std::vector<int> ids;
  if (!a.ids.empty()) {
    for (const std::string& id : split(a.ids)) ids.push_back(int(number("--ids", id, 0, model.vocab_size() - 1, true)));
    if (a.logits.empty()) check_forbidden(model, ids, "--ids");
    return ids;
  }
  if (a.has_instruction() && !takes_instructions(model.file().provenance()))
    throw Failure{1, a.model + ": was not trained on instructions, by its provenance; continue a text with -i"};
  const std::string text = a.file.empty() ? a.prompt : read_all(a.file, kLongestPrompt);
  check_room(job, session, model.least_tokens(text), "at least ");
  ids = first ? model.encode_prompt(text) : continuation_ids(model, text);
  check_forbidden(model, ids, a.file.empty() ? "-i" : a.file);
  return ids;
}

// Processes all of a prompt but its last batch, and returns that batch, for generate(). Shows the progress of a long
// prompt on a terminal. Throws Failure.
inline std::vector<int> process_prompt(Job& job, TextSession& session, Sampler& sampler, const std::vector<int>& ids) {
  const size_t total = ids.size(), batch = size_t(job.args.batch);
  const double start = seconds();
  bool shown = false;
  size_t done = 0;
  for (; total - done > batch; done += batch) {
    if (!session.forward(ids.data() + done, batch)) throw_failure(session);
    for (size_t i = done; i < done + batch; i++) sampler.remember(ids[i]);
    if (!platform::is_terminal(2) || seconds() - start < 2) continue;
    job.out.start_stderr_line();
    std::fprintf(stderr, "\rprompt: %zu of %zu %s", done + batch, total, job.model->unit().plural);
    shown = true;
  }
  if (shown) std::fprintf(stderr, "\r\033[K");
  return std::vector<int>(ids.begin() + long(done), ids.end());
}

}  // namespace pocket::cli
