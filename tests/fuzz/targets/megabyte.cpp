// Model files of MEGABYTE.
#include "../../../models/megabyte/megabyte.hpp"
#include "../../../models/megabyte/megabyte_writer.hpp"
#include "model_file.hpp"
#include "tiny_llama.hpp"

namespace fuzz::megabyte {

using namespace pocket;

void run(std::string_view input) {
  const AlignedCopy copy(input);
  MegabyteModel model;
  if (!model.open_memory(copy.data(), copy.size())) return require(!model.error.empty(), "MEGABYTE: an error");
  forward<MegabyteSession>(model);
}

std::vector<std::string> seeds() {
  MegabyteConfig c;
  c.global = c.local = {4, 8, 1};
  c.n_heads = c.head_dim = c.patch_size = 2;
  c.patches = 4;
  c.rotary = c.positions = true;
  std::vector<std::string> all;
  for (const Type type : {Type::q8, Type::q4}) {
    ModelParts parts;
    set_architecture(c, parts);
    parts.type = type;
    parts.threads = 1;
    all.push_back(write_model(parts));
  }
  return all;
}

const Registered target({"megabyte", run, seeds, repair_model});

}  // namespace fuzz::megabyte
