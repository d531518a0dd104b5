// adapter_folder.hpp: LoRA adapters with random factors, as PEFT saves them.
#pragma once

#include <cmath>
#include <filesystem>
#include <string>

#include "../../export/lora.hpp"
#include "hf_model.hpp"

/// A PEFT folder with random factors of some matrices of a model.
class AdapterFolder {
 public:
  // every: of the matrices, every so many has factors. B A is about 0.3 times as large as the matrices.
  AdapterFolder(const pocket::Config& c, int rank, uint64_t seed, int every = 1) {
    const double alpha = 0.3 * std::sqrt(double(rank) / c.dim);
    hf::AllWeights factors;
    int i = 0;
    for (const pocket::TensorSpec& spec : pocket::tensor_specs(c)) {
      if (spec.layout != pocket::Layout::panels || (c.tied && spec.name == "output") || i++ % every) continue;
      const std::string tensor = pocket::kHuggingFaceNames.names.name(spec.name),
                        module = "base_model.model." + tensor.substr(0, tensor.rfind('.'));
      factors[module + ".lora_A.weight"] = hf::random_weights({rank, spec.cols}, seed++);
      factors[module + ".lora_B.weight"] = hf::random_weights({spec.rows, rank}, seed++);
    }
    std::filesystem::create_directory(path());
    folder_.write(
        "adapter/adapter_config.json",
        hf::Json{{"peft_type", "LORA"}, {"r", rank}, {"lora_alpha", alpha}, {"target_modules", nullptr}}.dump());
    folder_.write("adapter/adapter_model.safetensors", hf::safetensors_of(factors));
  }
  std::string path() const { return folder_.file("adapter"); }

 private:
  TemporaryFolder folder_;
};
