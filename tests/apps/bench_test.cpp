// bench_test.cpp: runs apps/bench/bench as its users do. The measured values depend on the machine, so the tests check
// that all are present, plausible and consistent. The KL divergence is compared with a naive computation.
#include "../../export/engine.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "../../export/random_model.hpp"
#include "../support/program.hpp"
#include "../support/tiny_model.hpp"

namespace bench_test {

using namespace pocket;
using nlohmann::json;

/// A context longer than a window of 512 tokens, and a vocabulary of bytes and syllables.
Config kl_config() {
  Config c = tiny::small_config();
  c.vocab_size = 400;
  c.max_seq_len = 600;
  return c;
}

class Bench : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder = new TemporaryFolder;
    for (const char* type : {"f32", "q4"}) {
      const auto made = run_program({POCKET_CONVERT, "--random", "tiny", "--type", type, "-o", file("tiny-", type)});
      ASSERT_EQ(made.status, 0) << made.err;
      write_model(file("kl-", type), kl_config(), std::string(type) == "f32" ? Type::f32 : Type::q4);
    }
  }
  static void TearDownTestSuite() { delete folder; }

  static std::string file(const std::string& name, const std::string& type) {
    return folder->file(name + type + ".bin");
  }
  static void write_model(const std::string& path, const Config& config, Type type, const std::string& first_word = "",
                          const ReadRows& rows = tiny::random_rows) {
    Tokenizer::Vocabulary v = random_vocabulary(config.vocab_size);
    if (!first_word.empty()) v.pieces[300].text = first_word;
    ModelParts parts = tiny::parts_of(config, type);
    parts.tokenizer = Tokenizer::to_blob(v);
    ModelWriter writer;
    ASSERT_TRUE(writer.write(path, parts, rows, nullptr)) << writer.error;
  }

  static ProgramResult bench(std::vector<std::string> args, const ProgramOptions& options = {}) {
    args.insert(args.begin(), POCKET_BENCH);
    return run_program(args, options);
  }
  /// The object printed by --json, which is one line.
  static json object(std::vector<std::string> args) {
    args.push_back("--json");
    const ProgramResult r = bench(args);
    EXPECT_EQ(r.status, 0) << r.err;
    EXPECT_EQ(std::count(r.out.begin(), r.out.end(), '\n'), 1) << r.out;
    return json::parse(r.out);
  }
  static void expect_failure(int status, const std::vector<std::string>& args, const std::vector<std::string>& words) {
    expect_failed_in_a_line(bench(args), "bench", status, words);
  }

  static TemporaryFolder* folder;
};
TemporaryFolder* Bench::folder = nullptr;

TEST_F(Bench, HelpListsTheOptions) {
  const ProgramResult r = bench({"--help"});
  EXPECT_EQ(r.status, 0);
  EXPECT_EQ(r.err, "");
  for (const char* word : {"--threads", "--kernel", "--quick", "--json", "--kl", "-f", "--worker", "--parallel",
                           "--draft", "export/convert"})
    EXPECT_NE(r.out.find(word), std::string::npos) << word;
}

TEST_F(Bench, RejectsWrongUsage) {
  const std::string m = file("tiny-", "q4");
  expect_failure(2, {}, {"no model given", "export/convert"});
  expect_failure(2, {m, m}, {"one model only", "--kl"});
  expect_failure(2, {m, "--thread", "1"}, {"--thread: no such option", "did you mean --threads?"});
  expect_failure(2, {m, "--threads", "0"}, {"--threads: expected a whole number from 1 to 256, found '0'"});
  expect_failure(2, {m, "--threads", "1,"}, {"--threads: expected a whole number", "found ''"});
  expect_failure(2, {m, "--threads", "1,x"}, {"found 'x'"});
  expect_failure(2, {m, "--threads"}, {"--threads requires a value: LIST"});
  expect_failure(2, {m, "--kernel", "scalar,mmx"}, {"--kernel", "'mmx' is not supported", "scalar"});
  expect_failure(2, {m, "--quick=1"}, {"--quick=1: takes no value"});
  expect_failure(2, {m, "--kl", m}, {"--kl requires a text: -f FILE"});
  expect_failure(2, {m, "-f", m}, {"-f requires", "--kl REFERENCE"});
  expect_failure(2, {m, "--kl", m, "-f", m, "--quick"}, {"--kl", "--quick"});
  expect_failure(2, {m, "--kl", m, "-f", m, "--threads", "1,2"}, {"one of each"});
  expect_failure(2, {m, "--worker", "--kernel", "scalar,scalar"}, {"one of each"});
  expect_failure(2, {m, "--draft", m, "--threads", "1,2"}, {"one of each"});
  expect_failure(2, {m, "--draft", m, "--parallel", "2"}, {"--draft", "cannot be combined"});
  expect_failure(1, {folder->file("none.bin")}, {"none.bin", "No such file"});
  expect_failure(1, {folder->write("text.bin", "not a model")}, {"text.bin", "magic"});
}

// ---- Speed and memory ----

void expect_within(const json& value, double low, double high, const char* what) {
  ASSERT_TRUE(value.is_number()) << what << ": " << value;
  EXPECT_GE(value.get<double>(), low) << what;
  EXPECT_LE(value.get<double>(), high) << what;
}

/// Checks the speeds of one kernel set and number of threads. int8: the int8 rate is measured.
void check_speed(const json& s, const json& model, bool int8) {
  const double bytes = model.at("bytes_per_token"), weights = model.at("weights");
  expect_within(s.at("read_gb_s"), 0.01, 1e5, "read_gb_s");
  ASSERT_EQ(s.at("prompt").size(), 2u);
  for (const json& p : s.at("prompt")) {
    expect_within(p.at("tok_s"), 1, 1e9, "tok_s");
    expect_within(p.at("top_s"), 0, double(p.at("tok_s")) * 2 * weights / 1e12 * 1.0001, "top_s");
    if (int8)
      expect_within(p.at("int8_share"), 1e-9, 1, "int8_share");
    else
      EXPECT_TRUE(p.at("int8_share").is_null());
  }
  EXPECT_EQ(s.at("prompt")[0].at("tokens"), 32);
  EXPECT_EQ(s.at("prompt")[1].at("tokens"), 256);
  ASSERT_EQ(s.at("generate").size(), 2u);
  for (const json& g : s.at("generate")) {
    expect_within(g.at("tok_s"), 1, 1e9, "tok_s");
    EXPECT_NEAR(g.at("gb_s"), double(g.at("tok_s")) * bytes / 1e9, double(g.at("gb_s")) * 1e-6);
    expect_within(g.at("read_share"), 1e-9, 1e3, "read_share");  // above 1 if the weights fit in a cache
  }
  EXPECT_EQ(s.at("generate")[0].at("depth"), 0);
  EXPECT_EQ(s.at("generate")[1].at("depth"), 237);
  expect_within(s.at("depth_share"), 0.001, 10, "depth_share");
}

TEST_F(Bench, MeasuresSpeedAndMemory) {
  const std::string best = kernel_names()[0];
  const json r = object({file("tiny-", "q4"), "--quick", "--threads", "2", "--kernel", best + ",scalar"});
  EXPECT_EQ(r.at("model").at("file"), file("tiny-", "q4"));
  EXPECT_EQ(r.at("model").at("type"), "q4");
  EXPECT_EQ(r.at("model").at("context"), 256);
  EXPECT_EQ(r.at("model").at("weights"), 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 172 * 64) + 512 * 64);
  EXPECT_EQ(r.at("model").at("file_bytes"), read_file(file("tiny-", "q4")).size());

  const json& machine = r.at("machine");
  EXPECT_TRUE(machine.at("cpu").is_string());
  expect_within(machine.at("cpus"), 1, 1e5, "cpus");
  ASSERT_EQ(machine.at("read").size(), 1u);
  EXPECT_EQ(machine.at("read")[0].at("threads"), 2);
  expect_within(machine.at("read")[0].at("gb_s"), 0.01, 1e5, "gb_s");
  EXPECT_EQ(machine.at("int8").size(), kernel_names().size() - 1);  // all but scalar have an instruction
  for (const json& rate : machine.at("int8")) expect_within(rate.at("top_s"), 1e-4, 1e4, "top_s");

  ASSERT_EQ(r.at("speed").size(), 2u);
  for (int i = 0; i < 2; i++) {
    const json& s = r.at("speed")[i];
    EXPECT_EQ(s.at("kernel"), i == 0 ? best : "scalar");
    EXPECT_EQ(s.at("threads"), 2);
    check_speed(s, r.at("model"), i == 0 && best != "scalar");
  }

  expect_within(r.at("load").at("open_ms"), 1e-4, 1e4, "open_ms");
  expect_within(r.at("load").at("first_token_ms"), 0.1, 1e5, "first_token_ms");
  EXPECT_EQ(r.at("load").at("kernel"), best);
  EXPECT_EQ(r.at("load").at("threads"), 2);
  ASSERT_EQ(r.at("memory").size(), 2u);
  for (int i = 0; i < 2; i++) {
    const json& m = r.at("memory")[i];
    EXPECT_EQ(m.at("tokens"), i == 0 ? 128 : 256);
    expect_within(m.at("peak_bytes"), 1e6, 1e9, "peak_bytes");  // without the memory that is read to measure bandwidth
    EXPECT_NEAR(m.at("expected_bytes"), m.at("peak_bytes"), 0.3 * double(m.at("peak_bytes")));
  }
}

TEST_F(Bench, F32HasNoInt8Share) {
  const json r = object({file("tiny-", "f32"), "--quick", "--threads", "1"});
  ASSERT_EQ(r.at("speed").size(), 1u);
  EXPECT_TRUE(r.at("speed")[0].at("int8_top_s").is_null());
  check_speed(r.at("speed")[0], r.at("model"), false);
}

TEST_F(Bench, PrintsATable) {
  const ProgramResult r = bench({file("tiny-", "q4"), "--quick", "--threads", "1"});
  EXPECT_EQ(r.status, 0) << r.err;
  for (const char* words : {"0.1 M weights in q4", "reading memory", "prompt of 32", "prompt of 256",
                            "generating at depth 0", "generating at depth 237", "% of depth 0", "opening the model",
                            "process start to first token", "peak memory,   128 tokens", "GB/s", "tok/s", "TOP/s"})
    EXPECT_NE(r.out.find(words), std::string::npos) << words << " in " << r.out;
  std::istringstream progress(r.err);  // a line every few seconds
  for (std::string line; std::getline(progress, line);) EXPECT_EQ(line.rfind("bench: ", 0), 0u) << line;
}

TEST_F(Bench, InterruptPrintsNoTable) {
  ProgramOptions options;
  options.interrupt_after_ms = 300;
  const ProgramResult r = bench({file("tiny-", "q4")}, options);
  EXPECT_EQ(r.status, 130) << r.err;
  EXPECT_EQ(r.out, "");
}

TEST_F(Bench, WorkerAnswersEachCommand) {
  ProgramOptions options;
  options.input =
      "prompt 4\ngenerate 3\ngenerate 252\npeak\nexpected 8\nexpected 256\nprompt 256\nparallel 3\nparallel 1\n";
  const std::vector<std::string> args = {"--worker", file("tiny-", "q4"), "--threads", "1", "--kernel", "scalar"};
  const ProgramResult r = bench(args, options);
  EXPECT_EQ(r.status, 0) << r.err;
  std::istringstream answers(r.out);
  const std::vector<double> n{std::istream_iterator<double>(answers), {}};
  ASSERT_EQ(n.size(), 9u) << r.out;
  for (const double seconds : {n[0], n[1], n[2], n[6], n[7], n[8]}) EXPECT_TRUE(seconds > 0 && seconds < 60) << seconds;
  EXPECT_LT(n[1], n[2]);
  EXPECT_GT(n[3], 1e6);
  EXPECT_LT(n[4], n[5]);  // by the keys and values of 248 tokens

  for (const char* command : {"dance 1", "prompt", "prompt 0", "generate -1", "prompt x", "parallel 129"}) {
    options.input = command + std::string("\n");
    const ProgramResult refused = bench(args, options);
    EXPECT_EQ(refused.status, 2);
    EXPECT_EQ(refused.err, "bench: --worker: expected prompt N, generate N, parallel N, peak or expected N, found '" +
                               std::string(command) + "'\n");
  }
  options.input = "prompt 257\n";
  const ProgramResult full = bench(args, options);
  EXPECT_EQ(full.status, 1);
  EXPECT_NE(full.err.find("context"), std::string::npos) << full.err;
}

// ---- Quality ----

/// The results of --kl, computed naively from the logits written by run.
struct NaiveDivergence {
  std::vector<double> kl;
  double surprise[2] = {}, squares[2] = {};
  int same = 0;

  /// Adds a window. logits: (tokens, vocab) of the model and of the reference.
  void add(const std::vector<std::vector<double>> logits[2], const std::vector<int>& ids, size_t from) {
    for (size_t t = from; t < ids.size(); t++) {
      std::vector<double> p[2];
      size_t best[2];
      for (int m = 0; m < 2; m++) {
        const std::vector<double>& row = logits[m][t - 1];
        best[m] = size_t(std::max_element(row.begin(), row.end()) - row.begin());
        double sum = 0;
        for (const double l : row) {
          p[m].push_back(std::exp(l));
          sum += p[m].back();
        }
        for (double& v : p[m]) v /= sum;
        const double nats = -std::log(p[m][size_t(ids[t])]);
        surprise[m] += nats;
        squares[m] += nats * nats;
      }
      kl.push_back(0);
      for (size_t i = 0; i < p[0].size(); i++) kl.back() += p[1][i] * std::log(p[1][i] / p[0][i]);
      same += best[0] == best[1];
    }
  }
  double perplexity(int m) const { return std::exp(surprise[m] / double(kl.size())); }
  double error(int m) const {
    const double n = double(kl.size()), mean = surprise[m] / n;
    return perplexity(m) * std::sqrt((squares[m] / n - mean * mean) / n);
  }
  /// The q-quantile of the KL divergences, interpolated.
  double quantile(double q) const {
    std::vector<double> sorted = kl;
    std::sort(sorted.begin(), sorted.end());
    const double rank = q * double(kl.size() - 1), part = rank - std::floor(rank);
    return (1 - part) * sorted[size_t(std::floor(rank))] + part * sorted[size_t(std::ceil(rank))];
  }
};

std::vector<std::vector<double>> logits_of(const std::string& model, const std::vector<int>& ids, size_t vocab) {
  const TemporaryFolder t;
  std::string list;
  for (const int id : ids) list += (list.empty() ? "" : ",") + std::to_string(id);
  const ProgramResult r = run_program({POCKET_RUN, model, "--ids", list, "--logits", t.file("logits"), "-q"});
  EXPECT_EQ(r.status, 0) << r.err;
  const std::string bytes = read_file(t.file("logits"));
  std::vector<std::vector<double>> rows(ids.size());
  for (size_t i = 0; i < bytes.size() / 4; i++) rows[i / vocab].push_back(load<float>(bytes.data() + 4 * i));
  return rows;
}

std::string random_text(int words) {
  tiny::Random random(11);
  std::string text;
  for (int w = 0; w < words; w++) {
    text += w ? " " : "";
    for (int i = 1 + random.below(5); i > 0; i--) text += "bdfghjklmnprstvzaeiou"[random.below(21)];
  }
  return text;
}

/// Encodes a text with the tokenizer of a model.
std::vector<int> encode(const std::string& model_file, const std::string& text) {
  Model model;
  EXPECT_TRUE(model.open(model_file.c_str())) << model.error;
  Tokenizer tokenizer;
  EXPECT_TRUE(tokenizer.load(model.tokenizer_bytes())) << tokenizer.error;
  return tokenizer.encode(text);
}

void expect_same(const json& found, const NaiveDivergence& expected) {
  const double n = double(expected.kl.size());
  EXPECT_EQ(found.at("positions"), n);
  const auto near = [](const json& value, double to) { EXPECT_NEAR(value, to, 1e-7 * std::fabs(to)); };
  near(found.at("kl").at("mean"), std::accumulate(expected.kl.begin(), expected.kl.end(), 0.0) / n);
  near(found.at("kl").at("median"), expected.quantile(0.5));
  near(found.at("kl").at("p99"), expected.quantile(0.99));
  near(found.at("same_top_share"), expected.same / n);
  for (const int m : {0, 1}) {
    const json& perplexity = found.at("perplexity").at(m == 0 ? "model" : "reference");
    near(perplexity.at("value"), expected.perplexity(m));
    near(perplexity.at("error"), expected.error(m));
  }
}

TEST_F(Bench, DivergenceMatchesANaiveComputation) {
  const std::string files[2] = {file("kl-", "q4"), file("kl-", "f32")};
  const std::string text = random_text(350), path = folder->write("text.txt", text);
  const std::vector<int> ids = encode(files[0], text);
  ASSERT_GT(ids.size(), 1030u);
  ASSERT_LT(ids.size(), 1500u);
  NaiveDivergence expected;
  for (size_t w = 0; w < 2; w++) {
    const std::vector<int> window(ids.begin() + long(512 * w), ids.begin() + long(512 * (w + 1)));
    const std::vector<std::vector<double>> logits[2] = {logits_of(files[0], window, 400),
                                                        logits_of(files[1], window, 400)};
    expected.add(logits, window, 256);
  }
  const json found = object({files[0], "--kl", files[1], "-f", path});
  EXPECT_EQ(found.at("tokens"), ids.size());
  EXPECT_EQ(found.at("positions"), 512);
  EXPECT_GT(found.at("kl").at("mean"), 1e-4);  // the models differ
  EXPECT_LT(found.at("same_top_share"), 1);
  expect_same(found, expected);
  // --perplexity counts the same tokens.
  for (const int m : {0, 1}) {
    char line[100];
    std::snprintf(line, sizeof line, "perplexity %.4f +- %.4f (512 tokens of %zu)\n", expected.perplexity(m),
                  expected.error(m), ids.size());
    EXPECT_EQ(run_program({POCKET_RUN, files[m], "--perplexity", path}).out, line);
  }
}

TEST_F(Bench, CountsAShortTextFromItsSecondToken) {
  const std::string files[2] = {file("kl-", "q4"), file("kl-", "f32")}, text = random_text(15);
  const std::vector<int> ids = encode(files[0], text);
  const std::vector<std::vector<double>> logits[2] = {logits_of(files[0], ids, 400), logits_of(files[1], ids, 400)};
  NaiveDivergence expected;
  expected.add(logits, ids, 1);
  expect_same(object({files[0], "--kl", files[1], "-f", folder->write("short.txt", text)}), expected);
}

TEST_F(Bench, ModelDoesNotDivergeFromItself) {
  const std::string m = file("kl-", "q4"), path = folder->write("itself.txt", random_text(250));
  const json found = object({m, "--kl", m, "-f", path, "--threads", "1", "--kernel", "scalar"});
  EXPECT_EQ(found.at("kl").at("mean"), 0);
  EXPECT_EQ(found.at("kl").at("p99"), 0);
  EXPECT_EQ(found.at("same_top_share"), 1);
  EXPECT_EQ(found.at("perplexity").at("model"), found.at("perplexity").at("reference"));
  const ProgramResult table = bench({m, "--kl", m, "-f", path});
  EXPECT_EQ(table.status, 0) << table.err;
  for (const char* words : {"mean 0.00000", "ratio 1.0000", "100.00%", "256 positions of"})
    EXPECT_NE(table.out.find(words), std::string::npos) << words << " in " << table.out;
}

TEST_F(Bench, RejectsModelsWithOtherVocabularies) {
  const std::string m = file("kl-", "q4"), text = folder->write("some.txt", "bada bodi");
  expect_failure(1, {m, "--kl", file("tiny-", "q4"), "-f", text}, {"same vocabulary", "400", "512"});
  const std::string other = folder->file("other.bin");
  write_model(other, kl_config(), Type::q4, "\x1b[2J");
  expect_failure(1, {m, "--kl", other, "-f", text}, {"same vocabulary", "\"\\u001b[2J\" as token 300"});
  expect_failure(1, {m, "--kl", folder->file("none.bin"), "-f", text}, {"none.bin", "No such file"});
  expect_failure(1, {m, "--kl", m, "-f", folder->file("none.txt")}, {"none.txt", "No such file"});
  expect_failure(1, {m, "--kl", m, "-f", folder->write("empty.txt", "")}, {"empty.txt", "at least 2 tokens"});
}

TEST_F(Bench, RejectsLogitsThatAreNotFinite) {
  const std::string path = folder->file("huge.bin");
  write_model(path, kl_config(), Type::f32, "",
              [](const TensorSpec& spec, int64_t first, int64_t n, float* out, std::string& e) {
                if (!tiny::random_rows(spec, first, n, out, e)) return false;
                for (int64_t i = 0; i < n * spec.cols && spec.name == "output"; i++)
                  out[i] = std::copysign(3e38f, out[i]);
                return true;
              });
  expect_failure(1, {path, "--kl", file("kl-", "f32"), "-f", folder->write("some.txt", "bada bodi")},
                 {"logits: expected finite numbers"});
}

TEST_F(Bench, MeasuresSeveralConversations) {
  const json found = object({file("tiny-", "q4"), "--parallel", "1,3", "--quick"});
  ASSERT_EQ(found["parallel"].size(), 4u) << "two depths";
  for (size_t i = 0; i < 4; i++) {
    const json& speed = found["parallel"][i];
    EXPECT_EQ(speed["conversations"], i % 2 ? 3 : 1);
    for (const char* field : {"tok_s", "ratio_to_one", "ratio_to_prompt"}) EXPECT_GT(speed[field].get<double>(), 0);
  }
  EXPECT_GT(found["parallel"][2]["depth"], found["parallel"][0]["depth"]);
  EXPECT_NE(bench({file("tiny-", "q4"), "--parallel", "2", "--quick"}).out.find("conversations"), std::string::npos);
  for (const char* bad : {"0", "129", "2,", "x"}) EXPECT_EQ(bench({file("tiny-", "q4"), "--parallel", bad}).status, 2);
}

// The draft is the model itself, or the same random weights in another type.
TEST_F(Bench, MeasuresADraftModel) {
  const std::string m = file("tiny-", "f32");
  for (const std::string& small : {m, file("tiny-", "q4")}) {
    const json found = object({m, "--draft", small, "--quick", "--threads", "1"});
    EXPECT_EQ(found["draft_model"], small);
    ASSERT_EQ(found["draft"].size(), 2u) << "two temperatures";
    EXPECT_EQ(found["draft"][0]["temperature"], 0);
    for (const json& speed : found["draft"]) {
      EXPECT_EQ(speed["texts"], 8);
      expect_within(speed["tokens"], 1, 8 * 23, "tokens");
      const double tokens = speed["tokens"], proposed = speed["proposed"], accepted = speed["accepted"];
      EXPECT_LE(accepted, proposed);
      expect_within(speed["tok_s"], 1, 1e9, "tok_s");
      EXPECT_NEAR(speed["ratio"], double(speed["draft_tok_s"]) / double(speed["tok_s"]), 1e-6 * double(speed["ratio"]));
      EXPECT_NEAR(speed["tokens_per_pass"], tokens / (tokens - accepted), 1e-6);
    }
  }
  EXPECT_NE(bench({m, "--draft", m, "--quick"}).out.find("tokens per pass"), std::string::npos);
  expect_failure(1, {m, "--draft", file("kl-", "q4")}, {"--draft", "expected the vocabulary of"});
  expect_failure(1, {m, "--draft", folder->file("none.bin")}, {"--draft", "No such file"});
}

}  // namespace bench_test
