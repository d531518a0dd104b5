// GGUF files: the header, the metadata, the tokenizer, and rows of every tensor.
#include "../../../export/gguf.hpp"
#include "../../support/gguf_file.hpp"
#include "checkpoint_rows.hpp"
#include "use_tokenizer.hpp"

namespace fuzz::gguf_file {

using namespace pocket;

void run(std::string_view input) {
  static ReusedFile file("model.gguf");
  Checkpoint c;
  std::string error;
  auto in = InputFile::open(file.write(input), error);
  if (!open_gguf(std::move(in), true, c, error)) return require(!error.empty(), "GGUF: an error");
  read_rows(c);
  if (c.has_tokenizer) use(c.vocabulary);
}

// The same keys for another architecture.
gguf::GgufFile renamed(gguf::GgufFile f, const std::string& architecture) {
  for (auto& [key, value] : f.metadata)
    if (key.rfind("llama.", 0) == 0) key = architecture + key.substr(5);
  f["general.architecture"] = gguf::string(architecture);
  return f;
}

// With multipliers and biases.
gguf::GgufFile granite(const gguf::GgufFile& llama) {
  gguf::GgufFile f = renamed(llama, "granite");
  for (const char* key : {"embedding_scale", "residual_scale", "logit_scale", "attention.scale"})
    f[std::string("granite.") + key] = gguf::f32(2);
  for (const char* name : {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"})
    f.tensors.push_back({"blk.0." + std::string(name) + ".bias", {4}, gguf::kF32, std::string(16, '\1')});
  return f;
}

// With fused matrices.
gguf::GgufFile phi3(const gguf::GgufFile& llama) {
  gguf::GgufFile f = renamed(llama, "phi3");
  f["phi3.attention.sliding_window"] = gguf::u32(16);
  const auto at = [&](const char* name) {
    return std::find_if(f.tensors.begin(), f.tensors.end(),
                        [&](const auto& t) { return t.name == "blk.0." + std::string(name) + ".weight"; });
  };
  *at("attn_q") = {"blk.0.attn_qkv.weight", {4, 12}, gguf::kF32, std::string(192, '\1')};
  *at("ffn_up") = {"blk.0.ffn_up.weight", {4, 8}, gguf::kF32, std::string(128, '\1')};
  for (const char* name : {"attn_k", "attn_v", "ffn_gate"}) f.tensors.erase(at(name));
  return f;
}

// A Llama with 1 layer, dim 4 and 5 tokens, and relatives: without a tokenizer, with SentencePiece, byte-level.
std::vector<std::string> seeds() {
  gguf::GgufFile f;
  f["general.architecture"] = gguf::string("llama");
  f["general.name"] = gguf::string("a test");
  for (const auto& [key, value] : {std::pair("context_length", 16u),
                                   {"embedding_length", 4u},
                                   {"block_count", 1u},
                                   {"feed_forward_length", 4u},
                                   {"attention.head_count", 2u}})
    f[std::string("llama.") + key] = gguf::u32(value);
  f["llama.attention.layer_norm_rms_epsilon"] = gguf::f32(1e-5f);
  f.tensors.push_back({"token_embd.weight", {4, 5}, gguf::kF32, std::string(80, '\1')});
  for (const char* name : {"blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"})
    f.tensors.push_back({name + std::string(".weight"), {4}, gguf::kF32, std::string(16, '\1')});
  for (const char* name : {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"})
    f.tensors.push_back({"blk.0." + std::string(name) + ".weight", {4, 4}, gguf::kF32, std::string(64, '\1')});
  std::vector<std::string> all = {f.bytes(), granite(f).bytes(), phi3(f).bytes()};
  f["tokenizer.ggml.model"] = gguf::string("llama");
  f["tokenizer.ggml.tokens"] = gguf::strings({"<unk>", "<s>", "</s>", "a", "\u2581"});
  f["tokenizer.ggml.scores"] = gguf::floats({0, 0, 0, -1, -2});
  f["tokenizer.ggml.token_type"] = gguf::array(GgufKind::i32, 5, raw(2) + raw(3) + raw(3) + raw(1) + raw(1));
  f["tokenizer.ggml.eos_token_id"] = gguf::u32(2);
  all.push_back(f.bytes());
  f["tokenizer.ggml.model"] = gguf::string("gpt2");
  f["tokenizer.ggml.pre"] = gguf::string("llama-bpe");
  f["tokenizer.ggml.merges"] = gguf::strings({"a b"});
  f["tokenizer.ggml.tokens"] = gguf::strings({"a", "<|x|>", "<|y|>", "b", "ab"});
  f["tokenizer.ggml.token_type"] = gguf::array(GgufKind::i32, 5, raw(1) + raw(3) + raw(3) + raw(1) + raw(1));
  all.push_back(f.bytes());
  return all;
}

const Registered target({"gguf", run, seeds});

}  // namespace fuzz::gguf_file
