// The configuration files of checkpoints: config.json of transformers, lit_config.json or model_config.yaml, params.json,
// adapter_config.json of PEFT, and the arguments of MEGABYTE. Every reader gets every document.
#include "../../../export/lora.hpp"
#include "../../../export/pytorch_folder.hpp"
#include "../../../models/megabyte/megabyte_checkpoint.hpp"
#include "../target.hpp"

namespace fuzz::settings {

using namespace pocket;

void run(std::string_view input) {
  JsonDocument document;
  const bool yaml = document.parse("model_config.yaml", yaml_to_json(std::string(input)));
  if (!yaml && !document.parse("config.json", std::string(input))) return;
  const JsonValue root = document.root();
  std::string error;
  Checkpoint c;
  const auto check = [&](bool accepted) {
    require(accepted == error.empty(), "settings: an error if and only if they are rejected");
    error.clear();
  };
  HfModel model;
  check(read_hf_config(root, model, error) && check_config(model.config, "config.json", kHuggingFaceFields, error) &&
        read_hf_stop_ids(root, c, error));
  c.config = Config();
  c.config.dim = 8;
  check(read_lit_gpt_config(root, c.config, error));
  check(read_meta_config(root, c.config, error));
  LoraConfig lora;
  check(read_lora_config(root, lora, error));
  MegabyteCheckpoint megabyte;
  check(read_megabyte_config(root, megabyte, error));
}

std::vector<std::string> seeds() {
  return {R"({"model_type": "llama", "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
 "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 5, "rms_norm_eps": 1e-5, "eos_token_id": [2, 3],
 "max_position_embeddings": 16, "tie_word_embeddings": false, "rope_theta": 10000.0,
 "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
 "original_max_position_embeddings": 8}})",
          R"({"model_type": "mistral", "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 1,
 "num_attention_heads": 8, "vocab_size": 5, "max_position_embeddings": 16, "sliding_window": 16, "head_dim": 2,
 "rope_scaling": {"type": "linear", "factor": 2}})",
          R"({"model_type": "qwen3", "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 2,
 "num_attention_heads": 2, "num_key_value_heads": null, "vocab_size": 5, "max_position_embeddings": 16,
 "attention_bias": true, "use_sliding_window": true, "sliding_window": 16, "max_window_layers": 1,
 "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}})",
          R"({"model_type": "smollm3", "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 2,
 "num_attention_heads": 4, "vocab_size": 5, "mlp_bias": true, "no_rope_layers": [1, 0], "no_rope_layer_interval": 2,
 "layer_types": ["full_attention", "full_attention"]})",
          R"({"model_type": "granite", "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 1,
 "num_attention_heads": 2, "vocab_size": 5, "embedding_multiplier": 12, "residual_multiplier": 0.22,
 "attention_multiplier": 0.5, "logits_scaling": 8})",
          R"({"model_type": "minicpm", "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 1,
 "num_attention_heads": 2, "vocab_size": 5, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 4})",
          R"({"n_embd": 8, "n_layer": 1, "n_head": 2, "n_query_groups": 1, "block_size": 16, "bias": false,
 "parallel_residual": false, "shared_attention_norm": false, "rotary_percentage": 1.0, "condense_ratio": 2,
 "_norm_class": "RMSNorm", "_mlp_class": "LLaMAMLP"})",
          "n_embd: 8\nn_layer: 1\nn_head: 2\nhead_size: 4\nblock_size: 16\nbias: false\nparallel_residual: false\n"
          "rotary_percentage: 1.0\nrope_adjustments:\n  factor: 8.0\n  low_freq_factor: 1.0\n"
          "  high_freq_factor: 4.0\n  original_max_seq_len: 8\nnorm_class_name: RMSNorm\nmlp_class_name: LLaMAMLP\n"
          "name: 'a'\nsliding_window_indices:\n- 1\n- 0\n",
          R"({"dim": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "norm_eps": 1e-5, "rope_theta": 500000.0,
 "use_scaled_rope": false, "max_seq_len": 16})",
          R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "use_rslora": true,
 "target_modules": ["q_proj"], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}})",
          R"({"num_tokens": 256, "dim": [8, 4], "depth": [1, 1], "max_seq_len": [4, 4], "dim_head": 4, "heads": 2,
 "ff_mult": 4, "rel_pos": true, "pos_emb": false, "pad_id": 0, "flash_attn": false})"};
}

const Registered target({"settings", run, seeds});

}  // namespace fuzz::settings
