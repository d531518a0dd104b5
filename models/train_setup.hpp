// train_setup.hpp: sets up a training: from the options, the texts and the models that they name, or from a checkpoint.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "draft.hpp"
#include "megabyte/trained_megabyte.hpp"
#include "own_text.hpp"
#include "train_texts.hpp"
#include "training_state.hpp"

namespace pocket {

// The parts of a training. All functions throw Failure.
class TrainingSetup {
 public:
  // The options outlive the object.
  explicit TrainingSetup(const TrainOptions& options) : o(options), start_(seconds()) {}

  // Reads the texts and sets up a new training, or the training of the checkpoint.
  void prepare() {
    const std::vector<std::string> outputs = {o.output, o.checkpoint, o.loss_table(), o.loss_chart()};
    check_distinct(outputs, {o.model, o.valid, o.init, o.teacher, o.tokenizer, o.own_text, o.messages});
    if (std::find(outputs.begin(), outputs.end(), o.own_text) != outputs.end())
      throw Failure{2, "--own-text: expected another file than those of the draft, found " + o.own_text};
    if (o.draft()) open_teacher();
    Texts stories = o.draft() ? Texts() : read_texts(o);
    o.resume ? resume(stories) : begin(stories);
  }

  // For examples the mean: they do not fill their windows.
  int64_t tokens_per_step() const { return tokens_per_step_; }
  std::vector<Window> next_batch() { return next_batch(*stream); }
  std::string teacher_failure() const { return teacher ? teacher->failure() : ""; }

  const TrainOptions& o;
  TrainPlan plan = {};
  TrainProgress progress;
  ModelTexts texts;
  Tokenizer tokenizer;
  ChatTemplate chat;  // of --init, else empty
  TokenText train, valid;
  std::vector<Window> validation;         // empty if no token counts
  std::unique_ptr<ModelTeacher> teacher;  // null: none
  OwnTextFile own_text;                   // of a draft: what its teacher wrote,
  DraftVocabulary draft_vocabulary;       // the tokens that it is trained on,
  std::unique_ptr<StoredTeacher> stored;  // and the teacher's probabilities; else null
  std::unique_ptr<TrainedArchitecture> architecture;
  std::unique_ptr<LearnedWeights> weights;
  std::unique_ptr<Trainer> trainer;
  std::unique_ptr<WindowStream> stream;

 private:
  // Checks the names of all files that will be written, before the work.
  void check_outputs(bool adapter) const {
    using Access = OutputFile::Access;
    std::string error;
    const bool good =
        (adapter ? check_adapter_folder(o.output, error) : check_output(o.output, Access::random, error)) &&
        check_output(o.checkpoint, Access::random, error) && check_output(o.loss_table(), Access::sequential, error) &&
        check_output(o.loss_chart(), Access::sequential, error);
    if (!good) throw Failure{1, error};
  }

  // Refuses to replace the checkpoint of an interrupted training, and any file that is not a checkpoint.
  void keep_unfinished() const {
    CheckpointFile file;
    std::string error;
    if (!exists(o.checkpoint)) return;
    if (!file.read(o.checkpoint, error))
      throw Failure{1, error + "; to start a new training, delete the file or give another --checkpoint"};
    const int64_t step = file.progress.step, steps = file.plan.steps;
    if (step > 0 && step < steps)
      throw Failure{1, o.checkpoint + ": has the state of a training after step " + std::to_string(step) + " of " +
                           std::to_string(steps) +
                           "; to continue it, use --resume; to start another one, delete the file"};
  }

  void begin(Texts& stories) {
    std::string error;
    check_outputs(o.lora_rank > 0);
    keep_unfinished();
    open_init();
    plan.seed = uint64_t(number("--seed", o.seed, 0, 9e15, true));
    plan.instruct = o.instruct;
    plan.examples = has_examples(o.text());
    plan.loss_on_all = plan.examples && o.loss_on == "all";
    plan.keep_best = o.keep == "best";
    plan.smoothing = o.smoothing;
    plan.dropout = o.dropout;
    if (plan.instruct) add_instructions(stories, plan.seed);
    if (!o.teacher.empty() && !teacher) open_teacher();
    texts.chat = init->chat_bytes();
    texts.provenance = init->provenance();
    load_tokenizer(tokenizer_for(o, stories, *init, teacher ? &teacher->model() : nullptr));
    if (o.draft()) write_own_text();
    plan_shape(stories.bytes.size());
    open_texts(stories);
    plan_training();
    create();
    if (o.init.empty())
      architecture->initialize(*weights, plan.seed);
    else if (!plan.base && !load_weights(*init, o.init, *weights, error))
      throw Failure{1, error};
    if (!plan.base) init.reset();  // its pages count as memory of the program
    initialize(weights->adapters, plan.seed);
    trainer->repack();
    plan_steps();
  }

  void open_init() {
    if (o.init.empty()) return;
    if (!init->open(o.init.c_str())) throw Failure{1, init->error};
    if (std::string error; !check_has_weights(*init, o.init, error)) throw Failure{1, error};
  }

  // The frozen model of an adapter, which the checkpoint does not contain.
  void resume_init() {
    if (!plan.base && !o.init.empty())
      throw Failure{2, "--init: is not valid with --resume, which keeps the earlier value"};
    if (plan.base && o.init.empty())
      throw Failure{2, "--resume: requires --init MODEL, the model file that the adapter is trained for"};
    open_init();
    if (plan.base && init->checksum() != plan.base)
      throw Failure{1, o.init + ": is not the model of this training; give the same file"};
  }

  void resume(Texts& stories) {
    CheckpointFile file;
    std::string error;
    if (!file.read(o.checkpoint, error)) throw Failure{1, error};
    plan = file.plan;
    progress = file.progress;
    check_outputs(plan.lora.rank > 0);
    resume_init();
    for (const std::string name : {"--type", "--licence"})
      if (plan.lora.rank > 0 && o.is_given(name.c_str()))
        throw Failure{2, name + ": is not valid for an adapter; export/convert --lora makes a model of it"};
    if (plan.examples != has_examples(o.text()))
      throw Failure{1, o.checkpoint + ": is of a training on other texts; give the same text"};
    if (plan.instruct) add_instructions(stories, plan.seed);
    if (plan.architecture == kMegabyte && file.texts.tokenizer != Tokenizer::to_blob(byte_vocabulary()))
      throw Failure{1, o.checkpoint + ": tokenizer: expected the 256 bytes, found another"};
    texts = file.texts;
    load_tokenizer(texts.tokenizer);
    resume_draft();
    open_texts(stories);
    if (hash_of(train) != plan.text_hash || hash_of(valid) != plan.valid_hash)
      throw Failure{1, o.checkpoint + ": is of a training on other texts; give the same " +
                           (o.valid.empty() ? "text, and --valid if it was given" : "text and --valid")};
    if (!o.teacher.empty() || (plan.distill.teacher && progress.step < plan.steps)) resume_teacher();
    create();
    file.restore(*weights, *trainer);
    stream->seek(progress.epoch, progress.index);
    if (progress.index > stream->windows())
      throw Failure{1, o.checkpoint + ": index: expected 0 to " + std::to_string(stream->windows()) + ", found " +
                           std::to_string(progress.index)};
    std::fprintf(stderr, "train: resuming after step %lld of %lld\n", static_cast<long long>(progress.step),
                 static_cast<long long>(plan.steps));
  }

  void load_tokenizer(const std::string& blob) {
    texts.tokenizer = blob;
    if (!tokenizer.load(texts.tokenizer)) throw Failure{1, tokenizer.error};
    if (texts.chat.empty()) return;
    if (!chat.load(texts.chat, o.resume ? plan.config.vocab_size : init->config.vocab_size))
      throw Failure{1, o.init + ": " + chat.error};
    if (!tokenizer.make_control(chat.ids())) throw Failure{1, tokenizer.error};
  }

  void open_teacher() {
    teacher = std::make_unique<ModelTeacher>();
    if (!teacher->open(o.teacher)) throw Failure{1, teacher->error};
  }

  OwnTextSource text_source() const {
    return {teacher->model().config.vocab_size, teacher->model().checksum(), plan.seed};
  }

  // The text of a new draft: what the file has, and as much as is missing.
  void write_own_text() {
    std::string error;
    Messages messages;
    if (!o.messages.empty() && !messages.read(o.messages, error)) throw Failure{1, error};
    OwnTextSource source = text_source();
    source.messages = messages.hash;
    const bool begun = exists(o.own_text);
    if (begun && !own_text.read(o.own_text, source)) throw Failure{1, own_text.error};
    const bool complete = own_text.count_tokens() >= o.own_tokens;
    const std::string others = own_text.source.messages ? "other" : "no";
    if (begun && !complete && own_text.source.messages != messages.hash)
      throw Failure{1, o.own_text + ": was begun with " + others + " --messages; to continue, give the same"};
    if (begun && !o.messages.empty() && own_text.source.messages != messages.hash)
      throw Failure{1, o.own_text + ": was written with " + others + " --messages; give another --own-text"};
    const TextSource writer(teacher->model(), tokenizer, begun ? own_text.source.seed : source.seed, messages);
    if (!own_text.open(o.own_text, begun ? nullptr : &source)) throw Failure{1, own_text.error};
    if (!complete) OwnTextWriter(writer, own_text, o.threads).write(o.own_tokens);
    start_ = seconds();
    plan.distill.texts = int64_t(own_text.count_texts(o.own_tokens));
    use_own_text();
  }

  void resume_draft() {
    if (o.draft() != (plan.distill.texts > 0))
      throw Failure{2, o.draft() ? "--resume: the training has a text; give the same text"
                                 : "--resume: the training is of a draft; give --teacher and no text"};
    if (!o.draft()) return;
    if (!own_text.read(o.own_text, text_source())) throw Failure{1, own_text.error};
    if (own_text.texts.size() < size_t(plan.distill.texts))
      throw Failure{1, o.own_text + ": expected the " + std::to_string(plan.distill.texts) +
                           " texts of this training, found " + std::to_string(own_text.texts.size())};
    use_own_text();
  }

  void use_own_text() {
    own_text.texts.resize(size_t(plan.distill.texts));
    draft_vocabulary = DraftVocabulary(own_text.texts, teacher->model().config.vocab_size);
  }

  void resume_teacher() {
    if (!plan.distill.teacher) throw Failure{2, "--teacher: the training has no teacher; leave it out"};
    if (o.teacher.empty()) throw Failure{2, "--teacher: the training has a teacher; give the same model"};
    if (!teacher) open_teacher();
    if (teacher->model().checksum() != plan.distill.teacher)
      throw Failure{1, o.teacher + ": is not the teacher of this training; give the same model"};
  }

  void plan_shape(size_t characters) {
    const TextSize size = o.draft() ? kDraftSize : size_for(characters);
    plan.architecture = o.megabyte() ? kMegabyte : kLlama;
    plan.context = o.context ? o.context : default_context();
    if (o.megabyte())
      plan.megabyte = megabyte_shape(o, size);
    else if (o.init.empty())
      plan.config = llama_shape(o, size, o.draft() ? draft_vocabulary.size() : tokenizer.size(), plan.context);
    else
      plan.config = init->config;
    if (std::string error; !check_trainable(plan.config, o.init, error)) throw Failure{1, error};
    plan.batch = o.batch;
    if (!o.init.empty() && plan.context > plan.config.max_seq_len)
      throw Failure{2, "--ctx: expected at most " + std::to_string(plan.config.max_seq_len) +
                           ", the context of the model, found " + std::to_string(plan.context)};
  }

  // The context of a Llama without --ctx.
  int default_context() const {
    int context = 256;
    if (!o.init.empty()) context = std::min(context, init->config.max_seq_len);
    if (teacher) context = std::min(context, teacher->model().config.max_seq_len);
    return context;
  }

  void open_texts(const Texts& stories) {
    if (o.draft()) return open_own_text();
    if (plan.architecture == kMegabyte) {
      architecture = std::make_unique<TrainedMegabyte>(plan.megabyte, tokenizer);
      reject_byte_0(stories.bytes, o.model);
      reject_byte_0(stories.valid_bytes, o.valid);
    } else {
      if (tokenizer.size() > plan.config.vocab_size)
        throw Failure{1, "tokenizer: expected at most the model's " + std::to_string(plan.config.vocab_size) +
                             " pieces, found " + std::to_string(tokenizer.size())};
      if (!o.resume && o.lora_rank > 0 && !init->all_f32) plan.base = init->checksum();
      if (plan.base)
        architecture = std::make_unique<TrainedFrozen>(*init, tokenizer);
      else
        architecture = std::make_unique<TrainedLlama>(plan.config, tokenizer);
    }
    if (plan.examples) {
      const ExampleReader reader(tokenizer, chat, plan.context, plan.loss_on_all);
      train = encode_examples(o.model, stories.train, stories.train_lines, reader);
      valid = encode_examples(o.valid.empty() ? o.model : o.valid, stories.valid, stories.valid_lines, reader);
    } else {
      train = encode_stories(stories.train, *architecture);
      valid = encode_stories(stories.valid, *architecture);
    }
  }

  // The last fiftieth of the texts is for validation.
  void open_own_text() {
    const OwnText* const texts = own_text.texts.data();
    const size_t count = own_text.texts.size(), kept = count - std::max<size_t>(count / 50, 1);
    train = draft_text(texts, texts + kept, draft_vocabulary, tokenizer);
    valid = draft_text(texts + kept, texts + count, draft_vocabulary, tokenizer);
    architecture = std::make_unique<TrainedDraft>(plan.config, tokenizer, draft_vocabulary, teacher->model());
    stored = std::make_unique<StoredTeacher>(draft_vocabulary.size());
  }

  void plan_training() {
    if (o.lora_rank > 0) plan_lora();
    if (teacher) plan.distill = {o.share, o.temperature, teacher->model().checksum(), plan.distill.texts};
    plan.adam.decay = double(o.decay);
    plan.adam.muon = o.optimizer == "muon";
    const bool tuned = !o.init.empty() && plan.lora.rank == 0;
    plan.rate = o.rate > 0 ? double(o.rate) : 0.003 * std::sqrt(128.0 / architecture->dim()) * (tuned ? 0.1 : 1);
    plan.text_hash = hash_of(train);
    plan.valid_hash = hash_of(valid);
  }

  void plan_lora() {
    LoraPlan& lora = plan.lora;
    std::string error;
    if (!allows_adapters(*init))
      throw Failure{2, "--lora-rank: not valid for " + o.init +
                           ": the weights of this model differ from those of the original checkpoint, to which "
                           "adapters apply; train a model of type f32 without --lora-rank"};
    lora.rank = o.lora_rank;
    lora.alpha = o.lora_alpha > 0 ? o.lora_alpha : float(o.lora_rank);
    if (!parse_lora_targets(o.lora_targets, lora.targets, error)) throw Failure{2, "--lora-targets: " + error};
    if (!check_lora(init->config, lora, error)) throw Failure{2, error};
    if (plan.instruct && !takes_instructions(init->provenance()))
      throw Failure{
          2, "--instruct: " + o.init + " was not trained on instructions; this cannot be recorded in an adapter"};
  }

  // Checks that the teacher has the student's tokens and a sufficient context.
  void check_teacher() const {
    const Model& m = teacher->model();
    if (m.tokenizer_bytes() != texts.tokenizer || m.config.vocab_size != plan.config.vocab_size)
      throw Failure{
          1, o.teacher + ": the vocabulary of the teacher differs from that of the model" +
                 (o.init.empty() && o.tokenizer.empty() ? "" : "; without --init and -z both use the teacher's")};
    if (plan.context > m.config.max_seq_len)
      throw Failure{2, "--ctx: expected at most " + std::to_string(m.config.max_seq_len) +
                           ", the context of the teacher, found " + std::to_string(plan.context)};
  }

  // Creates the objects of the plan.
  void create() {
    if (train.whole() || plan.examples) {
      if (train.ids.empty())
        throw Failure{
            1, o.text() + ": expected an example that fits --ctx " + std::to_string(plan.context) + ", found none"};
    } else if (train.ids.size() <= size_t(plan.context))
      throw Failure{1, o.text() + ": expected more " + architecture->unit() + "s than --ctx " +
                           std::to_string(plan.context) + ", found " + std::to_string(train.ids.size()) +
                           "; use a longer text or a smaller --ctx"};
    if (teacher && !stored) check_teacher();
    print_texts();
    print_model();
    if (teacher && !stored && !teacher->start(plan.distill, o.threads, plan.context)) throw Failure{1, teacher->error};
    Teacher* const source = stored ? static_cast<Teacher*>(stored.get()) : teacher.get();
    if (stored) stored->share = plan.distill.share;
    weights = architecture->new_weights();
    if (plan.lora.rank > 0) weights->adapt(adapters_for(plan.config, plan.lora));
    if (plan.base && teacher) throw Failure{2, "--teacher: is only valid for adapters of models of type f32"};
    validation = validation_windows(valid, plan.context);
    if (count_targets(validation) == 0) validation.clear();
    if (plan.keep_best && validation.empty())
      throw Failure{2, std::string("--keep best: requires validation texts; ") +
                           (o.draft() ? "give more --own-tokens" : "give some with --valid")};
    trainer = std::make_unique<Trainer>(*weights, o.threads, plan.context, *o.kernels(), source);
    trainer->cancelled = [] { return interrupted != 0; };
    trainer->set_smoothing(plan.smoothing);
    trainer->set_dropout(plan.dropout, plan.seed);
    if (plan.keep_best) trainer->best = Floats(weights->learned().size());
    stream = std::make_unique<WindowStream>(train, plan.context, plan.seed);
    tokens_per_step_ = int64_t(plan.batch) * plan.context;
    if (train.whole()) tokens_per_step_ = int64_t(train.ids.size()) * plan.batch / stream->windows();
  }

  void print_texts() const {
    char tokens[100] = "";
    const bool bytes = plan.architecture == kMegabyte;
    const char* const kind = stored ? "texts" : plan.examples ? "examples" : "stories";
    if (plan.examples)
      std::snprintf(tokens, sizeof tokens, " of completions, %zu tokens", train.ids.size());
    else if (!bytes)
      std::snprintf(tokens, sizeof tokens, ", %zu tokens (%.2f characters per token)", train.ids.size(),
                    double(train.bytes) / double(train.ids.size()));
    std::fprintf(stderr, "train: text: %zu %s, %.2f MB%s; validation: %zu %s, %zu %ss\n", train.begins.size(), kind,
                 double(train.bytes) / 1e6, tokens, valid.begins.size(), kind, bytes ? valid.bytes : valid.ids.size(),
                 architecture->unit());
  }

  void print_model() const {
    const std::vector<Parameter> all = parameters_of(plan);
    std::fprintf(stderr, "train: model: %.2f M parameters: %s --ctx %d\n", double(count_parameters(all)) / 1e6,
                 architecture->shape_options().c_str(), plan.context);
    if (stored) {
      Config whole = plan.config;
      whole.vocab_size = draft_vocabulary.whole_size();
      std::fprintf(stderr, "train: draft: these are of %d common tokens; with all %d tokens %.2f M parameters\n",
                   draft_vocabulary.size(), whole.vocab_size, double(count_parameters(whole)) / 1e6);
    }
    const Adapters adapters = adapters_for(plan.config, plan.lora);
    if (adapters.rank > 0)
      std::fprintf(stderr, "train: adapter: %.3f M parameters, rank %d, alpha %g; the model itself does not change\n",
                   double(count_parameters(adapters.parameters)) / 1e6, adapters.rank, double(plan.lora.alpha));
    const size_t pass = architecture->pass_bytes(plan.context, adapters.rank, teacher != nullptr);
    const std::vector<Parameter> none;
    size_t memory = Trainer::memory_bytes(plan.base ? none : all, adapters, pass, o.threads, plan.batch);
    if (plan.base) memory += init->bytes_per_token;
    if (teacher && !stored) {
      memory += teacher->memory_bytes(o.threads, plan.context);
      std::fprintf(stderr, "train: teacher: %.2f M parameters, --teacher-weight %g --temperature %g\n",
                   double(count_parameters(teacher->model().config)) / 1e6, double(plan.distill.share),
                   double(plan.distill.temperature));
    }
    std::fprintf(stderr, "train: memory: %.0f MB, %d threads\n", double(memory) / 1e6, o.threads);
  }

  std::vector<Window> next_batch(WindowStream& from) const {
    std::vector<Window> batch;
    for (int i = 0; i < plan.batch; i++) batch.push_back(from.next());
    return batch;
  }

  // Seconds of a step and of a validation, measured before the first step. Steps at the rate 0 do not change the weights.
  struct Speed {
    double step, validation;
  };
  Speed measure() {
    WindowStream windows(train, plan.context, plan.seed);
    const double start = seconds();
    trainer->evaluate(validation);
    const double evaluated = seconds();
    int done = 0;
    for (; done < 2 || (seconds() - evaluated < 3 && done < 100); done++) {
      const double loss = trainer->learn(next_batch(windows));
      const bool finite = std::isfinite(loss) && std::isfinite(trainer->gradient_norm());
      trainer->update(plan.adam, 0, done + 1);
      stop_if_interrupted();
      if (!finite && !o.init.empty())
        throw Failure{1, o.init +
                             ": the loss of this model is not finite before the training; the file is damaged, or "
                             "the model cannot process this text: see --selftest and --perplexity of run"};
    }
    const double learned = seconds();
    trainer->forget();
    return {(learned - evaluated) / done, evaluated - start};
  }

  // The number of steps and validations.
  void plan_steps() {
    const Speed speed = measure();
    const double parameters = double(count_parameters(weights->learned_parameters()));
    const double tokens = std::min(architecture->text_per_parameter() * parameters, 20.0 * double(train.ids.size()));
    double time = tokens / double(tokens_per_step()) * speed.step;  // of the training, seconds
    if (o.minutes > 0) time = double(o.minutes) * 60 - (seconds() - start_);
    if (o.steps) time = o.steps * speed.step;
    // Twenty validations, or as many as take a tenth of the time.
    const double validations = std::floor(std::max(1.0, std::min(20.0, 0.1 * time / std::max(speed.validation, 1e-9))));
    plan.steps = std::max<int64_t>(1, int64_t(tokens / double(tokens_per_step())));
    if (o.minutes > 0)
      plan.steps = int64_t(std::max(1.0, (time - validations * speed.validation) / (speed.step * 1.02)));
    if (o.steps) plan.steps = o.steps;
    plan.steps = std::min(plan.steps, kMostSteps);
    plan.warmup = std::min<int64_t>(200, plan.steps / 20);
    plan.every = o.every ? o.every : std::max<int64_t>(1, int64_t(std::ceil(double(plan.steps) / validations)));
    print_plan(speed, double(plan.steps) * speed.step + validations * speed.validation);
  }

  void print_plan(const Speed& speed, double time) const {
    const char* unit = architecture->unit();
    std::fprintf(stderr,
                 "train: plan: --steps %lld of %lld %ss (%.1f epochs), --lr %g --decay %g --batch %d --seed %llu; %.0f "
                 "%ss/s, about %s\n",
                 static_cast<long long>(plan.steps), static_cast<long long>(tokens_per_step()), unit,
                 double(plan.steps * tokens_per_step()) / double(train.ids.size()), plan.rate, plan.adam.decay,
                 plan.batch, static_cast<unsigned long long>(plan.seed), double(tokens_per_step()) / speed.step, unit,
                 duration_text(time).c_str());
  }

  std::unique_ptr<Model> init = std::make_unique<Model>();  // of --init; null once it is not needed
  int64_t tokens_per_step_ = 0;
  double start_;  // when the training began, for --minutes; the time to write text is not part of it
};

}  // namespace pocket
