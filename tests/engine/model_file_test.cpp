// model_file_test.cpp: opening model files. A valid file is bound to the right bytes; everything else is rejected with
// an error that names the file, the field and the value found.
#include "../../export/engine.hpp"

#include <gtest/gtest.h>

#include <cfloat>
#include <cstddef>

#include "../support/tiny_model.hpp"

namespace model_file_test {

using namespace pocket;
using tiny::Bytes;
using tiny::entry_at;
using tiny::header_of;
using tiny::patched;
using tiny::update_checksums;

ModelParts full_parts(Type type = Type::q4) {
  ModelParts parts = tiny::parts_of(tiny::small_config(), type);
  parts.tokenizer = std::string(77, 't');
  parts.provenance = "source: a test";
  parts.self_test_ids = {1, 2, 99};
  ChatTemplate& chat = parts.chat;
  chat.stop_ids = {2, 7};
  chat.slot[ChatTemplate::kOpening] = {{5, ""}, {ChatTemplate::kDate, "%d %b %Y"}};
  chat.edit[ChatTemplate::kThinkingReplyText] = ChatTemplate::kDropThinking;
  chat.system_in_last_turn = true;
  chat.commands = {"/no_think", "/x"};
  chat.slot[ChatTemplate::kUserPrefix] = {{3, ""}, {-1, "user\n"}};
  chat.slot[ChatTemplate::kReplyPrefix] = {{4, "reply\n"}};
  return parts;
}

/// A valid file with data in every section; made once.
const Bytes& valid() {
  static const Bytes bytes = tiny::model_bytes(full_parts());
  return bytes;
}

/// The chat template of a model.
ChatTemplate chat_of(const Model& model) {
  ChatTemplate chat;
  EXPECT_TRUE(chat.load(model.chat_bytes(), model.vocab_size())) << chat.error;
  return chat;
}

/// The error of opening these bytes, from memory of exactly this size, and of loading the chat template in them; "" if
/// there is none.
std::string error_of(const void* data, size_t n) {
  const Bytes exact(static_cast<const uint8_t*>(data), static_cast<const uint8_t*>(data) + n);
  Model model;
  const bool ok = model.open_memory(exact.data(), exact.size());
  EXPECT_EQ(ok, model.error.empty()) << model.error;
  if (ChatTemplate chat; ok && !chat.load(model.chat_bytes(), model.vocab_size())) {
    EXPECT_FALSE(chat.known());
    return chat.error;
  }
  if (ok) return "";
  EXPECT_TRUE(model.layers.empty());
  EXPECT_EQ(model.error.find("memory: "), 0u) << model.error;
  return model.error.substr(std::min<size_t>(8, model.error.size()));
}
std::string error_of(const Bytes& file) { return error_of(file.data(), file.size()); }
std::string error_of(const std::string& text) { return error_of(text.data(), text.size()); }

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// ---- Valid files ----

TEST(Open, BindsAValidFile) {
  const tiny::MemoryModel m(full_parts().config, Type::q4);
  tiny::MemoryModel f(valid());
  const Model& model = f.model;
  const Config c = full_parts().config;
  EXPECT_EQ(model.config.dim, 64);
  EXPECT_EQ(model.config.hidden_dim, 96);
  EXPECT_EQ(model.config.n_layers, 2);
  EXPECT_EQ(model.config.n_heads, 4);
  EXPECT_EQ(model.config.n_kv_heads, 2);
  EXPECT_EQ(model.config.head_dim, 16);
  EXPECT_EQ(model.config.vocab_size, 100);
  EXPECT_EQ(model.config.max_seq_len, 512);
  EXPECT_EQ(model.config.norm_eps, c.norm_eps);
  EXPECT_EQ(model.config.rope_theta, c.rope_theta);
  EXPECT_FALSE(model.config.tied);
  EXPECT_EQ(model.file_bytes, valid().size());
  EXPECT_EQ(model.tokenizer_bytes(), std::string(77, 't'));
  EXPECT_EQ(model.provenance(), "source: a test");
  EXPECT_EQ(model.self_test_ids, (std::vector<int>{1, 2, 99}));
  ASSERT_EQ(model.layers.size(), 2u);
  EXPECT_EQ(model.layers[1].w2.rows, 64);
  EXPECT_EQ(model.layers[1].w2.cols, 96);
  EXPECT_EQ(model.layers[0].wk.rows, 32);
  EXPECT_EQ(model.output.rows, 100);
  EXPECT_EQ(model.token_embedding.type, Type::q8);
  EXPECT_EQ(model.output.type, Type::q4);
  EXPECT_FALSE(model.all_f32);
  EXPECT_TRUE(f.model.verify_tensors()) << model.error;
}

TEST(Open, WeightsMatchTheWrittenOnes) {
  const tiny::MemoryModel m(full_parts().config, Type::f32);
  EXPECT_TRUE(m.model.all_f32);
  std::string ignored;
  const std::vector<TensorSpec> specs = tensor_specs(m.model.config);
  std::vector<const Tensor*> bound = {&m.model.token_embedding};
  for (const Layer& l : m.model.layers)
    for (const Tensor* t : {&l.attention_norm, &l.wq, &l.wk, &l.wv, &l.wo, &l.ffn_norm, &l.w1, &l.w3, &l.w2})
      bound.push_back(t);
  bound.push_back(&m.model.final_norm);
  bound.push_back(&m.model.output);
  ASSERT_EQ(specs.size(), bound.size());
  for (size_t i = 0; i < specs.size(); i++) {
    ASSERT_EQ(bound[i]->rows, specs[i].rows) << specs[i].name;
    ASSERT_EQ(bound[i]->cols, specs[i].cols) << specs[i].name;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(bound[i]->data) % 64, 0u) << specs[i].name;
    for (int row = 0; row < specs[i].rows; row++) {
      std::vector<float> expected(size_t(specs[i].cols));
      tiny::random_rows(specs[i], row, 1, expected.data(), ignored);
      for (int col = 0; col < specs[i].cols; col++) {
        const double found = specs[i].layout == Layout::vector ? tiny::vector_weight(*bound[i], col)
                             : specs[i].layout == Layout::rows ? tiny::embedding_weight(*bound[i], row, col)
                                                               : tiny::panel_weight(*bound[i], row, col);
        ASSERT_EQ(found, double(expected[size_t(col)])) << specs[i].name << " " << row << ", " << col;
      }
    }
  }
}

TEST(Open, EmbeddingRowsAreTheSameFromFileAndMemory) {
  const TemporaryFolder folder;
  for (const Type type : {Type::f32, Type::q8})
    for (const int dim : {5, 64, 1000, 5000}) {
      Config c = tiny::small_config();
      c.dim = dim;
      c.hidden_dim = 8;
      c.n_layers = c.n_heads = c.n_kv_heads = 1;
      c.head_dim = 2;
      c.vocab_size = 9;
      const tiny::MemoryModel m(c, type);
      folder.write("model.bin", tiny::text_of(m.bytes));
      Model file;
      ASSERT_TRUE(file.open(folder.file("model.bin").c_str())) << file.error;
      for (const int id : {0, 4, 8}) {
        tiny::Floats a(size_t(padded(dim)), 7.f), b(a);
        ASSERT_TRUE(m.model.read_row(m.model.token_embedding, id, a.data()) &&
                    file.read_row(file.token_embedding, id, b.data()));
        EXPECT_TRUE(tiny::same_bits(a.data(), b.data(), a.size()));
        for (int i = 0; i < padded(dim); i++)
          ASSERT_EQ(a[size_t(i)], i < dim ? float(tiny::embedding_weight(m.model.token_embedding, id, i)) : 0.f) << i;
      }
    }
}

TEST(Open, ReadsTheWrittenChatTemplate) {
  tiny::MemoryModel m(valid());
  const ChatTemplate found = chat_of(m.model), expected = full_parts().chat;
  EXPECT_TRUE(found.known());
  EXPECT_EQ(found.stop_ids, expected.stop_ids);
  EXPECT_EQ(m.model.stop_ids, expected.stop_ids);
  EXPECT_EQ(found.flags(), expected.flags());
  EXPECT_EQ(found.commands, expected.commands);
  for (int i = 0; i < ChatTemplate::kSlots; i++) {
    ASSERT_EQ(found.slot[i].size(), expected.slot[i].size()) << i;
    for (size_t p = 0; p < found.slot[i].size(); p++) {
      EXPECT_EQ(found.slot[i][p].id, expected.slot[i][p].id);
      EXPECT_EQ(found.slot[i][p].text, expected.slot[i][p].text);
    }
  }
  const tiny::MemoryModel bare(tiny::small_config(), Type::q4);
  EXPECT_FALSE(chat_of(bare.model).known());
}

TEST(Open, CanBeRepeatedAfterFailureAndSuccess) {
  Model model;
  const Bytes damaged = patched(valid(), offsetof(Header, dim), uint32_t(0));
  for (int round = 0; round < 3; round++) {
    EXPECT_FALSE(model.open_memory(damaged.data(), damaged.size()));
    EXPECT_FALSE(model.error.empty());
    EXPECT_FALSE(model.verify_tensors());
    EXPECT_TRUE(model.tokenizer_bytes().empty());
    EXPECT_TRUE(model.open_memory(valid().data(), valid().size())) << model.error;
    EXPECT_EQ(model.error, "");
    EXPECT_EQ(model.layers.size(), 2u);
    EXPECT_TRUE(model.verify_tensors());
  }
}

TEST(Open, VerifyTensorsFailsBeforeOpen) {
  Model model;
  EXPECT_FALSE(model.verify_tensors());
  EXPECT_FALSE(model.error.empty());
}

// ---- Not a model file ----

const std::string kOther = "another format; make one with export/convert";

TEST(NotAModel, RejectsEmptyAndShortFiles) {
  EXPECT_EQ(error_of(std::string()), "magic: expected a pocketllama model, found " + kOther);
  EXPECT_EQ(error_of(std::string("PKTLLAM")), "magic: expected a pocketllama model, found " + kOther);
  EXPECT_EQ(error_of(std::string("PKTLLAMA")), "size: expected at least 256 bytes of header, found 8");
}

TEST(NotAModel, RejectsPathsThatCannotBeMapped) {
  const TemporaryFolder folder;
  Model model;
  const auto error = [&](const std::string& path) {
    EXPECT_FALSE(model.open(path.c_str()));
    EXPECT_EQ(model.error.find(path + ": "), 0u) << model.error;
    return model.error.substr(path.size() + 2);
  };
  EXPECT_EQ(error(folder.file("missing.bin")), "No such file or directory");
  EXPECT_TRUE(contains(error(folder.file("")), "is a folder"));
  ASSERT_EQ(mkfifo(folder.file("fifo").c_str(), 0600), 0);
  EXPECT_EQ(error(folder.file("fifo")), "expected a regular file");  // and does not block
  EXPECT_EQ(error("/dev/null"), "expected a regular file");
  EXPECT_EQ(error(""), "No such file or directory");
  folder.write("empty.bin", "");
  EXPECT_EQ(error(folder.file("empty.bin")), "magic: expected a pocketllama model, found an empty file");
  folder.write("text.bin", "GGUF and more");
  EXPECT_EQ(error(folder.file("text.bin")), "magic: expected a pocketllama model, found " + kOther);
  folder.write("model.bin", tiny::text_of(valid()));
  EXPECT_TRUE(model.open(folder.file("model.bin").c_str())) << model.error;
  EXPECT_TRUE(model.verify_tensors());
}

TEST(NotAModel, RejectsUnalignedMemory) {
  Bytes moved(valid().size() + 64);
  for (const size_t by : {1u, 4u, 8u, 16u, 32u, 63u}) {
    std::memcpy(moved.data() + by, valid().data(), valid().size());
    Model model;
    EXPECT_FALSE(model.open_memory(moved.data() + by, valid().size()));
    EXPECT_EQ(model.error, "memory: expected an address on a 64-byte boundary");
  }
}

TEST(NotAModel, RejectsNull) {
  Model model;
  EXPECT_FALSE(model.open(nullptr));
  EXPECT_EQ(model.error, "null: expected a file name");
  EXPECT_FALSE(model.open_memory(nullptr, 4096));
  EXPECT_EQ(model.error, "memory: magic: expected a pocketllama model, found " + kOther);
}

TEST(Open, FailureClosesTheModelThatWasOpen) {
  Model model;
  ASSERT_TRUE(model.open_memory(valid().data(), valid().size())) << model.error;
  EXPECT_FALSE(model.open("/no such file"));
  Session session(model);
  EXPECT_EQ(session.error, "session: the model is not open");
  const int id = 1;
  EXPECT_EQ(session.forward(&id, 1), nullptr);
}

TEST(Open, ACopyDoesNotNeedTheFileAnyMore) {
  const TemporaryFolder folder;
  const std::string path = folder.write("model.bin", tiny::text_of(valid()));
  Model mapped, copy;
  ASSERT_TRUE(mapped.open(path.c_str())) << mapped.error;
  ASSERT_TRUE(copy.open(path.c_str(), Load::copy)) << copy.error;
  const std::vector<int> ids = tiny::random_ids(9, mapped.vocab_size());
  Session on_mapped(mapped, {0, 1, KvType::automatic, nullptr}), on_copy(copy, {0, 1, KvType::automatic, nullptr});
  const float* expected = on_mapped.forward(ids.data(), ids.size());
  ASSERT_NE(expected, nullptr);
  ASSERT_EQ(truncate(path.c_str(), 0), 0);
  const float* logits = on_copy.forward(ids.data(), ids.size());
  ASSERT_NE(logits, nullptr) << on_copy.error;
  EXPECT_TRUE(tiny::same_bits(logits, expected, size_t(copy.vocab_size())));
  EXPECT_TRUE(copy.verify_tensors());
}

// ---- Truncated and extended files ----

TEST(Truncated, RejectsEveryHeaderLengthAndSectionBoundary) {
  const Header h = header_of(valid());
  std::vector<uint64_t> sizes;
  for (uint64_t n = 0; n <= 300; n++) sizes.push_back(n);
  for (const Section& s : {h.tokenizer, h.chat, h.provenance, h.self_test, h.tensor_table, h.tensors})
    for (const uint64_t edge : {s.offset, s.offset + s.bytes})
      for (const uint64_t n : {edge - 1, edge, edge + 1}) sizes.push_back(n);
  for (size_t i = 0; i < tensor_specs(full_parts().config).size(); i++) {
    const auto e = load<TensorEntry>(&valid()[entry_at(valid(), i)]);
    for (const uint64_t edge : {e.offset, e.offset + e.bytes})
      for (const uint64_t n : {edge - 1, edge}) sizes.push_back(n);
  }
  for (const uint64_t n : sizes) {
    if (n >= valid().size()) continue;
    const std::string error = error_of(valid().data(), size_t(n));
    if (n < 8)
      EXPECT_TRUE(contains(error, "magic")) << error;
    else if (n < 256)
      EXPECT_EQ(error, "size: expected at least 256 bytes of header, found " + std::to_string(n));
    else
      EXPECT_EQ(error, "file_bytes: expected " + std::to_string(valid().size()) + ", found " + std::to_string(n) +
                           " (truncated?)");
  }
}

// A shortened file whose header states the new sizes, with valid checksums.
TEST(Truncated, RejectsAConsistentHeader) {
  const Header h = header_of(valid());
  std::vector<uint64_t> sizes = {256, 257, 320, 4095, 4096};
  for (uint64_t n = h.tensors.offset; n < valid().size(); n += 1 + n % 977) sizes.push_back(n);
  for (const uint64_t n : sizes) {
    Bytes cut(valid().begin(), valid().begin() + std::ptrdiff_t(n));
    Header header = h;
    header.file_bytes = n;
    header.tensors.bytes = n > h.tensors.offset ? n - h.tensors.offset : 0;
    std::memcpy(cut.data(), &header, sizeof header);
    update_checksums(cut);
    EXPECT_NE(error_of(cut), "") << n << " bytes";
  }
}

TEST(Extended, RejectsTrailingBytes) {
  for (const size_t more : {1u, 64u, 4096u}) {
    Bytes longer = valid();
    longer.resize(longer.size() + more);
    EXPECT_TRUE(contains(error_of(longer), "file_bytes: ")) << more;
    tiny::put(longer, offsetof(Header, file_bytes), uint64_t(longer.size()));
    update_checksums(longer);
    EXPECT_TRUE(contains(error_of(longer), "section tensors")) << error_of(longer);
    tiny::put(longer, offsetof(Header, tensors) + 8, uint64_t(longer.size() - header_of(valid()).tensors.offset));
    update_checksums(longer);
    EXPECT_TRUE(contains(error_of(longer), "section tensors")) << error_of(longer);
  }
}

// ---- Damaged ----

TEST(Damaged, AnyByteOfTheFileBeforeTheTensorsIsNoticed) {
  Bytes file = valid();
  for (size_t at = 0; at < header_of(valid()).tensors.offset; at++)
    for (const int bit : {0, 7}) {
      file[at] ^= uint8_t(1 << bit);
      const std::string error = error_of(file);
      EXPECT_NE(error, "") << "byte " << at;
      EXPECT_TRUE(at < sizeof(Header) || contains(error, "checksum: ")) << "byte " << at << ": " << error;
      file[at] ^= uint8_t(1 << bit);
    }
  EXPECT_EQ(error_of(file), "");
}

TEST(Damaged, VerifyFindsAnyFlippedBitOfATensor) {
  Bytes file = valid();
  tiny::Random random(1);
  Model model;
  ASSERT_TRUE(model.open_memory(file.data(), file.size())) << model.error;
  std::vector<size_t> places = {size_t(header_of(file).tensors.offset), file.size() - 1};
  for (size_t i = 0; i < tensor_specs(model.config).size(); i++)
    places.push_back(size_t(load<TensorEntry>(&file[entry_at(file, i)]).offset) + size_t(random.below(200)));
  for (const size_t at : places) {
    file[at] ^= 16;
    EXPECT_FALSE(model.verify_tensors()) << "byte " << at;
    EXPECT_TRUE(contains(model.error, "tensors: expected checksum ")) << model.error;
    file[at] ^= 16;
  }
  EXPECT_TRUE(model.verify_tensors());
}

// ---- Every field of the header, with valid checksums, so that the field's own check must fail ----

struct Field {
  const char* name;
  size_t at;
};
#define FIELD(NAME) \
  { #NAME, offsetof(Header, NAME) }

const Field kIntegers[] = {FIELD(dim),        FIELD(hidden_dim), FIELD(n_layers),   FIELD(n_heads),
                           FIELD(n_kv_heads), FIELD(head_dim),   FIELD(vocab_size), FIELD(max_seq_len)};
const Field kFloats[] = {FIELD(norm_eps), FIELD(rope_theta), FIELD(rope_factor), FIELD(rope_low_freq),
                         FIELD(rope_high_freq)};
#undef FIELD

// A valid file that uses every field of rope scaling.
const Bytes& llama3() {
  static const Bytes bytes = [] {
    ModelParts parts = full_parts();
    parts.config.rope_scaling = RopeScaling::llama3;
    parts.config.rope_factor = 8;
    parts.config.rope_low_freq = 1;
    parts.config.rope_high_freq = 4;
    parts.config.rope_original_len = 256;
    return tiny::model_bytes(parts);
  }();
  return bytes;
}

TEST(Header, NamesIntegersOutOfRange) {
  for (const Field& f : kIntegers)
    for (const uint32_t value : {0u, 0xffffffffu, 0x80000000u, 0x7fffffffu}) {
      const std::string error = error_of(patched(valid(), f.at, value));
      EXPECT_EQ(error.find(std::string(f.name) + ": expected "), 0u) << error;
      EXPECT_TRUE(contains(error, ", found " + std::to_string(int(value)))) << error;
    }
}

TEST(Header, RejectsIntegersThatDoNotMatchTheTensors) {
  const Config c = full_parts().config;
  const int values[] = {c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.vocab_size};
  for (size_t i = 0; i < std::size(values); i++)
    for (const int value : {values[i] - 1, values[i] + 1, values[i] * 2, values[i] / 2, 1}) {
      if (value == values[i]) continue;
      EXPECT_NE(error_of(patched(valid(), kIntegers[i].at, uint32_t(value))), "") << kIntegers[i].name << " " << value;
    }
}

TEST(Header, RejectsUnknownFlagsAndKinds) {
  const auto error = [](size_t at, uint32_t value) { return error_of(patched(llama3(), at, value)); };
  ASSERT_EQ(error_of(llama3()), "");
  EXPECT_EQ(error(offsetof(Header, version), 3), "version: expected 1 or 2, found 3");
  EXPECT_EQ(error(offsetof(Header, version), 0), "version: expected 1 or 2, found 0");
  EXPECT_EQ(error(offsetof(Header, parts), 16), "parts: expected 0 to 15, found 16");
  EXPECT_EQ(error(offsetof(Header, architecture), 0), "architecture: expected 1 (llama), found 0");
  EXPECT_EQ(error(offsetof(Header, architecture), 0xffffffff), "architecture: expected 1 (llama), found 4294967295");
  EXPECT_EQ(error(offsetof(Header, tied), 2), "tied: expected 0 or 1, found 2");
  EXPECT_EQ(error(offsetof(Header, rope_scaling), 3), "rope_scaling: expected 0 to 2, found 3");
  EXPECT_TRUE(contains(error(offsetof(Header, rope_original_len), 0), "rope_original_len: ")) << "llama3";
  EXPECT_TRUE(contains(error(offsetof(Header, rope_original_len), 0xffffffff), "rope_original_len: "));
  EXPECT_EQ(error_of(patched(valid(), offsetof(Header, rope_original_len), 0x7fffffffu)), "") << "not used here";
  for (size_t i = 0; i < sizeof Header().reserved; i++)
    EXPECT_EQ(error_of(patched(valid(), offsetof(Header, reserved) + i, uint8_t(1))), "reserved: expected 0, found 1");
}

TEST(Header, OfVersion1HasNoFieldsOfVersion2) {
  const tiny::Bytes old = patched(valid(), offsetof(Header, version), 1u);
  EXPECT_EQ(error_of(old), "") << "still opens";
  for (size_t i = offsetof(Header, parts); i < sizeof(Header); i++)
    EXPECT_EQ(error_of(patched(old, i, uint8_t(1))), "reserved: expected 0, found 1") << i;
}

TEST(Header, TellsWhatALayerHas) {
  Config c = tiny::small_config();
  for (const uint32_t parts : {1u, 2u, 4u, 8u, 15u}) {
    c.qkv_bias = parts & 1;
    c.o_bias = parts & 2;
    c.mlp_bias = parts & 4;
    c.qk_norm = parts & 8;
    c.no_rope = parts;
    const tiny::MemoryModel m(c, Type::q8);
    EXPECT_EQ(m.model.config.qkv_bias, c.qkv_bias);
    EXPECT_EQ(m.model.config.o_bias, c.o_bias);
    EXPECT_EQ(m.model.config.mlp_bias, c.mlp_bias);
    EXPECT_EQ(m.model.config.qk_norm, c.qk_norm);
    EXPECT_EQ(m.model.config.no_rope, c.no_rope);
    EXPECT_EQ(m.model.config.has_rope(0), !(parts & 1));
    const Layer& w = m.model.layers[1];
    EXPECT_EQ(w.bq.cols, c.qkv_bias ? c.q_dim() : 0);
    EXPECT_EQ(w.bk.cols, c.qkv_bias ? c.kv_dim() : 0);
    EXPECT_EQ(w.bv.cols, c.qkv_bias ? c.kv_dim() : 0);
    EXPECT_EQ(w.bo.cols, c.o_bias ? c.dim : 0);
    EXPECT_EQ(w.b1.cols, c.mlp_bias ? c.hidden_dim : 0);
    EXPECT_EQ(w.b3.cols, c.mlp_bias ? c.hidden_dim : 0);
    EXPECT_EQ(w.b2.cols, c.mlp_bias ? c.dim : 0);
    EXPECT_EQ(w.q_norm.cols, c.qk_norm ? c.head_dim : 0);
    EXPECT_EQ(w.k_norm.cols, c.qk_norm ? c.head_dim : 0);
  }
}

TEST(Header, RejectsFloatsThatAreNotPositiveAndFinite) {
  for (const Field& f : kFloats)
    for (const float value : {0.f, -0.f, -1.f, NAN, INFINITY, -INFINITY, FLT_MAX}) {
      const std::string error = error_of(patched(llama3(), f.at, value));
      EXPECT_EQ(error.find(std::string(f.name) + ": expected "), 0u) << value << ": " << error;
    }
  EXPECT_TRUE(contains(error_of(patched(llama3(), offsetof(Header, rope_high_freq), 1.f)),
                       "rope_high_freq: expected more than rope_low_freq"));
}

// Above one radian a position, the angle of a position could exceed the range of the argument reduction.
TEST(Header, RejectsRopeFrequenciesAboveOneRadian) {
  for (const float value : {1e-30f, 0.5f, 0.9999f}) {
    EXPECT_EQ(error_of(patched(llama3(), offsetof(Header, rope_theta), value)).find("rope_theta: expected "), 0u);
    EXPECT_EQ(error_of(patched(llama3(), offsetof(Header, rope_factor), value)).find("rope_factor: expected "), 0u);
  }
  EXPECT_EQ(error_of(patched(llama3(), offsetof(Header, rope_theta), 1.f)), "");
  EXPECT_EQ(error_of(patched(llama3(), offsetof(Header, rope_factor), 1.f)), "");
  EXPECT_EQ(error_of(patched(valid(), offsetof(Header, rope_factor), 0.f)), "") << "not used here";
}

TEST(Header, RejectsHeadCountsThatDoNotDivide) {
  Bytes file = valid();
  tiny::put(file, offsetof(Header, n_heads), uint32_t(4));
  EXPECT_EQ(error_of(patched(file, offsetof(Header, n_kv_heads), uint32_t(3))),
            "n_kv_heads: expected a divisor of 4 heads, found 3");
  EXPECT_EQ(error_of(patched(file, offsetof(Header, n_kv_heads), uint32_t(5))), "n_kv_heads: expected 1 to 4, found 5");
  EXPECT_EQ(error_of(patched(file, offsetof(Header, head_dim), uint32_t(15))),
            "head_dim: expected an even number, found 15");
}

// The largest allowed sizes: products exceed 2^40 and must not wrap.
TEST(Header, LargestSizesDoNotOverflow) {
  Bytes file = valid();
  const std::pair<size_t, uint32_t> largest[] = {
      {offsetof(Header, dim), 1 << 16},        {offsetof(Header, hidden_dim), 1 << 20},
      {offsetof(Header, n_heads), 1 << 10},    {offsetof(Header, n_kv_heads), 1 << 10},
      {offsetof(Header, head_dim), 1 << 10},   {offsetof(Header, vocab_size), 1 << 22},
      {offsetof(Header, max_seq_len), 1 << 22}};
  for (const auto& [at, value] : largest) tiny::put(file, at, value);
  update_checksums(file);
  EXPECT_TRUE(contains(error_of(file), "tensor token_embedding.rows: expected 4194304, found 100")) << error_of(file);
  EXPECT_TRUE(contains(error_of(patched(file, offsetof(Header, n_layers), uint32_t(1 << 10))),
                       "section tensor_table.bytes: expected " + std::to_string((1024 * 9 + 3) * 64)));
  // With a table that agrees, the tensor's bytes are missing.
  tiny::put(file, entry_at(file, 0) + offsetof(TensorEntry, rows), uint32_t(1 << 22));
  tiny::put(file, entry_at(file, 0) + offsetof(TensorEntry, cols), uint32_t(1 << 16));
  const uint64_t bytes = uint64_t(1 << 22) * (1 << 16) / 32 * 34;
  EXPECT_TRUE(contains(error_of(patched(file, entry_at(file, 0) + offsetof(TensorEntry, bytes), bytes)),
                       "tensor token_embedding: expected " + std::to_string(bytes) + " bytes, found "));
}

// ---- Sections and tensors ----

TEST(Sections, RejectsEveryWrongOffsetAndLength) {
  const std::pair<const char*, size_t> sections[] = {
      {"tokenizer", offsetof(Header, tokenizer)},       {"chat", offsetof(Header, chat)},
      {"provenance", offsetof(Header, provenance)},     {"self_test", offsetof(Header, self_test)},
      {"tensor_table", offsetof(Header, tensor_table)}, {"tensors", offsetof(Header, tensors)}};
  for (const auto& [name, at] : sections) {
    const uint64_t offset = load<uint64_t>(&valid()[at]), bytes = load<uint64_t>(&valid()[at + 8]);
    for (const uint64_t value :
         {uint64_t(0), uint64_t(1), offset - 1, offset + 1, offset - 4096, offset + 4096,
          valid().size() + 4096 - valid().size() % 4096, ~uint64_t(0), ~uint64_t(0) - 4095, uint64_t(1) << 63}) {
      const std::string error = error_of(patched(valid(), at, value));
      EXPECT_EQ(error.find("section "), 0u) << name << ".offset " << value << ": " << error;
    }
    for (const uint64_t value : {~uint64_t(0), ~uint64_t(0) - offset, ~uint64_t(0) - offset + 1, uint64_t(1) << 63,
                                 uint64_t(valid().size()), valid().size() - offset + 1}) {
      const std::string error = error_of(patched(valid(), at + 8, value));
      EXPECT_EQ(error.find("section "), 0u) << name << ".bytes " << value << ": " << error;
    }
    if (std::strcmp(name, "tokenizer") == 0 || std::strcmp(name, "provenance") == 0) continue;  // any length is valid
    for (const uint64_t value : {uint64_t(0), bytes - 1, bytes / 2})
      EXPECT_EQ(error_of(patched(valid(), at + 8, value)).find("section "), 0u) << name << ".bytes " << value;
  }
}

TEST(Sections, RejectsEveryWrongTensorTableField) {
  const std::vector<TensorSpec> specs = tensor_specs(full_parts().config);
  for (size_t i = 0; i < specs.size(); i++) {
    const size_t at = entry_at(valid(), i);
    const auto e = load<TensorEntry>(&valid()[at]);
    const auto error = [&](size_t field, auto value) { return error_of(patched(valid(), at + field, value)); };
    const std::string name = "tensor " + specs[i].name;
    for (const uint32_t value : {3u, 0xffffffffu})
      EXPECT_EQ(error(offsetof(TensorEntry, type), value),
                name + ".type: expected a type of its layout, found " + std::to_string(value));
    for (uint32_t type = 0; type <= 2; type++)  // another type has another size or does not match
      EXPECT_EQ(error(offsetof(TensorEntry, type), type).find(name), type == e.type ? std::string::npos : 0) << type;
    for (const uint32_t value : {0u, e.rows + 1, e.rows - 1, 0xffffffffu})
      EXPECT_EQ(error(offsetof(TensorEntry, rows), value).find(name + ".rows: expected "), 0u);
    for (const uint32_t value : {0u, e.cols + 1, e.cols - 1, 0xffffffffu})
      EXPECT_EQ(error(offsetof(TensorEntry, cols), value).find(name + ".cols: expected "), 0u);
    for (const uint64_t value : {uint64_t(0), e.offset + 64, e.offset - 64, ~uint64_t(0), uint64_t(1) << 63})
      EXPECT_EQ(error(offsetof(TensorEntry, offset), value).find(name + ".offset: expected "), 0u);
    for (const uint64_t value : {uint64_t(0), e.bytes + 64, e.bytes - 64, ~uint64_t(0)})
      EXPECT_EQ(error(offsetof(TensorEntry, bytes), value).find(name + ".bytes: expected "), 0u);
    for (const int value : {-128, -65, 64, 127})
      EXPECT_EQ(error(offsetof(TensorEntry, codebook) + 15, int8_t(value)),
                name + ".codebook: expected -64 to 63, found " + std::to_string(value));
  }
}

/// A valid file with these bytes as `section`.
Bytes with_section(Section Header::*section, const std::string& bytes) {
  ModelParts parts = full_parts(Type::f32);                           // the fastest to write
  parts.chat.slot[0] = {{-1, std::string(bytes.size() + 100, 'x')}};  // makes the section large enough
  parts.self_test_ids.resize(bytes.size() / 4 + 10, 1);
  Bytes file = tiny::model_bytes(parts);
  Header h = header_of(file);
  EXPECT_LE(bytes.size(), (h.*section).bytes);
  (h.*section).bytes = bytes.size();
  std::memcpy(file.data() + (h.*section).offset, bytes.data(), bytes.size());
  std::memcpy(file.data(), &h, sizeof h);
  update_checksums(file);
  return file;
}

/// 32-bit numbers, little-endian.
std::string words(const std::vector<uint32_t>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * 4};
}

TEST(ChatSection, RejectsInvalidBytes) {
  const std::string no_slots = words({0, 0, 0, 0, 0, 0, 0});
  const auto error = [](const std::string& bytes) { return error_of(with_section(&Header::chat, bytes)); };
  EXPECT_EQ(error(words({0, 0}) + no_slots), "");
  EXPECT_EQ(error(words({1, 99, 0}) + no_slots), "");
  for (const uint32_t id : {100u, 0xffffffffu, 0x80000000u})
    EXPECT_EQ(error(words({1, id, 0}) + no_slots),
              "section chat: expected ids within the vocabulary, found other values");
  for (const uint32_t count : {3u, 1000u, 0x40000000u, 0x40000002u, 0xffffffffu})
    EXPECT_EQ(error(words({count, 1, 0})).find("section chat: expected "), 0u) << count;
  for (const uint32_t length : {29u, 1000u, 0x7fffffffu, 0xffffffffu})  // of the system prompt
    EXPECT_EQ(error(words({0, length}) + no_slots).find("section chat: expected a complete template"), 0u) << length;
  EXPECT_EQ(error(words({0, 0, 1, 99, 0, 0, 0, 0, 0, 0, 0})), "");
  EXPECT_EQ(error(words({0, 0, 1, 0xffffffff, 0, 0, 0, 0, 0, 0, 0})), "") << "-1 is text";
  EXPECT_EQ(error(words({0, 0, 1, 100, 0, 0, 0, 0, 0, 0, 0})),
            "section chat: expected ids within the vocabulary, found 100");
  EXPECT_EQ(error(words({0, 0, 1, 0xfffffffd, 0, 0, 0, 0, 0, 0, 0})),
            "section chat: expected ids within the vocabulary, found -3");
  for (const uint32_t parts : {4u, 0xffffffffu})
    EXPECT_EQ(error(words({0, 0, parts, 5, 0, 0, 0, 0, 0, 0, 0})).find("section chat: expected a complete"), 0u)
        << parts;
  for (const uint32_t length : {25u, 0xffffffffu})
    EXPECT_EQ(error(words({0, 0, 1, 5, length, 0, 0, 0, 0, 0, 0})).find("section chat: expected a complete"), 0u)
        << length;
  EXPECT_EQ(error(words({0, 0}) + no_slots + "x").find("section chat: expected a complete template"), 0u) << "too long";
  EXPECT_EQ(error(words({0, 0}) + no_slots + words({7})), "") << "trims all turns";
  EXPECT_EQ(error(words({0, 0, 1, 99 | 3 << 24, 0, 0, 0, 0, 0, 0, 0})), "") << "strips white space on both sides";
  EXPECT_EQ(error(words({0, 0, 1, 4 << 24, 0, 0, 0, 0, 0, 0, 0})).find("section chat: expected ids within"), 0u);
  EXPECT_EQ(error(words({0, 0}) + no_slots + words({8})).find("section chat: expected a complete template"), 0u);
  EXPECT_EQ(error(words({0, 0}) + no_slots + words({7, 0})).find("section chat: expected a complete template"), 0u);
  const std::string date = words({0, 0xffffffff}) + no_slots + words({0, 0, 1, 0xfffffffe, 2});
  EXPECT_EQ(error(date + "%d" + words({0})), "");
  EXPECT_EQ(error(date + "%H" + words({0})), "section chat: expected the format of a date, found '%H'");
  EXPECT_EQ(error(words({0, 0xffffffff}) + no_slots + words({0x3fffff, 0, 0, 0})), "");
  EXPECT_EQ(
      error(words({0, 0xffffffff}) + no_slots + words({0x400000, 0, 0, 0})).find("section chat: expected a complete"),
      0u);
}

TEST(ChatSection, ReadsTheWrittenFlags) {
  for (int bit = 0; bit < 22; bit++) {
    ChatTemplate chat, found;
    for (int i = 0; i < ChatTemplate::kTexts; i++) chat.edit[i] = 1u << bit >> i * ChatTemplate::kTextBits & 15;
    chat.system_in_last_turn = bit == 20;
    chat.no_system = bit == 21;
    EXPECT_EQ(chat.flags(), 1u << bit);
    ASSERT_TRUE(found.load(chat_bytes(chat), 10)) << found.error;
    EXPECT_EQ(found.flags(), chat.flags());
  }
}

// Before, a file had a default system prompt, and one flag for each kind of text.
TEST(ChatSection, ReadsOlderFiles) {
  const auto part = [](const std::string& text) { return words({1, 0xffffffff, uint32_t(text.size())}) + text; };
  std::string bytes = words({1, 7, 3}) + " D\n";
  for (const char* text : {"[S]", "[/S]", "[F]", "[U]", "[/U]", "[R]", "[/R]"}) bytes += part(text);
  ChatTemplate chat;
  const auto texts = [&](ChatTemplate::Slot slot) {
    std::string all;
    for (const ChatTemplate::Part& p : chat.slot[slot]) all += p.text;
    return all;
  };
  ASSERT_TRUE(chat.load(bytes, 10)) << chat.error;
  EXPECT_EQ(chat.stop_ids, std::vector<int>{7});
  EXPECT_EQ(texts(ChatTemplate::kOpening), "[S] D\n[/S][F]");
  EXPECT_EQ(texts(ChatTemplate::kUserPrefix), "[U]");
  EXPECT_EQ(texts(ChatTemplate::kPastReplyPrefix), "[R] ") << "a reply begins with a space";
  EXPECT_EQ(chat.flags(), 0u);
  ASSERT_TRUE(chat.load(bytes + words({5}), 10)) << chat.error;
  EXPECT_EQ(texts(ChatTemplate::kOpening), "[S]D[/S][F]");
  EXPECT_EQ(edited_reply(chat, " a </think> "), "a </think>");
  EXPECT_EQ(chat.edit[ChatTemplate::kFirstUserText], 0u);
  ASSERT_TRUE(chat.load(words({0, 0}) + bytes.substr(15), 10)) << chat.error;
  EXPECT_EQ(texts(ChatTemplate::kOpening), "[U]");
}

TEST(ChatSection, RejectsEveryTruncatedLength) {
  const Header h = header_of(valid());
  const std::string chat(reinterpret_cast<const char*>(&valid()[h.chat.offset]), h.chat.bytes);
  for (size_t n = 0; n < chat.size(); n++) {
    Bytes file = valid();
    tiny::put(file, offsetof(Header, chat) + 8, uint64_t(n));
    update_checksums(file);
    EXPECT_EQ(error_of(file).find("section chat: expected "), 0u) << n << " bytes: " << error_of(file);
  }
}

TEST(SelfTestSection, RejectsInvalidBytes) {
  const auto error = [](const std::string& bytes) { return error_of(with_section(&Header::self_test, bytes)); };
  EXPECT_EQ(error(words({0, 1, 2})), "");
  EXPECT_EQ(error(words({1, 99, 1, 2})), "");
  EXPECT_EQ(error(words({1, 100, 1, 2})), "section self_test: expected ids within the vocabulary, found other values");
  EXPECT_EQ(error(words({1, 0xffffffff, 1, 2})),
            "section self_test: expected ids within the vocabulary, found other values");
  EXPECT_EQ(error(words({0xffffffff, 1, 2})),
            "section self_test: expected ids within the vocabulary, found other values");
  EXPECT_EQ(error(words({3, 1, 1, 1})), "section self_test: expected ids and a hash, found other bytes");
  EXPECT_EQ(error(words({0, 1, 2, 3})), "section self_test: expected ids and a hash, found other bytes");
  EXPECT_EQ(error(""), "section self_test: expected ids within the vocabulary, found other values");
}

}  // namespace model_file_test
