// chat_template.hpp: from the chat template of a checkpoint, which is a program in the Jinja language, to the data that
// a model file carries. Nothing is run: the template's family is recognised by the text between its quotation marks,
// and what no family accounts for is refused, since a model that is addressed wrongly answers badly.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "../run.cpp"
#include "../tokenizer.hpp"

namespace pocket {

// What a template says literally: its quoted strings, escapes resolved.
class TemplateLiterals {
 public:
  explicit TemplateLiterals(std::string_view jinja) {
    for (size_t i = 0; i < jinja.size(); i++) {
      const bool in_tag = depth_ > 0;
      if (jinja.substr(i, 2) == "{{" || jinja.substr(i, 2) == "{%") depth_ = 1;
      if (jinja.substr(i, 2) == "}}" || jinja.substr(i, 2) == "%}") depth_ = 0;
      if (in_tag && (jinja[i] == '\'' || jinja[i] == '"')) i = read(jinja, i);
    }
  }

  bool has(const std::string& text) const { return std::find(all_.begin(), all_.end(), text) != all_.end(); }
  // Some literal has this text in it.
  bool mentions(std::string_view text) const {
    return std::any_of(all_.begin(), all_.end(), [&](const std::string& s) { return s.find(text) != s.npos; });
  }
  const std::vector<std::string>& all() const { return all_; }

 private:
  // Reads the literal whose quotation mark is at i; returns where it ends.
  size_t read(std::string_view jinja, size_t i) {
    const char quote = jinja[i++];
    std::string text;
    for (; i < jinja.size() && jinja[i] != quote; i++) {
      if (jinja[i] != '\\' || i + 1 >= jinja.size()) {
        text += jinja[i];
        continue;
      }
      const char c = jinja[++i];
      text += c == 'n' ? '\n' : c == 't' ? '\t' : c == 'r' ? '\r' : c;
    }
    all_.push_back(text);
    return i;
  }

  std::vector<std::string> all_;
  int depth_ = 0;  // 1 inside {{ }} and {% %}
};

// Fills in a ChatTemplate; each family is a function that returns "" or why it is not so.
class ChatFamilies {
 public:
  ChatFamilies(const std::string& jinja, const Tokenizer& tokenizer, ChatTemplate& out)
      : jinja_(jinja), literals_(jinja), tokenizer_(tokenizer), out_(out) {}

  // The family's name, or why there is none.
  bool recognise(std::string& family_or_reason) {
    using Member = std::string (ChatFamilies::*)();
    const struct {
      const char *name, *mark;
      Member fill;
    } families[] = {{"ChatML", "<|im_start|>", &ChatFamilies::chatml},
                    {"Llama 3", "<|start_header_id|>", &ChatFamilies::llama3},
                    {"Llama 2", "[INST]", &ChatFamilies::llama2},
                    {"Zephyr", "<|assistant|>", &ChatFamilies::zephyr}};
    for (const auto& f : families) {
      if (!literals_.mentions(f.mark)) continue;
      const std::string why = (this->*f.fill)();
      if (!why.empty()) out_ = ChatTemplate();
      family_or_reason = why.empty() ? f.name : std::string(f.name) + ": " + why;
      return why.empty();
    }
    family_or_reason = "expected ChatML, Zephyr, Llama 2 or Llama 3, found another kind";
    return false;
  }

 private:
  // Puts strings into a slot; those that are control tokens become their ids.
  void set(ChatTemplate::Slot slot, std::initializer_list<std::string> parts) {
    for (const std::string& part : parts)
      if (controls_.count(part))
        out_.slot[slot].push_back({tokenizer_.find(part), ""});
      else if (!part.empty())
        out_.slot[slot].push_back({-1, part});
  }

  // These are control tokens here; false if the tokenizer has not got them.
  bool use_controls(std::initializer_list<std::string> names) {
    for (const std::string& name : names) {
      const int id = tokenizer_.find(name);
      if (id < 0 || tokenizer_.type(id) != Tokenizer::PieceType::control) return false;
      controls_.insert(name);
    }
    return true;
  }
  bool use_eos() {
    eos_ = std::string(tokenizer_.piece(tokenizer_.eos()));
    return !eos_.empty() && use_controls({eos_});
  }
  void stop_at(const std::string& control) { out_.stop_ids.push_back(tokenizer_.find(control)); }

  bool mentions(std::string_view code) const { return jinja_.find(code) != std::string::npos; }
  bool adds_bos_as_tokenizer() const { return !mentions("bos_token") || tokenizer_.adds_bos(); }

  // github.com/openai/openai-python, chatml.md: <|im_start|>role, a line feed, the text, <|im_end|>, a line feed.
  std::string chatml() {
    if (!use_controls({"<|im_start|>", "<|im_end|>"})) return "<|im_start|> and <|im_end|> are no control tokens";
    if (!literals_.has("<|im_start|>assistant\n")) return "the reply does not begin with <|im_start|>assistant";
    if (!literals_.has("<|im_end|>\n") && !(literals_.has("<|im_end|>") && literals_.has("\n")))
      return "a turn does not end with <|im_end|> and a line feed";
    if (!adds_bos_as_tokenizer()) return "it begins with BOS, but the tokenizer adds none";
    if (const std::string why = default_system("<|im_start|>system\n", "<|im_end|>"); !why.empty()) return why;
    set(ChatTemplate::kSystemPrefix, {"<|im_start|>", "system\n"});
    set(ChatTemplate::kSystemSuffix, {"<|im_end|>", "\n"});
    for (auto slot : {ChatTemplate::kFirstUserPrefix, ChatTemplate::kUserPrefix}) set(slot, {"<|im_start|>", "user\n"});
    set(ChatTemplate::kUserSuffix, {"<|im_end|>", "\n"});
    set(ChatTemplate::kReplyPrefix, {"<|im_start|>", "assistant\n"});
    set(ChatTemplate::kReplySuffix, {"<|im_end|>", "\n"});
    stop_at("<|im_end|>");
    return "";
  }

  // The literal between begin and end, where there is one, is the system prompt that stands in for a missing one.
  std::string default_system(const std::string& begin, const std::string& end) {
    for (const std::string& s : literals_.all()) {
      const size_t stop = s.find(end);
      if (s.compare(0, begin.size(), begin) != 0 || stop == std::string::npos || stop < begin.size()) continue;
      const std::string prompt = s.substr(begin.size(), stop - begin.size());
      if (!out_.default_system.empty() && prompt != out_.default_system) return "it has several system prompts";
      out_.default_system = prompt;
    }
    return "";
  }

  // Hugging Face's Zephyr and TinyLlama: <|user|>, a line feed, the text, EOS, a line feed; the names are plain text.
  std::string zephyr() {
    if (!use_eos() || !mentions("eos_token")) return "a turn does not end with EOS";
    for (const char* role : {"<|user|>\n", "<|system|>\n", "<|assistant|>\n"})
      if (!literals_.has(role)) return "a turn does not begin with the role on a line of its own";
    if (!mentions("'<|assistant|>' }}\n") && !mentions("\"<|assistant|>\" }}\n"))
      return "the reply does not begin with <|assistant|> on a line of its own";
    for (const char* role : {"<|user|>", "<|system|>", "<|assistant|>"}) use_controls({role});  // in some they are
    const auto turn = [&](ChatTemplate::Slot slot, const char* role) {
      if (controls_.count(role))
        set(slot, {role, "\n"});
      else
        set(slot, {std::string(role) + "\n"});
    };
    turn(ChatTemplate::kSystemPrefix, "<|system|>");
    turn(ChatTemplate::kFirstUserPrefix, "<|user|>");
    turn(ChatTemplate::kUserPrefix, "<|user|>");
    turn(ChatTemplate::kReplyPrefix, "<|assistant|>");
    for (auto slot : {ChatTemplate::kSystemSuffix, ChatTemplate::kUserSuffix, ChatTemplate::kReplySuffix})
      set(slot, {eos_, "\n"});
    stop_at(eos_);
    return "";
  }

  // github.com/meta-llama/llama: the system prompt stands inside the first user turn; every user turn begins with BOS.
  std::string llama2() {
    if (!literals_.mentions("<<SYS>>\n") || !literals_.mentions("\n<</SYS>>\n\n"))
      return "the system prompt does not stand between <<SYS>> and <</SYS>>";
    if (!literals_.has("[INST] ") || !literals_.has(" [/INST]"))
      return "a turn does not stand between [INST] and [/INST]";
    const std::string bos(tokenizer_.piece(tokenizer_.bos()));
    if (!use_eos() || bos.empty() || !use_controls({bos}) || !mentions("bos_token") || !mentions("eos_token"))
      return "turns do not begin with BOS and end with EOS";
    set(ChatTemplate::kSystemPrefix, {bos, "[INST] <<SYS>>\n"});
    set(ChatTemplate::kSystemSuffix, {"\n<</SYS>>\n\n"});
    set(ChatTemplate::kUserPrefix, {bos, "[INST] "});
    set(ChatTemplate::kUserSuffix, {" [/INST]"});
    set(ChatTemplate::kReplySuffix, {" ", eos_});
    stop_at(eos_);
    return "";
  }

  // github.com/meta-llama/llama3: the role between two control tokens, two line feeds, the text, <|eot_id|>.
  std::string llama3() {
    if (!use_controls({"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}))
      return "<|start_header_id|>, <|end_header_id|> and <|eot_id|> are no control tokens";
    if (literals_.mentions("Today Date"))
      return "its system prompt holds the date of the day, which a model file cannot";
    if (!literals_.mentions("<|end_header_id|>\n\n") || !literals_.mentions("<|eot_id|>"))
      return "a turn is not a header, two line feeds and a text";
    if (!tokenizer_.adds_bos()) return "it begins with BOS, but the tokenizer adds none";
    const auto header = [&](ChatTemplate::Slot slot, const char* role) {
      set(slot, {"<|start_header_id|>", role, "<|end_header_id|>", "\n\n"});
    };
    header(ChatTemplate::kSystemPrefix, "system");
    header(ChatTemplate::kFirstUserPrefix, "user");
    header(ChatTemplate::kUserPrefix, "user");
    header(ChatTemplate::kReplyPrefix, "assistant");
    for (auto slot : {ChatTemplate::kSystemSuffix, ChatTemplate::kUserSuffix, ChatTemplate::kReplySuffix})
      set(slot, {"<|eot_id|>"});
    stop_at("<|eot_id|>");
    return "";
  }

  const std::string& jinja_;
  TemplateLiterals literals_;
  const Tokenizer& tokenizer_;
  ChatTemplate& out_;
  std::set<std::string> controls_;
  std::string eos_;
};

// Fills `out` from a template. family_or_reason: the family's name; or, with false, why it was not recognised.
inline bool recognise_chat_template(const std::string& jinja, const Tokenizer& tokenizer, ChatTemplate& out,
                                    std::string& family_or_reason) {
  out = ChatTemplate();
  return ChatFamilies(jinja, tokenizer, out).recognise(family_or_reason);
}

}  // namespace pocket
