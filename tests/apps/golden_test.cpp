// golden_test.cpp: real checkpoints through export/convert and ./run, against logits and texts of other programs
// (transformers in float64 or float32, llama-quantize, gguf-py; the README of the reference data names them).
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "../support/program.hpp"
#include "../support/test_data.hpp"

namespace golden_test {

using Json = nlohmann::json;

std::string joined(const Json& ids) {
  std::string list;
  for (const Json& id : ids) list += (list.empty() ? "" : ",") + std::to_string(id.get<int>());
  return list;
}

class Golden : public testing::Test {
 protected:
  // The converted checkpoint. Each one is converted once.
  std::string converted(const std::string& in, const std::string& type, const std::string& tokenizer = "") {
    const std::string out = folder_.file(std::to_string(std::hash<std::string>{}(in)) + "." + type);
    if (std::filesystem::exists(out)) return out;
    std::vector<std::string> args = {POCKET_CONVERT, in, "--type", type, "-o", out};
    if (!tokenizer.empty()) args.insert(args.end(), {"-z", tokenizer});
    const ProgramResult r = run_program(args);
    EXPECT_EQ(r.status, 0) << r.err;
    return out;
  }

  // Logits, (ids, vocab_size), of a list of ids.
  std::vector<float> logits(const std::string& model, const std::string& ids) {
    const std::string out = folder_.file("logits");
    const ProgramResult r = run_program({POCKET_RUN, model, "--ids", ids, "--logits", out, "-q"});
    EXPECT_EQ(r.status, 0) << r.err;
    const std::string bytes = read_file(out);
    std::vector<float> values(bytes.size() / 4);
    std::memcpy(values.data(), bytes.data(), values.size() * 4);
    return values;
  }

  // The largest |difference| / (1 + |logit|) at some positions.
  static double largest_difference(const std::vector<float>& got, const Json& positions, const Json& expected) {
    const size_t vocab = expected[0].size();
    double largest = 0;
    for (size_t i = 0; i < positions.size(); i++)
      for (size_t v = 0; v < vocab; v++) {
        const double e = expected[i][v], g = got.at(positions[i].get<size_t>() * vocab + v);
        largest = std::max(largest, std::fabs(g - e) / (1 + std::fabs(e)));
      }
    return largest;
  }

  TemporaryFolder folder_;
};

TEST_F(Golden, Stories260K) {
  NEED_DATA(checkpoint, "stories260K.bin");
  const std::string model = converted(checkpoint, "f32", data_path("tok512.model"));
  const Json golden = Json::parse(read_file(data_path("stories260K.golden.json")));
  EXPECT_EQ(run_program({POCKET_RUN, model, "-t", "0", "-n", "200", "-q"}).out, golden["greedy_text_200"]);
  EXPECT_LT(largest_difference(logits(model, joined(golden["greedy_ids"])), golden["positions"], golden["logits"]),
            1e-4);
}

// The folders in 16 bits are in huggingface_test.cpp.
TEST_F(Golden, HuggingFace) {
  for (const char* name : {"gqa-f32", "llama3-rope-sharded"}) {
    NEED_DATA(folder, std::string("hf/") + name);
    const Json golden = Json::parse(read_file(folder + "/golden.json"));
    EXPECT_LT(largest_difference(logits(converted(folder, "f32"), joined(golden["ids"])), golden["positions"],
                                 golden["logits"]),
              1e-4)
        << name;
  }
}

TEST_F(Golden, Gguf) {
  NEED_DATA(folder, "gguf");
  const Json golden = Json::parse(read_file(folder + "/golden.json"));
  const std::string ids = joined(golden["ids"]);
  EXPECT_EQ(golden["files"].size(), 15u);
  for (const auto& [file, expected] : golden["files"].items())
    EXPECT_LT(
        largest_difference(logits(converted(folder + "/" + file, "f32"), ids), golden["positions"], expected["logits"]),
        1e-4)
        << file;
}

// ---- SmolLM2-135M-Instruct ----

constexpr char kSmolLm2[] = "smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf";

TEST_F(Golden, SmolLm2) {
  NEED_DOWNLOAD(checkpoint, kSmolLm2);
  NEED_DATA(file, "smollm2.golden.json");
  const std::string model = converted(checkpoint, "f32");
  int choices = 0;
  const Json golden = Json::parse(read_file(file));
  for (const Json& prompt : golden["prompts"]) {
    Json ids = prompt["ids"];
    const size_t last = ids.size() - 1;
    for (const Json& id : prompt["greedy_ids"]) ids.push_back(id);
    ids.erase(ids.end() - 1);
    const std::vector<float> got = logits(model, joined(ids));
    const size_t vocab = got.size() / ids.size();
    ASSERT_EQ(vocab, 49152u);
    for (size_t i = 0; i < prompt["last_top_ids"].size(); i++)
      EXPECT_NEAR(got[last * vocab + prompt["last_top_ids"][i].get<size_t>()],
                  prompt["last_top_logits"][i].get<double>(), 2e-3);
    for (size_t i = 0; i < prompt["greedy_ids"].size(); i++) {
      if (prompt["greedy_margins"][i] <= 0.05) continue;
      const float* row = &got[(last + i) * vocab];
      EXPECT_EQ(std::max_element(row, row + vocab) - row, prompt["greedy_ids"][i].get<long>());
      choices++;
    }
  }
  EXPECT_GT(choices, 100);
}

TEST_F(Golden, SmolLm2AnswersAQuestion) {
  NEED_DOWNLOAD(checkpoint, kSmolLm2);
  const std::string model = converted(checkpoint, "f32");
  EXPECT_EQ(run_program({POCKET_RUN, model, "-m", "chat", "-t", "0", "-q", "-i", "What is the capital of France?"}).out,
            "The capital of France is Paris.\n");
}

// Every reply of a chat continues the tokens of the whole conversation, in the layout of the chat template. A control
// token that a user types is plain text.
TEST_F(Golden, SmolLm2RepliesToTheWholeConversation) {
  NEED_DOWNLOAD(checkpoint, kSmolLm2);
  const std::string model = converted(checkpoint, "q8");
  const std::vector<std::string> questions = {"My name is Zebulon.", "Say <|im_end|> twice.", "What is 2 + 2?"};
  ProgramOptions input;
  for (const std::string& q : questions) input.input += q + "\n";
  const ProgramResult chat = run_program({POCKET_RUN, model, "-m", "chat", "-t", "0", "-n", "40", "-q"}, input);
  ASSERT_EQ(chat.status, 0) << chat.err;

  const auto encoded = [&](const std::string& text) {
    const std::string line = run_program({POCKET_RUN, model, "--encode", text}).out;
    return line.substr(0, line.size() - 1);
  };
  const std::string start = "1", end = "2";  // <|im_start|>, <|im_end|>
  const std::string prompt = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
  std::string ids = start + "," + encoded("system\n" + prompt) + "," + end, expected;
  for (const std::string& q : questions) {
    ids += "," + encoded("\n") + "," + start + "," + encoded("user\n" + q) + "," + end + "," + encoded("\n") + "," +
           start + "," + encoded("assistant\n");
    const ProgramResult all = run_program({POCKET_RUN, model, "--ids", ids, "-t", "0", "-n", "40", "-q"});
    ASSERT_EQ(all.status, 0) << all.err;
    const size_t from = all.out.rfind("assistant\n") + 10;  // after the prompt, which is printed without control tokens
    const std::string reply = all.out.substr(from);
    expected += reply + "\n";
    ids += "," + encoded(reply) + "," + end;
  }
  EXPECT_EQ(chat.out, expected);
}

// Mean KL divergence to f32 of the two quantized types, on a passage of English, in nats.
TEST_F(Golden, SmolLm2Quantized) {
  NEED_DOWNLOAD(checkpoint, kSmolLm2);
  NEED_DATA(text, "text/evaluate.txt");
  const std::string f32 = converted(checkpoint, "f32");
  ProgramResult encoded = run_program({POCKET_RUN, f32, "--encode", read_file(text).substr(0, 500)});
  ASSERT_EQ(encoded.status, 0);
  const std::string ids = encoded.out.substr(0, encoded.out.size() - 1);
  const std::vector<float> reference = logits(f32, ids);
  const auto mean_kl = [&](const std::vector<float>& other) {
    const size_t vocab = 49152, rows = reference.size() / vocab;
    double sum = 0;
    for (size_t r = 0; r < rows; r++) {
      const float *p = &reference[r * vocab], *q = &other[r * vocab];
      double zp = 0, zq = 0, kl = 0;
      for (size_t v = 0; v < vocab; v++) {
        zp += std::exp(double(p[v]) - p[0]);
        zq += std::exp(double(q[v]) - q[0]);
      }
      zp = std::log(zp) + p[0];
      zq = std::log(zq) + q[0];
      for (size_t v = 0; v < vocab; v++) kl += std::exp(p[v] - zp) * ((p[v] - zp) - (q[v] - zq));
      sum += kl;
    }
    return sum / double(rows);
  };
  const double q8 = mean_kl(logits(converted(checkpoint, "q8"), ids));
  const double q4 = mean_kl(logits(converted(checkpoint, "q4"), ids));
  EXPECT_GT(q8, 0);
  EXPECT_LT(q8, 0.02);
  EXPECT_LT(q4, 0.5);
}

}  // namespace golden_test
