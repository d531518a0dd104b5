// lora_train.hpp: LoRA adapters in training: which tensors get them, their initial values, and the folder they are
// saved in, which has the format of the PEFT library and is read by export/lora.hpp.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "../export/lora.hpp"
#include "../export/output_file.hpp"
#include "llama_train.hpp"

namespace pocket {

// The modules that can have adapters, by PEFT's names. lm_head cannot where it is tied to the embedding.
inline constexpr const char* kLoraTargets[] = {"q_proj",    "k_proj",  "v_proj",    "o_proj",
                                               "gate_proj", "up_proj", "down_proj", "lm_head"};

// The settings of adapters.
struct LoraPlan {
  int32_t rank = 0;      // 0: no adapters
  float alpha = 0;       // B A is scaled by alpha / rank
  uint32_t targets = 0;  // bit i: kLoraTargets[i]
};

// Parses "q_proj,v_proj" to bits; "" means every matrix of the blocks. False with `error` set on an unknown name.
inline bool parse_lora_targets(const std::string& text, uint32_t& targets, std::string& error) {
  targets = text.empty() ? 0x7f : 0;
  std::string names;
  for (const char* name : kLoraTargets) names += (names.empty() ? "" : ", ") + std::string(name);
  for (size_t at = 0; at <= text.size() && !text.empty();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    const std::string name = text.substr(at, comma - at);
    const auto known = std::find(std::begin(kLoraTargets), std::end(kLoraTargets), name);
    if (known == std::end(kLoraTargets))
      return fail(error, "expected some of " + names + ", separated by commas, found '" + name + "'");
    targets |= 1u << (known - std::begin(kLoraTargets));
    at = comma + 1;
  }
  return true;
}

// The tensors of a model that get adapters, with PEFT's name of the module.
inline std::vector<std::pair<std::string, Parameter>> adapted_modules(const Config& c, uint32_t targets) {
  std::vector<std::pair<std::string, Parameter>> all;
  for (const Parameter& p : parameters_of(c)) {
    const std::string tensor = kHuggingFaceNames.names.name(p.spec.name);
    const std::string module = tensor.substr(0, tensor.rfind('.'));
    for (size_t t = 0; t < std::size(kLoraTargets); t++)
      if (targets >> t & 1 && names_module(kLoraTargets[t], module)) all.push_back({module, p});
  }
  return all;
}

// Checks that a model can have these adapters.
inline bool check_lora(const Config& c, const LoraPlan& plan, std::string& error) {
  if (plan.targets >> 7 & 1 && c.tied)
    return fail(error, "--lora-targets: lm_head: this model's output is its embedding, which LoRA leaves alone");
  for (const auto& [module, p] : adapted_modules(c, plan.targets))
    if (plan.rank > std::min(p.spec.rows, p.spec.cols))
      return fail(error, "--lora-rank: expected at most " + std::to_string(std::min(p.spec.rows, p.spec.cols)) +
                             ", the smaller side of " + module + " (" + std::to_string(p.spec.rows) + ", " +
                             std::to_string(p.spec.cols) + "), found " + std::to_string(plan.rank));
  return true;
}

// The shapes and places of a model's adapters, without values.
inline Adapters adapters_for(const Config& c, const LoraPlan& plan) {
  Adapters out;
  out.rank = plan.rank;
  if (plan.rank == 0) return out;
  out.scale = plan.alpha / float(plan.rank);
  const size_t stride = padded16(plan.rank);
  size_t at = 0;
  for (const auto& [module, p] : adapted_modules(c, plan.targets)) {
    const size_t b = at + size_t(p.spec.cols) * stride;
    out.all.push_back({p.offset, p.spec.rows, p.spec.cols, at, b});
    out.parameters.push_back({{module + ".lora_A", Layout::panels, p.spec.cols, plan.rank}, at, stride});
    out.parameters.push_back({{module + ".lora_B", Layout::panels, p.spec.rows, plan.rank}, b, stride});
    at = b + size_t(p.spec.rows) * stride;
  }
  return out;
}

// Initial values as in PEFT: B is zero, so that the model is unchanged at first; A is uniform in +-1 / sqrt(cols), the
// Kaiming initialization with slope sqrt(5) of torch.nn.Linear. In PEFT's order, row by row of A.
inline void initialize(Adapters& adapters, uint64_t seed) {
  for (const LearnedLowRank& l : adapters.all) {
    const double bound = 1 / std::sqrt(double(l.cols));
    for (int k = 0; k < adapters.rank; k++)
      for (int i = 0; i < l.cols; i++) {
        const double uniform = double(next_random(seed) >> 11) * 0x1p-53;
        adapters.values[l.a + size_t(i) * padded16(adapters.rank) + size_t(k)] = float(bound * (2 * uniform - 1));
      }
  }
}

// ---- The folder ----

// The text of adapter_config.json.
inline std::string lora_config_json(const LoraPlan& plan) {
  char alpha[32];
  std::snprintf(alpha, sizeof alpha, "%.9g", double(plan.alpha));
  std::string targets;
  for (size_t t = 0; t < std::size(kLoraTargets); t++)
    if (plan.targets >> t & 1) targets += (targets.empty() ? "\"" : ", \"") + std::string(kLoraTargets[t]) + "\"";
  return "{\n  \"base_model_name_or_path\": null,\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n"
         "  \"inference_mode\": true,\n  \"init_lora_weights\": true,\n  \"lora_alpha\": " +
         std::string(alpha) +
         ",\n  \"lora_dropout\": 0.0,\n  \"modules_to_save\": null,\n  \"peft_type\": \"LORA\",\n" +
         "  \"r\": " + std::to_string(plan.rank) + ",\n  \"target_modules\": [" + targets +
         "],\n  \"task_type\": \"CAUSAL_LM\",\n  \"use_dora\": false,\n  \"use_rslora\": false\n}\n";
}

// The shape of a tensor in the file: A (rank, cols) or B (rows, rank).
inline std::pair<int, int> shape_in_file(const Adapters& adapters, const Parameter& p) {
  if (p.spec.name.back() == 'A') return {adapters.rank, p.spec.rows};
  return {p.spec.rows, adapters.rank};
}

// Writes adapter_model.safetensors: A and B of each module, float32.
inline bool write_lora_tensors(const std::string& path, const Adapters& adapters, std::string& error) {
  std::string header = "{\"__metadata__\":{\"format\":\"pt\"}";
  size_t begin = 0;
  for (const Parameter& p : adapters.parameters) {
    const auto [rows, cols] = shape_in_file(adapters, p);
    const size_t end = begin + size_t(rows) * size_t(cols) * sizeof(float);
    header += ",\"base_model.model." + p.spec.name + ".weight\":{\"dtype\":\"F32\",\"shape\":[" + std::to_string(rows) +
              "," + std::to_string(cols) + "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) +
              "]}";
    begin = end;
  }
  header += "}";
  header.resize(round_up<size_t>(header.size(), 8), ' ');  // data begins at a multiple of 8 bytes
  const uint64_t size = header.size();
  OutputFile file;
  file.open(path);
  file.write(&size, sizeof size);
  file.write(header.data(), header.size());
  for (const Parameter& p : adapters.parameters) {
    const bool is_a = p.spec.name.back() == 'A';
    const auto [rows, cols] = shape_in_file(adapters, p);
    for (int r = 0; r < rows; r++)
      for (int k = 0; k < cols; k++)
        file.write(adapters.values.data() + p.offset + size_t(is_a ? k : r) * p.stride + (is_a ? r : k), sizeof(float));
  }
  return file.finish() || fail(error, file.error());
}

// Creates a temporary folder for an adapter. On failure returns false with `error` set: `folder` exists, since
// write_adapter() replaces nothing, or cannot be created.
inline bool create_adapter_folder(const std::string& folder, Temporary& temporary, std::string& error) {
  if (platform::info_of_link(folder).kind != platform::FileKind::none)
    return fail(error,
                folder + ": already exists; " +
                    (is_directory(folder) ? "delete the folder or choose another" : "choose the name of a new folder"));
  return temporary.create_beside(folder, platform::create_folder) || fail(error, folder + ": " + std::strerror(errno));
}

// Checks that write_adapter() can write a folder.
inline bool check_adapter_folder(const std::string& folder, std::string& error) {
  Temporary temporary;
  return create_adapter_folder(folder, temporary, error);
}

// Writes the folder under a temporary name and renames it when it is complete. On failure returns false with `error`
// set and leaves no files.
inline bool write_adapter(const std::string& folder, const LoraPlan& plan, const Adapters& adapters,
                          std::string& error) {
  Temporary temporary, config, tensors;  // the files are deleted before the folder
  if (!create_adapter_folder(folder, temporary, error)) return false;
  config.own(join_path(temporary.name(), "adapter_config.json"));
  tensors.own(join_path(temporary.name(), "adapter_model.safetensors"));
  if (!write_whole_file(config.name(), lora_config_json(plan), error) ||
      !write_lora_tensors(tensors.name(), adapters, error))
    return false;
  const std::string parent = folder_of(folder);
  if (!platform::replace(temporary.name(), folder)) return fail(error, folder + ": " + std::strerror(errno));
  for (Temporary* t : {&config, &tensors, &temporary}) t->release();
  std::string why;
  return sync_folder(parent, why) || fail(error, folder + ": " + why);
}

}  // namespace pocket
