// grammar.hpp: constrained output: a grammar, and the tokens that it allows next in a reply.
//
//     std::shared_ptr<const Grammar> grammar = parse_gbnf("chess.gbnf", text, error);      // or of json_schema.hpp
//     const auto vocabulary = std::make_shared<const Vocabulary>(tokenizer, vocab_size);   // once per model
//     const auto tokens = std::make_shared<TokenGrammar>(grammar, vocabulary);             // shared by replies
//     Constraint constraint(tokens, stop_ids, at_start);                                   // of one reply
//     int id = sample_allowed(sampler, constraint, logits, vocab_size);                    // in place of sampler()
//     if (constraint.must_end()) ...                                                       // the reply is complete
//
// A grammar is a pushdown automaton over bytes. Each rule is a finite automaton whose edges are byte ranges or calls of
// rules; a parse is a node of a rule and a stack of the nodes that calls return to. A text that is not complete has one
// parse or several. For a token, its bytes are followed; for a mask of all tokens, the trie of the vocabulary is walked
// once. The states that a text leads to (the sets of its parses), the transitions between them and the masks are cached.
//
// Guarantees, for every grammar that is accepted:
// - The text of the tokens that accept() took is the beginning of a text of the grammar, and valid UTF-8 but for an
//   incomplete character at its end. If can_end() is true, it is a text of the grammar.
// - Each token but the last, which ends the reply, adds at least one byte. Every beginning that is reached can be
//   completed in bytes; whether the vocabulary has tokens for these bytes is another matter: see stuck().
// - Time and memory are bounded by the constants below, for grammars from hostile sources too.
//
// Contents: 1 limits · 2 grammars · 3 building a grammar · 4 GBNF · 5 states · 6 vocabularies · 7 constraints
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "../../export/digits.hpp"
#include "../../export/engine.hpp"
#include "../../export/message.hpp"

namespace pocket {

// ====================================================================================================================
// 1. Limits
// ====================================================================================================================

inline constexpr size_t kLongestGrammar = 1 << 20;  // bytes of a GBNF text or a JSON Schema
inline constexpr size_t kMostNodes = 1 << 18;       // of a grammar; also at most kFreeNodes + 4 per byte of its text
inline constexpr size_t kFreeNodes = 1 << 15;
inline constexpr uint32_t kMostRepetitions = 1 << 20;  // of {m,n}
inline constexpr int kDeepestGroup = 128;              // nested parentheses in a rule
inline constexpr uint32_t kDeepestExpression = 1024;   // nested groups, alternatives and repetitions, such as "a"?*?
inline constexpr uint16_t kDeepestStack = 256;         // nested calls of rules: a deeper text is not written
// Parses of a text that are followed at the same time. If there are more, the last ones are dropped: what is written
// still follows the grammar, but not all of its texts can be written. Reached by very ambiguous grammars only.
inline constexpr size_t kMostParses = 512;
inline constexpr size_t kMostVisits = 1 << 14;                  // nodes visited after a byte, with the same effect
inline constexpr size_t kGrammarCacheBytes = size_t(16) << 20;  // of a TokenGrammar: states, transitions and masks

// ====================================================================================================================
// 2. Grammars
// ====================================================================================================================

namespace grammar_detail {

inline constexpr uint16_t kNoEnd = UINT16_MAX;  // a height: no end can be reached

struct Edge {
  enum Kind : uint8_t { bytes, call, jump };  // jump: to the target without a byte
  uint32_t target;
  uint32_t rule;  // call
  Kind kind;
  uint8_t low, high;  // bytes: the range
};

// Of the automaton of a rule. Its edges end where those of the next node begin.
struct Node {
  uint32_t edges;   // the first one
  uint16_t height;  // frames that the stack grows by, at least, on the way to the end of the rule; kNoEnd: no way
  bool end;         // the rule may end here
};

// A range of code points.
struct CodeRange {
  uint32_t low, high;
};

inline constexpr uint32_t kLastCode = 0x10FFFF;

// Sorted ranges that do not touch, without surrogates.
inline std::vector<CodeRange> normalized(std::vector<CodeRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const CodeRange& a, const CodeRange& b) { return a.low < b.low; });
  std::vector<CodeRange> joined;
  for (const CodeRange& r : ranges) {
    if (!joined.empty() && r.low <= joined.back().high + 1)
      joined.back().high = std::max(joined.back().high, r.high);
    else
      joined.push_back(r);
  }
  std::vector<CodeRange> out;
  for (const CodeRange& r : joined) {
    if (r.low < 0xD800) out.push_back({r.low, std::min(r.high, 0xD7FFu)});
    if (r.high > 0xDFFF) out.push_back({std::max(r.low, 0xE000u), r.high});
  }
  return out;
}

// All other code points.
inline std::vector<CodeRange> complement(const std::vector<CodeRange>& ranges) {
  std::vector<CodeRange> out;
  uint32_t next = 0;
  for (const CodeRange& r : normalized(ranges)) {
    if (r.low > next) out.push_back({next, r.low - 1});
    next = r.high + 1;
  }
  if (next <= kLastCode) out.push_back({next, kLastCode});
  return normalized(out);
}

}  // namespace grammar_detail

// A compiled grammar. Immutable: any threads may share it. GrammarBuilder makes it.
class Grammar {
 public:
  // Whether a whole text follows the grammar.
  bool matches(std::string_view text) const;
  // Number of nodes, which its memory is proportional to.
  size_t size() const { return nodes_.size() - 1; }

 private:
  friend class GrammarBuilder;
  friend class GrammarStates;
  Grammar() = default;

  std::vector<grammar_detail::Node> nodes_;  // the last one is no node: it ends the edges
  std::vector<grammar_detail::Edge> edges_;
  std::vector<uint32_t> starts_;  // node, by rule
  uint32_t root_ = 0;             // rule
};

// ====================================================================================================================
// 3. Building a grammar
// ====================================================================================================================

namespace grammar_detail {

// A node while a rule is compiled (Thompson 1968).
struct DraftNode {
  enum Kind : uint8_t { bytes, call, split, end, dead } kind;
  uint8_t low, high;  // bytes
  uint32_t next;      // bytes, call, split
  uint32_t other;     // split: the other way; call: the rule
};

// Calls f(low, high, n) for each sequence of n byte ranges whose texts are the UTF-8 of a range of code points.
template <class F> void utf8_sequences(CodeRange range, const F& f) {
  for (const uint32_t last : {0x7Fu, 0x7FFu, 0xFFFFu})  // ends of the code points of 1, 2 and 3 bytes
    if (range.low <= last && range.high > last) {
      utf8_sequences({range.low, last}, f);
      return utf8_sequences({last + 1, range.high}, f);
    }
  for (int bits = 6; bits <= 18 && range.high > 0x7F; bits += 6) {
    const uint32_t mask = (1u << bits) - 1;  // the last bytes, which are full ranges or equal
    if ((range.low & ~mask) == (range.high & ~mask)) break;
    if ((range.low & mask) != 0) {
      utf8_sequences({range.low, range.low | mask}, f);
      return utf8_sequences({(range.low | mask) + 1, range.high}, f);
    }
    if ((range.high & mask) != mask) {
      utf8_sequences({range.low, (range.high & ~mask) - 1}, f);
      return utf8_sequences({range.high & ~mask, range.high}, f);
    }
  }
  std::string low, high;
  tokenizer_detail::append_utf8(range.low, low);
  tokenizer_detail::append_utf8(range.high, high);
  f(low.data(), high.data(), low.size());
}

// Makes an automaton deterministic, but for calls: no two edges of a node have a byte or a rule in common (Rabin and
// Scott 1959). A node of the result stands for a set of nodes. Their number can be exponential; then build() gives up.
class Determinizer {
 public:
  explicit Determinizer(const std::vector<DraftNode>& draft) : draft_(draft), marks_(draft.size(), 0) {}

  // Appends the nodes and edges of the result; the start is the first one. False, with nothing appended: too many.
  bool build(uint32_t start, std::vector<Node>& nodes, std::vector<Edge>& edges) {
    const size_t first = nodes.size(), first_edge = edges.size(), most_edges = first_edge + 8 * draft_.size() + 4096;
    base_ = uint32_t(first);
    intern({start});
    for (size_t i = 0; i + 1 < offsets_.size() && !too_many(); i++) {
      nodes.push_back({uint32_t(edges.size()), 0, false});
      expand(i, nodes.back(), edges);
      if (edges.size() > most_edges) work_ = SIZE_MAX / 2;
    }
    if (!too_many()) return true;
    nodes.resize(first);
    edges.resize(first_edge);
    return false;
  }

 private:
  bool too_many() const {
    return members_.size() > 16 * draft_.size() + 16384 || offsets_.size() > 2 * draft_.size() + 1024 ||
           work_ > 64 * draft_.size() + (1 << 20);
  }

  // The set of the nodes that are reached without a byte. Returns its number.
  uint32_t intern(std::vector<uint32_t> pending) {
    std::vector<uint32_t> set;
    mark_++;
    while (!pending.empty()) {
      const uint32_t n = pending.back();
      pending.pop_back();
      if (marks_[n] == mark_) continue;
      marks_[n] = mark_;
      work_++;
      if (draft_[n].kind == DraftNode::split) {
        pending.push_back(draft_[n].other);
        pending.push_back(draft_[n].next);
      } else if (draft_[n].kind != DraftNode::dead) {
        set.push_back(n);
      }
    }
    std::sort(set.begin(), set.end());
    uint64_t hash = set.size();
    for (const uint32_t n : set) hash = (hash ^ n) * 0x9E3779B97F4A7C15 + (hash >> 29);
    const auto same = index_.equal_range(hash);
    for (auto it = same.first; it != same.second; ++it)
      if (std::equal(set.begin(), set.end(), members_.begin() + offsets_[it->second],
                     members_.begin() + offsets_[it->second + 1]))
        return it->second;
    const uint32_t id = uint32_t(offsets_.size() - 1);
    members_.insert(members_.end(), set.begin(), set.end());
    offsets_.push_back(uint32_t(members_.size()));
    index_.emplace(hash, id);
    return id;
  }

  void expand(size_t set, Node& node, std::vector<Edge>& edges) {
    std::vector<std::pair<uint32_t, uint32_t>> calls;  // rule, next
    std::vector<const DraftNode*> ranges;
    bool cut[257] = {};  // where a segment of bytes begins that all ranges have, or have not
    for (uint32_t i = offsets_[set]; i < offsets_[set + 1]; i++) {
      const DraftNode& d = draft_[members_[i]];
      if (d.kind == DraftNode::end) node.end = true;
      if (d.kind == DraftNode::call) calls.push_back({d.other, d.next});
      if (d.kind != DraftNode::bytes) continue;
      ranges.push_back(&d);
      cut[d.low] = cut[d.high + 1] = true;
    }
    add_bytes(ranges, cut, edges);
    std::sort(calls.begin(), calls.end());
    for (size_t i = 0; i < calls.size();) {
      std::vector<uint32_t> targets;
      const uint32_t rule = calls[i].first;
      for (; i < calls.size() && calls[i].first == rule; i++) targets.push_back(calls[i].second);
      edges.push_back({base_ + intern(std::move(targets)), rule, Edge::call, 0, 0});
    }
  }

  void add_bytes(const std::vector<const DraftNode*>& ranges, const bool* cut, std::vector<Edge>& edges) {
    const size_t first = edges.size();
    std::vector<uint32_t> targets[256];  // by the first byte of the segment
    for (const DraftNode* d : ranges)
      for (int b = d->low; b <= d->high; b++)
        if (cut[b]) {
          targets[b].push_back(d->next);
          work_++;
        }
    for (int b = 0; b < 256; b++) {
      if (targets[b].empty()) continue;
      int end = b + 1;
      while (!cut[end] && end < 256) end++;
      const uint32_t target = base_ + intern(std::move(targets[b]));
      if (edges.size() > first && edges.back().target == target && edges.back().high + 1 == b)
        edges.back().high = uint8_t(end - 1);
      else
        edges.push_back({target, 0, Edge::bytes, uint8_t(b), uint8_t(end - 1)});
    }
  }

  const std::vector<DraftNode>& draft_;
  std::vector<uint32_t> members_, offsets_{0};  // of the sets
  std::unordered_multimap<uint64_t, uint32_t> index_;
  std::vector<uint32_t> marks_;
  uint32_t mark_ = 0, base_ = 0;
  size_t work_ = 0;
};

}  // namespace grammar_detail

// Builds a grammar from expressions. GBNF and JSON Schema are read into it.
class GrammarBuilder {
 public:
  using Expr = uint32_t;  // an expression
  using Rule = uint32_t;
  static constexpr uint32_t kUnbounded = UINT32_MAX;
  struct Item {
    Expr value;
    bool optional;
  };

  Expr literal(std::string_view bytes) {  // "": the empty text
    const uint32_t first = uint32_t(text_.size());
    text_ += bytes;
    return add({Kind::literal, first, uint32_t(bytes.size()), 0, 0});
  }
  // A character in one of these ranges.
  Expr characters(const std::vector<grammar_detail::CodeRange>& ranges) {
    const uint32_t first = uint32_t(ranges_.size());
    for (const auto& r : grammar_detail::normalized(ranges)) ranges_.push_back(r);
    return add({Kind::characters, first, uint32_t(ranges_.size()) - first, 0, 0});
  }
  Expr sequence(const std::vector<Expr>& parts) { return add_parent(Kind::sequence, parts); }
  // One of these; of none: no text at all.
  Expr either(const std::vector<Expr>& parts) { return add_parent(Kind::either, parts); }
  Expr never() { return either({}); }
  Expr call(Rule rule) { return add({Kind::call, rule, 0, 0, 0}); }
  Expr optional(Expr e) { return repeat(e, 0, 1); }
  // least to most (kUnbounded: any number of) texts of an expression, one after another. Many copies of an automaton take
  // much memory, so that they become calls of a rule, and many calls become calls of blocks.
  Expr repeat(Expr e, uint32_t least, uint32_t most) {
    const uint32_t count = most == kUnbounded ? least : most;
    if (count > 8 && expressions_[e].kind != Kind::call) e = call(hidden_rule(e));
    if (count <= kBlock) return copies(e, least, most);
    const Expr rest = most == kUnbounded ? copies(e, 0, most) : at_most(e, most - least);
    return sequence({exactly(e, least), rest});
  }
  // Some of the items, in their order, with a separator between them. Only optional ones may be left out.
  Expr list(const std::vector<Item>& items, Expr separator) {
    std::vector<Expr> parts;
    for (const Item& i : items) parts.push_back(i.value);
    const Expr e = add_parent(Kind::list, parts);
    expressions_[e].least = separator;
    expressions_[e].most = uint32_t(optional_.size());
    expressions_[e].depth = std::max(expressions_[e].depth, expressions_[separator].depth + 1);
    for (const Item& i : items) optional_.push_back(i.optional);
    return e;
  }

  // A rule that define() completes. name: for messages, with its place in the source; begin() may give it later.
  Rule add_rule(std::string name) {
    rules_.push_back({std::move(name), 0, false});
    return Rule(rules_.size() - 1);
  }
  // The expressions that follow belong to this rule; for messages.
  void begin(Rule rule) { current_ = rule; }
  void begin(Rule rule, std::string name) {
    rules_[rule].name = std::move(name);
    current_ = rule;
  }
  bool is_call(Expr e) const { return expressions_[e].kind == Kind::call; }
  void define(Rule rule, Expr body) {
    rules_[rule].body = body;
    rules_[rule].defined = true;
  }
  bool defined(Rule rule) const { return rules_[rule].defined; }

  // Compiles the grammar, whose texts are those of the rule `root`. source_bytes: of the text that it was read from.
  // all_end: a rule without any text is an error, as it is in any case for `root`. Null with `error` set if the grammar
  // is refused. All rules must be defined.
  std::shared_ptr<const Grammar> build(Rule root, size_t source_bytes, bool all_end, std::string& error) {
    most_nodes_ = std::min(kMostNodes, kFreeNodes + 4 * source_bytes);
    grammar_ = std::shared_ptr<Grammar>(new Grammar);
    grammar_->root_ = root;
    for (const RuleBody& rule : rules_) {
      if (expressions_[rule.body].depth > kDeepestExpression) {
        fail(error, {rule.name, ": expected at most ", kDeepestExpression,
                     " nested groups, alternatives and repetitions, found more"});
        return nullptr;
      }
      if (!compile(rule)) {
        fail(error, {rule.name, ": expected at most ", most_nodes_,
                     " states in a grammar of this size, found more; use fewer alternatives and repetitions"});
        return nullptr;
      }
    }
    grammar_->nodes_.push_back({uint32_t(grammar_->edges_.size()), 0, false});
    if (!check_left_recursion(error) || !find_heights(all_end, error)) return nullptr;
    return grammar_;
  }

 private:
  using Node = grammar_detail::Node;
  using Edge = grammar_detail::Edge;
  using DraftNode = grammar_detail::DraftNode;
  enum class Kind : uint8_t { literal, characters, sequence, either, call, repeat, list };
  struct Expression {
    Kind kind;
    uint32_t first, count;  // of text_, ranges_ or children_; call: the rule; repeat: the expression
    uint32_t least, most;   // repeat: bounds; list: the separator, and the first one of optional_
    uint32_t depth = 1;     // of the tree of expressions below it, with itself; draft() recurses that deep
  };
  struct RuleBody {
    std::string name;
    Expr body;
    bool defined;
  };

  Expr add(Expression e) {
    expressions_.push_back(e);
    return Expr(expressions_.size() - 1);
  }
  Expr add_parent(Kind kind, const std::vector<Expr>& parts) {
    const uint32_t first = uint32_t(children_.size());
    children_.insert(children_.end(), parts.begin(), parts.end());
    uint32_t depth = 1;
    for (const Expr part : parts) depth = std::max(depth, expressions_[part].depth + 1);
    return add({kind, first, uint32_t(parts.size()), 0, 0, depth});
  }

  // ---- Repetitions ----

  static constexpr uint32_t kBlock = 64;

  Rule hidden_rule(Expr body) {
    const Rule rule = add_rule(rules_.empty() ? "" : rules_[current_].name);
    define(rule, body);
    return rule;
  }
  Expr copies(Expr e, uint32_t least, uint32_t most) {
    return add({Kind::repeat, e, 0, least, most, expressions_[e].depth + 1});
  }
  Expr exactly(Expr e, uint32_t n) {
    if (n <= kBlock) return copies(e, n, n);
    const Expr block = call(hidden_rule(copies(e, kBlock, kBlock)));
    return sequence({exactly(block, n / kBlock), copies(e, n % kBlock, n % kBlock)});
  }
  // Either less than n / kBlock whole blocks and a part of one, or all of them and a part of the rest.
  Expr at_most(Expr e, uint32_t n) {
    if (n <= kBlock) return copies(e, 0, n);
    const Expr block = call(hidden_rule(copies(e, kBlock, kBlock)));
    return either({sequence({at_most(block, n / kBlock - 1), copies(e, 0, kBlock - 1)}),
                   sequence({exactly(block, n / kBlock), copies(e, 0, n % kBlock)})});
  }

  // ---- The automaton of a rule ----

  bool compile(const RuleBody& rule) {
    draft_.clear();
    const uint32_t end = draft({DraftNode::end, 0, 0, 0, 0});
    const uint32_t start = draft(rule.body, end);
    if (full()) return false;
    std::vector<Node>& nodes = grammar_->nodes_;
    if (grammar_detail::Determinizer(draft_).build(start, nodes, grammar_->edges_))
      grammar_->starts_.push_back(first_node_);
    else
      grammar_->starts_.push_back(append_draft(start));
    first_node_ = uint32_t(nodes.size());
    return nodes.size() <= most_nodes_;
  }

  // Appends the automaton as it is. Returns its start.
  uint32_t append_draft(uint32_t start) {
    for (const DraftNode& d : draft_) {
      grammar_->nodes_.push_back({uint32_t(grammar_->edges_.size()), 0, d.kind == DraftNode::end});
      const uint32_t next = first_node_ + d.next;
      if (d.kind == DraftNode::bytes) grammar_->edges_.push_back({next, 0, Edge::bytes, d.low, d.high});
      if (d.kind == DraftNode::call) grammar_->edges_.push_back({next, d.other, Edge::call, 0, 0});
      if (d.kind != DraftNode::split) continue;
      grammar_->edges_.push_back({next, 0, Edge::jump, 0, 0});
      grammar_->edges_.push_back({first_node_ + d.other, 0, Edge::jump, 0, 0});
    }
    return first_node_ + start;
  }

  bool full() const { return first_node_ + draft_.size() > most_nodes_; }
  uint32_t draft(DraftNode node) {
    if (full()) return 0;
    draft_.push_back(node);
    return uint32_t(draft_.size() - 1);
  }
  uint32_t split(uint32_t a, uint32_t b) { return a == b ? a : draft({DraftNode::split, 0, 0, a, b}); }

  // Appends nodes for an expression that is followed by the node `next`. Returns where it starts.
  uint32_t draft(Expr e, uint32_t next) {
    const Expression x = expressions_[e];
    if (full()) return next;
    switch (x.kind) {
      case Kind::literal:
        for (uint32_t i = x.count; i-- > 0;) {
          const uint8_t byte = uint8_t(text_[x.first + i]);
          next = draft({DraftNode::bytes, byte, byte, next, 0});
        }
        return next;
      case Kind::characters:
        return draft_characters(x, next);
      case Kind::sequence:
        for (uint32_t i = x.count; i-- > 0;) next = draft(children_[x.first + i], next);
        return next;
      case Kind::either: {
        if (x.count == 0) return draft({DraftNode::dead, 0, 0, 0, 0});
        uint32_t start = draft(children_[x.first + x.count - 1], next);
        for (uint32_t i = x.count - 1; i-- > 0;) start = split(draft(children_[x.first + i], next), start);
        return start;
      }
      case Kind::call:
        return draft({DraftNode::call, 0, 0, next, x.first});
      case Kind::repeat:
        return draft_repeat(x, next);
      default:
        return draft_list(x, next);
    }
  }

  uint32_t draft_characters(const Expression& x, uint32_t next) {
    uint32_t start = UINT32_MAX;
    for (uint32_t i = 0; i < x.count; i++)
      grammar_detail::utf8_sequences(ranges_[x.first + i], [&](const char* low, const char* high, size_t n) {
        uint32_t at = next;
        while (n-- > 0) at = draft({DraftNode::bytes, uint8_t(low[n]), uint8_t(high[n]), at, 0});
        start = start == UINT32_MAX ? at : split(at, start);
      });
    return start == UINT32_MAX ? draft({DraftNode::dead, 0, 0, 0, 0}) : start;
  }

  uint32_t draft_repeat(const Expression& x, uint32_t next) {
    if (x.most == kUnbounded) {
      const uint32_t loop = draft({DraftNode::split, 0, 0, next, next});
      const uint32_t body = draft(x.first, loop);
      if (!full()) draft_[loop].other = body;
      next = loop;
    } else {
      const uint32_t end = next;
      for (uint32_t i = x.least; i < x.most && !full(); i++) {
        const uint32_t start = draft(x.first, next);
        if (start == next) return next;  // the empty text: each copy would double the time of nested ones
        next = split(start, end);
      }
    }
    for (uint32_t i = 0; i < x.least && !full(); i++) {
      const uint32_t start = draft(x.first, next);
      if (start == next) return next;
      next = start;
    }
    return next;
  }

  // From the last item to the first: `none` is where the list goes on if no item came before, `some` if one did.
  uint32_t draft_list(const Expression& x, uint32_t next) {
    uint32_t none = next, some = next;
    for (uint32_t i = x.count; i-- > 0 && !full();) {
      const uint32_t item = draft(children_[x.first + i], some);
      const uint32_t separated = draft(x.least, item);
      const bool optional = optional_[x.most + i];
      some = optional ? split(separated, some) : separated;
      none = optional ? split(item, none) : item;
    }
    return none;
  }

  // ---- Checks of the whole grammar ----

  struct Reverse {
    std::vector<uint32_t> sources, edges, begins;  // edges that lead to a node: begins[node] ... begins[node + 1]
    std::vector<std::vector<uint32_t>> callers;    // by rule: indices of `edges` of the grammar
    std::vector<uint32_t> source_of;               // by edge
  };

  Reverse reverse_edges() const {
    const auto& nodes = grammar_->nodes_;
    const auto& edges = grammar_->edges_;
    Reverse r;
    r.begins.assign(nodes.size() + 1, 0);
    r.callers.resize(rules_.size());
    r.source_of.resize(edges.size());
    r.edges.resize(edges.size());
    for (const Edge& e : edges) r.begins[e.target + 1]++;
    for (size_t i = 1; i < r.begins.size(); i++) r.begins[i] += r.begins[i - 1];
    std::vector<uint32_t> at(r.begins.begin(), r.begins.end() - 1);
    for (uint32_t n = 0; n + 1 < nodes.size(); n++)
      for (uint32_t i = nodes[n].edges; i < nodes[n + 1].edges; i++) {
        r.source_of[i] = n;
        r.edges[at[edges[i].target]++] = i;
        if (edges[i].kind == Edge::call) r.callers[edges[i].rule].push_back(i);
      }
    return r;
  }

  // Rule of each start node; UINT32_MAX: another node.
  std::vector<uint32_t> rules_of_starts() const {
    std::vector<uint32_t> rule(grammar_->nodes_.size(), UINT32_MAX);
    for (uint32_t r = 0; r < grammar_->starts_.size(); r++) rule[grammar_->starts_[r]] = r;
    return rule;
  }

  // By node: whether the end of its rule is reached without a byte.
  std::vector<bool> find_empty() const {
    const auto& nodes = grammar_->nodes_;
    const auto& edges = grammar_->edges_;
    const Reverse reverse = reverse_edges();
    const std::vector<uint32_t> rule_of = rules_of_starts();
    std::vector<bool> empty(nodes.size(), false);
    std::vector<uint32_t> pending;
    const auto set = [&](uint32_t node) {
      if (!empty[node]) pending.push_back(node);
      empty[node] = true;
    };
    for (uint32_t n = 0; n + 1 < nodes.size(); n++)
      if (nodes[n].end) set(n);
    while (!pending.empty()) {
      const uint32_t n = pending.back();
      pending.pop_back();
      for (uint32_t i = reverse.begins[n]; i < reverse.begins[n + 1]; i++) {
        const Edge& e = edges[reverse.edges[i]];
        if (e.kind == Edge::jump || (e.kind == Edge::call && empty[grammar_->starts_[e.rule]]))
          set(reverse.source_of[reverse.edges[i]]);
      }
      if (rule_of[n] == UINT32_MAX) continue;
      for (const uint32_t i : reverse.callers[rule_of[n]])
        if (empty[edges[i].target]) set(reverse.source_of[i]);
    }
    return empty;
  }

  // A rule that calls itself before any byte would never end.
  bool check_left_recursion(std::string& error) const {
    const auto& nodes = grammar_->nodes_;
    const std::vector<bool> empty = find_empty();
    std::vector<std::vector<uint32_t>> first(rules_.size());  // by rule: those that it calls before any byte
    std::vector<bool> seen(nodes.size(), false);
    for (uint32_t r = 0; r < rules_.size(); r++) {
      std::vector<uint32_t> pending = {grammar_->starts_[r]};
      while (!pending.empty()) {
        const uint32_t n = pending.back();
        pending.pop_back();
        if (seen[n]) continue;
        seen[n] = true;
        for (uint32_t i = nodes[n].edges; i < nodes[n + 1].edges; i++) {
          const Edge& e = grammar_->edges_[i];
          if (e.kind == Edge::call) first[r].push_back(e.rule);
          if (e.kind == Edge::jump || (e.kind == Edge::call && empty[grammar_->starts_[e.rule]]))
            pending.push_back(e.target);
        }
      }
    }
    return check_cycles(first, error);
  }

  bool check_cycles(const std::vector<std::vector<uint32_t>>& calls, std::string& error) const {
    std::vector<uint8_t> state(calls.size(), 0);  // 1: on the path, 2: done
    std::vector<std::pair<uint32_t, size_t>> path;
    for (uint32_t root = 0; root < calls.size(); root++) {
      if (state[root] == 0) path.push_back({root, 0});
      while (!path.empty()) {
        auto& [rule, next] = path.back();
        state[rule] = 1;
        if (next == calls[rule].size()) {
          state[rule] = 2;
          path.pop_back();
          continue;
        }
        const uint32_t called = calls[rule][next++];
        if (state[called] == 1)
          return fail(error, {rules_[called].name,
                              ": left recursion: the rule calls itself before any character; put the recursion last"});
        if (state[called] == 0) path.push_back({called, 0});
      }
    }
    return true;
  }

  // Sets the heights of all nodes, from small to large (Knuth 1977).
  bool find_heights(bool all_end, std::string& error) const {
    auto& nodes = grammar_->nodes_;
    const auto& edges = grammar_->edges_;
    const Reverse reverse = reverse_edges();
    const std::vector<uint32_t> rule_of = rules_of_starts();
    std::vector<std::vector<uint32_t>> pending(kDeepestStack + 2u);  // nodes by height
    for (Node& n : nodes) n.height = grammar_detail::kNoEnd;
    for (uint32_t n = 0; n + 1 < nodes.size(); n++)
      if (nodes[n].end) pending[0].push_back(n);
    const auto reach = [&](uint32_t i) {  // an edge, whose source may now be known
      const Edge& e = edges[i];
      uint32_t height = nodes[e.target].height;
      if (e.kind == Edge::call) {
        const uint32_t callee = nodes[grammar_->starts_[e.rule]].height;
        height = std::max(height, callee + !grammar_ends(e.target));
        if (callee == grammar_detail::kNoEnd) return;
      }
      if (height <= kDeepestStack) pending[height].push_back(reverse.source_of[i]);
    };
    for (uint16_t h = 0; h <= kDeepestStack; h++)
      for (size_t k = 0; k < pending[h].size(); k++) {
        const uint32_t n = pending[h][k];
        if (nodes[n].height != grammar_detail::kNoEnd) continue;
        nodes[n].height = h;
        for (uint32_t i = reverse.begins[n]; i < reverse.begins[n + 1]; i++) reach(reverse.edges[i]);
        if (rule_of[n] != UINT32_MAX)
          for (const uint32_t i : reverse.callers[rule_of[n]])
            if (nodes[edges[i].target].height != grammar_detail::kNoEnd) reach(i);
      }
    return check_ends(all_end, error);
  }
  // Whether nothing can follow this node in its rule, so that a call that returns to it needs no frame.
  bool grammar_ends(uint32_t node) const {
    return grammar_->nodes_[node].end && grammar_->nodes_[node].edges == grammar_->nodes_[node + 1].edges;
  }

  bool check_ends(bool all_end, std::string& error) const {
    for (uint32_t r = 0; r < rules_.size(); r++)
      if ((all_end || r == grammar_->root_) && grammar_->nodes_[grammar_->starts_[r]].height == grammar_detail::kNoEnd)
        return fail(error, {rules_[r].name, ": no text is possible that ends within ", kDeepestStack, " nested rules"});
    return true;
  }

  std::vector<Expression> expressions_;
  std::vector<Expr> children_;
  std::vector<bool> optional_;
  std::vector<grammar_detail::CodeRange> ranges_;
  std::string text_;
  std::vector<RuleBody> rules_;
  Rule current_ = 0;
  size_t most_nodes_ = 0;
  std::shared_ptr<Grammar> grammar_;
  std::vector<DraftNode> draft_;  // of the rule that is compiled
  uint32_t first_node_ = 0;       // ... and its first node in the grammar
};

// ====================================================================================================================
// 4. GBNF
// ====================================================================================================================

namespace grammar_detail {

// The repetition of an expression, in GBNF and in a pattern: ?, *, +, {m}, {m,} or {m,n}.
struct Repetition {
  bool found = false;
  uint32_t least = 0, most = GrammarBuilder::kUnbounded;

  // Reads it, if there is one at this place. skip: passes over what may be between the characters in braces. Returns ""
  // or what is expected at the place, which is then that of the mistake.
  template <class Skip> std::string read(std::string_view text, size_t& at, const Skip& skip) {
    const auto take = [&](char c) {
      const bool is_next = at < text.size() && text[at] == c;
      at += is_next;
      return is_next;
    };
    const auto number = [&](uint32_t& value) -> std::string {
      const size_t start = at;
      if (!read_number(text, at, kMostRepetitions, value)) return "a number";
      if (value <= kMostRepetitions) return "";
      at = start;
      return "at most " + std::to_string(kMostRepetitions) + " repetitions";
    };
    found = true;
    if (take('?')) {
      most = 1;
    } else if (take('+')) {
      least = 1;
    } else if (take('{')) {
      std::string wrong = number(least);
      if (!wrong.empty()) return wrong;
      most = least;
      skip();
      if (take(',')) {
        skip();
        most = GrammarBuilder::kUnbounded;
        const size_t start = at;
        if (at < text.size() && text[at] != '}' && !(wrong = number(most)).empty()) return wrong;
        if (most < least) {
          at = start;
          return "at least " + std::to_string(least) + " as the most repetitions";
        }
        skip();
      }
      if (!take('}')) return "}";
    } else {
      found = take('*');
    }
    return "";
  }
};

}  // namespace grammar_detail

// Reads a grammar in GBNF, the format of llama.cpp (its grammars/README.md). Not supported: tokens, <...>.
class GbnfReader {
 public:
  // name: how messages refer to the text.
  GbnfReader(const std::string& name, std::string_view text) : name_(name), text_(text) {}

  // Null with `error` set if the text is no grammar.
  std::shared_ptr<const Grammar> read(std::string& error) {
    if (text_.size() > kLongestGrammar)
      fail(error_, {name_, ": expected at most ", kLongestGrammar, " bytes, found ", text_.size()});
    else if (check_utf8() && read_rules()) {
      auto grammar = builder_.build(rules_.at("root").rule, text_.size(), true, error_);
      if (grammar) return grammar;
    }
    error = error_;
    return nullptr;
  }

 private:
  using Expr = GrammarBuilder::Expr;
  struct Name {
    GrammarBuilder::Rule rule;
    size_t first_use;
  };
  static constexpr size_t kLongestShownName = 60;  // bytes; the builder copies the name for each hidden rule

  // ---- Characters ----

  // "NAME:LINE:COLUMN", columns in bytes. Lines are counted once if places follow each other.
  std::string place(size_t at) {
    if (at < counted_) counted_ = line_start_ = line_ = 0;
    for (; counted_ < at; counted_++)
      if (text_[counted_] == '\n') {
        line_++;
        line_start_ = counted_ + 1;
      }
    return text_of({name_, ":", line_ + 1, ":", at - line_start_ + 1});
  }
  bool expected(Message what, size_t at) {
    std::string found = "the end";
    if (at < text_.size()) {
      std::string_view rest = text_.substr(at);
      const size_t n = tokenizer_detail::read_utf8(rest).length;
      found = rest[0] == '\n' ? "the end of the line" : text_of({"'", rest.substr(0, n), "'"});
    }
    return fail(error_, {place(at), ": expected ", text_of(what), ", found ", found});
  }
  bool expected(Message what) { return expected(what, at_); }

  bool check_utf8() {
    for (size_t at = 0; at < text_.size();) {
      const auto c = tokenizer_detail::read_utf8(text_.substr(at));
      if (c.state != tokenizer_detail::Utf8::whole) return fail(error_, {place(at), ": expected UTF-8"});
      at += c.length;
    }
    return true;
  }

  bool at_end() const { return at_ == text_.size(); }
  char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }
  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }
  static bool in_name(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
  }
  // Skips spaces and comments; with `lines`, also the ends of lines.
  void skip(bool lines) {
    for (; !at_end(); at_++) {
      if (peek() == '#') at_ = std::min(text_.find('\n', at_), text_.size());
      const char c = peek();
      if (at_end() || (c != ' ' && c != '\t' && !(lines && (c == '\n' || c == '\r')))) return;
    }
  }

  // ---- Rules ----

  bool read_rules() {
    for (skip(true); !at_end(); skip(true))
      if (!read_rule()) return false;
    for (const auto& [name, n] : rules_)
      if (!builder_.defined(n.rule)) undefined_ = std::min(undefined_, n.first_use);
    if (undefined_ < text_.size()) {
      at_ = undefined_;
      return fail(error_, {place(at_), ": rule '", read_name(), "' is not defined"});
    }
    return rules_.count("root") > 0 || fail(error_, {name_, ": expected a rule named 'root', found none"});
  }

  std::string_view read_name() {
    const size_t start = at_;
    while (!at_end() && in_name(peek())) at_++;
    return text_.substr(start, at_ - start);
  }

  GrammarBuilder::Rule rule_of(std::string_view name, size_t at) {
    const auto [it, is_new] = rules_.emplace(std::string(name), Name{0, at});
    if (is_new) it->second.rule = builder_.add_rule("");
    return it->second.rule;
  }

  bool read_rule() {
    const size_t start = at_;
    const std::string_view name = read_name();
    if (name.empty()) return expected({"the name of a rule"});
    skip(false);
    if (!take("::=")) return expected({"::="});
    const GrammarBuilder::Rule rule = rule_of(name, start);
    if (builder_.defined(rule)) return fail(error_, {place(start), ": rule '", name, "' is defined twice"});
    skip(true);
    builder_.begin(rule, text_of({place(start), ": rule '", name.substr(0, kLongestShownName), "'"}));
    Expr body;
    if (!read_alternatives(0, body)) return false;
    builder_.define(rule, body);
    take("\r");
    return at_end() || peek() == '\n' || expected({"a symbol, | or the end of the line"});
  }

  bool read_alternatives(int depth, Expr& out) {
    std::vector<Expr> parts(1);
    if (!read_sequence(depth, parts[0])) return false;
    for (;;) {
      const size_t end = at_;
      skip(true);
      if (!take("|")) {
        at_ = end;
        break;
      }
      skip(true);
      parts.emplace_back();
      if (!read_sequence(depth, parts.back())) return false;
    }
    out = parts.size() == 1 ? parts[0] : builder_.either(parts);
    return true;
  }

  bool read_sequence(int depth, Expr& out) {
    std::vector<Expr> parts;
    for (skip(depth > 0); !at_end() && peek() != '|' && peek() != ')' && peek() != '\n' && peek() != '\r';
         skip(depth > 0)) {
      parts.emplace_back();
      if (!read_symbol(depth, parts.back())) return false;
      for (bool more = true; more;) {
        const size_t end = at_;
        skip(depth > 0);
        if (!read_repetition(parts.back(), more)) return false;
        if (!more) at_ = end;
      }
    }
    out = parts.size() == 1 ? parts[0] : builder_.sequence(parts);
    return true;
  }

  bool read_symbol(int depth, Expr& out) {
    const size_t start = at_;
    if (peek() == '"') return read_literal(out);
    if (take("[")) return read_class(out);
    if (take(".")) {
      out = builder_.characters({{0, grammar_detail::kLastCode}});
      return true;
    }
    if (take("(")) {
      if (depth == kDeepestGroup) return expected({"at most ", kDeepestGroup, " nested parentheses"}, start);
      if (!read_alternatives(depth + 1, out)) return false;
      skip(true);
      return take(")") || expected({")"});
    }
    if (peek() == '<' || peek() == '!')
      return fail(error_, {place(at_), ": tokens (<...>) are not supported; write their text in quotes"});
    const std::string_view name = read_name();
    if (name.empty()) return expected({"a symbol: a name, a text in quotes, [...], (...) or ."});
    out = builder_.call(rule_of(name, start));
    return true;
  }

  // Stores whether there is a repetition, and applies it.
  bool read_repetition(Expr& e, bool& found) {
    grammar_detail::Repetition r;
    const std::string wrong = r.read(text_, at_, [this] { skip(true); });
    if (!wrong.empty()) return expected({wrong});
    found = r.found;
    if (found) e = builder_.repeat(e, r.least, r.most);
    return true;
  }

  bool read_literal(Expr& out) {
    std::string bytes;
    at_++;
    while (!take("\"")) {
      uint32_t code = 0;
      if (at_end()) return expected({"\""});
      if (!read_character(code)) return false;
      tokenizer_detail::append_utf8(code, bytes);
    }
    out = builder_.literal(bytes);
    return true;
  }

  bool read_class(Expr& out) {
    std::vector<grammar_detail::CodeRange> ranges;
    const bool negated = take("^");
    while (!take("]")) {
      uint32_t low = 0;
      if (at_end()) return expected({"]"});
      if (!read_character(low)) return false;
      uint32_t high = low;
      const size_t end = at_ + 1;
      if (peek() == '-' && peek(1) != ']') {
        at_++;
        if (!read_character(high)) return false;
      }
      if (high < low) return expected({"a range whose last character is not before its first one"}, end);
      ranges.push_back({low, high});
    }
    if (ranges.empty()) return expected({"a character in brackets"}, at_ - 1);
    out = builder_.characters(negated ? grammar_detail::complement(ranges) : ranges);
    return true;
  }

  // A character or an escape.
  bool read_character(uint32_t& code) {
    if (at_end()) return expected({"a character"});
    const size_t start = at_;
    if (!take("\\")) {
      const auto c = tokenizer_detail::read_utf8(text_.substr(at_));
      at_ += c.length;
      code = c.code;
      return true;
    }
    constexpr std::string_view kEscapes = "trnxuU\\\"[]-", kMeanings = "\t\r\n";
    const size_t escape = at_end() ? kEscapes.npos : kEscapes.find(peek());
    if (escape == kEscapes.npos)
      return expected({"one of the escapes \\t \\r \\n \\x \\u \\U \\\\ \\\" \\[ \\] \\-"}, start);
    code = escape < kMeanings.size() ? uint8_t(kMeanings[escape]) : uint8_t(peek());
    at_++;
    if (escape < 3 || escape > 5) return true;
    const int digits = 2 << (escape - 3);
    if (!read_hex(text_, at_, digits, code)) return expected({digits, " hexadecimal digits"});
    const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
    return (code <= grammar_detail::kLastCode && !surrogate) || expected({"a code point of Unicode"}, start);
  }

  const std::string& name_;
  std::string_view text_;
  size_t at_ = 0, undefined_ = SIZE_MAX;
  size_t counted_ = 0, line_ = 0, line_start_ = 0;  // of place(): the last one
  std::map<std::string, Name> rules_;
  GrammarBuilder builder_;
  std::string error_;
};

// Null with `error` set ("NAME:LINE:COLUMN: expected ..., found ...") if the text is no grammar, or too large.
inline std::shared_ptr<const Grammar> parse_gbnf(const std::string& name, std::string_view text, std::string& error) {
  return GbnfReader(name, text).read(error);
}

// ====================================================================================================================
// 5. States
// ====================================================================================================================

// The states of a grammar that texts have led to. A state is a set of parses; its number is valid until the states are
// dropped because they take too much memory. One thread at a time.
class GrammarStates {
 public:
  GrammarStates(const Grammar& grammar, size_t most_bytes) : grammar_(grammar), most_bytes_(most_bytes) {}

  // A state in a form that is always valid. Of each parse: the number of its frames, its node, and the node of each
  // frame, from the top.
  struct Saved {
    bool can_end = false;
    std::vector<uint32_t> parses;
  };

  Saved start() {
    clear_parses();
    visit(grammar_.starts_[grammar_.root_], kNone);
    return save(intern());
  }
  Saved save(int state) const {
    Saved saved = {states_[size_t(state)].can_end, {}};
    for_each_parse(state, [&](const Parse& p) {
      saved.parses.push_back(p.frame == kNone ? 0 : frames_[p.frame].depth);
      saved.parses.push_back(p.node);
      for (uint32_t f = p.frame; f != kNone; f = frames_[f].below) saved.parses.push_back(frames_[f].node);
    });
    return saved;
  }
  int restore(const Saved& saved) {
    clear_parses();
    ends_ = saved.can_end;
    for (size_t i = 0; i < saved.parses.size();) {
      const uint32_t depth = saved.parses[i], node = saved.parses[i + 1];
      uint32_t frame = kNone;
      for (uint32_t k = depth; k > 0; k--) frame = frame_of(saved.parses[i + 1 + k], frame);
      parses_.push_back({node, frame});
      i += 2 + depth;
    }
    return intern();
  }

  // The state that a byte leads to from the last of `path`; -1: none. May drop all states but those of `path`, which
  // then get other numbers.
  int next(std::vector<int>& path, uint8_t byte) {
    int& known = states_[size_t(path.back())].next[byte];
    if (known != kUnknown) return known;
    if (bytes() > most_bytes_ && states_.size() > 2 * path.size() + 16) drop(path);
    clear_parses();
    for_each_parse(path.back(), [&](const Parse& p) {
      for (uint32_t i = grammar_.nodes_[p.node].edges; i < grammar_.nodes_[p.node + 1].edges; i++) {
        const auto& e = grammar_.edges_[i];
        if (e.kind == grammar_detail::Edge::bytes && byte >= e.low && byte <= e.high) visit(e.target, p.frame);
      }
    });
    const int state = parses_.empty() && !ends_ ? -1 : intern();
    states_[size_t(path.back())].next[byte] = state;
    return state;
  }

  bool can_end(int state) const { return states_[size_t(state)].can_end; }
  bool can_continue(int state) const { return states_[size_t(state)].n_parses > 0; }
  // Increases when states are dropped.
  uint64_t generation() const { return generation_; }
  // An estimate of the memory of the states.
  size_t bytes() const {
    return states_.size() * (sizeof(State) + 48) + pool_.size() * sizeof(Parse) + frames_.size() * (sizeof(Frame) + 48);
  }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;
  static constexpr int kUnknown = -2;

  struct Frame {
    uint32_t node;   // where the call returns to
    uint32_t below;  // the next frame; kNone: the last one
    uint32_t depth;  // number of frames, with this one
  };
  // The node has an edge with bytes.
  struct Parse {
    uint32_t node, frame;
    bool operator==(const Parse& other) const { return node == other.node && frame == other.frame; }
  };
  struct State {
    uint32_t first, n_parses;  // of pool_
    bool can_end;
    int next[256];  // state after a byte; -1: none; kUnknown
  };

  template <class F> void for_each_parse(int state, const F& f) const {
    const uint32_t first = states_[size_t(state)].first, n = states_[size_t(state)].n_parses;
    for (uint32_t i = 0; i < n; i++) f(Parse(pool_[first + i]));
  }

  void clear_parses() {
    parses_.clear();
    seen_.clear();
    ends_ = false;
  }

  uint32_t frame_of(uint32_t node, uint32_t below) {
    const auto [it, is_new] = frame_index_.emplace(uint64_t(node) << 32 | below, uint32_t(frames_.size()));
    if (is_new) frames_.push_back({node, below, depth_of(below) + 1});
    return it->second;
  }
  uint32_t depth_of(uint32_t frame) const { return frame == kNone ? 0 : frames_[frame].depth; }

  // Appends the parses that a node leads to without a byte to parses_. The order is that of the edges, so that it
  // depends on the text only. A way that would need more than kDeepestStack frames is not taken.
  void visit(uint32_t node, uint32_t frame) {
    std::vector<Parse>& pending = pending_;
    pending.assign(1, {node, frame});
    while (!pending.empty() && parses_.size() < kMostParses && seen_.size() < kMostVisits) {
      const Parse p = pending.back();
      pending.pop_back();
      const auto& n = grammar_.nodes_[p.node];
      if (depth_of(p.frame) + n.height > kDeepestStack || !seen_.insert(uint64_t(p.node) << 32 | p.frame).second)
        continue;
      const uint32_t last = grammar_.nodes_[p.node + 1].edges;
      if (n.edges < last && grammar_.edges_[n.edges].kind == grammar_detail::Edge::bytes) parses_.push_back(p);
      if (n.end && p.frame == kNone) ends_ = true;
      if (n.end && p.frame != kNone) pending.push_back({frames_[p.frame].node, frames_[p.frame].below});
      for (uint32_t i = last; i-- > n.edges;) follow(grammar_.edges_[i], p.frame);
    }
  }

  void follow(const grammar_detail::Edge& e, uint32_t frame) {
    if (e.kind == grammar_detail::Edge::jump) pending_.push_back({e.target, frame});
    if (e.kind != grammar_detail::Edge::call) return;
    const auto& target = grammar_.nodes_[e.target];
    const bool returns = !target.end || target.edges < grammar_.nodes_[e.target + 1].edges;
    if (depth_of(frame) + target.height > kDeepestStack) return;
    const uint32_t start = grammar_.starts_[e.rule];
    if (depth_of(frame) + returns + grammar_.nodes_[start].height > kDeepestStack) return;
    pending_.push_back({start, returns ? frame_of(e.target, frame) : frame});
  }

  // The state with parses_ and ends_.
  int intern() {
    uint64_t hash = parses_.size() + (uint64_t(ends_) << 63);
    for (const Parse& p : parses_) hash = (hash ^ p.node) * 0x9E3779B97F4A7C15 + (hash >> 31) + p.frame;
    const auto same = index_.equal_range(hash);
    for (auto it = same.first; it != same.second; ++it) {
      const State& s = states_[size_t(it->second)];
      if (s.can_end == ends_ && s.n_parses == parses_.size() &&
          std::equal(parses_.begin(), parses_.end(), pool_.begin() + s.first))
        return it->second;
    }
    State s;
    s.first = uint32_t(pool_.size());
    s.n_parses = uint32_t(parses_.size());
    s.can_end = ends_;
    std::fill(s.next, s.next + 256, kUnknown);
    pool_.insert(pool_.end(), parses_.begin(), parses_.end());
    states_.push_back(s);
    index_.emplace(hash, int(states_.size() - 1));
    return int(states_.size() - 1);
  }

  void drop(std::vector<int>& keep) {
    std::vector<Saved> saved;
    for (const int state : keep) saved.push_back(save(state));
    states_.clear();
    pool_.clear();
    frames_.clear();
    index_.clear();
    frame_index_.clear();
    generation_++;
    for (size_t i = 0; i < keep.size(); i++) keep[i] = restore(saved[i]);
  }

  const Grammar& grammar_;
  const size_t most_bytes_;
  uint64_t generation_ = 1;
  std::vector<State> states_;
  std::vector<Parse> pool_;
  std::vector<Frame> frames_;
  std::unordered_multimap<uint64_t, int> index_;        // states by hash
  std::unordered_map<uint64_t, uint32_t> frame_index_;  // by node and frame below
  std::vector<Parse> parses_;                           // of the state that is computed
  bool ends_ = false;                                   // ... whether the text may end there
  std::unordered_set<uint64_t> seen_;                   // ... node and frame
  std::vector<Parse> pending_;                          // of visit()
};

inline bool Grammar::matches(std::string_view text) const {
  GrammarStates states(*this, kGrammarCacheBytes);
  std::vector<int> path = {states.restore(states.start())};
  for (const char c : text) {
    const int next = states.next(path, uint8_t(c));
    if (next < 0) return false;
    path[0] = next;
  }
  return states.can_end(path[0]);
}

// ====================================================================================================================
// 6. Vocabularies
// ====================================================================================================================

// The bytes of a token in the middle of a text; of a control token, its name.
inline std::string token_bytes(const Tokenizer& tokenizer, int id) {
  std::string piece(tokenizer.piece(id));
  if (tokenizer.kind() == Tokenizer::Kind::byte_level) return piece;
  if (tokenizer.type(id) == Tokenizer::PieceType::byte) return {char(tokenizer_detail::byte_value(piece))};
  const std::string mark = tokenizer_detail::kSpaceMark;
  for (size_t at = 0; (at = piece.find(mark, at)) != std::string::npos; at++) piece.replace(at, mark.size(), " ");
  return piece;
}

// Whether the next token of a stream begins its text: a SentencePiece tokenizer then drops the space that it adds.
inline bool at_text_start(const Tokenizer& tokenizer, const Tokenizer::Stream& stream) {
  if (tokenizer.kind() != Tokenizer::Kind::sentencepiece) return false;
  for (int id = 0; id < tokenizer.size(); id++) {
    const std::string bytes = token_bytes(tokenizer, id);
    if (tokenizer.type(id) != Tokenizer::PieceType::normal || bytes[0] != ' ') continue;
    Tokenizer::Stream copy = stream;
    copy.push(tokenizer.bos());  // the end of an incomplete character is not the text of the token
    return copy.push(id) != bytes;
  }
  return false;
}

// The texts of tokens as a tree: texts that begin alike share nodes.
class TokenTrie {
 public:
  // In the order of a walk that visits a node before its children.
  struct Node {
    uint32_t depth;   // length of the text
    uint32_t after;   // the first node that does not continue this text
    uint32_t tokens;  // the first token with this text: they end where those of the next node begin
    uint8_t byte;     // the last one of the text
  };

  // Tokens with an empty text are left out.
  explicit TokenTrie(const std::vector<std::string>& texts) {
    std::vector<uint32_t> order;
    for (uint32_t id = 0; id < texts.size(); id++)
      if (!texts[id].empty()) order.push_back(id);
    std::sort(order.begin(), order.end(),
              [&](uint32_t a, uint32_t b) { return texts[a] != texts[b] ? texts[a] < texts[b] : a < b; });
    std::vector<uint32_t> path;  // nodes of the last text
    const std::string* last = nullptr;
    for (const uint32_t id : order) {
      const std::string& text = texts[id];
      size_t same = 0;
      while (last && same < std::min(last->size(), text.size()) && (*last)[same] == text[same]) same++;
      for (; path.size() > same; path.pop_back()) nodes_[path.back()].after = uint32_t(nodes_.size());
      for (size_t i = same; i < text.size(); i++) {
        path.push_back(uint32_t(nodes_.size()));
        nodes_.push_back({uint32_t(i + 1), 0, uint32_t(tokens_.size()), uint8_t(text[i])});
      }
      tokens_.push_back(id);
      last = &text;
    }
    for (const uint32_t n : path) nodes_[n].after = uint32_t(nodes_.size());
    nodes_.push_back({0, 0, uint32_t(tokens_.size()), 0});  // no node: it ends the tokens
  }

  size_t size() const { return nodes_.size() - 1; }
  const Node& operator[](size_t i) const { return nodes_[i]; }
  // Calls f(id) for the tokens with the text of a node.
  template <class F> void each_token(size_t node, const F& f) const {
    for (uint32_t i = nodes_[node].tokens; i < nodes_[node + 1].tokens; i++) f(tokens_[i]);
  }

 private:
  std::vector<Node> nodes_;
  std::vector<uint32_t> tokens_;
};

// The texts of the tokens of a model. Immutable: any threads may share it.
class Vocabulary {
 public:
  // vocab_size: of the logits, which may be more than the tokenizer has.
  Vocabulary(const Tokenizer& tokenizer, int vocab_size)
      : size_(vocab_size),
        texts_(make_texts(tokenizer, vocab_size, false)),
        first_texts_(make_texts(tokenizer, vocab_size, true)),
        trie_(texts_),
        first_trie_(first_texts_ == texts_ ? nullptr : std::make_unique<TokenTrie>(first_texts_)) {}

  int size() const { return size_; }
  // The bytes that a token adds to a text. "": it cannot be a part of one (control, unknown and unused tokens, and those
  // that would add nothing). at_start: at the beginning of a text, see at_text_start().
  const std::string& text(int id, bool at_start) const { return (at_start ? first_texts_ : texts_)[size_t(id)]; }
  const TokenTrie& trie(bool at_start) const { return at_start && first_trie_ ? *first_trie_ : trie_; }

 private:
  static std::vector<std::string> make_texts(const Tokenizer& tokenizer, int vocab_size, bool at_start) {
    using Type = Tokenizer::PieceType;
    std::vector<std::string> texts(static_cast<size_t>(vocab_size));
    const bool bytes_only = tokenizer.kind() == Tokenizer::Kind::byte_level;
    for (int id = 0; id < std::min(vocab_size, tokenizer.size()); id++) {
      const Type type = tokenizer.type(id);
      if (type == Type::control || type == Type::unknown || type == Type::unused) continue;
      std::string text = token_bytes(tokenizer, id);
      // The stream replaces parts of characters, unless they are byte pieces.
      if (!bytes_only && type != Type::byte && !is_utf8(text)) continue;
      if (!bytes_only && type != Type::byte && at_start) text = Tokenizer::Stream(tokenizer).push(id);
      texts[size_t(id)] = std::move(text);
    }
    return texts;
  }

  static bool is_utf8(std::string_view text) {
    while (!text.empty()) {
      const auto c = tokenizer_detail::read_utf8(text);
      if (c.state != tokenizer_detail::Utf8::whole) return false;
      text.remove_prefix(c.length);
    }
    return true;
  }

  int size_;
  std::vector<std::string> texts_, first_texts_;  // first: at the start of a text
  TokenTrie trie_;
  std::unique_ptr<TokenTrie> first_trie_;  // null: the same
};

// ====================================================================================================================
// 7. Constraints
// ====================================================================================================================

// A grammar over the tokens of a vocabulary, with a cache of states and masks, which is bounded. Any threads may share
// it; they take turns.
class TokenGrammar {
 public:
  TokenGrammar(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const Vocabulary> vocabulary,
               size_t cache_bytes = kGrammarCacheBytes)
      : grammar_(std::move(grammar)),
        vocabulary_(std::move(vocabulary)),
        cache_bytes_(cache_bytes),
        states_(*grammar_, cache_bytes / 2) {}

  const Vocabulary& vocabulary() const { return *vocabulary_; }

 private:
  friend class Constraint;
  using Bits = std::vector<uint64_t>;  // a bit per token

  // A state of a text.
  struct Place {
    std::shared_ptr<const GrammarStates::Saved> saved;
    uint64_t generation = 0;  // of the number
    int number = -1;
    bool can_end = false, can_continue = false;
  };

  Place start() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return place(states_.restore(states_.start()));
  }

  // Follows a text. False, and the place is unchanged, if the grammar has no such text.
  bool follow(Place& at, std::string_view text, bool move) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<int> path = {number(at)};
    for (const char c : text) {
      const int next = states_.next(path, uint8_t(c));
      if (next < 0) return false;
      path[0] = next;
    }
    if (move) at = place(path[0]);
    return true;
  }

  // Whether any token is allowed.
  bool any(const Place& at, bool at_start) {
    const std::lock_guard<std::mutex> lock(mutex_);
    bool found = false;
    walk(number(at), at_start, [&](uint32_t) {
      found = true;
      return false;
    });
    return found;
  }

  // Sets disallowed logits to -infinity, except those of `kept`. Returns whether a token of the vocabulary is left.
  bool mask(const Place& at, bool at_start, const std::vector<int>& kept, float* logits, int n) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Bits& bits = bits_of(number(at), at_start);
    uint64_t any = 0;
    for (const uint64_t word : bits) any |= word;
    std::vector<std::pair<int, float>> values;
    for (const int id : kept)
      if (id >= 0 && id < n) values.push_back({id, logits[id]});
    for (int id = 0; id < n; id++)
      if (id >= vocabulary_->size() || !(bits[size_t(id) / 64] >> (id % 64) & 1)) logits[id] = -HUGE_VALF;
    for (const auto& [id, value] : values) logits[id] = value;
    return any != 0;
  }

  // ---- With the lock ----

  int number(const Place& at) { return at.generation == states_.generation() ? at.number : states_.restore(*at.saved); }
  Place place(int number) const {
    return {std::make_shared<const GrammarStates::Saved>(states_.save(number)), states_.generation(), number,
            states_.can_end(number), states_.can_continue(number)};
  }

  // Calls f(id) for the tokens that are allowed in a state, while it returns true. Returns the number of the state, which
  // changes if states were dropped.
  template <class F> int walk(int state, bool at_start, const F& f) {
    const TokenTrie& trie = vocabulary_->trie(at_start);
    std::vector<int> path = {state};
    bool more = true;
    for (size_t i = 0; i < trie.size() && more;) {
      path.resize(trie[i].depth);
      const int next = states_.next(path, trie[i].byte);
      if (next < 0) {
        i = trie[i].after;
        continue;
      }
      trie.each_token(i, [&](uint32_t id) { more = more && f(id); });
      path.push_back(next);
      i++;
    }
    return path[0];
  }

  const Bits& bits_of(int state, bool at_start) {
    const auto key = [&] { return uint64_t(state) << 1 | at_start; };
    if (masks_generation_ == states_.generation() && masks_.count(key()) > 0) return masks_[key()];
    Bits bits(size_t(vocabulary_->size() + 63) / 64);
    state = walk(state, at_start, [&](uint32_t id) {
      bits[id / 64] |= uint64_t(1) << (id % 64);
      return true;
    });
    const size_t bytes = 8 * bits.size() + 64;
    if (masks_generation_ != states_.generation() || (masks_.size() + 1) * bytes > cache_bytes_ / 2) masks_.clear();
    masks_generation_ = states_.generation();
    return masks_[key()] = std::move(bits);
  }

  std::shared_ptr<const Grammar> grammar_;
  std::shared_ptr<const Vocabulary> vocabulary_;
  const size_t cache_bytes_;
  std::mutex mutex_;
  GrammarStates states_;
  std::unordered_map<uint64_t, Bits> masks_;  // by state and at_start
  uint64_t masks_generation_ = 0;
};

// A reply in progress. One thread at a time; cheap to copy.
class Constraint {
 public:
  // end_ids: tokens that end the reply. at_start: the reply begins a text, see at_text_start().
  Constraint(std::shared_ptr<TokenGrammar> grammar, std::vector<int> end_ids, bool at_start)
      : grammar_(std::move(grammar)), end_ids_(std::move(end_ids)), at_start_(at_start), place_(grammar_->start()) {}

  // Whether a token may come next. One that ends the reply may if can_end().
  bool allows(int id) const { return follow(id, false); }

  // Appends a token. False, and nothing changes, if it is not allowed.
  bool accept(int id) {
    if (!follow(id, true)) return false;
    if (is_end(id)) ended_ = true;
    at_start_ = false;
    return true;
  }

  // Sets the logits (n,) of tokens that are not allowed to -infinity. Returns false if no token is allowed.
  bool mask(float* logits, int n) const {
    static const std::vector<int> kNoIds;
    const bool ends = can_end() && !ended_;
    if (ended_) {
      std::fill(logits, logits + n, -HUGE_VALF);
      return false;
    }
    const bool some = grammar_->mask(place_, at_start_, ends ? end_ids_ : kNoIds, logits, n);
    if (!ends)
      for (const int id : end_ids_)
        if (id >= 0 && id < n) logits[id] = -HUGE_VALF;
    return some || (ends && std::any_of(end_ids_.begin(), end_ids_.end(), [n](int id) { return id >= 0 && id < n; }));
  }

  // Whether the text so far is complete.
  bool can_end() const { return place_.can_end; }
  // Whether it is, and nothing can follow: the reply ends here, also without a token that ends it.
  bool must_end() const { return can_end() && (ended_ || !can_continue()); }
  // Whether the text is not complete, and no token of the vocabulary continues it.
  bool stuck() const { return !can_end() && !can_continue(); }

 private:
  bool is_end(int id) const { return std::find(end_ids_.begin(), end_ids_.end(), id) != end_ids_.end(); }
  bool can_continue() const { return place_.can_continue && !ended_ && grammar_->any(place_, at_start_); }

  bool follow(int id, bool move) const {
    if (ended_ || id < 0) return false;
    if (is_end(id)) return can_end();
    if (id >= grammar_->vocabulary().size()) return false;
    const std::string& text = grammar_->vocabulary().text(id, at_start_);
    return !text.empty() && grammar_->follow(place_, text, move);
  }

  std::shared_ptr<TokenGrammar> grammar_;
  std::vector<int> end_ids_;
  bool at_start_;
  bool ended_ = false;  // by a token that ends it
  mutable TokenGrammar::Place place_;
};

// Picks the next token, and appends it to the constraint and to the tokens that the sampler remembers. The sampler picks
// from all tokens first; if its choice is not allowed, it picks again, with the next random number, from the allowed
// ones. Without top-k, top-p and min-p, this is the distribution of picking from the allowed tokens at once: the second
// pick shares out the probability of the disallowed ones in proportion. With them, a token in the first selection keeps
// at least its probability there, and the rest goes to the selection from the allowed tokens. Whether a token takes one
// random number or two follows from the logits, so that the same seed gives the same text. logits: (n,). Returns -1 if
// no token is allowed (stuck()), if all that are have a logit of -infinity, or if there is no memory.
inline int sample_allowed(Sampler& sampler, Constraint& constraint, const float* logits, int n) try {
  int id = sampler.sample(logits, n);
  if (id >= 0 && !constraint.allows(id)) {
    std::vector<float> masked(logits, logits + n);
    if (!constraint.mask(masked.data(), n)) return -1;
    id = sampler.sample(masked.data(), n);
  }
  return constraint.accept(id) ? sampler.remember(id) : -1;
} catch (const std::bad_alloc&) {
  return -1;
}

}  // namespace pocket
