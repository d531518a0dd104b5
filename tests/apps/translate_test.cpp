// translate_test.cpp: translate as a user runs it, on a tiny model, and its beam search.
#include "../../apps/translate/translator.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "../support/train_program.hpp"

namespace translate_program_test {

using namespace pocket;
using translate::BeamSearch;
using translate::Hypothesis;

// A translator that a few seconds of training made, and pairs.
class Translate : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder = new TemporaryFolder;
    std::string pairs;
    for (const char* verb : {"Open", "Close", "Print", "Save"})
      for (const char* thing : {"file", "page", "table", "chart", "cell"})
        pairs += std::string("{\"prompt\": \"") + verb + " the " + thing + ".\", \"completion\": \"" + verb + "i " +
                 thing + "en.\"}\n";
    folder->write("pairs.jsonl", pairs);
    const auto made = run_program({POCKET_TRANSLATE_EXAMPLES, memory(), "-o", folder->file("e.jsonl"), "--rows", "2"});
    ASSERT_EQ(made.status, 0) << made.err;
    const auto trained =
        train({folder->file("e.jsonl"), "-o", model(), "--dim", "32", "--layers", "2", "--ctx", "128", "--vocab", "320",
               "--batch", "4", "--steps", "60", "--lr", "0.01", "--optimizer", "muon"});
    ASSERT_EQ(trained.status, 0) << trained.err;
  }
  static void TearDownTestSuite() { delete folder; }

  static std::string model() { return folder->file("t.bin"); }
  static std::string memory() { return folder->file("pairs.jsonl"); }

  static ProgramResult run(std::vector<std::string> args, const std::string& input = "") {
    args.insert(args.begin(), {POCKET_TRANSLATE, model()});
    ProgramOptions options;
    options.input = input;
    return run_program(args, options);
  }
  static std::string text(const std::vector<std::string>& args, const std::string& input = "") {
    const ProgramResult r = run(args, input);
    EXPECT_EQ(r.status, 0) << r.err;
    return r.out;
  }
  static void expect_failure(int status, const std::vector<std::string>& args, const std::vector<std::string>& words) {
    expect_failed_in_a_line(run(args), "translate", status, words);
  }

  static TemporaryFolder* folder;
};
TemporaryFolder* Translate::folder = nullptr;

const char kText[] = "Open the chart.\n\nMove the\tfile.\n   \n  Save the cell.\r\nlast line without a line break";

TEST_F(Translate, KeepsLinesBlankLinesAndSpaceAroundText) {
  const std::string out = text({"-q"}, kText);
  std::vector<std::string> lines;
  for (size_t at = 0; at < out.size(); at = out.find('\n', at) + 1)
    lines.push_back(out.substr(at, out.find('\n', at) - at));
  ASSERT_EQ(lines.size(), 6u) << out;
  EXPECT_EQ(lines[1], "");
  EXPECT_EQ(lines[3], "   ");
  EXPECT_EQ(lines[4].substr(0, 2), "  ");
  EXPECT_EQ(lines[4].back(), '\r');
  EXPECT_EQ(out.find('\t'), std::string::npos);
  EXPECT_EQ(text({"-i", "Open the chart."}), lines[0] + "\n");
  EXPECT_EQ(text({"-f", folder->write("in.txt", kText)}), out);
  EXPECT_EQ(text({"-f", folder->write("empty.txt", "")}), "");
  EXPECT_EQ(text({"-i", ""}, "not read"), "\n");
}

TEST_F(Translate, SameTextForAnyThreadsKernelAndOrderOfLines) {
  const std::string expected = text({"-m", memory()}, kText);
  EXPECT_EQ(text({"-m", memory(), "--threads", "1"}, kText), expected);
  EXPECT_EQ(text({"-m", memory(), "--threads", "5", "--no-mmap"}, kText), expected);
  EXPECT_EQ(text({"-m", memory(), "--kernel", "scalar"}, kText), expected);
  EXPECT_EQ(text({"-m", memory()}, std::string("Close the page.\n") + kText), "Closei pageen.\n" + expected);
}

TEST_F(Translate, TakesExactMatchesFromTheMemory) {
  EXPECT_EQ(text({"-m", memory(), "-i", "Save the cell."}), "Savei cellen.\n");
  EXPECT_EQ(text({"-m", memory(), "--trust", "1000", "-i", "Save the cells."}), "Savei cellen.\n");
}

// Also if another source has the same trigrams, the line is longer than a piece, or white space differs.
TEST_F(Translate, TakesTheTranslationOfEverySourceOfTheMemory) {
  std::string long_line;
  for (int i = 0; i < 60; i++) long_line += "Open it" + std::to_string(i) + ". ";
  const std::string pairs = folder->write("exact.jsonl",
                                          "{\"prompt\": \"SAVE\", \"completion\": \"upper\"}\n"
                                          "{\"prompt\": \"save\", \"completion\": \"lower\"}\n"
                                          "{\"prompt\": \" the\\tcell \", \"completion\": \" a\\nb \"}\n"
                                          "{\"prompt\": \"" +
                                              long_line + "\", \"completion\": \"long\"}\n");
  EXPECT_EQ(text({"-q", "-m", pairs}, "save\nSAVE\n  the cell\n" + long_line + "\n"), "lower\nupper\n  a b\nlong \n");
}

TEST_F(Translate, TranslatesLongLinesInPieces) {
  std::string sentence = "Open the file and the page", line;
  for (int i = 0; i < 40; i++) line += sentence + (i % 3 ? " " : ". ");
  const std::string out = text({"--beams", "2"}, line + "\n");
  EXPECT_EQ(std::count(out.begin(), out.end(), '\n'), 1);
  EXPECT_FALSE(text({"--beams", "1"}, std::string(2000, 'x') + "\n").empty());  // no spaces: cut anywhere
}

TEST_F(Translate, TakesLinesOfAMegabyte) {
  const std::string sentence = "Save the cell.", spaces(1 << 20, ' '), word(1 << 20, 'x');
  EXPECT_EQ(text({"-m", memory()}, sentence + spaces + sentence + "\n"), "Savei cellen. Savei cellen.\n");
  EXPECT_EQ(text({"-q"}, spaces), spaces + "\n");
  // Tens of thousands of pieces: Ctrl-C ends it.
  ProgramOptions stop;
  for (int i = 0; i < 4; i++) stop.input += sentence + "\n";  // a thread takes four lines at a time
  stop.input += word + "\n";
  stop.interrupt_after_output = "Savei cellen.";
  const ProgramResult r = run_program({POCKET_TRANSLATE, model(), "-m", memory(), "--threads", "1", "-q"}, stop);
  EXPECT_EQ(r.status, 130) << r.err;
}

TEST_F(Translate, TakesInvalidUtf8) {
  const std::string bad =
      "Open the \xff\xfe file.\n\x80\x80\x80\n\xe2\x82\nSave the cell.\n" + std::string(900, '\xbf');
  const std::string out = text({"-q", "-m", memory(), "--beams", "1"}, bad);
  EXPECT_EQ(std::count(out.begin(), out.end(), '\n'), 5) << out;
  EXPECT_NE(out.find("\nSavei cellen.\n"), std::string::npos) << out;
  expect_failure(1, {"-i", "a", "-m", folder->write("bad.jsonl", "{\"prompt\": \"\xff\", \"completion\": \"b\"}\n")},
                 {"bad.jsonl:1:"});
}

// Without progress, which would be of lines that nobody gets.
TEST_F(Translate, FullDiskEndsTheProgramAtOnce) {
  ProgramOptions options;
  options.stdout_file = folder->full_device("full");
  if (options.stdout_file.empty()) GTEST_SKIP() << "requires the right to create devices";
  options.stderr_terminal = true;
  for (int i = 0; i < 4; i++) options.input += "Save the cell.\n";  // a thread takes four lines at a time
  options.input += std::string(1 << 17, 'x') + "\n\n\n\n\n\n\n\n";  // after this line progress would be due
  const ProgramResult r = run_program({POCKET_TRANSLATE, model(), "-m", memory(), "--threads", "1"}, options);
  EXPECT_EQ(r.status, 1);
  EXPECT_NE(r.err.find("translate: standard output: No space left on device"), std::string::npos) << r.err;
  EXPECT_EQ(r.err.find("of 12 lines"), std::string::npos) << r.err;
}

TEST_F(Translate, ReportsWrongUsage) {
  expect_failure(2, {"-f", "a", "-i", "b"}, {"--file, --text: give only one of them"});
  expect_failure(2, {"--matches", "2"}, {"--matches: requires --memory FILE"});
  expect_failure(2, {"--trust", "2"}, {"--trust: requires --memory FILE"});
  expect_failure(2, {"--beams", "0"}, {"--beams"});
  expect_failure(1, {"-f", folder->file("none.txt")}, {"none.txt: "});
  expect_failure(1, {"-i", "a", "-m", folder->file("none.jsonl")}, {"none.jsonl: "});
  expect_failure(1, {"-i", "a", "-m", folder->write("bad.jsonl", "{\"prompt\": 1}\n")}, {"bad.jsonl:1:", "\"prompt\""});
  expect_failed_in_a_line(run_program({POCKET_TRANSLATE}), "translate", 2, {"expected a model"});
  expect_failed_in_a_line(run_program({POCKET_TRANSLATE, folder->write("x.bin", "no model"), "-i", "a"}), "translate",
                          1, {"x.bin"});
  EXPECT_NE(text({"--help"}).find("--memory"), std::string::npos);
}

// ---- Consensus ----

using translate::chrf;
using translate::consensus;
using translate::ngrams_of;

// Values of sacrebleu 2.6.0: sentence_chrf(text, [reference]).score / 100.
TEST(Consensus, ChrfIsThatOfSacrebleu) {
  const struct {
    const char *text, *reference;
    double expected;
  } cases[] = {
      {"Avaa tiedosto.", "Avaa tiedostot.", 0.849024},
      {"Avaa uusi ikkuna", "Avataan uusi ikkuna napsauttamalla", 0.351482},
      {"a", "a", 1.000000},
      {"a", "ab", 0.555556},
      {"abc", "xyz", 0.000000},
      {"Äänen voimakkuus", "Ääni: voimakkuuden säätö", 0.436455},
      {"  leading and  double spaces ", "leading and double space", 0.989218},
      {"", "abc", 0.000000},
      {"ok – 😀 hyvä", "ok - 😀 hyvää", 0.405196},
  };
  for (const auto& c : cases)
    EXPECT_NEAR(chrf(ngrams_of(c.text), ngrams_of(c.reference)), c.expected, 1e-6) << c.text << " | " << c.reference;
}

TEST(Consensus, ChoosesTheTextThatTheOthersResemble) {
  const auto chosen = [](const std::vector<translate::Candidate>& all) { return consensus(all).text; };
  EXPECT_EQ(chosen({{"a", 1}}), "a");
  EXPECT_EQ(chosen({{"", 1}, {"", 1}}), "");
  EXPECT_EQ(chosen({{"Sulje ikkuna.", 1}, {"Avaa kirja.", 1}, {"Avaa tiedosto.", 1}, {"Avaan tiedoston.", 1}}),
            "Avaan tiedoston.");
  EXPECT_EQ(chosen({{"Sulje ikkuna.", 3}, {"Avaa tiedosto.", 1}, {"Avaa tiedostot.", 1}}), "Sulje ikkuna.");
  EXPECT_EQ(chosen({{"x", 0}, {"y", 0}}), "x");  // of equal ones the first
}

// ---- Beam search ----

class Beams : public Translate {
 protected:
  void SetUp() override {
    m.open(model());
    prompt = ids_of(m.tokenizer, row_prompt("Open the file.", true));
  }
  translate::TranslationModel m;
  std::vector<int> prompt;
};

TEST_F(Beams, OneBeamIsGreedy) {
  BeamSearch search(m.model, {0, 1}, 1, m.ends);
  search.begin(prompt);
  const Hypothesis h = search.search(4)[0];  // too few tokens for a repetition
  Session session(m.model, {0, 1});
  std::vector<int> ids = prompt, expected;
  for (const float* logits = session.forward(ids.data(), ids.size()); expected.size() < 4;) {
    const int next = int(std::max_element(logits, logits + m.model.config.vocab_size) - logits);
    if (m.ends[size_t(next)]) break;
    expected.push_back(next);
    logits = session.forward(&next, 1);
  }
  EXPECT_EQ(h.ids, expected);
}

TEST_F(Beams, FindsTextsBestFirstAndMeasuresThem) {
  BeamSearch wide(m.model, {0, 1}, 8, m.ends);
  wide.begin(prompt);
  const auto all = wide.search(60);
  ASSERT_GT(all.size(), 1u);
  const int end = ids_of(m.tokenizer, "\n", false).back();
  for (size_t i = 0; i < all.size(); i++) {
    if (i > 0) {
      EXPECT_GE(all[i - 1].score(), all[i].score());
    }
    if (!all[i].complete) continue;
    std::vector<int> ids = all[i].ids;
    ids.push_back(end);
    Session session(m.model, {0, 1});
    const float* logits = session.forward(prompt.data(), prompt.size());
    double measured = 0;
    for (const int id : ids) {
      measured += double(logits[id]) - cli::portable_log_sum_exp(logits, m.model.config.vocab_size);
      logits = session.forward(&id, 1);
    }
    EXPECT_TRUE(std::any_of(all.begin(), all.end(), [&](const Hypothesis& h) {  // EOS may have ended the same text
      return h.ids == all[i].ids && std::fabs(h.log_probability - measured) < 1e-9;
    })) << i;
  }
  // A second prompt on the same object, and the first again: the same hypotheses.
  wide.begin(ids_of(m.tokenizer, row_prompt("Close the page.", true)));
  wide.search(60);
  wide.begin(prompt);
  const auto again = wide.search(60);
  ASSERT_EQ(again.size(), all.size());
  for (size_t i = 0; i < all.size(); i++) EXPECT_EQ(again[i].ids, all[i].ids);
}

TEST_F(Beams, EndsAtTheLimit) {
  const std::vector<bool> none(m.ends.size(), false);
  BeamSearch search(m.model, {0, 1}, 4, none);
  search.begin(prompt);
  const auto all = search.search(7);
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].ids.size(), 7u);
  EXPECT_FALSE(all[0].complete);
  EXPECT_LE(search.search(100000)[0].ids.size(), size_t(search.context()) - prompt.size());
}

TEST_F(Beams, DropsRepetitions) {
  const std::vector<bool> none(m.ends.size(), false);
  BeamSearch search(m.model, {0, 1}, 4, none);
  search.begin(prompt);
  const std::vector<int> ids = search.search(80)[0].ids;
  std::set<std::vector<int>> seen;
  for (size_t i = 0; i + 4 <= ids.size(); i++)
    EXPECT_TRUE(seen.insert({ids.begin() + ptrdiff_t(i), ids.begin() + ptrdiff_t(i) + 4}).second) << i;
}

}  // namespace translate_program_test
