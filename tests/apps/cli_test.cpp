// cli_test.cpp: units of the command line: the filter of stop texts, defaults of the arguments, JSON, troff.
#include "../../apps/cli/choices.hpp"
#include "../../apps/cli/options.hpp"
#include "../../apps/cli/stop_filter.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "../../export/json_writer.hpp"
#include "../support/tiny_model.hpp"

namespace cli_test {

using namespace pocket;
using cli::StopFilter;

// The output of the filter, and after it the text that is held back at the end.
std::string filtered(const std::vector<std::string>& stops, const std::vector<std::string>& pieces, bool& stopped) {
  StopFilter filter(stops);
  std::string out;
  for (const std::string& piece : pieces) {
    out += filter.push(piece);
    for (const std::string& stop : stops) EXPECT_TRUE(stop.empty() || out.find(stop) == std::string::npos) << out;
  }
  stopped = filter.stopped;
  return out + filter.flush();
}

// The definition: the text before the stop text that is complete first; of those that end together, the longest.
std::string cut(const std::vector<std::string>& stops, const std::string& text, bool& stopped) {
  for (size_t end = 0; end <= text.size(); end++) {
    size_t at = std::string::npos;
    for (const std::string& s : stops)
      if (!s.empty() && s.size() <= end && text.compare(end - s.size(), s.size(), s) == 0)
        at = std::min(at, end - s.size());
    stopped = at != std::string::npos;
    while (stopped && at > 0 && (uint8_t(text[at]) & 0xC0) == 0x80) at--;
    if (stopped) return text.substr(0, at);
  }
  return text;
}

TEST(StopFilter, CutsAtTheFirstCompleteStopTextInAnyPieces) {
  tiny::Random random(1);
  const std::string letters[] = {"a", "b", "c", "\xC3\xA9", "\xC3\xA8", "\xE4\xB8\xAD", "\xF0\x9F\x98\x80"};
  int stops_found = 0;
  for (int i = 0; i < 20000; i++) {
    const auto word = [&](int n) {
      std::string s;
      for (int k = random.below(n + 1); k > 0; k--) s += letters[random.below(7 - i % 5)];
      return s;
    };
    std::vector<std::string> stops, pieces;
    for (int k = random.below(4); k >= 0; k--) {
      stops.push_back(word(4));
      if (i % 3 == 0 && stops.back().size() > 2) stops.back() = stops.back().substr(1);  // starts within a character
    }
    std::string text;
    for (int k = 0; k < 8; k++) text += pieces.emplace_back(word(3));
    bool expected_stop = false, stopped = false;
    const std::string expected = cut(stops, text, expected_stop);
    EXPECT_EQ(filtered(stops, pieces, stopped), expected) << text;
    EXPECT_EQ(stopped, expected_stop);
    stops_found += stopped;
  }
  EXPECT_GT(stops_found, 2000);
  EXPECT_LT(stops_found, 18000);
}

TEST(StopFilter, HoldsBackOnlyPossibleBeginningsOfStopTexts) {
  const std::vector<std::string> stops = {"\n\nUser:", "</s>"};
  StopFilter filter(stops);
  EXPECT_EQ(filter.push("Hello"), "Hello");
  EXPECT_EQ(filter.push(" you\n"), " you");
  EXPECT_EQ(filter.push("\n"), "");
  EXPECT_EQ(filter.push("<"), "\n\n");
  EXPECT_EQ(filter.push("/b>"), "</b>");
  EXPECT_EQ(filter.push("x\n\nUse"), "x");
  EXPECT_EQ(filter.push("r: hi"), "");
  EXPECT_TRUE(filter.stopped);
  EXPECT_EQ(filter.push("more"), "");
  EXPECT_EQ(filter.flush(), "");
}

TEST(StopFilter, ReturnsWholeCharacters) {
  const std::vector<std::string> stops = {"\xA9!", "\x98\x80"};
  StopFilter filter(stops);
  EXPECT_EQ(filter.push("caf\xC3\xA9"), "caf");
  EXPECT_EQ(filter.push("?"), "\xC3\xA9?");
  EXPECT_EQ(filter.push("a\xF0\x9F\x98\x80"), "a");
  EXPECT_TRUE(filter.stopped);
}

// ---- Arguments ----

cli::Arguments parsed(std::vector<std::string> words) {
  words.insert(words.begin(), "run");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(&word[0]);
  return cli::parse(int(argv.size()), argv.data());
}

// Without a model and without a prompt, the prompt is the beginning of a story. There may be no shipped model here.
TEST(Arguments, DefaultPromptIsForTheShippedModelOnly) {
  cli::Arguments a;
  a.model = "model.bin";
  cli::set_defaults(a);
  EXPECT_EQ(a.prompt, "") << "a model that is named starts from BOS";
  EXPECT_EQ(parsed({"model.bin", "-n", "5"}).prompt, "");
  EXPECT_EQ(parsed({"model.bin", "-i", "x"}).prompt, "x");
  EXPECT_EQ(parsed({"model.bin", "--words", "dog,cake"}).prompt, "Words: dog, cake\nStory:");
}

TEST(Arguments, RecordsTheGivenOptions) {
  const cli::Arguments a = parsed({"model.bin", "-m", "chat", "--ctx=64", "-q"});
  for (const char* name : {"--mode", "-m chat", "--ctx", "--quiet"}) EXPECT_TRUE(a.is_given(name)) << name;
  for (const char* name : {"--prompt", "--threads"}) EXPECT_FALSE(a.is_given(name)) << name;
  EXPECT_EQ(a.context, 64);
}

TEST(JsonText, IsReadByOtherParsers) {
  const std::string text = std::string("a\"b\\c\n\t\x01\x7F\0 caf\xC3\xA9 \xC2\x9B[31m \xF0\x9F\x98\x80", 28);
  const std::string written = json(text);
  EXPECT_EQ(nlohmann::json::parse(written), text);
  EXPECT_EQ(json("\u202E\u2028\u2066"), "\"\\u202e\\u2028\\u2066\"") << "they would change the order of the line";
  for (const char* control : {"\x7F", "\xC2\x9B", "\x01", "\n"})
    EXPECT_EQ(written.find(control), std::string::npos) << "a terminal would execute it";
  EXPECT_EQ(nlohmann::json::parse(json(std::string_view("\xFFx\xC3"))), "\uFFFDx\uFFFD");
  EXPECT_EQ(json(std::nan("")), "null");
  EXPECT_EQ(json(0.8f), "0.8");
  EXPECT_EQ(json(0.1), "0.1");
  EXPECT_EQ(json(1.f / 3), "0.333333343");
  EXPECT_EQ(json(-1e-7f), "-1e-07");
  EXPECT_EQ(json(1000000.), "1000000");
  EXPECT_EQ(json_object({{"a", json_array({"1", "2"})}, {"b", json("x")}}), "{\"a\": [1, 2], \"b\": \"x\"}");
}

TEST(OneLine, KeepsTextAndDropsControls) {
  EXPECT_EQ(one_line("caf\u00E9 \u4F60\u597D \U0001F642 \u0645\u0631\u062D\u0628\u0627"),
            "caf\u00E9 \u4F60\u597D \U0001F642 \u0645\u0631\u062D\u0628\u0627");
  EXPECT_EQ(one_line("a\nb\tc\r\nd"), "a b c d");
  EXPECT_EQ(one_line(std::string("\x1B[31m\0\x7F\xC2\x9B"
                                 "31m",
                                 12)),
            "[31m31m");
  EXPECT_EQ(one_line("\u202Ea\u2066b\u2028c\u2029"), "abc");
  EXPECT_EQ(one_line("\x9B"
                     "31m\xC3"),
            "\uFFFD31m\uFFFD")
      << "invalid UTF-8";
  EXPECT_EQ(provenance_line("licence", "MIT\nsource: forged"), "licence: MIT source: forged\n");
  EXPECT_EQ(provenance_line("licence", ""), "");
}

// The order of the most likely tokens is strict and total for any logits: a sort with another one reads beyond its ends.
TEST(MostLikely, OrdersAnyLogits) {
  const float nan = std::nanf(""), infinity = HUGE_VALF;
  const std::vector<float> logits = {nan, 1, -infinity, infinity, nan, 1, -1, -nan};
  EXPECT_EQ(cli::most_likely(logits.data(), int(logits.size()), 8), (std::vector<int>{3, 1, 5, 6, 0, 2, 4, 7}));
  EXPECT_EQ(cli::most_likely(logits.data(), int(logits.size()), 2), (std::vector<int>{3, 1}));
  EXPECT_EQ(cli::most_likely(logits.data(), 3, 5), (std::vector<int>{1, 0, 2}));
  tiny::Random random(1);
  for (int round = 0; round < 200; round++) {
    std::vector<float> many(1000);
    for (float& x : many) x = random.below(2) ? nan : float(random.below(4));
    const std::vector<int> found = cli::most_likely(many.data(), 1000, 1000);
    std::vector<int> expected;
    for (const float value : {3.f, 2.f, 1.f, 0.f})
      for (int id = 0; id < 1000; id++)
        if (many[size_t(id)] == value) expected.push_back(id);
    for (int id = 0; id < 1000; id++)
      if (std::isnan(many[size_t(id)])) expected.push_back(id);
    ASSERT_EQ(found, expected);
  }
}

TEST(ReadAll, EndsAtTheLimit) {
  const TemporaryFolder t;
  EXPECT_EQ(read_all(t.write("a", "12345"), 5), "12345");
  for (const std::string& endless : {t.file("a"), std::string("/dev/zero")}) {
    try {
      read_all(endless, 4);
      ADD_FAILURE() << endless;
    } catch (const Failure& f) {
      EXPECT_EQ(f.status, 1);
      EXPECT_EQ(f.what, endless + ": expected at most 4 bytes, found more");
    }
  }
}

TEST(ManText, EscapesTroff) { EXPECT_EQ(man_text(".a-b\n'c\\d \"e\".f"), "\\&.a\\-b\n\\&\\(aqc\\ed \\(dqe\\(dq.f"); }

}  // namespace cli_test
