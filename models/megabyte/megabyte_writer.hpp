// megabyte_writer.hpp: writes MEGABYTE model files with export/model_writer.hpp, and shapes for benchmarks.
#pragma once

#include "../../export/input_file.hpp"
#include "../../export/model_writer.hpp"
#include "megabyte.hpp"

namespace pocket {

// A shape with a name, for export/convert --random.
struct MegabytePreset {
  const char* name;
  MegabyteConfig config;
};

inline const std::vector<MegabytePreset>& megabyte_presets() {
  static const std::vector<MegabytePreset> all = {
      {"megabyte-24m", {{512, 2048, 6}, {256, 1024, 4}, 8, 64, 256, 4, false, false}},
  };
  return all;
}

// Computes the self-test hash of the model file that was just written.
inline bool self_test_megabyte(const std::string& path, const ModelParts& parts, uint64_t& hash, std::string& error) {
  MegabyteModel model;
  if (!model.open(path.c_str())) return fail(error, "the new file cannot be opened: " + model.error);
  if (parts.self_test_ids.empty()) return true;
  MegabyteSession session(model, {int(parts.self_test_ids.size()), parts.threads, KvType::automatic, nullptr});
  return hash_self_test(session, parts.self_test_ids, hash, error);
}

// Makes `parts` describe a MEGABYTE model of this shape.
inline void set_architecture(const MegabyteConfig& c, ModelParts& parts) {
  Architecture a;
  set_header(c, a.header);
  a.specs = tensor_specs(c);
  a.self_test = self_test_megabyte;
  parts.architecture = std::move(a);
  parts.config.n_heads = parts.config.n_kv_heads = c.n_heads;
  parts.config.head_dim = c.head_dim;
}

}  // namespace pocket
