// llama2c_test.cpp: checkpoints of llama2.c. The header and all tensors are read, the rows of wq and wk are returned in
// the engine's RoPE order, and a file of another size is rejected.
#include "../../export/open_checkpoint.hpp"

#include <gtest/gtest.h>

#include <climits>
#include <cmath>

#include "../support/allocation_limit.hpp"
#include "../support/tiny_model.hpp"

namespace llama2c_test {

using namespace pocket;
using tiny::Floats;

struct Header7 {
  int32_t dim = 12, hidden_dim = 10, n_layers = 2, n_heads = 2, n_kv_heads = 1, vocab_size = 5, seq_len = 7;
};

/// The format, from export.py: the tensors after the header, each for all layers. Each weight encodes its position:
/// tensor number * 1000 + index.
struct Part {
  const char* name;
  int layers, rows, cols;  // layers 0: not in a layer
};
std::vector<Part> parts_of(const Header7& h) {
  const int head = h.dim / h.n_heads, kv = head * h.n_kv_heads, vocab = std::abs(h.vocab_size), l = h.n_layers;
  std::vector<Part> parts = {{"token_embedding", 0, vocab, h.dim},
                             {"attention_norm", l, 1, h.dim},
                             {"wq", l, h.dim, h.dim},
                             {"wk", l, kv, h.dim},
                             {"wv", l, kv, h.dim},
                             {"wo", l, h.dim, h.dim},
                             {"ffn_norm", l, 1, h.dim},
                             {"w1", l, h.hidden_dim, h.dim},
                             {"w2", l, h.dim, h.hidden_dim},
                             {"w3", l, h.hidden_dim, h.dim},
                             {"final_norm", 0, 1, h.dim},
                             {"", 0, h.seq_len, head / 2},
                             {"", 0, h.seq_len, head / 2}};
  if (h.vocab_size < 0) parts.push_back({"output", 0, vocab, h.dim});
  return parts;
}

template <class T> void append(std::string& to, const T& value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof value);
}

/// The weight at (row, col) of part number `part`, layer `layer`.
float known(int part, int layer, int row, int col, const Part& p) {
  return float(part * 1000 + (layer * p.rows + row) * p.cols + col);
}

std::string file_of(const Header7& h) {
  std::string file;
  append(file, h);
  const std::vector<Part> parts = parts_of(h);
  for (size_t i = 0; i < parts.size(); i++)
    for (int l = 0; l < std::max(1, parts[i].layers); l++)
      for (int r = 0; r < parts[i].rows; r++)
        for (int c = 0; c < parts[i].cols; c++) append(file, known(int(i), l, r, c, parts[i]));
  return file;
}

/// A checkpoint on disk, opened. The next object overwrites it.
struct Opened {
  Checkpoint c;
  std::string path, error;

  explicit Opened(const std::string& bytes) {
    static const TemporaryFolder folder;
    std::filesystem::remove(folder.file("model.bin"));  // faster than overwriting it
    path = folder.write("model.bin", bytes);
    const bool ok = open_checkpoint(path, "", c, error);
    EXPECT_EQ(ok, error.empty()) << error;
    EXPECT_TRUE(ok || error.rfind(path + ": ", 0) == 0) << error;
  }
  /// The error after the file's name.
  std::string what() const { return error.substr(std::min(error.size(), path.size() + 2)); }

  Floats read(const std::string& name) {
    const StoredTensor& t = c.tensors.at(name);
    Floats out(size_t(t.rows * t.cols));
    EXPECT_TRUE(c.read_rows(name, 0, t.rows, out.data(), error)) << error;
    return out;
  }
};

std::string error_of(const std::string& bytes) { return Opened(bytes).what(); }

/// The error of a file with this header and `more` zeros.
std::string error_of(const Header7& h, size_t more = 0) {
  std::string file;
  append(file, h);
  return error_of(file + std::string(more, '\0'));
}

// ---- Valid files ----

TEST(Llama2c, ReadsHeader) {
  Opened f(file_of({}));
  ASSERT_EQ(f.error, "");
  const Config& k = f.c.config;
  EXPECT_EQ(k.dim, 12);
  EXPECT_EQ(k.hidden_dim, 10);
  EXPECT_EQ(k.n_layers, 2);
  EXPECT_EQ(k.n_heads, 2);
  EXPECT_EQ(k.n_kv_heads, 1);
  EXPECT_EQ(k.head_dim, 6);
  EXPECT_EQ(k.vocab_size, 5);
  EXPECT_EQ(k.max_seq_len, 7);
  EXPECT_EQ(k.norm_eps, 1e-5f);
  EXPECT_EQ(k.rope_theta, 10000.f);
  EXPECT_EQ(k.rope_scaling, RopeScaling::none);
  EXPECT_TRUE(k.tied);
  EXPECT_EQ(f.c.format, "llama2.c");
  EXPECT_EQ(f.c.stop_ids, (std::vector<int>{1, 2}));
  EXPECT_FALSE(f.c.has_tokenizer);
}

/// Checks all tensors of a file; wq and wk have another order of rows.
void check_numbers(const Header7& h) {
  Opened f(file_of(h));
  ASSERT_EQ(f.error, "");
  const std::vector<Part> parts = parts_of(h);
  for (size_t i = 0; i < parts.size(); i++)
    for (int l = 0; l < std::max(1, parts[i].layers) && *parts[i].name; l++) {
      const std::string prefix = parts[i].layers ? "layers." + std::to_string(l) + "." : "",
                        name = prefix + parts[i].name;
      const Floats found = f.read(name);
      ASSERT_EQ(found.size(), size_t(parts[i].rows) * size_t(parts[i].cols)) << name;
      const bool permuted =
          name.size() > 2 && (name.substr(name.size() - 2) == "wq" || name.substr(name.size() - 2) == "wk");
      const int head = h.dim / h.n_heads;
      for (int r = 0; r < parts[i].rows; r++)
        for (int c = 0; c < parts[i].cols; c++) {
          const int in_head = r % head, stored = r - in_head + in_head % (head / 2) * 2 + in_head / (head / 2);
          ASSERT_EQ(found[size_t(r * parts[i].cols + c)], known(int(i), l, permuted ? stored : r, c, parts[i]))
              << name << " " << r << ", " << c;
        }
    }
  std::vector<std::string> missing;
  for (const TensorSpec& spec : tensor_specs(f.c.config)) {
    const auto it = f.c.tensors.find(spec.name);
    ASSERT_TRUE(it != f.c.tensors.end()) << spec.name;
    EXPECT_TRUE(it->second.rows == spec.rows && it->second.cols == spec.cols) << spec.name;
  }
}

TEST(Llama2c, ReadsEveryTensor) {
  check_numbers({});
  check_numbers({8, 3, 1, 4, 4, 3, 1});
  check_numbers({8, 3, 3, 4, 2, -4, 9});
}

TEST(Llama2c, NegativeVocabularyMeansUntied) {
  Header7 h;
  Opened tied(file_of(h));
  ASSERT_EQ(tied.error, "");
  EXPECT_EQ(tied.read("output"), tied.read("token_embedding"));
  h.vocab_size = -5;
  Opened untied(file_of(h));
  ASSERT_EQ(untied.error, "");
  EXPECT_FALSE(untied.c.config.tied);
  EXPECT_EQ(untied.c.config.vocab_size, 5);
  EXPECT_EQ(untied.read("output")[0], 13000.f);
  EXPECT_EQ(untied.read("token_embedding")[0], 0.f);
}

TEST(Llama2c, ReadsTokenizerBin) {
  // tokenizer.bin: length of the longest piece; score, length and bytes of each
  std::string file;
  append(file, int32_t(5));
  for (const std::string piece : {"<unk>", "\n<s>\n", "\n</s>\n", " a", "b"}) {
    append(file, -1.5f);
    append(file, int32_t(piece.size()));
    file += piece;
  }
  const TemporaryFolder folder;
  const std::string model = folder.write("model.bin", file_of({}));
  Checkpoint c;
  std::string error;
  EXPECT_FALSE(open_checkpoint(model, folder.write("tokenizer.bin", file), c, error));
  EXPECT_EQ(error, folder.file("tokenizer.bin") + ": piece 2: length: expected 1 to 5, found 6");
  file[0] = 6;
  ASSERT_TRUE(open_checkpoint(model, folder.write("tokenizer.bin", file), c, error)) << error;
  EXPECT_EQ(c.vocabulary.pieces[2].text, "</s>");
  EXPECT_EQ(c.vocabulary.pieces[3].text,
            "\xE2\x96\x81"
            "a");
  for (size_t n = 0; n < file.size(); n++) {
    EXPECT_FALSE(open_checkpoint(model, folder.write("tokenizer.bin", file.substr(0, n)), c, error)) << n;
    EXPECT_EQ(error.find(folder.file("tokenizer.bin") + ": "), 0u) << error;
  }
  EXPECT_FALSE(open_checkpoint(model, folder.write("tokenizer.bin", file + "x"), c, error));
  for (const int32_t length : {0, -1, INT_MIN, INT_MAX, 7, 1 << 24}) {
    std::string bad = file;
    std::memcpy(&bad[8], &length, 4);
    EXPECT_FALSE(open_checkpoint(model, folder.write("tokenizer.bin", bad), c, error));
    EXPECT_EQ(error,
              folder.file("tokenizer.bin") + ": piece 0: length: expected 1 to 6, found " + std::to_string(length));
  }
}

// ---- Versions 1 and 2 ----

/// Header of version 1 or 2. tied: 0 or 1.
std::string header_of(int32_t version, const Header7& h, uint8_t tied, int32_t group = 0) {
  std::string file;
  append(file, uint32_t(0x616b3432));
  append(file, version);
  append(file, h);
  append(file, tied);
  if (version == 2) append(file, group);
  file.resize(256);
  return file;
}

/// The order of tensors in versions 1 and 2, as (part of parts_of, is a norm).
const std::pair<const char*, bool> kNormsFirst[] = {{"attention_norm", true},
                                                    {"ffn_norm", true},
                                                    {"final_norm", true},
                                                    {"token_embedding", false},
                                                    {"wq", false},
                                                    {"wk", false},
                                                    {"wv", false},
                                                    {"wo", false},
                                                    {"w1", false},
                                                    {"w2", false},
                                                    {"w3", false},
                                                    {"output", false}};

/// A value for each weight: a power of two times -127 to 127, so that int8 represents it exactly.
float exact(size_t part, int index) { return std::ldexp(float((index * 37 + int(part) * 11) % 255 - 127), -8); }

/// The same model in one of the versions. The scales of version 2 differ between groups. scales_last: the layout of the
/// first exporter.
std::string version_of(int32_t version, const Header7& h, int32_t group, bool scales_last = false) {
  const bool tied = h.vocab_size > 0;
  Header7 positive = h;
  positive.vocab_size = std::abs(h.vocab_size);
  std::string file, scales;
  const std::vector<Part> parts = parts_of(h);
  const auto scale = [&](size_t part, int index) { return std::ldexp(1.f, -8 - (index / group + int(part)) % 3); };
  const auto put = [&](size_t i, bool norm) {
    const int count = std::max(1, parts[i].layers) * parts[i].rows * parts[i].cols;
    const int a_layer = parts[i].rows * parts[i].cols;
    for (int n = 0; n < count; n++) {
      const float integer = std::ldexp(exact(i, n), 8), s = norm ? 1.f / 256 : scale(i, n % a_layer);
      if (version == 2 && !norm)
        file += char(int(integer));
      else
        append(file, integer * s);
      if (version == 2 && !norm && n % a_layer % group == 0) append(scales, s);
      if (scales_last || (n + 1) % a_layer) continue;
      file += scales;
      scales.clear();
    }
  };
  if (version == 0) {
    append(file, h);
    for (size_t i = 0; i < parts.size(); i++) put(i, parts[i].rows == 1 || !*parts[i].name);
    return file;
  }
  file = header_of(version, positive, tied, group);
  for (const auto& [name, norm] : kNormsFirst)
    for (size_t i = 0; i < parts.size(); i++)
      if (std::string(parts[i].name) == name) put(i, norm);
  return file + scales;
}

// The logits of all versions have the same bits.
TEST(Llama2cVersions, GiveSameLogits) {
  for (const Header7& h : {Header7{16, 20, 2, 4, 2, 6, 8}, Header7{16, 20, 1, 4, 4, -6, 8}})
    for (const int32_t group : {1, 4, 8, 16, 32}) {
      std::vector<float> logits[4];
      for (const int32_t version : {0, 1, 2, 3}) {  // 3: version 2, scales last
        Opened f(version_of(std::min(version, 2), h, group, version == 3));
        ASSERT_EQ(f.error, "");
        EXPECT_EQ(f.c.format, version ? "llama2.c version " + std::to_string(std::min(version, 2)) : "llama2.c");
        EXPECT_EQ(f.c.config.tied, h.vocab_size > 0);
        EXPECT_EQ(f.c.config.vocab_size, 6);
        const tiny::MemoryModel m(
            tiny::model_bytes(tiny::parts_of(f.c.config, Type::f32),
                              [&](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& why) {
                                return f.c.read_rows(spec.name, first, count, out, why);
                              }));
        Session session(m.model);
        const std::vector<int> ids = {1, 5, 0, 3};
        ASSERT_TRUE(session.forward(ids.data(), ids.size(), [&](size_t, const float* row) {
          logits[version].insert(logits[version].end(), row, row + 6);
          return true;
        }));
        ASSERT_TRUE(tiny::same_bits(logits[version].data(), logits[0].data(), logits[0].size()))
            << "version " << version << ", groups of " << group;
        ASSERT_NE(logits[0][0], logits[0][1]);
      }
    }
}

TEST(Llama2cVersions, GroupsMaySpanRows) {
  Header7 h = {16, 20, 1, 4, 4, -6, 8};  // w2 has rows of 20
  Opened f(version_of(2, h, 16)), expected(version_of(1, h, 16));
  ASSERT_EQ(f.error, "");
  EXPECT_EQ(f.c.tensors.at("layers.0.w2").group, 16);
  for (const char* name : {"layers.0.w2", "layers.0.wq", "token_embedding", "output"})
    EXPECT_EQ(f.read(name), expected.read(name)) << name;
}

TEST(Llama2cVersions, RejectsTruncationAndExtraBytes) {
  for (const int32_t version : {1, 2}) {
    const std::string whole = version_of(version, {8, 6, 1, 2, 1, 3, 4}, 4);
    ASSERT_EQ(error_of(whole), "");
    for (size_t n = 4; n < whole.size(); n++) {
      const std::string error = error_of(whole.substr(0, n));
      EXPECT_TRUE(error.find("truncated: expected ") != std::string::npos ||
                  error.find("file size: expected " + std::to_string(whole.size())) == 0)
          << n << error;
    }
    EXPECT_EQ(error_of(whole + "x"), "file size: expected " + std::to_string(whole.size()) +
                                         " bytes from the sizes in the llama2.c header, found " +
                                         std::to_string(whole.size() + 1));
  }
}

TEST(Llama2cVersions, RejectsInvalidHeaders) {
  const Header7 h;
  const auto error = [&](int32_t version, const Header7& sizes, uint8_t tied, int32_t group) {
    return error_of(header_of(version, sizes, tied, group) + std::string(100, '\0'));
  };
  for (const int32_t version : {0, 3, -1, INT_MAX})
    EXPECT_EQ(error(version, h, 1, 4),
              "llama2.c header: version: expected 0, 1 or 2, found " + std::to_string(version));
  EXPECT_EQ(error(1, h, 2, 0), "llama2.c header: shared classifier: expected 0 or 1, found 2");
  for (const int32_t group : {0, -1, INT_MIN, INT_MAX, 65537})
    EXPECT_EQ(error(2, h, 1, group),
              "llama2.c header: group size: expected 1 to 65536, found " + std::to_string(group));
  EXPECT_EQ(error(2, h, 1, 7).find("llama2.c header: group size: expected a divisor of the size of "), 0u);
  for (const int32_t vocab_size : {0, -5, INT_MIN}) {
    Header7 bad;
    bad.vocab_size = vocab_size;
    for (const int32_t version : {1, 2})
      EXPECT_EQ(error(version, bad, 1, 4),
                "llama2.c header: vocab_size: expected 1 to 4194304, found " + std::to_string(vocab_size));
  }
}

/// A quantized matrix as export.py writes it: for each group the largest magnitude / 127 as the scale, and the rounded
/// quotients. A group of zeros has the scale 0 and, as 0 / 0, any weights.
void append_q80(std::string& weights, std::string& scales, const Floats& w, size_t group) {
  for (size_t at = 0; at < w.size(); at += group) {
    float most = 0;
    for (size_t i = at; i < at + group; i++) most = std::max(most, std::fabs(w[i]));
    append(scales, most / 127);
    for (size_t i = at; i < at + group; i++) weights += most > 0 ? char(std::nearbyint(w[i] / (most / 127))) : '\x80';
  }
}

// The matrices of random models, in both layouts: within half a step of the original weights.
TEST(Llama2cVersions, ReadsQuantizedMatricesOfBothLayouts) {
  tiny::Random random(5);
  for (int model = 0; model < 20; model++) {
    const Header7 h = {32, 64, 1 + model % 3, 4, model % 2 ? 4 : 2, model % 4 < 2 ? 40 : -40, 8};
    Header7 positive = h;
    positive.vocab_size = 40;
    const float size = std::pow(10.f, float(model % 5 - 3));  // of the weights
    std::map<std::string, Floats> matrices;
    std::string norms_first[2], all_scales;
    for (std::string& file : norms_first) file = header_of(2, positive, h.vocab_size > 0, 32);
    for (const auto& [name, norm] : kNormsFirst)
      for (const Part& p : parts_of(h))
        for (int l = 0; l < std::max(1, p.layers) && p.name == std::string(name); l++) {
          Floats w(size_t(p.rows * p.cols));
          for (float& x : w) x = size * random.normal();
          if (std::string(name) == "wo") std::fill(w.begin(), w.begin() + 64, 0.f);
          std::string weights, scales;
          if (norm)
            for (const float x : w) append(weights, x);
          else
            append_q80(weights, scales, w, 32);
          norms_first[0] += weights + scales;
          norms_first[1] += weights;
          all_scales += scales;
          if (!norm) matrices[(p.layers ? "layers." + std::to_string(l) + "." : "") + name] = w;
        }
    for (const std::string& file : {norms_first[0], norms_first[1] + all_scales}) {
      Opened f(file);
      ASSERT_EQ(f.error, "");
      for (const auto& [name, w] : matrices) {
        if (name.substr(name.size() - 2) == "wq" || name.substr(name.size() - 2) == "wk") continue;  // reordered
        const Floats found = f.read(name);
        for (size_t i = 0; i < w.size(); i++) ASSERT_NEAR(found[i], w[i], size * 6 / 127) << name << " " << i;
      }
    }
  }
}

// ---- The order of rows ----

/// Applies RoPE to every pair of a head. half_split: pairs (i, i + half), else adjacent elements.
std::vector<double> rotated(std::vector<double> x, int head, bool half_split) {
  const int half = head / 2;
  for (size_t at = 0; at < x.size(); at += size_t(head))
    for (int i = 0; i < half; i++) {
      double &a = x[at + size_t(half_split ? i : 2 * i)], &b = x[at + size_t(half_split ? i + half : 2 * i + 1)];
      const double angle = 3 * std::pow(10000., -2. * i / head), before = a;
      a = before * std::cos(angle) - b * std::sin(angle);
      b = before * std::sin(angle) + b * std::cos(angle);
    }
  return x;
}

std::vector<double> product(const Floats& w, const std::vector<double>& x) {
  std::vector<double> y(w.size() / x.size());
  for (size_t i = 0; i < w.size(); i++) y[i / x.size()] += w[i] * x[i % x.size()];
  return y;
}

// llama2.c rotates adjacent elements of q = wq x. Reordered rows, multiplied and rotated half-split, must give the same
// q in another order, the same order for q and k, so that their dot products are equal.
TEST(Llama2cRowOrder, HalfSplitMatchesInterleavedRope) {
  for (const Header7& h : {Header7{}, Header7{16, 4, 1, 2, 2, 3, 1}, Header7{8, 4, 1, 4, 2, 3, 1}}) {
    const int head = h.dim / h.n_heads;
    std::string file = file_of(h);
    tiny::Random random(7);
    for (size_t at = sizeof h; at < file.size(); at += 4) {
      const float value = random.normal();
      std::memcpy(&file[at], &value, 4);
    }
    Opened f(file);
    ASSERT_EQ(f.error, "");
    std::vector<double> x, stored_order[2], engine_order[2];
    for (int i = 0; i < h.dim; i++) x.push_back(random.normal());
    for (int k = 0; k < 2; k++) {
      const std::string name = k ? "layers.0.wk" : "layers.0.wq";
      const StoredTensor& t = f.c.tensors.at(name);
      Floats stored(size_t(t.rows * t.cols));
      std::memcpy(stored.data(), &file[t.offset], stored.size() * 4);
      stored_order[k] = rotated(product(stored, x), head, false);
      engine_order[k] = rotated(product(f.read(name), x), head, true);
      for (size_t r = 0; r < stored_order[k].size(); r++) {  // half-split position of stored row r
        const size_t in_head = r % size_t(head), place = r - in_head + in_head / 2 + in_head % 2 * size_t(head / 2);
        EXPECT_NEAR(engine_order[k][place], stored_order[k][r], 1e-12);
      }
    }
    for (int q = 0; q < h.n_heads; q++) {  // so the scores are the same
      double stored = 0, engine = 0;
      const size_t q_at = size_t(q * head), k_at = size_t(q / (h.n_heads / h.n_kv_heads) * head);
      for (size_t i = 0; i < size_t(head); i++) {
        stored += stored_order[0][q_at + i] * stored_order[1][k_at + i];
        engine += engine_order[0][q_at + i] * engine_order[1][k_at + i];
      }
      EXPECT_NEAR(stored, engine, 1e-12);
    }
  }
}

TEST(Llama2cRowOrder, ReadsAnyRangeOfRows) {
  Opened f(file_of({}));
  ASSERT_EQ(f.error, "");
  const Floats whole = f.read("layers.1.wq");
  for (int64_t first = 0; first < 12; first++)
    for (int64_t count = 0; count <= 12 - first; count++) {
      Floats some(size_t(count * 12));
      ASSERT_TRUE(f.c.read_rows("layers.1.wq", first, count, some.data(), f.error)) << f.error;
      ASSERT_TRUE(std::equal(some.begin(), some.end(), whole.begin() + first * 12));
    }
}

// ---- Rejected files ----

TEST(Llama2cRejects, TruncationAndExtraBytes) {
  for (const int vocab_size : {5, -5}) {
    Header7 h;
    h.vocab_size = vocab_size;
    const std::string whole = file_of(h), size = std::to_string(whole.size());
    ASSERT_EQ(error_of(whole), "");
    for (size_t n = 0; n < sizeof h; n++) {
      const std::string error = error_of(whole.substr(0, n));
      EXPECT_EQ(
          error.find(
              "expected a checkpoint (a folder with config.json, safetensors, PyTorch, GGUF or llama2.c), found "),
          0u)
          << error;
      EXPECT_NE(error.find("offset 0: truncated: expected 28 bytes, found " + std::to_string(n)), std::string::npos);
    }
    const auto refused = [&](size_t n) {
      EXPECT_EQ(
          error_of(whole.substr(0, n) + std::string(n > whole.size() ? n - whole.size() : 0, 'x')),
          "file size: expected " + size + " bytes from the sizes in the llama2.c header, found " + std::to_string(n));
    };
    size_t edge = sizeof h;
    for (const Part& p : parts_of(h)) {
      for (const size_t n : {edge, edge + 1, edge + 4}) refused(n);
      edge += size_t(std::max(1, p.layers) * p.rows * p.cols) * 4;
      refused(edge - 1);
    }
    ASSERT_EQ(edge, whole.size());
    for (const size_t more : {1, 4, 60, 100000}) refused(whole.size() + more);
  }
}

TEST(Llama2cRejects, InvalidSizes) {
  struct Field {
    const char* name;
    int32_t Header7::*value;
    int64_t most;
  };
  const Field fields[] = {{"dim", &Header7::dim, 1 << 16},           {"hidden_dim", &Header7::hidden_dim, 1 << 20},
                          {"n_layers", &Header7::n_layers, 1 << 10}, {"n_heads", &Header7::n_heads, 1 << 10},
                          {"n_kv_heads", &Header7::n_kv_heads, 2},   {"vocab_size", &Header7::vocab_size, 1 << 22},
                          {"seq_len", &Header7::seq_len, 1 << 22}};
  for (const Field& field : fields)
    for (const int32_t value : {0, -1, INT_MIN, INT_MAX, -INT_MAX, int32_t(field.most + 1)}) {
      Header7 h;
      h.*field.value = value;
      const bool vocabulary = field.value == &Header7::vocab_size;
      if (vocabulary && value == -1) continue;  // one token, untied
      const std::string error = error_of(h, 100);
      const int64_t found = !vocabulary ? value : value == INT_MIN ? 0 : std::abs(int64_t(value));
      EXPECT_NE(error.find("model.bin: llama2.c header: " + std::string(field.name) + ": expected 1 to " +
                           std::to_string(field.most) + ", found " + std::to_string(found)),
                std::string::npos)
          << field.name << " = " << value << ": " << error;
    }
}

TEST(Llama2cRejects, HeadsThatDoNotDivide) {
  const auto header = [](int dim, int heads, int kv_heads) {
    Header7 h;
    h.dim = dim;
    h.n_heads = heads;
    h.n_kv_heads = kv_heads;
    return error_of(h, 100);
  };
  const std::pair<std::string, const char*> all[] = {
      {header(12, 5, 1), "head_dim: expected 2 to 1024, found 0"},
      {header(12, 24, 1), "head_dim: expected 2 to 1024, found 0"},
      {header(12, 12, 1), "head_dim: expected 2 to 1024, found 1"},
      {header(2048, 1, 1), "head_dim: expected 2 to 1024, found 2048"},
      {header(12, 4, 4), "head_dim: expected an even number, found 3"},
      {header(12, 3, 2), "n_kv_heads: expected a divisor of 3 heads, found 2"},
      {header(12, 2, 4), "n_kv_heads: expected 1 to 2, found 4"}};
  for (const auto& [error, expected] : all) EXPECT_NE(error.find(expected), std::string::npos) << error;
}

TEST(Llama2cRejects, LargestSizesByFileSize) {
  const Header7 largest = {1 << 16, 1 << 20, 1 << 10, 1 << 10, 1 << 10, -(1 << 22), 1 << 22};
  uint64_t expected = sizeof largest;
  for (const Part& p : parts_of(largest))
    expected += uint64_t(std::max(1, p.layers)) * uint64_t(p.rows) * uint64_t(p.cols) * 4;
  EXPECT_EQ(error_of(largest, 0), "file size: expected " + std::to_string(expected) +
                                      " bytes from the sizes in the llama2.c header, found 28");
}

TEST(Llama2cRejects, RandomHeaders) {
  tiny::Random random(8);
  const int32_t numbers[] = {0, 1, -1, 2, 4, 12, 64, 1000, 1 << 10, 1 << 16, 1 << 20, 1 << 22, INT_MAX, INT_MIN, -5};
  for (int i = 0; i < 3000; i++) {
    int32_t h[7];
    for (int32_t& n : h) n = random.below(8) ? numbers[random.below(15)] : int32_t(random.bits());
    std::string file;
    append(file, h);
    ASSERT_NE(error_of(file + std::string(64, '\0')), "");
  }
}

TEST(Llama2cRejects, FilesOfOtherPrograms) {
  const std::pair<std::string, const char*> all[] = {
      {"", "an empty file"},
      {"\x80\x02" + std::string(100, 'x'),
       "a Python pickle (old PyTorch checkpoint); load the model in Python and save it again"},
      {"PKTLLAMA" + std::string(100, 'x'),
       "a model file, which is converted already; run it with ./run FILE (only a Llama of type f32 can be converted "
       "again)"},
      {"lmgg" + std::string(100, '\1'), "a GGML file, the predecessor of GGUF"},
      {"\x89HDF" + std::string(100, '\1'), "an HDF5 file (TensorFlow)"},
      {"<!DOCTYPE html>" + std::string(100, ' '), "a web page (HTML); the download failed"},
      {"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file itself"},
      {"{\"hidden_size\": 64, \"num_hidden_layers\": 2}", "a JSON file; name its folder instead"}};
  for (const auto& [bytes, expected] : all)
    EXPECT_EQ(error_of(bytes).find(
                  std::string("expected a checkpoint (a folder with config.json, safetensors, PyTorch, GGUF or "
                              "llama2.c), found ") +
                  expected),
              0u)
        << error_of(bytes);
}

}  // namespace llama2c_test
