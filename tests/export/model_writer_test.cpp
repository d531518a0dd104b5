// model_writer_test.cpp: written models are read back (see also model_file_test.cpp); a file appears under its name
// only once it is complete, and a failure leaves nothing behind.
#include "../../export/model_writer.hpp"

#include <gtest/gtest.h>

#include <sys/resource.h>

#include <csignal>

#include "../support/tiny_model.hpp"

namespace model_writer_test {

using namespace pocket;
using tiny::small_config;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// ---- The file ----

TEST(ModelWriter, WritesSameFileForAnyNumberOfThreads) {
  for (const Type type : {Type::f32, Type::q8, Type::q4}) {
    ModelParts parts = tiny::parts_of(small_config(), type);
    parts.self_test_ids = {1, 2, 3};
    const tiny::Bytes one = tiny::model_bytes(parts);
    for (const int threads : {2, 5}) {
      parts.threads = threads;
      EXPECT_EQ(tiny::model_bytes(parts), one) << type_name(type) << ", " << threads << " threads";
    }
  }
}

TEST(ModelWriter, StoresHashOfSelfTestLogits) {
  for (const Type type : {Type::f32, Type::q4}) {
    ModelParts parts = tiny::parts_of(small_config(), type);
    parts.self_test_ids = {5, 17, 99};
    const tiny::MemoryModel m(tiny::model_bytes(parts));
    Session session(m.model);
    const float* logits = session.forward(parts.self_test_ids.data(), 3);
    ASSERT_NE(logits, nullptr);
    EXPECT_EQ(m.model.self_test_ids, parts.self_test_ids);
    EXPECT_EQ(m.model.self_test_hash, hash_logits(logits, 100));
  }
}

TEST(ModelWriter, ChoosesTensorTypes) {
  const tiny::MemoryModel q4(small_config(), Type::q4), f32(small_config(), Type::f32);
  EXPECT_EQ(q4.model.token_embedding.type, Type::q8);
  EXPECT_EQ(q4.model.layers[0].wq.type, Type::q4);
  EXPECT_EQ(q4.model.layers[0].attention_norm.type, Type::f32);
  EXPECT_EQ(q4.model.output.type, Type::q4);
  EXPECT_EQ(f32.model.token_embedding.type, Type::f32);
}

TEST(ModelWriter, ReportsProgress) {
  const TemporaryFolder folder;
  ModelWriter writer;
  uint64_t last = 0, whole = 0;
  ASSERT_TRUE(writer.write(folder.file("m.bin"), tiny::parts_of(small_config(), Type::q8), tiny::random_rows,
                           [&](const TensorSpec&, uint64_t done, uint64_t total) {
                             EXPECT_GT(done, last);
                             EXPECT_LE(done, total);
                             last = done;
                             whole = total;
                             return true;
                           }))
      << writer.error;
  EXPECT_EQ(last, whole);
  EXPECT_EQ(writer.file_bytes(), std::filesystem::file_size(folder.file("m.bin")));
  EXPECT_EQ(folder.list(), "m.bin\n");
}

// ---- Failures leave nothing behind and keep an existing file ----

// Writes over an existing file; returns the error.
std::string failure(const ModelParts& parts, const ReadRows& rows, const Progress& progress = nullptr) {
  const TemporaryFolder folder;
  folder.write("m.bin", "existing file");
  ModelWriter writer;
  EXPECT_FALSE(writer.write(folder.file("m.bin"), parts, rows, progress));
  EXPECT_EQ(folder.list(), "m.bin\n");
  EXPECT_EQ(read_file(folder.file("m.bin")).substr(0, 20), "existing file");
  return writer.error;
}

TEST(ModelWriterFails, IfRowsCannotBeRead) {
  for (const char* name : {"token_embedding", "layers.1.ffn_norm", "layers.1.w2", "output"}) {
    const ReadRows rows = [&](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& error) {
      if (spec.name == name && first + count == spec.rows) return fail(error, "row gone");
      return tiny::random_rows(spec, first, count, out, error);
    };
    EXPECT_EQ(failure(tiny::parts_of(small_config(), Type::q4), rows), "row gone");
  }
}

TEST(ModelWriterFails, IfAWeightIsNotFinite) {
  for (const float value : {NAN, INFINITY, -INFINITY})
    for (const char* name : {"token_embedding", "layers.0.attention_norm", "layers.1.w1"}) {
      const ReadRows rows = [&](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& error) {
        tiny::random_rows(spec, first, count, out, error);
        if (spec.name == name && first == 0) out[3] = value;
        return true;
      };
      const std::string error = failure(tiny::parts_of(small_config(), Type::q8), rows);
      EXPECT_EQ(error.find(std::string(name) + ": row 0, column 3: expected a finite number, found "), 0u) << error;
    }
}

TEST(ModelWriterFails, IfInterrupted) {
  for (const int after : {0, 1, 5, 15}) {
    int calls = 0;
    const std::string error = failure(tiny::parts_of(small_config(), Type::q8), tiny::random_rows,
                                      [&](const TensorSpec&, uint64_t, uint64_t) { return calls++ < after; });
    EXPECT_TRUE(contains(error, "m.bin: interrupted")) << error;
    EXPECT_EQ(calls, after + 1);
  }
}

TEST(ModelWriterFails, IfLogitsAreNotFinite) {
  ModelParts parts = tiny::parts_of(small_config(), Type::f32);
  parts.self_test_ids = {1};
  const ReadRows rows = [](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& error) {
    tiny::random_rows(spec, first, count, out, error);
    if (spec.name == "output" || spec.name == "final_norm") std::fill(out, out + count * spec.cols, 1e30f);
    return true;
  };
  const std::string error = failure(parts, rows);
  EXPECT_TRUE(contains(error, "self-test: logits: expected finite numbers")) << error;
}

TEST(ModelWriterFails, IfReaderRejectsShape) {
  ModelParts parts = tiny::parts_of(small_config(), Type::q8);
  parts.config.n_kv_heads = 3;
  EXPECT_TRUE(contains(failure(parts, tiny::random_rows), "n_kv_heads: expected a divisor of 4 heads, found 3"));
}

TEST(ModelWriterFails, IfDiskIsFull) {
  struct Limit {
    rlimit before;
    explicit Limit(rlim_t bytes) {
      std::signal(SIGXFSZ, SIG_IGN);
      getrlimit(RLIMIT_FSIZE, &before);
      const rlimit now = {bytes, before.rlim_max};
      setrlimit(RLIMIT_FSIZE, &now);
    }
    ~Limit() { setrlimit(RLIMIT_FSIZE, &before); }
  };
  for (const rlim_t bytes : {1, 1000, 50000}) {
    std::string error;
    const TemporaryFolder folder;
    ModelWriter writer;
    {
      const Limit limit(bytes);
      EXPECT_FALSE(writer.write(folder.file("m.bin"), tiny::parts_of(small_config(), Type::q8), tiny::random_rows, {}));
    }
    EXPECT_EQ(writer.error, folder.file("m.bin") + ": File too large");
    EXPECT_EQ(folder.list(), "");
  }
}

TEST(ModelWriterFails, IfFileCannotBeReplaced) {
  ModelWriter writer;
  const TemporaryFolder folder;
  EXPECT_FALSE(
      writer.write(folder.file("none/m.bin"), tiny::parts_of(small_config(), Type::q8), tiny::random_rows, {}));
  EXPECT_EQ(writer.error, folder.file("none/m.bin") + ": No such file or directory");
  EXPECT_FALSE(writer.write(folder.path(), tiny::parts_of(small_config(), Type::q8), tiny::random_rows, {}));
  EXPECT_EQ(writer.error, folder.path() + ": Is a directory");
  ASSERT_EQ(mkfifo(folder.file("fifo").c_str(), 0600), 0);
  EXPECT_FALSE(writer.write(folder.file("fifo"), tiny::parts_of(small_config(), Type::q8), tiny::random_rows, {}));
  EXPECT_EQ(writer.error, folder.file("fifo") + ": expected a regular file, found a device or a pipe");
}

}  // namespace model_writer_test
