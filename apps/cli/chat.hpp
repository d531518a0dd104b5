// chat.hpp: -m chat: reads messages and commands, and prints the replies.
#pragma once

#include "../../export/chat_families.hpp"
#include "chat_input.hpp"
#include "conversation.hpp"
#include "explaining.hpp"
#include "guesses.hpp"
#include "report.hpp"
#include "stop_filter.hpp"

namespace pocket::cli {

// Replaces the chat template of the model file by that of --template. Throws Failure if there is none.
inline void choose_template(Job& job) {
  const std::string& name = job.args.chat_template;
  ChatTemplate chat = *job.model->chat_template();
  if (!name.empty()) {
    const ChatFamily* family = find_chat_family(name);
    if (!family) throw Failure{2, "--template: expected one of " + chat_family_keys() + ", found '" + name + "'"};
    const std::vector<int> stops = chat.stop_ids;
    std::string error;
    if (!make_chat_template(*family, job.model->tokenizer(), chat, error))
      throw Failure{1, job.args.model + ": --template " + name + ": " + error};
    chat.stop_ids.insert(chat.stop_ids.end(), stops.begin(), stops.end());
    job.model->set_chat_template(chat);
  }
  if (!chat.known())
    throw Failure{1, job.args.model + ": no chat template in the model; choose one with --template (" +
                         chat_family_keys() + "), or continue a text with -i"};
  if (!chat.takes(job.args.system)) throw Failure{1, job.args.model + ": -y: " + refusal(chat, job.args.system)};
}

class Chat {
 public:
  explicit Chat(Job& job)
      : job_(job),
        active_(*job.model, session_options(job.args)),
        session_(*active_),
        sampler_(job, job.sampler_options(), open_grammar(job)),
        guesses_(job, text_),
        conversation_(
            *job.model->chat_template(),
            [&job](std::string_view text, bool bos) { return job.model->encode(text, bos); }, job.args.system,
            [&job](std::string_view text) { return job.model->least_tokens(text); }) {
    active_session.store(nullptr);  // while the user types, Ctrl-C has nothing to cancel
    catch_chat_interrupts();
    start_explaining(job, session_);
  }

  // Answers the prompt of the command line, then the lines of standard input until their end or /quit. Throws Failure.
  void start() {
    try {
      answer_all();
    } catch (const Failure& f) {
      if (f.status == 130) finish_explaining(job_, processed_);  // Ctrl-C ends the chat
      throw;
    }
    finish_explaining(job_, processed_);
    print_figures(job_, session_);
    if (failed_ && !platform::is_terminal(0)) throw Failure{1, ""};  // the reasons were printed
  }

 private:
  void answer_all() {
    const Arguments& a = job_.args;
    if (a.is_given("--prompt") || !a.file.empty()) answer(a.file.empty() ? a.prompt : read_all(a.file, kLongestPrompt));
    for (std::string line; !quit_ && read_line(line);) handle_line(line);
  }

  struct Command {
    const char *name, *value, *help;
    void (Chat::*call)(const std::string& value);
  };
  static constexpr int kCommands = 7;
  static const Command* commands() {
    static constexpr Command all[kCommands] = {
        {"/help", "", "list the commands", &Chat::help},
        {"/reset", "", "start a new conversation with the same system prompt", &Chat::reset},
        {"/undo", "", "remove the last message and its reply", &Chat::undo},
        {"/save", "FILE", "save the conversation as JSON: a list of messages with role and content", &Chat::save},
        {"/load", "FILE", "continue a saved conversation", &Chat::load},
        {"/stats", "", "show tokens, speed, memory, and the use of the context", &Chat::stats},
        {"/quit", "", "end the chat, as does the end of the input (Ctrl-D)", &Chat::quit},
    };
    return all;
  }

  // How a reply ended.
  enum class End { stop_token, token_limit, interrupted, context_full, loop, no_prompt };

  struct Reply {
    explicit Reply(const Job& job) : filter(job.args.stop), stream(job.model->tokenizer()) {}
    StopFilter filter;
    Tokenizer::Stream stream;
    LoopWatch loop;
    End end = End::context_full;
  };

  // ---- Messages to the user ----

  // Prints a line on stderr.
  void notify(const std::string& text) {
    job_.out.start_stderr_line();
    print_message("run", text);
  }
  // The same for an error, which the exit status reports to a script.
  void report_error(const std::string& text) {
    notify(text);
    failed_ = true;
  }

  // ---- Input ----

  // Reads a line; returns false at the end of the input. Ctrl-C discards the typed text; a second one ends the program.
  bool read_line(std::string& line) {
    LineReader::Result result;
    while ((result = input_.read(line)) == LineReader::Result::interrupted) {
      if (chat_interrupts > 1) throw Failure{130, ""};
      notify("press Ctrl-C again or type /quit to end the chat");
    }
    chat_interrupts = 0;
    return result == LineReader::Result::line;
  }

  // Answers a message, or executes a command. "//" starts a message that starts with "/".
  void handle_line(const std::string& line) {
    if (line[0] != '/') return answer(line);
    if (line[1] == '/') return answer(line.substr(1));
    const std::string name = line.substr(0, line.find(' ')), value = trimmed(line.substr(name.size()));
    const Command* nearest = nullptr;
    size_t least = edits_too_many(name);
    for (const Command* c = commands(); c != commands() + kCommands; c++) {
      if (name == c->name) {
        if (value.empty() == !*c->value) return (this->*c->call)(value);
        return report_error(name + (*c->value ? std::string(" requires a value: ") + c->value : ": takes no value"));
      }
      const size_t edits = distance(name, c->name);
      if (edits >= least) continue;
      least = edits;
      nearest = c;
    }
    report_error(name + ": no such command; " +
                 (nearest ? std::string("did you mean ") + nearest->name + "?"
                          : "/help lists the commands, and // starts a message that starts with /"));
  }

  // ---- Commands ----

  void help(const std::string&) {
    for (const Command* c = commands(); c != commands() + kCommands; c++)
      std::fprintf(stderr, "  %-12s %s\n", (std::string(c->name) + " " + c->value).c_str(), c->help);
    std::fprintf(stderr,
                 "  //...        a message that starts with /\n"
                 "Ctrl-C stops a reply; pressed twice, it ends the chat. For line editing and a history of lines, use\n"
                 "rlwrap: rlwrap run %s -m chat\n",
                 one_line(job_.args.model).c_str());
  }
  void reset(const std::string&) {
    conversation_.reset();
    notify("new conversation");
  }
  void undo(const std::string&) {
    if (!conversation_.undo()) return report_error("/undo: there is no message to remove");
    notify("removed the last message; messages left: " + std::to_string(conversation_.turns.size()));
  }
  void save(const std::string& path) {
    try {
      check_distinct({path, job_.args.explain}, input_files(job_.args));
    } catch (const Failure& f) {
      return report_error("/save: " + f.what);
    }
    std::string error;
    if (!write_whole_file(path, conversation_.to_json(), error)) return report_error("/save: " + error);
    notify(path + ": saved; messages: " + std::to_string(conversation_.turns.size()));
  }
  void load(const std::string& path) {
    std::string error;
    if (!conversation_.load(path, error)) return report_error("/load: " + error + "; the conversation is unchanged");
    notify(path + ": loaded; messages: " + std::to_string(conversation_.turns.size()));
  }
  void stats(const std::string&) {
    std::fprintf(stderr, "messages %zu, dropped %zu; context %d of %d tokens\n", conversation_.turns.size(),
                 conversation_.dropped(), conversation_.turns.empty() ? 0 : int(conversation_.ids().size()),
                 session_.context());
    print_figures(job_, session_);
  }
  void quit(const std::string&) { quit_ = true; }

  // ---- Replies ----

  // Generates and prints the reply to a message. If the context is full, the oldest turns are dropped, also within the
  // reply.
  void answer(const std::string& message) {
    if (message.empty()) return;
    std::string valid;  // UTF-8
    for (std::string_view rest = message; !rest.empty();) tokenizer_detail::take_character(rest, false, valid);
    conversation_.turns.push_back({valid, "", {}});
    session_.cancel(false);
    active_session.store(&session_);
    Turn& turn = conversation_.turns.back();
    const size_t context = size_t(session_.context());
    Reply reply(job_);
    sampler_.begin(job_.model->chat_template()->stop_ids, reply.stream);
    size_t dropped = 0;
    while (reply.end == End::context_full) {
      dropped += conversation_.make_room(context - 1, context / 2);
      if (conversation_.least_tokens() > context) break;  // encoding the text could take long
      const std::vector<int> ids = conversation_.ids();
      if (ids.empty()) reply.end = End::no_prompt;
      if (ids.empty() || ids.size() + !turn.reply_ids.empty() > context) break;
      generate_reply(ids, turn, reply);
    }
    active_session.store(nullptr);
    finish(turn, reply, dropped);
  }

  // Rewinds the session to the common beginning of its tokens and `ids`, and returns the other tokens of `ids`.
  std::vector<int> rewind(const std::vector<int>& ids) {
    const auto end = processed_.begin() + long(std::min(processed_.size(), ids.size() - 1));
    const size_t common = size_t(std::mismatch(processed_.begin(), end, ids.begin()).first - processed_.begin());
    if (common < processed_.size()) {
      processed_.resize(common);
      session_.rewind(int(common));
      for (size_t i = kRepeatWindow; i > 0; i--)
        sampler_.remember(i > common ? -1 : processed_[common - i]);  // -1: none
    }
    return std::vector<int>(ids.begin() + long(common), ids.end());
  }

  // Processes `ids`, and generates and prints the reply, or the rest of it.
  void generate_reply(const std::vector<int>& ids, Turn& turn, Reply& reply) {
    const int limit = job_.token_limit();
    const std::vector<int> rest = rewind(ids);
    const size_t before = turn.reply_ids.size();
    const double start = seconds();
    double first = 0;  // time of the first new token
    bool good = false;
    reply.end = End::stop_token;
    text_ = ids;
    guesses_.restart();
    const auto on_token = [&](int id) {
      if (turn.reply_ids.size() == before) first = seconds();
      turn.reply_ids.push_back(id);
      text_.push_back(id);
      return add_token(id, turn, reply);
    };
    try {
      const std::vector<int> last = process_prompt(job_, session_, sampler_, rest);
      good = generate(session_, sampler_, last, limit - int(before), job_.model->chat_template()->stop_ids, on_token,
                      guesses_.propose(sampler_));
    } catch (const Failure& f) {
      if (f.status != 130) throw;  // Ctrl-C while a long message is processed
    }
    job_.figures.add(rest.size(), start, turn.reply_ids.size() - before, first);
    guesses_.settle(job_.figures);
    processed_ = ids;
    processed_.insert(processed_.end(), turn.reply_ids.begin() + long(before), turn.reply_ids.end());
    const bool all_processed = size_t(session_.position()) == processed_.size();
    processed_.resize(size_t(session_.position()));
    if (interrupted) reply.end = End::interrupted;
    if (!good && !interrupted && !sampler_.stuck()) throw_failure(session_);
    const bool ended = reply.filter.stopped || sampler_.must_end() || sampler_.stuck();
    if (reply.end == End::stop_token && !all_processed && !ended)
      reply.end = turn.reply_ids.size() >= size_t(limit) ? End::token_limit : End::context_full;
  }

  // Prints a token of a reply. Returns false if the reply ends with it.
  bool add_token(int id, Turn& turn, Reply& reply) {
    print(reply.filter.push(printed_text(job_.model->tokenizer(), reply.stream, id)), turn);
    if (reply.loop.push(id)) reply.end = End::loop;
    return reply.end != End::loop && !reply.filter.stopped && !interrupted && !sampler_.must_end();
  }

  void print(const std::string& text, Turn& turn) {
    job_.out.write(text);
    turn.reply += text;
  }

  // Prints the rest of a reply and how it ended. An incomplete UTF-8 character at its end is left out, unless the model
  // ended the reply.
  void finish(Turn& turn, Reply& reply, size_t dropped) {
    if (!reply.filter.stopped) {
      if (reply.end == End::stop_token) print(reply.filter.push(printed_rest(reply.stream)), turn);
      if (!reply.filter.stopped) print(reply.filter.flush(), turn);
    }
    const bool no_reply = turn.reply_ids.empty() && reply.end != End::stop_token;
    if (!no_reply || platform::is_terminal(1)) job_.out.write("\n");
    if (reply.filter.stopped) turn.reply_ids.clear();  // they include the stop text
    if (reply.end == End::loop) keep_one_repetition(turn, reply.loop);
    if (dropped && !(reply.end == End::context_full && no_reply)) notify_dropped(dropped);
    notify_end(turn, reply);
    if (no_reply) conversation_.undo();
    if (chat_interrupts > 1) throw Failure{130, ""};
  }

  // Shortens a reply that repeats itself, which would make the next one do so too.
  void keep_one_repetition(Turn& turn, const LoopWatch& loop) {
    turn.reply_ids.resize(loop.kept());
    Tokenizer::Stream stream(job_.model->tokenizer());
    turn.reply.clear();
    for (const int id : turn.reply_ids) turn.reply += printed_text(job_.model->tokenizer(), stream, id);
  }

  std::string tokens_needed() const {
    const size_t least = conversation_.least_tokens();
    return least > size_t(session_.context()) ? "at least " + std::to_string(least)
                                              : std::to_string(conversation_.ids().size());
  }

  std::string full_context() const { return "the context (" + std::to_string(session_.context()) + " tokens) is full"; }

  void notify_dropped(size_t dropped) {
    notify(full_context() + ": dropped the oldest messages (" + std::to_string(dropped) + ")" +
           (conversation_.has_system() ? "; the system prompt is kept" : ""));
  }

  void notify_end(const Turn& turn, const Reply& reply) {
    const bool empty = turn.reply_ids.empty();
    if (reply.end == End::loop)
      notify("stopped: the reply repeats the same " + std::to_string(reply.loop.period()) +
             (reply.loop.period() == 1 ? " token" : " tokens") + "; one repetition is kept");
    if (reply.end == End::no_prompt) report_error("message: it has no tokens in the chat template of this model");
    if (reply.end == End::context_full && empty)
      report_error("message: " + tokens_needed() + " tokens, but the context has room for " +
                   std::to_string(session_.context()) + "; shorten it, or enlarge the context with --ctx");
    if (reply.end == End::context_full && !empty)
      notify(full_context() + ": the reply ends here; --ctx sets a larger context");
    const std::string incomplete = sampler_.incomplete(name_of(reply));
    if (reply.end != End::interrupted && !empty && !incomplete.empty()) report_error(incomplete);
    if (reply.end == End::interrupted && chat_interrupts == 1)
      notify(empty ? "stopped; the message is removed" : "stopped; press Ctrl-C again to end the chat");
  }

  static const char* name_of(const Reply& reply) {
    if (reply.filter.stopped) return "a stop text";
    if (reply.end == End::loop) return "a repetition";
    return reply.end == End::token_limit ? "the limit of tokens (-n)" : "the end of the context (--ctx)";
  }

  Job& job_;
  ActiveSession active_;
  TextSession& session_;
  ConstrainedSampler sampler_;
  std::vector<int> text_;  // the tokens of the conversation, while a reply is generated
  Guesses guesses_;
  Conversation conversation_;
  std::vector<int> processed_;  // the tokens of the session
  LineReader input_;
  bool quit_ = false;
  bool failed_ = false;  // an error was reported
};

// Executes -m chat. Throws Failure.
inline void chat(Job& job) {
  choose_template(job);
  add_stop_ids(job);
  Chat(job).start();
}

}  // namespace pocket::cli
