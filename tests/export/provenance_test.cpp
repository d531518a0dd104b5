// provenance_test.cpp: values from files in the provenance of a model.
#include "../../export/model_writer.hpp"

#include <gtest/gtest.h>

#include "../../models/instruction.hpp"

namespace provenance_test {

using namespace pocket;

TEST(Provenance, KeepsOneValueInOneLine) {
  EXPECT_EQ(provenance_line("name", "SmolLM2 \u00e9"), "name: SmolLM2 \u00e9\n");
  EXPECT_EQ(provenance_line("name", "a\nlicence: mit\r\nb"), "name: a licence: mit b\n");
  EXPECT_EQ(provenance_line("name", "\033[2J\u009b\u2028\x7f\t"), "name: [2J \n");
  EXPECT_EQ(provenance_line("name", std::string("a\0b\xff", 4)), "name: ab\uFFFD\n");
}

TEST(Provenance, InstructionsAreNotForgedByAValue) {
  const std::string line = kTakesInstructions;
  EXPECT_TRUE(takes_instructions(line) && takes_instructions("source: x\n" + line));
  EXPECT_FALSE(takes_instructions("source: x\n"));
  EXPECT_FALSE(takes_instructions(provenance_line("name", "x\n" + line)));
  EXPECT_FALSE(takes_instructions("name: " + line));
}

}  // namespace provenance_test
