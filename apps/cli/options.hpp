// options.hpp: the options of ./run: their table, --help and the man page, and the checks of the command line.
#pragma once

#include "../../export/engine.hpp"
#include "../../export/lora.hpp"
#include "../../export/program.hpp"
#include "../../models/instruction.hpp"

namespace pocket::cli {

// The command line. A text option that was not given is "".
struct Arguments {
  std::string model;                       // path of the model file
  std::string prompt, file, ids;           // the three forms of a prompt
  std::string words, features, summary;    // an instruction, which becomes the prompt
  std::string mode = "generate";           // or chat
  std::string system, chat_template;       // of a chat
  std::string save, resume;                // session files
  std::string tokenizer;                   // a SentencePiece file in place of the model's own tokenizer
  std::string kernel, kv = "auto", seed;   // seed: a number; "": the time
  std::string draft;                       // a model file
  std::string grammar, schema;             // files that constrain the text
  std::string explain;                     // a page or JSON file
  std::string logits, perplexity, encode;  // logits, perplexity: a file; encode: a text
  std::vector<std::string> stop, lora;
  int max_tokens = -1;  // new tokens; 0: until the context is full; -1: the default of the mode
  int top_k = 0, top = 0, threads = 0, context = 0, batch = 256;
  float temperature = 0.8f, top_p = 0.9f, min_p = 0, repeat_penalty = 1;
  bool no_mmap = false, lookup = false, json = false, quiet = false;
  bool info = false, self_test = false, kernels = false, help = false, man = false, version = false;

  std::vector<std::string> given;  // names of the options on the command line; "-m chat" is one

  bool is_given(std::string_view name) const { return std::find(given.begin(), given.end(), name) != given.end(); }
  bool chat() const { return mode == "chat"; }
  bool constrained() const { return !grammar.empty() || !schema.empty(); }
  bool guesses() const { return lookup || !draft.empty(); }
  Load load() const { return no_mmap ? Load::copy : Load::map; }
  bool has_instruction() const { return !words.empty() || !features.empty() || !summary.empty(); }
};

inline constexpr const char* kStoryBeginning = "Once upon a time";  // the prompt of ./run without arguments

inline constexpr Option<Arguments> kOptions[] = {
    {"", "", "model.bin -i \"It was\" -n 100 --stop \"The end\"", "Continue a text"},
    {"-i", "--prompt", "TEXT", "the beginning of the text; in a chat, the first message", &Arguments::prompt},
    {"-f", "--file", "FILE", "read the prompt from a file; - is standard input", &Arguments::file},
    {"-n", "--tokens", "N", "generate at most N tokens; 0: until the context is full [256; in a chat 0]",
     &Arguments::max_tokens, 0, 1e9},
    {"", "--stop", "TEXT", "stop before this text, or at this control token; may be given several times",
     &Arguments::stop},
    {"", "", "--words dog,cake,sad --features Dialogue", "Request a story (models trained on instructions)"},
    {"", "--words", "dog,cake,sad", "a story with these words", &Arguments::words},
    {"", "--features", "LIST", "a story with these features: Dialogue, Moral, Sad ending", &Arguments::features},
    {"", "--summary", "SENTENCE", "a story with this plot", &Arguments::summary},
    {"", "", "model.bin -m chat -y \"Answer in rhyme.\"", "Chat"},
    {"-m", "--mode", "MODE", "generate (continue a text) or chat (reply to messages; /help lists its commands)",
     &Arguments::mode},
    {"-y", "--system", "TEXT", "system prompt [the model's]", &Arguments::system},
    {"", "--template", "NAME", "the layout of a family: plain, chatml, llama-3, ... (a wrong name lists all) [its own]",
     &Arguments::chat_template},
    {"", "", "model.bin --resume story.session -n 100 --save story.session", "Save and resume"},
    {"", "--save", "FILE", "save the session at the end of the text, or at Ctrl-C", &Arguments::save},
    {"", "--resume", "FILE", "continue a saved session; as if uninterrupted with the same options; -i adds text",
     &Arguments::resume},
    {"", "", "model.bin -i \"The sea\" -t 1.2 --min-p 0.1 -s 7", "Sampling"},
    {"-t", "--temperature", "T", "0: always the most likely token; 1: the model's own probabilities [0.8]",
     &Arguments::temperature, 0, 100},
    {"-p", "--top-p", "P", "sample from the most likely tokens with total probability P; 1: from all [0.9]",
     &Arguments::top_p, 0, 1},
    {"-k", "--top-k", "K", "sample from the K most likely tokens; 0: from all [0]", &Arguments::top_k, 0, 1e9},
    {"", "--min-p", "P", "drop tokens less likely than P times the most likely one [0]", &Arguments::min_p, 0, 1},
    {"-r", "--repeat-penalty", "R", "make the last 64 tokens less likely; 1: off, 1.1: slightly [1]",
     &Arguments::repeat_penalty, 0.01, 100},
    {"-s", "--seed", "N", "random seed; the same seed gives the same text on every machine [the time]",
     &Arguments::seed},
    {"", "", "model.bin -m chat --schema person.json", "Constrained output"},
    {"", "--grammar", "FILE", "write only texts of this grammar, in llama.cpp's format GBNF (apps/grammar/README.md)",
     &Arguments::grammar},
    {"", "--schema", "FILE", "write only JSON that is valid by this JSON Schema; a schema {} allows any JSON",
     &Arguments::schema},
    {"", "", "model.bin --lora pirate --lora rhymes:0.5 -m chat", "Adapters"},
    {"", "--lora", "FOLDER[:SCALE]", "add a LoRA adapter saved by PEFT or models/train, times SCALE [1]; repeatable",
     &Arguments::lora},
    {"", "", "model.bin -f letter.txt --lookup --threads 4", "Speed and memory"},
    {"", "--threads", "N", "number of threads [one per CPU]", &Arguments::threads, 1, 256},
    {"", "--ctx", "N", "context size in tokens [the size the model was trained for]", &Arguments::context, 1, 1 << 22},
    {"", "--kv", "TYPE", "type of the KV cache: q8, f32 or auto (f32 for f32 models, else q8) [auto]", &Arguments::kv},
    {"", "--kernel", "NAME", "a name from --kernels [the first]; reference: the plain forward pass of run.cpp, slow",
     &Arguments::kernel},
    {"", "--no-mmap", "", "read the model into memory instead of mapping its file, which may then change",
     &Arguments::no_mmap},
    {"", "--lookup", "", "predict tokens from repetitions in the text: the same text, sooner", &Arguments::lookup},
    {"", "--draft", "FILE", "predict tokens by a smaller model with the same vocabulary: the same text, sooner",
     &Arguments::draft},
    {"", "", "model.bin -i \"2 + 2 =\" -n 3 -t 0 --top 5 --json 2> figures.json", "Figures on stderr"},
    {"", "--top", "N", "list the N most likely tokens at each step, with their probabilities", &Arguments::top, 0,
     1000},
    {"", "--json", "", "print the figures as one JSON object, which includes the lists of --top", &Arguments::json},
    {"-q", "--quiet", "", "do not print the line of figures", &Arguments::quiet},
    {"", "", "model.bin -i \"The cat sat\" -n 40 --explain page.html", "Look inside the model"},
    {"", "--explain", "FILE", "write a page on how the model made this text, at most 512 tokens; .json: the data",
     &Arguments::explain},
    {"", "", "model.bin --info --ctx 2048", "Other actions, in place of a text"},
    {"", "--info", "", "describe the model file, and the memory that this context takes", &Arguments::info},
    {"", "--selftest", "", "verify the checksum of the tensors and the logits of every kernel set",
     &Arguments::self_test},
    {"", "--perplexity", "FILE", "perplexity of the model on a text, in windows of 512 tokens, or of a smaller context",
     &Arguments::perplexity},
    {"", "--encode", "TEXT", "print the token ids of a text", &Arguments::encode},
    {"", "--kernels", "", "list the kernel sets that this CPU supports, fastest first", &Arguments::kernels},
    {"-h", "--help", "", "print this help", &Arguments::help},
    {"", "--man", "", "print this help as a man page in troff: run --man | man -l -", &Arguments::man},
    {"", "--version", "", "print the version of the program and of the model format", &Arguments::version},
    {"", "", "model.bin --ids 1,306,4658 --logits logits.f32", "Tests and scripts"},
    {"", "--ids", "1,306,...", "the prompt as token ids; no token is added", &Arguments::ids},
    {"", "--logits", "FILE", "write the logits of the prompt, float32 (tokens, vocab_size), and exit",
     &Arguments::logits},
    {"", "--batch", "N", "prompt tokens per forward pass [256]; does not change the text", &Arguments::batch, 1, 1e9},
    {"-z", "--tokenizer", "FILE", "use this SentencePiece .model in place of the model's own tokenizer",
     &Arguments::tokenizer},
};

// ---- Help ----

inline constexpr const char* kExamples[][2] = {
    {"", "tell a story"},
    {"model.bin -i \"Once upon a time\"", "continue a text"},
    {"model.bin -m chat", "chat; type /help for its commands"},
    {"model.bin -i \"2 + 2 =\" -t 0 -n 5", "five tokens, each the most likely one"},
    {"model.bin -f letter.txt -n 100 -q", "continue a file, and print only the text"},
    {"model.bin --info", "describe a model, and the memory it takes"},
};
inline constexpr const char* kNotes =
    "Without a model, run uses the small story model that ships with it, models/stories.bin, and begins a\n"
    "story. A model that is named begins with nothing if there is no prompt. A chat requires a named model.\n"
    "models/get downloads larger models, export/convert makes a model.bin from a checkpoint, and models/train trains\n"
    "one on a text. The text is printed on stdout, everything else on stderr.\n"
    "Exit status: 0 success, 1 failure, 2 wrong usage, 130 interrupted.\n";

// --help.
inline void print_help() {
  std::printf("run: a language model on a CPU\n\n");
  for (const auto& [arguments, help] : kExamples) std::printf("  run %-38s %s\n", arguments, help);
  std::printf("\n%s", kNotes);
  print_options(kOptions, "run");
}

// --man. The program is installed as pocketllama.
inline void print_man() {
  std::printf(".TH POCKETLLAMA 1 \"\" \"pocketllama %s\"\n.SH NAME\npocketllama \\- a language model on a CPU\n",
              kVersion);
  std::printf(".SH SYNOPSIS\n.B pocketllama\n.RI [ model.bin ]\n[options]\n.SH DESCRIPTION\n%s",
              man_text(kNotes).c_str());
  print_man_options(kOptions, "pocketllama");
  std::printf(".SH EXAMPLES\n");
  for (const auto& [arguments, help] : kExamples) {
    std::printf(".PP\n%s:\n", man_text(help).c_str());
    print_man_example("pocketllama " + std::string(arguments));
  }
}

// ---- Checks ----

// The comma-separated names of an option, without the spaces around them. Throws Failure.
inline std::vector<std::string> split_names(const char* option, const std::string& list) {
  std::vector<std::string> names;
  if (list.empty()) return names;
  for (const std::string& part : split(list)) {
    names.push_back(trimmed(part));
    if (names.back().empty()) throw Failure{2, std::string(option) + ": expected a name between the commas"};
  }
  return names;
}

// Makes the prompt of --words, --features and --summary. Throws Failure.
inline void set_instruction_prompt(Arguments& a) {
  const Instruction instruction = {split_names("--words", a.words), split_names("--features", a.features), a.summary};
  for (const std::string& f : instruction.features)
    if (std::find(std::begin(kFeatures), std::end(kFeatures), f) == std::end(kFeatures))
      throw Failure{2, "--features: expected a list of " + feature_names() + ", found '" + f + "'"};
  if (a.chat() || a.is_given("--prompt") || !a.file.empty() || !a.ids.empty())
    throw Failure{2, "--words, --features and --summary make the prompt; remove -i, -f, --ids and -m chat"};
  a.prompt = instruction_prompt(instruction);
  const auto is_control = [](char c) { return uint8_t(c) < 32 && c != '\n'; };
  const size_t lines = size_t(std::count(a.prompt.begin(), a.prompt.end(), '\n'));
  const size_t parts = size_t(!a.words.empty()) + !a.features.empty() + !a.summary.empty();
  if (lines > parts || std::any_of(a.prompt.begin(), a.prompt.end(), is_control))
    throw Failure{2, "--words, --features and --summary: expected one line each, found a line break or a tab"};
}

// The model that ships with the program: models/stories.bin beside the program, or where `make install` puts it. "" if
// there is none.
inline std::string shipped_model() {
  const std::string path = platform::program_path(), folder = path.empty() ? "" : folder_of(path);
  for (const char* name : {"models/stories.bin", "../share/pocketllama/stories.bin"})
    if (const std::string file = join_path(folder, name); is_file(file)) return file;
  return "";
}

// The model and prompt of a command line that names none. From BOS alone the shipped model, which is trained on
// instructions, would write the header of an instruction first; a user expects a story. A model that is named starts
// from BOS, as in the small program of run.cpp. Throws Failure.
inline void set_defaults(Arguments& a) {
  if (!a.model.empty() || a.help || a.man || a.version || a.kernels) return;
  if (!a.chat()) a.model = shipped_model();
  if (a.model.empty())
    throw Failure{
        2, "no model given; try: models/get smollm2-135m-instruct, then: run models/smollm2-135m-instruct.bin -m chat"};
  const bool has_prompt = a.is_given("--prompt") || !a.file.empty() || !a.ids.empty() || a.has_instruction();
  if (!has_prompt && a.resume.empty() && a.logits.empty()) a.prompt = kStoryBeginning;
}

// Throws Failure if the value of an option is not in a list.
inline void check_choice(const char* option, const std::string& value, std::initializer_list<std::string_view> choices,
                         const char* list) {
  if (std::find(choices.begin(), choices.end(), value) == choices.end())
    throw Failure{2, std::string(option) + ": expected " + list + ", found '" + value + "'"};
}

// The files that are read, except for the session of --resume, which --save may replace.
inline std::vector<std::string> input_files(const Arguments& a) {
  std::vector<std::string> files = {a.model, a.draft, a.tokenizer, a.file, a.perplexity, a.grammar, a.schema};
  for (std::string& file : adapter_files(a.lora)) files.push_back(std::move(file));
  return files;
}

// Parses and checks the command line. Throws Failure.
inline Arguments parse(int argc, char** argv) {
  Arguments a;
  a.given = parse_options(argc, argv, kOptions, "quote the text after -i", a);
  check_choice("-m", a.mode, {"generate", "chat"}, "generate or chat");
  check_choice("--kv", a.kv, {"auto", "q8", "f32"}, "auto, q8 or f32");
  if (a.chat()) a.given.push_back("-m chat");
  if (!a.chat_template.empty() && !a.chat()) throw Failure{2, "--template is only valid with -m chat"};
  if (a.is_given("--prompt") + !a.file.empty() + !a.ids.empty() > 1)
    throw Failure{2, "-i, -f and --ids: expected only one of them"};
  if (a.is_given("--system") && !a.chat()) throw Failure{2, "--system is only valid with -m chat"};
  std::string action;
  for (const char* name : {"--info", "--encode", "--selftest", "--perplexity", "--logits", "--kernels"})
    if (a.is_given(name)) {
      if (!action.empty()) throw Failure{2, action + " and " + name + ": expected only one of them"};
      action = name;
    }
  for (const char* option : {"--resume", "--save", "--explain", "-m chat", "--grammar", "--schema", "--lookup",
                             "--draft", "--stop", "--top"})
    if (!action.empty() && a.is_given(option))
      throw Failure{2, std::string(option) + " is not valid with " + action + ", which writes no text"};
  if (!a.perplexity.empty() && a.is_given("--ctx"))
    throw Failure{2, "--ctx is not valid with --perplexity, whose windows have 512 tokens; remove it"};
  if (!a.lora.empty() && a.self_test) throw Failure{2, "--selftest is of the model itself; remove --lora"};
  if (!a.grammar.empty() && !a.schema.empty()) throw Failure{2, "--grammar and --schema: expected only one of them"};
  if (a.has_instruction()) set_instruction_prompt(a);
  if (!a.explain.empty() && !a.resume.empty())
    throw Failure{2, "--explain is not valid with --resume: a saved session has no numbers of its earlier tokens"};
  for (const char* option : {"--ids", "--save", "--resume", "--top"})
    if (a.chat() && a.is_given(option))
      throw Failure{2, std::string(option) + " is not valid in a chat" +
                           (a.save.empty() && a.resume.empty() ? "" : ", which has /save and /load") +
                           "; remove it, or -m chat"};
  set_defaults(a);
  return a;
}

}  // namespace pocket::cli
