// fuzz_test.cpp: replays the seeds of every fuzz target, and the inputs that once broke it (regressions/TARGET/), without
// libFuzzer.
#include <gtest/gtest.h>

#include <set>

#include "memory.hpp"
#include "targets/all.hpp"

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

// No file in targets/ is forgotten in all.hpp, and no folder of regressions has a wrong name.
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
