// jinja.hpp: renders chat templates, which are programs in the language Jinja, as transformers does: with trim_blocks,
// lstrip_blocks, loop controls, and without tools. The texts of a conversation can be unknown: a rendering then states
// where each of them is written and how it was trimmed, for any text. All that a template evaluates is either rendered
// exactly or refused.
#pragma once

#include <algorithm>
#include <cctype>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "message.hpp"

namespace pocket {

// Limits of a template, far above those of known ones: none takes more time or memory than its size justifies.
inline constexpr size_t kLongestTemplate = 128 << 10;  // bytes
inline constexpr int kJinjaDepth = 100;                // nested statements, parentheses, operations
inline constexpr size_t kJinjaSteps = 20000;           // of a rendering: evaluated nodes, and 16 bytes of text each
inline constexpr size_t kLongestJinjaSearch = 256;     // bytes of a text that is searched, stripped or split at
inline constexpr int64_t kLargestJinjaNumber = 1000000000;

/// Why a template cannot be rendered. Thrown within this file and chat_template.hpp only.
struct JinjaError {
  std::string reason;
  bool raised = false;  // by the template itself, which calls raise_exception()
};

// ====================================================================================================================
// Tokens
// ====================================================================================================================

struct JinjaToken {
  enum Kind { data, begin_print, begin_block, end_tag, name, string, integer, sign, end } kind;
  std::string text;  // of data and strings: what they stand for
  int line;

  bool is(const char* s) const { return (kind == name || kind == sign) && text == s; }
};

/// Splits a template into tokens.
class JinjaLexer {
 public:
  /// Throws JinjaError.
  static std::vector<JinjaToken> tokens(std::string_view source) {
    JinjaLexer lexer(source);
    while (lexer.at_ < lexer.text_.size()) lexer.data_and_tag();
    lexer.push(JinjaToken::end, "");
    return std::move(lexer.tokens_);
  }

 private:
  // A newline is \n, \r\n or \r; one at the end of the template is removed.
  explicit JinjaLexer(std::string_view source) {
    for (size_t i = 0; i < source.size(); i++) {
      const bool pair = source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n';
      if (!pair) text_ += source[i] == '\r' ? '\n' : source[i];
    }
    if (!text_.empty() && text_.back() == '\n') text_.pop_back();
  }

  [[noreturn]] void refuse(const std::string& reason) const {
    throw JinjaError{"line " + std::to_string(line_) + ": " + reason};
  }

  void push(JinjaToken::Kind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }

  bool next_is(std::string_view s) const { return text_.compare(at_, s.size(), s) == 0; }

  void advance(size_t n) {
    line_ += int(std::count(text_.begin() + long(at_), text_.begin() + long(at_ + n), '\n'));
    at_ += n;
  }

  // Text, and the tag after it.
  void data_and_tag() {
    size_t open = at_;
    const auto begins_tag = [&](size_t i) {  // a zero byte, which strchr() would find, does not
      return i + 1 < text_.size() && (text_[i + 1] == '{' || text_[i + 1] == '%' || text_[i + 1] == '#');
    };
    while ((open = text_.find('{', open)) != text_.npos && !begins_tag(open)) open++;
    open = std::min(open, text_.size());
    std::string_view data = std::string_view(text_).substr(at_, open - at_);
    const char kind = open < text_.size() ? text_[open + 1] : '\0',
               mark = open + 2 < text_.size() ? text_[open + 2] : '\0';
    if (kind && mark == '-') data = without_space(data, false, true);
    if (kind && kind != '{' && mark != '-' && mark != '+') {  // lstrip_blocks
      const size_t start = data.rfind('\n') + 1;
      if ((start > 0 || line_start_) && without_space(data.substr(start), true, false).empty())
        data = data.substr(0, start);
    }
    if (!data.empty()) push(JinjaToken::data, std::string(data));
    advance(open - at_);
    if (!kind) return;
    advance(mark == '-' || mark == '+' ? 3 : 2);
    if (kind == '#') return comment();
    push(kind == '{' ? JinjaToken::begin_print : JinjaToken::begin_block, "");
    while (!end_of_tag(kind == '{' ? "}}" : "%}", kind != '{')) token();
    push(JinjaToken::end_tag, "");
  }

  void comment() {
    const size_t end = text_.find("#}", at_);
    if (end == text_.npos) refuse("expected #}, found the end of the template");
    const bool marked = end > at_ && (text_[end - 1] == '-' || text_[end - 1] == '+');
    advance(end - at_ - marked);
    end_of_tag("#}", true);
  }

  // Consumes the end of a tag, and the white space after it: -%} removes all of it; %} a newline, +%} nothing.
  bool end_of_tag(std::string_view end, bool block) {
    if (!brackets_.empty() && end != "#}") return false;
    const char mark = at_ < text_.size() ? text_[at_] : '\0';
    const bool marked = mark == '-' || (mark == '+' && block);
    if (text_.compare(at_ + marked, 2, end) != 0) return false;
    const size_t begin = at_;
    size_t after = at_ + marked + 2;
    if (mark == '-')
      while (const size_t n = white_space(std::string_view(text_).substr(after))) after += n;
    else if (block && mark != '+' && after < text_.size() && text_[after] == '\n')
      after++;
    advance(after - begin);
    line_start_ = text_[after - 1] == '\n';
    return true;
  }

  // A token within a tag.
  void token() {
    const auto is_word = [&](size_t i) {
      return i < text_.size() && (std::isalnum(uint8_t(text_[i])) || text_[i] == '_');
    };
    if (at_ == text_.size()) refuse("expected the end of a tag, found the end of the template");
    const char c = text_[at_];
    if (std::strchr(" \t\n\v\f", c) && c) return advance(1);
    if (c == '\'' || c == '"') return string(c);
    size_t n = 0;
    while (is_word(at_ + n)) n++;
    const std::string word = text_.substr(at_, n);
    if (n > 0 && !std::isdigit(uint8_t(c))) {
      push(JinjaToken::name, word);
    } else if (n > 0) {
      const bool plain = word.find_first_not_of("0123456789") == word.npos && (n == 1 || c != '0') && n < 10;
      if (!plain || (at_ + n + 1 < text_.size() && text_[at_ + n] == '.' && is_word(at_ + n + 1)))
        refuse("number " + word + ": not supported");
      push(JinjaToken::integer, word);
    } else {
      sign(n);
    }
    advance(n);
  }

  void sign(size_t& size) {
    for (const char* s : {"==", "!=", ">=", "<=", "//", "**"})
      if (next_is(s)) size = 2;
    const char c = text_[at_];
    if (size == 0 && c && std::strchr("+-*/%~[](){}<>=.:|,", c)) size = 1;
    if (size == 0) refuse(std::string("unexpected character '") + c + "'");
    const char* const open = "([{";
    const char* const close = ")]}";
    if (const char* found = std::strchr(open, c)) brackets_ += close[found - open];
    if (std::strchr(close, c)) {
      if (brackets_.empty() || brackets_.back() != c) refuse(std::string("unexpected '") + c + "'");
      brackets_.pop_back();
    }
    push(JinjaToken::sign, text_.substr(at_, size));
  }

  void string(char quote) {
    std::string value;
    size_t i = at_ + 1;
    for (; i < text_.size() && text_[i] != quote; i++) {
      if (text_[i] != '\\') {
        value += text_[i];
        continue;
      }
      constexpr std::string_view kLetters = "ntr\\'\"", kMeanings = "\n\t\r\\'\"";
      const size_t letter = ++i < text_.size() ? kLetters.find(text_[i]) : kLetters.npos;
      if (letter == kLetters.npos) refuse("expected one of \\n \\t \\r \\\\ \\' \\\" in a string");
      value += kMeanings[letter];
    }
    if (i >= text_.size()) refuse("expected a closing quote, found the end of the template");
    push(JinjaToken::string, value);
    advance(i + 1 - at_);
  }

  std::string text_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_start_ = true;  // the last tag ended with a newline
  std::string brackets_;    // the brackets that close the open ones
  std::vector<JinjaToken> tokens_;
};

// ====================================================================================================================
// Syntax
// ====================================================================================================================

/// A statement or an expression.
struct JinjaNode {
  enum class Kind {
    // Statements. The parts of a choice: a condition, a block, ...; the last block may have no condition. Of a loop: the
    // list, the block.
    data,
    print,
    block,
    choice,
    loop,
    set,
    set_member,
    capture,
    scope,
    macro,
    leave,
    next,
    // Expressions. The parts of a slice: the list, the first, the last, the step; -1: none.
    text,
    integer,
    constant,
    name,
    list,
    dictionary,
    member,
    item,
    slice,
    call,
    keyword,
    filter,
    test,
    negation,
    minus,
    both,
    either,
    operation,
    comparison,
    selection
  };
  Kind kind;
  int line;
  std::string text;        // a name, an operator, a text
  std::vector<int> parts;  // indices of nodes
  int depth;
};

/// A template as a tree.
struct JinjaProgram {
  std::vector<JinjaNode> nodes;
  int root = 0;
};

/// Parses a template, by Jinja's grammar.
class JinjaParser {
 public:
  /// Throws JinjaError.
  static JinjaProgram parse(std::string_view source) {
    if (source.size() > kLongestTemplate)
      throw JinjaError{"expected at most " + std::to_string(kLongestTemplate) + " bytes, found " +
                       std::to_string(source.size())};
    JinjaParser parser(JinjaLexer::tokens(source));
    parser.program_.root = parser.block({});
    return std::move(parser.program_);
  }

 private:
  using Kind = JinjaNode::Kind;

  explicit JinjaParser(std::vector<JinjaToken> tokens) : tokens_(std::move(tokens)) {}

  // ---- Tokens ----

  const JinjaToken& now() const { return tokens_[at_]; }
  [[noreturn]] void refuse(const std::string& reason) const {
    throw JinjaError{"line " + std::to_string(now().line) + ": " + reason};
  }
  [[noreturn]] void refuse_token(const std::string& expected) const {
    const bool tag = now().kind == JinjaToken::end_tag;
    const std::string found = tag                             ? "the end of the tag"
                              : now().kind == JinjaToken::end ? "the end of the template"
                                                              : "'" + now().text + "'";
    refuse("expected " + expected + ", found " + found);
  }
  bool take(const char* text) {
    const bool found = now().is(text);
    at_ += found;
    return found;
  }
  void need(const char* text) {
    if (!take(text)) refuse_token(std::string("'") + text + "'");
  }
  void end_tag() {
    if (now().kind != JinjaToken::end_tag) refuse_token("the end of the tag");
    at_++;
  }
  std::string name() {
    static const char* const kReserved[] = {"and",  "or",    "not",  "in",   "is",    "if",   "else",
                                            "true", "false", "none", "True", "False", "None", "loop"};
    for (const char* word : kReserved)
      if (now().is(word)) refuse_token("a name");
    if (now().kind != JinjaToken::name) refuse_token("a name");
    return tokens_[at_++].text;
  }

  // Counts nested calls.
  struct Level {
    explicit Level(JinjaParser& parser) : depth(parser.depth_) {
      if (++depth > kJinjaDepth) parser.refuse_depth();
    }
    ~Level() { depth--; }
    int& depth;
  };
  [[noreturn]] void refuse_depth() const {
    refuse("expected at most " + std::to_string(kJinjaDepth) + " nested operations, found more");
  }

  int add(Kind kind, int line, std::string text = "", std::vector<int> parts = {}) {
    int depth = 0;
    for (int part : parts)
      if (part >= 0) depth = std::max(depth, program_.nodes[size_t(part)].depth);
    if (depth == kJinjaDepth) refuse_depth();
    program_.nodes.push_back({kind, line, std::move(text), std::move(parts), depth + 1});
    return int(program_.nodes.size()) - 1;
  }

  // ---- Statements ----

  // Statements up to one of these tags, whose name is the next token, or to the end of the template.
  int block(const std::vector<const char*>& ends) {
    const Level level(*this);
    std::vector<int> parts;
    const int line = now().line;
    for (;;) {
      const JinjaToken& token = now();
      if (token.kind == JinjaToken::end) {
        if (!ends.empty()) refuse_token(std::string("{% ") + ends.back() + " %}");
        return add(Kind::block, line, "", parts);
      }
      at_++;
      if (token.kind == JinjaToken::data) {
        parts.push_back(add(Kind::data, token.line, token.text));
      } else if (token.kind == JinjaToken::begin_print) {
        parts.push_back(add(Kind::print, token.line, "", {expression()}));
        end_tag();
      } else {
        for (const char* end : ends)
          if (now().is(end)) return add(Kind::block, line, "", parts);
        parts.push_back(statement());
      }
    }
  }

  int statement() {
    const int line = now().line;
    if (take("if")) return choice(line);
    if (take("for")) return loop(line);
    if (take("set")) return assignment(line);
    if (take("macro")) return macro(line);
    if (take("generation")) {  // a mark for training
      end_tag();
      return add(Kind::scope, line, "", {body("endgeneration", 0)});
    }
    const bool leave = now().is("break"), next = now().is("continue");
    if ((!leave && !next) || loops_ == 0) refuse("{% " + now().text + " %}: not supported here");
    at_++;
    end_tag();
    return add(leave ? Kind::leave : Kind::next, line);
  }

  // The statements up to an end tag, which is consumed, within so many loops that they may leave.
  int body(const char* end, int loops) {
    std::swap(loops, loops_);
    const int parts = block({end});
    loops_ = loops;
    at_++;
    end_tag();
    return parts;
  }

  int choice(int line) {
    std::vector<int> parts;
    do {
      parts.push_back(either());
      end_tag();
      parts.push_back(block({"elif", "else", "endif"}));
    } while (take("elif"));
    if (take("else")) {
      end_tag();
      parts.push_back(block({"endif"}));
    }
    need("endif");
    end_tag();
    return add(Kind::choice, line, "", parts);
  }

  int loop(int line) {
    std::string target = name();
    while (take(",")) target += "," + name();
    need("in");
    std::vector<int> parts = {either()};
    const int condition = take("if") ? expression() : -1;
    if (now().is("recursive") || now().is(",")) refuse("{% for %} with '" + now().text + "': not supported");
    end_tag();
    parts.push_back(body("endfor", loops_ + 1));
    parts.push_back(condition);
    return add(Kind::loop, line, target, parts);
  }

  int assignment(int line) {
    const std::string target = name();
    if (take(".")) {
      const std::string member = name();
      need("=");
      const int value = expression();
      end_tag();
      return add(Kind::set_member, line, target + "." + member, {value});
    }
    const int value = take("=") ? expression() : -1;
    end_tag();
    return value >= 0 ? add(Kind::set, line, target, {value})
                      : add(Kind::capture, line, target, {body("endset", loops_)});
  }

  // A macro may be defined, but not called: its parameters are skipped.
  int macro(int line) {
    const std::string target = name();
    while (now().kind != JinjaToken::end_tag) at_++;
    end_tag();
    body("endmacro", 0);
    return add(Kind::macro, line, target);
  }

  // ---- Expressions, from the weakest operator to the strongest ----

  int expression() {
    const int value = element();
    if (now().is(",")) refuse("a tuple: not supported");
    return value;
  }

  // An expression before a comma or a closing bracket.
  int element() {
    const Level level(*this);
    int value = either();
    for (int line = now().line; take("if"); line = now().line) {
      const int condition = either();
      const int other = take("else") ? element() : -1;
      value = add(Kind::selection, line, "", {condition, value, other});
    }
    return value;
  }

  // Operations with an operator between two operands, from the left to the right.
  template <class Operand>
  int operations(Kind kind, std::initializer_list<const char*> operators, const Operand& operand) {
    int left = operand();
    for (;;) {
      const std::string text = now().text;
      const int line = now().line;
      if (std::none_of(operators.begin(), operators.end(), [&](const char* o) { return take(o); })) return left;
      left = add(kind, line, text, {left, operand()});
    }
  }
  int either() {
    return operations(Kind::either, {"or"}, [&] { return both(); });
  }
  int both() {
    return operations(Kind::both, {"and"}, [&] { return negation(); });
  }
  int negation() {
    const Level level(*this);
    const int line = now().line;
    return take("not") ? add(Kind::negation, line, "", {negation()}) : comparison();
  }

  int comparison() {
    const int left = sum();
    const int line = now().line;
    std::string text = now().text;
    const bool absent = now().is("not") && tokens_[at_ + 1].is("in");
    at_ += absent;
    bool found = false;
    for (const char* o : {"==", "!=", "<", "<=", ">", ">=", "in"}) found = found || take(o);
    if (!found) return left;
    const int right = sum();
    for (const char* o : {"==", "!=", "<", "<=", ">", ">=", "in", "not"})
      if (now().is(o)) refuse("a chain of comparisons: not supported");
    return add(Kind::comparison, line, absent ? "not in" : text, {left, right});
  }

  int sum() {
    return operations(Kind::operation, {"+", "-"}, [&] { return joined(); });
  }
  int joined() {
    return operations(Kind::operation, {"~"}, [&] { return product(); });
  }
  int product() {
    return operations(Kind::operation, {"*", "/", "//", "%"}, [&] { return unary(true); });
  }

  int unary(bool with_filters) {
    const Level level(*this);
    const int line = now().line;
    int value;
    if (take("-"))
      value = add(Kind::minus, line, "", {unary(false)});
    else
      value = primary();
    value = members(value);
    return with_filters ? filters(value) : value;
  }

  int primary() {
    const JinjaToken token = now();
    if (token.kind == JinjaToken::string) {
      std::string text;
      while (now().kind == JinjaToken::string) text += tokens_[at_++].text;
      return add(Kind::text, token.line, text);
    }
    if (token.kind == JinjaToken::integer) {
      at_++;
      return add(Kind::integer, token.line, token.text);
    }
    for (const char* constant : {"true", "false", "none", "True", "False", "None"})
      if (take(constant)) return add(Kind::constant, token.line, token.text);
    if (take("(")) return parentheses(token.line);
    if (take("[")) return add(Kind::list, token.line, "", elements("]"));
    if (take("{")) return dictionary(token.line);
    if (take("loop")) return add(Kind::name, token.line, "loop");
    return add(Kind::name, token.line, name());
  }

  // An expression in parentheses, or a tuple.
  int parentheses(int line) {
    std::vector<int> parts;
    bool tuple = now().is(")");
    while (!take(")")) {
      parts.push_back(element());
      if (take(","))
        tuple = true;
      else if (!now().is(")"))
        refuse_token("')'");
    }
    return tuple ? add(Kind::list, line, "", parts) : parts[0];
  }

  std::vector<int> elements(const char* end) {
    std::vector<int> parts;
    while (!take(end)) {
      parts.push_back(element());
      if (!take(",") && !now().is(end)) refuse_token(std::string("'") + end + "'");
    }
    return parts;
  }

  int dictionary(int line) {
    std::vector<int> parts;
    while (!take("}")) {
      parts.push_back(element());
      need(":");
      parts.push_back(element());
      if (!take(",") && !now().is("}")) refuse_token("'}'");
    }
    return add(Kind::dictionary, line, "", parts);
  }

  // .name, [item], (arguments)
  int members(int value) {
    for (;;) {
      const int line = now().line;
      if (take(".")) {
        if (now().kind == JinjaToken::integer)
          value = add(Kind::item, line, "", {value, primary()});
        else if (now().kind == JinjaToken::name)
          value = add(Kind::member, line, tokens_[at_++].text, {value});
        else
          refuse_token("a name");
      } else if (take("[")) {
        value = item(value, line);
      } else if (take("(")) {
        value = add(Kind::call, line, "", arguments({value}));
      } else {
        return value;
      }
    }
  }

  int item(int value, int line) {
    int bounds[3] = {-1, -1, -1}, n = 0;
    for (; n < 3; n++) {
      if (!now().is(":") && !now().is("]")) bounds[n] = element();
      if (!take(":")) break;
    }
    need("]");
    if (n > 0) return add(Kind::slice, line, "", {value, bounds[0], bounds[1], bounds[2]});
    if (bounds[0] < 0) refuse("[]: expected an index, found none");
    return add(Kind::item, line, "", {value, bounds[0]});
  }

  // The arguments of a call after those in `parts`, up to the closing parenthesis.
  std::vector<int> arguments(std::vector<int> parts) {
    while (!take(")")) {
      const JinjaToken token = now();
      if (token.kind == JinjaToken::name && tokens_[at_ + 1].is("=")) {
        at_ += 2;
        parts.push_back(add(Kind::keyword, token.line, token.text, {element()}));
      } else {
        parts.push_back(element());
      }
      if (!take(",") && !now().is(")")) refuse_token("')'");
    }
    return parts;
  }

  // | filter, is test
  int filters(int value) {
    for (;;) {
      const int line = now().line;
      if (take("|")) {
        const std::string filter = known(name(), kFilters, "filter");
        std::vector<int> parts = {value};
        if (take("(")) parts = arguments(parts);
        value = add(Kind::filter, line, filter, parts);
      } else if (take("is")) {
        value = test(value, line);
      } else if (now().is("(")) {
        refuse("a call of a result: not supported");
      } else {
        return value;
      }
    }
  }

  int test(int value, int line) {
    const bool negated = take("not");
    static const char* const kWords[] = {"none", "true", "false", "in"};  // reserved elsewhere
    std::string test;
    for (const char* word : kWords)
      if (test.empty() && take(word)) test = word;
    test = known(test.empty() ? name() : test, kTests, "test");
    std::vector<int> parts = {value};
    const JinjaToken& token = now();
    if (take("("))
      parts = arguments(parts);
    else if (token.kind == JinjaToken::string || token.kind == JinjaToken::integer || token.is("[") || token.is("{") ||
             (token.kind == JinjaToken::name && !token.is("else") && !token.is("or") && !token.is("and")))
      parts.push_back(members(primary()));
    const int found = add(Kind::test, line, test, parts);
    return negated ? add(Kind::negation, line, "", {found}) : found;
  }

  // Jinja refuses a template with an unknown filter or test, used or not.
  static constexpr const char* kFilters =
      " abs attr batch capitalize center count d default dictsort e escape filesizeformat first float forceescape "
      "format "
      "groupby indent int items join last length list lower map max min pprint random reject rejectattr replace "
      "reverse "
      "round safe select selectattr slice sort string striptags sum title tojson trim truncate unique upper urlencode "
      "urlize wordcount wordwrap xmlattr ";
  static constexpr const char* kTests =
      " boolean callable defined divisibleby eq equalto escaped even false filter float ge greaterthan gt in integer "
      "iterable le lessthan lower lt mapping ne none number odd sameas sequence string test true undefined upper ";
  std::string known(const std::string& word, const char* words, const char* kind) const {
    if (!std::strstr(words, (" " + word + " ").c_str())) refuse(std::string(kind) + " '" + word + "': unknown");
    return word;
  }

  std::vector<JinjaToken> tokens_;
  size_t at_ = 0;
  int depth_ = 0, loops_ = 0;
  JinjaProgram program_;
};

// ====================================================================================================================
// Values
// ====================================================================================================================

/// A part of a text.
struct JinjaPiece {
  enum Kind { literal, content, date, unknown } kind = literal;
  std::string text;    // a literal; the format of a date; what an unknown text is
  size_t message = 0;  // content: the message it is the content of
  unsigned edits = 0;  // content: bits of ChatTemplate::Edit
};
using JinjaText = std::vector<JinjaPiece>;

/// A message of a conversation. Its content may be unknown; then it has other characters than white space, no marks of
/// tools, and that of a reply contains </think> if `thinks`.
struct JinjaMessage {
  std::string role;
  bool known = false;
  std::string text;     // if known
  bool thinks = false;  // if not known
};

struct JinjaValue {
  enum Kind { undefined, none, boolean, integer, text, list, object, function } kind = undefined;
  int64_t number = 0;                              // boolean, integer
  JinjaText pieces;                                // text
  std::string name;                                // function: its name; object: "message", "namespace" or "loop"
  std::shared_ptr<std::vector<JinjaValue>> items;  // list
  bool ends_only = false;                          // list: only the first and the last item are known
  std::shared_ptr<std::map<std::string, JinjaValue>> members;  // object

  static JinjaValue of_bool(bool value) { return of_number(value, boolean); }
  static JinjaValue of_number(int64_t value, Kind kind = integer) {
    JinjaValue v;
    v.kind = kind;
    v.number = value;
    return v;
  }
  static JinjaValue of_text(JinjaText pieces) {
    JinjaValue v;
    v.kind = text;
    v.pieces = std::move(pieces);
    return v;
  }
  static JinjaValue of_text(const std::string& literal) {
    return of_text(literal.empty() ? JinjaText() : JinjaText{{JinjaPiece::literal, literal}});
  }
  static JinjaValue of_list(std::vector<JinjaValue> items) {
    JinjaValue v;
    v.kind = list;
    v.items = std::make_shared<std::vector<JinjaValue>>(std::move(items));
    return v;
  }
  static JinjaValue of_object(const char* name, std::map<std::string, JinjaValue> members) {
    JinjaValue v;
    v.kind = object;
    v.name = name;
    v.members = std::make_shared<std::map<std::string, JinjaValue>>(std::move(members));
    return v;
  }
  static JinjaValue of_function(const std::string& name) {
    JinjaValue v;
    v.kind = function;
    v.name = name;
    return v;
  }
  bool is_number() const { return kind == boolean || kind == integer; }
  bool is_literal() const {  // a text without unknown parts
    return kind == text && (pieces.empty() || (pieces.size() == 1 && pieces[0].kind == JinjaPiece::literal));
  }
  std::string literal() const { return pieces.empty() ? "" : pieces[0].text; }
};

/// Appends a text; neighbouring literals become one.
inline void append(JinjaText& out, const JinjaText& more) {
  for (const JinjaPiece& piece : more) {
    if (piece.kind == JinjaPiece::literal && !out.empty() && out.back().kind == JinjaPiece::literal)
      out.back().text += piece.text;
    else
      out.push_back(piece);
  }
}

// ====================================================================================================================
// Rendering
// ====================================================================================================================

/// What a template renders.
struct JinjaInput {
  std::vector<JinjaMessage> messages;
  bool add_generation_prompt = true;
  std::string bos, eos;             // "": the tokenizer has none
  std::set<std::string>* commands;  // receives the /commands that the template looks for in a system prompt
  // The texts of special tokens by their names, such as "cls_token"; null: not known, and a template that asks is refused.
  const std::map<std::string, std::string>* special;
};

/// Operations on texts with unknown parts, which the renderer calls.
class JinjaTexts {
 public:
  explicit JinjaTexts(const JinjaInput& input) : messages_(input.messages), commands_(*input.commands) {}

  /// Whether a text is not empty. Throws JinjaError with no line, as all functions here do.
  bool is_true(const JinjaText& text) const {
    for (const JinjaPiece& piece : text)
      if (is_solid(piece)) return true;
    if (text.empty()) return false;
    throw JinjaError{"a condition that depends on " + described(text[0])};
  }

  bool equal(const JinjaText& a, const JinjaText& b) const {
    const auto literal = [](const JinjaText& t) {
      return t.empty() || (t.size() == 1 && t[0].kind == JinjaPiece::literal);
    };
    const auto text = [](const JinjaText& t) { return t.empty() ? "" : t[0].text; };
    if (literal(a) && literal(b)) return text(a) == text(b);
    const JinjaText& other = literal(a) ? b : a;
    const bool blank = (literal(a) || literal(b)) && without_space(text(literal(a) ? a : b), true, false).empty();
    if (blank && std::any_of(other.begin(), other.end(), [&](const JinjaPiece& p) { return has_characters(p); }))
      return false;
    throw JinjaError{"a comparison with " + described(other[0])};
  }

  bool contains(const JinjaText& text, const std::string& part) const {
    check_search(part);
    for (const JinjaPiece& piece : text)
      if (piece.kind == JinjaPiece::literal ? piece.text.find(part) != part.npos : may_contain(piece, part))
        return true;
    return false;
  }

  /// Whether a text starts (or ends) with a part.
  bool has_at(bool front, const JinjaText& text, const std::string& part) const {
    if (text.empty() || part.empty()) return part.empty();
    const JinjaPiece& piece = front ? text.front() : text.back();
    if (piece.kind != JinjaPiece::literal) {
      if (may_contain(piece, part)) throw JinjaError{"a test of the ends of " + described(piece)};
      return false;
    }
    const size_t n = std::min(part.size(), piece.text.size());
    const bool same = front ? piece.text.compare(0, n, part, 0, n) == 0
                            : piece.text.compare(piece.text.size() - n, n, part, part.size() - n, n) == 0;
    if (same && n < part.size() && text.size() > 1)
      throw JinjaError{"a test of the ends of " + described(text[front ? 1 : text.size() - 2])};
    return same && n == part.size();
  }

  /// Python's strip(), lstrip(), rstrip(), of white space or of `characters`.
  JinjaText strip(JinjaText text, bool front, bool back, const std::string* characters) const {
    if (characters) check_search(*characters);
    if (text.size() > 1)  // what is stripped depends on whether such a piece is empty
      for (JinjaPiece& piece : text)
        if (!is_solid(piece) && piece.kind == JinjaPiece::content) piece = unknown("a stripped reply")[0];
    while (front && !text.empty() && !strip_end(text.front(), true, characters)) text.erase(text.begin());
    while (back && !text.empty() && !strip_end(text.back(), false, characters)) text.pop_back();
    return text;
  }

  JinjaText replace(JinjaText text, const std::string& from, const std::string& to) const {
    constexpr size_t kLongest = 16 * kJinjaSteps;
    if (from.empty()) throw JinjaError{"replace() of an empty text"};
    check_search(from);
    size_t size = 0;  // of the pieces so far
    for (JinjaPiece& piece : text) {
      if (piece.kind != JinjaPiece::literal && may_contain(piece, from))
        throw JinjaError{"replace() in " + described(piece)};
      std::string out;
      size_t at = 0;
      for (size_t next; piece.kind == JinjaPiece::literal && (next = piece.text.find(from, at)) != from.npos;
           at = next + from.size()) {
        out.append(piece.text, at, next - at).append(to);
        if (size + out.size() > kLongest)
          throw JinjaError{"replace() to a text of more than " + std::to_string(kLongest) + " bytes"};
      }
      piece.text = out.append(piece.text, at, piece.text.npos);
      size += piece.text.size();
    }
    JinjaText joined;
    for (const JinjaPiece& piece : text)
      if (piece.kind != JinjaPiece::literal || !piece.text.empty()) append(joined, {piece});
    return joined;
  }

  /// Python's split(). What comes before the last </think> of a reply is unknown.
  JinjaValue split(const JinjaText& text, const std::string& at) const {
    if (at.empty()) throw JinjaError{"split() at an empty text"};
    if (!text.empty() && text[0].kind == JinjaPiece::unknown) return ends(text, text);
    if (!contains(text, at)) return JinjaValue::of_list({JinjaValue::of_text(text)});
    if (text.size() > 1)
      throw JinjaError{"split() of " + described(text[0].kind == JinjaPiece::literal ? text[1] : text[0])};
    if (text[0].kind == JinjaPiece::content) {
      JinjaPiece last = text[0];
      last.edits = (last.edits & ChatTemplate::kTrimBack) | ChatTemplate::kDropThinking;
      return ends(unknown("the thinking of a reply"), {last});
    }
    std::vector<JinjaValue> parts;
    size_t from = 0;
    for (size_t next; (next = text[0].text.find(at, from)) != at.npos; from = next + at.size()) {
      parts.push_back(JinjaValue::of_text(text[0].text.substr(from, next - from)));
      if (parts.size() == kJinjaSteps)
        throw JinjaError{"split() into more than " + std::to_string(kJinjaSteps) + " parts"};
    }
    parts.push_back(JinjaValue::of_text(text[0].text.substr(from)));
    return JinjaValue::of_list(std::move(parts));
  }

  static JinjaText unknown(const std::string& description) { return {{JinjaPiece::unknown, description}}; }

  static std::string described(const JinjaPiece& piece) {
    return piece.kind == JinjaPiece::unknown ? piece.text
           : piece.kind == JinjaPiece::date  ? "the date"
                                             : "the content of a message";
  }

 private:
  // A search takes time in proportion to the sizes of both texts.
  static void check_search(const std::string& part) {
    if (part.size() > kLongestJinjaSearch)
      throw JinjaError{"a search of a text of more than " + std::to_string(kLongestJinjaSearch) + " bytes"};
  }

  // A list whose first and last item are known.
  static JinjaValue ends(const JinjaText& first, const JinjaText& last) {
    JinjaValue list = JinjaValue::of_list({JinjaValue::of_text(first), JinjaValue::of_text(last)});
    list.ends_only = true;
    return list;
  }

  // Whether a piece is not empty, and whether it has other characters than white space, for certain.
  static bool is_solid(const JinjaPiece& piece) { return piece.kind == JinjaPiece::literal || has_characters(piece); }
  static bool has_characters(const JinjaPiece& piece) {
    if (piece.kind == JinjaPiece::literal) return !without_space(piece.text, true, false).empty();
    return piece.kind == JinjaPiece::date ||
           (piece.kind == JinjaPiece::content && !(piece.edits & ChatTemplate::kDropThinking));
  }

  // Whether an unknown piece contains a text. Contents contain no marks of tools, <like> [these], nor does a system prompt
  // contain the commands found here.
  bool may_contain(const JinjaPiece& piece, const std::string& part) const {
    if (part.empty()) return true;
    if (piece.kind == JinjaPiece::content) {
      const JinjaMessage& message = messages_[piece.message];
      const bool end = part == ChatTemplate::kThinkingEnd && message.role == "assistant";
      if (end) return message.thinks && !(piece.edits & ChatTemplate::kDropThinking);
      if ((part[0] == '<' || part[0] == '[') && part.find("tool") != part.npos) return false;
      if (part.size() > 2 && part[0] == '/' && message.role == "system") {
        commands_.insert(part);
        return false;
      }
    }
    throw JinjaError{"a search of '" + part + "' in " + described(piece)};
  }

  // Strips an end of a text. Returns false if nothing of the piece is left.
  static bool strip_end(JinjaPiece& piece, bool front, const std::string* characters) {
    if (piece.kind == JinjaPiece::literal) {
      if (!characters) {
        piece.text = std::string(without_space(piece.text, front, !front));
        return !piece.text.empty();
      }
      const size_t first = front ? piece.text.find_first_not_of(*characters) : 0,
                   last = piece.text.find_last_not_of(*characters);
      piece.text = first == piece.text.npos || last == piece.text.npos ? ""
                   : front                                             ? piece.text.substr(first)
                                                                       : piece.text.substr(0, last + 1);
      return !piece.text.empty();
    }
    if (piece.kind != JinjaPiece::content) return true;
    if (!characters) {
      piece.edits |= front ? ChatTemplate::kTrimFront : ChatTemplate::kTrimBack;
      if (front) piece.edits &= ~unsigned(ChatTemplate::kTrimNewlines);
    } else if (front && *characters == "\n") {
      if (!(piece.edits & ChatTemplate::kTrimFront)) piece.edits |= ChatTemplate::kTrimNewlines;
    } else {
      piece = unknown("a stripped message")[0];
    }
    return true;
  }

  const std::vector<JinjaMessage>& messages_;
  std::set<std::string>& commands_;
};

/// Renders a template.
class JinjaRenderer {
 public:
  /// Throws JinjaError.
  static JinjaText render(const JinjaProgram& program, const JinjaInput& input) {
    JinjaRenderer renderer(program, input);
    renderer.execute(program.root);
    return std::move(renderer.out_);
  }

 private:
  using Node = JinjaNode;
  using Kind = JinjaNode::Kind;
  using Value = JinjaValue;
  enum class Flow { normal, leave, next };

  JinjaRenderer(const JinjaProgram& program, const JinjaInput& input)
      : program_(program), texts_(input), knows_special_(input.special != nullptr) {
    std::map<std::string, Value> names;
    std::vector<Value> messages;
    for (size_t i = 0; i < input.messages.size(); i++) {
      const JinjaMessage& m = input.messages[i];
      const Value content = m.known ? Value::of_text(m.text) : Value::of_text(JinjaText{{JinjaPiece::content, "", i}});
      messages.push_back(Value::of_object("message", {{"role", Value::of_text(m.role)}, {"content", content}}));
    }
    names["messages"] = Value::of_list(std::move(messages));
    names["add_generation_prompt"] = Value::of_bool(input.add_generation_prompt);
    names["tools"] = names["documents"] = none();
    if (!input.bos.empty()) names["bos_token"] = Value::of_text(input.bos);
    if (!input.eos.empty()) names["eos_token"] = Value::of_text(input.eos);
    if (input.special)
      for (const auto& [name, text] : *input.special) names.emplace(name, Value::of_text(text));
    for (const char* function : {"raise_exception", "strftime_now", "namespace", "range"})
      names[function] = Value::of_function(function);
    scopes_.push_back(std::move(names));
  }

  static Value none() {
    Value v;
    v.kind = Value::none;
    return v;
  }

  // ---- Errors and limits ----

  [[noreturn]] static void refuse(const Node& node, const std::string& reason) {
    throw JinjaError{"line " + std::to_string(node.line) + ": " + reason};
  }
  [[noreturn]] static void refuse_use(const Node& node, const Value& value, const std::string& use) {
    static const char* const kNames[] = {"an undefined value", "none",      "a boolean", "a number", "a text", "a list",
                                         "an object",          "a function"};
    refuse(node, use + " of " + kNames[value.kind] + ": not supported");
  }
  void count(const Node& node, size_t steps) {
    steps_ += steps;
    if (steps_ > kJinjaSteps) refuse(node, "too many steps");
  }
  void count(const Node& node, const JinjaText& text) {
    for (const JinjaPiece& piece : text) count(node, 1 + piece.text.size() / 16);
  }
  void count(const Node& node, const std::vector<Value>& items) {
    count(node, items.size());
    for (const Value& item : items) count(node, item.pieces);
  }

  // Calls an operation on texts; its errors get the line of the node.
  template <class Operation> static auto at_line(const Node& node, const Operation& operation) {
    try {
      return operation();
    } catch (const JinjaError& e) {
      refuse(node, e.reason + ": not supported");
    }
  }

  const Node& node_at(int index) const { return program_.nodes[size_t(index)]; }

  // ---- Statements ----

  Flow execute(int index) {
    const Node& node = node_at(index);
    count(node, 1);
    switch (node.kind) {
      case Kind::block:
        for (int part : node.parts)
          if (const Flow flow = execute(part); flow != Flow::normal) return flow;
        return Flow::normal;
      case Kind::data:
        write(node, {{JinjaPiece::literal, node.text}});
        break;
      case Kind::print:
        write(node, printed(node, evaluate(node.parts[0])));
        break;
      case Kind::choice:
        return execute_choice(node);
      case Kind::loop:
        execute_loop(node);
        break;
      case Kind::set:
        scopes_.back()[node.text] = evaluate(node.parts[0]);
        break;
      case Kind::set_member:
        execute_set_member(node);
        break;
      case Kind::capture:
        return execute_capture(node);
      case Kind::scope:
        scopes_.emplace_back();
        execute(node.parts[0]);
        scopes_.pop_back();
        break;
      case Kind::macro:
        scopes_.back()[node.text] = Value::of_function("macro " + node.text);
        break;
      case Kind::leave:
        return Flow::leave;
      case Kind::next:
        return Flow::next;
      default:
        break;
    }
    return Flow::normal;
  }

  void write(const Node& node, const JinjaText& text) {
    count(node, text);
    for (const JinjaPiece& piece : text)
      if (piece.kind == JinjaPiece::unknown) refuse(node, "output of " + piece.text + ": not supported");
    append(out_, text);
  }

  Flow execute_choice(const Node& node) {
    const std::vector<int>& parts = node.parts;
    for (size_t i = 0; i + 1 < parts.size(); i += 2)
      if (is_true(node, evaluate(parts[i]))) return execute(parts[i + 1]);
    return parts.size() % 2 ? execute(parts.back()) : Flow::normal;
  }

  void execute_loop(const Node& node) {
    const Value over = evaluate(node.parts[0]);
    if (node.text.find(',') != node.text.npos) refuse(node, "a loop with two variables: not supported");
    if (over.kind != Value::undefined) check_list(node, over, "a loop");
    if (over.items) count(node, *over.items);
    std::vector<Value> items;
    for (size_t i = 0; over.items && i < over.items->size(); i++) {
      scopes_.push_back({{node.text, (*over.items)[i]}});
      if (node.parts[2] < 0 || is_true(node, evaluate(node.parts[2]))) items.push_back((*over.items)[i]);
      scopes_.pop_back();
    }
    for (size_t i = 0; i < items.size(); i++) {
      scopes_.push_back({{node.text, items[i]}, {"loop", loop_at(items, i)}});
      const Flow flow = execute(node.parts[1]);
      scopes_.pop_back();
      if (flow == Flow::leave) break;
    }
  }

  static Value loop_at(const std::vector<Value>& items, size_t i) {
    const int64_t at = int64_t(i), n = int64_t(items.size());
    return Value::of_object("loop", {{"index", Value::of_number(at + 1)},
                                     {"index0", Value::of_number(at)},
                                     {"revindex", Value::of_number(n - at)},
                                     {"revindex0", Value::of_number(n - at - 1)},
                                     {"first", Value::of_bool(at == 0)},
                                     {"last", Value::of_bool(at + 1 == n)},
                                     {"length", Value::of_number(n)},
                                     {"previtem", at > 0 ? items[i - 1] : Value()},
                                     {"nextitem", at + 1 < n ? items[i + 1] : Value()}});
  }

  void execute_set_member(const Node& node) {
    const size_t dot = node.text.find('.');
    const Value space = find(node, node.text.substr(0, dot));
    if (space.kind != Value::object || space.name != "namespace") refuse_use(node, space, "{% set %} of a member");
    (*space.members)[node.text.substr(dot + 1)] = no_namespace(node, evaluate(node.parts[0]));
  }

  Flow execute_capture(const Node& node) {
    JinjaText outer;
    std::swap(outer, out_);
    scopes_.emplace_back();
    const Flow flow = execute(node.parts[0]);
    scopes_.pop_back();
    std::swap(outer, out_);
    scopes_.back()[node.text] = Value::of_text(std::move(outer));
    return flow;
  }

  // ---- Expressions ----

  Value evaluate(int index) {
    const Node& node = node_at(index);
    count(node, 1);
    Value value = value_of(node);
    count(node, value.pieces);
    return value;
  }

  Value value_of(const Node& node) {
    switch (node.kind) {
      case Kind::text:
        return Value::of_text(node.text);
      case Kind::integer:
        return Value::of_number(std::stol(node.text));
      case Kind::constant:
        return std::tolower(node.text[0]) == 'n' ? none() : Value::of_bool(std::tolower(node.text[0]) == 't');
      case Kind::name:
        return find(node, node.text);
      case Kind::list:
        return list(node);
      case Kind::member:
        return member(node, evaluate(node.parts[0]), node.text, true);
      case Kind::item:
        return item(node);
      case Kind::slice:
        return slice(node);
      case Kind::call:
        return call(node);
      case Kind::filter:
        return filter(node);
      case Kind::test:
        return Value::of_bool(test(node));
      case Kind::negation:
        return Value::of_bool(!is_true(node, evaluate(node.parts[0])));
      case Kind::minus:
        return minus(node);
      case Kind::both:
      case Kind::either: {
        Value left = evaluate(node.parts[0]);
        return is_true(node, left) == (node.kind == Kind::either) ? left : evaluate(node.parts[1]);
      }
      case Kind::operation:
        return operation(node, evaluate(node.parts[0]), evaluate(node.parts[1]));
      case Kind::comparison:
        return Value::of_bool(comparison(node, evaluate(node.parts[0]), evaluate(node.parts[1])));
      case Kind::selection:
        if (is_true(node, evaluate(node.parts[0]))) return evaluate(node.parts[1]);
        return node.parts[2] < 0 ? Value() : evaluate(node.parts[2]);
      default:
        refuse(node, "a dictionary: not supported");
    }
  }

  // Values refer to each other by reference counts, so no value may contain itself: a list contains texts and numbers, and a
  // namespace no namespace.
  Value list(const Node& node) {
    std::vector<Value> items = evaluate_all(node, 0);
    for (const Value& item : items)
      if (item.kind >= Value::list) refuse_use(node, item, "a list");
    return Value::of_list(std::move(items));
  }
  static Value no_namespace(const Node& node, Value v) {
    if (v.kind == Value::object && v.name == "namespace") refuse_use(node, v, "a namespace");
    return v;
  }

  std::vector<Value> evaluate_all(const Node& node, size_t from) {
    std::vector<Value> values;
    for (size_t i = from; i < node.parts.size(); i++) {
      if (node_at(node.parts[i]).kind == Kind::keyword) refuse(node, "a named argument: not supported");
      values.push_back(evaluate(node.parts[i]));
    }
    return values;
  }

  // Names that transformers may define, but that are not known here, are refused.
  Value find(const Node& node, const std::string& name) const {
    for (size_t i = scopes_.size(); i-- > 0;)
      if (const auto found = scopes_[i].find(name); found != scopes_[i].end()) return found->second;
    for (const char* token : {"unk_token", "pad_token", "sep_token", "cls_token", "mask_token"})
      if (name == token && !knows_special_) refuse(node, "'" + name + "': not known of this file");
    for (const char* unknown :
         {"additional_special_tokens", "dict", "lipsum", "cycler", "joiner", "self", "varargs", "kwargs", "caller"})
      if (name == unknown) refuse(node, "'" + name + "': not supported");
    return {};
  }

  bool is_true(const Node& node, const Value& v) const {
    switch (v.kind) {
      case Value::undefined:
      case Value::none:
        return false;
      case Value::boolean:
      case Value::integer:
        return v.number != 0;
      case Value::text:
        return at_line(node, [&] { return texts_.is_true(v.pieces); });
      case Value::list:
        return !v.items->empty();
      default:
        return true;
    }
  }

  JinjaText printed(const Node& node, const Value& v) const {
    switch (v.kind) {
      case Value::undefined:
        return {};
      case Value::none:
        return {{JinjaPiece::literal, "None"}};
      case Value::boolean:
        return {{JinjaPiece::literal, v.number ? "True" : "False"}};
      case Value::integer:
        return {{JinjaPiece::literal, std::to_string(v.number)}};
      case Value::text:
        return v.pieces;
      default:
        refuse_use(node, v, "output");
    }
  }

  static void check_list(const Node& node, const Value& v, const std::string& use) {
    if (v.kind != Value::list || v.ends_only) refuse_use(node, v, use);
  }

  // object.name or object['name']. An object of Python has methods too, whose names are refused.
  static Value member(const Node& node, const Value& object, const std::string& name, bool dotted) {
    if (object.kind != Value::object) refuse_use(node, object, "member '" + name + "'");
    if (const auto found = object.members->find(name); found != object.members->end()) return found->second;
    const char* const methods = object.name == "message"
                                    ? " clear copy fromkeys get items keys pop popitem setdefault update values "
                                    : " changed cycle depth depth0 ";
    const bool method = object.name != "namespace" && std::strstr(methods, (" " + name + " ").c_str());
    if (method || name.empty() || name[0] == '_' || (object.name == "loop" && !dotted))
      refuse(node, "member '" + name + "': not supported");
    return {};
  }

  // The index of an item counted from the beginning or, if negative, from the end; the size if there is none.
  static size_t position(int64_t index, size_t size) {
    const int64_t n = int64_t(size), from_start = index < 0 ? index + n : index;
    return from_start < 0 || from_start >= n ? size : size_t(from_start);
  }

  Value item(const Node& node) {
    const Value object = evaluate(node.parts[0]), index = evaluate(node.parts[1]);
    if (object.kind == Value::object && index.is_literal()) return member(node, object, index.literal(), false);
    if (object.kind != Value::list || index.kind != Value::integer) refuse_use(node, object, "an item");
    if (object.ends_only && index.number != 0 && index.number != -1) refuse_use(node, object, "an item in the middle");
    const size_t at = position(index.number, object.items->size());
    return at < object.items->size() ? (*object.items)[at] : Value();
  }

  // list[first:last:step], as in Python.
  Value slice(const Node& node) {
    const Value list = evaluate(node.parts[0]);
    check_list(node, list, "a slice");
    Value bound[3];
    for (size_t i = 0; i < 3; i++)
      if (const int part = node.parts[i + 1]; part >= 0) {
        bound[i] = evaluate(part);
        if (bound[i].kind != Value::integer) refuse_use(node, bound[i], "a slice with a bound");
      }
    const int64_t n = int64_t(list.items->size()), step = bound[2].kind == Value::integer ? bound[2].number : 1;
    if (step == 0) refuse(node, "a slice with step 0");
    const int64_t low = step > 0 ? 0 : -1, high = step > 0 ? n : n - 1;
    const auto clamped = [&](const Value& v, int64_t otherwise) {
      if (v.kind != Value::integer) return otherwise;
      return std::clamp(v.number < 0 ? v.number + n : v.number, low, std::max(low, high));
    };
    const int64_t first = clamped(bound[0], step > 0 ? low : high), last = clamped(bound[1], step > 0 ? high : low);
    std::vector<Value> items;
    for (int64_t i = first; step > 0 ? i < last : i > last; i += step) items.push_back((*list.items)[size_t(i)]);
    count(node, items);
    return Value::of_list(std::move(items));
  }

  Value minus(const Node& node) {
    const Value v = evaluate(node.parts[0]);
    if (v.kind != Value::integer) refuse_use(node, v, "the negative");
    return Value::of_number(-v.number);
  }

  Value operation(const Node& node, const Value& a, const Value& b) {
    const std::string& o = node.text;
    if (o == "~" || (o == "+" && a.kind == Value::text && b.kind == Value::text)) {
      JinjaText text = printed(node, a);
      append(text, printed(node, b));
      return Value::of_text(std::move(text));
    }
    if (a.kind != Value::integer) refuse_use(node, a, "'" + o + "'");
    if (b.kind != Value::integer) refuse_use(node, b, "'" + o + "'");
    if (o == "/" || ((o == "//" || o == "%") && b.number == 0)) refuse(node, "a division: not supported");
    const auto floored = [&] {
      return a.number / b.number - (a.number % b.number != 0 && (a.number < 0) != (b.number < 0));
    };
    int64_t result = 0;
    if (o == "+") result = a.number + b.number;
    if (o == "-") result = a.number - b.number;
    if (o == "*") result = a.number * b.number;
    if (o == "//") result = floored();
    if (o == "%") result = a.number - floored() * b.number;
    if (std::abs(result) > kLargestJinjaNumber) refuse(node, "a number above 1000000000: not supported");
    return Value::of_number(result);
  }

  bool comparison(const Node& node, const Value& a, const Value& b) {
    const std::string& o = node.text;
    if (o == "==") return equal(node, a, b);
    if (o == "!=") return !equal(node, a, b);
    if (o == "in") return contains(node, b, a);
    if (o == "not in") return !contains(node, b, a);
    if (!a.is_number()) refuse_use(node, a, "'" + o + "'");
    if (!b.is_number()) refuse_use(node, b, "'" + o + "'");
    if (o == "<") return a.number < b.number;
    if (o == "<=") return a.number <= b.number;
    return o == ">" ? a.number > b.number : a.number >= b.number;
  }

  bool equal(const Node& node, const Value& a, const Value& b) const {
    if (a.is_number() && b.is_number()) return a.number == b.number;
    if (a.kind != b.kind) return false;
    if (a.kind == Value::text) return at_line(node, [&] { return texts_.equal(a.pieces, b.pieces); });
    if (a.kind == Value::undefined || a.kind == Value::none) return true;
    if (a.kind == Value::object && a.members == b.members) return true;
    refuse_use(node, a, "a comparison");
  }

  bool contains(const Node& node, const Value& all, const Value& v) {
    if (all.kind == Value::undefined) return false;
    if (all.kind == Value::text && v.is_literal())
      return at_line(node, [&] { return texts_.contains(all.pieces, v.literal()); });
    if (all.kind == Value::object && all.name == "message" && v.is_literal())
      return all.members->count(v.literal()) > 0;
    check_list(node, all, "'in'");
    count(node, *all.items);
    return std::any_of(all.items->begin(), all.items->end(), [&](const Value& i) { return equal(node, i, v); });
  }

  // ---- Tests ----

  bool test(const Node& node) {
    const Value v = evaluate(node.parts[0]);
    const std::vector<Value> arguments = evaluate_all(node, 1);
    const std::string& t = node.text;
    if (arguments.size() == 1) {
      if (t == "eq" || t == "equalto") return equal(node, v, arguments[0]);
      if (t == "ne") return !equal(node, v, arguments[0]);
      if (t == "in") return contains(node, arguments[0], v);
    } else if (arguments.empty()) {
      if (t == "defined") return v.kind != Value::undefined;
      if (t == "undefined") return v.kind == Value::undefined;
      if (t == "none") return v.kind == Value::none;
      if (t == "boolean") return v.kind == Value::boolean;
      if (t == "true") return v.kind == Value::boolean && v.number;
      if (t == "false") return v.kind == Value::boolean && !v.number;
      if (t == "integer") return v.kind == Value::integer;
      if (t == "number") return v.is_number();
      if (t == "string") return v.kind == Value::text;
      if (t == "mapping" && v.kind != Value::function) return v.kind == Value::object && v.name == "message";
      if ((t == "iterable" || t == "sequence") && (v.kind == Value::text || v.kind == Value::list)) return true;
      if ((t == "iterable" || t == "sequence") && (v.kind == Value::none || v.is_number())) return false;
      if ((t == "odd" || t == "even") && v.kind == Value::integer) return (v.number % 2 != 0) == (t == "odd");
    }
    refuse_use(node, v, "test '" + t + "'");
  }

  // ---- Filters ----

  Value filter(const Node& node) {
    const Value v = evaluate(node.parts[0]);
    const std::vector<Value> arguments = evaluate_all(node, 1);
    const std::string& f = node.text;
    if (f == "default" || f == "d") return otherwise(node, v, arguments);
    if (f == "selectattr" || f == "rejectattr") return selected(node, v, arguments);
    if (f == "join" && arguments.size() <= 1) return joined(node, v, arguments);
    if (!arguments.empty()) refuse_use(node, v, "filter '" + f + "' with arguments");
    if (f == "trim" || f == "string") {
      const JinjaText text = printed(node, v);
      return Value::of_text(f == "trim" ? texts_.strip(text, true, true, nullptr) : text);
    }
    if (v.kind == Value::text && (f == "upper" || f == "lower" || f == "capitalize" || f == "title"))
      return in_case(v, f);
    if (v.kind == Value::object || v.kind == Value::text) refuse_use(node, v, "filter '" + f + "'");
    if (v.kind != Value::list) refuse_use(node, v, "filter '" + f + "'");
    const std::vector<Value>& items = *v.items;
    if (f == "first") return items.empty() ? Value() : items.front();
    if (f == "last") return items.empty() ? Value() : items.back();
    check_list(node, v, "filter '" + f + "'");
    if (f == "length" || f == "count") return Value::of_number(int64_t(items.size()));
    if (f != "list") refuse_use(node, v, "filter '" + f + "'");
    count(node, items);
    return Value::of_list(items);
  }

  Value otherwise(const Node& node, const Value& v, const std::vector<Value>& arguments) const {
    if (arguments.size() > 2) refuse_use(node, v, "filter 'default' with arguments");
    const bool falsy = arguments.size() == 2 && is_true(node, arguments[1]);
    if (v.kind != Value::undefined && !(falsy && !is_true(node, v))) return v;
    return arguments.empty() ? Value::of_text("") : arguments[0];
  }

  // selectattr('role', 'equalto', 'user')
  Value selected(const Node& node, const Value& v, const std::vector<Value>& arguments) {
    check_list(node, v, "filter '" + node.text + "'");
    const auto is = [&](size_t i, const char* text) {
      return arguments[i].is_literal() && arguments[i].literal() == text;
    };
    if (arguments.size() != 3 || !arguments[0].is_literal() || !(is(1, "equalto") || is(1, "==") || is(1, "eq")))
      refuse_use(node, v, "filter '" + node.text + "' with arguments");
    std::vector<Value> items;
    for (const Value& i : *v.items)
      if (equal(node, member(node, i, arguments[0].literal(), true), arguments[2]) == (node.text == "selectattr"))
        items.push_back(i);
    count(node, v.items->size());
    return Value::of_list(std::move(items));
  }

  Value joined(const Node& node, const Value& v, const std::vector<Value>& arguments) {
    check_list(node, v, "filter 'join'");
    JinjaText text;
    for (size_t i = 0; i < v.items->size(); i++) {
      if (i > 0 && !arguments.empty()) append(text, printed(node, arguments[0]));
      append(text, printed(node, (*v.items)[i]));
      count(node, text);
    }
    return Value::of_text(std::move(text));
  }

  // One word in ASCII, such as a role.
  static Value in_case(const Value& v, const std::string& filter) {
    std::string word = v.is_literal() ? v.literal() : "?";
    for (size_t i = 0; i < word.size(); i++) {
      if (!std::isalpha(uint8_t(word[i]))) return Value::of_text(JinjaTexts::unknown("a text in another case"));
      const bool upper = filter == "upper" || (filter != "lower" && i == 0);
      word[i] = char(upper ? std::toupper(uint8_t(word[i])) : std::tolower(uint8_t(word[i])));
    }
    return Value::of_text(word);
  }

  // ---- Calls ----

  Value call(const Node& node) {
    const Node& callee = node_at(node.parts[0]);
    if (callee.kind == Kind::member) return method(node, callee, evaluate(callee.parts[0]));
    const Value function = evaluate(node.parts[0]);
    if (function.kind != Value::function) refuse_use(node, function, "a call");
    const std::string& f = function.name;
    if (f == "namespace") return make_namespace(node);
    const std::vector<Value> arguments = evaluate_all(node, 1);
    if (f == "raise_exception" && arguments.size() == 1) {
      const bool text = arguments[0].is_literal();
      throw JinjaError{
          "line " + std::to_string(node.line) + ": it raises '" + (text ? arguments[0].literal() : "") + "'", true};
    }
    if (f == "range") return range(node, arguments);
    if (f == "strftime_now" && arguments.size() == 1 && arguments[0].is_literal()) {
      const std::string format = arguments[0].literal();
      if (!is_date_format(format) || trimmed(format) != format)
        refuse(node, "strftime_now('" + format + "'): not supported");
      return Value::of_text(JinjaText{{JinjaPiece::date, format}});
    }
    refuse(node, f + "(): not supported");
  }

  Value make_namespace(const Node& node) {
    std::map<std::string, Value> members;
    for (size_t i = 1; i < node.parts.size(); i++) {
      const Node& argument = node_at(node.parts[i]);
      if (argument.kind != Kind::keyword) refuse(node, "namespace() with unnamed arguments: not supported");
      members[argument.text] = no_namespace(node, evaluate(argument.parts[0]));
    }
    return Value::of_object("namespace", std::move(members));
  }

  Value range(const Node& node, const std::vector<Value>& arguments) {
    constexpr int64_t kMost = 1000;
    int64_t bounds[2] = {0, 0};
    if (arguments.empty() || arguments.size() > 2) refuse(node, "range() with these arguments: not supported");
    for (size_t i = 0; i < arguments.size(); i++) {
      if (arguments[i].kind != Value::integer) refuse_use(node, arguments[i], "range()");
      bounds[i + 2 - arguments.size()] = arguments[i].number;
    }
    if (bounds[1] - bounds[0] > kMost) refuse(node, "range() of more than 1000 numbers: not supported");
    std::vector<Value> items;
    for (int64_t i = bounds[0]; i < bounds[1]; i++) items.push_back(Value::of_number(i));
    count(node, items.size());
    return Value::of_list(std::move(items));
  }

  // text.strip(), message.get('name'), ...
  Value method(const Node& node, const Node& callee, const Value& object) {
    const std::vector<Value> arguments = evaluate_all(node, 1);
    const std::string& m = callee.text;
    if (object.kind == Value::object && object.name == "message" && m == "get" && !arguments.empty() &&
        arguments.size() <= 2 && arguments[0].is_literal()) {
      const auto found = object.members->find(arguments[0].literal());
      return found != object.members->end() ? found->second : arguments.size() == 2 ? arguments[1] : none();
    }
    const bool literals =
        std::all_of(arguments.begin(), arguments.end(), [](const Value& v) { return v.is_literal(); });
    if (object.kind != Value::text || !literals) refuse_use(node, object, "method '" + m + "'");
    return at_line(node, [&] { return text_method(m, object, arguments); });
  }

  Value text_method(const std::string& m, const Value& object, const std::vector<Value>& arguments) const {
    const JinjaText& text = object.pieces;
    const bool front = m == "lstrip", back = m == "rstrip";
    std::vector<std::string> a;
    for (const Value& v : arguments) a.push_back(v.literal());
    if ((front || back || m == "strip") && a.size() <= 1)
      return Value::of_text(texts_.strip(text, !back, !front, a.empty() ? nullptr : &a[0]));
    if ((m == "startswith" || m == "endswith") && a.size() == 1)
      return Value::of_bool(texts_.has_at(m == "startswith", text, a[0]));
    if (m == "split" && a.size() == 1) return texts_.split(text, a[0]);
    if (m == "replace" && a.size() == 2) return Value::of_text(texts_.replace(text, a[0], a[1]));
    if ((m == "upper" || m == "lower" || m == "capitalize" || m == "title") && a.empty()) return in_case(object, m);
    throw JinjaError{"method '" + m + "'"};
  }

  const JinjaProgram& program_;
  JinjaTexts texts_;
  bool knows_special_;
  std::vector<std::map<std::string, Value>> scopes_;  // the innermost last
  JinjaText out_;
  size_t steps_ = 0;
};

}  // namespace pocket
