// llama2c.hpp: checkpoints of llama2.c (github.com/karpathy/llama2.c, export.py, versions 0, 1 and 2) and its
// tokenizer.bin. All have 7 int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len); each kind of
// tensor is stored for all layers consecutively.
//
//     version 0   the 7 numbers, then float32. vocab_size is negative if the output matrix is separate. There is no
//                 magic number: such a file is recognised if the sizes match its length exactly
//     version 1   "24ka", int32 1, the 7 numbers, uint8 1 if the output matrix is the embedding, zeros up to byte 256;
//                 then float32, all norms first
//     version 2   "24ka", int32 2, the 7 numbers, the same uint8, int32 group size, zeros up to byte 256; then the
//                 norms as float32, and each matrix as int8 weights and one float32 scale per group of them. Files of
//                 the first exporter have the scales of all matrices, in the same order, after the last matrix
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "byte_reader.hpp"
#include "checkpoint.hpp"

namespace pocket {

/// The header. In version 0 the sign of vocab_size is the tied flag.
struct Llama2cHeader {
  int32_t version = 0;
  int32_t group = 0;  // version 2: weights per scale
  uint64_t bytes = 7 * sizeof(int32_t);
};

/// Where the scales of a matrix of version 2 are.
enum class Llama2cScales { after_matrix, after_all_matrices };

/// Computes the offsets of the tensors, which are stored consecutively.
class Llama2cLayout {
 public:
  Llama2cLayout(Checkpoint& c, const Llama2cHeader& header, Llama2cScales scales)
      : c_(c), header_(header), scales_(scales) {}

  // Returns the expected size of the file.
  uint64_t place() {
    const Config& k = c_.config;
    at_ = header_.bytes;
    if (header_.version == 0)
      place_version0();
    else
      place_norms_first();
    if (!k.tied) put("output", k.vocab_size, k.dim);
    if (scales_ == Llama2cScales::after_all_matrices)
      for (const std::string& name : quantized_) place_scales(c_.tensors[name]);
    if (k.tied) c_.tensors["output"] = c_.tensors["token_embedding"];
    return at_;
  }

  // Version 2: a matrix whose size is not a multiple of the group size; "" if none.
  const std::string& not_in_groups() const { return not_in_groups_; }

 private:
  void place_version0() {
    const Config& k = c_.config;
    put("token_embedding", k.vocab_size, k.dim);
    per_layer("attention_norm", 1, k.dim);
    attention();
    per_layer("ffn_norm", 1, k.dim);
    feed_forward();
    put("final_norm", 1, k.dim);
    at_ += uint64_t(k.max_seq_len) * uint64_t(k.head_dim) * 4;  // RoPE cosines, then sines, of all positions
  }

  void place_norms_first() {
    const Config& k = c_.config;
    per_layer("attention_norm", 1, k.dim);
    per_layer("ffn_norm", 1, k.dim);
    put("final_norm", 1, k.dim);
    matrices_in_groups_ = header_.version == 2;
    put("token_embedding", k.vocab_size, k.dim);
    attention();
    feed_forward();
  }

  void attention() {
    const Config& k = c_.config;
    per_layer("wq", k.q_dim(), k.dim, k.n_heads);
    per_layer("wk", k.kv_dim(), k.dim, k.n_kv_heads);
    per_layer("wv", k.kv_dim(), k.dim);
    per_layer("wo", k.dim, k.q_dim());
  }

  void feed_forward() {
    const Config& k = c_.config;
    per_layer("w1", k.hidden_dim, k.dim);
    per_layer("w2", k.dim, k.hidden_dim);
    per_layer("w3", k.hidden_dim, k.dim);
  }

  void put(const std::string& name, int64_t rows, int64_t cols, int interleaved_heads = 0) {
    StoredTensor t = {0, at_, matrices_in_groups_ ? DType::i8 : DType::f32, rows, cols, interleaved_heads};
    at_ += uint64_t(rows) * uint64_t(t.row_bytes());
    if (matrices_in_groups_) {
      t.group = header_.group;
      if (rows * cols % t.group) not_in_groups_ = name;
      quantized_.push_back(name);
      if (scales_ == Llama2cScales::after_matrix) place_scales(t);
    }
    c_.tensors[name] = t;
  }
  void per_layer(const std::string& name, int64_t rows, int64_t cols, int interleaved_heads = 0) {
    for (int l = 0; l < c_.config.n_layers; l++)
      put("layers." + std::to_string(l) + "." + name, rows, cols, interleaved_heads);
  }

  void place_scales(StoredTensor& t) {
    t.scales = at_;
    at_ += uint64_t(t.rows) * uint64_t(t.cols) / uint64_t(t.group) * sizeof(float);
  }

  Checkpoint& c_;
  const Llama2cHeader& header_;
  Llama2cScales scales_;
  bool matrices_in_groups_ = false;
  std::vector<std::string> quantized_;
  std::string not_in_groups_;
  uint64_t at_ = 0;
};

/// Whether a file is of version 1 or later.
inline bool has_llama2c_magic(const InputFile& file) {
  uint32_t magic = 0;
  std::string error;
  return file.read(0, &magic, sizeof magic, error) && magic == 0x616b3432;
}

/// Reads the header and the configuration.
inline bool read_llama2c_header(const InputFile& file, Llama2cHeader& header, Config& c, std::string& error) {
  const std::string where = file.path() + ": llama2.c header";
  FileCursor in(file);
  if (has_llama2c_magic(file)) {
    in.skip(4);
    header.version = in.get<int32_t>();
    header.bytes = 256;
    if (in.ok() && header.version != 1 && header.version != 2)
      return fail(error, {where, ": version: expected 0, 1 or 2, found ", header.version});
  }
  int32_t h[7] = {};
  if (!in.read(h, sizeof h)) return fail(error, in.error());
  c.dim = h[0];
  c.hidden_dim = h[1];
  c.n_layers = h[2];
  c.n_heads = h[3];
  c.n_kv_heads = h[4];
  c.tied = h[5] > 0;
  c.vocab_size = header.version > 0 ? h[5] : h[5] == INT32_MIN ? 0 : std::abs(h[5]);
  c.max_seq_len = h[6];
  if (c.n_heads > 0 && c.dim % c.n_heads == 0) c.head_dim = c.dim / c.n_heads;  // else 0, which check_config() rejects
  if (header.version > 0) {
    const uint8_t tied = in.get<uint8_t>();
    header.group = header.version == 2 ? in.get<int32_t>() : 0;
    if (!in.ok()) return fail(error, in.error());
    if (tied > 1) return fail(error, {where, ": shared classifier: expected 0 or 1, found ", tied});
    c.tied = tied == 1;
    if (header.version == 2 && (header.group < 1 || header.group > 1 << 16))
      return fail(error, {where, ": group size: expected 1 to 65536, found ", header.group});
  }
  return check_config(c, where, {{{"max_seq_len", "seq_len"}}}, error);
}

/// Whether the first scales of each matrix are numbers that an exporter writes: 0, or the magnitude of weights. Weights,
/// four int8 read as a float32, have any sign and exponent.
inline bool has_plausible_scales(const Checkpoint& c) {
  constexpr int64_t kEnough = 16;  // random int8 pass with a probability of 1e-7
  constexpr float kSmallest = 1e-20f, kLargest = 1e20f;
  for (const auto& [name, t] : c.tensors) {
    if (t.group == 0) continue;
    float scales[kEnough];
    const size_t n = size_t(std::min(kEnough, t.rows * t.cols / t.group));
    std::string error;
    if (!c.files[0]->read(t.scales, scales, n * sizeof(float), error)) return false;
    const auto plausible = [](float s) { return s == 0 || (s > kSmallest && s < kLargest); };
    if (!std::all_of(scales, scales + n, plausible)) return false;
  }
  return true;
}

/// Places the tensors of c.files[0]. For version 2 the scales decide which of the two layouts the file has.
inline bool place_llama2c(Checkpoint& c, const Llama2cHeader& header, std::string& error) {
  const InputFile& file = *c.files[0];
  Llama2cLayout layout(c, header, Llama2cScales::after_matrix);
  const uint64_t expected = layout.place();
  if (!layout.not_in_groups().empty())
    return fail(error, {file.path(), ": llama2.c header: group size: expected a divisor of the size of ",
                        layout.not_in_groups(), ", found ", header.group});
  if (file.size() != expected)
    return fail(error, {file.path(), ": file size: expected ", expected,
                        " bytes from the sizes in the llama2.c header, found ", file.size()});
  if (has_plausible_scales(c)) return true;
  Llama2cLayout(c, header, Llama2cScales::after_all_matrices).place();
  if (!has_plausible_scales(c)) Llama2cLayout(c, header, Llama2cScales::after_matrix).place();
  return true;
}

/// Opens a checkpoint. Unrecognised files are passed to this reader, so the message describes what they are.
inline bool open_llama2c(std::unique_ptr<InputFile> file, Checkpoint& out, std::string& error) {
  const std::string path = file->path();
  Llama2cHeader header;
  if (std::string why; !read_llama2c_header(*file, header, out.config, why))
    return fail(error, has_llama2c_magic(*file) ? why
                                                : path + ": expected a checkpoint (" + kReadableFormats + "), found " +
                                                      describe_unreadable(*file) + " (" + why + ")");
  out.files.push_back(std::move(file));
  if (!place_llama2c(out, header, error)) return false;
  out.format = header.version == 0 ? "llama2.c" : "llama2.c version " + std::to_string(header.version);
  for (int id : {1, 2})  // BOS, where llama2.c's run.c stops, and EOS
    if (!add_stop_id(
            out, id, [&] { return path; }, error))
      return false;
  return true;
}

/// A piece of tokenizer.bin: score, length, bytes.
struct Llama2cPiece {
  float score;
  std::string_view text;
};

/// Reads one piece.
inline bool read_llama2c_piece(ByteReader& in, int32_t longest, const std::string& where, Llama2cPiece& out,
                               std::string& error) {
  out.score = in.get<float>();
  const int32_t length = in.get<int32_t>();
  if (in.ok && (length < 1 || length > longest))
    return fail(error,
                where + ": length: expected 1 to " + std::to_string(longest) + ", found " + std::to_string(length));
  out.text = in.take(uint64_t(length));
  return in.ok || fail(error, {where, ": truncated: expected a piece for each of the model's tokens"});
}

/// Restores SentencePiece's form: types by id, as in llama2.c's run.c, and U+2581 for a space.
inline Tokenizer::Piece restore_piece(int id, const Llama2cPiece& stored) {
  using PieceType = Tokenizer::PieceType;
  std::string text(stored.text);
  if (id == 0) return {text, stored.score, PieceType::unknown};
  if (id < 3) {  // BOS and EOS are enclosed in line feeds
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

/// Reads tokenizer.bin: int32 length of the longest piece, then for each piece float32 score, int32 length, bytes. It
/// has the pieces of a SentencePiece model without their types and without the flags, which are assumed to be those of
/// Llama 2.
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
    return fail(error, {path, ": expected the model's ", vocab_size, " pieces, found ", in.bytes.size(),
                        " more bytes; this is the tokenizer of another model"});
  out.kind = Tokenizer::Kind::sentencepiece;
  out.unk = 0;
  out.bos = 1;
  out.eos = 2;
  out.add_bos = out.add_dummy_prefix = out.escape_whitespaces = true;
  out.remove_extra_whitespaces = false;
  out.byte_fallback = byte_pieces == 256;
  out.unk_surface = kUnknownSurface;
  out.split = Tokenizer::Split::none;
  out.ignore_merges = false;
  return true;
}

}  // namespace pocket
