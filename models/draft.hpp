// draft.hpp: a draft model: a small model that proposes the next tokens to a large one, its teacher, which checks them
// in one pass (speculative decoding; Leviathan et al. 2023, arxiv.org/abs/2211.17192). It learns from text that the
// teacher wrote, with the probabilities that were stored then (own_text_file.hpp), so that the teacher does not run again.
//
// Most of a draft is its vocabulary, the teacher's. Training uses only its common tokens (DraftVocabulary), which is
// several times as fast, and starts from the teacher's embedding table, reduced to the width of the draft.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "own_text_file.hpp"
#include "trained_architecture.hpp"

namespace pocket {

// The trained tokens of a draft: those that occur often enough in the teacher's text, in order of their ids, and one that
// stands for all others. It is never a target, so that a draft does not propose rare tokens.
class DraftVocabulary {
 public:
  static constexpr int kLeastOccurrences = 3;

  DraftVocabulary() = default;
  DraftVocabulary(const std::vector<OwnText>& texts, int vocab_size) : trained_(size_t(vocab_size)) {
    std::vector<int> occurrences(static_cast<size_t>(vocab_size));
    for (const OwnText& text : texts)
      for (const OwnToken& token : text) occurrences[size_t(token.id)]++;
    for (int id = 0; id < vocab_size; id++)
      if (occurrences[size_t(id)] >= kLeastOccurrences) ids_.push_back(id);
    for (int& i : trained_) i = rare();
    for (size_t i = 0; i < ids_.size(); i++) trained_[size_t(ids_[i])] = int(i);
  }

  int size() const { return int(ids_.size()) + 1; }
  int rare() const { return int(ids_.size()); }  // stands for all other tokens
  int whole_size() const { return int(trained_.size()); }
  int trained(int id) const { return trained_[size_t(id)]; }
  int id(int trained) const { return ids_[size_t(trained)]; }  // trained: not rare()

 private:
  std::vector<int> trained_, ids_;
};

// The teacher's texts as the tokens of a draft.
inline TokenText draft_text(const OwnText* begin, const OwnText* end, const DraftVocabulary& vocabulary,
                            const Tokenizer& tokenizer) {
  TokenText out;
  out.likely_at.push_back(0);
  for (; begin != end; ++begin) {
    std::vector<int> ids, own;
    for (const OwnToken& token : *begin) {
      ids.push_back(vocabulary.trained(token.id));
      if (!token.candidates.empty()) own.push_back(token.id);
      double sum = 0;
      const size_t first = out.likely.size();
      for (const Candidate& c : token.candidates)
        if (const int id = vocabulary.trained(c.id); id != vocabulary.rare() && c.p > 0) {
          out.likely.push_back({id, c.p});
          sum += double(c.p);
        }
      for (size_t i = first; i < out.likely.size(); i++) out.likely[i].p = float(out.likely[i].p / sum);
      out.likely_at.push_back(out.likely.size());
      out.likeliest.push_back(token.candidates.empty() ? -1 : vocabulary.trained(token.candidates[0].id));
    }
    out.add(ids, text_of(tokenizer, own).size());
  }
  return out;
}

// The probabilities that were stored with a text, as a teacher.
class StoredTeacher : public Teacher {
 public:
  explicit StoredTeacher(int vocab_size) : vocab_size_(vocab_size) {}

  void logits(int, const Window& w, int first, int count, const Rows& out) override {
    constexpr float kNever = -1000;  // e^kNever is 0
    for (int i = 0; i < count; i++) {
      float* row = out.row(i);
      std::fill(row, row + vocab_size_, kNever);
      const auto [begin, end] = w.likely[size_t(first + i)];
      for (const Candidate* c = begin; c != end; c++) row[c->id] = float(exact::log(double(c->p)));
    }
  }

 private:
  int vocab_size_;
};

// ---- The embedding table ----

namespace draft_detail {

// Makes the columns of v (n, k) orthonormal: Gram-Schmidt. A column that depends on those before it becomes 0.
inline void orthonormalize(std::vector<float>& v, int n, int k) {
  const auto dot = [&](int a, int b) {
    double sum = 0;
    for (int r = 0; r < n; r++) sum += double(v[size_t(r) * k + a]) * double(v[size_t(r) * k + b]);
    return sum;
  };
  constexpr double kRounding = 1e-8;  // of a squared length
  for (int j = 0; j < k; j++) {
    const double before = dot(j, j);
    for (int i = 0; i < j; i++) {
      const double along = dot(i, j);
      for (int r = 0; r < n; r++) v[size_t(r) * k + j] -= float(along * double(v[size_t(r) * k + i]));
    }
    const double left = dot(j, j), scale = left > kRounding * before ? 1 / std::sqrt(left) : 0;
    for (int r = 0; r < n; r++) v[size_t(r) * k + j] *= float(scale);
  }
}

// The k directions (n, k) in which the rows of m (rows, n) differ most: the principal components, by subspace iteration.
inline std::vector<float> principal_directions(Pool& pool, const std::vector<float>& m, int rows, int n, int k) {
  std::vector<float> covariance(size_t(n) * n), v(size_t(n) * k);
  multiply(pool, {n, n, rows}, 1.f / float(rows), columns_of(m.data(), size_t(n)), columns_of(m.data(), size_t(n)),
           {covariance.data(), size_t(n)}, Part::all);
  uint64_t seed = 1;
  for (float& x : v) x = float(next_random(seed) >> 40) * 0x1p-23f - 1;
  constexpr int kIterations = 30;
  for (int i = 0; i < kIterations; i++) {
    orthonormalize(v, n, k);
    std::vector<float> next(v.size());
    multiply(pool, {n, k, n}, 1, rows_of(covariance.data(), size_t(n)), columns_of(v.data(), size_t(k)),
             {next.data(), size_t(k)}, Part::all);
    v.swap(next);
  }
  orthonormalize(v, n, k);
  return v;
}

}  // namespace draft_detail

// The embedding table of a draft (vocabulary.size(), dim): the teacher's rows of its tokens, less their mean, in their dim
// principal directions. If the teacher is narrower than the draft, the other columns are 0. The elements have mean
// square 1, and the row of rare() is 0. Throws Failure.
inline std::vector<float> reduced_embedding(Pool& pool, const Model& teacher, const DraftVocabulary& vocabulary,
                                            int dim) {
  const int rows = vocabulary.rare(), n = teacher.config.dim, k = std::min(n, dim);
  std::vector<float> table(size_t(rows) * n), row(size_t(padded(n))), out(size_t(rows + 1) * dim);
  std::vector<double> mean(static_cast<size_t>(n));
  for (int r = 0; r < rows; r++) {
    if (!teacher.read_row(teacher.token_embedding, vocabulary.id(r), row.data()))
      throw Failure{1, "--teacher: token_embedding: row " + std::to_string(vocabulary.id(r)) + " is not readable"};
    std::copy_n(row.begin(), n, table.begin() + ptrdiff_t(size_t(r) * n));
    for (int i = 0; i < n; i++) mean[size_t(i)] += double(row[size_t(i)]) / rows;
  }
  for (size_t i = 0; i < table.size(); i++) table[i] -= float(mean[i % size_t(n)]);
  const std::vector<float> directions = draft_detail::principal_directions(pool, table, rows, n, k);
  multiply(pool, {rows, k, n}, 1, rows_of(table.data(), size_t(n)), columns_of(directions.data(), size_t(k)),
           {out.data(), size_t(dim)}, Part::all);
  double squares = 0;
  for (const float x : out) squares += double(x) * double(x);
  const float scale = squares > 0 ? float(std::sqrt(double(out.size()) / squares)) : 0;
  for (float& x : out) x *= scale;
  return out;
}

// A Llama whose trained vocabulary is a DraftVocabulary. In the model file it has the teacher's. All outlive the object.
class TrainedDraft : public TrainedLlama {
 public:
  TrainedDraft(const Config& config, const Tokenizer& tokenizer, const DraftVocabulary& vocabulary,
               const Model& teacher)
      : TrainedLlama(config, tokenizer), vocabulary_(vocabulary), teacher_(teacher) {}

  int vocab_size() const override { return vocabulary_.size(); }
  std::string shape_options() const override {
    const std::string all = TrainedLlama::shape_options();
    return all.substr(0, all.find(" --vocab"));  // the vocabulary is the teacher's
  }
  int end_id() const override {
    const int end = TrainedLlama::end_id();
    return end < 0 ? end : vocabulary_.trained(end);
  }
  std::vector<int> encode_prompt(const std::string& prompt) const override {
    std::vector<int> ids = TrainedLlama::encode_prompt(prompt);
    for (int& id : ids) id = vocabulary_.trained(id);
    return ids;
  }
  std::string decode(const std::vector<int>& ids) const override {
    std::vector<int> whole;
    for (const int id : ids)
      if (id != vocabulary_.rare()) whole.push_back(vocabulary_.id(id));
    return TrainedLlama::decode(whole);
  }

  // With the teacher's embedding table, scaled as TrainedLlama's.
  void initialize(LearnedWeights& weights, uint64_t seed) const override {
    TrainedLlama::initialize(weights, seed);
    Pool pool(1);
    const std::vector<float> table = reduced_embedding(pool, teacher_, vocabulary_, dim());
    const Parameter& p = weights.parameters[0];
    for (int r = 0; r < p.spec.rows; r++)
      for (int k = 0; k < p.spec.cols; k++)
        weights.values[p.offset + size_t(r) * p.stride + size_t(k)] =
            table[size_t(r) * p.spec.cols + size_t(k)] * float(0.5 / std::sqrt(double(p.spec.cols)));
  }

  // With the teacher's context: beyond the positions it was trained for, a draft guesses worse, which changes no text.
  void describe(ModelParts& parts, int context) const override {
    TrainedLlama::describe(parts, context);
    parts.config.max_seq_len = teacher_.config.max_seq_len;
    parts.config.vocab_size = vocabulary_.whole_size();
    parts.chat.stop_ids = teacher_.stop_ids;
    parts.self_test_ids = self_test_prompt(vocabulary_.whole_size(), -1, 8);
  }
  ReadRows rows(const LearnedWeights& weights) const override {
    const ReadRows read = TrainedLlama::rows(weights);
    return [this, read](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& error) {
      const bool tokens = spec.name == "token_embedding" || spec.name == "output";
      if (!tokens) return read(spec, first, count, out, error);
      for (int64_t r = first; r < first + count; r++, out += spec.cols)
        if (!read(spec, vocabulary_.trained(int(r)), 1, out, error)) return false;
      return true;
    };
  }

 private:
  const DraftVocabulary& vocabulary_;
  const Model& teacher_;
};

}  // namespace pocket
