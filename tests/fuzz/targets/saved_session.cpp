// Saved sessions, and the note that ./run keeps in them.
#include "../../../apps/cli/saved_session.hpp"
#include "../../../apps/cli/session_file.hpp"
#include "tiny_llama.hpp"

namespace fuzz::saved_session {

using namespace pocket;

const Model& model() {
  static const std::string bytes = tiny_llama(Type::q8);
  static const AlignedCopy copy(bytes);
  static Model model;
  static const bool open = model.open_memory(copy.data(), copy.size());
  require(open, "the model of this target is valid");
  return model;
}

void run(std::string_view input) {
  static Session session(model(), {16, 1, KvType::q8, nullptr});
  std::string_view rest = input;
  const ReadBytes read = [&](void* data, size_t n) {
    if (n > rest.size()) return false;
    std::memcpy(data, rest.data(), n);
    rest.remove_prefix(n);
    return true;
  };
  std::string note, error;
  if (!restore_session(session, input.size(), read, note, error))
    return require(!error.empty() && session.position() == 0, "session: an error, and an empty session");
  cli::SavedText text;
  text.from_bytes(note, session.vocab_size(), session.position());
  const int id = 1;
  session.forward(&id, 1);
}

// The sizes, the model and both checksums.
void repair(std::string& input, size_t) {
  SavedSession h;
  if (input.size() < sizeof h) return;
  std::memcpy(&h, input.data(), sizeof h);
  const uint64_t rest = input.size() - sizeof h, position = 1 * 1 * (2 * sizeof(float) + 2 * 4);
  h.cache_bytes = h.position * position;
  h.note_bytes = rest - std::min(rest, h.cache_bytes);
  h.model = model().checksum();
  Hash64 hash;
  hash.update(input.data() + sizeof h, size_t(h.note_bytes));
  for (uint64_t at = sizeof h + h.note_bytes; at + position <= input.size(); at += position)
    hash.update(input.data() + at, position);
  h.data_checksum = hash.digest();
  h.checksum = 0;
  h.checksum = hash_bytes(&h, sizeof h);
  std::memcpy(input.data(), &h, sizeof h);
}

std::vector<std::string> seeds() {
  Session session(model(), {16, 1, KvType::q8, nullptr});
  const int ids[] = {1, 2, 3};
  session.forward(ids, 3);
  cli::SavedText text;
  text.ids = {1, 2, 3, 4};
  text.held = "The";
  std::string saved, error;
  const WriteBytes write = [&](const void* data, size_t n) {
    saved.append(static_cast<const char*>(data), n);
    return true;
  };
  require(save_session(session, text.to_bytes(), write, error), "the session of this target can be saved");
  return {saved};
}

const Registered target({"saved_session", run, seeds, repair});

}  // namespace fuzz::saved_session
