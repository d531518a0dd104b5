// llama2c.hpp: llama2.c's checkpoints (github.com/karpathy/llama2.c, export.py, version 0) and its tokenizer.bin.
//
// A checkpoint is 7 int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len) and then float32, each
// kind of tensor for all layers in a row. vocab_size is negative where the output has a matrix of its own. There is no
// magic number: that the sizes fit the length of the file exactly is what tells such a file.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "checkpoint.hpp"

namespace pocket {

// Gives the tensors their places, one after the other, and returns where the file must end.
class Llama2cLayout {
 public:
  explicit Llama2cLayout(Checkpoint& c) : c_(c) {}

  uint64_t place() {
    const Config& k = c_.config;
    at_ = kHeaderBytes;
    put("token_embedding", k.vocab_size, k.dim);
    per_layer("attention_norm", 1, k.dim);
    per_layer("wq", k.q_dim(), k.dim, k.n_heads);
    per_layer("wk", k.kv_dim(), k.dim, k.n_kv_heads);
    per_layer("wv", k.kv_dim(), k.dim);
    per_layer("wo", k.dim, k.q_dim());
    per_layer("ffn_norm", 1, k.dim);
    per_layer("w1", k.hidden_dim, k.dim);
    per_layer("w2", k.dim, k.hidden_dim);
    per_layer("w3", k.hidden_dim, k.dim);
    put("final_norm", 1, k.dim);
    at_ += uint64_t(k.max_seq_len) * uint64_t(k.head_dim) * 4;  // cosines and sines of all positions, half each
    if (k.tied)
      c_.tensors["output"] = c_.tensors["token_embedding"];
    else
      put("output", k.vocab_size, k.dim);
    return at_;
  }

  static constexpr uint64_t kHeaderBytes = 7 * 4;

 private:
  void put(const std::string& name, int64_t rows, int64_t cols, int interleaved_heads = 0) {
    c_.tensors[name] = {0, at_, DType::f32, rows, cols, interleaved_heads};
    at_ += uint64_t(rows) * uint64_t(cols) * 4;
  }
  void per_layer(const std::string& name, int64_t rows, int64_t cols, int interleaved_heads = 0) {
    for (int l = 0; l < c_.config.n_layers; l++)
      put("layers." + std::to_string(l) + "." + name, rows, cols, interleaved_heads);
  }

  Checkpoint& c_;
  uint64_t at_ = 0;
};

inline bool llama2c_config(const InputFile& file, Config& c, std::string& error) {
  int32_t h[7] = {};
  if (!file.read(0, h, sizeof h, error)) return false;
  c.dim = h[0], c.hidden_dim = h[1], c.n_layers = h[2], c.n_heads = h[3], c.n_kv_heads = h[4];
  c.tied = h[5] > 0;
  c.vocab_size = h[5] == INT32_MIN ? 0 : std::abs(h[5]);
  c.max_seq_len = h[6];
  if (c.n_heads > 0 && c.dim % c.n_heads == 0) c.head_dim = c.dim / c.n_heads;  // else 0, which is refused
  return check_config(c, file.path() + ": llama2.c header", {{"max_seq_len", "seq_len"}}, error);
}

// Whatever no other reader knows comes here, so that this is also where unknown files are refused.
inline bool open_llama2c(std::unique_ptr<InputFile> file, Checkpoint& out, std::string& error) {
  const std::string path = file->path();
  if (std::string why; !llama2c_config(*file, out.config, why))
    return fail(error,
                path + ": expected a checkpoint (a folder with config.json, safetensors, GGUF or llama2.c), found " +
                    describe_unreadable(*file) + " (" + why + ")");
  const uint64_t expected = Llama2cLayout(out).place();
  if (file->size() != expected)
    return fail(error, path + ": file size: expected " + std::to_string(expected) +
                           " bytes by the sizes in its llama2.c header, found " + std::to_string(file->size()));
  out.format = "llama2.c";
  out.files.push_back(std::move(file));
  return add_stop_id(out, path, 1, error) &&
         add_stop_id(out, path, 2, error);  // llama2.c's run.c ends at BOS; 2 is EOS
}

// A score, a length and so many bytes.
struct Llama2cPiece {
  float score;
  std::string_view text;
};

inline bool read_llama2c_piece(ByteReader& in, int32_t longest, const std::string& where, Llama2cPiece& out,
                               std::string& error) {
  out.score = in.get<float>();
  const int32_t length = in.get<int32_t>();
  if (in.ok && (length < 1 || length > longest))
    return fail(error,
                where + ": length: expected 1 to " + std::to_string(longest) + ", found " + std::to_string(length));
  out.text = in.take(uint64_t(length));
  return in.ok || fail(error, where + ": truncated: expected a piece for each of the model's tokens");
}

// What SentencePiece had: types by id, as llama2.c's run.c knows them, and U+2581 for a space.
inline Tokenizer::Piece restore_piece(int id, const Llama2cPiece& stored) {
  using PieceType = Tokenizer::PieceType;
  std::string text(stored.text);
  if (id == 0) return {text, stored.score, PieceType::unknown};
  if (id < 3) {  // BOS and EOS are written between line feeds
    if (text.size() > 2 && text.front() == '\n' && text.back() == '\n') text = text.substr(1, text.size() - 2);
    return {text, stored.score, PieceType::control};
  }
  char byte[8];
  std::snprintf(byte, sizeof byte, "<0x%02X>", unsigned(id - 3) & 255);
  if (id < 3 + 256 && text == byte) return {text, stored.score, PieceType::byte};
  text.clear();
  for (char c : stored.text) text += c == ' ' ? std::string("\u2581") : std::string(1, c);
  return {text, stored.score, PieceType::normal};
}

// tokenizer.bin: int32 length of the longest piece, then for each piece float32 score, int32 length, bytes. It has the
// pieces of a SentencePiece model but neither their types nor the flags; the flags are taken to be those of Llama 2.
inline bool read_llama2c_tokenizer(const std::string& path, std::string_view bytes, int vocab_size,
                                   Tokenizer::Vocabulary& out, std::string& error) {
  ByteReader in{bytes};
  const int32_t longest = in.get<int32_t>();
  int byte_pieces = 0;
  for (int id = 0; id < vocab_size; id++) {
    Llama2cPiece piece;
    if (!read_llama2c_piece(in, longest, path + ": piece " + std::to_string(id), piece, error)) return false;
    out.pieces.push_back(restore_piece(id, piece));
    byte_pieces += out.pieces.back().type == Tokenizer::PieceType::byte;
  }
  if (!in.bytes.empty() || vocab_size < 3)
    return fail(error, path + ": expected the model's " + std::to_string(vocab_size) + " pieces, found " +
                           std::to_string(in.bytes.size()) + " bytes more; this is another model's tokenizer");
  out.kind = Tokenizer::Kind::sentencepiece;
  out.unk = 0, out.bos = 1, out.eos = 2;
  out.add_bos = out.add_dummy_prefix = out.escape_whitespaces = true;
  out.remove_extra_whitespaces = false;
  out.byte_fallback = byte_pieces == 256;
  out.unk_surface = kUnknownSurface;
  out.split = Tokenizer::Split::none;
  out.ignore_merges = false;
  return true;
}

}  // namespace pocket
