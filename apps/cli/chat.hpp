// chat.hpp: `run -m chat`, which cli.hpp includes last: a conversation as turns of text, what the model hears of it,
// and the program that reads messages and commands and says replies.
#ifndef POCKET_CHAT_HPP
#define POCKET_CHAT_HPP

#include <poll.h>

#include "../../export/chat_families.hpp"
#include "cli.hpp"
#include "../../export/json_reader.hpp"
#include "../../export/json_writer.hpp"

namespace pocket::cli {

// ====================================================================================================================
// The conversation
// ====================================================================================================================

struct Turn {
  std::string message, reply;
  std::vector<int> reply_ids;  // the reply as the model said it, token by token; empty: it is encoded like other texts
};

// The turns so far, and what a model hears of them. The last turn may be without a reply, or with the beginning of one.
class Conversation {
 public:
  Conversation(const ChatTemplate& chat, Encode encode, std::string system_prompt)
      : system(std::move(system_prompt)), chat_(chat), encode_(std::move(encode)) {}

  std::string system;  // "": the template's own, or none
  std::vector<Turn> turns;

  // Turns that the model hears: all but the oldest, once the context was full.
  size_t heard() const { return turns.size() - forgotten_; }
  size_t forgotten() const { return forgotten_; }
  bool has_system() const { return !system.empty() || !chat_.default_system.empty(); }

  // All that the model hears, from the system prompt to the last turn's reply.
  std::vector<int> ids() const {
    ChatTemplate::Parts parts;
    for (size_t i = forgotten_; i < turns.size(); i++) {
      const ChatTemplate::Parts more = chat_parts(chat_, system, turns[i].message, i == forgotten_);
      parts.insert(parts.end(), more.begin(), more.end());
      for (int id : turns[i].reply_ids) parts.push_back({id, ""});
      if (turns[i].reply_ids.empty()) parts.push_back({-1, reply_text(turns[i].reply)});
    }
    return encode_parts(parts, encode_, true);
  }

  // Forgets the oldest turns, but never the last, until ids() are at most `most`. Returns how many it forgot.
  size_t make_room(size_t most) {
    const size_t before = forgotten_;
    while (heard() > 1 && ids().size() > most) forgotten_++;
    return forgotten_ - before;
  }

  // Takes the last turn back; what had been forgotten for its sake is heard again. False if there is none.
  bool undo() {
    if (turns.empty()) return false;
    turns.pop_back();
    forgotten_ = 0;
    return true;
  }

  void reset() {
    turns.clear();
    forgotten_ = 0;
  }

  // A JSON list of {"role": ..., "content": ...}, one a line: what others call messages. Forgotten turns are in it too.
  std::string to_json() const {
    std::string out;
    const auto add = [&](const char* role, const std::string& content) {
      out += (out.empty() ? "\n " : ",\n ") + json_object({{"role", json(role)}, {"content", json(content)}});
    };
    if (!system.empty()) add("system", system);
    for (const Turn& turn : turns) add("user", turn.message), add("assistant", turn.reply);
    return "[" + out + "\n]\n";
  }

  // Takes the place of the conversation by one that was saved, or by such a list in {"messages": [...]}. A file without
  // a system prompt leaves the one that is there. False with `error` set, and nothing changed, if the file is no such.
  bool load(const std::string& path, std::string& error) {
    constexpr uint64_t kLargest = 64 << 20;  // bytes; no context holds as much
    JsonDocument document;
    if (!document.parse_file(path, kLargest)) return pocket::fail(error, document.error);
    const JsonValue root = document.root(), list = root.is(JsonKind::object) ? root.find("messages") : root;
    if (!list.is(JsonKind::array))
      return pocket::fail(error, path + ": expected a list of messages, found " + list.describe());
    Conversation found(chat_, encode_, system);
    bool answered = true;
    for (const JsonValue& message : list.elements())
      if (!found.add(message, answered, error)) return false;
    if (!answered) return pocket::fail(error, path + ": expected a reply to the last message, found none");
    system = std::move(found.system), turns = std::move(found.turns), forgotten_ = 0;
    return true;
  }

 private:
  // A reply that was not said here. A model begins with a space where what stands in front of it does not end in white
  // space ("[/INST]" of Llama 2, "ASSISTANT:" of Vicuna), and so do the templates.
  std::string reply_text(const std::string& reply) const {
    const std::string text = chat_.trim & ChatTemplate::kTrimReply ? trimmed(reply) : reply;
    const ChatTemplate::Parts& prefix = chat_.slot[ChatTemplate::kReplyPrefix];
    const ChatTemplate::Parts& before = prefix.empty() ? chat_.slot[ChatTemplate::kUserSuffix] : prefix;
    const auto space = [](char c) { return std::isspace(uint8_t(c)) != 0; };
    const bool apart = before.empty() || before.back().text.empty() || space(before.back().text.back());
    return (apart || text.empty() || space(text[0]) ? "" : " ") + text;
  }

  // The next message of a list; `answered`: the one before it is no user's.
  bool add(const JsonValue& message, bool& answered, std::string& error) {
    if (!message.need("role", JsonKind::string, error) || !message.need("content", JsonKind::string, error))
      return false;
    const std::string role = message.find("role").string(), content = message.find("content").string();
    if (role == "system" && turns.empty() && answered)
      system = content;
    else if (role == "user" && answered)
      turns.push_back({content, "", {}}), answered = false;
    else if (role == "assistant" && !answered)
      turns.back().reply = content, answered = true;
    else
      return message.refuse("role", answered ? "user" : "assistant", error);
    return true;
  }

  const ChatTemplate& chat_;
  Encode encode_;
  size_t forgotten_ = 0;  // the oldest turns, which the model no longer hears
};

// ====================================================================================================================
// The program
// ====================================================================================================================

inline volatile std::sig_atomic_t chat_interrupts = 0;  // Ctrl-C since the last line that was typed

// The first one stops a reply, the second ends the program in good order; a third, should that take long, at once.
inline void on_chat_interrupt(int signal) {
  chat_interrupts = chat_interrupts + 1;
  if (chat_interrupts > 1) std::signal(SIGINT, SIG_DFL);
  on_signal(signal);
}

inline void catch_chat_interrupts() {
  struct sigaction action = {};
  action.sa_handler = on_chat_interrupt;
  action.sa_flags = SA_RESTART;  // a write goes on where it was: no text is lost
  sigaction(SIGINT, &action, nullptr);
  stop_if_interrupted();
}

// The template that is asked for takes the place of the model file's.
inline void choose_template(Run& run) {
  const std::string& name = run.args.chat_template;
  std::string error;
  const ChatFamily* family = find_chat_family(name);
  if (!name.empty()) {
    if (!family) throw Failure{2, "--template: expected one of " + chat_family_keys() + ", found '" + name + "'"};
    const std::vector<int> stops = run.model.chat.stop_ids;
    if (!make_chat_template(*family, run.tokenizer, run.model.chat, error))
      throw Failure{1, run.args.model + ": --template " + name + ": " + error};
    run.model.chat.stop_ids.insert(run.model.chat.stop_ids.end(), stops.begin(), stops.end());
  }
  if (!run.model.chat.known())
    throw Failure{1, run.args.model +
                         ": has no chat template, so it is not known how to talk to it; choose one with --template (" +
                         chat_family_keys() + "), or go on with a text with -i"};
}

class Chat {
 public:
  explicit Chat(Run& run)
      : run_(run),
        open_(run.model, run.session_options()),
        session_(open_.session),
        pick_(run.sampler_options()),
        conversation_(
            run.model.chat, [&run](std::string_view text, bool bos) { return run.tokenizer.encode(text, bos); },
            run.args.system) {
    running.store(nullptr);  // at the prompt there is nothing to stop
    catch_chat_interrupts();
  }

  void talk() {
    const Arguments& a = run_.args;
    if (a.has_prompt || !a.file.empty()) answer(a.file.empty() ? a.prompt : read_all(a.file));
    for (std::string line; !quit_ && read_line(line);) obey(line);
    print_figures(run_, session_);
    if (failed_ && !isatty(0)) throw Failure{1, ""};  // it has been said what
  }

 private:
  struct Command {
    const char *name, *value, *help;
    void (Chat::*run)(const std::string& value);
  };
  static const std::vector<Command>& commands() {
    static const std::vector<Command> all = {
        {"/help", "", "this list", &Chat::help},
        {"/reset", "", "begin anew; the system prompt stays", &Chat::reset},
        {"/undo", "", "take back the last message and its reply", &Chat::undo},
        {"/save", "FILE", "write the conversation to a file: JSON, a list of roles and contents", &Chat::save},
        {"/load", "FILE", "go on with a conversation that was saved so", &Chat::load},
        {"/stats", "", "tokens, speed, memory, and how full the context is", &Chat::stats},
        {"/quit", "", "end; so does the end of the input (Ctrl-D)", &Chat::quit},
    };
    return all;
  }

  enum class End { whole, limit, stopped, full, loop };  // of a reply

  struct Reply {
    Reply(const Run& run) : filter(run.args.stop), stream(run.tokenizer) {}
    StopFilter filter;
    Tokenizer::Stream stream;
    LoopWatch loop;
    End end = End::full;
  };

  // A word to the user, never from the model alone: file names and JSON texts may hold anything.
  void tell(const std::string& text) const { std::fprintf(stderr, "run: %s\n", without_controls(text).c_str()); }
  void refuse(const std::string& text) {
    tell(text);
    failed_ = true;
  }

  // ---- Input ----

  static constexpr int kInterrupted = -2;

  // The next byte of standard input; EOF where there is no more, kInterrupted where Ctrl-C comes before it. The wait is
  // cut short because the signal may come just before it, or to another thread.
  int next_byte() {
    if (next_ == input_.size()) {
      constexpr int kWait = 100;  // ms
      pollfd in = {0, POLLIN, 0};
      for (int ready = 0; ready == 0 && !interrupted;) {
        ready = poll(&in, 1, kWait);
        if (ready < 0 && errno == EINTR) ready = 0;
      }
      if (interrupted) return kInterrupted;
      input_.resize(4096);
      const ssize_t n = ::read(0, &input_[0], input_.size());
      input_.resize(n > 0 ? size_t(n) : 0), next_ = 0;
      if (n <= 0) return EOF;
    }
    return uint8_t(input_[next_++]);
  }

  // A line without its end; false where there is no more. Ctrl-C throws away what has been typed, or ends the program
  // if it comes for the second time.
  bool read_line(std::string& line) {
    for (interrupted = 0;; tell("another Ctrl-C ends the chat, and so does /quit")) {
      if (isatty(0)) std::fprintf(stderr, "> ");
      line.clear();
      int c;
      while ((c = next_byte()) >= 0 && c != '\n') line += char(c);
      interrupted = 0;
      if (c != '\n' && isatty(0)) std::fprintf(stderr, "\n");
      if (c == kInterrupted && chat_interrupts > 1) throw Failure{130, ""};
      if (c == kInterrupted) continue;
      chat_interrupts = 0;
      if (!line.empty() && line.back() == '\r') line.pop_back();
      return c != EOF || !line.empty();
    }
  }

  void obey(const std::string& line) {
    if (line[0] != '/') return answer(line);
    if (line[1] == '/') return answer(line.substr(1));
    const std::string name = line.substr(0, line.find(' ')), value = trimmed(line.substr(name.size()));
    const Command* nearest = nullptr;
    size_t least = 4;
    for (const Command& c : commands()) {
      if (name == c.name) {
        if (value.empty() == !*c.value) return (this->*c.run)(value);
        return refuse(name + (*c.value ? std::string(": expected ") + c.value + " behind it" : ": takes no value"));
      }
      if (distance(name, c.name) < least) least = distance(name, c.name), nearest = &c;
    }
    refuse(name + ": no such command; " +
           (nearest ? std::string("did you mean ") + nearest->name + "?"
                    : "/help lists them, and // begins a message that begins with /"));
  }

  // ---- Commands ----

  void help(const std::string&) {
    for (const Command& c : commands())
      std::fprintf(stderr, "  %-12s %s\n", (std::string(c.name) + " " + c.value).c_str(), c.help);
    std::fprintf(
        stderr,
        "  //...        a message that begins with /\n"
        "Ctrl-C stops a reply; twice, it ends the chat. To edit lines and to get old ones back, start it with\n"
        "rlwrap: rlwrap run %s -m chat\n",
        without_controls(run_.args.model).c_str());
  }
  void reset(const std::string&) {
    conversation_.reset();
    tell("a new conversation");
  }
  void undo(const std::string&) {
    if (!conversation_.undo()) return refuse("/undo: there is no message to take back");
    tell("taken back; messages left: " + std::to_string(conversation_.turns.size()));
  }
  void save(const std::string& path) {
    const std::string text = conversation_.to_json();
    try {
      NewFile file(path);
      file.write(text.data(), text.size());
      file.finish();
    } catch (const Failure& f) {
      return refuse("/save: " + f.what);
    }
    tell(path + ": saved; messages: " + std::to_string(conversation_.turns.size()));
  }
  void load(const std::string& path) {
    std::string error;
    if (!conversation_.load(path, error)) return refuse("/load: " + error + "; the conversation is what it was");
    tell(path + ": loaded; messages: " + std::to_string(conversation_.turns.size()));
  }
  void stats(const std::string&) {
    std::fprintf(stderr, "messages %zu, forgotten %zu; context %d of %d tokens\n", conversation_.turns.size(),
                 conversation_.forgotten(), session_.position(), session_.context());
    print_figures(run_, session_);
  }
  void quit(const std::string&) { quit_ = true; }

  // ---- Replies ----

  // Puts a message to the model and says its reply. Where the context is full the oldest turns go, in the middle of the
  // reply if need be.
  void answer(const std::string& message) {
    if (message.empty()) return;
    std::string valid;
    for (std::string_view rest = message; !rest.empty();) tokenizer_detail::take_character(rest, false, valid);
    conversation_.turns.push_back({valid, "", {}});
    session_.cancel(false);
    running.store(&session_);
    Turn& turn = conversation_.turns.back();
    const size_t context = size_t(session_.context());
    Reply reply(run_);
    size_t forgotten = 0;
    while (reply.end == End::full) {
      if (conversation_.ids().size() >= context) forgotten += conversation_.make_room(context / 2);
      const std::vector<int> ids = conversation_.ids();
      if (ids.size() + !turn.reply_ids.empty() > context) break;
      say(ids, turn, reply);
    }
    running.store(nullptr);
    finish(turn, reply, forgotten);
  }

  // Lets the session forget all but the common beginning of what it has heard and `ids`; returns what it has to hear.
  std::vector<int> rewind(const std::vector<int>& ids) {
    const auto end = heard_.begin() + long(std::min(heard_.size(), ids.size() - 1));
    const size_t common = size_t(std::mismatch(heard_.begin(), end, ids.begin()).first - heard_.begin());
    if (common < heard_.size()) {
      heard_.resize(common);
      session_.rewind(int(common));
      for (size_t i = kRepeatWindow; i > 0; i--) pick_.remember(i > common ? -1 : heard_[common - i]);  // -1: none
    }
    return std::vector<int>(ids.begin() + long(common), ids.end());
  }

  // Lets the session hear `ids`, and says what the model adds to them.
  void say(const std::vector<int>& ids, Turn& turn, Reply& reply) {
    const size_t limit = size_t(token_limit(run_.args));
    const std::vector<int> rest = rewind(ids);
    const size_t before = turn.reply_ids.size();
    const double start = seconds();
    double first = 0;
    bool good = false;
    reply.end = End::whole;
    try {
      good = generate(session_, pick_, feed(run_, session_, pick_, rest), int(limit - before), run_.model.chat.stop_ids,
                      [&](int id) {
                        if (turn.reply_ids.size() == before) first = seconds();
                        turn.reply_ids.push_back(id);
                        return take(id, turn, reply);
                      });
    } catch (const Failure& f) {
      if (f.status != 130) throw;
    }
    const size_t said = turn.reply_ids.size() - before;
    run_.figures.add(rest.size(), start, said, first);
    heard_ = ids;
    heard_.insert(heard_.end(), turn.reply_ids.begin() + long(before), turn.reply_ids.end());
    const bool heard_all = size_t(session_.position()) == heard_.size();
    heard_.resize(size_t(session_.position()));
    if (interrupted) reply.end = End::stopped;
    if (!good && !interrupted) fail(session_);
    if (reply.end == End::whole && !heard_all && !reply.filter.stopped)
      reply.end = before + said >= limit ? End::limit : End::full;
  }

  // Prints a token of a reply; false where the reply has to end.
  bool take(int id, Turn& turn, Reply& reply) {
    print(reply.filter.push(printed(run_.tokenizer, reply.stream, id)), turn);
    if (reply.loop.push(id)) reply.end = End::loop;
    return reply.end != End::loop && !reply.filter.stopped && !interrupted;
  }

  void print(const std::string& text, Turn& turn) {
    run_.out.write(text);
    turn.reply += text;
  }

  // Ends a reply: what is still to be printed, what is kept of it, and what there is to say about it. A character that
  // was cut in the middle is left out.
  void finish(Turn& turn, Reply& reply, size_t forgotten) {
    if (!reply.filter.stopped) {
      if (reply.end == End::whole) print(reply.filter.push(reply.stream.flush()), turn);
      if (!reply.filter.stopped) print(reply.filter.flush(), turn);
    }
    const bool nothing_said = turn.reply_ids.empty() && reply.end != End::whole;
    if (!nothing_said || isatty(1)) run_.out.write("\n");
    if (reply.filter.stopped) turn.reply_ids.clear();  // the stop text is no part of it
    if (reply.end == End::loop) keep_one_round(turn, reply.loop);
    tell_end(turn, reply, forgotten);
    if (nothing_said) conversation_.undo();
    if (chat_interrupts > 1) throw Failure{130, ""};
  }

  // A reply that repeats itself would make the next one do so too.
  void keep_one_round(Turn& turn, const LoopWatch& loop) {
    turn.reply_ids.resize(loop.kept());
    Tokenizer::Stream stream(run_.tokenizer);
    turn.reply.clear();
    for (int id : turn.reply_ids) turn.reply += printed(run_.tokenizer, stream, id);
  }

  void tell_end(const Turn& turn, const Reply& reply, size_t forgotten) {
    const std::string context = std::to_string(session_.context()) + " tokens";
    if (forgotten && !(reply.end == End::full && turn.reply_ids.empty()))
      tell("the context (" + context + ") is full, so the oldest messages are forgotten (" + std::to_string(forgotten) +
           ")" + (conversation_.has_system() ? "; the system prompt stays" : ""));
    if (reply.end == End::loop)
      tell("the reply went round in a loop of " + std::to_string(reply.loop.period()) +
           (reply.loop.period() == 1 ? " token" : " tokens") + ", so it was ended; one round of it is kept");
    if (reply.end == End::full && turn.reply_ids.empty())
      refuse("message: " + std::to_string(conversation_.ids().size()) + " tokens, but the context has room for " +
             context + "; shorten it, or give more with --ctx");
    else if (reply.end == End::full)
      tell("the context (" + context + ") is full, so the reply ends here; --ctx makes it larger");
    if (reply.end == End::stopped && chat_interrupts == 1)
      tell(turn.reply_ids.empty() ? "stopped; the message is taken back" : "stopped; another Ctrl-C ends the chat");
  }

  Run& run_;
  OpenSession open_;
  Session& session_;
  Sampler pick_;
  Conversation conversation_;
  std::vector<int> heard_;  // what the session holds
  std::string input_;       // of standard input, as it came
  size_t next_ = 0;         // the first of its bytes that is no part of a line yet
  bool quit_ = false, failed_ = false;
};

inline void chat(Run& run) {
  choose_template(run);
  Chat(run).talk();
}

}  // namespace pocket::cli
#endif  // POCKET_CHAT_HPP
