// pocketllama.cpp: the C interface of pocketllama.h around the engine. No C++ type and no exception crosses it.
#include "pocketllama.h"

#include <map>
#include <mutex>
#include <optional>

#include "../../export/adapter.hpp"
#include "../../export/model_texts.hpp"

namespace {

using namespace pocket;

// ---- Errors ----

// The error of this thread. An array, since it must outlive all destructors, and storing an error must not fail.
thread_local char last_error[1024];

void set_last_error(const std::string& why) {
  const std::string line = one_line(why);
  size_t n = std::min(line.size(), sizeof last_error - 1);
  while (n < line.size() && n > 0 && (uint8_t(line[n]) & 0xC0) == 0x80) n--;  // no half a character
  std::memcpy(last_error, line.data(), n);
  last_error[n] = 0;
}

// A failure of a call, thrown up to guarded().
[[noreturn]] void fail(const std::string& why) { throw std::runtime_error(why); }

// Calls f, whose exceptions become the error of this thread and the result `failed`.
template <class Result, class F> Result guarded(Result failed, const F& f) noexcept {
  try {
    try {
      return f();
    } catch (const std::bad_alloc&) {
      std::strcpy(last_error, "out of memory");
    } catch (const std::exception& e) {
      set_last_error(e.what());
    }
  } catch (...) {  // no memory for the error, or an exception of a callback in C++
    std::strcpy(last_error, "out of memory");
  }
  return failed;
}

// Whether no argument is null. Keeps an error that is set: it is the reason why a handle is null.
template <class... Pointers> bool present(const Pointers*... pointers) {
  const bool all = (... && pointers);
  if (!all && !last_error[0]) std::strcpy(last_error, "expected an argument, found NULL");
  return all;
}

// ---- The contents of handles ----

struct OpenModel {
  Model model;
  Tokenizer tokenizer;
  ChatTemplate chat;
  std::string provenance;

  OpenModel(const std::string& path, Load load) {
    if (!model.open(path.c_str(), load)) fail(model.error);
    read(path);
  }
  OpenModel(const void* data, size_t bytes) {
    if (!model.open_memory(data, bytes)) fail(model.error);
    read("memory");
  }

  void read(const std::string& path) {
    if (!tokenizer.load(model.tokenizer_bytes())) fail(path + ": " + tokenizer.error);
    if (std::string error; !load_chat_template(model, tokenizer, chat, error)) fail(path + ": " + error);
    provenance = std::string(model.provenance());
  }

  // The ids of a text that must fit `room` tokens. A text far too long is refused before it is encoded.
  std::vector<int> encode(const char* text, bool bos, size_t room) const {
    const size_t least = tokenizer.least_ids(text);
    if (least > room) fail(concat("text: at least ", least, " tokens, but the context has room for ", room));
    return ids_of(tokenizer, text, bos);
  }
};

using SharedModel = std::shared_ptr<const OpenModel>;

// An adapter whose files stay open. Its factors are in memory for the scale of the last session, and for the scales of
// all sessions that exist: these share them.
class OpenAdapter {
 public:
  const SharedModel open;
  const std::string folder;

  OpenAdapter(SharedModel model, const char* name) : open(std::move(model)), folder(name) {
    std::string error;
    if (!check_adapters_allowed(open->model, error)) fail(error);
    if (!file_.open({folder, 1}, open->model.config)) fail(file_.error);
    scaled(1);  // checks that it may be attached
  }

  std::shared_ptr<const LoadedAdapter> scaled(double scale) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    last_ = loaded_[scale].lock();
    if (!last_) {
      const auto made = std::make_shared<LoadedAdapter>();
      if (!made->add(file_, {folder, scale}, open->model)) fail(made->error);
      loaded_[scale] = last_ = made;
    }
    for (auto at = loaded_.begin(); at != loaded_.end();) at = at->second.expired() ? loaded_.erase(at) : std::next(at);
    return last_;
  }

 private:
  LoraAdapter file_;
  mutable std::mutex mutex_;  // of what follows
  mutable std::map<double, std::weak_ptr<const LoadedAdapter>> loaded_;
  mutable std::shared_ptr<const LoadedAdapter> last_;
};

}  // namespace

struct pocket_model {
  SharedModel open;
};

struct pocket_adapter {
  std::shared_ptr<const OpenAdapter> open;
};

namespace {

// The adapters of a session and of its forks, in their order.
class SessionAdapters {
 public:
  SessionAdapters(const SharedModel& model, const pocket_scaled_adapter* adapters, int n) {
    for (int i = 0; i < n; i++) {
      const OpenAdapter& adapter = *adapters[i].adapter->open;
      if (adapter.open != model) fail(concat("adapters[", i, "]: expected an adapter of this model, found another's"));
      if (!std::isfinite(adapters[i].scale))
        fail(concat("adapters[", i, "]: scale: expected a finite number, found ", adapters[i].scale));
      parts_.push_back(adapter.scaled(adapters[i].scale));
      if (!all_.share(*parts_.back(), adapter.folder, model->model)) fail(all_.error);
    }
  }
  const Adapter* get() const { return parts_.empty() ? nullptr : &all_.adapter(); }

 private:
  std::vector<std::shared_ptr<const LoadedAdapter>> parts_;
  LoadedAdapter all_;
};

}  // namespace

// The engine's session has processed the tokens before its position().
struct pocket_session {
  SharedModel open;
  std::shared_ptr<const SessionAdapters> adapters;
  SessionOptions options;
  Session session;
  Sampler sampler;
  Tokenizer::Stream stream;       // the text of the tokens so far, or of the reply
  std::vector<int> ids;           // all tokens
  size_t remembered = 0;          // tokens that the sampler knows
  const float* logits = nullptr;  // of the last token that was processed; null: not known
  bool reply = false;             // the text is a reply in a chat
  std::string piece;              // the text of the last generated token

  // o.adapter: that of `attached`.
  pocket_session(SharedModel model, std::shared_ptr<const SessionAdapters> attached, const SessionOptions& o)
      : open(std::move(model)),
        adapters(std::move(attached)),
        options(o),
        session(open->model, o),
        stream(open->tokenizer) {
    if (!session.error.empty()) fail(session.error);
  }

  size_t context() const { return size_t(session.context()); }
  size_t room() const { return context() - std::min(context(), ids.size()); }

  int append(const std::vector<int>& more) {
    for (const int id : more)
      if (id < 0 || id >= session.vocab_size())
        fail(concat("id: expected 0 to ", session.vocab_size() - 1, ", found ", id));
    if (more.size() > room())
      fail(concat("text: ", more.size(), " tokens, but the context has room for ", room(),
                  "; shorten it, or start a session with a larger context"));
    ids.reserve(ids.size() + more.size());
    for (const int id : more) {
      printed_text(open->tokenizer, stream, id);
      ids.push_back(id);
    }
    return int(ids.size());
  }

  // Processes the next n appended tokens, or all that are left. After a cancel, the chunks that are complete remain.
  void process(size_t n) {
    size_t position = size_t(session.position());
    const size_t end = position + std::min(n, ids.size() - position);
    for (; position < end; position = size_t(session.position())) {
      logits = session.forward(ids.data() + position, std::min(end - position, size_t(kChunk)));
      if (!logits) fail(session.error);
    }
  }

  const float* process_all() {
    if (ids.empty()) fail("the session is empty; append a text first");
    if (!logits && size_t(session.position()) == ids.size()) session.rewind(session.position() - 1);
    process(ids.size());
    return logits;
  }

  void rewind(size_t position) {
    if (position >= ids.size()) return;
    session.rewind(int(position));
    if (position == 0) session.reset();
    ids.resize(position);
    logits = nullptr;
    for (size_t i = kRepeatWindow; i > 0; i--) sampler.remember(i > position ? -1 : ids[position - i]);
    remembered = position;
    if (position == 0) reply = false;
    stream = Tokenizer::Stream(open->tokenizer);
    for (const int id : ids) printed_text(open->tokenizer, stream, id);
  }

  // Chooses the next token. -1: the text ends here.
  int choose() {
    if (ids.size() > context()) return -1;
    const float* scores = process_all();
    for (; remembered < ids.size(); remembered++) sampler.remember(ids[remembered]);
    const int id = sampler(scores, session.vocab_size());
    if (id < 0) throw std::bad_alloc();
    const std::vector<int>& stops = reply ? open->chat.stop_ids : open->model.stop_ids;
    return std::find(stops.begin(), stops.end(), id) == stops.end() ? id : -1;
  }

  // Generates a token, with `piece` as its text. -1: the text has ended, and `piece` is the rest of it.
  int next() {
    if (ids.empty() && open->tokenizer.bos() >= 0) append({open->tokenizer.bos()});
    const int id = choose();
    piece = id < 0 ? printed_rest(stream) : printed_text(open->tokenizer, stream, id);
    if (id < 0) return id;
    ids.push_back(id);
    remembered = ids.size();
    return id;
  }
};

namespace {

SessionOptions session_options(const pocket_options& o) {
  const auto check = [](const char* field, int value, int most) {
    if (value < 0 || value > most) fail(concat(field, ": expected 0 to ", most, ", found ", value));
  };
  check("context", o.context, kMaxContext);
  check("threads", o.threads, 256);
  check("kv_f32", o.kv_f32, 1);
  return {o.context, o.threads, o.kv_f32 ? KvType::f32 : KvType::automatic};
}

SamplerOptions sampler_options(const pocket_sampling& s) {
  const auto check = [](const char* field, float value, float most) {
    if (!(value >= 0 && value <= most)) fail(concat(field, ": expected 0 to ", most, ", found ", value));
  };
  check("temperature", s.temperature, 100);
  check("top_p", s.top_p, 1);
  check("min_p", s.min_p, 1);
  check("repeat_penalty", s.repeat_penalty, 100);
  if (s.repeat_penalty == 0) fail("repeat_penalty: expected more than 0, found 0");
  if (s.top_k < 0) fail(concat("top_k: expected 0 or more, found ", s.top_k));
  return {s.temperature, s.top_p, s.seed, s.top_k, s.min_p, s.repeat_penalty};
}

}  // namespace

int pocket_api_version(void) { return POCKET_API_VERSION; }

const char* pocket_error(void) { return last_error; }

pocket_model* pocket_model_open(const char* path, unsigned flags) {
  return guarded<pocket_model*>(nullptr, [&] {
    if (!path) fail("path: expected a file name, found NULL");
    if (flags > POCKET_COPY) fail(concat("flags: expected 0 or POCKET_COPY, found ", flags));
    auto model = std::make_unique<pocket_model>();
    model->open = std::make_shared<OpenModel>(path, flags & POCKET_COPY ? Load::copy : Load::map);
    return model.release();
  });
}

pocket_model* pocket_model_open_memory(const void* data, size_t bytes) {
  return guarded<pocket_model*>(nullptr, [&] {
    if (!data) fail("data: expected the bytes of a model file, found NULL");
    auto model = std::make_unique<pocket_model>();
    model->open = std::make_shared<OpenModel>(data, bytes);
    return model.release();
  });
}

void pocket_model_free(pocket_model* model) { delete model; }

int pocket_model_info(const pocket_model* model, pocket_info* info) {
  if (!present(model, info)) return -1;
  const OpenModel& open = *model->open;
  const Config& c = open.model.config;
  *info = {c.vocab_size,
           c.max_seq_len,
           c.dim,
           c.hidden_dim,
           c.n_layers,
           c.n_heads,
           c.n_kv_heads,
           c.head_dim,
           open.tokenizer.bos(),
           open.chat.known(),
           open.model.file_bytes,
           open.model.checksum(),
           open.provenance.c_str()};
  return 0;
}

int pocket_self_test(const pocket_model* model, const char* kernel) {
  return guarded(-1, [&] {
    if (!present(model)) return -1;
    const Model& file = model->open->model;
    int count = 0;
    for (const std::string& name : kernel_names()) {
      if (file.self_test_ids.empty() || (kernel && name != kernel)) continue;
      Session session(file, {int(file.self_test_ids.size()), 1, KvType::automatic, name.c_str()});
      const float* logits = session.forward(file.self_test_ids.data(), file.self_test_ids.size());
      if (!logits) fail(session.error);
      if (hash_logits(logits, session.vocab_size()) != file.self_test_hash)
        fail(concat("kernel ", name, ": logits do not match the self-test hash; please report this CPU"));
      count++;
    }
    return count;
  });
}

int pocket_encode(const pocket_model* model, const char* text, int bos, int32_t* ids, int capacity) {
  return guarded(-1, [&] {
    if (!present(model, text)) return -1;
    const std::vector<int> all = model->open->encode(text, bos != 0, size_t(std::numeric_limits<int>::max()));
    if (ids) std::copy_n(all.begin(), std::min(all.size(), size_t(std::max(capacity, 0))), ids);
    return int(all.size());
  });
}

int64_t pocket_decode(const pocket_model* model, const int32_t* ids, int n, char* text, size_t capacity) {
  return guarded<int64_t>(-1, [&]() -> int64_t {
    if (!present(model) || (n > 0 && !present(ids))) return -1;
    const Tokenizer& tokenizer = model->open->tokenizer;
    Tokenizer::Stream stream(tokenizer);
    std::string all;
    for (int i = 0; i < n; i++) {
      if (ids[i] < 0 || ids[i] >= model->open->model.config.vocab_size)
        fail(concat("id: expected 0 to ", model->open->model.config.vocab_size - 1, ", found ", ids[i]));
      all += printed_text(tokenizer, stream, ids[i]);
    }
    all += printed_rest(stream);
    if (text) std::memcpy(text, all.data(), std::min(all.size(), capacity));
    return int64_t(all.size());
  });
}

pocket_adapter* pocket_adapter_open(pocket_model* model, const char* folder) {
  return guarded<pocket_adapter*>(nullptr, [&]() -> pocket_adapter* {
    if (!present(model)) return nullptr;
    if (!folder) fail("folder: expected the name of a folder, found NULL");
    auto adapter = std::make_unique<pocket_adapter>();
    adapter->open = std::make_shared<OpenAdapter>(model->open, folder);
    return adapter.release();
  });
}

void pocket_adapter_free(pocket_adapter* adapter) { delete adapter; }

pocket_session* pocket_session_new(pocket_model* model, const pocket_options* options) {
  return pocket_session_new_with_adapters(model, options, nullptr, 0);
}

pocket_session* pocket_session_new_with_adapters(pocket_model* model, const pocket_options* options,
                                                 const pocket_scaled_adapter* adapters, int n) {
  return guarded<pocket_session*>(nullptr, [&]() -> pocket_session* {
    if (!present(model) || (n > 0 && !present(adapters))) return nullptr;
    for (int i = 0; i < n; i++)
      if (!present(adapters[i].adapter)) return nullptr;
    SessionOptions all = session_options(options ? *options : pocket_options{});
    auto attached = std::make_shared<SessionAdapters>(model->open, adapters, n);
    all.adapter = attached->get();
    return std::make_unique<pocket_session>(model->open, std::move(attached), all).release();
  });
}

pocket_session* pocket_session_fork(const pocket_session* session) {
  return guarded<pocket_session*>(nullptr, [&]() -> pocket_session* {
    if (!present(session)) return nullptr;
    auto copy = std::make_unique<pocket_session>(session->open, session->adapters, session->options);
    if (!copy->session.fork(session->session, session->session.position())) fail(copy->session.error);
    copy->sampler = session->sampler;
    copy->stream = session->stream;
    copy->ids = session->ids;
    copy->remembered = session->remembered;
    copy->reply = session->reply;
    return copy.release();
  });
}

void pocket_session_free(pocket_session* session) { delete session; }

int pocket_set_sampling(pocket_session* session, const pocket_sampling* sampling) {
  return guarded(-1, [&] {
    if (!present(session)) return -1;
    const pocket_sampling defaults = POCKET_SAMPLING;
    session->sampler = Sampler(sampler_options(sampling ? *sampling : defaults));
    session->remembered = session->ids.size() - std::min(session->ids.size(), kRepeatWindow);
    return 0;
  });
}

int pocket_append(pocket_session* session, const int32_t* ids, int n) {
  return guarded(-1, [&] {
    if (!present(session) || (n > 0 && !present(ids))) return -1;
    return session->append(n > 0 ? std::vector<int>(ids, ids + n) : std::vector<int>());
  });
}

int pocket_append_text(pocket_session* session, const char* text) {
  return guarded(-1, [&] {
    if (!present(session, text)) return -1;
    return session->append(session->open->encode(text, session->ids.empty(), session->room()));
  });
}

int pocket_append_message(pocket_session* session, const char* system, const char* message) {
  return guarded(-1, [&] {
    if (!present(session, message)) return -1;
    const ChatTemplate& chat = session->open->chat;
    const bool first = session->ids.empty();
    const std::string prompt = first && system ? system : "";
    if (!chat.known()) fail("the model has no chat template: it was not trained on conversations");
    if (!chat.takes(prompt)) fail("the chat template does not take this system prompt");
    const Encode encode = [&](std::string_view text, bool bos) {
      return session->open->encode(std::string(text).c_str(), bos, session->room());
    };
    session->append(encode_parts(chat_parts(chat, prompt, message, first), encode, first));
    session->stream = Tokenizer::Stream(session->open->tokenizer);
    session->reply = true;
    return int(session->ids.size());
  });
}

int pocket_process(pocket_session* session, int n) {
  return guarded(-1, [&] {
    if (!present(session)) return -1;
    const size_t all = session->ids.size();
    session->process(n > 0 ? size_t(n) : all);
    return int(all) - session->session.position();
  });
}

const float* pocket_logits(pocket_session* session) {
  return guarded<const float*>(nullptr, [&] { return present(session) ? session->process_all() : nullptr; });
}

int pocket_next(pocket_session* session, int32_t* id, const char** text, size_t* bytes) {
  return guarded(-1, [&] {
    if (!present(session, id, text, bytes)) return -1;
    *id = session->next();
    *text = session->piece.data();
    *bytes = session->piece.size();
    return *id >= 0 ? 1 : 0;
  });
}

int pocket_generate(pocket_session* session, int n, pocket_on_text on_text, void* user) {
  return guarded(-1, [&] {
    if (!present(session)) return -1;
    int count = 0;
    for (bool more = true; more && (n <= 0 || count < n);) {
      const int id = session->next();
      const std::string& text = session->piece;
      more = id >= 0;
      count += more;
      if (on_text && (more || !text.empty())) more &= on_text(text.data(), text.size(), id, user) == 0;
    }
    return count;
  });
}

const char* pocket_kernel(const pocket_session* session) { return present(session) ? session->session.kernel() : ""; }

int pocket_position(const pocket_session* session) { return present(session) ? int(session->ids.size()) : -1; }

int pocket_rewind(pocket_session* session, int position) {
  return guarded(-1, [&] {
    if (!present(session)) return -1;
    if (position < 0 || size_t(position) > session->ids.size())
      fail(concat("position: expected 0 to ", session->ids.size(), ", found ", position));
    session->rewind(size_t(position));
    return int(session->ids.size());
  });
}

void pocket_cancel(pocket_session* session) {
  if (session) session->session.cancel();
}
