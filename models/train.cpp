// train.cpp: models/train, which trains a model on a text. See --help and README.md.
//
//   train_options.hpp   the command line
//   train_setup.hpp     texts, vocabulary, shape, weights and plan: from the options or from a checkpoint
//   training.hpp        the training loop
//   train_output.hpp    the model file or the adapter

#include "../export/program.hpp"
#include "train_options.hpp"
#include "training.hpp"

int main(int argc, char** argv) {
  using namespace pocket;
  platform::take_arguments(argc, argv);
  return guarded("train", [&] {
    const TrainOptions options = parse_train_options(argc, argv);
    if (options.help) return print_train_help();
    Training(options).run();
  });
}
