// model_file.hpp: shared by the targets of model files: the checksums, and the same logits from two kernel sets.
#pragma once

#include <cmath>

#include "../../../export/engine.hpp"
#include "../target.hpp"

namespace fuzz {

// Restores the size in the header and the checksum that is verified at open.
inline void repair_model(std::string& input, size_t) {
  using namespace pocket;
  Header h;
  if (input.size() < sizeof h) return;
  std::memcpy(&h, input.data(), sizeof h);
  const uint64_t front = h.tensors.offset;
  if (front < sizeof h || front > input.size()) return;
  h.file_bytes = input.size();
  h.checksum = 0;
  Hash64 hash;
  hash.update(&h, sizeof h);
  hash.update(input.data() + sizeof h, front - sizeof h);
  h.checksum = hash.digest();
  std::memcpy(input.data(), &h, sizeof h);
}

// Runs a few tokens with the scalar kernels and with the fastest ones, and expects the same logits.
template <class AnySession, class AnyModel> void forward(const AnyModel& model) {
  const int n = model.vocab_size(), ids[] = {0, n - 1, n / 2};
  AnySession session(model, {8, 1, pocket::KvType::automatic, "scalar"});
  AnySession fastest(model, {8, 1, pocket::KvType::automatic, nullptr});
  if (!session.error.empty() || !fastest.error.empty()) return;
  for (const int id : ids) {
    const float *logits = session.forward(&id, 1), *others = fastest.forward(&id, 1);
    require((logits == nullptr) == (others == nullptr), "forward: succeeds with every kernel set or with none");
    for (int i = 0; logits && i < n; i++)
      require(logits[i] == others[i] || (std::isnan(logits[i]) && std::isnan(others[i])),
              "forward: the same logits from every kernel set");
  }
}

}  // namespace fuzz
