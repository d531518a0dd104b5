// Checkpoints of models/train.
#include "../../../models/training_state.hpp"
#include "../../../models/training_text.hpp"
#include "../target.hpp"
#include "tiny_llama.hpp"

namespace fuzz::train_checkpoint {

using namespace pocket;

void run(std::string_view input) {
  static ReusedFile file("model.checkpoint");
  CheckpointFile checkpoint;
  std::string error;
  if (!checkpoint.read(file.write(input), error)) return require(!error.empty(), "checkpoint: an error");
  const TrainPlan& plan = checkpoint.plan;
  const TrainProgress& progress = checkpoint.progress;
  require(plan.steps >= 1 && plan.every >= 1 && plan.batch >= 1 && plan.context >= 1,
          "checkpoint: a plan that can run");
  require(progress.step >= 0 && progress.epoch >= 0 && progress.index >= 0, "checkpoint: progress from 0 on");
}

// The checksum.
void repair(std::string& input, size_t) {
  if (input.size() < 8) return;
  const uint64_t hash = hash_bytes(input.data(), input.size() - 8);
  std::memcpy(&input[input.size() - 8], &hash, sizeof hash);
}

// Of a whole model, and of adapters.
std::vector<std::string> seeds() {
  std::vector<std::string> all;
  for (const bool lora : {false, true}) {
    TrainPlan plan;
    plan.config = tiny_config();
    plan.rate = 0.01;
    plan.steps = plan.every = plan.batch = plan.context = 4;
    if (lora) plan.lora = {2, 2, 1};
    ByteWriter out = checkpoint_head(plan, {}, {"tokenizer"});
    const size_t weights = floats_of(parameters_of(plan));
    const size_t learned = lora ? floats_of(adapters_for(plan.config, plan.lora).parameters) : weights;
    out.bytes.append(((lora ? weights : 0) + 3 * learned) * sizeof(float) + 8, '\0');
    repair(out.bytes, 0);
    all.push_back(out.bytes);
  }
  return all;
}

const Registered target({"train_checkpoint", run, seeds, repair});

}  // namespace fuzz::train_checkpoint
