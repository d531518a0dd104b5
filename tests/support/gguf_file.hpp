// gguf_file.hpp: writes GGUF files by the description of the format, part by part, so that a test can corrupt any part.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../../export/gguf.hpp"

namespace gguf {

using namespace pocket;

template <class T> std::string raw(T value) { return {reinterpret_cast<const char*>(&value), sizeof value}; }
inline std::string text(const std::string& s) { return raw(uint64_t(s.size())) + s; }

inline std::string kind(GgufKind k) { return raw(uint32_t(k)); }
inline std::string u32(uint32_t v) { return kind(GgufKind::u32) + raw(v); }
inline std::string f32(float v) { return kind(GgufKind::f32) + raw(v); }
inline std::string boolean(bool v) { return kind(GgufKind::boolean) + raw(uint8_t(v)); }
inline std::string string(const std::string& s) { return kind(GgufKind::string) + text(s); }
inline std::string array(GgufKind element, uint64_t count, const std::string& elements) {
  return kind(GgufKind::array) + kind(element) + raw(count) + elements;
}
inline std::string strings(const std::vector<std::string>& all) {
  std::string elements;
  for (const std::string& s : all) elements += text(s);
  return array(GgufKind::string, all.size(), elements);
}
inline std::string floats(const std::vector<float>& all) {
  std::string elements;
  for (float v : all) elements += raw(v);
  return array(GgufKind::f32, all.size(), elements);
}

struct TensorOf {
  std::string name;
  std::vector<uint64_t> sizes;  // fastest first
  uint32_t type;
  std::string bytes;
};

/// The parts of a file.
struct GgufFile {
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::vector<std::pair<std::string, std::string>> metadata;
  std::vector<TensorOf> tensors;
  uint64_t alignment = 32, more_tensors = 0, more_pairs = 0;

  std::string& operator[](const std::string& key) {
    for (auto& [k, value] : metadata)
      if (k == key) return value;
    return metadata.emplace_back(key, "").second;
  }
  void erase(const std::string& key) {
    for (size_t i = 0; i < metadata.size(); i++)
      if (metadata[i].first == key) metadata.erase(metadata.begin() + long(i--));
  }
  std::string header() const {
    std::string out = magic + raw(version) + raw(tensors.size() + more_tensors) + raw(metadata.size() + more_pairs);
    for (const auto& [key, value] : metadata) out += text(key) + value;
    uint64_t offset = 0;
    for (const TensorOf& t : tensors) {
      out += text(t.name) + raw(uint32_t(t.sizes.size()));
      for (uint64_t size : t.sizes) out += raw(size);
      out += raw(t.type) + raw(offset);
      offset = round_up(offset + t.bytes.size(), alignment);
    }
    return out;
  }
  std::string bytes() const {
    std::string out = header();
    for (const TensorOf& t : tensors) {
      out.resize(round_up(out.size(), alignment));
      out += t.bytes;
    }
    return out;
  }
};

inline constexpr uint32_t kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8, kBF16 = 30;

}  // namespace gguf
