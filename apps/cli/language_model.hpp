// language_model.hpp: the interface between the command line and a model. llama.hpp and megabyte.hpp implement it, and
// open_model.hpp chooses one by the file. The rest of the command line uses this interface only.
#pragma once

#include "../../export/describe_file.hpp"
#include "../../export/input_file.hpp"
#include "../../export/memory.hpp"
#include "perplexity.hpp"

namespace pocket::cli {

// A text that a model processes: its position in the context, and what the model keeps of the tokens before it.
// Functions with the names of pocket::Session have the same contract as there.
class TextSession {
 public:
  using EachLogits = Session::EachLogits;

  virtual ~TextSession() = default;

  virtual const float* forward(const int* ids, size_t n) = 0;
  virtual bool forward(const int* ids, size_t n, const EachLogits& each) = 0;
  virtual int position() const = 0;
  virtual int context() const = 0;
  virtual int vocab_size() const = 0;
  virtual void rewind(int position) = 0;
  virtual void cancel(bool stop = true) = 0;  // may be called by a signal handler
  virtual int threads() const = 0;
  virtual const char* kernel() const = 0;
  virtual const std::string& error() const = 0;
  virtual bool fail(const char* why) = 0;

  // The session whose KV cache --save and --resume copy; null: they are not supported.
  virtual Session* llama_session() { return nullptr; }
};

// The units of a text, for messages.
struct Unit {
  const char* singular;    // "token"
  const char* plural;      // "tokens"
  const char* per_second;  // "tok/s"
};

// An option that a model does not support, by the name in Arguments::given, and the reason.
struct UnsupportedOption {
  const char* name;
  const char* reason;
  int status = 1;  // exit status: 2 if it is another option, not the model, that excludes it
};

// An open model file. Constructors throw Failure.
class LanguageModel {
 public:
  virtual ~LanguageModel() = default;

  virtual std::unique_ptr<TextSession> open_session(const SessionOptions& options) const = 0;  // throws Failure
  // Memory of a session with `tokens` positions filled; the weights come first.
  virtual std::vector<MemoryItem> memory_of(const SessionOptions& options, int tokens) const = 0;

  // What sessions add to the weights; null: nothing.
  virtual const Adapter* adapter() const { return nullptr; }
  // What every model file has: stop ids, provenance, self-test, checksums.
  virtual ModelFile& file() = 0;
  virtual const Tokenizer& tokenizer() const = 0;
  // The layout of a conversation; null: the model has no turns.
  virtual ChatTemplate* chat_template() { return nullptr; }
  virtual void set_chat_template(ChatTemplate) {}
  virtual int vocab_size() const = 0;
  virtual int trained_context() const = 0;  // tokens
  virtual Unit unit() const { return {"token", "tokens", "tok/s"}; }
  virtual std::string description() const = 0;  // lines of --info
  virtual std::vector<UnsupportedOption> unsupported_options() const { return {}; }

  virtual std::vector<int> encode(std::string_view text, bool bos) const = 0;
  // Tokens of a prompt that starts a text. Throws Failure if there are none, and the model cannot start without one.
  virtual std::vector<int> encode_prompt(std::string_view text) const = 0;
  // A number of tokens that the text has at least, computed much faster than encode().
  virtual size_t least_tokens(std::string_view text) const { return tokenizer().least_ids(text); }
  // Tokens that have no meaning inside a text.
  virtual std::vector<int> forbidden_ids() const { return {}; }
  // Whether a context larger than trained_context() is possible.
  virtual bool can_extend_context() const { return true; }
  // Tokens of the longest text in a context. The last one is sampled from a full context, but not processed.
  virtual int longest_text(int context) const { return context + 1; }

  virtual size_t perplexity_window() const { return kPerplexityWindow; }
  // Line of --perplexity. tokens: of the whole text.
  virtual std::string perplexity_line(const Perplexity& p, size_t tokens) const {
    char line[160];
    std::snprintf(line, sizeof line, "perplexity %.4f +- %.4f (%.0f tokens of %zu)\n", p.value(), p.error(), p.count,
                  tokens);
    return line;
  }
};

// Adapts an engine's session (pocket::Session, or a class with the same functions) to TextSession.
template <class Engine> class SessionOf : public TextSession {
 public:
  // Throws Failure: status 2 for an unknown kernel, else 1.
  template <class Model> SessionOf(const Model& model, const SessionOptions& options) : session(model, options) {
    if (!session.error.empty()) throw Failure{session.error.rfind("kernel", 0) == 0 ? 2 : 1, session.error};
  }

  const float* forward(const int* ids, size_t n) override { return session.forward(ids, n); }
  bool forward(const int* ids, size_t n, const EachLogits& each) override { return session.forward(ids, n, each); }
  int position() const override { return session.position(); }
  int context() const override { return session.context(); }
  int vocab_size() const override { return session.vocab_size(); }
  void rewind(int position) override { session.rewind(position); }
  void cancel(bool stop = true) override { session.cancel(stop); }
  int threads() const override { return session.threads(); }
  const char* kernel() const override { return session.kernel(); }
  const std::string& error() const override { return session.error; }
  bool fail(const char* why) override { return session.fail(why); }

  Engine session;
};

// Number of parameters in millions, for description(). A tied output matrix is not counted.
inline double million_parameters(const std::vector<TensorSpec>& specs, bool tied = false) {
  uint64_t parameters = 0;
  for (const TensorSpec& spec : specs)
    if (!(tied && spec.name == "output")) parameters += uint64_t(spec.rows) * uint64_t(spec.cols);
  return double(parameters) / 1e6;
}

// Throws the Failure of a model file that cannot be opened. A file of another kind is described, with what to do.
[[noreturn]] inline void throw_open_failure(const std::string& path, const std::string& error) {
  std::string why;
  const platform::FileKind kind = platform::info_of(path).kind;
  if (kind == platform::FileKind::none)
    throw Failure{1, error + "; run models/get to list the models you can download" +
                         (path.find(' ') == path.npos ? "" : "; a text is given with -i")};
  if (kind == platform::FileKind::folder)  // which Windows does not open
    throw Failure{1, path + ": is a folder; convert a checkpoint in it: export/convert FOLDER -o model.bin"};
  const auto file = InputFile::open(path, why);
  uint8_t head[64];
  const size_t n = file ? size_t(std::min<uint64_t>(file->size(), sizeof head)) : 0;
  const bool other = n > 0 && file->read(0, head, n, why) && (n < 8 || std::memcmp(head, kMagic, 8) != 0);
  throw Failure{1, other ? path + ": magic: expected a pocketllama model, found " + describe_file(head, n) : error};
}

}  // namespace pocket::cli
