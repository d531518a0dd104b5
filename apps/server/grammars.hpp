// grammars.hpp: the grammars of requests with response_format or grammar, of which the last ones are kept: with them
// their masks of allowed tokens, which take most of the time.
#pragma once

#include <list>
#include <mutex>

#include "../grammar/json_schema.hpp"
#include "../openai/service.hpp"

namespace pocket::server {

class Grammars {
 public:
  explicit Grammars(const cli::Llama& model) : model_(model) {}

  // The grammar of a request; null: it has none. Throws Refusal.
  std::shared_ptr<TokenGrammar> find(const openai::Request& request) {
    if (request.format == openai::Format::text) return nullptr;
    if (const auto known = kept(request)) return known;
    const std::lock_guard one(compiling_);
    if (const auto known = kept(request)) return known;  // another request had the same grammar
    std::string error;
    const auto grammar = compile(request, error);
    if (!grammar) throw openai::Refusal{error, request.format_param, "invalid_grammar"};
    if (!vocabulary_) vocabulary_ = std::make_shared<Vocabulary>(model_.tokenizer(), model_.vocab_size());
    const auto tokens = std::make_shared<TokenGrammar>(grammar, vocabulary_, kCacheBytes);
    const std::lock_guard lock(mutex_);
    if (entries_.size() == kMost) entries_.pop_front();
    entries_.push_back({request.format, request.format_text, tokens});
    return tokens;
  }

 private:
  static constexpr size_t kMost = 8;
  static constexpr size_t kCacheBytes = 4 << 20;  // of a grammar
  struct Entry {
    openai::Format format;
    std::string text;
    std::shared_ptr<TokenGrammar> grammar;
  };

  // The grammar of an earlier request, which becomes the last used one; null: none has it.
  std::shared_ptr<TokenGrammar> kept(const openai::Request& request) {
    const std::lock_guard lock(mutex_);
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry)
      if (entry->format == request.format && entry->text == request.format_text) {
        entries_.splice(entries_.end(), entries_, entry);
        return entries_.back().grammar;
      }
    return nullptr;
  }

  static std::shared_ptr<const Grammar> compile(const openai::Request& request, std::string& error) {
    if (request.format == openai::Format::json_object) return json_grammar(JsonText::object, error);
    if (request.format == openai::Format::calls) return calls_grammar(request, error);
    return request.format == openai::Format::schema ? schema_grammar(request.format_param, request.format_text, error)
                                                    : parse_gbnf(request.format_param, request.format_text, error);
  }

  static std::shared_ptr<const Grammar> calls_grammar(const openai::Request& request, std::string& error) {
    std::vector<FramedSchema> calls;
    for (const openai::Tool& tool : request.format_calls)
      calls.push_back({"tools: parameters of " + tool.name, tool.parameters,
                       openai::before_arguments(request.tool_format, tool.name),
                       openai::after_arguments(request.tool_format)});
    const bool one = request.most_calls == 1;
    return framed_schemas_grammar(calls, "\n", one ? 1 : GrammarBuilder::kUnbounded, error);
  }

  const cli::Llama& model_;
  std::mutex compiling_;                          // held while a grammar is compiled: one at a time, for the memory
  std::shared_ptr<const Vocabulary> vocabulary_;  // made when it is needed first
  std::mutex mutex_;                              // of entries_
  std::list<Entry> entries_;                      // the last used one is the last
};

}  // namespace pocket::server
