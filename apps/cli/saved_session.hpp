// saved_session.hpp: a session as bytes, to go on with it another day or on another machine. It stands beside
// run.cpp, and like it throws nothing, prints nothing and keeps nothing.
//
//     const auto write = [&](const void* data, size_t n) { return fwrite(data, 1, n, file) == n; };
//     const auto read = [&](void* data, size_t n) { return fread(data, 1, n, file) == n; };
//     if (!pocket::save_session(session, "a note of your own", write, error)) puts(error.c_str());
//     if (!pocket::restore_session(session, file_bytes, read, note, error)) puts(error.c_str());
//
// What comes out is the same for every kernel set, thread count and batch, and holds what is filled of the cache, no
// more. What comes in is checked like a model file: it belongs to one model, and every byte of it counts.
//
//     0    +----------------------------------------------------------------------------------+
//          | SavedSession, 64 bytes                                                           |
//     64   +----------------------------------------------------------------------------------+
//          | note: bytes of the caller's own                                                  |
//          | for each position, layer and KV head: scale of the key, scale of the value, the  |
//          | key, the value (int8 or float32; head_dim each)                                  |
//          +----------------------------------------------------------------------------------+
#ifndef POCKET_SAVED_SESSION_HPP
#define POCKET_SAVED_SESSION_HPP

#include "../../export/engine.hpp"

namespace pocket {

// What a saved session begins with.
struct SavedSession {
  char magic[8];      // kSessionMagic
  uint32_t version;   // kSessionVersion
  uint32_t kv_f32;    // 0: int8, 1: float32
  uint32_t position;  // tokens that the session had heard
  uint32_t context;   // positions that it had room for; the one that goes on may have more, or fewer
  uint64_t note_bytes, cache_bytes;
  uint64_t model;          // Model::checksum of the model that it belongs to
  uint64_t data_checksum;  // XXH64 of the note, then of each position
  uint64_t checksum;       // XXH64 of this header with this field 0
};
static_assert(sizeof(SavedSession) == 64);

inline constexpr char kSessionMagic[8] = {'P', 'K', 'T', 'L', 'S', 'E', 'S', 'S'};
inline constexpr uint32_t kSessionVersion = 1;

using WriteBytes = std::function<bool(const void* data, size_t n)>;  // false: cannot
using ReadBytes = std::function<bool(void* data, size_t n)>;         // false: there are not so many

// "" if this is the header of a session of `m`; else why not: the field, what was expected, what was found.
inline std::string session_refusal(const SavedSession& h, const Model& m) {
  const auto refuse = [](const char* field, const std::string& expected, uint64_t found) {
    return std::string(field) + ": expected " + expected + ", found " + std::to_string(found);
  };
  SavedSession copy = h;
  copy.checksum = 0;
  const uint64_t checksum = hash_bytes(&copy, sizeof copy);
  if (std::memcmp(h.magic, kSessionMagic, sizeof h.magic) != 0)
    return "magic: expected a saved session, found another file; --save writes one";
  if (h.version != kSessionVersion)
    return refuse("version", std::to_string(kSessionVersion), h.version) + "; save it again with this program";
  if (h.checksum != checksum) return refuse("checksum of the header", std::to_string(checksum), h.checksum);
  if (h.model != m.checksum())
    return refuse("model", std::to_string(m.checksum()), h.model) + "; it goes on only with the file it was made with";
  if (h.kv_f32 > 1) return refuse("kv_f32", "0 or 1", h.kv_f32);
  if (h.context < 1 || h.context > 1 << 22) return refuse("context", "1 to 4194304", h.context);
  return h.position <= h.context
             ? ""
             : refuse("position", "at most the context of " + std::to_string(h.context), h.position);
}

// Hands the session, and a note of the caller's own, to write, piece by piece. False with `error` set if write does.
inline bool save_session(const Session& session, std::string_view note, const WriteBytes& write,
                         std::string& error) try {
  if (session.context() == 0) return error = session.error, false;
  std::vector<uint8_t> position(session.position_bytes());
  Hash64 hash;
  hash.update(note.data(), note.size());
  for (int i = 0; i < session.position(); i++) {
    session.read_position(i, position.data());
    hash.update(position.data(), position.size());
  }
  SavedSession head = {};
  std::memcpy(head.magic, kSessionMagic, sizeof head.magic);
  head.version = kSessionVersion, head.kv_f32 = session.kv_f32();
  head.position = uint32_t(session.position()), head.context = uint32_t(session.context());
  head.note_bytes = note.size(), head.cache_bytes = head.position * uint64_t(position.size());
  head.model = session.model().checksum(), head.data_checksum = hash.digest();
  head.checksum = hash_bytes(&head, sizeof head);
  bool good = write(&head, sizeof head) && (note.empty() || write(note.data(), note.size()));
  for (int i = 0; good && i < session.position(); i++) {
    session.read_position(i, position.data());
    good = write(position.data(), position.size());
  }
  if (!good) error = "saved session: cannot be written";
  return good;
} catch (const std::bad_alloc&) {
  return error = "saved session: out of memory", false;
}

// Whether the header's sizes are those of `size` bytes, and of this session.
inline bool check_saved_sizes(const SavedSession& head, const Session& session, uint64_t size, std::string& error) {
  const auto refuse = [&](const std::string& field, const std::string& expected, const std::string& found) {
    error = field + ": expected " + expected + ", found " + found;
    return false;
  };
  const char* types[] = {"q8", "f32"};
  if (bool(head.kv_f32) != session.kv_f32())
    return refuse("keys and values", types[head.kv_f32] + std::string(" as in the saved session"),
                  types[session.kv_f32()]);
  if (head.position > uint32_t(session.context()))
    return refuse("context", "room for the saved session's " + std::to_string(head.position) + " tokens",
                  std::to_string(session.context()));
  const uint64_t cache = head.position * uint64_t(session.position_bytes()), rest = size - sizeof head;
  if (head.cache_bytes != cache) return refuse("cache_bytes", std::to_string(cache), std::to_string(head.cache_bytes));
  if (cache > rest || head.note_bytes != rest - cache)
    return refuse("size",
                  "a note of " + std::to_string(head.note_bytes) + " bytes and a cache of " + std::to_string(cache),
                  std::to_string(rest) + " bytes behind the header");
  return true;
}

// Takes back what save_session() made: into a session of the same model and KV type, with room enough, which then gives
// the very bits that the saved one would have given. size: bytes that there are in all. Nothing is allocated that they
// do not justify. On failure returns false with `error` set, and the session is an empty one.
inline bool restore_session(Session& session, uint64_t size, const ReadBytes& read, std::string& note,
                            std::string& error) try {
  session.rewind(0);
  SavedSession head;
  if (size < sizeof head) return error = "size: expected at least 64 bytes, found " + std::to_string(size), false;
  if (!read(&head, sizeof head)) return error = "saved session: cannot be read", false;
  error = session_refusal(head, session.model());
  if (!error.empty() || !check_saved_sizes(head, session, size, error)) return false;
  std::vector<uint8_t> position(session.position_bytes());
  note.resize(size_t(head.note_bytes));
  Hash64 hash;
  bool good = note.empty() || read(&note[0], note.size());
  hash.update(note.data(), note.size());
  for (uint32_t i = 0; good && i < head.position; i++) {
    good = read(position.data(), position.size());
    hash.update(position.data(), position.size());
    if (good) session.append_position(position.data());
  }
  if (good && hash.digest() == head.data_checksum) return true;
  session.rewind(0);
  error = good ? "data_checksum: expected " + std::to_string(head.data_checksum) + ", found " +
                     std::to_string(hash.digest()) + "; the file is damaged"
               : "saved session: cannot be read";
  return false;
} catch (const std::bad_alloc&) {
  return error = "saved session: out of memory", false;
}

}  // namespace pocket
#endif  // POCKET_SAVED_SESSION_HPP
