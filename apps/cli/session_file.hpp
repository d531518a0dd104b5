// session_file.hpp: the files of --save and --resume. The note of the saved session holds the text and the sampler.
#pragma once

#include "../../export/byte_reader.hpp"
#include "../../export/output_file.hpp"
#include "../../export/program.hpp"
#include "saved_session.hpp"

namespace pocket::cli {

// The state of a text outside its session.
struct SavedText {
  std::vector<int> ids;       // all tokens of the text; the last ones may not be processed yet
  std::string held;           // generated text that is not printed yet, because it may be the beginning of a stop text
  uint64_t seed = 0;          // the sampler's seed
  uint64_t random_state = 0;  // state of its random numbers

  // The note: seed, random_state, number of ids, ids (int32), held.
  std::string to_bytes() const {
    std::string out;
    const auto put = [&](const auto& value) { out.append(reinterpret_cast<const char*>(&value), sizeof value); };
    put(seed);
    put(random_state);
    put(uint64_t(ids.size()));
    for (const int id : ids) put(int32_t(id));
    return out + held;
  }

  // Reads a note. Returns false if it is not that of a text with so many processed tokens.
  bool from_bytes(std::string_view bytes, int vocab_size, int processed) {
    ByteReader in{bytes};
    seed = in.get<uint64_t>();
    random_state = in.get<uint64_t>();
    const uint64_t count = in.get<uint64_t>();
    if (!in.ok || count == 0 || count < uint64_t(processed) || count > in.bytes.size() / 4) return false;
    for (uint64_t i = 0; i < count; i++) {
      ids.push_back(in.get<int32_t>());
      if (ids.back() < 0 || ids.back() >= vocab_size) return false;
    }
    held = in.bytes;
    return true;
  }
};

// A session file that is open for --resume.
class SessionFile {
 public:
  // Opens the file and checks its header. Throws Failure.
  SessionFile(const std::string& name, const ModelFile& model, const Adapter* adapter) : name_(name) {
    const int fd = platform::open_to_read(name);
    if (fd < 0) throw Failure{1, name + ": " + std::strerror(errno) + "; --save writes one"};
    const platform::FileInfo info = platform::info_of(fd);
    file_.reset(fdopen(fd, "rb"));
    if (!file_) platform::close(fd);
    if (!file_) fail(std::strerror(errno));
    if (info.kind != platform::FileKind::file) fail("expected a saved session, found no regular file");
    bytes_ = info.size;
    if (bytes_ < sizeof head_) fail("size: expected at least 64 bytes, found " + std::to_string(bytes_));
    if (!read(&head_, sizeof head_)) fail(std::strerror(errno));
    const std::string error = saved_header_error(head_, model, adapter);
    if (!error.empty()) fail(error);
    std::rewind(file_.get());
  }

  // Completes the options that the command line leaves open by those of the saved session.
  void fill(SessionOptions& options) const {
    if (options.context == 0) options.context = int(head_.context);
    if (options.kv == KvType::automatic) options.kv = head_.kv_f32 ? KvType::f32 : KvType::q8;
  }

  // Restores the session and returns its text. Throws Failure.
  SavedText restore(Session& session) {
    std::string note, error;
    const ReadBytes from_file = [&](void* data, size_t n) { return read(data, n); };
    if (!restore_session(session, bytes_, from_file, note, error)) fail(error);
    SavedText text;
    if (!text.from_bytes(note, session.vocab_size(), session.position()))
      fail("note: expected the tokens of the text; another program saved this session");
    file_.reset();  // Windows does not replace an open file: --save may have the same name
    return text;
  }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  [[noreturn]] void fail(const std::string& why) const { throw Failure{1, name_ + ": " + why}; }
  bool read(void* data, size_t n) { return std::fread(data, 1, n, file_.get()) == n; }

  std::string name_;
  std::unique_ptr<std::FILE, Close> file_;
  SavedSession head_ = {};
  uint64_t bytes_ = 0;  // size of the file
};

// Writes the file of --save. Throws Failure.
inline void write_session_file(const Session& session, const SavedText& text, OutputFile& file) {
  std::string error;
  const WriteBytes write = [&](const void* data, size_t n) { return file.write(data, n); };
  const bool good = save_session(session, text.to_bytes(), write, error);
  if (!good && !file.failed()) throw Failure{1, error};
  if (!file.finish()) throw Failure{1, file.error()};
}

}  // namespace pocket::cli
