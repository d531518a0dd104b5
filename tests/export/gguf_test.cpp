// gguf_test.cpp: GGUF files, made here by the description of the format. Blocks of every supported type are decoded,
// settings are read or rejected with their key, and every field of a header is checked.
#include "../../export/open_checkpoint.hpp"

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
      {"general.architecture", string("gemma"), "general.architecture: expected one of llama mistral3 qwen2 "},
      {"general.architecture", string("qwen3moe"), ", found qwen3moe"},
      {"llama.expert_count", u32(8), "llama.expert_count: expected 0"},
      {"llama.attention.sliding_window", u32(127),
       "llama.attention.sliding_window: expected 0, or at least the context"},
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
  g.tensors.push_back({"blk.0.attn_q_norm.weight", {8}, kF32, random_floats(8, 1)});
  EXPECT_TRUE(contains(error_of(g), "blk.0.attn_q_norm.weight")) << error_of(g);
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

// ---- Architectures ----

/// Fuses q, k and v, and gate and up, as in Phi-3.
void fuse(GgufFile& g) {
  auto& all = g.tensors;
  all[2] = {"blk.0.attn_qkv.weight", {32, 64}, all[2].type, all[2].bytes + all[3].bytes + all[4].bytes};
  all[8] = {"blk.0.ffn_up.weight", {32, 128}, all[8].type, all[7].bytes + all[8].bytes};
  all.erase(all.begin() + 7);
  all.erase(all.begin() + 3, all.begin() + 5);
}

/// small() as another architecture.
GgufFile small_of(const std::string& architecture) {
  GgufFile g = small();
  for (auto& [key, value] : g.metadata)
    if (key.rfind("llama.", 0) == 0) key = architecture + key.substr(5);
  g["general.architecture"] = string(architecture);
  if (architecture == "granite" || architecture == "minicpm")
    for (const char* key : {".logit_scale", ".residual_scale", ".embedding_scale"}) g[architecture + key] = f32(1);
  if (architecture == "qwen3")
    for (const char* name : {"blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight"})
      g.tensors.push_back({name, {8}, kF32, random_floats(8, g.tensors.size() + 1)});
  if (architecture == "phi3") fuse(g);
  return g;
}

void add_bias(GgufFile& g, const std::string& name, uint64_t size) {
  g.tensors.push_back({"blk.0." + name + ".bias", {size}, kF32, random_floats(size, g.tensors.size() + 1)});
}

const std::vector<float> floats_of(const std::string& bytes) {
  std::vector<float> out(bytes.size() / 4);
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

// llama.cpp rotates adjacent rows or, "NEOX", rows i and i + half. The biases of q and k are in the same order.
TEST(GgufArchitectures, ReadRowsAndBiasesInTheOrderOfLlamaCpp) {
  for (const auto& [architecture, adjacent] : {std::pair{"llama", true},
                                               {"mistral3", true},
                                               {"smollm3", true},
                                               {"granite", true},
                                               {"minicpm", true},
                                               {"ernie4_5", true},
                                               {"qwen2", false},
                                               {"qwen3", false}}) {
    GgufFile g = small_of(architecture);
    const size_t bias = g.tensors.size();
    add_bias(g, "attn_q", 32);
    add_bias(g, "attn_k", 16);
    add_bias(g, "attn_v", 16);
    Opened f(g.bytes());
    ASSERT_EQ(f.error, "") << architecture;
    EXPECT_TRUE(f.c.config.qkv_bias && !f.c.config.o_bias && !f.c.config.mlp_bias);
    EXPECT_EQ(f.c.config.qk_norm, architecture == std::string("qwen3"));
    const auto stored = [adjacent = adjacent](size_t row) {
      return adjacent ? row - row % 8 + row % 4 * 2 + row % 8 / 4 : row;
    };
    for (const auto& [name, tensor] : {std::pair{"layers.0.bq", bias}, {"layers.0.bk", bias + 1}}) {
      const tiny::Floats found = f.read(name);
      const std::vector<float> expected = floats_of(g.tensors[tensor].bytes);
      for (size_t i = 0; i < expected.size(); i++) EXPECT_EQ(found[i], expected[stored(i)]) << architecture << i;
    }
    const tiny::Floats wq = f.read("layers.0.wq"), bv = f.read("layers.0.bv");
    for (size_t row = 0; row < 32; row++)
      EXPECT_EQ(std::memcmp(&wq[row * 32], &g.tensors[2].bytes[stored(row) * 128], 128), 0) << architecture << row;
    EXPECT_EQ(std::memcmp(bv.data(), g.tensors[bias + 2].bytes.data(), 64), 0);
  }
}

TEST(GgufArchitectures, TensorsDecideTheBiases) {
  GgufFile g = small();
  add_bias(g, "attn_output", 32);
  Opened o(g.bytes());
  EXPECT_TRUE(o.error.empty() && o.c.config.o_bias && !o.c.config.qkv_bias && !o.c.config.mlp_bias) << o.error;
  add_bias(g, "ffn_down", 32);
  EXPECT_TRUE(contains(error_of(g), "tensor blk.0.ffn_gate.bias: expected shape (64), found no such tensor"));
  add_bias(g, "ffn_gate", 64);
  add_bias(g, "ffn_up", 64);
  Opened f(g.bytes());
  EXPECT_TRUE(f.error.empty() && f.c.config.mlp_bias) << f.error;
  EXPECT_EQ(std::memcmp(f.read("layers.0.b1").data(), g.tensors[g.tensors.size() - 2].bytes.data(), 256), 0);
}

TEST(GgufArchitectures, SplitFusedMatrices) {
  for (const uint32_t type : {kF32, kQ8_0}) {
    GgufFile split = small_of("qwen2"), fused = small_of("phi3");
    for (TensorOf& t : split.tensors)
      if (type == kQ8_0 && t.sizes.size() == 2) {
        t.type = type;
        t.bytes = std::string(t.sizes[0] / 32 * 34 * t.sizes[1], '\0');
        for (size_t i = 0; i < t.bytes.size(); i++) t.bytes[i] = char(i % 34 == 0 ? 0 : i % 34 == 1 ? 0x3c : i * 7);
      }
    fused.tensors = split.tensors;
    fuse(fused);
    Opened expected(split.bytes()), found(fused.bytes());  // both stay open
    ASSERT_EQ(expected.error + found.error, "");
    for (const TensorSpec& spec : tensor_specs(found.c.config))
      EXPECT_EQ(found.read(spec.name), expected.read(spec.name)) << spec.name;
    fused.tensors[2].sizes = {32, 63};
    EXPECT_TRUE(contains(error_of(fused), "tensor blk.0.attn_qkv.weight: expected shape (64, 32), found (63, 32)"));
    fused.tensors[2].sizes = {32, 64};
    fused.tensors.push_back({"blk.0.attn_q.weight", {32, 32}, kF32, random_floats(32 * 32, 9)});
    EXPECT_TRUE(contains(error_of(fused), "tensor blk.0.attn_q.weight: expected no such tensor beside"));
  }
}

TEST(GgufArchitectures, FoldMultipliersIntoWeights) {
  for (const char* architecture : {"granite", "minicpm"}) {
    const std::string prefix = architecture;
    GgufFile g = small_of(prefix);
    g.tensors.pop_back();  // tied
    Opened plain(g.bytes());
    EXPECT_TRUE(plain.c.config.tied) << plain.error;
    g[prefix + ".embedding_scale"] = f32(12);
    g[prefix + ".residual_scale"] = f32(0.25);
    g[prefix + ".logit_scale"] = f32(8);
    g[prefix + ".attention.scale"] = f32(0.5);
    Opened f(g.bytes());
    ASSERT_EQ(f.error, "");
    EXPECT_FALSE(f.c.config.tied) << "embedding and output have different multipliers";
    const std::pair<const char*, float> all[] = {{"token_embedding", 12},
                                                 {"output", 1 / 8.f},
                                                 {"layers.0.wo", 0.25f},
                                                 {"layers.0.w2", 0.25f},
                                                 {"layers.0.wq", 0.5f * std::sqrt(8.f)},
                                                 {"layers.0.wk", 1},
                                                 {"layers.0.wv", 1},
                                                 {"layers.0.w1", 1},
                                                 {"layers.0.attention_norm", 1},
                                                 {"final_norm", 1}};
    for (const auto& [name, scale] : all) {
      const tiny::Floats found = f.read(name), expected = plain.read(name);
      for (size_t i = 0; i < found.size(); i++) ASSERT_FLOAT_EQ(found[i], scale * expected[i]) << name;
    }
    g[prefix + ".residual_scale"] = f32(0);  // none
    EXPECT_EQ(Opened(g.bytes()).read("layers.0.wo"), plain.read("layers.0.wo"));
    g[prefix + ".embedding_scale"] = f32(-1);
    EXPECT_TRUE(contains(error_of(g), prefix + ".embedding_scale: expected a number from "));
    g.erase(prefix + ".logit_scale");
    EXPECT_EQ(error_of(g), "metadata " + prefix + ".logit_scale: expected a value, found none");
  }
}

// llama.cpp assumes every fourth layer; the files contain nothing about it.
TEST(GgufArchitectures, ReadLayersWithoutRopeFromConfigJson) {
  GgufFile g = small_of("smollm3");
  g["smollm3.block_count"] = u32(5);
  for (int l = 1; l < 5; l++)
    for (int i = 1; i < 10; i++) {
      TensorOf t = g.tensors[size_t(i)];
      t.name = "blk." + std::to_string(l) + t.name.substr(5);
      g.tensors.push_back(t);
    }
  Opened plain(g.bytes());
  ASSERT_EQ(plain.error, "");
  EXPECT_EQ(plain.c.config.no_rope, std::bitset<256>(0b01000));
  const TemporaryFolder folder;
  const std::string model = folder.write("m.gguf", g.bytes());
  const auto layers_with = [&](const std::string& config) {
    folder.write("config.json", config);
    Checkpoint c;
    std::string error;
    EXPECT_TRUE(open_gguf(InputFile::open(model, error), true, c, error)) << error;
    return c.config.no_rope;
  };
  const std::string start = R"({"model_type": "smollm3", "num_hidden_layers": 5, )";
  EXPECT_EQ(layers_with(start + R"("hidden_size": 32, "no_rope_layers": [1, 0, 1, 0, 1]})"), std::bitset<256>(0b01010));
  EXPECT_EQ(layers_with(start + R"("hidden_size": 32, "no_rope_layer_interval": 5})"), std::bitset<256>(0b10000));
  EXPECT_EQ(layers_with(start + R"("hidden_size": 64, "no_rope_layer_interval": 5})"), plain.c.config.no_rope);
  EXPECT_EQ(layers_with("not JSON"), plain.c.config.no_rope);
}

TEST(GgufArchitectures, RejectOtherSettingsByName) {
  const std::tuple<const char*, const char*, std::string, const char*> all[] = {
      {"qwen2", "qwen2.rope.scaling.type", string("yarn"), "qwen2.rope.scaling.type: expected none or linear"},
      {"phi3", "phi3.attention.sliding_window", u32(127), "phi3.attention.sliding_window: expected 0, or at least"},
      {"phi3", "phi3.rope.dimension_count", u32(4), "phi3.rope.dimension_count: expected head_dim, 8, found 4"},
      {"mistral3", "mistral3.attention.temperature_scale", f32(0.1f), "temperature_scale: expected 0"},
      {"qwen3", "qwen3.expert_count", u32(8), "qwen3.expert_count: expected 0"},
      {"smollm3", "smollm3.logit_scale", f32(2), "smollm3.logit_scale: expected 1"},
      {"granite", "granite.rope.scaling.finetuned", boolean(false),
       "finetuned: expected true (with RoPE), found false"},
      {"ernie4_5", "ernie4_5.block_count", u32(0), "ernie4_5.block_count: expected 1 to 1024, found 0"}};
  for (const auto& [architecture, key, value, expected] : all) {
    GgufFile g = small_of(architecture);
    ASSERT_EQ(error_of(g), "") << architecture;
    g[key] = value;
    EXPECT_TRUE(contains(error_of(g), expected)) << error_of(g);
  }
  GgufFile g = small_of("phi3");
  g["phi3.attention.sliding_window"] = u32(128);
  EXPECT_EQ(error_of(g), "") << "as long as the context";
  g.tensors.push_back({"rope_factors_long.weight", {4}, kF32, random_floats(4, 1)});
  EXPECT_TRUE(contains(error_of(g), "tensor rope_factors_long.weight: expected none: long RoPE is not supported"));
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
  for (const auto& [first, second, third] : {std::tuple(NAN, NAN, NAN), {8.f, 1.f, 2.f}, {INFINITY, 1.f, 2.f}}) {
    g.tensors.back().bytes = raw(first) + raw(second) + raw(third) + raw(first);
    EXPECT_TRUE(contains(error_of(g), "tensor rope_freqs.weight: expected the factors of Llama 3's scaling")) << first;
  }
  g.tensors.back().sizes = {2};
  EXPECT_TRUE(contains(error_of(g), "tensor rope_freqs.weight: expected F32 of shape (4), found F32 (2)"));
}

TEST(GgufRopeFactors, BecomeLinearScalingIfAllAreEqual) {
  GgufFile g = small();
  g.tensors.push_back({"rope_freqs.weight", {4}, kF32, raw(8.f) + raw(8.f) + raw(8.f) + raw(8.f)});
  const Opened f(g.bytes());
  ASSERT_EQ(f.error, "");
  EXPECT_EQ(f.c.config.rope_scaling, RopeScaling::linear);
  EXPECT_EQ(f.c.config.rope_factor, 8);
}

// ---- Split files ----

/// with_tokenizer() in parts: all metadata in the first, as llama-gguf-split and gguf-py write them.
struct Split {
  TemporaryFolder folder;
  std::vector<GgufFile> parts;
  Checkpoint c;

  explicit Split(size_t count, bool tensors_in_first = true) {
    const GgufFile whole = with_tokenizer();
    for (size_t i = 0; i < count; i++) {
      GgufFile part;
      if (i == 0) part.metadata = whole.metadata;
      const auto u16 = [](size_t n) { return kind(GgufKind::u16) + raw(uint16_t(n)); };
      part["split.no"] = u16(i);
      part["split.count"] = u16(count);
      part["split.tensors.count"] = kind(GgufKind::i32) + raw(int32_t(whole.tensors.size()));
      parts.push_back(part);
    }
    const size_t first = tensors_in_first ? 0 : 1;
    for (size_t i = 0; i < whole.tensors.size(); i++)
      parts[first + i * (count - first) / whole.tensors.size()].tensors.push_back(whole.tensors[i]);
    for (size_t i = 0; i < count; i++) save(i);
  }
  std::string name(size_t i) const { return "m" + gguf_part_suffix(int(i), int(parts.size())); }
  void save(size_t i) {
    std::filesystem::remove(folder.file(name(i)));
    folder.write(name(i), parts[i].bytes());
  }
  // The error after the folder's name; "" if it opens.
  std::string what(const std::string& file) {
    std::string error;
    const bool ok = open_checkpoint(file.empty() ? folder.path() : folder.file(file), "", c, error);
    EXPECT_EQ(ok, error.empty()) << error;
    return error.substr(std::min(error.size(), folder.path().size() + 1));
  }
};

TEST(GgufSplit, AnyPartOrTheFolderOpensAllParts) {
  Opened whole(with_tokenizer().bytes());
  ASSERT_EQ(whole.error, "");
  for (const size_t count : {1, 2, 3, 5})
    for (const bool tensors_in_first : {true, false}) {
      if (count == 1 && !tensors_in_first) continue;
      Split split(count, tensors_in_first);
      for (size_t part = 0; part <= count; part++) {
        ASSERT_EQ(split.what(part < count ? split.name(part) : ""), "");
        EXPECT_EQ(split.c.files.size(), count);
        EXPECT_EQ(split.c.name, "a test");
        EXPECT_EQ(split.c.vocabulary.pieces.size(), 5u);
        for (const auto& [name, t] : whole.c.tensors) {
          tiny::Floats found(size_t(t.rows * t.cols));
          std::string error;
          ASSERT_TRUE(split.c.read_rows(name, 0, t.rows, found.data(), error)) << error;
          EXPECT_EQ(found, whole.read(name)) << name;
        }
      }
    }
}

TEST(GgufSplit, RejectsMissingAndForeignParts) {
  Split split(3);
  std::filesystem::rename(split.folder.file(split.name(1)), split.folder.file("away"));
  for (const size_t part : {0, 2})
    EXPECT_EQ(split.what(split.name(part)),
              split.name(1) + ": No such file or directory; the model is split into 3 files, which are all needed");
  std::filesystem::copy(split.folder.file(split.name(2)), split.folder.file(split.name(1)));
  EXPECT_EQ(split.what(split.name(0)), split.name(1) + ": expected part 2 of 3, found part 3 of 3");
  split.parts[1].tensors.pop_back();
  split.save(1);
  EXPECT_EQ(
      split.what(split.name(0)),
      split.name(0) + ": split.tensors.count: expected 12 tensors in all parts, found 11; a part is of another model");
  split.parts[1].tensors.push_back(split.parts[0].tensors[0]);
  split.save(1);
  EXPECT_EQ(split.what(split.name(0)),
            split.name(1) + ": tensor token_embd.weight: expected once, found also in an earlier part");
  std::filesystem::rename(split.folder.file(split.name(2)), split.folder.file("renamed.gguf"));
  EXPECT_EQ(split.what("renamed.gguf"),
            "renamed.gguf: part 3 of a GGUF file that is split into 3: expected a name that ends in "
            "-00003-of-00003.gguf, with the other parts beside it");
  split.parts[0]["split.no"] = u32(3);
  split.save(0);
  EXPECT_TRUE(contains(split.what(split.name(0)), "metadata split.no: expected an integer from 0 to 2"));
}

TEST(GgufSplit, AFolderWithTwoModelsIsNotOpened) {
  Split split(2);
  EXPECT_EQ(split.what(""), "");
  split.folder.write("other.gguf", with_tokenizer().bytes());
  EXPECT_TRUE(contains(split.what(""), "GGUF files; name one of them"));
}

TEST(GgufRejects, FilesThatAreNotLanguageModels) {
  for (const auto& [type, expected] : {std::pair{"adapter", "found a LoRA adapter"},
                                       {"mmproj", "found the vision or audio encoder"},
                                       {"imatrix", "found an importance matrix"},
                                       {"vocab", "found a vocabulary without a model"}}) {
    GgufFile g = small();
    g["general.type"] = string(type);
    EXPECT_TRUE(contains(error_of(g), expected)) << error_of(g);
    g["general.architecture"] = string("clip");
    EXPECT_TRUE(contains(error_of(g), "found the vision or audio encoder")) << error_of(g);
  }
  GgufFile g = small();
  g["general.type"] = string("model");
  EXPECT_EQ(error_of(g), "");
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
}

TEST(GgufTokenizer, ReadsPreTokenizersByName) {
  using Split = Tokenizer::Split;
  GgufFile g = small();
  g["tokenizer.ggml.model"] = string("gpt2");
  g["tokenizer.ggml.tokens"] = strings({"<|im_end|>", "a", "b", "ab", "\u200D"});
  g["tokenizer.ggml.token_type"] = array(GgufKind::i32, 5, raw(3) + raw(1) + raw(1) + raw(1) + raw(1));
  g["tokenizer.ggml.merges"] = strings({"a b"});
  g["tokenizer.ggml.bos_token_id"] = u32(0);
  // Flags: n: NFC; i: ignore_merges; b: BOS by default.
  const std::tuple<const char*, Split, const char*> all[] = {{"gpt-2", Split::gpt2, ""},
                                                             {"mpt", Split::gpt2, "n"},
                                                             {"smollm", Split::smollm, ""},
                                                             {"starcoder", Split::smollm, ""},
                                                             {"refact", Split::smollm, ""},
                                                             {"command-r", Split::smollm, "n"},
                                                             {"llama-bpe", Split::llama3, "ib"},
                                                             {"dbrx", Split::llama3, ""},
                                                             {"qwen2", Split::qwen2, "n"},
                                                             {"deepseek-r1-qwen", Split::qwen2, "n"},
                                                             {"gpt-4o", Split::gpt4o, ""},
                                                             {"tekken", Split::tekken, "ib"},
                                                             {"falcon", Split::falcon, ""},
                                                             {"deepseek-coder", Split::deepseek_coder, ""},
                                                             {"qwen35", Split::qwen35, ""},
                                                             {"deepseek-llm", Split::deepseek_llm, ""},
                                                             {"deepseek-v3", Split::deepseek_v3, ""}};
  for (const auto& [name, split, flags] : all) {
    g["tokenizer.ggml.pre"] = string(name);
    Opened f(g.bytes());
    ASSERT_EQ(f.error, "") << name;
    const Tokenizer::Vocabulary& v = f.c.vocabulary;
    EXPECT_EQ(v.split, split) << name;
    EXPECT_EQ(std::string(v.nfc ? "n" : "") + (v.ignore_merges ? "i" : "") + (v.add_bos ? "b" : ""), flags) << name;
    EXPECT_EQ(v.pieces[4].type, Tokenizer::PieceType::unused) << "bytes are not written so: no text becomes it";
  }
  for (const char* unknown : {"", "bloom", "default", "llama4", "chatglm-bpe"}) {
    g["tokenizer.ggml.pre"] = string(unknown);
    EXPECT_TRUE(contains(error_of(g), "tokenizer.ggml.pre: expected one of gpt-2, "));
    EXPECT_TRUE(contains(error_of(g), std::string("; found ") + (*unknown ? unknown : "none")));
  }
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
      {"tokenizer.ggml.bos_token_id", string("1"), "tokenizer.ggml.bos_token_id: expected a token id"},
      {"tokenizer.ggml.eos_token_id", kind(GgufKind::i32) + raw(-2), "tokenizer.ggml.eos_token_id: expected a token"},
      {"tokenizer.ggml.eos_token_id", f32(1.5f), "tokenizer.ggml.eos_token_id: expected a token id"},
      {"tokenizer.ggml.precompiled_charsmap", strings({"x"}), "tokenizer.ggml.precompiled_charsmap: expected none"}};
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

// As in llama.cpp, which leaves the default id. 2^32 - 1 means none.
TEST(GgufTokenizer, IgnoresSpecialIdsOutsideVocabulary) {
  for (const char* key : {"bos", "eos", "eot", "eom"})
    for (const uint32_t id : {5u, 99999u, 1u << 31, UINT32_MAX}) {
      GgufFile g = with_tokenizer();
      g[std::string("tokenizer.ggml.") + key + "_token_id"] = u32(id);
      Opened f(g.bytes());
      ASSERT_EQ(f.error, "") << key << " " << id;
      EXPECT_EQ(f.c.vocabulary.bos, key == std::string("bos") && id == UINT32_MAX ? -1 : 1) << id;
      EXPECT_EQ(f.c.vocabulary.eos, key == std::string("eos") && id == UINT32_MAX ? -1 : 2) << id;
      const std::string note = std::string("tokenizer.ggml.") + key + "_token_id: expected an id below 5, found ";
      if (key == std::string("bos") || id == UINT32_MAX)
        EXPECT_TRUE(f.c.notes.empty());
      else
        EXPECT_TRUE(f.c.notes.size() == 1 && contains(f.c.notes[0], note)) << f.c.notes.size();
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
