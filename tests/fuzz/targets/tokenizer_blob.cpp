// The tokenizer of a model file.
#include "use_tokenizer.hpp"

namespace fuzz::tokenizer_blob {

using namespace pocket;
using Header = tokenizer_detail::BlobHeader;

void run(std::string_view input) {
  Tokenizer tokenizer;
  if (!tokenizer.load(input)) return require(!tokenizer.error.empty(), "tokenizer: an error");
  use(tokenizer);
}

// The size of the texts, and the end of the last one.
void repair(std::string& input, size_t) {
  Header h;
  if (input.size() < sizeof h) return;
  std::memcpy(&h, input.data(), sizeof h);
  const uint64_t scores = h.kind == uint32_t(Tokenizer::Kind::sentencepiece) ? 4 : 0;
  const uint64_t others =
      sizeof h + (4 + scores + 1) * uint64_t(h.n_pieces) + 8 * uint64_t(h.n_merges) + h.unk_surface_bytes;
  if (h.n_pieces == 0 || others > input.size()) return;
  h.text_bytes = uint32_t(input.size() - others);
  std::memcpy(input.data(), &h, sizeof h);
  std::memcpy(&input[sizeof h + 4 * (uint64_t(h.n_pieces) - 1)], &h.text_bytes, sizeof h.text_bytes);
}

std::vector<std::string> seeds() {
  Tokenizer::Vocabulary v;
  v.kind = Tokenizer::Kind::byte_level;
  v.split = Tokenizer::Split::llama3;
  v.pieces = {{"a"}, {"b"}, {"ab"}, {" "}, {" ab"}, {"<|end|>", 0, Tokenizer::PieceType::control}};
  v.merges = {{0, 1}, {3, 2}};
  v.bos = v.eos = 5;
  return {Tokenizer::to_blob(v), Tokenizer::to_blob(small_vocabulary(false)),
          Tokenizer::to_blob(small_vocabulary(true))};
}

const Registered target({"tokenizer_blob", run, seeds, repair});

}  // namespace fuzz::tokenizer_blob
