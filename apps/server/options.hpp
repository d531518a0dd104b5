// options.hpp: the command line of serve.
#pragma once

#include "../openai/service.hpp"

namespace pocket::server {

// A text option that was not given is "".
struct Arguments : openai::ModelArguments {
  std::string host = "127.0.0.1", api_keys;
  std::vector<std::string> allow_host, allow_origin;
  int port = 8080, queue = 128, kept = 16, connections = 256;
  bool log_prompts = false, quiet = false, help = false, version = false;
};

using Shared = openai::ModelOptions<Arguments>;

inline constexpr Option<Arguments> kOptions[] = {
    {"", "", "model.bin --port 8000", "Address"},
    {"", "--host", "ADDRESS", "address to listen on; others than 127.0.0.1 require --api-keys [127.0.0.1]",
     &Arguments::host},
    {"", "--port", "N", "port to listen on; 0: any free one, which is printed [8080]", &Arguments::port, 0, 65535},
    {"", "", "model.bin --host 0.0.0.0 --api-keys keys.txt --allow-host llm.example.org", "Access"},
    {"", "--api-keys", "FILE", "keys, one per line, of which each request needs one", &Arguments::api_keys},
    {"", "--allow-host", "NAME", "accept requests to this name, besides localhost and IP addresses (repeatable)",
     &Arguments::allow_host},
    {"", "--allow-origin", "ORIGIN", "let web pages of this origin use the server (CORS; repeatable)",
     &Arguments::allow_origin},
    {"", "", "model.bin --name tiny --ctx 4096 --kv f32", "What changes replies"},
    Shared::kName,
    Shared::kContext,
    Shared::kKv,
    {"", "", "model.bin --parallel 32 --memory 4GB", "Speed and memory, which change no reply"},
    Shared::kParallel,
    {"", "--queue", "N", "replies that may wait for their turn; more get status 429 [128]", &Arguments::queue, 0, 4096},
    Shared::kMemory,
    {"", "--kept", "N", "ended conversations that are kept, to continue them faster; 0: none [16]", &Arguments::kept, 0,
     1024},
    {"", "--connections", "N", "connections at once, a thread each; more get status 503 [256]", &Arguments::connections,
     4, 900},
    Shared::kThreads,
    Shared::kKernel,
    Shared::kNoMmap,
    {"", "", "", "Log"},
    {"", "--log-prompts", "", "print requests and replies on stderr, with all their texts", &Arguments::log_prompts},
    {"-q", "--quiet", "", "print no line per request", &Arguments::quiet},
    {"-h", "--help", "", "print this help", &Arguments::help},
    {"", "--version", "", "print the version of the program and of the model format", &Arguments::version},
};

inline constexpr const char* kHelp =
    "serve: a language model on a CPU for the programs that know OpenAI's API\n"
    "\n"
    "  serve model.bin                                           a chat for your browser: http://127.0.0.1:8080\n"
    "  serve model.bin --port 8000                               the API: http://127.0.0.1:8000/v1\n"
    "\n"
    "  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\\n"
    "    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"What is rain?\"}], \"seed\": 5}'\n"
    "\n"
    "Routes: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models, /tokenize, /detokenize,\n"
    "/tokenizer_info, /health, /metrics, and a page to chat at /. A request with a seed gets the same bytes every "
    "time,\n"
    "whatever else is being served, on every machine. No data leaves the machine, and no prompt is written anywhere\n"
    "unless --log-prompts is given. Ctrl-C ends the server after the replies that are running; twice, at once.\n"
    "\n"
    "Exit status: 0 ended by Ctrl-C or SIGTERM, 1 failure, 2 wrong usage.\n";

inline void print_help() {
  std::printf("%s", kHelp);
  print_options(kOptions, "serve");
}

// Parses and checks the command line. Throws Failure.
inline Arguments parse(int argc, char** argv) {
  Arguments a;
  parse_options(argc, argv, kOptions, "a server has one model", a);
  if (a.help || a.version) return a;
  a.check();
  if (a.model.empty()) throw Failure{2, "expected a model: serve model.bin; see --help"};
  return a;
}

}  // namespace pocket::server
