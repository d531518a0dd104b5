// chat_template.hpp: converts a checkpoint's chat template, a Jinja program, to the prefix and suffix strings of a
// model file. The program is not run. A template is parsed into steps, "if this condition holds, output this text". It
// is recognised if every step is in the list of a family below. Then the strings give the same conversation (system,
// then user and assistant in turn) as Jinja with trim_blocks and lstrip_blocks, which transformers sets. One exception:
// after a system prompt Llama 2 does not trim the front of the first message; here it is trimmed.
#pragma once

#include <cctype>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "chat_families.hpp"
#include "engine.hpp"
#include "input_file.hpp"

namespace pocket {

// ====================================================================================================================
// From Jinja to steps
// ====================================================================================================================

/// A token between {{ and }} or {% and %}.
struct JinjaToken {
  enum Kind { word, string, sign } kind;
  std::string text;
  bool is(const char* s) const { return kind != string && text == s; }
};
using JinjaTokens = std::vector<JinjaToken>;

/// Consecutive tokens of a tag.
struct JinjaRange {
  const JinjaToken *first, *last;

  JinjaRange(const JinjaToken* from, const JinjaToken* to) : first(from), last(to) {}
  JinjaRange(const JinjaTokens& all, size_t from) : first(all.data() + from), last(all.data() + all.size()) {}
  size_t size() const { return size_t(last - first); }
  const JinjaToken& operator[](size_t i) const { return first[i]; }
  JinjaRange part(size_t from, size_t to) const { return {first + from, first + to}; }
  const JinjaToken* begin() const { return first; }
  const JinjaToken* end() const { return last; }
};

// Limits of a template, far above those of the known families: no template makes the reader take more time or memory
// than its size justifies.
inline constexpr size_t kJinjaDepth = 64;                // nested {% if %} and {% for %}
inline constexpr size_t kLongestJinjaTag = 1024;         // tokens
inline constexpr size_t kLongestJinjaStep = 16 << 10;    // bytes
inline constexpr size_t kLargestJinjaSteps = 256 << 10;  // bytes of all steps

/// Whether a text is an identifier.
inline bool is_jinja_word(std::string_view s) {
  for (char c : s)
    if (!std::isalnum(uint8_t(c)) && c != '_') return false;
  return !s.empty();
}

/// Removes parentheses around a whole expression.
inline JinjaRange unwrap(JinjaRange t) {
  std::vector<size_t> closing(t.size(), t.size()), open;  // by parenthesis: the one that closes it
  for (size_t i = 0; i < t.size(); i++) {
    if (t[i].is("(")) open.push_back(i);
    if (!t[i].is(")") || open.empty()) continue;
    closing[open.back()] = i;
    open.pop_back();
  }
  size_t begin = 0, end = t.size();
  while (end - begin > 2 && t[begin].is("(") && t[end - 1].is(")") && closing[begin] >= end - 1) {
    begin++;
    end--;
  }
  return t.part(begin, end);
}

/// The normalized spelling of an expression: message['role'] and message.role are both message.role.
inline std::string spell(JinjaRange tokens) {
  const JinjaRange t = unwrap(tokens);
  std::string out;
  for (size_t i = 0; i < t.size(); i++) {
    const bool member = t[i].is("[") && i + 2 < t.size() && t[i + 1].kind == JinjaToken::string && t[i + 2].is("]") &&
                        is_jinja_word(t[i + 1].text);
    if (member) {
      out += "." + t[i + 1].text;
      i += 2;
      continue;
    }
    const bool keyword = i > 0 && (t[i - 1].is("and") || t[i - 1].is("or") || t[i - 1].is("not") || t[i - 1].is("in"));
    const bool call = t[i].is("(") && i > 0 && t[i - 1].kind == JinjaToken::word && !keyword;
    const bool closes = t[i].is(")") || t[i].is("]") || t[i].is("[") || t[i].is(",") || t[i].is(".") || t[i].is(":");
    const bool opened = i > 0 && (t[i - 1].is("(") || t[i - 1].is("[") || t[i - 1].is(".") || t[i - 1].is(":"));
    if (i > 0 && !call && !closes && !opened) out += ' ';
    out += t[i].kind == JinjaToken::string ? "'" + t[i].text + "'" : t[i].text;
  }
  return out;
}

/// The output of an expression: string literals unchanged, other terms in braces, {message.content} or, if trimmed,
/// {message.content|trim}. A brace in a literal becomes \1.
inline std::string output_of(JinjaRange tokens) {
  const JinjaRange t = unwrap(tokens);
  std::string out;
  for (size_t i = 0, start = 0, depth = 0; i <= t.size(); i++) {
    if (i < t.size()) depth += size_t(t[i].is("(") || t[i].is("[")) - size_t(t[i].is(")") || t[i].is("]"));
    if (i < t.size() && (depth > 0 || !(t[i].is("+") || t[i].is("~")))) continue;
    const JinjaRange term = t.part(start, i);
    start = i + 1;
    if (term.size() == 1 && term[0].kind == JinjaToken::string) {
      for (char c : term[0].text) out += c == '{' || c == '}' ? '\1' : c;
      continue;
    }
    std::string name = spell(term);
    for (const std::string trim : {" | trim", ".strip()"})
      if (name.size() > trim.size() && name.substr(name.size() - trim.size()) == trim)
        name.replace(name.size() - trim.size(), trim.size(), "|trim");
    out += "{" + name + "}";
  }
  return out;
}

/// Whether a condition is never true in a conversation without tools and documents.
inline bool never_true(JinjaRange condition) {
  bool tools = false, other = false;
  for (const JinjaToken& t : condition) {
    for (const char* name : {"tools", "tool_calls", "documents", "custom_tools", "builtin_tools"})
      tools = tools || t.is(name);
    for (const char* word : {"not", "or", "else", "none", "undefined", "!="}) other = other || t.is(word);
  }
  const std::string text = spell(condition);
  return (tools && !other) || text == "message.role == 'tool'" || text.rfind("false == true and ", 0) == 0;
}

/// Parses a template into steps: "condition / condition: text".
class JinjaSteps {
 public:
  std::string error;
  std::vector<std::string> steps;

  /// False with `error` set if the template is invalid or exceeds a limit.
  bool read(std::string_view jinja) {
    text_ =
        jinja.substr(0, jinja.size() - (!jinja.empty() && jinja.back() == '\n'));  // Jinja removes one trailing newline
    while (at_ < text_.size()) {
      const size_t open = find_tag(at_);
      plain(text_.substr(at_, open - at_), open);
      at_ = open;
      if (at_ < text_.size() && !tag()) return false;
    }
    if (!flush()) return false;
    return frames_.empty() || fail(error, "expected an {% end... %} for each {% if %} and {% for %}, found fewer");
  }

 private:
  struct Frame {
    bool loop;
    std::string label;               // the condition; "" if always true
    std::vector<std::string> tried;  // if: the conditions up to this branch
    bool live;                       // this branch may be taken
    bool was_live;                   // the enclosing branch may be taken
    bool last_branch = false;        // if: this is the {% else %} branch
  };

  size_t find_tag(size_t from) const {
    for (; (from = text_.find('{', from)) != std::string_view::npos; from++)
      if (from + 1 < text_.size() && std::strchr("{%#", text_[from + 1])) return from;
    return text_.size();
  }

  bool live() const { return frames_.empty() || frames_.back().live; }

  // Text outside of tags; `open` is the position of the next tag.
  void plain(std::string_view s, size_t open) {
    const auto space = [](char c) { return std::isspace(uint8_t(c)) != 0; };
    if (trim_line_ && !s.empty() && s[0] == '\n') {
      s.remove_prefix(1);
      line_start_ = true;
    }
    while (trim_all_ && !s.empty() && space(s[0])) s.remove_prefix(1);
    if (open < text_.size()) {
      const char kind = text_[open + 1], mark = open + 2 < text_.size() ? text_[open + 2] : '\0';
      if (mark == '-') {
        while (!s.empty() && space(s.back())) s.remove_suffix(1);
      } else if (kind != '{' && mark != '+') {  // lstrip_blocks
        size_t end = s.size();
        while (end > 0 && s[end - 1] != '\n' && space(s[end - 1])) end--;
        if (end > 0 ? s[end - 1] == '\n' : line_start_) s = s.substr(0, end);
      }
    }
    if (live())
      for (char c : s) pending_ += c == '{' || c == '}' ? '\1' : c;
  }

  bool tag() {
    const char kind = text_[at_ + 1];
    at_ += 2;
    if (at_ < text_.size() && (text_[at_] == '-' || text_[at_] == '+')) at_++;
    JinjaTokens tokens;
    if (kind == '#') {
      const size_t end = text_.find("#}", at_);
      if (end == std::string_view::npos) return fail(error, "expected #}, found the end");
      at_ = end + 2;
      trim_all_ = text_[end - 1] == '-';
    } else if (!tokenize(kind == '{' ? "}}" : "%}", tokens)) {
      return false;
    }
    trim_line_ = kind != '{';
    line_start_ = false;
    return kind == '#' || (kind == '{' ? output(tokens) : statement(tokens));
  }

  bool tokenize(const char* end, JinjaTokens& out) {
    for (; at_ < text_.size(); at_++) {
      const std::string_view rest = text_.substr(at_);
      trim_all_ = rest[0] == '-' && rest.substr(1, 2) == end;
      if (trim_all_ || rest.substr(0, 2) == end) {
        at_ += trim_all_ ? 3 : 2;
        return true;
      }
      if (std::isspace(uint8_t(rest[0]))) continue;
      if (out.size() == kLongestJinjaTag)
        return fail(error, {"expected at most ", kLongestJinjaTag, " tokens in a tag, found more"});
      if (rest[0] == '\'' || rest[0] == '"') {
        if (!string(out)) return false;
        continue;
      }
      size_t n = 0;
      while (n < rest.size() && (std::isalnum(uint8_t(rest[n])) || rest[n] == '_')) n++;
      const bool word = n > 0;
      if (!word) n = rest.substr(1, 1) == "=" && std::strchr("=!<>", rest[0]) ? 2 : 1;
      out.push_back({word ? JinjaToken::word : JinjaToken::sign, std::string(rest.substr(0, n))});
      at_ += n - 1;
    }
    return fail(error, std::string("expected ") + end + ", found the end");
  }

  // A string literal; stops at the closing quote.
  bool string(JinjaTokens& out) {
    const char quote = text_[at_];
    std::string s;
    while (++at_ < text_.size() && text_[at_] != quote) {
      if (text_[at_] != '\\') {
        s += text_[at_];
        continue;
      }
      constexpr std::string_view kLetters = "ntr\\'\"", kMeanings = "\n\t\r\\'\"";
      const size_t letter = ++at_ < text_.size() ? kLetters.find(text_[at_]) : std::string_view::npos;
      if (letter == std::string_view::npos) return fail(error, "expected one of \\n \\t \\r \\\\ \\' \\\" in a string");
      s += kMeanings[letter];
    }
    out.push_back({JinjaToken::string, s});
    return at_ < text_.size() || fail(error, "expected a closing quote, found the end of the template");
  }

  bool output(const JinjaTokens& tokens) {
    const bool refusal = !tokens.empty() && tokens[0].is("raise_exception");
    if (live() && !refusal) pending_ += output_of({tokens, 0});
    return true;
  }

  bool statement(const JinjaTokens& tokens) {
    const std::string word = tokens.empty() ? "" : tokens[0].text;
    const JinjaRange rest(tokens, tokens.empty() ? 0 : 1);
    if (word == "generation" || word == "endgeneration") return true;  // training marks
    if (!flush()) return false;
    if (word == "for") return open({true, "for " + spell(rest), {}, live(), live()});
    if (word == "if") return open({false, "", {}, live(), live()}) && branch(&rest);
    if (word == "set" && rest.size() > 2 && rest[1].is("=")) {
      if (live()) pending_ = "set " + rest[0].text + " = " + output_of(rest.part(2, rest.size()));
      return flush();
    }
    if (frames_.empty() || (word != "elif" && word != "else" && word != "endif" && word != "endfor"))
      return fail(error, "{% " + word + " %}: unknown here");
    const bool next_branch = word == "elif" || word == "else";
    if (frames_.back().loop != (word == "endfor") || (next_branch && frames_.back().last_branch))
      return fail(error, "{% " + word + " %}: unexpected here");
    if (next_branch) return branch(word == "elif" ? &rest : nullptr);
    frames_.pop_back();
    return true;
  }

  bool open(Frame frame) {
    if (frames_.size() == kJinjaDepth)
      return fail(error, {"expected at most ", kJinjaDepth, " nested {% if %} and {% for %}, found more"});
    frames_.push_back(std::move(frame));
    return true;
  }

  // The next branch of an {% if %}; the {% else %} branch has no condition.
  bool branch(const JinjaRange* condition) {
    Frame& f = frames_.back();
    f.live = f.was_live && !(condition && never_true(*condition));
    if (condition) {
      f.label = spell(*condition);
      if (!never_true(*condition)) f.tried.push_back(f.label);
      return true;
    }
    f.last_branch = true;
    f.label.clear();
    for (const std::string& tried : f.tried) f.label += (f.label.empty() ? "not (" : " or ") + tried;
    if (!f.label.empty()) f.label += ")";
    return true;
  }

  // Ends a step.
  bool flush() {
    if (pending_.empty()) return true;
    std::string path;
    for (const Frame& f : frames_)
      if (!f.label.empty()) path += (path.empty() ? "" : " / ") + f.label;
    steps.push_back(path + ": " + pending_);
    pending_.clear();
    bytes_ += steps.back().size();
    return (steps.back().size() <= kLongestJinjaStep && bytes_ <= kLargestJinjaSteps) ||
           fail(error, {"expected steps of at most ", kLongestJinjaStep, " bytes each and ", kLargestJinjaSteps,
                        " in total, found more"});
  }

  std::string_view text_;
  size_t at_ = 0;
  bool trim_line_ = false, trim_all_ = false;  // effect of the last tag on the text after it
  bool line_start_ = true;
  std::string pending_;  // output of the current step
  size_t bytes_ = 0;     // of all steps
  std::vector<Frame> frames_;
};

// ====================================================================================================================
// The families
// ====================================================================================================================

/// A step that a template of the family may contain. {default} stands for any text.
struct KnownStep {
  int place;       // steps must be in this order
  unsigned gives;  // bits: functions of the step; each may occur once
  const char* text;
};

/// The steps of a family's templates.
struct KnownTemplate {
  const char* family;  // key
  const char* mark;    // a text that identifies the family; "": none
  unsigned needs;      // bits of KnownStep::gives that are required
  std::vector<KnownStep> known;
};

inline constexpr unsigned kSystem = ChatTemplate::kTrimSystem, kUser = ChatTemplate::kTrimUser,
                          kAssistant = ChatTemplate::kTrimReply, kPrompt = 8, kBos = 16, kDefault = 32, kShown = 64,
                          kRest = 128, kMessage = 256, kNone = 512, kAll = kSystem | kUser | kAssistant;

#define POCKET_HEADER(ROLE) "<|start_header_id|>" ROLE "<|end_header_id|>\n\n"
#define POCKET_NO_SYSTEM(CONDITION) CONDITION ": <|im_start|>system\n{default}<|im_end|>\n"
#define POCKET_IF_SYSTEM "messages[0].role == 'system': "
#define POCKET_IF_NO_SYSTEM "not (messages[0].role == 'system'): "
#define POCKET_EACH(ROLE) "each message / message.role == '" ROLE "': "

inline KnownTemplate chatml_template() {
  return {"chatml",
          "<|im_start|>",
          kAll | kPrompt,
          {{0, 0, "not add_generation_prompt is defined: set add_generation_prompt = {false}"},
           {1, kBos, ": {bos_token}"},
           {2, kDefault, POCKET_NO_SYSTEM("messages[0].role != 'system'")},
           {2, kDefault, POCKET_NO_SYSTEM("each message / loop.first and messages[0].role != 'system'")},
           {2, kDefault, POCKET_NO_SYSTEM("each message / loop.index0 == 0 and messages[0].role != 'system'")},
           {3, kAll, "each message: <|im_start|>{message.role}\n{message.content}<|im_end|>\n"},
           {3, kSystem, POCKET_EACH("system") "<|im_start|>system\n{message.content}<|im_end|>\n"},
           {3, kUser, POCKET_EACH("user") "<|im_start|>user\n{message.content}<|im_end|>\n"},
           {3, kAssistant, POCKET_EACH("assistant") "<|im_start|>assistant\n{message.content}<|im_end|>\n"},
           {4, kPrompt, "each message / loop.last and add_generation_prompt: <|im_start|>assistant\n"},
           {4, kPrompt, "add_generation_prompt: <|im_start|>assistant\n"},
           {4, kPrompt, ": <|im_start|>assistant\n"}}};
}

inline KnownTemplate llama3_template() {
  return {"llama-3",
          "<|start_header_id|>",
          kAll | kShown | kPrompt,
          {{0, 0, "not add_generation_prompt is defined: set add_generation_prompt = {false}"},
           {1, kBos, ": {bos_token}"},
           {1, 0, ": set loop_messages = {messages}"},
           {2, kAll | kShown, "each message: " POCKET_HEADER("{message.role}") "{message.content}<|eot_id|>"},
           {2, kAll, "each message: set content = " POCKET_HEADER("{message.role}") "{message.content}<|eot_id|>"},
           {3, kBos, "each message / loop.index0 == 0: set content = {bos_token}{content}"},
           {4, kShown, "each message: {content}"},
           {5, kPrompt, "add_generation_prompt: " POCKET_HEADER("assistant")},
           {5, kPrompt, ": " POCKET_HEADER("assistant")}}};
}

inline KnownTemplate zephyr_template() {
  return {"zephyr",
          "<|user|>",
          kAll | kPrompt,
          {{1, kUser, POCKET_EACH("user") "<|user|>\n{message.content}{eos_token}\n"},
           {1, kSystem, POCKET_EACH("system") "<|system|>\n{message.content}{eos_token}\n"},
           {1, kAssistant, POCKET_EACH("assistant") "<|assistant|>\n{message.content}{eos_token}\n"},
           {2, kPrompt, "each message / loop.last and add_generation_prompt: <|assistant|>\n"},
           {2, kPrompt, "add_generation_prompt: <|assistant|>\n"}}};
}

inline KnownTemplate llama2_template() {
  return {"llama-2",
          "<<SYS>>",
          kAll | kShown | kRest | kMessage | kNone,
          {{1, kRest, POCKET_IF_SYSTEM "set loop_messages = {messages[1:]}"},
           {1, kMessage, POCKET_IF_SYSTEM "set system_message = {messages[0].content}"},
           {1, 0, POCKET_IF_NO_SYSTEM "set loop_messages = {messages}"},
           {1, kNone, POCKET_IF_NO_SYSTEM "set system_message = {false}"},
           {2, kSystem,
            "each message / loop.index0 == 0 and system_message != false: "
            "set content = <<SYS>>\n{system_message}\n<</SYS>>\n\n{message.content}"},
           {2, kShown,
            "each message / not (loop.index0 == 0 and system_message != false): "
            "set content = {message.content}"},
           {3, kUser, POCKET_EACH("user") "{bos_token}[INST] {content} [/INST]"},
           {3, 0, POCKET_EACH("system") "<<SYS>>\n{content}\n<</SYS>>\n\n"},  // unreachable
           {3, kAssistant, POCKET_EACH("assistant") " {content} {eos_token}"}}};
}

// The steps that Alpaca and Vicuna lines share: the system prompt and an empty line before the turns.
inline std::vector<KnownStep> with_system_in_front(std::vector<KnownStep> turns) {
  const KnownStep front[] = {{1, kSystem, POCKET_IF_SYSTEM "set system_message = {messages[0].content}\n\n"},
                             {1, kSystem | kShown, POCKET_IF_SYSTEM "{bos_token}{messages[0].content}\n\n"},
                             {1, kRest, POCKET_IF_SYSTEM "set messages = {messages[1:]}"},
                             {1, kNone, POCKET_IF_NO_SYSTEM "set system_message = "},
                             {1, kDefault | kNone, POCKET_IF_NO_SYSTEM "set system_message = {default}\n\n"},
                             {1, kBos, POCKET_IF_NO_SYSTEM "{bos_token}"},
                             {1, kBos | kDefault, POCKET_IF_NO_SYSTEM "{bos_token}{default}\n\n"},
                             {2, kBos | kShown, ": {bos_token}{system_message}"},
                             {2, kShown, ": {system_message}"},
                             {2, kBos, ": {bos_token}"},
                             {3, kSystem | kShown, POCKET_EACH("system") "{message.content}\n\n"}};
  turns.insert(turns.begin(), std::begin(front), std::end(front));
  return turns;
}

inline KnownTemplate alpaca_template() {
  return {
      "alpaca", "### Response:", kAll | kShown | kPrompt,
      with_system_in_front({{3, kUser, POCKET_EACH("user") "### Instruction:\n{message.content}\n\n"},
                            {3, kAssistant, POCKET_EACH("assistant") "### Response:\n{message.content}{eos_token}\n\n"},
                            {4, kPrompt, "add_generation_prompt: ### Response:\n"}})};
}

inline KnownTemplate vicuna_lines_template() {
  return {"vicuna-lines", "ASSISTANT:", kAll | kShown | kPrompt,
          with_system_in_front({{3, kUser, POCKET_EACH("user") "USER: {message.content}\n"},
                                {3, kAssistant, POCKET_EACH("assistant") "ASSISTANT: {message.content}{eos_token}\n"},
                                {4, kPrompt, "add_generation_prompt: ASSISTANT:"}})};
}

inline KnownTemplate vicuna_template() {
  return {"vicuna",
          " ASSISTANT:",
          kAll | kShown | kRest | kDefault | kPrompt,
          {{1, kRest, POCKET_IF_SYSTEM "set loop_messages = {messages[1:]}"},
           {1, kSystem, POCKET_IF_SYSTEM "set system_message = {messages[0].content}"},
           {1, 0, POCKET_IF_NO_SYSTEM "set loop_messages = {messages}"},
           {1, kDefault, POCKET_IF_NO_SYSTEM "set system_message = {default}"},
           {2, kBos, ": {bos_token}"},
           {3, kShown, "each message / loop.index0 == 0: {system_message}"},
           {3, kBos | kShown, "each message / loop.index0 == 0: {bos_token}{system_message}"},
           {4, kUser, POCKET_EACH("user") " USER: {message.content}"},
           {4, kAssistant, POCKET_EACH("assistant") " ASSISTANT: {message.content}{eos_token}"},
           {5, kPrompt, "add_generation_prompt:  ASSISTANT:"}}};
}

inline KnownTemplate plain_template() {
  return {"plain", "", kAll, {{1, kBos, ": {bos_token}"}, {2, kAll, "each message: {message.content}\n"}}};
}

#undef POCKET_HEADER
#undef POCKET_NO_SYSTEM
#undef POCKET_IF_SYSTEM
#undef POCKET_IF_NO_SYSTEM
#undef POCKET_EACH

// ====================================================================================================================
// Recognition
// ====================================================================================================================

/// Matches the steps of a template with those of a family.
class TemplateMatcher {
 public:
  TemplateMatcher(const KnownTemplate& known, const Tokenizer& tokenizer)
      : known_(known), family_(*find_chat_family(known.family)), tokenizer_(tokenizer) {
    for (const KnownStep& step : known.known) texts_.push_back(with_tokens_written(step.text, tokenizer));
  }

  std::string error;

  // Stores the chat template in `out`. False with `error` set to the reason if the template is not of this family.
  bool match(const std::vector<std::string>& steps, ChatTemplate& out) {
    if (!make_chat_template(family_, tokenizer_, out, error)) return false;
    out.default_system.clear();
    out.trim = 0;
    int place = 0;
    unsigned given = 0;
    for (const std::string& step : steps)
      if (!take(step, place, given, out)) return false;
    if ((given & known_.needs) != known_.needs)
      return fail(error, std::string("expected all the parts of ") + family_.name + ", found some of them");
    return begin_with_bos(given & kBos, out);
  }

 private:
  bool take(std::string step, int& place, unsigned& given, ChatTemplate& out) {
    const std::string loop = "for message in ", trim = "|trim}", as_found = step;
    for (const std::string over : {"loop_messages", "messages"})
      if (step.rfind(loop + over, 0) == 0) step = "each message" + step.substr(loop.size() + over.size());
    const bool trims = step.find(trim) != std::string::npos;
    step = with_tokens_written(replaced(step, trim, "}"), tokenizer_);
    for (size_t i = 0; i < texts_.size(); i++) {
      const KnownStep& known = known_.known[i];
      if (!fits(step, texts_[i], out)) continue;
      if (known.place < place || (given & known.gives)) return fail(error, "unexpected here: " + shown(as_found));
      place = known.place;
      given |= known.gives;
      if (trims) out.trim |= known.gives & kAll;
      return true;
    }
    return fail(error, "unknown step of " + std::string(family_.name) + ": " + shown(step));
  }

  static std::string replaced(const std::string& text, const std::string& from, const char* to) {
    std::string out;
    size_t at = 0;
    for (size_t next; (next = text.find(from, at)) != std::string::npos; at = next + from.size())
      out.append(text, at, next - at).append(to);
    return out.append(text, at);
  }

  // Whether a step equals a known step, with any text in place of {default}.
  static bool fits(const std::string& step, const std::string& known, ChatTemplate& out) {
    const std::string hole = "{default}";
    const size_t at = known.find(hole);
    if (at == std::string::npos) return step == known;
    const std::string before = known.substr(0, at), after = known.substr(at + hole.size());
    if (step.size() <= before.size() + after.size() || step.compare(0, at, before) != 0 ||
        step.compare(step.size() - after.size(), after.size(), after) != 0)
      return false;
    const std::string text = step.substr(at, step.size() - before.size() - after.size());
    if (text.find_first_of("{\1") != std::string::npos || text.find("<|") != std::string::npos) return false;
    out.default_system = text;
    return true;
  }

  static std::string shown(const std::string& step) {
    std::string text;
    for (char c : step.substr(0, 120)) text += c == '\n' ? "\\n" : std::string(1, c == '\1' ? '{' : c);
    return text + (step.size() > 120 ? "..." : "");
  }

  // BOS comes before the first turn only: from the tokenizer, or else before the system turn, if there always is one.
  bool begin_with_bos(bool written_out, ChatTemplate& out) {
    if (!written_out || tokenizer_.bos() < 0 || tokenizer_.adds_bos()) return true;
    if (out.default_system.empty()) return fail(error, "begins with BOS, which the tokenizer does not add");
    ChatTemplate::Parts& front = out.slot[ChatTemplate::kSystemPrefix];
    front.insert(front.begin(), {tokenizer_.bos(), ""});
    return true;
  }

  const KnownTemplate& known_;
  std::vector<std::string> texts_;  // of the known steps, with the texts of BOS and EOS
  const ChatFamily& family_;
  const Tokenizer& tokenizer_;
};

/// Converts a Jinja template. True with the family's name in `family_or_reason`; or false, `out` empty, and the reason
/// why the template was not recognised.
inline bool recognise_chat_template(const std::string& jinja, const Tokenizer& tokenizer, ChatTemplate& out,
                                    std::string& family_or_reason) {
  out = ChatTemplate();
  const auto has = [&](const char* text) { return jinja.find(text) != std::string::npos; };
  if (has("Cutting Knowledge Date"))
    return fail(family_or_reason, "outputs a system turn with dates even without a system prompt");
  std::string reason;
  for (const KnownTemplate& known : {chatml_template(), llama3_template(), llama2_template(), zephyr_template(),
                                     alpaca_template(), vicuna_template(), vicuna_lines_template(), plain_template()}) {
    if (!has(known.mark)) continue;
    JinjaSteps reader;
    TemplateMatcher matcher(known, tokenizer);
    ChatTemplate found;
    if (reader.read(jinja) && matcher.match(reader.steps, found)) {
      out = std::move(found);
      family_or_reason = find_chat_family(known.family)->name;
      return true;
    }
    if (reason.empty() && *known.mark) reason = reader.error.empty() ? matcher.error : reader.error;
  }
  return fail(family_or_reason, reason.empty() ? "not of a known family" : reason);
}

}  // namespace pocket
