// main.cpp: ./run, the full command line around run.cpp. Chooses the action of the command line.
#include "chat.hpp"
#include "generate.hpp"
#include "measure.hpp"
#include "open_model.hpp"

namespace pocket::cli {

// --kernels.
inline void print_kernels() {
  for (const std::string& name : kernel_names()) std::printf("%s\n", name.c_str());
}

// Executes the action of the command line, for actions with a model. Throws Failure.
inline void execute(Job& job) {
  const Arguments& a = job.args;
  check_distinct({a.logits, a.save, a.explain}, input_files(a));
  if (a.info) return print_info(job);
  if (a.is_given("--encode")) return print_ids(job);
  if (a.self_test) return self_test(job);
  if (!a.perplexity.empty()) return print_perplexity(job);
  if (!a.logits.empty()) return write_logits(job);
  if (a.chat()) return chat(job);
  generate_text(job);
}

// Executes the action of the command line. Throws Failure.
inline void dispatch(const Arguments& a) {
  if (a.help) return print_help();
  if (a.man) return print_man();
  if (a.version) return void(std::printf("run %s, model format %u\n", kVersion, kFormatVersion));
  if (a.kernels) return print_kernels();
  Job job(a, open_model(a));
  try {
    execute(job);
  } catch (const Failure& f) {
    if (!f.what.empty()) job.out.start_stderr_line();
    throw;
  }
}

}  // namespace pocket::cli

int main(int argc, char** argv) {
  using namespace pocket;
  platform::take_arguments(argc, argv);
  return guarded(
      "run", [&] { cli::dispatch(cli::parse(argc, argv)); }, cli::on_signal, "; or use --no-mmap");
}
