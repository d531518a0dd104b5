// gguf_test.cpp: GGUF files, made here by the description of the format. Blocks of every supported type are decoded,
// settings are read or rejected with their key, and every field of a header is checked.
#include "../../export/gguf.hpp"

#include <gtest/gtest.h>

#include <climits>
#include <cmath>

#include "../support/allocation_limit.hpp"
#include "../support/gguf_file.hpp"
#include "../support/tiny_model.hpp"

namespace gguf_test {

using namespace pocket;
using namespace gguf;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::string random_floats(size_t n, uint64_t seed) {
  tiny::Random random(seed);
  std::string out;
  for (size_t i = 0; i < n; i++) out += raw(random.normal());
  return out;
}

/// dim 32, hidden_dim 64, 1 layer, 4 heads on 2, 5 tokens.
GgufFile small() {
  GgufFile f;
  f["general.architecture"] = string("llama");
  f["general.name"] = string("a test");
  f["llama.context_length"] = u32(128);
  f["llama.embedding_length"] = u32(32);
  f["llama.block_count"] = u32(1);
  f["llama.feed_forward_length"] = u32(64);
  f["llama.attention.head_count"] = u32(4);
  f["llama.attention.head_count_kv"] = u32(2);
  f["llama.attention.layer_norm_rms_epsilon"] = f32(0.25f);
  f["llama.rope.freq_base"] = f32(50000);
  const auto add = [&](const char* name, uint64_t cols, uint64_t rows) {
    const std::vector<uint64_t> sizes = rows ? std::vector<uint64_t>{cols, rows} : std::vector<uint64_t>{cols};
    f.tensors.push_back({name, sizes, kF32, random_floats(cols * std::max<uint64_t>(rows, 1), f.tensors.size() + 1)});
  };
  add("token_embd.weight", 32, 5);
  add("blk.0.attn_norm.weight", 32, 0);
  add("blk.0.attn_q.weight", 32, 32);
  add("blk.0.attn_k.weight", 32, 16);
  add("blk.0.attn_v.weight", 32, 16);
  add("blk.0.attn_output.weight", 32, 32);
  add("blk.0.ffn_norm.weight", 32, 0);
  add("blk.0.ffn_gate.weight", 32, 64);
  add("blk.0.ffn_up.weight", 32, 64);
  add("blk.0.ffn_down.weight", 64, 32);
  add("output_norm.weight", 32, 0);
  add("output.weight", 32, 5);
  return f;
}

/// A SentencePiece tokenizer of the same five tokens.
GgufFile with_tokenizer() {
  GgufFile f = small();
  f["tokenizer.ggml.model"] = string("llama");
  f["tokenizer.ggml.tokens"] = strings({"<unk>", "<s>", "</s>", "a", "\xE2\x96\x81"});
  f["tokenizer.ggml.scores"] = floats({0, 0, 0, -1, -2});
  f["tokenizer.ggml.token_type"] = array(GgufKind::i32, 5, raw(2) + raw(3) + raw(3) + raw(1) + raw(1));
  f["tokenizer.ggml.eos_token_id"] = u32(2);
  return f;
}

/// A file on disk, opened. The next object overwrites it.
struct Opened {
  Checkpoint c;
  std::string path, error;

  explicit Opened(const std::string& bytes, bool own_tokenizer = true) {
    static const TemporaryFolder folder;
    std::filesystem::remove(folder.file("m.gguf"));  // faster than overwriting it
    path = folder.write("m.gguf", bytes);
    auto file = InputFile::open(path, error);
    EXPECT_TRUE(file) << error;
    const bool ok = file && open_gguf(std::move(file), own_tokenizer, c, error);
    EXPECT_EQ(ok, error.empty()) << error;
    EXPECT_TRUE(ok || contains(error, "m.gguf: ")) << error;
  }
  std::string what() const { return error.substr(std::min(error.size(), path.size() + 2)); }

  tiny::Floats read(const std::string& name) {
    const StoredTensor& t = c.tensors.at(name);
    tiny::Floats out(size_t(t.rows * t.cols));
    EXPECT_TRUE(c.read_rows(name, 0, t.rows, out.data(), error)) << error;
    return out;
  }
};

std::string error_of(const GgufFile& f) { return Opened(f.bytes()).what(); }

// ---- Valid files ----

TEST(Gguf, ReadsSettingsAndTensors) {
  for (const uint32_t version : {2u, 3u}) {
    GgufFile g = small();
    g.version = version;
    Opened f(g.bytes());
    ASSERT_EQ(f.error, "");
    const Config& k = f.c.config;
    EXPECT_TRUE(k.dim == 32 && k.hidden_dim == 64 && k.n_layers == 1 && k.n_heads == 4 && k.n_kv_heads == 2);
    EXPECT_TRUE(k.head_dim == 8 && k.vocab_size == 5 && k.max_seq_len == 128);
    EXPECT_TRUE(k.norm_eps == 0.25f && k.rope_theta == 50000 && k.rope_scaling == RopeScaling::none && !k.tied);
    EXPECT_EQ(f.c.format, "GGUF v" + std::to_string(version));
    EXPECT_EQ(f.c.name, "a test");
    for (const TensorSpec& spec : tensor_specs(k)) {
      ASSERT_EQ(f.c.tensors.count(spec.name), 1u) << spec.name;
      EXPECT_TRUE(f.c.tensors[spec.name].rows == spec.rows && f.c.tensors[spec.name].cols == spec.cols) << spec.name;
    }
    const tiny::Floats w2 = f.read("layers.0.w2");
    EXPECT_EQ(std::memcmp(w2.data(), g.tensors[9].bytes.data(), w2.size() * 4), 0);
  }
}

// llama.cpp rotates adjacent rows; the engine rotates rows i and i + half.
TEST(Gguf, ReadsQueriesAndKeysInHalfSplitOrder) {
  const GgufFile g = small();
  Opened f(g.bytes());
  ASSERT_EQ(f.error, "");
  for (const auto& [name, tensor] : {std::pair{"layers.0.wq", 2}, {"layers.0.wk", 3}}) {
    const tiny::Floats found = f.read(name);
    for (size_t row = 0; row < found.size() / 32; row++) {
      const size_t in_head = row % 8, stored = row - in_head + in_head % 4 * 2 + in_head / 4;
      EXPECT_EQ(std::memcmp(&found[row * 32], &g.tensors[size_t(tensor)].bytes[stored * 128], 128), 0) << row;
    }
  }
}

TEST(Gguf, IsTiedWithoutOutputMatrix) {
  GgufFile g = small();
  g.tensors.pop_back();
  Opened f(g.bytes());
  ASSERT_EQ(f.error, "");
  EXPECT_TRUE(f.c.config.tied);
  EXPECT_EQ(f.read("output"), f.read("token_embedding"));
}

TEST(Gguf, UsesDefaults) {
  GgufFile g = small();
  g.erase("llama.attention.head_count_kv");
  g.erase("llama.rope.freq_base");
  g.tensors[3] = {"blk.0.attn_k.weight", {32, 32}, kF32, random_floats(1024, 1)};
  g.tensors[4] = {"blk.0.attn_v.weight", {32, 32}, kF32, random_floats(1024, 2)};
  Opened f(g.bytes());
  ASSERT_EQ(f.error, "");
  EXPECT_EQ(f.c.config.n_kv_heads, 4);
  EXPECT_EQ(f.c.config.rope_theta, 10000.f);
}

TEST(Gguf, AcceptsNumbersOfAnyKind) {
  for (const std::string& value : {kind(GgufKind::u8) + raw(uint8_t(32)), kind(GgufKind::i8) + raw(int8_t(32)),
                                   kind(GgufKind::u16) + raw(uint16_t(32)), kind(GgufKind::i16) + raw(int16_t(32)),
                                   kind(GgufKind::i32) + raw(int32_t(32)), kind(GgufKind::u64) + raw(uint64_t(32)),
                                   kind(GgufKind::i64) + raw(int64_t(32)), f32(32), kind(GgufKind::f64) + raw(32.0)}) {
    GgufFile g = small();
    g["llama.embedding_length"] = value;
    EXPECT_EQ(error_of(g), "");
  }
}

TEST(Gguf, UsesAlignment) {
  for (const uint64_t alignment : {1, 8, 64, 4096}) {
    GgufFile g = small();
    g.alignment = alignment;
    g["general.alignment"] = u32(uint32_t(alignment));
    Opened f(g.bytes());
    ASSERT_EQ(f.error, "");
    EXPECT_EQ(std::memcmp(f.read("layers.0.w1").data(), g.tensors[7].bytes.data(), 64), 0);
  }
  GgufFile g = small();
  for (const uint32_t bad : {0u, 3u, 48u, 0xffffffffu}) {
    g["general.alignment"] = u32(bad);
    EXPECT_TRUE(contains(error_of(g), "general.alignment: expected ")) << bad;
  }
}

// ---- Blocks ----

/// Decodes by the description of ggml's types: a float16 scale d (and minimum m), then 32 weights.
std::vector<double> naive_block(uint32_t type, const uint8_t* p) {
  std::vector<double> w;
  const double d = from_f16(load<uint16_t>(p)), m = from_f16(load<uint16_t>(p + 2));
  for (int i = 0; i < 32; i++) {
    if (type == kQ8_0) w.push_back(d * int8_t(p[2 + i]));
    const uint8_t* codes = p + (type == kQ4_1 ? 4 : 2);
    const int code = i < 16 ? codes[i] % 16 : codes[i - 16] / 16;  // the low nibbles are the first half
    if (type == kQ4_0) w.push_back(d * (code - 8));
    if (type == kQ4_1) w.push_back(d * code + m);
  }
  return w;
}

TEST(GgufBlocks, DecodesByDescription) {
  tiny::Random random(2);
  for (const auto& [type, bytes] : {std::pair{kQ8_0, 34}, {kQ4_0, 18}, {kQ4_1, 20}}) {
    GgufFile g = small();
    std::string blocks;
    for (int b = 0; b < 64; b++) {  // w2: 32 rows of 64
      std::string block = raw(uint16_t(0x2000 + random.below(0x1c00) + 0x8000 * random.below(2)));
      if (type == kQ4_1) block += raw(uint16_t(0x2000 + random.below(0x1c00)));
      while (block.size() < size_t(bytes)) block += char(random.bits());
      blocks += block;
    }
    g.tensors[9] = {"blk.0.ffn_down.weight", {64, 32}, type, blocks};
    Opened f(g.bytes());
    ASSERT_EQ(f.error, "");
    const tiny::Floats found = f.read("layers.0.w2");
    for (size_t b = 0; b < 64; b++) {
      const auto expected = naive_block(type, reinterpret_cast<const uint8_t*>(&blocks[b * size_t(bytes)]));
      for (size_t i = 0; i < 32; i++)
        ASSERT_NEAR(found[b * 32 + i], expected[i], 1e-6 * (1 + std::fabs(expected[i]))) << type << " block " << b;
    }
  }
}

TEST(GgufBlocks, Decodes16BitFloats) {
  for (const uint32_t type : {kF16, kBF16}) {
    GgufFile g = small();
    std::string halves;
    for (int i = 0; i < 2048; i++) halves += raw(uint16_t(i % 2 ? (type == kF16 ? 0x3e00 : 0x3fc0) : 0xc000));
    g.tensors[9] = {"blk.0.ffn_down.weight", {64, 32}, type, halves};
    Opened f(g.bytes());
    ASSERT_EQ(f.error, "");
    const tiny::Floats found = f.read("layers.0.w2");
    for (size_t i = 0; i < 2048; i++) ASSERT_EQ(found[i], i % 2 ? 1.5f : -2.f);
  }
}

TEST(GgufBlocks, RejectsUnsupportedTypes) {
  const std::pair<uint32_t, const char*> others[] = {
      {9, "Q8_1"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {21, "IQ3_S"},  {24, "I8"},      {28, "F64"},
      {34, "TQ1_0"}, {39, "MXFP4"}, {4, "unknown"},  {5, "unknown"}, {40, "unknown"}, {UINT_MAX, "unknown"}};
  for (const auto& [type, name] : others) {
    GgufFile g = small();
    g.tensors[9].type = type;
    EXPECT_EQ(
        error_of(g),
        "tensor blk.0.ffn_down.weight: type: expected one of F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K "
        "Q5_K Q6_K IQ4_NL IQ4_XS, found " +
            std::string(name) + " (" + std::to_string(type) + "), which is not supported");
  }
}

// dtype_test.cpp tests the contents of blocks; this test checks ggml's type numbers.
TEST(GgufBlocks, MapsTypeNumbers) {
  const std::tuple<uint32_t, DType, int> all[] = {
      {6, DType::q5_0, 32},   {7, DType::q5_1, 32},    {10, DType::q2_k, 256},
      {11, DType::q3_k, 256}, {12, DType::q4_k, 256},  {13, DType::q5_k, 256},
      {14, DType::q6_k, 256}, {20, DType::iq4_nl, 32}, {23, DType::iq4_xs, 256}};
  for (const auto& [type, dtype, block] : all) {
    GgufFile g = small();
    g["llama.feed_forward_length"] = u32(256);
    for (const size_t up : {7, 8}) g.tensors[up].sizes[1] = 256, g.tensors[up].bytes = random_floats(32 * 256, up);
    const size_t bytes = size_t(32 * 256 / block * dtype_info(dtype).block_bytes);
    g.tensors[9] = {"blk.0.ffn_down.weight", {256, 32}, type, std::string(bytes, '\0')};
    Opened f(g.bytes());
    ASSERT_EQ(f.error, "");
    EXPECT_EQ(f.c.tensors["layers.0.w2"].dtype, dtype);
    EXPECT_EQ(dtype_info(dtype).block, block);
    for (const float w : f.read("layers.0.w2")) ASSERT_EQ(w, 0.f);
    if (block == 32) continue;
    g = small();  // rows of 64
    g.tensors[9].type = type;
    EXPECT_TRUE(contains(error_of(g), "tensor blk.0.ffn_down.weight: expected rows of whole blocks")) << type;
  }
}

TEST(GgufBlocks, RejectsPartialBlocks) {
  GgufFile g = small();
  g.tensors[9] = {"blk.0.ffn_down.weight", {48, 32}, kQ8_0, std::string(48 * 34, 'x')};
  EXPECT_TRUE(contains(error_of(g), "tensor blk.0.ffn_down.weight: expected rows of whole blocks"));
}

// ---- Rejected settings ----

TEST(GgufRejects, MissingKeysAndTensors) {
  for (const char* key :
       {"general.architecture", "llama.context_length", "llama.embedding_length", "llama.block_count",
        "llama.feed_forward_length", "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon"}) {
    GgufFile g = small();
    g.erase(key);
    EXPECT_EQ(error_of(g), "metadata " + std::string(key) + ": expected a value, found none");
  }
  for (size_t i = 0; i + 1 < small().tensors.size(); i++) {
    GgufFile g = small();
    const std::string name = g.tensors[i].name;
    g.tensors.erase(g.tensors.begin() + long(i));
    const std::string error = error_of(g);  // without the embedding the vocabulary size is missing
    EXPECT_TRUE(i == 0 ? contains(error, "llama.vocab_size") : contains(error, "tensor " + name + ": expected shape"))
        << error;
  }
}

TEST(GgufRejects, OtherArchitectures) {
  const std::tuple<const char*, std::string, const char*> all[] = {
      {"general.architecture", string("qwen2"), "general.architecture: expected llama, found qwen2"},
      {"split.count", u32(2), "split.count: expected 1"},
      {"llama.expert_count", u32(8), "llama.expert_count: expected 0"},
      {"llama.attention.sliding_window", u32(4096), "llama.attention.sliding_window: expected 0"},
      {"llama.logit_scale", f32(0.5), "llama.logit_scale: expected 1"},
      {"llama.attention.causal", boolean(false), "llama.attention.causal: expected true"},
      {"llama.use_parallel_residual", boolean(true), "llama.use_parallel_residual: expected false"},
      {"llama.rope.scaling.type", string("yarn"), "llama.rope.scaling.type: expected none or linear, found yarn"},
      {"llama.rope.dimension_count", u32(4), "llama.rope.dimension_count: expected head_dim, 8, found 4"},
      {"llama.attention.value_length", u32(4), "llama.attention.value_length: expected head_dim"},
      {"llama.attention.key_length", u32(16), "llama.attention.value_length: "},
      {"general.architecture", u32(1), "metadata general.architecture: expected a string"},
      {"llama.block_count", string("1"), "metadata llama.block_count: expected an integer"},
      {"llama.block_count", f32(1.5), "metadata llama.block_count: expected an integer"},
      {"llama.attention.causal", u32(1), "metadata llama.attention.causal: expected true or false"}};
  for (const auto& [key, value, expected] : all) {
    GgufFile g = small();
    if (std::string(key) == "llama.attention.key_length") g["llama.attention.value_length"] = u32(8);
    g[key] = value;
    EXPECT_TRUE(contains(error_of(g), expected)) << error_of(g);
  }
  GgufFile g = small();
  g.tensors.push_back({"blk.0.attn_q.bias", {32}, kF32, random_floats(32, 1)});
  EXPECT_TRUE(contains(error_of(g), "blk.0.attn_q.bias")) << error_of(g);
}

TEST(GgufRejects, InvalidSizes) {
  for (const auto& [key, most] : {std::pair{"llama.embedding_length", 1 << 16},
                                  {"llama.feed_forward_length", 1 << 20},
                                  {"llama.block_count", 1 << 10},
                                  {"llama.attention.head_count", 1 << 10},
                                  {"llama.context_length", 1 << 22}})
    for (const int64_t value : {int64_t(0), int64_t(most) + 1, int64_t(INT_MAX), int64_t(-1), INT64_MAX, INT64_MIN}) {
      GgufFile g = small();
      g[key] = kind(GgufKind::i64) + raw(value);
      if (std::string(key) == "llama.embedding_length") g["llama.attention.key_length"] = u32(8);
      EXPECT_TRUE(contains(error_of(g), std::string(key) + ": expected ") || contains(error_of(g), "key_length"))
          << value << ": " << error_of(g);
    }
  GgufFile g = small();
  g["llama.attention.head_count_kv"] = u32(3);
  EXPECT_EQ(error_of(g), "llama.attention.head_count_kv: expected a divisor of 4 heads, found 3");
}

// ---- Rotary factors ----

std::string llama3_factors(const Config& scaled, const Config& plain) {
  std::string out;
  for (int i = 0; i < plain.head_dim / 2; i++) out += raw(float(rope_frequency(plain, i) / rope_frequency(scaled, i)));
  return out;
}

TEST(GgufRopeFactors, BecomeLlama3Scaling) {
  Config plain;
  plain.head_dim = 8;
  plain.rope_theta = 50000;
  Config scaled = plain;
  scaled.rope_scaling = RopeScaling::llama3;
  scaled.rope_factor = 8;
  scaled.rope_original_len = 64;
  GgufFile g = small();
  g.tensors.push_back({"rope_freqs.weight", {4}, kF32, llama3_factors(scaled, plain)});
  Opened f(g.bytes());
  ASSERT_EQ(f.error, "");
  EXPECT_EQ(f.c.config.rope_scaling, RopeScaling::llama3);
  for (int i = 0; i < 4; i++)
    EXPECT_NEAR(rope_frequency(f.c.config, i) / rope_frequency(scaled, i), 1, 1e-4) << "pair " << i;
  g.tensors.back().bytes = raw(1.f) + raw(3.f) + raw(2.f) + raw(8.f);
  EXPECT_TRUE(contains(error_of(g), "tensor rope_freqs.weight: expected the factors of Llama 3's scaling"));
  g.tensors.back().bytes = raw(NAN) + raw(NAN) + raw(NAN) + raw(NAN);
  EXPECT_TRUE(contains(error_of(g), "tensor rope_freqs.weight: expected the factors of Llama 3's scaling"));
  g.tensors.back().sizes = {2};
  EXPECT_TRUE(contains(error_of(g), "tensor rope_freqs.weight: expected F32 of shape (4), found F32 (2)"));
}

// ---- The tokenizer ----

TEST(GgufTokenizer, ReadsSentencePiece) {
  Opened f(with_tokenizer().bytes());
  ASSERT_EQ(f.error, "");
  EXPECT_TRUE(f.c.has_tokenizer);
  EXPECT_EQ(f.c.vocabulary.pieces.size(), 5u);
  EXPECT_EQ(f.c.vocabulary.pieces[3].score, -1);
  EXPECT_TRUE(f.c.vocabulary.add_bos && f.c.vocabulary.bos == 1 && f.c.vocabulary.eos == 2);
  EXPECT_EQ(f.c.stop_ids, std::vector<int>{2});
  EXPECT_FALSE(Opened(with_tokenizer().bytes(), false).c.has_tokenizer) << "another tokenizer is used";
}

TEST(GgufTokenizer, ReadsByteLevelBpe) {
  GgufFile g = small();
  g["tokenizer.ggml.model"] = string("gpt2");
  g["tokenizer.ggml.pre"] = string("smollm");
  g["tokenizer.ggml.tokens"] = strings({"<|im_end|>", "a", "b", "ab", "\xC4\xA0"});
  g["tokenizer.ggml.token_type"] = array(GgufKind::i32, 5, raw(3) + raw(1) + raw(1) + raw(1) + raw(1));
  g["tokenizer.ggml.merges"] = strings({"a b"});
  Opened f(g.bytes());
  ASSERT_EQ(f.error, "");
  EXPECT_EQ(f.c.vocabulary.pieces[4].text, " ");
  EXPECT_EQ(f.c.vocabulary.merges, (std::vector<std::pair<int, int>>{{1, 2}}));
  EXPECT_EQ(f.c.vocabulary.split, Tokenizer::Split::smollm);
  for (const char* bad : {"a", "a  b", "a c", "b a", "a b c", ""}) {
    g["tokenizer.ggml.merges"] = strings({bad});
    EXPECT_TRUE(contains(error_of(g), "merge 0")) << bad << ": " << error_of(g);
  }
  g["tokenizer.ggml.pre"] = string("qwen2");
  EXPECT_TRUE(contains(error_of(g), "tokenizer.ggml.pre: expected gpt-2, smollm or llama-bpe, found qwen2"));
}

TEST(GgufTokenizer, TreatsUserDefinedTokensAsAdded) {
  GgufFile g = with_tokenizer();
  g["tokenizer.ggml.token_type"] = array(GgufKind::i32, 5, raw(2) + raw(3) + raw(3) + raw(4) + raw(1));
  Opened f(g.bytes());
  ASSERT_EQ(f.error, "");
  EXPECT_EQ(f.c.vocabulary.pieces[3].type, Tokenizer::PieceType::added);
  Tokenizer tokenizer;
  ASSERT_TRUE(tokenizer.load(Tokenizer::to_blob(f.c.vocabulary)));
  EXPECT_EQ(tokenizer.encode("a a"), (std::vector<int>{1, 3, 4, 4, 3})) << "each stretch between begins with a space";
}

TEST(GgufTokenizer, TokensOfPhi3StripTheSpaceAfterThem) {
  GgufFile g = with_tokenizer();
  for (const auto& [name, strip] : {std::pair{"Phi-3-mini", 2}, {"phi3", 2}, {"Llama", 0}}) {
    g["general.name"] = string(name);
    Opened f(g.bytes());
    ASSERT_EQ(f.error, "");
    EXPECT_EQ(f.c.vocabulary.pieces[2].strip, strip) << name;
    EXPECT_EQ(f.c.vocabulary.pieces[1].strip, 0) << "<s>";
    EXPECT_EQ(f.c.vocabulary.pieces[3].strip, 0) << "a";
  }
}

TEST(GgufTokenizer, RejectsInvalidSettings) {
  const std::tuple<const char*, std::string, const char*> all[] = {
      {"tokenizer.ggml.model", string("bert"), "tokenizer.ggml.model: expected llama or gpt2, found bert"},
      {"tokenizer.ggml.scores", floats({0, 0}), "tokenizer.ggml.scores: expected one for each of 5 tokens, found 2"},
      {"tokenizer.ggml.scores", strings({"a"}), "tokenizer.ggml.scores: expected an array of numbers"},
      {"tokenizer.ggml.tokens", floats({1}), "tokenizer.ggml.tokens: expected an array of strings"},
      {"tokenizer.ggml.tokens", strings({}), "expected one for each of 0 tokens"},
      {"tokenizer.ggml.token_type", floats({2, 3, 3, 1, 9}), "token 4: type: expected 1 to 6"},
      {"tokenizer.ggml.token_type", floats({2, 3, 3, 1, NAN}), "token 4: type: expected 1 to 6"},
      {"tokenizer.ggml.bos_token_id", u32(5), "tokenizer.ggml.bos_token_id: expected an integer from 0 to 4"},
      {"tokenizer.ggml.eos_token_id", kind(GgufKind::i32) + raw(-1), "tokenizer.ggml.eos_token_id: expected"},
      {"tokenizer.ggml.precompiled_charsmap", strings({"x"}), "tokenizer.ggml.precompiled_charsmap: expected none"},
      {"tokenizer.ggml.eot_token_id", u32(5), "tokenizer.ggml.eot_token_id: expected an id below 5, found 5"}};
  for (const auto& [key, value, expected] : all) {
    GgufFile g = with_tokenizer();
    g[key] = value;
    EXPECT_TRUE(contains(error_of(g), expected)) << error_of(g);
  }
  for (const char* key : {"tokenizer.ggml.tokens", "tokenizer.ggml.token_type"}) {
    GgufFile g = with_tokenizer();
    g.erase(key);
    EXPECT_EQ(error_of(g), "metadata " + std::string(key) + ": expected a value, found none");
  }
}

// ---- Invalid headers ----

TEST(GgufHostile, RejectsMagicAndVersion) {
  GgufFile g = small();
  g.magic = "GGUX";
  EXPECT_EQ(error_of(g), "magic: expected \"GGUF\"");
  g.magic = "GGUF";
  g.version = 1;
  EXPECT_TRUE(contains(error_of(g), "a GGUF file of version 1"));
  for (const uint32_t version : {0u, 4u, 99u, UINT_MAX}) {
    g.version = version;
    EXPECT_EQ(error_of(g), "version: expected 2 or 3, found " + std::to_string(version));
  }
  g.version = 0x03000000;
  EXPECT_EQ(error_of(g), "a big-endian GGUF file, which is not supported");
}

TEST(GgufHostile, RejectsImpossibleCounts) {
  for (const uint64_t more : {uint64_t(1), uint64_t(1000), uint64_t(1) << 32, uint64_t(1) << 63, UINT64_MAX - 100}) {
    GgufFile tensors = small(), pairs = small();
    tensors.more_tensors = more;
    pairs.more_pairs = more;
    EXPECT_NE(error_of(tensors), "") << more;
    EXPECT_NE(error_of(pairs), "") << more;
  }
}

TEST(GgufHostile, RejectsInvalidMetadata) {
  const uint64_t huge[] = {uint64_t(1) << 20, uint64_t(1) << 32, uint64_t(1) << 61, uint64_t(1) << 63, UINT64_MAX};
  for (const uint64_t n : huge) {
    std::vector<std::string> values = {kind(GgufKind::string) + raw(n)};
    for (uint32_t element = 0; element < 13; element++) values.push_back(array(GgufKind(element), n, "abc"));
    for (const std::string& value : values) {
      GgufFile g = small();
      g.metadata.push_back({"x", value});
      EXPECT_NE(error_of(g), "") << n;
      EXPECT_NE(Opened(g.header()).what(), "");
    }
  }
  for (const uint32_t bad : {13u, 14u, 255u, UINT_MAX}) {
    GgufFile g = small();
    g["x"] = raw(bad) + raw(uint64_t(0));
    EXPECT_EQ(error_of(g), "metadata x: kind: expected 0 to 12, found " + std::to_string(bad));
    g["x"] = array(GgufKind(bad), 1, raw(uint64_t(0)));
    EXPECT_EQ(error_of(g), "metadata x: kind of its elements: expected 0 to 12, found " + std::to_string(bad));
  }
  GgufFile twice = small();
  twice.metadata.push_back({"general.name", string("again")});
  EXPECT_EQ(error_of(twice), "metadata general.name: expected once, found twice");
  GgufFile key = small();
  key.metadata.push_back({std::string(65536, 'k'), u32(1)});
  EXPECT_TRUE(contains(error_of(key), "length of the key: expected at most 65535, found 65536"));
}

TEST(GgufHostile, LimitsNestedArrays) {
  for (const int depth : {1, 4, 5, 10000}) {
    std::string value = raw(uint32_t(GgufKind::u8)) + raw(uint64_t(1)) + "x";
    for (int i = 1; i < depth; i++) value = raw(uint32_t(GgufKind::array)) + raw(uint64_t(1)) + value;
    GgufFile g = small();
    g["x"] = kind(GgufKind::array) + value;
    EXPECT_EQ(error_of(g), depth <= 4 ? "" : "metadata x: expected at most 4 nested arrays") << depth;
  }
}

TEST(GgufHostile, RejectsInvalidTensors) {
  const auto with = [](const std::function<void(TensorOf&)>& spoil) {
    GgufFile g = small();
    spoil(g.tensors[9]);
    return error_of(g);
  };
  const std::string where = "tensor blk.0.ffn_down.weight: ";
  EXPECT_TRUE(contains(with([](TensorOf& t) { t.sizes = {}; }), where + "dimensions: expected 1 to 4, found 0"));
  EXPECT_TRUE(contains(with([](TensorOf& t) { t.sizes = {1, 1, 1, 1, 2048}; }), where + "dimensions: expected 1 to 4"));
  for (const uint64_t size : {uint64_t(1) << 63, UINT64_MAX})
    EXPECT_TRUE(contains(with([&](TensorOf& t) { t.sizes[0] = size; }), where + "size: expected less than 2^63"));
  for (const std::vector<uint64_t>& sizes : std::vector<std::vector<uint64_t>>{
           {uint64_t(1) << 62, 4}, {uint64_t(1) << 32, uint64_t(1) << 32}, {uint64_t(1) << 31, 1, 1 << 30, 4}})
    EXPECT_TRUE(contains(with([&](TensorOf& t) { t.sizes = sizes; }), where)) << sizes[0];
  for (const std::vector<uint64_t>& sizes :
       std::vector<std::vector<uint64_t>>{{0, 32}, {64, 0}, {32, 64}, {2048}, {64, 31}, {1 << 30, 1 << 10}})
    EXPECT_TRUE(contains(with([&](TensorOf& t) { t.sizes = sizes; }), "tensor ")) << sizes[0];
  GgufFile twice = small();
  twice.tensors.push_back(twice.tensors[3]);
  EXPECT_EQ(error_of(twice), "tensor blk.0.attn_k.weight: expected once, found twice");
  GgufFile name = small();
  name.tensors[0].name = std::string(1025, 'n');
  EXPECT_TRUE(contains(error_of(name), "length of the name: expected at most 1024, found 1025"));
}

TEST(GgufHostile, RejectsInvalidOffsets) {
  const GgufFile g = small();
  const std::string whole = g.bytes();
  const size_t at = g.header().size() - 8;  // the offset of the last tensor
  const auto with = [&](uint64_t offset) {
    std::string file = whole;
    file.replace(at, 8, raw(offset));
    return Opened(file).what();
  };
  const uint64_t offset = load<uint64_t>(&whole[at]);
  EXPECT_EQ(with(offset), "");
  EXPECT_TRUE(contains(with(offset + 1), "tensor output.weight: offset: expected a multiple of 32"));
  for (const uint64_t wrong : {offset + 32, offset * 2, uint64_t(1) << 62, UINT64_MAX - 31})
    EXPECT_TRUE(contains(with(wrong), "tensor output.weight: expected 640 bytes at offset ")) << with(wrong);
  EXPECT_TRUE(contains(with(0), "expected no overlap, found the bytes of ")) << with(0);
}

TEST(GgufHostile, RejectsEveryTruncation) {
  const GgufFile g = with_tokenizer();
  const std::string whole = g.bytes();
  ASSERT_EQ(error_of(g), "");
  for (size_t n = 4; n < g.header().size(); n++) ASSERT_NE(Opened(whole.substr(0, n)).what(), "") << n;
  for (size_t n = g.header().size(); n < whole.size(); n += 1 + n % 97)
    ASSERT_NE(Opened(whole.substr(0, n)).what(), "") << n;
}

TEST(GgufHostile, SurvivesDamagedHeaders) {
  const GgufFile g = with_tokenizer();
  const std::string whole = g.bytes();
  const int header = int(g.header().size());
  tiny::Random random(3);
  int opened = 0;
  for (int i = 0; i < 6000; i++) {
    std::string file = whole;
    for (int n = 1 + random.below(3); n > 0; n--) {
      const size_t at = size_t(random.below(header));
      const uint64_t extreme[] = {0, 1, 0x7fffffff, 0x80000000, 0xffffffff, INT64_MAX, UINT64_MAX};
      if (random.below(2))
        file[at] = char(random.bits());
      else
        file.replace(at, std::min<size_t>(8, file.size() - at), raw(extreme[random.below(7)]));
    }
    Opened f(file);
    if (!f.error.empty()) continue;
    opened++;
    for (const auto& [name, t] : f.c.tensors) {
      tiny::Floats row(size_t(t.cols));
      ASSERT_TRUE(f.c.read_rows(name, t.rows - 1, 1, row.data(), f.error)) << f.error;
    }
  }
  EXPECT_GT(opened, 50);
}

}  // namespace gguf_test
