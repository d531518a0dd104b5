// calibrate_test.cpp: a calibrated model is closer to the exact model than an uncalibrated one, and the file is the
// same for any number of threads and after an interruption.
#include "../../export/calibrate.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "../support/tiny_model.hpp"

namespace calibrate_test {

using namespace pocket;
using tiny::Random;

Config small_config() {
  Config c = tiny::small_config();
  c.dim = 128;
  c.hidden_dim = 172;
  c.head_dim = 32;
  return c;
}

// Tokens with regularities, so that inputs are correlated.
std::vector<std::vector<int>> windows_of(const Config& c, int tokens, uint64_t seed = 1) {
  Random random(seed);
  std::vector<std::vector<int>> windows(1);
  int last = 0;
  for (int i = 0; i < tokens; i++) {
    if (windows.back().size() == 200) windows.emplace_back();
    last = random.below(3) ? (last * 7 + 3) % c.vocab_size : random.below(c.vocab_size);
    windows.back().push_back(last);
  }
  return windows;
}

struct Result {
  bool done;
  int layers_before;  // complete at the start
  std::string error;
  tiny::Bytes bytes;  // of the model file
  std::vector<double> errors;
};

std::vector<TensorSpec> matrices_of(const Config& c) {
  std::vector<TensorSpec> matrices;
  for (const TensorSpec& spec : tensor_specs(c))
    if (spec.layout == Layout::panels) matrices.push_back(spec);
  return matrices;
}

// Calibrates and writes. stop_after: number of matrices after which progress returns false; 0: never.
Result calibrated(const Config& c, const std::vector<std::vector<int>>& windows, const TemporaryFolder& folder,
                  CalibrationOptions options = {}, int stop_after = 0, const ReadRows& read = tiny::random_rows) {
  CalibrationFile file;
  Calibration calibration(c, windows, read, options);
  Result r = {};
  size_t tokens = 0;
  for (const auto& w : windows) tokens += w.size();
  if (!file.open(folder.file("m.calibrating"), 7, 8 * Calibration::stream_floats(c, tokens), matrices_of(c))) {
    r.error = file.error;
    return r;
  }
  r.layers_before = file.layers();
  int matrices = 0;
  double share = 0;
  r.done = calibration.quantize(file, [&](double done, double total, const EncodedTensor* tensor) {
    EXPECT_LE(done, total * 1.0001);
    share = done / total;
    matrices += tensor != nullptr;
    return stop_after == 0 || matrices < stop_after;
  });
  r.error = calibration.error;
  if (!r.done) return r;
  EXPECT_NEAR(share, 1, 1e-9);
  ModelParts parts = tiny::parts_of(c, Type::q4);
  size_t i = 0;
  for (const TensorSpec& spec : matrices_of(c)) {
    r.errors.push_back(file.records()[i].error);
    parts.ready[spec.name] = file.ready(file.records()[i++]);
  }
  EXPECT_EQ(i, file.records().size());
  ModelWriter writer;
  EXPECT_TRUE(writer.write(folder.file("m.bin"), parts, read, {})) << writer.error;
  const std::string bytes = read_file(folder.file("m.bin"));
  r.bytes.assign(bytes.begin(), bytes.end());
  file.remove();
  EXPECT_EQ(folder.list(), "m.bin\n");
  return r;
}

// Mean Kullback-Leibler divergence of a model from the exact model.
double divergence(const tiny::Bytes& bytes, const Config& c, const std::vector<int>& ids) {
  const tiny::MemoryModel exact(c, Type::f32);
  Model model;
  EXPECT_TRUE(model.open_memory(bytes.data(), bytes.size())) << model.error;
  std::vector<std::vector<double>> logs[2];
  for (int i = 0; i < 2; i++) {
    Session session(i ? model : exact.model, {int(ids.size()), 1, KvType::automatic, nullptr});
    session.forward(ids.data(), ids.size(), [&](size_t, const float* logits) {
      double sum = 0;
      std::vector<double> p;
      for (int v = 0; v < c.vocab_size; v++) sum += std::exp(double(logits[v]));
      for (int v = 0; v < c.vocab_size; v++) p.push_back(logits[v] - std::log(sum));
      logs[i].push_back(p);
      return true;
    });
  }
  double total = 0;
  for (size_t t = 0; t < ids.size(); t++)
    for (int v = 0; v < c.vocab_size; v++) total += std::exp(logs[0][t][v]) * (logs[0][t][v] - logs[1][t][v]);
  return total / double(ids.size());
}

TEST(Calibrate, IsCloserToTheExactModelThanUncalibrated) {
  const Config c = small_config();
  const TemporaryFolder folder;
  const std::vector<int> other = windows_of(c, 200, 2)[0];
  const tiny::MemoryModel plain(c, Type::q4);
  const double before = divergence(tiny::model_bytes(tiny::parts_of(c, Type::q4)), c, other);
  const Result r = calibrated(c, windows_of(c, 3000), folder);
  ASSERT_TRUE(r.done) << r.error;
  EXPECT_LT(divergence(r.bytes, c, other), 0.8 * before);
  for (double e : r.errors) EXPECT_TRUE(e > 0.005 && e < 0.1) << e;
}

TEST(Calibrate, GivesSameBytesForAnyNumberOfThreads) {
  const Config c = small_config();
  const TemporaryFolder folder;
  CalibrationOptions options;
  options.threads = 1;
  const Result one = calibrated(c, windows_of(c, 700), folder, options);
  for (const int threads : {2, 5}) {
    options.threads = threads;
    EXPECT_TRUE(one.bytes == calibrated(c, windows_of(c, 700), folder, options).bytes) << threads;
  }
}

TEST(Calibrate, ResumesAfterInterruption) {
  const Config c = small_config();
  const TemporaryFolder folder;
  const auto windows = windows_of(c, 500);
  const Result whole = calibrated(c, windows, folder);
  for (const int stop : {1, 6, 8, 12, 15}) {  // within the first layer, the second, and the output matrix
    const Result stopped = calibrated(c, windows, folder, {}, stop);
    EXPECT_FALSE(stopped.done);
    EXPECT_EQ(stopped.error, "");
    EXPECT_EQ(folder.list(), stop > 7 ? "m.bin\nm.calibrating\n" : "m.bin\n") << "without a layer there is nothing";
    const Result rest = calibrated(c, windows, folder);
    EXPECT_EQ(rest.layers_before, (stop - 1) / 7) << "after " << stop << " matrices";
    EXPECT_TRUE(rest.bytes == whole.bytes) << "after " << stop << " matrices";
  }
}

// A damaged file is overwritten: no damage gives another model.
TEST(Calibrate, RestartsIfFileIsDamaged) {
  const Config c = small_config();
  const TemporaryFolder folder;
  const auto windows = windows_of(c, 300);
  const Result whole = calibrated(c, windows, folder);
  ASSERT_FALSE(calibrated(c, windows, folder, {}, 9).done);
  const std::string left = read_file(folder.file("m.calibrating"));
  // version, key, layers, end, checksum; the first record, its error, checksum and panels; the panels of the last one
  const size_t records = 4096 + 2 * 307200;
  ASSERT_EQ(left.size() > records + 20000, true);
  for (const size_t at : {size_t(7), size_t(9), size_t(20), size_t(25), size_t(40), records, records + 20, records + 66,
                          records + 82, records + 100, records + 5000}) {
    std::string damaged = left;
    damaged[at] = char(damaged[at] ^ 1);
    folder.write("m.calibrating", damaged);
    CalibrationFile file;
    EXPECT_TRUE(file.open(folder.file("m.calibrating"), 7, 8 * Calibration::stream_floats(c, 300), matrices_of(c)));
    EXPECT_EQ(file.layers(), 0) << "byte " << at;
    EXPECT_TRUE(file.records().empty()) << "byte " << at;
  }
  folder.write("m.calibrating", left.substr(0, 4096 + 2 * 307200 + 10000));
  EXPECT_TRUE(calibrated(c, windows, folder).bytes == whole.bytes);
}

// Panels that change after the file was opened.
TEST(Calibrate, RejectsPanelsThatChange) {
  const Config c = small_config();
  const TemporaryFolder folder;
  CalibrationFile file;
  ASSERT_TRUE(file.open(folder.file("x"), 1, 100, matrices_of(c))) << file.error;
  const TensorSpec spec = matrices_of(c)[0];
  ASSERT_TRUE(file.append({spec, Type::q4, {}, std::vector<uint8_t>(tensor_bytes(spec, Type::q4))})) << file.error;
  const CalibrationFile::Record& r = file.records()[0];
  std::vector<uint8_t> panels(r.entry.bytes);
  std::string error;
  EXPECT_TRUE(file.ready(r).read(0, panels.size(), panels.data(), error)) << error;
  std::fstream(folder.file("x")).seekp(long(r.entry.offset + 1000)).put(1);
  const ReadyTensor changed = file.ready(r);
  EXPECT_TRUE(changed.read(0, 500, panels.data(), error));
  EXPECT_FALSE(changed.read(500, panels.size() - 500, panels.data(), error));
  EXPECT_EQ(error, folder.file("x") + ": changed while it was in use");
}

// Another file is neither changed nor deleted, nor is the target of a link.
TEST(Calibrate, KeepsFilesThatAreNotItsOwn) {
  const Config c = small_config();
  const TemporaryFolder folder;
  const auto windows = windows_of(c, 300);
  for (const std::string& other : {std::string("a letter"), std::string(), std::string(700000, 'x')}) {
    folder.write("m.calibrating", other);
    const Result r = calibrated(c, windows, folder);
    EXPECT_NE(r.error.find("m.calibrating: expected the file of an interrupted calibration"), std::string::npos)
        << r.error;
    EXPECT_EQ(read_file(folder.file("m.calibrating")), other);
  }
  for (const char* target : {"victim", "none"}) {
    folder.write("victim", "victim");
    std::filesystem::remove(folder.file("m.calibrating"));
    std::filesystem::create_symlink(target, folder.file("m.calibrating"));
    EXPECT_NE(calibrated(c, windows, folder).error, "");
    EXPECT_EQ(read_file(folder.file("victim")), "victim");
    EXPECT_TRUE(std::filesystem::is_symlink(folder.file("m.calibrating")));
  }
}

TEST(Calibrate, RejectsDamagedStreams) {
  const Config c = small_config();
  const TemporaryFolder folder;
  const auto windows = windows_of(c, 300);
  ASSERT_FALSE(calibrated(c, windows, folder, {}, 9).done);
  std::string left = read_file(folder.file("m.calibrating"));
  for (size_t i = 0; i < 100; i++)
    for (const size_t stream : {4096, 4096 + 307200}) left[stream + i * 1000] ^= 1;
  folder.write("m.calibrating", left);
  const Result r = calibrated(c, windows, folder);
  EXPECT_FALSE(r.done);
  EXPECT_EQ(r.error, folder.file("m.calibrating") + ": damaged; repeat the command to restart");
}

TEST(Calibrate, LocksItsFile) {
  const TemporaryFolder folder;
  CalibrationFile first, second;
  ASSERT_TRUE(first.open(folder.file("x"), 1, 100, {}));
  EXPECT_FALSE(second.open(folder.file("x"), 1, 100, {}));
  EXPECT_EQ(second.error, folder.file("x") + ": in use by another process");
}

TEST(Calibrate, AcceptsVeryFewTokens) {
  const Config c = small_config();
  const TemporaryFolder folder;
  for (const int tokens : {1, 2, 40}) {
    const Result r = calibrated(c, windows_of(c, tokens), folder);
    ASSERT_TRUE(r.done) << r.error;
    EXPECT_LT(divergence(r.bytes, c, windows_of(c, 100, 3)[0]), 0.2) << tokens;
  }
}

TEST(Calibrate, StoresOutputMatrixAtQ8) {
  const Config c = small_config();
  const TemporaryFolder folder;
  CalibrationOptions options;
  const Result q4 = calibrated(c, windows_of(c, 1000), folder);
  options.head = Type::q8;
  const Result q8 = calibrated(c, windows_of(c, 1000), folder, options);
  ASSERT_TRUE(q8.done) << q8.error;
  EXPECT_LT(q8.errors.back(), 0.2 * q4.errors.back());
  Model model;
  ASSERT_TRUE(model.open_memory(q8.bytes.data(), q8.bytes.size())) << model.error;
  EXPECT_EQ(model.output.type, Type::q8);
}

TEST(CalibrateFails, IfAWeightIsNotFinite) {
  const Config c = small_config();
  for (const std::string bad : {"token_embedding", "layers.0.wk", "layers.1.ffn_norm", "layers.1.w2", "output"}) {
    const TemporaryFolder folder;
    const Result r = calibrated(c, windows_of(c, 300), folder, {}, 0,
                                [&](const TensorSpec& s, int64_t first, int64_t count, float* out, std::string& why) {
                                  tiny::random_rows(s, first, count, out, why);
                                  if (s.name == bad) out[3] = NAN;
                                  return true;
                                });
    EXPECT_FALSE(r.done);
    EXPECT_NE(r.error.find(bad + ": row "), std::string::npos) << r.error;
    EXPECT_NE(r.error.find("expected a finite number"), std::string::npos) << r.error;
  }
}

// Finite weights that are so large that their outputs are infinite.
TEST(CalibrateFails, IfInputsOverflow) {
  const Config c = small_config();
  const TemporaryFolder folder;
  const Result r = calibrated(c, windows_of(c, 100), folder, {}, 0,
                              [&](const TensorSpec& s, int64_t first, int64_t count, float* out, std::string& why) {
                                tiny::random_rows(s, first, count, out, why);
                                for (int k = 0; s.name == "layers.0.w1" && k < s.cols * count; k++) out[k] *= 1e38f;
                                return true;
                              });
  EXPECT_FALSE(r.done);
  EXPECT_EQ(r.error, "layers.0.w2: expected finite inputs, found infinity or NaN; is the checkpoint damaged?");
}

}  // namespace calibrate_test
