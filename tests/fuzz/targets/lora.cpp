// LoRA adapters. The input is adapter_config.json and adapter_model.safetensors.
#include "../../../export/lora.hpp"
#include "safetensors_file.hpp"
#include "tiny_llama.hpp"

namespace fuzz::lora {

using namespace pocket;

void run(std::string_view input) {
  static ReusedFile config("adapter_config.json"), weights("adapter_model.safetensors");
  const std::vector<std::string> parts = split(input, 2);
  config.write(parts[0]);
  weights.write(parts[1]);
  std::vector<LoraAdapter> adapters(1);
  if (!adapters[0].open({folder().path(), 1}, tiny_config()))
    return require(!adapters[0].error.empty(), "LoRA: an error");
  std::string error;
  for (const TensorSpec& spec : tensor_specs(tiny_config())) {
    std::vector<float> rows(size_t(spec.rows) * size_t(spec.cols));
    require(merge_lora(adapters, spec, 0, spec.rows, rows.data(), error), "LoRA: an open adapter can be merged");
  }
}

std::vector<std::string> seeds() {
  const std::string config = R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none",
 "target_modules": ["q_proj", "down_proj"]})";
  const std::string layer = "base_model.model.model.layers.0.";
  return {join({config, safetensors_file({{layer + "self_attn.q_proj.lora_A.weight", {2, 8}},
                                          {layer + "self_attn.q_proj.lora_B.weight", {8, 2}},
                                          {layer + "mlp.down_proj.lora_A.weight", {2, 8}},
                                          {layer + "mlp.down_proj.lora_B.weight", {8, 2}}})})};
}

const Registered target({"lora", run, seeds});

}  // namespace fuzz::lora
