// lora.hpp: LoRA adapters (Hu et al. 2021, arxiv.org/abs/2106.09685) in the format of the PEFT library: a folder with
// adapter_config.json and adapter_model.safetensors (or .bin). Adapters are merged into the model's matrices when those
// are read:
//
//     W (rows, cols)  becomes  W + scale * lora_alpha / r * B (rows, r) * A (r, cols)
// summed in double and rounded once, for any number of adapters. The rows and columns of A and B are in the order of
// Hugging Face's transformers, which is also the engine's; Checkpoint::read_rows() returns the rows of any format in
// that order. Settings for which PEFT would compute something else are rejected by name.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <functional>
#include <locale>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model_writer.hpp"
#include "safetensors.hpp"

namespace pocket {

// ====================================================================================================================
// The command line option and adapter_config.json
// ====================================================================================================================

/// An adapter on the command line.
struct LoraSource {
  std::string folder;
  double scale = 1;
};

/// Parses "FOLDER" or "FOLDER:SCALE". An existing folder with the whole name takes precedence.
inline bool parse_lora(const std::string& text, LoraSource& out, std::string& error) {
  out.folder = text;
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos || is_directory(text) || !is_directory(text.substr(0, colon))) return true;
  std::istringstream in(text.substr(colon + 1));
  in.exceptions(std::ios::badbit);   // a failed allocation is thrown
  in.imbue(std::locale::classic());  // a decimal point in any locale
  out.folder = text.substr(0, colon);
  if ((in >> std::noskipws >> out.scale) && in.peek() == EOF && std::isfinite(out.scale)) return true;
  return fail(error, {text, ": expected a number after the colon, found '", text.substr(colon + 1), "'"});
}

/// The files that adapters may consist of, by the values of --lora.
inline std::vector<std::string> adapter_files(const std::vector<std::string>& options) {
  std::vector<std::string> files;
  for (const std::string& text : options) {
    LoraSource source;
    std::string error;
    if (!parse_lora(text, source, error)) continue;  // reported when the adapter is opened
    for (const char* name : {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"})
      files.push_back(join_path(source.folder, name));
  }
  return files;
}

/// Values for some modules that override the value for all, by name. If several names select a module, the one with the
/// smallest index in the file counts.
struct LoraPatternValue {
  size_t index;
  double value;
};
using LoraPattern = std::map<std::string, LoraPatternValue, std::less<>>;

/// adapter_config.json.
struct LoraConfig {
  int rank = 0;
  double alpha = 0;
  bool rank_stabilized = false;  // alpha / sqrt(r) instead of alpha / r: "rslora"
  LoraPattern ranks, alphas;
  // Of a list; a regular expression is ignored, since the tensors determine the targets.
  std::set<std::string, std::less<>> targets;
};

/// Whether a name selects a module. In PEFT "q_proj" and "self_attn.q_proj" select every module whose name ends so.
inline bool names_module(std::string_view name, std::string_view module) {
  if (name.size() > module.size() || module.substr(module.size() - name.size()) != name) return false;
  return name.size() == module.size() || module[module.size() - name.size() - 1] == '.';
}

/// All names that select a module, the longest first.
inline std::vector<std::string_view> names_of_module(std::string_view module) {
  std::vector<std::string_view> names = {module};
  for (size_t dot; (dot = names.back().find('.')) != std::string_view::npos;)
    names.push_back(names.back().substr(dot + 1));
  return names;
}

inline constexpr int kMostRank = 1 << 16;

/// Reads rank_pattern or alpha_pattern. PEFT allows regular expressions as keys; only plain names are supported.
inline bool read_lora_pattern(const JsonValue& root, const char* key, bool ranks, LoraPattern& out,
                              std::string& error) {
  const JsonValue pattern = root.find(key);
  if (!pattern.missing() && !root.need(key, JsonKind::object, error)) return false;
  for (const auto& [name, value] : pattern.members()) {
    const bool plain = name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_.") == std::string::npos;
    if (name.empty() || !plain)
      return root.refuse(key, {"module names as keys (this one is not a plain name: \"", name, "\")"}, error);
    const double n = value.number();  // 0 if it is not a number
    if (!std::isfinite(n) || n <= 0) return pattern.refuse(name, "a number above 0", error);
    if (ranks && (n != std::floor(n) || n > kMostRank))
      return pattern.refuse(name, {"an integer from 1 to ", kMostRank}, error);
    out.insert({name, {out.size(), n}});
  }
  return true;
}

/// Rejects settings for which the result is not the base plus a product of matrices.
inline bool check_lora_variant(const JsonValue& root, std::string& error) {
  std::string type, bias = "none";
  if (!root.need("peft_type", JsonKind::string, error) || !root.get("peft_type", type, error) ||
      !root.get("bias", bias, error))
    return false;
  if (type != "LORA") return root.refuse("peft_type", "\"LORA\"", error);
  if (bias != "none") return root.refuse("bias", "\"none\"", error);
  for (const char* key : {"use_dora", "lora_bias", "modules_to_save", "layer_replication", "trainable_token_indices",
                          "target_parameters", "use_qalora", "alora_invocation_tokens"}) {
    const JsonValue v = root.find(key);
    const bool off =
        v.missing() || (v.is(JsonKind::boolean) && !v.boolean()) || (v.kind() >= JsonKind::array && v.size() == 0);
    if (!off)
      return root.refuse(key, "none; only plain LoRA is supported: merge the adapter in Python with merge_and_unload()",
                         error);
  }
  const std::string start = root.find("init_lora_weights").string();
  for (const char* changed : {"pissa", "olora", "loftq", "corda"})
    if (start.rfind(changed, 0) == 0)
      return root.refuse("init_lora_weights", "an adapter of the unchanged model; this one modifies its base", error);
  return true;
}

/// Reads adapter_config.json. fan_in_fan_out concerns layer types that a Llama does not have; PEFT ignores it here,
/// too.
inline bool read_lora_config(const JsonValue& root, LoraConfig& out, std::string& error) {
  if (!check_lora_variant(root, error) || !root.need("r", JsonKind::number, error) ||
      !root.need("lora_alpha", JsonKind::number, error) || !root.get("r", 1, kMostRank, out.rank, error) ||
      !root.get("lora_alpha", out.alpha, error) || !root.get("use_rslora", out.rank_stabilized, error) ||
      !read_lora_pattern(root, "rank_pattern", true, out.ranks, error) ||
      !read_lora_pattern(root, "alpha_pattern", false, out.alphas, error))
    return false;
  const JsonValue targets = root.find("target_modules");
  if (!targets.missing() && !targets.is(JsonKind::string) && !targets.is(JsonKind::array))
    return root.refuse("target_modules", "a list of names", error);
  for (const JsonValue& target : targets.elements()) {
    if (!target.is(JsonKind::string)) return root.refuse("target_modules", "a list of names", error);
    out.targets.insert(target.string());
  }
  return true;
}

// ====================================================================================================================
// Adapters
// ====================================================================================================================

/// An open adapter. Its matrices are read on demand.
class LoraAdapter {
 public:
  std::string error;

  // Opens an adapter for a model of this shape. interleaved: Checkpoint::interleaved_adapters. False with `error` set if
  // it is invalid or of another model.
  bool open(const LoraSource& source, const Config& model, bool interleaved = false) try {
    source_ = source;
    const std::string& folder = source.folder;
    const std::string path = join_path(folder, "adapter_config.json");
    JsonDocument document;
    FoundTensors found;
    LoraConfig config;
    if (!has_files(folder, path) || !read_settings(path, document, error) ||
        !read_lora_config(document.root(), config, error))
      return false;
    list_modules(model);
    return check_targets(document.root(), config) && open_weight_file(folder, weights_, storage_, found, error) &&
           bind(config, found) && check_finite() && (!interleaved || interleave(model));
  } catch (const std::exception&) {
    return fail_out_of_memory(error);
  }

  // The adapter's entry in the provenance of a model.
  std::string description() const {
    std::ostringstream text;
    text.exceptions(std::ios::badbit);  // a failed allocation is thrown
    text.imbue(std::locale::classic());
    text << base_name(source_.folder);
    if (source_.scale != 1) text << ", scale " << source_.scale;
    return text.str();
  }

  // The factors of one tensor.
  struct Factors {
    double scale = 0;
    int64_t rank = 0;
    std::vector<float> a, b;  // (rank, cols) and (requested rows, rank)
  };

  // Reads A, and rows first ... first + count - 1 of B. For a tensor without factors, rank stays 0.
  bool read(const TensorSpec& spec, int64_t first, int64_t count, Factors& out, std::string& why) const {
    const auto found = pairs_.find(spec.name);
    if (found == pairs_.end()) return true;
    const auto& [name, scale] = found->second;
    out.scale = scale;
    out.rank = storage_.tensors.at(name + kA).rows;
    out.a.resize(size_t(out.rank) * size_t(spec.cols));
    out.b.resize(size_t(out.rank) * size_t(count));
    return storage_.read_rows(name + kA, 0, out.rank, out.a.data(), why) &&
           storage_.read_rows(name + kB, first, count, out.b.data(), why);
  }

 private:
  static constexpr const char *kPrefix = "base_model.model.", *kA = ".lora_A.weight", *kB = ".lora_B.weight";

  bool has_files(const std::string& folder, const std::string& config) {
    const auto has = [&](const char* name) { return is_file(join_path(folder, name)); };
    if (!is_directory(folder))
      return fail(error, {folder, ": expected the folder of a LoRA adapter (adapter_config.json, ", weights_,
                          "), found ", (is_file(folder) ? "a file" : "no such folder")});
    if (!is_file(config))
      return fail(error, {folder, ": expected adapter_config.json, found ",
                          (has("config.json") ? "a complete model; convert it without --lora" : "none")});
    if (has(weights_.c_str())) return true;
    const std::string first = std::exchange(weights_, "adapter_model.bin");
    return has(weights_.c_str()) || fail(error, {folder, ": expected ", first, " or ", weights_, ", found neither"});
  }

  void list_modules(const Config& model) {
    for (const TensorSpec& spec : tensor_specs(model)) {
      const std::string name = kHuggingFaceNames.names.name(spec.name);
      if (spec.layout == Layout::panels && !(model.tied && spec.name == "output"))
        modules_[name.substr(0, name.rfind('.'))] = spec;
    }
  }

  // Checks that every name in target_modules selects matrices of the model.
  bool check_targets(const JsonValue& root, const LoraConfig& config) {
    std::set<std::string_view> names;
    for (const auto& [module, spec] : modules_)
      for (std::string_view name : names_of_module(module)) names.insert(name);
    for (const std::string& target : config.targets) {
      if (names.count(target) == 0)
        return root.refuse(
            "target_modules",
            {"matrices of the model (q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
             modules_.count("lm_head") ? ", lm_head" : "; its output is the embedding", "), also for \"", target, "\""},
            error);
    }
    return true;
  }

  bool refuse(Message why) { return fail(error, {join_path(source_.folder, weights_), ": ", text_of(why)}); }

  // Moves A and B of each module from `found` to storage_; remaining tensors are an error.
  bool bind(const LoraConfig& config, FoundTensors& found) {
    std::set<std::string_view> used;  // targets
    for (const auto& [module, spec] : modules_) {
      const std::string name = kPrefix + module;
      if (found.count(name + kA) == 0 && found.count(name + kB) == 0) continue;
      bool wanted = config.targets.empty();
      for (std::string_view selecting : names_of_module(module)) {
        if (config.targets.count(selecting) == 0) continue;
        used.insert(selecting);
        wanted = true;
      }
      if (!wanted) return refuse({"tensor ", name, kA, ": expected a module of target_modules, found another module"});
      const int64_t rank = int64_t(value_for(module, config.ranks, config.rank));
      if (!bind_factor(name + kA, {rank, spec.cols}, found) || !bind_factor(name + kB, {spec.rows, rank}, found))
        return false;
      const double divisor = config.rank_stabilized ? std::sqrt(double(rank)) : double(rank);
      pairs_[spec.name] = {name, source_.scale * value_for(module, config.alphas, config.alpha) / divisor};
    }
    for (const auto& [name, tensor] : found)
      if (name.find(".lora_") == std::string::npos)
        return refuse({"tensor ", name, ": expected the factors of a LoRA, found a whole tensor ",
                       shape_text(tensor.shape),
                       ", which PEFT saves for modules_to_save and for a changed vocabulary; ",
                       "merge the adapter in Python (merge_and_unload()), save the model and convert it"});
    if (!found.empty())
      return refuse({"tensor ", found.begin()->first, ": expected lora_A.weight and lora_B.weight of the model's ",
                     "matrices, found another; is this another model's adapter?"});
    for (const std::string& target : config.targets)
      if (used.count(target) == 0)
        return refuse({"expected tensors for \"", target, "\" of target_modules, found none"});
    return !pairs_.empty() || refuse({"expected tensors lora_A.weight and lora_B.weight, found none"});
  }

  bool bind_factor(const std::string& name, const std::vector<int64_t>& shape, FoundTensors& found) {
    const auto it = found.find(name);
    if (it == found.end() || it->second.shape != shape)
      return refuse({"tensor ", name, ": expected shape ", shape_text(shape), ", found ",
                     (it == found.end() ? "no such tensor" : shape_text(it->second.shape))});
    const FoundTensor& t = it->second;
    storage_.tensors[name] = {t.file, t.offset, t.dtype, shape[0], shape[1]};
    found.erase(it);
    return true;
  }

  // Marks the rows of B for q and k as interleaved.
  bool interleave(const Config& model) {
    for (const auto& [ours, pair] : pairs_) {
      const std::string last = ours.substr(ours.rfind('.') + 1);
      if (last == "wq") storage_.tensors[pair.first + kB].interleaved_heads = model.n_heads;
      if (last == "wk") storage_.tensors[pair.first + kB].interleaved_heads = model.n_kv_heads;
    }
    return true;
  }

  static double value_for(std::string_view module, const LoraPattern& pattern, double otherwise) {
    const LoraPatternValue* first = nullptr;
    for (std::string_view name : names_of_module(module))
      if (const auto found = pattern.find(name); found != pattern.end())
        if (!first || found->second.index < first->index) first = &found->second;
    return first ? first->value : otherwise;
  }

  // Finds infinity and NaN before the conversion starts.
  bool check_finite() {
    for (const auto& [name, t] : storage_.tensors) {
      std::vector<float> row(size_t(t.cols));
      for (int64_t r = 0; r < t.rows; r++) {
        if (!storage_.read_rows(name, r, 1, row.data(), error)) return false;
        for (float w : row)
          if (!std::isfinite(w)) return refuse({"tensor ", name, ": row ", r, ": expected finite numbers, found ", w});
      }
    }
    return true;
  }

  LoraSource source_;
  std::string weights_ = "adapter_model.safetensors";  // or adapter_model.bin, of PyTorch
  std::map<std::string, TensorSpec> modules_;          // by their names in transformers
  // The engine's name of a tensor -> the name of its A and B without kA and kB, and the factor of B A.
  std::map<std::string, std::pair<std::string, double>> pairs_;
  Checkpoint storage_;  // A and B
};

/// The line of a model's provenance that marks weights to which adapters do not apply (Checkpoint::differs_for_adapters).
inline constexpr char kAdapters[] = "adapters", kOfCheckpoint[] = "for the original checkpoint only";

/// Whether the weights of a model file are those that adapters are trained with.
inline bool allows_adapters(const ModelFile& model) {
  return model.provenance().find(provenance_line(kAdapters, kOfCheckpoint)) == std::string_view::npos;
}
inline bool check_adapters_allowed(const ModelFile& model, std::string& error) {
  return allows_adapters(model) ||
         fail(error, {"the weights of this model differ from those of the original checkpoint; convert that with the "
                      "adapter (export/convert --lora)"});
}

/// Adds the adapters to rows first ... first + count - 1 of a tensor, (count, cols) in the engine's order. scale: the
/// multiplier that the rows contain already (StoredTensor). Threads may call it concurrently.
inline bool merge_lora(const std::vector<LoraAdapter>& adapters, const TensorSpec& spec, int64_t first, int64_t count,
                       float* rows, std::string& error, float scale = 1) try {
  std::vector<LoraAdapter::Factors> factors(adapters.size());
  for (size_t i = 0; i < adapters.size(); i++)
    if (!adapters[i].read(spec, first, count, factors[i], error)) return false;
  const size_t cols = size_t(spec.cols);
  std::vector<double> sum(cols);
  for (size_t r = 0; r < size_t(count); r++) {
    float* row = rows + r * cols;
    std::copy(row, row + cols, sum.begin());
    for (const LoraAdapter::Factors& f : factors)
      for (size_t k = 0; k < size_t(f.rank); k++) {
        const double weight = double(scale) * f.scale * double(f.b[r * size_t(f.rank) + k]);
        const float* a = &f.a[k * cols];
        for (size_t c = 0; c < cols; c++) sum[c] += weight * double(a[c]);
      }
    for (size_t c = 0; c < cols; c++) row[c] = float(sum[c]);
  }
  return true;
} catch (const std::exception&) {
  return fail_out_of_memory(error);
}

}  // namespace pocket
