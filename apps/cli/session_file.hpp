// session_file.hpp: --save and --resume: a file with the session, the text that it has heard, and what the next tokens
// depend on besides. saved_session.hpp says what is in it and checks it.
#ifndef POCKET_SESSION_FILE_HPP
#define POCKET_SESSION_FILE_HPP

#include "cli.hpp"
#include "saved_session.hpp"

namespace pocket::cli {

// What a session does not know, and its note keeps.
struct SavedText {
  std::vector<int> ids;       // all tokens of the text; the session has heard all but perhaps the last ones
  std::string held;           // text that was made but not printed, as it may begin a stop text
  uint64_t seed = 0;          // the sampler's ...
  uint64_t random_state = 0;  // ... and where its random numbers are

  std::string bytes() const {
    std::string out;
    const auto put = [&](const auto& value) { out.append(reinterpret_cast<const char*>(&value), sizeof value); };
    put(seed), put(random_state), put(uint64_t(ids.size()));
    for (const int id : ids) put(int32_t(id));
    return out + held;
  }

  // False unless these are the bytes of a text that a session of `heard` tokens can have.
  bool read(std::string_view bytes, int vocab_size, int heard) {
    ByteReader in{bytes};
    seed = in.get<uint64_t>(), random_state = in.get<uint64_t>();
    const uint64_t count = in.get<uint64_t>();
    if (!in.ok || count == 0 || count < uint64_t(heard) || count > in.bytes.size() / 4) return false;
    for (uint64_t i = 0; i < count; i++) {
      ids.push_back(in.get<int32_t>());
      if (ids.back() < 0 || ids.back() >= vocab_size) return false;
    }
    held = in.bytes;
    return true;
  }
};

// A saved session that is about to go on.
class SessionFile {
 public:
  // Checks what can be checked before there is a session. Throws Failure.
  SessionFile(const std::string& name, const Model& model) : name_(name) {
    const int fd = ::open(name.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st = {};
    if (fd < 0 || fstat(fd, &st) != 0) throw Failure{1, name + ": " + std::strerror(errno) + "; --save writes one"};
    file_.reset(fdopen(fd, "rb"));
    if (!S_ISREG(st.st_mode)) refuse("expected a saved session, found no regular file");
    bytes_ = uint64_t(st.st_size);
    if (bytes_ < sizeof head_) refuse("size: expected at least 64 bytes, found " + std::to_string(bytes_));
    if (!read(&head_, sizeof head_)) refuse(std::strerror(errno));
    const std::string why = session_refusal(head_, model);
    if (!why.empty()) refuse(why);
    std::rewind(file_.get());
  }

  // What the saved session had, unless the user wants it otherwise.
  void fill(SessionOptions& options) const {
    if (options.context == 0) options.context = int(head_.context);
    if (options.kv == KvType::automatic) options.kv = head_.kv_f32 ? KvType::f32 : KvType::q8;
  }

  // Throws Failure.
  SavedText restore(Session& session) {
    std::string note, error;
    const ReadBytes from_file = [&](void* data, size_t n) { return read(data, n); };
    if (!restore_session(session, bytes_, from_file, note, error)) refuse(error);
    SavedText text;
    if (!text.read(note, session.vocab_size(), session.position()))
      refuse("note: expected the text's tokens, found something else; another program saved this session");
    return text;
  }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  [[noreturn]] void refuse(const std::string& why) const { throw Failure{1, name_ + ": " + why}; }
  bool read(void* data, size_t n) { return std::fread(data, 1, n, file_.get()) == n; }

  std::string name_;
  std::unique_ptr<std::FILE, Close> file_;
  SavedSession head_ = {};
  uint64_t bytes_ = 0;
};

// Throws Failure.
inline void save(const Session& session, const SavedText& text, NewFile& file) {
  std::string error;
  const bool good = save_session(
      session, text.bytes(), [&](const void* p, size_t n) { return file.write(p, n); }, error);
  if (!good && file.good()) throw Failure{1, error};
  file.finish();
}

}  // namespace pocket::cli
#endif  // POCKET_SESSION_FILE_HPP
