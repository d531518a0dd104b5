// fuzz_test.cpp: replays the seeds of every fuzz target, and the inputs that once broke it (regressions/TARGET/), without
// libFuzzer. All targets are compiled here as one file.
#include <gtest/gtest.h>

#include <set>

#include "memory.hpp"
#include "targets/chat_template.cpp"
#include "targets/conversation.cpp"
#include "targets/decode.cpp"
#include "targets/encode.cpp"
#include "targets/gguf.cpp"
#include "targets/grammar.cpp"
#include "targets/hf_folder.cpp"
#include "targets/json.cpp"
#include "targets/llama2c.cpp"
#include "targets/llama2c_tokenizer.cpp"
#include "targets/lora.cpp"
#include "targets/megabyte.cpp"
#include "targets/model.cpp"
#include "targets/openai_request.cpp"
#include "targets/options.cpp"
#include "targets/own_text.cpp"
#include "targets/pickle.cpp"
#include "targets/pytorch.cpp"
#include "targets/safetensors.cpp"
#include "targets/saved_session.cpp"
#include "targets/sentencepiece.cpp"
#include "targets/settings.cpp"
#include "targets/stop_filter.cpp"
#include "targets/tokenizer_blob.cpp"
#include "targets/tokenizer_json.cpp"
#include "targets/train_checkpoint.cpp"
#include "targets/zip.cpp"

namespace fuzz {

const std::filesystem::path kFolder = POCKET_SOURCE_DIR "/tests/fuzz";

TEST(Fuzz, ReplaysSeeds) {
  for (const Target& target : targets()) {
    SCOPED_TRACE(target.name);
    const std::vector<std::string> seeds = target.seeds();
    EXPECT_FALSE(seeds.empty());
    for (std::string seed : seeds) {
      run(target, seed);
      for (size_t size : {size_t(0), seed.size() / 2, seed.size() - 1}) {
        std::string cut = seed.substr(0, size);
        if (target.repair) target.repair(cut, cut.size());
        run(target, cut);
      }
    }
  }
}

TEST(Fuzz, ReplaysRegressions) {
  for (const Target& target : targets()) {
    const std::filesystem::path folder = kFolder / "regressions" / target.name;
    if (!std::filesystem::exists(folder)) continue;
    for (const auto& file : std::filesystem::directory_iterator(folder)) {
      SCOPED_TRACE(file.path());
      run(target, read_file(file.path().string()));
    }
  }
}

// No file in targets/ is forgotten above, and no folder of regressions has a wrong name.
TEST(Fuzz, ReplaysEveryTarget) {
  std::set<std::string> known, files;
  for (const Target& target : targets()) known.insert(target.name);
  for (const auto& file : std::filesystem::directory_iterator(kFolder / "targets"))
    if (file.path().extension() == ".cpp") files.insert(file.path().stem().string());
  EXPECT_EQ(known, files);
  for (const auto& folder : std::filesystem::directory_iterator(kFolder / "regressions"))
    EXPECT_EQ(known.count(folder.path().filename().string()), 1u) << folder.path();
}

// The promises of a target are checked here, too.
TEST(Fuzz, EndsIfAPromiseIsBroken) {
  const Target broken{"broken", [](std::string_view input) { require(input != "x", "never x"); },
                      [] { return std::vector<std::string>(); }};
  run(broken, "y");
  EXPECT_DEATH(run(broken, "x"), "broken promise: never x");
}

}  // namespace fuzz
