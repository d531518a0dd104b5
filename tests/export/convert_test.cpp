// convert_test.cpp: runs export/convert and models/get as users do. A failure leaves no partial file behind, under any
// name.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <set>
#include <sstream>
#include <tuple>

#include "../support/hf_model.hpp"
#include "../support/program.hpp"
#include "../support/test_data.hpp"

namespace convert_test {

ProgramResult convert(std::vector<std::string> args, const ProgramOptions& options = {}) {
  args.insert(args.begin(), POCKET_CONVERT);
  return run_program(args, options);
}

void expect_failure(int status, const std::vector<std::string>& args, const std::vector<std::string>& words,
                    const ProgramOptions& options = {}) {
  const ProgramResult r = convert(args, options);
  expect_failed(r, status, words);
  EXPECT_NE(r.err.find("convert: "), std::string::npos) << r.err;
}

TEST(Convert, HelpTeaches) {
  const ProgramResult r = convert({"--help"});
  EXPECT_EQ(r.status, 0);
  for (const char* word :
       {"safetensors",       "PyTorch",     "GGUF",         "llama2.c", "-o",     "--type", "-z",     "--random",
        "tinyllama-1.1b",    "--calibrate", "--head",       "--report", "--lora", "Q2_K",   "IQ4_XS", "tokenizer.json",
        "--calibrate-steps", "zephyr",      "megabyte-24m", "130"})
    EXPECT_NE(r.out.find(word), std::string::npos) << word;
}

TEST(Convert, ReportsWrongUsage) {
  expect_failure(2, {}, {"expected a checkpoint"});
  expect_failure(2, {"x"}, {"-o OUT.bin"});
  expect_failure(2, {"x", "y", "-o", "z"}, {"one checkpoint"});
  expect_failure(2, {"x", "-o", "z", "--type", "q5"}, {"--type: expected q4, q8 or f32, found 'q5'"});
  expect_failure(2, {"x", "-o"}, {"-o", "FILE"});
  expect_failure(2, {"x", "-o", "z", "--tipe", "q4"}, {"--tipe: no such option", "--type"});
  expect_failure(2, {"x", "--random", "tiny", "-o", "z"}, {"--random"});
  expect_failure(2, {"x", "-o", "z", "--type", "q8", "--calibrate", "t"}, {"--calibrate: only valid with --type q4"});
  expect_failure(2, {"x", "-o", "z", "--type", "f32", "--head", "q8"}, {"--head: only valid with --type q4"});
  expect_failure(2, {"x", "-o", "z", "--head", "f32"}, {"--head: expected q4 or q8, found 'f32'"});
  expect_failure(2, {"x", "-o", "z", "--report", "r.csv"}, {"--report: requires --calibrate TEXT"});
  expect_failure(2, {"x", "-o", "z", "--calibrate-steps", "gptq"}, {"--calibrate-steps: requires --calibrate TEXT"});
  expect_failure(2, {"x", "-o", "z", "--calibrate", "t", "--calibrate-steps", "gtpq"},
                 {"--calibrate-steps: expected search, gptq, mismatch or all, found 'gtpq'"});
  expect_failure(2, {"x", "-o", "z", "--calibrate", "t", "--report", "r.txt"}, {".csv or .html", "r.txt"});
  expect_failure(2, {"--random", "huge", "-o", "z"}, {"huge", "tinyllama-1.1b", "smollm2-135m"});
  expect_failure(2, {"x", "-o", "z", "--type="}, {"--type"});
  expect_failure(2, {"x", "-o", "z", "--calibrate", ""}, {"--calibrate"});
  expect_failure(2, {"x", "--help=1"}, {"--help"});
  expect_failure(2, {"--random", "tiny", "-o", "z", "--lora", "a"}, {"--lora: only valid for a checkpoint"});
  expect_failure(2, {"--random", "tiny", "-o", "z", "--config", "c"}, {"--config: only valid for a checkpoint"});
}

TEST(Convert, DescribesUnsupportedFiles) {
  const TemporaryFolder t, out;
  const std::string o = out.file("o.bin");
  expect_failure(1, {t.file("none"), "-o", o}, {"none", "No such file"});
  expect_failure(1, {t.file(""), "-o", o}, {"config.json"});
  expect_failure(1, {t.write("a", ""), "-o", o}, {"empty"});
  expect_failure(1, {t.write("b", "<!DOCTYPE html><html></html>"), "-o", o}, {"HTML"});
  expect_failure(1, {t.write("c", "PK\3\4" + std::string(100, 'x')), "-o", o}, {"zip"});
  expect_failure(1, {t.write("d", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"), "-o", o},
                 {"Git LFS"});
  ASSERT_EQ(convert({"--random", "tiny", "-o", t.file("m.bin")}).status, 0);
  expect_failure(1, {t.file("m.bin"), "-o", o}, {"converted already", "only a Llama of type f32"});
  ASSERT_EQ(convert({"--random", "megabyte-24m", "--type", "f32", "--outline", "-o", t.file("m.bin")}).status, 0);
  expect_failure(1, {t.file("m.bin"), "-o", o}, {"converted already", "only a Llama of type f32"});
  EXPECT_EQ(out.list(), "");
}

// The result equals a model converted to that type directly, and keeps tokenizer and chat template.
TEST(Convert, ConvertsF32ModelsToOtherTypes) {
  const TemporaryFolder t;
  ASSERT_EQ(convert({"--random", "tiny", "--type", "f32", "-o", t.file("f32.bin")}).status, 0);
  for (const char* type : {"f32", "q8", "q4"}) {
    ASSERT_EQ(convert({"--random", "tiny", "--type", type, "-o", t.file("once.bin")}).status, 0);
    const ProgramResult r = convert({t.file("f32.bin"), "--type", type, "-o", t.file("twice.bin")});
    ASSERT_EQ(r.status, 0) << r.err;
    for (const char* name : {"once", "twice"})
      ASSERT_EQ(run_program({POCKET_RUN, t.file(name + std::string(".bin")), "--ids", "1,40,7,99", "--logits",
                             t.file(name), "-q"})
                    .status,
                0);
    EXPECT_EQ(read_file(t.file("twice")), read_file(t.file("once"))) << type;
    const auto info = [&](const char* file) {
      const std::string all = run_program({POCKET_RUN, t.file(file), "--info"}).out;
      return all.substr(0, all.find("memory in MB"));
    };
    EXPECT_EQ(info("twice.bin"), info("once.bin"));
    for (const char* name : {"once", "twice"}) std::filesystem::remove(t.file(name));
  }
}

TEST(Convert, Llama2cRequiresATokenizer) {
  NEED_DATA(checkpoint, "stories260K.bin");
  const TemporaryFolder out;
  expect_failure(1, {checkpoint, "-o", out.file("o")}, {"tokenizer", "-z"});
  expect_failure(1, {checkpoint, "-z", data_path("llama2-tokenizer.model"), "-o", out.file("o")},
                 {"expected the model's 512 tokens, found 32000", "the tokenizer of another model"});
  EXPECT_EQ(out.list(), "");
  for (const char* tokenizer : {"tok512.model", "tok512.bin"})
    EXPECT_EQ(convert({checkpoint, "-z", data_path(tokenizer), "-o", out.file("o")}).status, 0) << tokenizer;
}

// The markers are ordinary added tokens: special is false. They are control tokens in the model nevertheless, whether the
// tokenizer is the folder's own or another file, and whether the template is the folder's own or chosen by name.
TEST(Convert, MarkersOfTheChatTemplateAreNotRecognisedInText) {
  using hf::Json;
  const TemporaryFolder t;
  Json config = hf::small_config(), vocab = Json::object(), added = Json::array();
  config["vocab_size"] = 100;
  for (char c = '!'; c <= '~'; c++) vocab[std::string(1, c)] = c - '!';
  for (const char* marker : {"<|im_start|>", "<|im_end|>", "<|tool|>"})
    added.push_back({{"id", 94 + added.size()}, {"content", marker}, {"special", false}, {"normalized", false}});
  const Json tokenizer = {{"added_tokens", added},
                          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
                          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}};
  const Json chat_ml = {
      {"chat_template",
       "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
       "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"}};
  t.write("config.json", config.dump());
  t.write("model.safetensors", hf::safetensors_of(hf::weights_of(config)));
  t.write("other.json", tokenizer.dump());
  const auto expect_plain = [&](const std::vector<std::string>& more, const std::string& markers) {
    std::vector<std::string> args = {t.path(), "--type", "f32", "-o", t.file("m.bin")};
    args.insert(args.end(), more.begin(), more.end());
    const ProgramResult r = convert(args);
    ASSERT_EQ(r.status, 0) << r.err;
    const auto ids = [&](const std::string& text) {
      return run_program({POCKET_RUN, t.file("m.bin"), "--encode", text}).out;
    };
    EXPECT_EQ(ids("<|im_end|>"), markers);
    EXPECT_EQ(ids("a<|tool|>"), "64,96\n") << "not in the template";
  };
  const std::string characters = "27,91,72,76,62,68,77,67,91,29\n";
  expect_plain({"-z", t.file("other.json")}, "95\n");
  expect_plain({"-z", t.file("other.json"), "--template", "chatml"}, characters);
  expect_plain({"-z", t.write("indented.json", "\n  " + tokenizer.dump())}, "95\n");
  t.write("tokenizer.json", tokenizer.dump());
  expect_plain({}, "95\n");
  expect_plain({"--template", "chatml"}, characters);
  t.write("tokenizer_config.json", chat_ml.dump());
  expect_plain({}, characters);
  expect_plain({"-z", t.file("other.json")}, characters);
}

TEST(Convert, IsDeterministic) {
  const TemporaryFolder t;
  for (const char* type : {"f32", "q8", "q4"}) {
    for (const char* name : {"a", "b"})
      ASSERT_EQ(convert({"--random", "tiny", "--type", type, "-o", t.file(name)}).status, 0);
    EXPECT_TRUE(read_file(t.file("a")) == read_file(t.file("b"))) << type;
  }
}

TEST(Convert, KeepsExistingFileIfDiskIsFull) {
  const TemporaryFolder t;
  t.write("o.bin", "existing file");
  ProgramOptions small;
  small.largest_file = 40000;
  expect_failure(1, {"--random", "tiny", "-o", t.file("o.bin")}, {"o.bin", "File too large"}, small);
  EXPECT_EQ(t.list(), "o.bin\n");
  EXPECT_EQ(read_file(t.file("o.bin")), "existing file");
}

// Before the checkpoint is read.
TEST(Convert, ChecksOutputsFirst) {
  const TemporaryFolder t;
  std::filesystem::create_symlink("none", t.file("dangling"));
  std::filesystem::create_symlink("/proc/self/fd/1", t.file("stdout"));
  ASSERT_EQ(mkfifo(t.file("fifo").c_str(), 0600), 0);
  for (const auto& [path, why] : {std::pair{t.file("no/o.bin"), "No such file"},
                                  {t.path(), "Is a directory"},
                                  {t.file("dangling"), "is a symbolic link to"},
                                  {t.file("fifo"), "expected a regular file"},
                                  {t.file("stdout"), "expected a regular file"}}) {
    expect_failure(1, {t.file("none"), "-o", path}, {path + ": " + why});
    expect_failure(
        1, {"--random", "tiny", "-o", t.file("o.bin"), "--calibrate", t.file("none"), "--report", path + "/no/r.csv"},
        {path + "/no/r.csv: "});
  }
  EXPECT_EQ(t.list(), "dangling\nfifo\nstdout\n");
}

TEST(Convert, WritesOutlineWithoutWeights) {
  const TemporaryFolder t;
  ASSERT_EQ(convert({"--random", "smollm2-360m", "--outline", "-o", t.file("o.bin")}).status, 0);
  struct stat info = {};
  ASSERT_EQ(stat(t.file("o.bin").c_str(), &info), 0);
  EXPECT_GT(info.st_size, 150'000'000);
  EXPECT_LT(info.st_blocks * 512, 20'000'000);
  const ProgramResult r = run_program({POCKET_RUN, t.file("o.bin"), "--info"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.out.find("weights: none, an outline of a q4 file\n"), std::string::npos) << r.out;
  expect_failure(2, {"--random", "tiny", "--outline", "--calibrate", "self", "-o", t.file("x.bin")},
                 {"--outline: not valid with --calibrate"});
}

TEST(Convert, RejectsOutlineAsInput) {
  const TemporaryFolder t;
  ASSERT_EQ(convert({"--random", "tiny", "--type", "f32", "--outline", "-o", t.file("m.bin")}).status, 0);
  expect_failure(1, {t.file("m.bin"), "-o", t.file("o.bin")}, {"m.bin: a file without weights (--outline)"});
  EXPECT_EQ(t.list(), "m.bin\n");
}

// The ids of its text would be rows after the end of the embedding table.
TEST(Convert, RejectsModelsWithMorePiecesThanRows) {
  const TemporaryFolder t;
  pocket::Tokenizer::Vocabulary v;
  v.kind = pocket::Tokenizer::Kind::byte_level;
  for (int byte = 0; byte < 256; byte++) v.pieces.push_back({std::string(1, char(byte))});
  tiny::ModelParts parts = tiny::parts_of(tiny::small_config(), pocket::Type::f32);
  parts.tokenizer = pocket::Tokenizer::to_blob(v);
  t.write("m.bin", std::string(tiny::text_of(tiny::model_bytes(parts))));
  const std::string text = t.write("text", "Hello world");
  for (const std::vector<std::string>& options : {std::vector<std::string>{}, {"--calibrate", text}}) {
    std::vector<std::string> args = {t.file("m.bin"), "-o", t.file("o.bin")};
    args.insert(args.end(), options.begin(), options.end());
    expect_failure(1, args, {"m.bin: tokenizer: expected at most the model's 100 pieces, found 256"});
  }
  parts.tokenizer = "none";
  t.write("m.bin", std::string(tiny::text_of(tiny::model_bytes(parts))));
  expect_failure(1, {t.file("m.bin"), "-o", t.file("o.bin")}, {"m.bin: tokenizer: size: expected at least"});
  EXPECT_EQ(t.list(), "m.bin\ntext\n");
}

TEST(Convert, RefusesOneNameForTwoOutputs) {
  const TemporaryFolder t;
  const std::string text = t.write("text", "Hello world"), csv = t.file("o.csv");
  expect_failure(1, {"--random", "tiny", "-o", csv, "--calibrate", text, "--report", csv},
                 {csv + ": expected a file for each output, found one for two"});
  EXPECT_EQ(t.list(), "text\n");
}

// The output is named as an input is, through links, or with another spelling.
TEST(Convert, RefusesToReplaceItsInputs) {
  const TemporaryFolder t;
  ASSERT_EQ(convert({"--random", "tiny", "--type", "f32", "-o", t.file("m.bin")}).status, 0);
  std::filesystem::create_directories(t.file("hf/sub"));
  std::filesystem::create_directory(t.file("lora"));
  for (const char* name : {"hf/config.json", "hf/model-00001-of-00002.safetensors", "hf/tokenizer.json", "hf/w.gguf",
                           "lora/adapter_model.safetensors", "lora/adapter_config.json", "tok.model", "text.txt"})
    t.write(name, "an input");
  std::filesystem::create_symlink("m.bin", t.file("link"));
  std::filesystem::create_hard_link(t.file("m.bin"), t.file("hard"));
  std::filesystem::create_symlink("../hf/config.json", t.file("hf/other"));
  std::filesystem::create_hard_link(t.file("text.txt"), t.file("report.csv"));
  const std::string before = read_file(t.file("m.bin"));
  const std::string m = t.file("m.bin"), hf = t.file("hf"), shard = hf + "/model-00001-of-00002.safetensors";
  const std::vector<std::vector<std::string>> all = {
      {m, "-o", m},
      {m, "-o", t.file("link")},
      {m, "-o", t.file("hard")},
      {t.file("link"), "-o", m},
      {m, "-o", t.file("hf/../m.bin")},
      {m, "-o", t.file("new.bin"), "--calibrate", t.file("text.txt"), "--report", t.file("report.csv")},
      {m, "-o", t.file("text.txt"), "--calibrate", t.file("text.txt")},
      {hf, "-o", shard},
      {hf, "-o", hf + "/config.json"},
      {hf, "-o", hf + "/other"},
      {shard, "-o", hf + "/tokenizer.json"},
      {hf + "/w.gguf", "-o", hf + "/sub/../w.gguf"},
      {m, "-o", t.file("tok.model"), "-z", t.file("tok.model")},
      {"--random", "tiny", "-o", t.file("tok.model"), "-z", t.file("tok.model")},
      {m, "-o", t.file("lora/adapter_model.safetensors"), "--lora", t.file("lora")},
      {m, "-o", t.file("lora/adapter_config.json"), "--lora", t.file("lora") + ":0.5"}};
  for (const std::vector<std::string>& arguments : all)
    expect_failure(1, arguments, {": expected another file to write than ", ", which is read"});
  EXPECT_EQ(read_file(m), before);
  EXPECT_EQ(read_file(shard), "an input");
  EXPECT_EQ(read_file(t.file("tok.model")), "an input");
  ASSERT_EQ(convert({m, "--type", "q8", "-o", hf + "/m.bin"}).status, 0);
  EXPECT_EQ(convert({m, "--type", "q4", "-o", hf + "/m.bin"}).status, 0) << "an earlier output may be replaced";
}

TEST(Convert, KeepsModeAndLinkOfReplacedFile) {
  const TemporaryFolder t;
  chmod(t.write("o.bin", "old").c_str(), 0600);
  std::filesystem::create_symlink("o.bin", t.file("link"));
  ASSERT_EQ(convert({"--random", "tiny", "-o", t.file("link")}).status, 0);
  EXPECT_TRUE(std::filesystem::is_symlink(t.file("link")));
  EXPECT_EQ(std::filesystem::status(t.file("o.bin")).permissions(), std::filesystem::perms(0600));
  EXPECT_GT(std::filesystem::file_size(t.file("o.bin")), 1000u);
}

TEST(Convert, AcceptsValuesAfterEqualsSign) {
  const TemporaryFolder t;
  for (const char* name : {"a", "b"}) {
    const std::string output = t.file(name);
    const ProgramResult r = name[0] == 'a' ? convert({"--random=tiny", "--type=q8", "--output=" + output})
                                           : convert({"--random", "tiny", "--type", "q8", "-o", output});
    ASSERT_EQ(r.status, 0) << r.err;
  }
  EXPECT_TRUE(read_file(t.file("a")) == read_file(t.file("b")));
}

// SIGINT arrives while a part of the file is written.
TEST(Convert, LeavesNothingAfterCtrlC) {
#ifndef POCKET_FAULT_LIBRARY
  GTEST_SKIP() << "the fault library is not built with sanitizers";
#else
  const TemporaryFolder t;
  const ProgramResult r = run_program({"env", "LD_PRELOAD=" POCKET_FAULT_LIBRARY, "POCKET_FAULT=write:3:2",
                                       POCKET_CONVERT, "--random", "stories15m", "-o", t.file("o.bin")});
  expect_failed_in_a_line(r, "convert", 130, {"interrupted"});
  EXPECT_EQ(t.list(), "");
#endif
}

TEST(Convert, MemoryStaysBelowModelSize) {
  const TemporaryFolder t;
  const ProgramResult r = convert({"--random", "stories110m", "--type", "f32", "-o", t.file("o.bin")});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_GT(std::filesystem::file_size(t.file("o.bin")), 400000000u);
  if (!kSanitized) {
    EXPECT_LT(r.peak_bytes, 150000000u) << "the largest tensor has 98 MB";
  }
}

// ---- --calibrate ----

std::string long_text(int lines) {
  std::string text;
  for (int i = 0; i < lines; i++) text += "Line " + std::to_string(i * i) + " of a text, caf\xC3\xA9 and all.\n";
  return text;
}

TEST(ConvertCalibrate, RejectsInvalidTexts) {
  const TemporaryFolder t, out;
  const std::string o = out.file("o.bin");
  expect_failure(1, {"--random", "tiny", "-o", o, "--calibrate", t.file("none")}, {"none", "No such file"});
  expect_failure(1, {"--random", "tiny", "-o", o, "--calibrate", t.write("empty", "")}, {"empty", "kB"});
  expect_failure(1, {"--random", "tiny", "-o", o, "--calibrate", t.write("blank", " \n\n")}, {"blank", "empty"});
  expect_failure(1, {"--random", "tiny", "-o", o, "--calibrate", t.write("latin", "caf\xE9 au lait")},
                 {"latin", "UTF-8", "offset 3"});
  expect_failure(1, {"--random", "tiny", "-o", o, "--calibrate", t.write("cut", "caf\xC3")}, {"UTF-8", "offset 3"});
  EXPECT_EQ(out.list(), "");
}

TEST(ConvertCalibrate, AcceptsShortTextWithNotice) {
  const TemporaryFolder t, out;
  const ProgramResult r =
      convert({"--random", "tiny", "-o", out.file("o.bin"), "--calibrate", t.write("short", "Hello world")});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("with 172 (about 1 kB) or more"), std::string::npos) << r.err;
  EXPECT_EQ(out.list(), "o.bin\n");
}

TEST(ConvertCalibrate, IsDeterministicAndWritesReport) {
  const TemporaryFolder t;
  const std::string text = t.write("text", long_text(200));
  for (const char* name : {"a", "b"}) {
    const ProgramResult r = convert({"--random", "tiny", "-o", t.file(name), "--calibrate", text, "--report",
                                     t.file(std::string(name) + (name[0] == 'a' ? ".csv" : ".html"))});
    ASSERT_EQ(r.status, 0) << r.err;
    for (const char* word : {"calibrating on ", " tokens", " MB of memory", " MB of temporary disk space"})
      EXPECT_NE(r.err.find(word), std::string::npos) << word << " in " << r.err;
  }
  EXPECT_TRUE(read_file(t.file("a")) == read_file(t.file("b")));
  const std::string csv = read_file(t.file("a.csv"));
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 1 + 2 * 7 + 1);
  EXPECT_NE(csv.find("layers.1.w2,q4,64,172,"), std::string::npos) << csv;
  EXPECT_NE(read_file(t.file("b.html")).find("layers.1.w2"), std::string::npos);
  EXPECT_EQ(t.list(), "a\na.csv\nb\nb.html\ntext\n");
  EXPECT_EQ(run_program({POCKET_RUN, t.file("a"), "--selftest"}).status, 0);
}

TEST(ConvertCalibrate, GeneratesText) {
  const TemporaryFolder t;
  const ProgramResult r = convert({"--random", "tiny", "-o", t.file("o.bin"), "--calibrate", "self", "--head", "q8"});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("calibrating on 16384 tokens"), std::string::npos) << r.err;
  EXPECT_EQ(t.list(), "o.bin\n");
  EXPECT_NE(run_program({POCKET_RUN, t.file("o.bin"), "--info"}).out.find("calibrated on generated text, output q8"),
            std::string::npos);
}

// Every step changes the model; all steps give the default model; the file records the last step otherwise.
TEST(ConvertCalibrate, StopsAfterAStep) {
  const TemporaryFolder t;
  const std::string text = t.write("text", long_text(100));
  std::set<std::string> models;
  for (const char* step : {"", "all", "mismatch", "gptq", "search"}) {
    std::vector<std::string> command = {"--random", "tiny", "-o", t.file("o.bin"), "--calibrate", text};
    if (*step) command.insert(command.end(), {"--calibrate-steps", step});
    const ProgramResult r = convert(command);
    ASSERT_EQ(r.status, 0) << r.err;
    models.insert(read_file(t.file("o.bin")));
    const bool whole = !*step || step == std::string("all");
    EXPECT_EQ(run_program({POCKET_RUN, t.file("o.bin"), "--info"}).out.find("steps up to") == std::string::npos, whole);
  }
  EXPECT_EQ(models.size(), 4u);
}

// An interruption leaves the file to resume from; the result is the same as without an interruption.
TEST(ConvertCalibrate, ResumesAfterCtrlC) {
  const TemporaryFolder t;
  const std::string text = t.write("text", long_text(100));
  const std::string shape = kSanitized ? "tiny" : "stories15m";  // takes long enough to be interrupted
  const std::vector<std::string> command = {"--random", shape, "-o", t.file("o.bin"), "--calibrate", text};
  ASSERT_EQ(convert(command).status, 0);
  const std::string whole = read_file(t.file("o.bin"));
  std::filesystem::remove(t.file("o.bin"));
  bool resumed = false;
  for (int attempt = 0, ms = 200; attempt < 40 && !resumed; attempt++, ms = ms * 3 / 2) {
    ProgramOptions options;
    options.interrupt_after_ms = ms;
    const ProgramResult stopped = convert(command, options);
    if (stopped.status == 0) {  // the conversion was faster
      std::filesystem::remove(t.file("o.bin"));
      ms = 100;
      continue;
    }
    EXPECT_EQ(stopped.status, 130) << stopped.err;
    if (stopped.err.find("repeat the command to resume") == std::string::npos) continue;
    EXPECT_EQ(t.list(), "o.bin.calibrating\ntext\n");
    const ProgramResult rest = convert(command);
    EXPECT_EQ(rest.status, 0) << rest.err;
    EXPECT_NE(rest.err.find("resuming after layer"), std::string::npos) << rest.err;
    resumed = true;
  }
  EXPECT_TRUE(resumed);
  EXPECT_TRUE(read_file(t.file("o.bin")) == whole);
  EXPECT_EQ(t.list(), "o.bin\ntext\n");
}

TEST(ConvertCalibrate, KeepsExistingFileIfDiskIsFull) {
  const TemporaryFolder t;
  const std::string text = t.write("text", long_text(100));
  t.write("o.bin", "existing file");
  ProgramOptions small;
  small.largest_file = 100000;
  expect_failure(1, {"--random", "tiny", "-o", t.file("o.bin"), "--calibrate", text}, {"File too large"}, small);
  EXPECT_EQ(t.list(), "o.bin\ntext\n");
  EXPECT_EQ(read_file(t.file("o.bin")), "existing file");
}

// There is space for the first of two layers.
TEST(ConvertCalibrate, ResumesAfterDiskWasFull) {
  const TemporaryFolder t;
  const std::string text = t.write("text", "Hello world");
  const auto command = [&](const char* name) {
    return std::vector<std::string>{"--random", "tiny", "-o", t.file(name), "--calibrate", text};
  };
  ProgramOptions small;
  small.largest_file = 60000;
  expect_failure(1, command("o.bin"), {"File too large; repeat the command to resume"}, small);
  EXPECT_EQ(t.list(), "o.bin.calibrating\ntext\n");
  const ProgramResult r = convert(command("o.bin"));
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("resuming after layer 1 of 2"), std::string::npos) << r.err;
  ASSERT_EQ(convert(command("whole.bin")).status, 0);
  EXPECT_TRUE(read_file(t.file("o.bin")) == read_file(t.file("whole.bin")));
  EXPECT_EQ(t.list(), "o.bin\ntext\nwhole.bin\n");
}

// Hours of work are not lost to a command with another text or other steps.
TEST(ConvertCalibrate, KeepsAnotherInterruptedCalibration) {
  const TemporaryFolder t;
  const std::string text = t.write("text", "Hello world"), other = t.write("other", long_text(100));
  const std::vector<std::string> command = {"--random", "tiny", "-o", t.file("o.bin"), "--calibrate", text};
  ProgramOptions small;
  small.largest_file = 60000;
  expect_failure(1, command, {"repeat the command to resume"}, small);
  const std::string left = read_file(t.file("o.bin.calibrating"));
  std::vector<std::string> other_text = command, other_steps = command;
  other_text.back() = other;
  other_steps.insert(other_steps.end(), {"--calibrate-steps", "gptq"});
  for (const auto& changed : {other_text, other_steps})
    expect_failure(1, changed, {"o.bin.calibrating: is of an interrupted calibration with another text", "delete the"});
  EXPECT_TRUE(read_file(t.file("o.bin.calibrating")) == left);
  const ProgramResult r = convert(command);
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("resuming after layer 1 of 2"), std::string::npos) << r.err;
}

// The files of a user with the names that calibration once used for its own.
TEST(ConvertCalibrate, KeepsFilesThatAreNotItsOwn) {
  const TemporaryFolder t;
  const std::string text = t.write("text", "Hello world"), o = t.file("o.bin"), victim = t.write("victim", "mine");
  const std::vector<std::string> command = {"--random", "tiny", "-o", o, "--calibrate"};
  const auto with = [&](const std::string& calibrate) {
    std::vector<std::string> args = command;
    args.push_back(calibrate);
    return args;
  };
  t.write("o.bin.calibrating", "mine");
  expect_failure(1, with(text), {"o.bin.calibrating: expected the file of an interrupted calibration"});
  EXPECT_EQ(read_file(t.file("o.bin.calibrating")), "mine");
  std::filesystem::remove(t.file("o.bin.calibrating"));
  std::filesystem::create_symlink("victim", t.file("o.bin.calibrating"));
  expect_failure(1, with(text), {"o.bin.calibrating: "});
  std::filesystem::remove(t.file("o.bin.calibrating"));
  std::filesystem::create_symlink("victim", t.file("o.bin.self"));
  EXPECT_EQ(convert(with("self")).status, 0);
  EXPECT_EQ(read_file(victim), "mine");
  EXPECT_EQ(t.list(), "o.bin\no.bin.self\ntext\nvictim\n");
}

TEST(ConvertCalibrate, LeavesNothingIfOutOfMemory) {
  if (kSanitized) GTEST_SKIP() << "sanitizers need more addresses";
  const TemporaryFolder t;
  const std::string text = t.write("text", long_text(300));
  for (int megabytes = 14; megabytes < 36; megabytes += 3) {
    const ProgramResult r =
        run_program({"sh", "-c", "ulimit -v $0; exec \"$@\"", std::to_string(megabytes * 1024), POCKET_CONVERT,
                     "--random", "tiny", "-o", t.file("o.bin"), "--calibrate", text});
    EXPECT_EQ(r.status, 1) << megabytes << r.err;
    const bool resumable = r.err.find("out of memory; repeat the command to resume\n") != std::string::npos;
    EXPECT_TRUE(resumable || r.err.find("convert: out of memory\n") != std::string::npos) << megabytes << r.err;
    EXPECT_EQ(t.list(), resumable ? "o.bin.calibrating\ntext\n" : "text\n") << megabytes;
    std::filesystem::remove(t.file("o.bin.calibrating"));
  }
}

// ---- models/get: its downloads are tested in tests/models/test_get.py ----

ProgramResult get(std::vector<std::string> args) {
  args.insert(args.begin(), std::string(POCKET_SOURCE_DIR) + "/models/get");
  return run_program(args);
}

TEST(ModelsGet, ListsModels) {
  const ProgramResult r = get({});
  EXPECT_EQ(r.status, 0) << r.err;
  for (const char* word : {"smollm2-135m-instruct", "tinyllama-1.1b-chat", "Apache-2.0", "1.1 B", "MB"})
    EXPECT_NE(r.out.find(word), std::string::npos) << word;
}

/// The lines of the catalogue, as their fields.
std::vector<std::vector<std::string>> catalogue() {
  std::vector<std::vector<std::string>> all;
  std::istringstream lines(read_file(std::string(POCKET_SOURCE_DIR) + "/models/catalogue.txt"));
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line[0] == '#') continue;
    std::vector<std::string> fields = {""};
    for (size_t i = 0; i < line.size(); i++)
      if (line.compare(i, 3, " | ") == 0) {
        fields.emplace_back();
        i += 2;
      } else {
        fields.back() += line[i];
      }
    EXPECT_EQ(fields.size(), 8u) << line;
    all.push_back(fields);
  }
  return all;
}

// The memory in the catalogue and in the documentation is that of a model file of the shape, as run --info shows it.
TEST(ModelsGet, CatalogueStatesMemory) {
  const std::string folder = std::string(POCKET_SOURCE_DIR) + "/", readme = read_file(folder + "README.md"),
                    list = read_file(folder + "models/README.md");
  const TemporaryFolder t;
  for (const std::vector<std::string>& fields : catalogue()) {
    const std::string &name = fields[0], &memory = fields[3], &type = fields[4];
    const std::string begin = "\n| `" + name + "` | " + fields[1] + " | ",
                      end = " | " + memory + " MB (" + type + ") | " + fields[5] + " | " + fields[6] + " |\n";
    for (const std::string& text : {list, readme}) {
      const size_t row = text.find(begin);
      if (row == std::string::npos && text == readme) continue;  // it shows some of the models
      ASSERT_NE(row, std::string::npos) << name;
      EXPECT_NE(text.substr(row, text.find('\n', row + 1) + 1 - row).find(end), std::string::npos) << name;
    }
    if (name == "stories260k") continue;  // no shape of --random
    std::string shape = name;
    for (const std::string end : {"-instruct", "-chat"})
      if (const size_t at = shape.rfind(end); at != std::string::npos) shape.resize(at);
    ASSERT_EQ(convert({"--random", shape, "--type", type, "--outline", "-o", t.file("m.bin")}).status, 0) << shape;
    const ProgramResult info = run_program({POCKET_RUN, t.file("m.bin"), "--info", "--threads", "2"});
    const size_t sum = info.out.find("\n  sum ");
    ASSERT_NE(sum, std::string::npos) << info.out << info.err;
    const double slack = kSanitized ? 1000 : 5;  // of the program itself
    EXPECT_NEAR(std::stod(info.out.substr(sum + 7)), std::stod(memory), slack) << name;
  }
}

TEST(ModelsGet, ReportsWrongUsage) {
  const struct {
    std::vector<std::string> args;
    int status;
    const char* word;
  } cases[] = {{{"gpt-5"}, 2, "gpt-5: not in the catalogue"},
               {{"--frm", "x"}, 2, "--frm"},
               {{"stories260k", "tinyllama-1.1b-chat"}, 2, "one model at a time"},
               {{"stories260k", "--from", "/no/such/folder"}, 1, "/no/such/folder"},
               {{"llama-3.2-1b-instruct"},
                1,
                "requires a login and consent to its licence; download it with: hf "
                "download meta-llama/Llama-3.2-1B-Instruct --local-dir FOLDER, then use: "
                "models/get llama-3.2-1b-instruct --from FOLDER"}};
  for (const auto& c : cases) {
    const ProgramResult r = get(c.args);
    EXPECT_EQ(r.status, c.status) << r.err;
    EXPECT_NE(r.err.find(c.word), std::string::npos) << r.err;
  }
}

// A name is compared as text: it is neither a pattern nor a path, and a message shows it on one line.
TEST(ModelsGet, RejectsNamesThatAreNotInTheCatalogue) {
  for (const char* name : {".*", "stories.60k", "stories260k |", "stories260k\n", "../stories260k", "", "# name",
                           "a\x1B[31m\xC2\x9B"
                           "31m"}) {
    const ProgramResult r = get({name});
    EXPECT_EQ(r.status, 2) << name;
    EXPECT_EQ(r.err.rfind("models/get: ", 0), 0u) << r.err;
    EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), 1) << r.err;
    EXPECT_EQ(count_controls(r.err), 0) << r.err;
  }
}

// The steps for a downloaded model, with local files.
TEST(ModelsGet, ConvertsFromFolder) {
  NEED_DATA(checkpoint, "stories260K.bin");
  const TemporaryFolder t;
  std::filesystem::copy_file(checkpoint, t.file("stories260K.bin"));
  std::filesystem::copy_file(data_path("tok512.model"), t.file("tok512.model"));
  const ProgramResult r = get({"stories260k", "--from", t.file(""), "-o", t.file("s.bin")});
  ASSERT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("Next:\n  ./run " + t.file("s.bin") + " -i"), std::string::npos) << r.err;
  EXPECT_EQ(run_program({POCKET_RUN, t.file("s.bin"), "-t", "0", "-n", "10", "-q"}).out,
            "Once upon a time, there was a little g");
}

TEST(ModelsGet, RejectsWrongFile) {
  NEED_DATA(checkpoint, "stories260K.bin");
  const TemporaryFolder t;
  std::string bytes = read_file(checkpoint);
  t.write("tok512.model", read_file(data_path("tok512.model")));
  t.write("stories260K.bin", bytes.substr(0, 1000));
  ProgramResult r = get({"stories260k", "--from", t.file(""), "-o", t.file("s.bin")});
  EXPECT_EQ(r.status, 1);
  EXPECT_NE(r.err.find("stories260K.bin: expected 1056540 bytes, found 1000"), std::string::npos) << r.err;
  bytes[5000] ^= 1;
  t.write("stories260K.bin", bytes);
  r = get({"stories260k", "--from", t.file(""), "-o", t.file("s.bin")});
  EXPECT_EQ(r.status, 1);
  EXPECT_NE(r.err.find("expected SHA-256"), std::string::npos) << r.err;
  EXPECT_FALSE(std::filesystem::exists(t.file("s.bin")));
}

}  // namespace convert_test
