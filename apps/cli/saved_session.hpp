// saved_session.hpp: a session as bytes, to continue it later or on another machine. Like run.cpp, this file can be
// used as a library: it throws no exception, prints nothing and has no global state.
//
//     const auto write = [&](const void* data, size_t n) { return fwrite(data, 1, n, file) == n; };
//     const auto read = [&](void* data, size_t n) { return fread(data, 1, n, file) == n; };
//     if (!pocket::save_session(session, "a note of the caller", write, error)) puts(error.c_str());
//     if (!pocket::restore_session(session, file_bytes, read, note, error)) puts(error.c_str());
//
// The bytes do not depend on the kernel set, the number of threads or the batch size. They hold only the filled part of
// the KV cache. A saved session belongs to one model. Every byte is covered by a checksum.
//
//     0    +----------------------------------------------------------------------------------+
//          | SavedSession, 64 bytes                                                           |
//     64   +----------------------------------------------------------------------------------+
//          | note: any bytes of the caller                                                    |
//          | for each position, layer and KV head: scale of the key, scale of the value, key, |
//          | value (int8 or float32; head_dim each)                                           |
//          +----------------------------------------------------------------------------------+
#pragma once

#include "../../export/engine.hpp"

namespace pocket {

// The header of a saved session, little-endian.
struct SavedSession {
  char magic[8];           // kSessionMagic
  uint32_t version;        // kSessionVersion
  uint32_t kv_f32;         // type of the KV cache. 0: int8, 1: float32
  uint32_t position;       // number of processed tokens
  uint32_t context;        // context size of the saved session; the restored one may have another
  uint64_t note_bytes;     // size of the note
  uint64_t cache_bytes;    // size of the KV cache
  uint64_t model;          // checksum of the model and its adapters (model_identity)
  uint64_t data_checksum;  // XXH64 of the note and the KV cache
  uint64_t checksum;       // XXH64 of this header with this field 0
};
static_assert(sizeof(SavedSession) == 64);

inline constexpr char kSessionMagic[8] = {'P', 'K', 'T', 'L', 'S', 'E', 'S', 'S'};
inline constexpr uint32_t kSessionVersion = 1;

using WriteBytes = std::function<bool(const void* data, size_t n)>;  // returns false on failure
using ReadBytes = std::function<bool(void* data, size_t n)>;         // returns false if n bytes cannot be read

// Bytes of the keys and values of one position: for each layer and KV head the scale of the key, the scale of the
// value, the key, the value. They are the same for every kernel set and number of threads.
inline size_t position_bytes(const Session& session) {
  const Config& c = session.model().config;
  const size_t element = session.kv_f32() ? sizeof(float) : 1;
  return size_t(c.n_layers) * c.n_kv_heads * (2 * sizeof(float) + 2 * size_t(c.head_dim) * element);
}

enum class CopyDirection { from_cache, to_cache };

// Copies one position of the KV cache to `bytes` (position_bytes), or back.
inline void copy_position(const Session& session, int position, uint8_t* bytes, CopyDirection direction) {
  const Config& c = session.model().config;
  const int key = position % kBlockKeys;
  const auto copy = [&](auto* cached, int n, int stride) {
    for (int i = 0; i < n; i++, cached += stride, bytes += sizeof *cached) {
      if (direction == CopyDirection::to_cache)
        std::memcpy(cached, bytes, sizeof *cached);
      else
        std::memcpy(bytes, cached, sizeof *cached);
    }
  };
  for (int l = 0; l < c.n_layers; l++)
    for (int head = 0; head < c.n_kv_heads; head++) {
      const KvBlock kv = session.kv_block(l, head, position / kBlockKeys);
      copy(kv.k_scale + key, 1, 1);
      copy(kv.v_scale + key, 1, 1);
      const auto copy_vectors = [&](auto* keys, auto* values) {
        copy(keys + kv.key_at(key), c.head_dim, 16);
        copy(values + key * kv.width, c.head_dim, 1);
      };
      if (session.kv_f32())
        copy_vectors(static_cast<float*>(kv.k), static_cast<float*>(kv.v));
      else
        copy_vectors(static_cast<int8_t*>(kv.k), static_cast<int8_t*>(kv.v));
    }
}

// The checksum of a model and of the adapter that a session uses; null: none.
inline uint64_t model_identity(const ModelFile& model, const Adapter* adapter) {
  const uint64_t both[] = {model.checksum(), adapter ? adapter->checksum : 0};
  return adapter ? hash_bytes(both, sizeof both) : both[0];
}

// Checks the header of a saved session of `model` with an adapter, null for none. Returns "", or the error: the field,
// the expected and the found value.
inline std::string saved_header_error(const SavedSession& h, const ModelFile& model, const Adapter* adapter) {
  const auto mismatch = [](const char* field, const std::string& expected, uint64_t found) {
    return std::string(field) + ": expected " + expected + ", found " + std::to_string(found);
  };
  SavedSession copy = h;
  copy.checksum = 0;
  const uint64_t checksum = hash_bytes(&copy, sizeof copy);
  if (std::memcmp(h.magic, kSessionMagic, sizeof h.magic) != 0)
    return "magic: expected a saved session, found another file; --save writes one";
  if (h.version != kSessionVersion)
    return mismatch("version", std::to_string(kSessionVersion), h.version) + "; save it again with this program";
  if (h.checksum != checksum) return mismatch("checksum of the header", std::to_string(checksum), h.checksum);
  if (const uint64_t identity = model_identity(model, adapter); h.model != identity)
    return mismatch("model", std::to_string(identity), h.model) +
           "; a session needs the model it was saved with, and its adapters";
  if (h.kv_f32 > 1) return mismatch("kv_f32", "0 or 1", h.kv_f32);
  if (h.context < 1 || h.context > 1 << 22) return mismatch("context", "1 to 4194304", h.context);
  if (h.position > h.context)
    return mismatch("position", "at most the context of " + std::to_string(h.context), h.position);
  return "";
}

// Writes the session and a note. Returns false with `error` set if `write` fails.
inline bool save_session(const Session& session, std::string_view note, const WriteBytes& write,
                         std::string& error) try {
  if (session.context() == 0) {
    error = session.error;
    return false;
  }
  std::vector<uint8_t> position(position_bytes(session));
  Hash64 hash;
  hash.update(note.data(), note.size());
  for (int i = 0; i < session.position(); i++) {
    copy_position(session, i, position.data(), CopyDirection::from_cache);
    hash.update(position.data(), position.size());
  }
  SavedSession head = {};
  std::memcpy(head.magic, kSessionMagic, sizeof head.magic);
  head.version = kSessionVersion;
  head.kv_f32 = session.kv_f32();
  head.position = uint32_t(session.position());
  head.context = uint32_t(session.context());
  head.note_bytes = note.size();
  head.cache_bytes = head.position * uint64_t(position.size());
  head.model = model_identity(session.model(), session.adapter());
  head.data_checksum = hash.digest();
  head.checksum = hash_bytes(&head, sizeof head);
  bool good = write(&head, sizeof head) && (note.empty() || write(note.data(), note.size()));
  for (int i = 0; good && i < session.position(); i++) {
    copy_position(session, i, position.data(), CopyDirection::from_cache);
    good = write(position.data(), position.size());
  }
  if (!good) error = "saved session: cannot be written";
  return good;
} catch (const std::bad_alloc&) {
  error = "out of memory";
  return false;
}

// Checks the sizes in the header against the session and the total size in bytes. Returns false with `error` set.
inline bool check_saved_sizes(const SavedSession& head, const Session& session, uint64_t size, std::string& error) {
  const auto mismatch = [&](const std::string& field, const std::string& expected, const std::string& found) {
    error = field + ": expected " + expected + ", found " + found;
    return false;
  };
  const char* types[] = {"q8", "f32"};  // by kv_f32
  if (bool(head.kv_f32) != session.kv_f32())
    return mismatch("keys and values", types[head.kv_f32] + std::string(" as in the saved session"),
                    types[session.kv_f32()]);
  if (head.position > uint32_t(session.context()))
    return mismatch("context", "room for the saved session's " + std::to_string(head.position) + " tokens",
                    std::to_string(session.context()));
  const uint64_t cache = head.position * uint64_t(position_bytes(session)), rest = size - sizeof head;
  if (head.cache_bytes != cache)
    return mismatch("cache_bytes", std::to_string(cache), std::to_string(head.cache_bytes));
  if (cache > rest || head.note_bytes != rest - cache)
    return mismatch("size",
                    "a note of " + std::to_string(head.note_bytes) + " bytes and a cache of " + std::to_string(cache),
                    std::to_string(rest) + " bytes after the header");
  return true;
}

// Restores a session that save_session() wrote, into a session of the same model and KV type whose context is large
// enough. The restored session gives the same bits as the saved one. size: total size in bytes; memory for the note is
// allocated only after it was checked against this size. On failure returns false with `error` set, and the session is
// empty.
inline bool restore_session(Session& session, uint64_t size, const ReadBytes& read, std::string& note,
                            std::string& error) try {
  const auto fail = [&](const std::string& message) {
    session.rewind(0);
    error = message;
    return false;
  };
  session.rewind(0);
  SavedSession head;
  if (size < sizeof head) return fail("size: expected at least 64 bytes, found " + std::to_string(size));
  if (!read(&head, sizeof head)) return fail("saved session: cannot be read");
  error = saved_header_error(head, session.model(), session.adapter());
  if (!error.empty() || !check_saved_sizes(head, session, size, error)) return false;
  std::vector<uint8_t> position(position_bytes(session));
  note.resize(size_t(head.note_bytes));
  Hash64 hash;
  if (!note.empty() && !read(&note[0], note.size())) return fail("saved session: cannot be read");
  hash.update(note.data(), note.size());
  for (uint32_t i = 0; i < head.position; i++) {
    if (!read(position.data(), position.size())) return fail("saved session: cannot be read");
    hash.update(position.data(), position.size());
    copy_position(session, session.position(), position.data(), CopyDirection::to_cache);
    session.advance();
  }
  if (hash.digest() == head.data_checksum) return true;
  return fail("data_checksum: expected " + std::to_string(head.data_checksum) + ", found " +
              std::to_string(hash.digest()) + "; the file is damaged");
} catch (const std::exception&) {  // no memory, or more bytes for the note than a string can have
  session.rewind(0);
  error = "out of memory";
  return false;
}

}  // namespace pocket
