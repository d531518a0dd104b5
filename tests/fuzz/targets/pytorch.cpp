// Files of torch.save(). The input is the pickle; the archive around it and the storages are always the same.
#include "../../../export/pytorch.hpp"
#include "../../../export/json_reader.hpp"
#include "../../support/pytorch_files.hpp"
#include "../target.hpp"
#include "small_pickles.hpp"

namespace fuzz::pytorch_file {

using namespace pocket;

void run(std::string_view input) {
  static ReusedFile file("pytorch_model.bin");
  static const std::vector<std::string> storages = {std::string(96, 'a'), std::string(24, 'b'), std::string(16, 'c')};
  const std::string archive = pytorch::zip_of(pytorch::members_of(std::string(input), storages));
  std::string error;
  const auto in = InputFile::open(file.write(archive), error);
  PyTorchFile reader(*in);
  FoundTensors found;
  if (!reader.read(0, found)) return require(!reader.error.empty(), "PyTorch: an error");
  for (const auto& [name, t] : found)
    require(t.offset <= archive.size() && t.bytes <= archive.size() - t.offset, "PyTorch: tensors within the file");
  JsonDocument settings;
  const std::string text = reader.settings("model_args");
  require(text.empty() || settings.parse("model_args", text), "PyTorch: settings are JSON");
}

std::vector<std::string> seeds() { return small_pickles(); }

const Registered target({"pytorch", run, seeds});

}  // namespace fuzz::pytorch_file
