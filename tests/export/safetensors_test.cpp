// safetensors_test.cpp: .safetensors files. Every number format is decoded exactly, and a file whose header does not
// match its contents is rejected with an error that names the file and the tensor.
#include "../../export/safetensors.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "../support/allocation_limit.hpp"
#include "../support/tiny_model.hpp"

namespace safetensors_test {

using namespace pocket;
using Json = nlohmann::json;

std::string bytes_of_length(uint64_t n) { return {reinterpret_cast<const char*>(&n), 8}; }
std::string file_of(const std::string& header, const std::string& data) {
  return bytes_of_length(header.size()) + header + data;
}

Json entry(const char* dtype, const Json& shape, const Json& begin, const Json& end) {
  return {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {begin, end}}};
}

std::string write_file(const std::string& bytes) {
  static const TemporaryFolder folder;
  std::filesystem::remove(folder.file("m.safetensors"));  // faster than overwriting it
  return folder.write("m.safetensors", bytes);
}

/// A file on disk, listed. The next object overwrites it.
struct Listed {
  Checkpoint checkpoint;
  FoundTensors found;
  std::string path, error;

  explicit Listed(const std::string& bytes) : path(write_file(bytes)) { list(); }
  void list() {
    auto file = InputFile::open(path, error);
    ASSERT_TRUE(file) << error;
    checkpoint.files.push_back(std::move(file));
    const bool ok = list_safetensors(checkpoint, 0, found, error);
    EXPECT_EQ(ok, error.empty()) << error;
    EXPECT_TRUE(ok || error.rfind(path + ": ", 0) == 0) << error;
  }
  /// The error after the file's name.
  std::string what() const { return error.substr(std::min(error.size(), path.size() + 2)); }

  /// The values of a tensor, `cols` per row.
  tiny::Floats read(const std::string& name, int64_t cols) {
    const FoundTensor& t = found.at(name);
    const int64_t rows = int64_t(t.bytes) / dtype_info(t.dtype).block_bytes / cols;
    checkpoint.tensors["t"] = {t.file, t.offset, t.dtype, rows, cols};
    tiny::Floats out(size_t(rows * cols));
    EXPECT_TRUE(checkpoint.read_rows("t", 0, rows, out.data(), error)) << error;
    return out;
  }
};

std::string error_of(const std::string& bytes) { return Listed(bytes).what(); }
std::string error_of(const Json& header, size_t data_bytes) {
  return error_of(file_of(header.dump(), std::string(data_bytes, '\1')));
}

/// Three tensors, one of each dtype, an empty one and a scalar, not in the order of their names.
std::string sample() {
  const Json header = {{"__metadata__", {{"format", "pt"}}},   {"b", entry("F32", {2, 3}, 0, 24)},
                       {"a", entry("BF16", {4}, 24, 32)},      {"c", entry("F16", {1, 2, 3}, 36, 48)},
                       {"none", entry("F32", {0, 5}, 32, 32)}, {"one", entry("F32", Json::array(), 32, 36)}};
  std::string data;
  for (char c = 0; c < 48; c++) data += c;
  return file_of(header.dump(), data);
}

// ---- Numbers ----

/// IEEE 754 by its definition: 1 sign bit, `exponent_bits`, `mantissa_bits`.
double naive_float(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const uint32_t most = (1u << exponent_bits) - 1, e = bits >> mantissa_bits & most;
  const double fraction = double(bits & ((1u << mantissa_bits) - 1)) / double(1u << mantissa_bits);
  const double sign = bits >> (exponent_bits + mantissa_bits) & 1 ? -1 : 1;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  if (e == most) return fraction > 0 ? NAN : sign * HUGE_VAL;
  return sign * (e == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, int(e) - bias));
}

void all_patterns(const char* dtype, int exponent_bits, int mantissa_bits) {
  std::string data;
  for (uint32_t i = 0; i < 65536; i++) data += {char(i & 255), char(i >> 8)};
  const std::string header = Json{{"x", entry(dtype, {256, 256}, 0, 131072)}}.dump();
  Listed f(file_of(header + (header.size() % 2 ? "" : " "), data));  // values at odd offsets
  ASSERT_EQ(f.error, "");
  ASSERT_EQ(f.found.at("x").offset % 2, 1u);
  const tiny::Floats found = f.read("x", 256);
  for (uint32_t i = 0; i < 65536; i++) {
    const double expected = naive_float(i, exponent_bits, mantissa_bits);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(found[i])) << i;
    } else {
      ASSERT_EQ(double(found[i]), expected) << i;
      ASSERT_EQ(std::signbit(found[i]), std::signbit(expected)) << i;
    }
  }
}

TEST(SafetensorsNumbers, DecodesAllFloat16) { all_patterns("F16", 5, 10); }
TEST(SafetensorsNumbers, DecodesAllBfloat16) { all_patterns("BF16", 8, 7); }

TEST(SafetensorsNumbers, KeepsFloat32Bits) {
  tiny::Random random(1);
  std::string data;
  std::vector<uint32_t> bits = {0, 1u << 31, 1, 0x7f800000, 0xff800000, 0x7f7fffff, 0x00800000, 0x7fc00000};
  while (bits.size() < 1000) bits.push_back(uint32_t(random.bits()));
  data.assign(reinterpret_cast<const char*>(bits.data()), 4000);
  Listed f(file_of(Json{{"x", entry("F32", {10, 100}, 0, 4000)}}.dump(), data));
  ASSERT_EQ(f.error, "");
  EXPECT_EQ(std::memcmp(f.read("x", 100).data(), data.data(), data.size()), 0);
}

TEST(SafetensorsNumbers, ReadsRangesOfRows) {
  Listed f(
      file_of(Json{{"x", entry("F16", {3, 2}, 0, 12)}}.dump(), {0, 0x3c, 0, 0x40, 0, 0x42, 0, 0x44, 0, 0x45, 0, 0x46}));
  ASSERT_EQ(f.error, "");
  EXPECT_EQ(f.read("x", 2), (tiny::Floats{1, 2, 3, 4, 5, 6}));
  tiny::Floats row(4);
  EXPECT_TRUE(f.checkpoint.read_rows("t", 1, 2, row.data(), f.error));
  EXPECT_EQ(row, (tiny::Floats{3, 4, 5, 6}));
  EXPECT_TRUE(f.checkpoint.read_rows("t", 3, 0, row.data(), f.error));
  for (const auto& [first, count] :
       {std::pair<int64_t, int64_t>{-1, 1}, {0, 4}, {3, 1}, {4, 0}, {1, -1}, {INT64_MAX, 1}, {1, INT64_MAX}}) {
    EXPECT_FALSE(f.checkpoint.read_rows("t", first, count, row.data(), f.error));
    EXPECT_EQ(f.error, "tensor t: expected rows within 3, found " + std::to_string(count) + " from row " +
                           std::to_string(first));
  }
  EXPECT_FALSE(f.checkpoint.read_rows("y", 0, 1, row.data(), f.error));
  EXPECT_EQ(f.error, "tensor y: not in this checkpoint");
}

// ---- Headers ----

TEST(SafetensorsHeader, ListsTensors) {
  Listed f(sample());
  ASSERT_EQ(f.error, "");
  ASSERT_EQ(f.found.size(), 5u) << "the metadata is not a tensor";
  const uint64_t data = read_file(f.path).size() - 48;
  const FoundTensor &a = f.found.at("a"), &c = f.found.at("c");
  EXPECT_TRUE(a.offset == data + 24 && a.bytes == 8 && a.dtype == DType::bf16 && a.shape == std::vector<int64_t>{4});
  EXPECT_TRUE(c.offset == data + 36 && c.bytes == 12 && c.dtype == DType::f16);
  EXPECT_EQ(c.shape, (std::vector<int64_t>{1, 2, 3}));
  EXPECT_TRUE(f.found.at("one").shape.empty() && f.found.at("one").bytes == 4);
  EXPECT_EQ(f.found.at("none").bytes, 0u);
}

TEST(SafetensorsHeader, RejectsLengthBeyondFile) {
  const std::string header = "{\"x\": 1}", rest = header + "data";
  const auto with_length = [&](uint64_t n) { return error_of(bytes_of_length(n) + rest); };
  EXPECT_EQ(with_length(13), "header length: expected at most 12, found 13 (truncated?)");
  for (const uint64_t n : {uint64_t(1) << 31, uint64_t(1) << 32, uint64_t(1) << 63, UINT64_MAX - 7, UINT64_MAX})
    EXPECT_EQ(with_length(n), "header length: expected at most 12, found " + std::to_string(n) + " (truncated?)");
  EXPECT_EQ(Listed(bytes_of_length(0) + rest).error.substr(Listed(rest).path.size()),
            ": header: expected JSON, found an empty file");
  EXPECT_NE(with_length(1), "");
  EXPECT_NE(with_length(7), "");
  EXPECT_NE(with_length(12), "") << "data is not a header";
}

TEST(SafetensorsHeader, RejectsLengthAboveLimit) {
  Listed f(bytes_of_length(100000001) + "{\"x\": 1}");
  std::filesystem::resize_file(f.path, 200000000);  // a sparse file
  f.checkpoint.files.clear();
  f.error.clear();
  f.list();
  EXPECT_EQ(f.what(), "header length: expected at most 100000000, found 100000001");
}

TEST(SafetensorsHeader, RejectsInvalidJson) {
  for (const char* header :
       {"[1, 2, 3]   ", "\"text\"      ", "null          ", "12345678901", "{tensor: 1}  ", "            "})
    EXPECT_EQ(error_of(file_of(header, "")).find("expected a safetensors or PyTorch file, found "), 0u) << header;
  const std::pair<const char*, const char*> all[] = {
      {"{\"x\": 1,}", "1:9: expected a key in quotes, found '}'"},
      {"{\"x\": {\"dtype\": \"F32\"", "1:22: expected ',' or '}', found the end"},
      {"{} []", "1:4: expected the end of the text, found '['"},
      {"{\n\"x\": nul}", "2:9: expected null, found '}'"},
      {"{\"\xFF\": 1}", "1:3: expected UTF-8, found byte 0xff"}};
  for (const auto& [header, expected] : all) {
    const Listed f(file_of(header, ""));
    EXPECT_EQ(f.error, f.path + ": header:" + expected);
  }
  EXPECT_NE(Listed(file_of("{\"x\": 1}" + std::string(3, '\0'), "")).error.find("expected the end of the text"),
            std::string::npos);
  EXPECT_EQ(error_of(file_of("{}", "")), "") << "no tensors, and no bytes for them";
  EXPECT_EQ(error_of(file_of("{}      ", "")), "") << "padded with spaces";
  EXPECT_EQ(error_of(file_of("{}", "x")).find("expected "), 0u);
}

TEST(SafetensorsHeader, RejectsDeepNesting) {
  std::string objects, arrays = "{\"x\":";
  for (int i = 0; i < 10000; i++) objects += "{\"x\":", arrays += "[";
  for (const std::string& header : {objects, arrays})
    EXPECT_NE(Listed(file_of(header, "")).error.find("expected at most 256 levels"), std::string::npos);
}

// ---- Entries ----

TEST(SafetensorsEntry, RejectsUnknownDtype) {
  for (const char* dtype : {"F64", "I64", "U8", "F8_E4M3", "f32", "", "BOOL"})
    EXPECT_EQ(error_of({{"w.x", entry(dtype, {1}, 0, 8)}}, 8),
              "tensor w.x: dtype: expected F32, F16 or BF16, found " + Json(dtype).dump());
  Json e = entry("F32", {1}, 0, 4);
  e["dtype"] = 32;
  EXPECT_EQ(error_of({{"x", e}}, 4), "tensor x: dtype: expected F32, F16 or BF16, found 32");
}

TEST(SafetensorsEntry, RejectsMissingAndWrongFields) {
  const std::pair<const char*, const char*> without[] = {
      {"dtype", "dtype: expected F32, F16 or BF16, found nothing"},
      {"shape", "shape: expected an array, found nothing"},
      {"data_offsets", "data_offsets: expected an array, found nothing"}};
  for (const auto& [key, expected] : without) {
    Json e = entry("F32", {1}, 0, 4);
    e.erase(key);
    EXPECT_EQ(error_of({{"x", e}}, 4), std::string("tensor x: ") + expected);
  }
  for (const Json& e : {Json(1), Json("F32"), Json::array({1}), Json(nullptr), Json::object(), Json(true)})
    EXPECT_EQ(error_of({{"x", e}}, 4), "tensor x: dtype: expected F32, F16 or BF16, found nothing") << e;
  const auto with = [](const char* key, const char* value) {
    Json e = entry("F32", {1}, 0, 4);
    e[key] = Json::parse(value);
    return error_of({{"x", e}}, 4);
  };
  for (const char* key : {"shape", "data_offsets"}) {
    const std::string field = std::string("tensor x: ") + key + ": expected ";
    EXPECT_EQ(with(key, "4"), field + "an array, found 4");
    EXPECT_EQ(with(key, "\"4\""), field + "an array, found \"4\"");
    EXPECT_EQ(with(key, "{\"0\": 4}"), field + "an array, found an object");
    EXPECT_EQ(with(key, "null"), field + "an array, found null");
    EXPECT_EQ(with(key, "[-1, 4]"), field + "whole numbers, found -1");
    EXPECT_EQ(with(key, "[1.0]"), field + "whole numbers, found 1.0");
    EXPECT_EQ(with(key, "[\"1\"]"), field + "whole numbers, found \"1\"");
    EXPECT_EQ(with(key, "[null]"), field + "whole numbers, found null");
    EXPECT_EQ(with(key, "[[1]]"), field + "whole numbers, found an array");
    EXPECT_EQ(with(key, "[18446744073709551615]"), field + "whole numbers, found 18446744073709551615");
  }
  for (const char* offsets : {"[]", "[0]", "[0, 4, 4]"})
    EXPECT_EQ(with("data_offsets", offsets),
              "tensor x: data_offsets: expected 2 numbers, found " + std::to_string(Json::parse(offsets).size()));
}

TEST(SafetensorsEntry, RejectsOffsetsBeyondFile) {
  const auto offsets = [](const Json& begin, const Json& end) {
    return error_of({{"x", entry("F32", {2}, begin, end)}}, 8);
  };
  const std::string expected = "tensor x: data_offsets: expected a range within 8 bytes, found ";
  EXPECT_EQ(offsets(0, 8), "");
  EXPECT_EQ(offsets(8, 0), expected + "8 to 0");
  EXPECT_EQ(offsets(4, 12), expected + "4 to 12");
  EXPECT_EQ(offsets(8, 16), expected + "8 to 16");
  EXPECT_EQ(offsets(0, INT64_MAX), expected + "0 to 9223372036854775807");
  EXPECT_EQ(offsets(INT64_MAX, 8), expected + "9223372036854775807 to 8");
  EXPECT_EQ(offsets(INT64_MAX - 8, INT64_MAX), expected + "9223372036854775799 to 9223372036854775807");
}

TEST(SafetensorsEntry, RejectsSizeThatDoesNotMatchShape) {
  const auto shape = [](const char* dtype, const Json& s) { return error_of({{"x", entry(dtype, s, 0, 24)}}, 24); };
  EXPECT_EQ(shape("F32", {6}) + shape("F32", {1, 6, 1}) + shape("BF16", {3, 4}) + shape("F16", {2, 2, 3}), "");
  EXPECT_EQ(shape("F32", {7}), "tensor x: expected 28 bytes for F32 of shape (7), found 24");
  EXPECT_EQ(shape("F16", {2, 3}), "tensor x: expected 12 bytes for F16 of shape (2, 3), found 24");
  EXPECT_EQ(shape("BF16", Json::array()), "tensor x: expected 2 bytes for BF16 of shape (), found 24");
  EXPECT_EQ(shape("F32", {0, 6}), "tensor x: expected 0 bytes for F32 of shape (0, 6), found 24");
}

TEST(SafetensorsEntry, RejectsShapesThatOverflow) {
  constexpr int64_t k32 = int64_t(1) << 32, k31 = k32 / 2, k62 = int64_t(1) << 62;
  const std::vector<int64_t> all[] = {{INT64_MAX},
                                      {INT64_MAX, INT64_MAX},
                                      {k62},
                                      {k32, k32},  // 2^64 elements overflow to 0
                                      {k31, k31, 4},
                                      {k62, 4},
                                      {4, k62},
                                      {k32, k32, 6},
                                      {k62 + 6},  // 4 * 2^62 bytes + 24 overflow to 24
                                      {k31, k32, 2, 6},
                                      {INT64_MAX, 2, 2},
                                      std::vector<int64_t>(8, 256),
                                      std::vector<int64_t>(8, k32)};
  for (const std::vector<int64_t>& shape : all)
    for (const char* dtype : {"F32", "F16"})
      for (const int end : {0, 24}) {
        const std::string error = error_of({{"x", entry(dtype, shape, 0, end)}}, size_t(end));
        EXPECT_EQ(error.find("tensor x: expected "), 0u) << error;
        EXPECT_NE(error.find("of shape " + shape_text(shape) + ", found " + std::to_string(end)), std::string::npos)
            << error;
      }
  EXPECT_EQ(error_of({{"x", entry("F32", std::vector<int64_t>(9, 1), 0, 4)}}, 4),
            "tensor x: shape: expected at most 8 numbers, found more");
  // As in the format's own reader: an overflow is an error even if a later size is 0.
  EXPECT_EQ(error_of({{"x", entry("F32", {0, INT64_MAX, INT64_MAX}, 0, 0)}}, 0), "");
  EXPECT_NE(error_of({{"x", entry("F32", {INT64_MAX, INT64_MAX, 0}, 0, 0)}}, 0), "");
}

// ---- Layout ----

TEST(SafetensorsLayout, RejectsOverlap) {
  const auto two = [](int begin_a, int end_a, int begin_b, int end_b) {
    return error_of({{"a", entry("F16", {(end_a - begin_a) / 2}, begin_a, end_a)},
                     {"b", entry("F16", {(end_b - begin_b) / 2}, begin_b, end_b)}},
                    16);
  };
  EXPECT_EQ(two(0, 8, 8, 16), "");
  EXPECT_EQ(two(8, 16, 0, 8), "");
  EXPECT_EQ(two(0, 16, 0, 16), "tensor b: expected no overlap, found the bytes of a");
  for (const std::string& error :
       {two(0, 10, 8, 16), two(0, 16, 4, 8), two(4, 8, 0, 16), two(0, 8, 0, 16), two(8, 16, 0, 16)})
    EXPECT_NE(error.find(": expected no overlap, found the bytes of "), std::string::npos) << error;
}

TEST(SafetensorsLayout, RejectsGapsAndExtraBytes) {
  const auto two = [](int begin_b, int end_b, size_t bytes) {
    const Json header = {{"a", entry("F32", {1}, 0, 4)}, {"b", entry("F32", {1}, begin_b, end_b)}};
    return Listed(file_of(header.dump(), std::string(bytes, '\1'))).what();
  };
  EXPECT_EQ(two(4, 8, 8), "");
  const std::string gap = two(8, 12, 12), extra = two(4, 8, 9);
  EXPECT_TRUE(gap.find("tensor b: expected offset ") == 0 && gap.find(": a gap") != std::string::npos) << gap;
  EXPECT_EQ(extra.find("expected "), 0u) << extra;
  EXPECT_NE(error_of({{"a", entry("F32", {1}, 4, 8)}}, 8).find("tensor a: expected offset "), std::string::npos);
}

TEST(SafetensorsLayout, RejectsDuplicateNames) {
  const std::string a = "\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": ";
  const Listed f(file_of("{" + a + "[0, 4]}, " + a + "[4, 8]}}", "12345678"));
  EXPECT_EQ(f.error, f.path + ": tensor a: expected once, found also in " + f.path);
  const std::string escaped = "\"\\u0061\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [4, 8]}";
  EXPECT_NE(Listed(file_of("{" + a + "[0, 4]}, " + escaped + "}", "12345678")).error, "");
}

// ---- Damaged files ----

TEST(SafetensorsDamaged, RejectsEveryTruncation) {
  const std::string whole = sample();
  ASSERT_EQ(error_of(whole), "");
  for (size_t n = 0; n < whole.size(); n++) ASSERT_NE(error_of(whole.substr(0, n)), "") << n;
  EXPECT_NE(error_of(whole + '\0'), "");
}

/// The rules of the format, implemented with nlohmann's reader.
bool valid(const std::string& file) {
  if (file.size() < 8 || load<uint64_t>(file.data()) > file.size() - 8) return false;
  const size_t length = size_t(load<uint64_t>(file.data()));
  const Json header = Json::parse(file.substr(8, length), nullptr, false);
  if (!header.is_object()) return false;
  std::map<uint64_t, uint64_t> extents;
  for (const auto& [name, e] : header.items()) {
    if (name == "__metadata__") continue;
    if (!e.is_object() || !e.contains("dtype") || !e.contains("shape") || !e.contains("data_offsets")) return false;
    const int size = e["dtype"] == "F32" ? 4 : e["dtype"] == "F16" || e["dtype"] == "BF16" ? 2 : 0;
    if (size == 0 || !e["shape"].is_array() || !e["data_offsets"].is_array() || e["data_offsets"].size() != 2)
      return false;
    double bytes = size;
    for (const char* key : {"shape", "data_offsets"})
      for (const Json& n : e[key])
        if (!n.is_number_integer() || n < 0) return false;
    for (const Json& n : e["shape"]) bytes *= n.get<double>();
    const double begin = e["data_offsets"][0], end = e["data_offsets"][1];
    if (end - begin != bytes || end > double(file.size() - 8 - length)) return false;
    if (bytes > 0 && !extents.emplace(uint64_t(begin), uint64_t(end)).second) return false;
  }
  uint64_t at = 0;
  for (const auto& [begin, end] : extents) {
    if (begin != at) return false;
    at = end;
  }
  return at == file.size() - 8 - length;
}

TEST(SafetensorsDamaged, AcceptsExactlyValidFiles) {
  const std::string whole = sample();
  ASSERT_TRUE(valid(whole));
  tiny::Random random(5);
  int accepted = 0;
  for (int i = 0; i < 6000; i++) {
    std::string file = whole;
    for (int n = 1 + random.below(2); n > 0; n--) {
      const size_t at = size_t(random.below(int(file.size())));
      const int kind = random.below(4);
      if (kind == 0) file[at] = char(file[at] ^ 1 << random.below(8));
      if (kind == 1) file[at] = "0123456789[]{},:\" "[random.below(18)];
      if (kind == 2) file.erase(at, 1);
      if (kind == 3) file.insert(at, 1, "0123456789[]{},:\" "[random.below(18)]);
      if (kind > 1 && random.below(4) > 0) {  // with a matching header length
        const std::string length = bytes_of_length(file.find("}}") == std::string::npos ? 0 : file.rfind("}}") - 6);
        file.replace(0, 8, length);
      }
    }
    Listed f(file);
    const size_t header = load<uint64_t>(file.data()) > file.size() ? 0 : size_t(load<uint64_t>(file.data()));
    const bool nul = file.substr(8, header).find('\0') != std::string::npos;  // ends the text for nlohmann
    const bool twice = f.error.find("expected once") != std::string::npos;    // nlohmann keeps one of them
    ASSERT_TRUE(nul || twice || f.error.empty() == valid(file)) << "number " << i << ": " << f.error << "\n" << file;
    if (!f.error.empty()) continue;
    accepted++;
    for (const auto& [name, t] : f.found) {
      ASSERT_LE(t.offset + t.bytes, file.size());
      if (t.bytes > 0) f.read(name, 1);
    }
  }
  EXPECT_GT(accepted, 300);
}

TEST(SafetensorsDamaged, RejectsRandomBytes) {
  tiny::Random random(6);
  for (int i = 0; i < 1000; i++) {
    std::string file(size_t(random.below(200)), '\0');
    for (char& c : file) c = char(random.bits());
    if (file.size() > 10 && i % 2) file.replace(0, 10, bytes_of_length(uint64_t(random.below(200))) + "{\"");
    ASSERT_NE(error_of(file), "");
  }
}

}  // namespace safetensors_test
