// options.hpp: the command line of run-batch.
#pragma once

#include "../openai/service.hpp"

namespace pocket::batch {

struct Arguments : openai::ModelArguments {
  std::string input, output;
  bool unordered = false, overwrite = false, quiet = false, help = false, version = false;
};

using Shared = openai::ModelOptions<Arguments>;

inline constexpr Option<Arguments> kOptions[] = {
    {"", "", "model.bin -i requests.jsonl -o results.jsonl --overwrite", "Files"},
    {"-i", "--input", "FILE", "requests, one JSON object per line; - is standard input", &Arguments::input},
    {"-o", "--output", "FILE", "results; - is standard output, which cannot be resumed", &Arguments::output},
    {"", "--unordered", "", "results in the order in which they finish [the order of the requests]",
     &Arguments::unordered},
    {"", "--overwrite", "", "replace the file of results if it exists", &Arguments::overwrite},
    Shared::kName,
    {"", "", "model.bin -i requests.jsonl -o results.jsonl --ctx 4096 --kv f32", "What changes results"},
    Shared::kContext,
    Shared::kKv,
    {"", "", "model.bin -i requests.jsonl -o results.jsonl --memory 2GB", "Speed and memory, which change no result"},
    Shared::kParallel,
    Shared::kMemory,
    Shared::kThreads,
    Shared::kKernel,
    Shared::kNoMmap,
    {"-q", "--quiet", "", "print neither progress nor the summary", &Arguments::quiet},
    {"-h", "--help", "", "print this help", &Arguments::help},
    {"", "--version", "", "print the version of the program and of the model format", &Arguments::version},
};

inline constexpr const char* kHelp =
    "run-batch: replies to a file of requests with a language model on a CPU\n"
    "\n"
    "  run-batch model.bin -i requests.jsonl -o results.jsonl\n"
    "\n"
    "The files are those of OpenAI's Batch API and of `vllm run-batch`. A line of requests.jsonl is\n"
    "\n"
    "  {\"custom_id\": \"a\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", \"body\":\n"
    "   {\"messages\": [{\"role\": \"user\", \"content\": \"What is rain?\"}], \"max_tokens\": 100}}\n"
    "\n"
    "without the line break, and its line of results.jsonl\n"
    "\n"
    "  {\"id\": ..., \"custom_id\": \"a\", \"response\": {\"status_code\": 200, \"request_id\": ..., \"body\":\n"
    "   {..., \"choices\": [{\"message\": {\"role\": \"assistant\", \"content\": \"Rain is\"}, ...}], ...}}, "
    "\"error\": null}\n"
    "\n"
    "A line with a mistake gets an error in place of a reply, and the others are not affected. The url may also be\n"
    "/v1/completions, with a `prompt` to continue. After an interruption of any kind, repeat the command to resume: "
    "finished\n"
    "results are in results.jsonl.partial. A result depends on its request, the model and the options below that "
    "change\n"
    "results: it is the same for any number of requests at once, order of the file, number of threads and machine.\n"
    "\n"
    "Exit status: 0 all requests have a result, 1 failure, 2 wrong usage, 130 interrupted.\n";

inline void print_help() {
  std::printf("%s", kHelp);
  print_options(kOptions, "run-batch");
}

// Parses and checks the command line. Throws Failure.
inline Arguments parse(int argc, char** argv) {
  Arguments a;
  parse_options(argc, argv, kOptions, "requests are given with -i", a);
  if (a.help || a.version) return a;
  a.check();
  if (a.model.empty() || a.input.empty() || a.output.empty())
    throw Failure{2, "expected a model, -i and -o: run-batch model.bin -i requests.jsonl -o results.jsonl; see --help"};
  return a;
}

}  // namespace pocket::batch
