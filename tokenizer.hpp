// tokenizer.hpp: converts between text and token ids, for Llama models. One header, C++17, no dependencies.
//
//   pocket::Tokenizer tokenizer;
//   if (!tokenizer.load(model.tokenizer_bytes())) { puts(tokenizer.error.c_str()); return 1; }  // of a model file
//   std::vector<int> ids = tokenizer.encode("Once upon a time");     // starts with BOS if the model uses it
//   std::string text = tokenizer.decode(ids);
//   pocket::Tokenizer::Stream stream(tokenizer);                     // or decode one id at a time:
//   for (int id : ids) std::cout << stream.push(id);                 // whole UTF-8 characters only
//   std::cout << stream.flush();
//
// tokenizer.load_sentencepiece(bytes) loads a SentencePiece .model file instead.
//
// Both kinds of tokenizer are byte-pair encoding (BPE; Sennrich et al. 2016, arxiv.org/abs/1508.07909): start from
// small symbols, then repeatedly merge the best pair of neighbours that the vocabulary has a piece for. They differ in
// what a symbol is and in which pair is best:
//
//                            SentencePiece (Llama 2, TinyLlama)         byte-level (GPT-2, SmolLM2, Llama 3)
//   initial symbols          characters; a space is written U+2581      bytes
//   scope of merging         the whole text                             one word, split off by a pattern
//   best pair                highest score, then leftmost               earliest learned merge, then leftmost
//   symbol without a piece   its UTF-8 bytes, one token each            dropped (only if a byte has no piece)
//
// Text is bytes with a length: NUL is an ordinary character, and invalid UTF-8 becomes U+FFFD. Text never becomes a
// control token, whatever it contains; a program adds control tokens by id. A loaded Tokenizer is immutable, so any
// number of threads may share it.
//
// No function of a Tokenizer, a Stream or a ChatTemplate throws, except ChatTemplate::ids(). If memory runs out, load(),
// encode() and decode() return false, Stream::failed() is true, and chat_turn() returns no ids. The short forms
// encode(text) and decode(ids) return an empty result, which a program may take for that of an empty text: it should
// check a result of false instead, or use ids_of() and printed_text(), which throw std::bad_alloc, as do ids() and the
// functions for converters.
//
// Contents: 1 interface · 2 UTF-8 · 3 merging · 4 encoding · 5 splitting into words · 6 decoding ·
//           7 loading: the blob · 8 loading: SentencePiece .model files · 9 conversations ·
//           10 Unicode
#pragma once

#include <algorithm>
#include <atomic>
#include <bitset>
#include <cctype>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <exception>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

// Source files compiled with different -m flags must not share inline functions: of all copies the linker keeps one,
// whose instructions the CPU may lack. So the flags are part of every name: a macro that is defined is pasted as 1.
#ifndef POCKET_ISA
#define POCKET_PASTE(A, B, C, D, E, F, G, H, I, J, K, L, M, N) isa_##A##B##C##D##E##F##G##H##I##J##K##L##M##N
#define POCKET_PASTE_VALUES(...) POCKET_PASTE(__VA_ARGS__)
#define POCKET_ISA                                                                                                   \
  POCKET_PASTE_VALUES(__SSE3__, __SSSE3__, __SSE4_1__, __SSE4_2__, __POPCNT__, __AVX__, __FMA__, __BMI2__, __AVX2__, \
                      __AVX512F__, __AVX512VL__, __AVX512VNNI__, __ARM_FEATURE_SVE, __ARM_FEATURE_DOTPROD)
#endif

namespace pocket {
inline namespace POCKET_ISA {

// ====================================================================================================================
// 1. Interface
// ====================================================================================================================

namespace tokenizer_detail {
struct BlobHeader;
class Candidates;

// Finds, at every byte of a text, the longest of some pieces that starts there. Takes time in proportion to the text, for
// any pieces: the automaton of Aho and Corasick (1975) of the reversed pieces reads the text from its end.
class PieceFinder {
 public:
  // Piece sizes are 1 to 65535 bytes.
  PieceFinder() = default;  // no pieces
  explicit PieceFinder(std::vector<std::string_view> pieces);
  bool empty() const { return nodes_.empty(); }
  // Size of the longest piece.
  size_t longest() const { return longest_; }
  // (bytes of text): the size of the piece; 0: none starts there. Empty if there are no pieces.
  std::vector<uint16_t> find(std::string_view text) const;

 private:
  // A node stands for the last bytes of some pieces. Nodes are in the order of their depth; the root is node 0.
  struct Node {
    uint32_t children;  // the first one; they end where those of the next node begin, and are sorted by byte
    uint32_t shorter;   // the node of the longest of its prefixes that is a node; of the root: the root
    uint16_t longest;   // size of the longest piece that it starts with; 0: none
    uint8_t byte;       // its first byte
  };
  uint32_t next(uint32_t node, uint8_t byte) const;
  std::vector<Node> nodes_;
  size_t longest_ = 0;
};
}  // namespace tokenizer_detail

class Tokenizer {
 public:
  enum class Kind : uint32_t { sentencepiece = 1, byte_level = 2 };
  // Values 1 to 6 as in sentencepiece_model.proto. A user-defined piece was defined when SentencePiece trained the
  // vocabulary, and is found in the normalized text. The others were added later by another library: an added token is
  // cut out of the text before anything else, and each stretch between is normalized and encoded on its own; a normalized
  // added token is cut out of the normalized text.
  enum class PieceType : uint8_t {
    normal = 1,
    unknown = 2,
    control = 3,
    user_defined = 4,
    unused = 5,
    byte = 6,
    added = 7,
    added_normalized = 8
  };
  // Bits: settings of a control or added token. White space before or after it belongs to it. kSingleWord: next to a
  // letter or digit its text is not this token. (Only control tokens have it, and then no chat template can contain them.)
  enum Strip : uint8_t { kStripLeft = 1, kStripRight = 2, kSingleWord = 4 };
  // Byte-level BPE: the pattern that splits a text into words.
  enum class Split : uint32_t {
    none = 0,
    gpt2 = 1,
    smollm = 2,
    llama3 = 3,
    qwen2 = 4,
    qwen35 = 5,
    gpt4o = 6,
    tekken = 7,
    deepseek_coder = 8,
    deepseek_llm = 9,
    deepseek_v3 = 10,
    falcon = 11
  };
  static constexpr uint32_t kSplits = 12;

  // An entry of the vocabulary.
  struct Piece {
    std::string text;  // byte-level: the raw bytes; SentencePiece: U+2581 stands for a space, <0x41> for a byte
    float score = 0;   // SentencePiece: pairs with a higher score merge first
    PieceType type = PieceType::normal;
    uint8_t strip = 0;  // bits of Strip
  };

  // A complete tokenizer definition. Readers of tokenizer files fill it; to_blob() serializes it.
  struct Vocabulary {
    Kind kind = Kind::sentencepiece;
    std::vector<Piece> pieces;                // indexed by id
    std::vector<std::pair<int, int>> merges;  // byte-level: pairs of ids, in the order learned
    int bos = -1, eos = -1, unk = -1;         // ids of beginning of sequence, end of sequence, unknown; -1: none
    bool add_bos = false;                     // encode() starts with BOS
    // The SentencePiece normalizer:
    bool add_dummy_prefix = false;          // adds a space before the text, and before each stretch after a token
    bool prefix_only_at_start = false;      // ... only before the text
    bool remove_extra_whitespaces = false;  // strips spaces at both ends, collapses repeated spaces
    bool escape_whitespaces = false;        // writes a space as U+2581
    bool byte_fallback = false;             // a character without a piece becomes its bytes; otherwise `unk`
    // Spaces are the work of the pre-tokenizer Metaspace of Hugging Face: none is added before a space, and normalized
    // added tokens have been cut out before.
    bool metaspace = false;
    std::string unk_surface;  // the text that `unk` decodes to
    // Byte-level:
    Split split = Split::none;
    bool ignore_merges = false;  // a word that is itself a piece becomes that piece without merging
    bool nfc = false;            // text is converted to Unicode's normalization form C
  };

  // Loads the blob stored in a model file, or returned by to_blob(). The bytes are copied. On failure returns false and
  // sets `error` to the field, the expected value and the value found.
  bool load(std::string_view blob);
  // Loads the contents of a SentencePiece .model file in the same way.
  bool load_sentencepiece(std::string_view model);
  std::string error;

  // For converters: parses a SentencePiece .model file. Rejects models that are not BPE and normalizers with a
  // character map. On failure returns false and sets `error`.
  static bool parse_sentencepiece(std::string_view model, Vocabulary& out, std::string& error);
  // For converters: the blob that load() reads.
  static std::string to_blob(const Vocabulary& vocabulary);

  // Stores the ids of a text. `bos`: it begins a sequence, with BOS if the model uses it; otherwise it continues one after
  // a control token, which for some models means without the added space. Takes O(n log n) time. Returns false, and no
  // ids, if nothing is loaded, memory runs out, or the text is longer than 1 GiB.
  [[nodiscard]] bool encode(std::string_view text, bool bos, std::vector<int>& ids) const;
  // Returns the ids; none where the function above returns false.
  std::vector<int> encode(std::string_view text, bool bos = true) const;
  // Stores the text of the ids. Ids out of range are skipped. SentencePiece: control tokens are skipped and the space
  // added by encode() is removed. Byte-level: control tokens are written out. Returns false, and "", if memory runs out.
  [[nodiscard]] bool decode(const std::vector<int>& ids, std::string& text) const;
  // Returns the text; "" where the function above returns false.
  std::string decode(const std::vector<int>& ids) const;

  // Decodes one id at a time. The concatenated output equals that of decode().
  class Stream {
   public:
    explicit Stream(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
    // Returns the text that the id completes: whole UTF-8 characters. The bytes of an incomplete one are kept.
    std::string push(int id);
    // Ends the text: returns the kept bytes as U+FFFD. The next push() starts a new text.
    std::string flush();
    // Whether memory ran out in a push() or flush(), which then returned "".
    bool failed() const { return failed_; }

   private:
    void push_piece(int id, std::string& out);
    void drain(bool all, std::string& out);

    const Tokenizer* tokenizer_;
    std::string pending_;         // bytes of an incomplete character
    bool has_output_ = false;     // the text so far is not empty
    bool at_start_ = true;        // SentencePiece: a leading space would be the one added by encode()
    bool removed_space_ = false;  // SentencePiece: the leading space of the last piece was removed
    bool failed_ = false;
  };

  // Returns the id of the control, user-defined or added piece with this text, or -1.
  int find(std::string_view text) const;
  // Whether text can become this piece as a whole, without merging: it is user-defined or added.
  bool is_marker(int id) const;
  // For converters, and before the tokenizer is shared: turns markers among these ids into control tokens, which text
  // never becomes. On failure returns false, and nothing is loaded.
  bool make_control(const std::vector<int>& ids);
  // The blob that is loaded.
  const std::string& blob() const { return blob_; }
  // Returns the text of a piece; "" if the id is out of range.
  std::string_view piece(int id) const;
  // Returns the type of a piece; `unused` if the id is out of range.
  PieceType type(int id) const;
  // Returns the bits of Strip of a piece.
  uint8_t strip(int id) const;
  // The number of pieces.
  int size() const { return int(n_pieces_); }
  // Returns a number of ids that encode() reaches or exceeds, in a fraction of its time: the size of the text, without
  // white space and unknown bytes, divided by that of the longest piece; 0 if unknown characters share one id, or the
  // normalizer removes spaces.
  size_t least_ids(std::string_view text) const;
  // The ids of "beginning of sequence" and "end of sequence"; -1: none.
  int bos() const { return bos_; }
  int eos() const { return eos_; }
  // Whether encode() starts with BOS.
  bool adds_bos() const { return add_bos_; }
  Kind kind() const { return kind_; }

 private:
  // Maps keys to ints (ids or ranks) by hash, with open addressing. The keys are stored elsewhere: the caller compares
  // them with equal(value). Of equal keys, the first inserted is kept. Keys that were made to collide take at most
  // kMostProbes comparisons.
  class HashIndex {
   public:
    static constexpr size_t kMostProbes = 1024;  // of 4 million good hashes: about 100
    void reserve(size_t n) {
      size_t size = 16;
      while (size < 2 * n) size *= 2;
      slots_.assign(size, -1);
    }
    template <class Equal> int find(uint64_t hash, const Equal& equal) const {
      const size_t s = slots_.empty() ? kNone : slot(hash, equal);
      return s == kNone ? -1 : slots_[s];
    }
    // False if it needs more probes.
    template <class Equal> bool insert(uint64_t hash, int value, const Equal& equal) {
      const size_t s = slot(hash, equal);
      if (s != kNone && slots_[s] < 0) slots_[s] = value;
      return s != kNone;
    }

   private:
    static constexpr size_t kNone = SIZE_MAX;
    // The slot of a key, or the empty one for it.
    template <class Equal> size_t slot(uint64_t hash, const Equal& equal) const {
      const size_t mask = slots_.size() - 1;
      size_t i = hash & mask;
      for (size_t n = 0; slots_[i] >= 0 && !equal(slots_[i]); i = (i + 1) & mask)
        if (++n == kMostProbes) return kNone;
      return i;
    }
    std::vector<int> slots_;  // -1: empty; the size is a power of two
  };

  using Candidates = tokenizer_detail::Candidates;

  // Tokens that are cut out of a text.
  struct Markers {
    std::map<std::string, int> ids;  // by the text that is searched
    tokenizer_detail::PieceFinder finder;
  };

  bool check_header(const tokenizer_detail::BlobHeader& h);
  bool parse_blob();
  bool check_pieces();
  bool index_pieces();
  void index_markers();
  bool index_merges();
  void index_neighbours();
  bool fail(const std::string& field, const std::string& expected, const std::string& found);

  template <class T> T at(size_t offset) const;
  float score(int id) const { return at<float>(scores_at_ + 4 * size_t(id)); }
  std::pair<int, int> merge(int rank) const;
  std::string_view unk_surface() const { return std::string_view(blob_).substr(unk_surface_at_); }
  int find_piece(std::string_view text) const;
  int find_merge(int left, int right) const;
  template <class Stretch, class Token>
  void cut(const Markers& markers, std::string_view text, const Stretch& stretch, const Token& token) const;
  std::string normalize(std::string_view text, bool at_start) const;
  void encode_stretch(std::string_view text, bool at_start, std::vector<int>& ids) const;
  void encode_sentencepiece(std::string_view text, std::vector<int>& ids) const;
  bool merges_into(int id, Candidates& queue) const;
  void merge_characters(std::string_view text, Candidates& queue, bool& after_unknown, std::vector<int>& ids) const;
  void append_ids(std::string_view symbol, int id, const std::unordered_map<int, size_t>& left_sizes,
                  bool& after_unknown, int*& ids) const;
  void encode_byte_level(std::string_view text, std::vector<int>& ids) const;
  void encode_word(std::string_view word, Candidates& queue, std::vector<int>& ids) const;

  std::string blob_;  // the only copy of the vocabulary; the members below are fields of it, offsets and indices
  Kind kind_ = Kind::sentencepiece;
  Split split_ = Split::none;
  bool add_bos_ = false, add_dummy_prefix_ = false, prefix_only_at_start_ = false, metaspace_ = false,
       remove_extra_whitespaces_ = false, escape_whitespaces_ = false, byte_fallback_ = false, ignore_merges_ = false,
       nfc_ = false;
  int bos_ = -1, eos_ = -1, unk_ = -1;
  size_t n_pieces_ = 0, n_merges_ = 0;
  size_t ends_at_ = 0, scores_at_ = 0, merges_at_ = 0, types_at_ = 0, text_at_ = 0, unk_surface_at_ = 0;  // offsets
  int byte_id_[256] = {};    // id of each byte; -1: no piece
  HashIndex by_text_;        // ids of the pieces that text can become
  HashIndex by_pair_;        // ranks of the merges, by left and right id
  std::vector<int> merged_;  // by rank: id of the merged piece
  tokenizer_detail::PieceFinder user_defined_;
  Markers added_, added_normalized_;
  size_t longest_piece_ = 1;  // of by_text_, in bytes
  // SentencePiece: the pairs of find_neighbours() in all pieces; null if a text cannot be encoded in parts. What
  // merges_into() has found out of each piece: any thread may add to it, and all find the same.
  std::shared_ptr<const std::bitset<65536>> neighbours_;
  std::shared_ptr<std::atomic<uint8_t>[]> merges_into_;
};

// For programs: the ids of a text, and the text of ids. Throw std::bad_alloc where encode() and decode() return false.
inline std::vector<int> ids_of(const Tokenizer& tokenizer, std::string_view text, bool bos = true);
inline std::string text_of(const Tokenizer& tokenizer, const std::vector<int>& ids);

// Returns the text of the next id of a stream as a program prints it. A control token has none. Throws std::bad_alloc if
// the stream has failed.
inline std::string printed_text(const Tokenizer& tokenizer, Tokenizer::Stream& stream, int id);
// The same for the end of a text: flush().
inline std::string printed_rest(Tokenizer::Stream& stream);

// Whether a character acts on a terminal or on the order of a line instead of being shown: a control character, a line
// or paragraph separator, or an explicit change of the writing direction.
inline bool acts_on_terminal(char32_t code);
// Returns a text without such characters except newline and tab, and with U+FFFD for invalid UTF-8, so that it is safe
// to print on a terminal.
inline std::string without_controls(const std::string& text);
// The same as a part of one line, for messages that quote file names or names in a file: line breaks and tabs become
// spaces.
inline std::string one_line(const std::string& text);

// ====================================================================================================================
// 2. UTF-8
// ====================================================================================================================

namespace tokenizer_detail {

inline constexpr char kSpaceMark[] = "\xE2\x96\x81";    // U+2581: a space in SentencePiece pieces
inline constexpr char kReplacement[] = "\xEF\xBF\xBD";  // U+FFFD: replaces invalid UTF-8
// Fits into the string object itself, so that a handler of std::bad_alloc can assign it.
inline constexpr char kOutOfMemory[] = "out of memory";

// The result of decoding one character.
struct Utf8 {
  enum State { whole, cut_short, invalid } state;
  size_t length;  // bytes of the character; if not whole, of its valid prefix, at least 1
  char32_t code;
};

// Decodes the character at the start of s, which is not empty. The range of the second byte excludes overlong forms,
// surrogates and code points above U+10FFFF (The Unicode Standard, table 3-7).
inline Utf8 read_utf8(std::string_view s) {
  const uint8_t first = uint8_t(s[0]);
  if (first < 0x80) return {Utf8::whole, 1, first};
  if (first < 0xC2 || first > 0xF4) return {Utf8::invalid, 1, 0};
  const size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  char32_t code = first & (0x7F >> length);
  for (size_t i = 1; i < length; i++) {
    if (i == s.size()) return {Utf8::cut_short, i, 0};
    const uint8_t byte = uint8_t(s[i]);
    if (byte < low || byte > high) return {Utf8::invalid, i, 0};
    code = code << 6 | (byte & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8::whole, length, code};
}

// Moves the character at the start of s to the end of out. Invalid UTF-8 becomes one U+FFFD per byte (each_byte, as in
// SentencePiece) or one per maximal valid prefix (as Unicode recommends and Rust does).
inline void take_character(std::string_view& s, bool each_byte, std::string& out) {
  const Utf8 c = read_utf8(s);
  const size_t n = c.state == Utf8::whole || !each_byte ? c.length : 1;
  if (c.state == Utf8::whole)
    out.append(s, 0, n);
  else
    out += kReplacement;
  s.remove_prefix(n);
}

// The bytes of the ASCII characters at the start of s, up to a space.
inline size_t ascii_size(std::string_view s) {
  size_t n = 0;
  while (n < s.size() && uint8_t(s[n]) < 0x80 && s[n] != ' ') n++;
  return n;
}

// The number of characters of valid UTF-8.
inline size_t count_characters(std::string_view text) {
  return size_t(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

// Appends a character in UTF-8.
inline void append_utf8(char32_t code, std::string& out) {
  if (code < 0x80) {
    out += char(code);
    return;
  }
  const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;  // bytes after the first
  out += char(0xFF00 >> (more + 1) | code >> 6 * more);
  for (int i = more - 1; i >= 0; i--) out += char(0x80 | (code >> 6 * i & 0x3F));
}

// The value of a byte piece, <0x00> to <0xFF>; -1 for any other text.
inline int byte_value(std::string_view piece) {
  if (piece.size() != 6 || piece.substr(0, 3) != "<0x" || piece[5] != '>') return -1;
  int value = 0;
  for (char c : piece.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

// ====================================================================================================================
// 3. Merging
// ====================================================================================================================

// A token or a part of one.
struct Symbol {
  size_t begin, size;  // units
  int id;              // of its piece, or kNoPiece
};

constexpr int kNoPiece = INT_MAX;

// Symbols side by side, which are merged in place. A unit is a byte or the smallest symbol, and takes one int, since texts
// may be long: the first unit of a symbol has its id, the second and the last one its negated size, if it has more than
// one; the units between are negative.
class Symbols {
 public:
  Symbols(int* units, size_t size) : units_(units), size_(size) {}

  size_t size() const { return size_; }
  bool begins(size_t i) const { return units_[i] >= 0; }
  Symbol at(size_t begin) const {
    const bool longer = begin + 1 < size_ && units_[begin + 1] < 0;
    return {begin, longer ? size_t(-units_[begin + 1]) : 1, units_[begin]};
  }
  // The first unit of the symbol before. begin > 0
  size_t before(size_t begin) const { return units_[begin - 1] < 0 ? begin - size_t(-units_[begin - 1]) : begin - 1; }
  void put(const Symbol& s) {
    std::fill_n(units_ + s.begin, s.size, -int(s.size));
    units_[s.begin] = s.id;
  }
  void merge(const Symbol& left, const Symbol& right, int id) {
    const size_t size = left.size + right.size;
    units_[left.begin] = id;
    units_[right.begin] = -1;
    units_[left.begin + 1] = units_[left.begin + size - 1] = -int(size);
  }
  // Moves the ids of the symbols to the first units, and returns their number.
  size_t compact() {
    size_t n = 0;
    for (size_t i = 0; i < size_; n++) {
      const Symbol s = at(i);
      units_[n] = s.id;
      i += s.size;
    }
    return n;
  }

 private:
  int* units_;
  size_t size_;
};

// The result of merging two neighbours.
struct Joined {
  int id = -1;       // -1: the pair does not merge
  double score = 0;  // the highest merges first
};

// A pair that may be merged.
struct Candidate {
  double score;
  int id;
  uint32_t left, end;  // units: where the left symbol begins and the right one ends
  bool operator<(const Candidate& o) const { return score != o.score ? score < o.score : left > o.left; }
};

// A queue of the best candidates, reused for every word of a text. It takes memory for a limited number of candidates:
// when there are more, the worst are forgotten, and found again when the queue is empty. For each block of the text the
// best one that was forgotten is known, so that not all of the text is searched.
class Candidates {
 public:
  static constexpr size_t kBlock = 512;  // units

  // least: the limit for short texts, at least 4.
  explicit Candidates(size_t least = 1 << 12) : least_(least) {}

  // Starts anew with a text of which nothing is known.
  void clear(size_t units) {
    heap_.clear();
    limit_ = std::max(least_, units / 32);
    heap_.reserve(std::min(units, limit_));
    forgotten_.assign((units + kBlock - 1) / kBlock, kAnything);
  }

  // The blocks with forgotten candidates, those with the best first. The owner pushes the candidates of each that
  // take() returns true for; the candidates of others are worse than what the queue has room for.
  const std::vector<uint32_t>& blocks() {
    has_floor_ = false;
    blocks_.clear();
    for (size_t block = 0; block < forgotten_.size(); block++)
      if (forgotten_[block].id >= 0) blocks_.push_back(uint32_t(block));
    std::sort(blocks_.begin(), blocks_.end(), [&](uint32_t a, uint32_t b) { return forgotten_[b] < forgotten_[a]; });
    return blocks_;
  }
  bool take(uint32_t block) {
    if (is_below_floor(forgotten_[block])) return false;
    forgotten_[block].id = -1;
    return true;
  }

  bool empty() const { return heap_.empty(); }

  void push(const Candidate& c) {
    if (is_below_floor(c)) return forget(c);
    if (heap_.size() == limit_) {
      drop_worst();
      if (is_below_floor(c)) return forget(c);
    }
    heap_.push_back(c);
    std::push_heap(heap_.begin(), heap_.end());
  }
  Candidate pop() {
    std::pop_heap(heap_.begin(), heap_.end());
    const Candidate best = heap_.back();
    heap_.pop_back();
    return best;
  }

 private:
  static constexpr Candidate kAnything = {HUGE_VAL, 0, 0, 0};

  bool is_below_floor(const Candidate& c) const { return has_floor_ && !(floor_ < c); }
  void forget(const Candidate& c) {
    Candidate& best = forgotten_[c.left / kBlock];
    if (best.id < 0 || best < c) best = c;
  }
  // Keeps the better three quarters.
  void drop_worst() {
    const auto kept = heap_.begin() + ptrdiff_t(limit_ / 4 * 3);
    std::nth_element(heap_.begin(), kept, heap_.end(), [](const Candidate& a, const Candidate& b) { return b < a; });
    floor_ = *kept;
    has_floor_ = true;
    for (auto c = kept; c != heap_.end(); ++c) forget(*c);
    heap_.erase(kept, heap_.end());
    std::make_heap(heap_.begin(), heap_.end());
  }

  std::vector<Candidate> heap_;
  size_t least_, limit_ = 0;
  Candidate floor_ = {};  // the best that was forgotten since blocks(): only better ones are added
  bool has_floor_ = false;
  std::vector<Candidate> forgotten_;  // (blocks,): the best; id -1: none
  std::vector<uint32_t> blocks_;      // memory of blocks()
};

// Merges neighbours, the highest score first and the leftmost of equal scores first, until no pair merges.
// join(left, right) -> Joined. Merging a pair leaves outdated candidates in the queue: a candidate is valid if a symbol
// still begins at its left end, and the next symbol ends at its right end, since symbols only grow.
template <class Join> void join_symbols(Symbols& symbols, Candidates& queue, const Join& join) {
  const auto consider = [&](const Symbol& left) {
    if (left.begin + left.size == symbols.size()) return;
    const Symbol right = symbols.at(left.begin + left.size);
    const Joined j = join(left, right);
    if (j.id >= 0) queue.push({j.score, j.id, uint32_t(left.begin), uint32_t(right.begin + right.size)});
  };
  queue.clear(symbols.size());
  for (;;) {
    const std::vector<uint32_t>& blocks = queue.blocks();
    if (blocks.empty()) return;
    for (const uint32_t block : blocks) {
      if (!queue.take(block)) continue;
      const size_t begin = block * Candidates::kBlock, end = std::min(begin + Candidates::kBlock, symbols.size());
      for (size_t i = begin; i < end; i++)
        if (symbols.begins(i)) consider(symbols.at(i));
    }
    while (!queue.empty()) {
      const Candidate best = queue.pop();
      if (!symbols.begins(best.left)) continue;
      const Symbol left = symbols.at(best.left);
      if (left.begin + left.size >= best.end) continue;
      const Symbol right = symbols.at(left.begin + left.size);
      if (right.begin + right.size != best.end) continue;
      symbols.merge(left, right, best.id);
      if (left.begin > 0) consider(symbols.at(symbols.before(left.begin)));
      consider(symbols.at(left.begin));
    }
  }
}

// ---- User-defined pieces ----

inline PieceFinder::PieceFinder(std::vector<std::string_view> pieces) {
  const auto byte_of = [](std::string_view piece, size_t depth) { return uint8_t(piece[piece.size() - 1 - depth]); };
  const auto less = [](char a, char b) { return uint8_t(a) < uint8_t(b); };
  std::sort(pieces.begin(), pieces.end(), [&](std::string_view a, std::string_view b) {
    return std::lexicographical_compare(a.rbegin(), a.rend(), b.rbegin(), b.rend(), less);
  });
  size_t nodes = 2;  // with the root and the end
  for (size_t i = 0; i < pieces.size(); i++) {
    const std::string_view before = i > 0 ? pieces[i - 1] : std::string_view(), piece = pieces[i];
    const auto shared = std::mismatch(piece.rbegin(), piece.rend(), before.rbegin(), before.rend()).first;
    nodes += size_t(piece.rend() - shared);
  }
  nodes_.reserve(nodes);
  using Range = std::pair<size_t, size_t>;  // of the pieces that end with the bytes of a node
  std::vector<Range> level = {{0, pieces.size()}}, deeper;
  nodes_.push_back({0, 0, 0, 0});
  uint32_t node = 0;
  for (size_t depth = 0; !level.empty(); depth++, level.swap(deeper), deeper.clear())
    for (auto [i, end] : level) {
      nodes_[node].children = uint32_t(nodes_.size());
      if (i < end && pieces[i].size() == depth) i++;  // the piece of the node itself
      for (size_t j = i; i < end; i = j) {
        const uint8_t byte = byte_of(pieces[i], depth);
        while (j < end && byte_of(pieces[j], depth) == byte) j++;
        const uint32_t shorter = depth == 0 ? 0 : next(nodes_[node].shorter, byte);
        const bool whole = pieces[i].size() == depth + 1;
        nodes_.push_back({0, shorter, whole ? uint16_t(depth + 1) : nodes_[shorter].longest, byte});
        deeper.push_back({i, j});
      }
      node++;
    }
  nodes_.push_back({uint32_t(nodes_.size()), 0, 0, 0});  // the end of the last node's children
  for (const std::string_view piece : pieces) longest_ = std::max(longest_, piece.size());
}

// The node of the longest text that starts with `byte` and continues with the text of `node`, or with the beginning of it.
inline uint32_t PieceFinder::next(uint32_t node, uint8_t byte) const {
  for (;; node = nodes_[node].shorter) {
    const auto begin = nodes_.begin() + nodes_[node].children, end = nodes_.begin() + nodes_[node + 1].children;
    const auto child = std::lower_bound(begin, end, byte, [](const Node& n, uint8_t b) { return n.byte < b; });
    if (child != end && child->byte == byte) return uint32_t(child - nodes_.begin());
    if (node == 0) return 0;
  }
}

inline std::vector<uint16_t> PieceFinder::find(std::string_view text) const {
  std::vector<uint16_t> found(nodes_.empty() ? 0 : text.size());
  uint32_t node = 0;
  for (size_t i = found.size(); i-- > 0;) {
    node = next(node, uint8_t(text[i]));
    found[i] = nodes_[node].longest;
  }
  return found;
}

// The results of find() for a text that is read from its start, a window at a time: for a long text they would take twice
// its memory.
class FoundPieces {
 public:
  FoundPieces(const PieceFinder& finder, std::string_view text) : finder_(finder), text_(text) {}

  // The size of the piece that starts at byte i; 0: none. Not below the i of the call before.
  size_t at(size_t i) {
    if (finder_.empty()) return 0;
    if (i >= end_) {
      const size_t window = std::max<size_t>(finder_.longest(), 1 << 15);
      sizes_ = finder_.find(text_.substr(i, window + finder_.longest()));
      begin_ = i;
      end_ = i + window;
    }
    return sizes_[i - begin_];
  }

 private:
  const PieceFinder& finder_;
  std::string_view text_;
  std::vector<uint16_t> sizes_;  // of the window [begin_, end_), and beyond, where a piece may be cut off
  size_t begin_ = 0, end_ = 0;
};

// ---- Parts of a text ----

// Characters that stand side by side, as a number below 65536: characters with the same first byte are taken for one,
// except that the space mark is taken for a space. Finds the first such pair that found(pair) accepts, and returns the
// offset of the second character; the size of the text if there is none.
template <class Found> size_t find_neighbours(std::string_view text, const Found& found) {
  const auto byte_of = [&](size_t i) {
    const bool mark = text[i] == kSpaceMark[0] && text.substr(i, 3) == kSpaceMark;
    return mark ? size_t(' ') : size_t(uint8_t(text[i]));
  };
  size_t left = text.empty() ? 0 : byte_of(0);
  for (size_t i = 1; i < text.size(); i++) {
    if ((text[i] & 0xC0) == 0x80) continue;  // inside a character
    const size_t right = byte_of(i);
    if (found(left << 8 | right)) return i;
    left = right;
  }
  return text.size();
}

// ---- Words ----

// Converts valid UTF-8 to normalization form C. Defined in section 10.
inline std::string nfc(std::string_view text);

// Calls each(word) for the words of a text in order; their concatenation is the text. Defined in section 5.
template <class Each> void for_each_word(Tokenizer::Split split, std::string_view text, const Each& each);

}  // namespace tokenizer_detail

// ====================================================================================================================
// 4. Encoding
// ====================================================================================================================

namespace tokenizer_detail {
// Makes room for at most n more ids of a long text: a vector that grows by itself has its old memory beside the new.
inline void reserve_more(std::vector<int>& ids, size_t n) {
  constexpr size_t kLong = 1 << 12;
  if (n >= kLong && n >= ids.size() / 4 && n > ids.capacity() - ids.size()) ids.reserve(ids.size() + n);
}
}  // namespace tokenizer_detail

inline bool Tokenizer::encode(std::string_view text, bool bos, std::vector<int>& ids) const try {
  constexpr size_t kMaxText = size_t(1) << 30;  // positions have 32 bits, and a byte may become three (U+FFFD)
  ids.clear();
  if (n_pieces_ == 0 || text.size() > kMaxText) return false;
  if (bos && add_bos_) ids.push_back(bos_);
  std::string valid;
  if (kind_ == Kind::byte_level) {
    valid.reserve(text.size());
    while (!text.empty()) tokenizer_detail::take_character(text, false, valid);
    text = valid;
  }
  cut(
      added_, text,
      [&](std::string_view stretch) { encode_stretch(stretch, bos && stretch.data() == text.data(), ids); },
      [&](int id) { ids.push_back(id); });
  if (ids.size() < ids.capacity() / 2) ids.shrink_to_fit();
  return true;
} catch (const std::exception&) {  // out of memory
  ids.clear();
  return false;
}

inline std::vector<int> Tokenizer::encode(std::string_view text, bool bos) const {
  std::vector<int> ids;
  if (!encode(text, bos, ids)) ids.clear();
  return ids;
}

inline std::vector<int> ids_of(const Tokenizer& tokenizer, std::string_view text, bool bos) {
  std::vector<int> ids;
  if (!tokenizer.encode(text, bos, ids)) throw std::bad_alloc();
  return ids;
}

inline size_t Tokenizer::least_ids(std::string_view text) const {
  if (kind_ == Kind::sentencepiece && (!byte_fallback_ || remove_extra_whitespaces_)) return 0;
  const auto counts = [this](char c) { return c != ' ' && !(c >= '\t' && c <= '\r') && byte_id_[uint8_t(c)] >= 0; };
  return size_t(std::count_if(text.begin(), text.end(), counts)) / longest_piece_;
}

// Section 9.
inline std::string_view without_space(std::string_view text, bool front, bool back, bool separators = true);

// Calls stretch(text) and token(id) for the parts of a text in order: the tokens that it contains, leftmost first and the
// longest of those that start together, and what is between them without the white space that belongs to a token. (The
// rules of Hugging Face's tokenizers.)
template <class Stretch, class Token>
void Tokenizer::cut(const Markers& markers, std::string_view text, const Stretch& stretch, const Token& token) const {
  using namespace tokenizer_detail;
  if (markers.finder.empty()) {
    if (!text.empty()) stretch(text);
    return;
  }
  FoundPieces found(markers.finder, text);
  size_t begin = 0;  // of the stretch
  for (size_t i = 0, size = 0; i < text.size(); i += std::max<size_t>(size, 1)) {
    size = found.at(i);
    if (size == 0) continue;
    const int id = markers.ids.at(std::string(text.substr(i, size)));
    const std::string_view before = text.substr(begin, i > begin ? i - begin : 0);
    const std::string_view kept = without_space(before, false, strip(id) & kStripLeft, false);
    if (!kept.empty()) stretch(kept);
    token(id);
    if (strip(id) & kStripRight)  // what the token before has stripped is not read again
      begin = text.size() - without_space(text.substr(std::max(begin, i + size)), true, false, false).size();
    else
      begin = i + size;
  }
  if (begin < text.size()) stretch(text.substr(begin));
}

// Encodes the text between added tokens. at_start: it begins a sequence.
inline void Tokenizer::encode_stretch(std::string_view text, bool at_start, std::vector<int>& ids) const {
  const auto token = [&](int id) { ids.push_back(id); };
  if (kind_ == Kind::byte_level) {
    std::string normalized = nfc_ ? tokenizer_detail::nfc(text) : std::string();
    if (normalized == text) std::string().swap(normalized);  // frees the memory
    cut(
        added_normalized_, normalized.empty() ? text : normalized,
        [&](std::string_view words) { encode_byte_level(words, ids); }, token);
  } else if (metaspace_) {
    const auto encode = [&](std::string_view part) {
      encode_sentencepiece(normalize(part, at_start && part.data() == text.data()), ids);
    };
    cut(added_normalized_, text, encode, token);
  } else {
    const std::string normalized = normalize(text, at_start);
    cut(
        added_normalized_, normalized, [&](std::string_view part) { encode_sentencepiece(part, ids); }, token);
  }
}

// The SentencePiece normalizer with the "identity" rules (normalizer.cc). Where a space is only added at the start of a
// sequence, a stretch keeps the spaces that it begins with.
inline std::string Tokenizer::normalize(std::string_view text, bool at_start) const {
  const std::string_view space = escape_whitespaces_ ? tokenizer_detail::kSpaceMark : " ";
  const bool strips_start = remove_extra_whitespaces_ && !prefix_only_at_start_;
  tokenizer_detail::FoundPieces user_defined(user_defined_, text);
  size_t i = 0;
  while (strips_start && i < text.size() && text[i] == ' ' && user_defined.at(i) <= 1) i++;
  std::string out;
  if (i == text.size()) return out;
  out.reserve(text.size() + text.size() / 2 + 3);
  const bool has_space = metaspace_ && (text[0] == ' ' || text.substr(0, space.size()) == space);
  if (add_dummy_prefix_ && (at_start || !prefix_only_at_start_) && !has_space) out += space;
  bool after_space = strips_start;
  while (i < text.size()) {
    std::string_view rest = text.substr(i);
    std::string part;
    if (const size_t n = user_defined_.empty() ? tokenizer_detail::ascii_size(rest) : user_defined.at(i)) {
      part = rest.substr(0, n);
      rest.remove_prefix(n);
    } else {
      tokenizer_detail::take_character(rest, true, part);
    }
    i = text.size() - rest.size();
    const size_t from = after_space ? std::min(part.find_first_not_of(' '), part.size()) : 0;
    for (char c : part.substr(from)) c == ' ' ? out += space : out += c;
    if (from < part.size()) after_space = remove_extra_whitespaces_ && part.back() == ' ';
  }
  while (remove_extra_whitespaces_ && out.size() >= space.size() &&
         out.compare(out.size() - space.size(), space.size(), space) == 0)
    out.resize(out.size() - space.size());
  return out;
}

// Merges each part of the text that ends between two characters which no piece has side by side: merges do not cross
// such a place. Most parts are words of which the vocabulary has a piece.
inline void Tokenizer::encode_sentencepiece(std::string_view text, std::vector<int>& ids) const {
  tokenizer_detail::reserve_more(ids, text.size());
  Candidates queue;
  bool after_unknown = false;
  while (!text.empty()) {
    const auto never_merge = [&](size_t pair) { return !(*neighbours_)[pair]; };
    const std::string_view part =
        text.substr(0, neighbours_ ? tokenizer_detail::find_neighbours(text, never_merge) : text.size());
    const int id = neighbours_ ? find_piece(part) : -1;
    if (id >= 0 && merges_into(id, queue)) {
      ids.push_back(id);
      after_unknown = false;
    } else {
      merge_characters(part, queue, after_unknown, ids);
    }
    text.remove_prefix(part.size());
  }
}

// Whether the text of a piece merges into the piece: another order of merges may lead elsewhere.
inline bool Tokenizer::merges_into(int id, Candidates& queue) const {
  enum : uint8_t { unknown, yes, no };
  std::atomic<uint8_t>& known = merges_into_[size_t(id)];
  uint8_t answer = known.load(std::memory_order_relaxed);
  if (answer == unknown) {
    std::vector<int> ids;
    bool after_unknown = false;
    merge_characters(piece(id), queue, after_unknown, ids);
    answer = ids.size() == 1 && ids[0] == id ? yes : no;
    known.store(answer, std::memory_order_relaxed);
  }
  return answer == yes;
}

// Merges the characters of a text into pieces.
inline void Tokenizer::merge_characters(std::string_view text, Candidates& queue, bool& after_unknown,
                                        std::vector<int>& ids) const {
  using namespace tokenizer_detail;
  const size_t begin = ids.size();
  ids.resize(begin + text.size());
  Symbols symbols(&ids[begin], text.size());
  FoundPieces user_defined(user_defined_, text);
  for (size_t i = 0, size = 0; i < text.size(); i += size) {
    size = user_defined.at(i);
    const int id = size > 0 ? find_piece(text.substr(i, size)) : kNoPiece;
    if (size == 0) size = read_utf8(text.substr(i)).length;
    symbols.put({i, size, id});
  }
  const auto is_user_defined = [&](const Symbol& s) {
    return s.id != kNoPiece && type(s.id) == PieceType::user_defined;
  };
  std::unordered_map<int, size_t> left_sizes;  // id of an unused piece -> bytes of its left part
  join_symbols(symbols, queue, [&](const Symbol& left, const Symbol& right) -> Joined {
    if (is_user_defined(left) || is_user_defined(right)) return {};
    if (left.size + right.size > longest_piece_) return {};
    const int id = find_piece(text.substr(left.begin, left.size + right.size));
    if (id < 0) return {};
    if (type(id) == PieceType::unused) left_sizes[id] = left.size;
    return {id, score(id)};
  });
  int* end = &ids[begin];  // of the ids, which replace the symbols: a symbol has at most one for each of its bytes
  for (size_t i = 0; i < text.size();) {
    const Symbol s = symbols.at(i);
    const std::string_view symbol = text.substr(i, s.size);
    append_ids(symbol, s.id != kNoPiece ? s.id : find_piece(symbol), left_sizes, after_unknown, end);
    i += s.size;
  }
  ids.resize(size_t(end - ids.data()));
}

// Appends the ids of a symbol. An unused piece is split into its parts again; consecutive unknown characters become
// one `unk`.
inline void Tokenizer::append_ids(std::string_view symbol, int id, const std::unordered_map<int, size_t>& left_sizes,
                                  bool& after_unknown, int*& ids) const {
  if (id < 0 && byte_fallback_) {
    for (char c : symbol) *ids++ = byte_id_[uint8_t(c)];
  } else if (id < 0) {
    if (!after_unknown) *ids++ = unk_;
  } else if (const auto parts = left_sizes.find(id); parts != left_sizes.end()) {
    const std::string_view left = symbol.substr(0, parts->second), right = symbol.substr(parts->second);
    append_ids(left, find_piece(left), left_sizes, after_unknown, ids);
    append_ids(right, find_piece(right), left_sizes, after_unknown, ids);
    return;
  } else {
    *ids++ = id;
  }
  after_unknown = id < 0;
}

inline void Tokenizer::encode_byte_level(std::string_view text, std::vector<int>& ids) const {
  Candidates queue;
  tokenizer_detail::for_each_word(split_, text, [&](std::string_view word) {
    tokenizer_detail::reserve_more(ids, size_t(text.end() - word.begin()));
    encode_word(word, queue, ids);
  });
}

inline void Tokenizer::encode_word(std::string_view word, Candidates& queue, std::vector<int>& ids) const {
  using namespace tokenizer_detail;
  if (const int id = ignore_merges_ ? find_piece(word) : -1; id >= 0) {
    ids.push_back(id);
    return;
  }
  const size_t begin = ids.size();
  for (const char byte : word)
    if (const int id = byte_id_[uint8_t(byte)]; id >= 0) ids.push_back(id);
  Symbols symbols(ids.data() + begin, ids.size() - begin);
  join_symbols(symbols, queue, [&](const Symbol& left, const Symbol& right) -> Joined {
    const int rank = find_merge(left.id, right.id);
    return rank < 0 ? Joined{} : Joined{merged_[size_t(rank)], -double(rank)};
  });
  ids.resize(begin + symbols.compact());
}

// ====================================================================================================================
// 5. Splitting into words
// ====================================================================================================================

namespace tokenizer_detail {

// A set of characters, as bits. The first eleven divide all characters: each is in exactly one of them.
using Set = uint32_t;
inline constexpr Set kOther = 1 << 0;        // in none of the next ten
inline constexpr Set kUpper = 1 << 1;        // \p{Lu}, \p{Lt}
inline constexpr Set kLower = 1 << 2;        // \p{Ll}
inline constexpr Set kCaseless = 1 << 3;     // \p{Lm}, \p{Lo}
inline constexpr Set kMark = 1 << 4;         // \p{M}
inline constexpr Set kNumber = 1 << 5;       // \p{N}
inline constexpr Set kPunctuation = 1 << 6;  // \p{P}
inline constexpr Set kSymbol = 1 << 7;       // \p{S}
inline constexpr Set kOtherSpace = 1 << 8;   // \s without the next two
inline constexpr Set kBlank = 1 << 9;        // U+0020
inline constexpr Set kNewline = 1 << 10;     // [\r\n]
inline constexpr Set kAny = (1 << 11) - 1;
inline constexpr Set kLetter = kUpper | kLower | kCaseless, kSpace = kOtherSpace | kBlank | kNewline;
// Sets of single pre-tokenizers:
inline constexpr Set kSlash = 1 << 11;
inline constexpr Set kAsciiDigit = 1 << 12;
inline constexpr Set kAsciiLetter = 1 << 13;
inline constexpr Set kAsciiSign = 1 << 14;       // ASCII characters of \p{P} and \p{S}
inline constexpr Set kDigit = 1 << 15;           // what Hugging Face's step Digits takes for one
inline constexpr Set kHanOrKana = 1 << 16;       // [\u4E00-\u9FA5\u3040-\u30FF]
inline constexpr Set kEastAsian = 1 << 17;       // [\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]
inline constexpr Set kDeepSeekLetter = 1 << 18;  // kDeepSeekLetters
inline constexpr Set kDeepSeekSign = 1 << 19;    // kDeepSeekSigns

inline Set sets_of(char32_t code);  // section 10

struct Character {
  char32_t code;
  Set sets;
  uint32_t begin;  // byte offset in the text
};

// An alternative of a regular expression, of the form: lead? first* body{1,most} tail*, each a set of characters.
struct Term {
  enum Condition : uint8_t { none, lead_required, before_space, at_end };  // lead instead of lead?; (?!\S); $
  enum Contraction : uint8_t { no, lower_case, any_case };                 // 's|'t|'re|'ve|'m|'ll|'d; (?i: )

  Set lead = 0, first = 0, body = 0, tail = 0;
  uint32_t most = UINT32_MAX;
  Condition condition = none;
  Contraction contraction = no;  // without a body, it is the alternative; with one, it may follow

  constexpr Term after(Set set, Condition c = none) const {
    Term t = *this;
    t.lead = set;
    t.condition = c;
    return t;
  }
  constexpr Term then(Set set) const {
    Term t = *this;
    t.tail = set;
    return t;
  }
  constexpr Term then(Contraction c) const {
    Term t = *this;
    t.contraction = c;
    return t;
  }
};
constexpr Term contraction(Term::Contraction c) { return Term().then(c); }
constexpr Term some(Set body, uint32_t most = UINT32_MAX) { return {0, 0, body, 0, most}; }
constexpr Term some(Set body, Term::Condition c) { return {0, 0, body, 0, UINT32_MAX, c}; }
constexpr Term any_then_some(Set first, Set body) { return {0, first, body}; }

// ---- Regular expressions: each a list of alternatives, of which the first that matches counts ----

inline constexpr Set kSign = kAny & ~(kSpace | kLetter | kNumber);    // [^\s\p{L}\p{N}]
inline constexpr Set kLead = kAny & ~(kNewline | kLetter | kNumber);  // [^\r\n\p{L}\p{N}]
inline constexpr Set kUpperPart = kUpper | kCaseless | kMark;         // [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]
inline constexpr Set kLowerPart = kLower | kCaseless | kMark;         // [\p{Ll}\p{Lm}\p{Lo}\p{M}]
inline constexpr Term kLines = any_then_some(kSpace, kNewline);       // \s*[\r\n]+
inline constexpr Term kSpaces = some(kSpace, Term::before_space);     // \s+(?!\S)
inline constexpr Term kLastSpaces = some(kSpace);                     // \s+

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
inline constexpr Term kGpt2[] = {contraction(Term::lower_case),
                                 some(kLetter).after(kBlank),
                                 some(kNumber).after(kBlank),
                                 some(kSign).after(kBlank),
                                 kSpaces,
                                 kLastSpaces};

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|
// \s*[\r\n]+|\s+(?!\S)|\s+
inline constexpr Term kLlama3[] = {contraction(Term::any_case),
                                   some(kLetter).after(kLead),
                                   some(kNumber, 3),
                                   some(kSign).after(kBlank).then(kNewline),
                                   kLines,
                                   kSpaces,
                                   kLastSpaces};

// The same with \p{N} instead of \p{N}{1,3}
inline constexpr Term kQwen2[] = {contraction(Term::any_case),
                                  some(kLetter).after(kLead),
                                  some(kNumber, 1),
                                  some(kSign).after(kBlank).then(kNewline),
                                  kLines,
                                  kSpaces,
                                  kLastSpaces};

// The same with [\p{L}\p{M}] instead of \p{L} as the body, and without \p{M} in the signs
inline constexpr Term kQwen35[] = {contraction(Term::any_case),
                                   some(kLetter | kMark).after(kLead),
                                   some(kNumber, 1),
                                   some(kSign & ~kMark).after(kBlank).then(kNewline),
                                   kLines,
                                   kSpaces,
                                   kLastSpaces};

// [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|
// [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|
// \p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
inline constexpr Term kGpt4o[] = {any_then_some(kUpperPart, kLowerPart).after(kLead).then(Term::any_case),
                                  some(kUpperPart).after(kLead).then(kLowerPart).then(Term::any_case),
                                  some(kNumber, 3),
                                  some(kSign).after(kBlank).then(kNewline | kSlash),
                                  kLines,
                                  kSpaces,
                                  kLastSpaces};

// The same without contractions, and with \p{N} instead of \p{N}{1,3}
inline constexpr Term kTekken[] = {any_then_some(kUpperPart, kLowerPart).after(kLead),
                                   some(kUpperPart).after(kLead).then(kLowerPart),
                                   some(kNumber, 1),
                                   some(kSign).after(kBlank).then(kNewline | kSlash),
                                   kLines,
                                   kSpaces,
                                   kLastSpaces};

// [!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|
// \s*[\r\n]+|\s+(?!\S)|\s+
inline constexpr Term kDeepSeekV3[] = {
    some(kAsciiLetter).after(kAsciiSign, Term::lead_required),
    some(kLetter | kMark).after(kAny & ~(kNewline | kLetter | kPunctuation | kSymbol)),
    some(kPunctuation | kSymbol).after(kBlank).then(kNewline),
    kLines,
    kSpaces,
    kLastSpaces};

inline constexpr Term kOneNewline[] = {some(kNewline, 1)};                              // [\r\n]
inline constexpr Term kOneDigit[] = {some(kDigit, 1)};                                  // the step Digits
inline constexpr Term kThreeNumbers[] = {some(kNumber, 3)};                             // \p{N}{1,3}
inline constexpr Term kThreeDigits[] = {some(kAsciiDigit, 3)};                          // [0-9]{1,3}
inline constexpr Term kSpaceLetters[] = {some(kLetter).after(kSpace)};                  // \s?\p{L}+
inline constexpr Term kSpacePunctuation[] = {some(kPunctuation).after(kSpace)};         // \s?\p{P}+
inline constexpr Term kSpaceDeepSeekLetters[] = {some(kDeepSeekLetter).after(kSpace)};  // \s?[A-Za-z...]+
inline constexpr Term kSpaceDeepSeekSigns[] = {some(kDeepSeekSign).after(kSpace)};      // \s?[!-/:-~...]+
inline constexpr Term kSpacesAtEnd[] = {some(kSpace, Term::at_end)};                    // \s+$
inline constexpr Term kEastAsians[] = {some(kEastAsian)};                               // [...]+
inline constexpr Term kHansOrKanas[] = {some(kHanOrKana)};                              // [...]+
inline constexpr Term kFalconSigns[] = {some(kPunctuation | kAsciiSign)};               // the step Punctuation

// ---- Pre-tokenizers: each a list of steps, of which every one splits the parts that the one before has left ----

// A step makes each match a part, and what is between two matches.
struct Step {
  template <size_t N> constexpr Step(const Term (&list)[N]) : begin(list), end(list + N) {}
  const Term *begin, *end;
};
struct Steps {
  Steps() = default;  // none: the text is one word
  template <size_t N> constexpr Steps(const Step (&list)[N]) : begin(list), end(list + N) {}
  const Step *begin = nullptr, *end = nullptr;
};

inline constexpr Step kGpt2Steps[] = {kGpt2};
inline constexpr Step kSmolLmSteps[] = {kOneDigit, kGpt2};
inline constexpr Step kLlama3Steps[] = {kLlama3};
inline constexpr Step kQwen2Steps[] = {kQwen2};
inline constexpr Step kQwen35Steps[] = {kQwen35};
inline constexpr Step kGpt4oSteps[] = {kGpt4o};
inline constexpr Step kTekkenSteps[] = {kTekken};
inline constexpr Step kDeepSeekCoderSteps[] = {kOneNewline, kSpaceLetters, kSpacePunctuation, kEastAsians, kOneDigit};
inline constexpr Step kDeepSeekLlmSteps[] = {kOneNewline,  kSpaceDeepSeekLetters, kSpaceDeepSeekSigns,
                                             kSpacesAtEnd, kEastAsians,           kOneDigit};
inline constexpr Step kDeepSeekV3Steps[] = {kThreeNumbers, kHansOrKanas, kDeepSeekV3};
inline constexpr Step kFalconSteps[] = {kFalconSigns, kGpt2, kThreeDigits};

inline constexpr Steps kSteps[] = {  // by Tokenizer::Split
    {},          kGpt2Steps,   kSmolLmSteps,        kLlama3Steps,      kQwen2Steps,      kQwen35Steps,
    kGpt4oSteps, kTekkenSteps, kDeepSeekCoderSteps, kDeepSeekLlmSteps, kDeepSeekV3Steps, kFalconSteps};

// ---- Matching ----

// The first character from i on that is not in the set; `end` if there is none.
inline size_t skip(const Character* c, size_t i, size_t end, Set set) {
  while (i < end && c[i].sets & set) i++;
  return i;
}

// '(s|t|re|ve|m|ll|d); i if there is no match. Case-insensitive matching includes U+017F, long s.
inline size_t contraction_end(const Character* c, size_t i, size_t end, Term::Contraction contraction) {
  static constexpr const char* kEndings[] = {"s", "t", "re", "ve", "m", "ll", "d"};
  const auto lower = [&](char32_t code) -> char32_t {
    if (contraction == Term::lower_case) return code;
    return code >= 'A' && code <= 'Z' ? code + 32 : code == 0x17F ? 's' : code;
  };
  if (contraction == Term::no || i == end || c[i].code != '\'') return i;
  for (const char* ending : kEndings) {
    size_t n = 0;
    while (ending[n] && i + 1 + n < end && lower(c[i + 1 + n].code) == char32_t(ending[n])) n++;
    if (!ending[n]) return i + 1 + n;
  }
  return i;
}

// first* body{1,most}; i if there is no match. `first` is as long as leaves a character for the body.
inline size_t body_end(const Term& t, const Character* c, size_t i, size_t end) {
  size_t j = skip(c, i, end, t.first);
  while (j > i && (j == end || !(c[j].sets & t.body))) j--;
  return skip(c, j, end - j > t.most ? j + t.most : end, t.body);
}

// The end of the match at character i of the part [begin, end); i if there is none.
inline size_t match_end(const Term& t, const Character* c, size_t begin, size_t i, size_t end) {
  // Within spaces: a match would have begun at the first of them.
  if (t.condition == Term::at_end && i > begin && c[i - 1].sets & t.body) return i;
  if (t.body == 0) return contraction_end(c, i, end, t.contraction);
  size_t from = c[i].sets & t.lead ? i + 1 : i, j = body_end(t, c, from, end);
  if (t.condition == Term::lead_required && from == i) return i;
  if (t.condition != Term::lead_required && j == from) j = body_end(t, c, from = i, end);
  if (j == from) return i;
  j = skip(c, j, end, t.tail);
  if (t.condition == Term::before_space && j < end) j--;  // the last space is before a character that is none
  if (t.condition == Term::at_end && j < end) return i;
  return contraction_end(c, j, end, t.contraction);
}

// Calls each(begin, end) for the words of the part [begin, end).
template <class Each> void split_part(Steps steps, const Character* c, size_t begin, size_t end, const Each& each) {
  if (begin == end) return;
  if (steps.begin == steps.end) return each(begin, end);
  const Step step = *steps.begin++;
  size_t unmatched = begin;
  for (size_t i = begin, j = begin; i < end; i = j) {
    for (const Term* t = step.begin; j == i && t != step.end; t++) j = match_end(*t, c, begin, i, end);
    if (j == i) {
      j++;
      continue;
    }
    split_part(steps, c, unmatched, i, each);
    split_part(steps, c, i, j, each);
    unmatched = j;
  }
  split_part(steps, c, unmatched, end, each);
}

// (words): the offset of each in the text.
inline std::vector<uint32_t> word_begins(Tokenizer::Split split, std::string_view text) {
  std::vector<Character> c;
  c.reserve(count_characters(text));
  for (size_t i = 0; i < text.size();) {
    const Utf8 u = read_utf8(text.substr(i));
    c.push_back({u.code, sets_of(u.code), uint32_t(i)});
    i += u.length;
  }
  // Collected in place: a word has at least one character.
  size_t words = 0;
  split_part(kSteps[size_t(split)], c.data(), 0, c.size(),
             [&](size_t begin, size_t) { c[words++].begin = c[begin].begin; });
  std::vector<uint32_t> begins(words);
  for (size_t i = 0; i < words; i++) begins[i] = c[i].begin;
  return begins;
}

template <class Each> void for_each_word(Tokenizer::Split split, std::string_view text, const Each& each) {
  if (text.empty()) return;
  if (split == Tokenizer::Split::none) return each(text);
  const std::vector<uint32_t> begins = word_begins(split, text);  // the characters take more memory, and are not kept
  for (size_t i = 0; i < begins.size(); i++) {
    const size_t end = i + 1 < begins.size() ? begins[i + 1] : text.size();
    each(text.substr(begins[i], end - begins[i]));
  }
}

}  // namespace tokenizer_detail

// ====================================================================================================================
// 6. Decoding
// ====================================================================================================================

inline bool Tokenizer::decode(const std::vector<int>& ids, std::string& text) const try {
  text.clear();
  Stream stream(*this);
  for (int id : ids) text += stream.push(id);
  text += stream.flush();
  if (stream.failed()) text.clear();
  return !stream.failed();
} catch (const std::exception&) {  // out of memory
  text.clear();
  return false;
}

inline std::string Tokenizer::decode(const std::vector<int>& ids) const {
  std::string text;
  if (!decode(ids, text)) text.clear();
  return text;
}

inline std::string text_of(const Tokenizer& tokenizer, const std::vector<int>& ids) {
  std::string text;
  if (!tokenizer.decode(ids, text)) throw std::bad_alloc();
  return text;
}

// A byte may continue the pending character; any other SentencePiece piece ends it.
inline std::string Tokenizer::Stream::push(int id) try {
  std::string out;
  if (tokenizer_->kind_ == Kind::byte_level) {
    pending_ += tokenizer_->piece(id);
    drain(false, out);
  } else if (tokenizer_->type(id) == PieceType::byte) {
    pending_ += char(tokenizer_detail::byte_value(tokenizer_->piece(id)));
    drain(false, out);
  } else {
    drain(true, out);
    push_piece(id, out);
  }
  return out;
} catch (const std::exception&) {  // out of memory
  failed_ = true;
  return {};
}

// A SentencePiece piece that is not a byte. Removes its leading space where encode() would have added one: at the start
// of the text, and only once unless the normalizer strips all leading spaces.
inline void Tokenizer::Stream::push_piece(int id, std::string& out) {
  using namespace tokenizer_detail;
  constexpr size_t kMark = sizeof kSpaceMark - 1;
  if (removed_space_ || has_output_) at_start_ = false;
  removed_space_ = false;
  const size_t before = out.size();
  std::string_view piece = tokenizer_->piece(id);
  if (tokenizer_->type(id) == PieceType::unknown) {
    out += tokenizer_->unk_surface();
  } else if (tokenizer_->type(id) != PieceType::control) {
    const bool strips = tokenizer_->add_dummy_prefix_ || tokenizer_->remove_extra_whitespaces_;
    if (at_start_ && strips && piece.substr(0, kMark) == kSpaceMark) {
      piece.remove_prefix(kMark);
      removed_space_ = !tokenizer_->remove_extra_whitespaces_;
    }
    for (size_t mark; (mark = piece.find(kSpaceMark)) != piece.npos; piece.remove_prefix(mark + kMark))
      out.append(piece, 0, mark) += ' ';
    out += piece;
  }
  has_output_ |= out.size() > before;
}

// Moves whole characters from pending_ to out; if `all`, also the incomplete rest, as U+FFFD.
inline void Tokenizer::Stream::drain(bool all, std::string& out) {
  using namespace tokenizer_detail;
  std::string_view rest = pending_;
  while (!rest.empty() && (all || read_utf8(rest).state != Utf8::cut_short))
    take_character(rest, tokenizer_->kind_ == Kind::sentencepiece, out);
  has_output_ |= rest.size() < pending_.size();
  pending_.erase(0, pending_.size() - rest.size());
}

inline std::string Tokenizer::Stream::flush() try {
  std::string out;
  drain(true, out);
  has_output_ = removed_space_ = false;
  at_start_ = true;
  return out;
} catch (const std::exception&) {  // out of memory
  failed_ = true;
  return {};
}

inline std::string printed_text(const Tokenizer& tokenizer, Tokenizer::Stream& stream, int id) {
  if (tokenizer.type(id) == Tokenizer::PieceType::control) return "";
  std::string text = stream.push(id);
  if (stream.failed()) throw std::bad_alloc();
  return text;
}

inline std::string printed_rest(Tokenizer::Stream& stream) {
  std::string text = stream.flush();
  if (stream.failed()) throw std::bad_alloc();
  return text;
}

inline bool acts_on_terminal(char32_t code) {
  return code < 32 || (code >= 127 && code < 160) || (code >= 0x2028 && code <= 0x202E) ||
         (code >= 0x2066 && code <= 0x2069);
}

inline std::string without_controls(const std::string& text) {
  std::string clean;
  for (std::string_view rest = text; !rest.empty();) {
    const tokenizer_detail::Utf8 c = tokenizer_detail::read_utf8(rest);
    if (c.state == c.whole && acts_on_terminal(c.code) && c.code != '\n' && c.code != '\t')
      rest.remove_prefix(c.length);
    else
      tokenizer_detail::take_character(rest, false, clean);
  }
  return clean;
}

inline std::string one_line(const std::string& text) {
  std::string line = without_controls(text);
  for (char& c : line)
    if (c == '\n' || c == '\t') c = ' ';
  return line;
}

// ====================================================================================================================
// 7. Loading: the blob
// ====================================================================================================================
//
//   BlobHeader | end of each text | scores  | merges  | types | texts | unk_surface
//                uint32             float32   2 int32   uint8   bytes   bytes
//
// Little-endian, without padding. Text i occupies bytes end[i - 1] to end[i] of the texts. Only SentencePiece
// tokenizers have scores. A type is a PieceType, plus 16 times the bits of Strip. In version 1 all tokens that text can
// become as a whole are user-defined.

namespace tokenizer_detail {

struct BlobHeader {
  char magic[4];
  uint32_t version, kind, flags;
  int32_t bos, eos, unk;
  uint32_t split, n_pieces, n_merges, text_bytes, unk_surface_bytes;
};
inline constexpr char kBlobMagic[] = "PTOK";
inline constexpr uint32_t kBlobVersion = 2, kMaxPieces = 1 << 22, kMaxPieceBytes = 4096;
enum Flag : uint32_t {
  kAddBos = 1,
  kAddDummyPrefix = 2,
  kRemoveExtraWhitespaces = 4,
  kEscapeWhitespaces = 8,
  kByteFallback = 16,
  kIgnoreMerges = 32,
  kPrefixOnlyAtStart = 64,
  kMetaspace = 128,
  kNfc = 256,
  kAllFlags = 511
};
inline constexpr int kTypeMask = 15, kStripShift = 4;  // of the byte with the type of a piece and the bits of Strip

template <class T> void append_bytes(std::string& out, const T& value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

// FNV-1a
inline uint64_t hash_text(std::string_view text) {
  uint64_t h = 0xCBF29CE484222325;
  for (char c : text) h = (h ^ uint8_t(c)) * 0x100000001B3;
  return h ^ h >> 32;
}
inline uint64_t hash_pair(int left, int right) {
  const uint64_t h = (uint64_t(uint32_t(left)) << 32 | uint32_t(right)) * 0x9E3779B97F4A7C15;
  return h ^ h >> 32;
}

}  // namespace tokenizer_detail

inline std::string Tokenizer::to_blob(const Vocabulary& v) {
  using namespace tokenizer_detail;
  BlobHeader h = {};
  std::memcpy(h.magic, kBlobMagic, 4);
  h.version = kBlobVersion;
  h.kind = uint32_t(v.kind);
  h.flags = v.add_bos * kAddBos | v.add_dummy_prefix * kAddDummyPrefix |
            v.remove_extra_whitespaces * kRemoveExtraWhitespaces | v.escape_whitespaces * kEscapeWhitespaces |
            v.byte_fallback * kByteFallback | v.ignore_merges * kIgnoreMerges | v.nfc * kNfc |
            v.prefix_only_at_start * kPrefixOnlyAtStart | v.metaspace * kMetaspace;
  h.bos = v.bos;
  h.eos = v.eos;
  h.unk = v.unk;
  h.split = uint32_t(v.split);
  h.n_pieces = uint32_t(v.pieces.size());
  h.n_merges = uint32_t(v.merges.size());
  for (const Piece& p : v.pieces) h.text_bytes += uint32_t(p.text.size());
  h.unk_surface_bytes = uint32_t(v.unk_surface.size());
  std::string blob;
  append_bytes(blob, h);
  uint32_t end = 0;
  for (const Piece& p : v.pieces) {
    end += uint32_t(p.text.size());
    append_bytes(blob, end);
  }
  if (v.kind == Kind::sentencepiece)
    for (const Piece& p : v.pieces) append_bytes(blob, p.score);
  for (const auto& [left, right] : v.merges) {
    append_bytes(blob, int32_t(left));
    append_bytes(blob, int32_t(right));
  }
  for (const Piece& p : v.pieces) append_bytes(blob, uint8_t(int(p.type) | p.strip << kStripShift));
  for (const Piece& p : v.pieces) blob += p.text;
  return blob += v.unk_surface;
}

template <class T> T Tokenizer::at(size_t offset) const {
  T value;
  std::memcpy(&value, blob_.data() + offset, sizeof value);
  return value;
}
inline std::pair<int, int> Tokenizer::merge(int rank) const {
  const size_t offset = merges_at_ + 8 * size_t(rank);
  return {at<int32_t>(offset), at<int32_t>(offset + 4)};
}
inline std::string_view Tokenizer::piece(int id) const {
  if (id < 0 || size_t(id) >= n_pieces_) return {};
  const size_t begin = id == 0 ? 0 : at<uint32_t>(ends_at_ + 4 * size_t(id - 1));
  return std::string_view(blob_).substr(text_at_ + begin, at<uint32_t>(ends_at_ + 4 * size_t(id)) - begin);
}
inline Tokenizer::PieceType Tokenizer::type(int id) const {
  if (id < 0 || size_t(id) >= n_pieces_) return PieceType::unused;
  return PieceType(blob_[types_at_ + size_t(id)] & tokenizer_detail::kTypeMask);
}
inline uint8_t Tokenizer::strip(int id) const {
  if (id < 0 || size_t(id) >= n_pieces_) return 0;
  return uint8_t(uint8_t(blob_[types_at_ + size_t(id)]) >> tokenizer_detail::kStripShift);
}
inline bool Tokenizer::is_marker(int id) const {
  return type(id) == PieceType::user_defined || type(id) == PieceType::added || type(id) == PieceType::added_normalized;
}

// The id of the piece that text can become; -1: none.
inline int Tokenizer::find_piece(std::string_view text) const {
  return by_text_.find(tokenizer_detail::hash_text(text), [&](int id) { return piece(id) == text; });
}
// The rank of a merge; -1 if the pair does not merge.
inline int Tokenizer::find_merge(int left, int right) const {
  return by_pair_.find(tokenizer_detail::hash_pair(left, right),
                       [&](int rank) { return merge(rank) == std::make_pair(left, right); });
}

inline int Tokenizer::find(std::string_view text) const {
  for (int id = 0; id < size(); id++)
    if ((type(id) == PieceType::control || is_marker(id)) && piece(id) == text) return id;
  return -1;
}

inline bool Tokenizer::make_control(const std::vector<int>& ids) try {
  std::string blob;  // a copy, once there is something to change
  for (const int id : ids) {
    if (!is_marker(id)) continue;
    if (blob.empty()) blob = blob_;
    blob[types_at_ + size_t(id)] = char(int(PieceType::control) | strip(id) << tokenizer_detail::kStripShift);
  }
  return blob.empty() || load(blob);
} catch (const std::exception&) {
  error = tokenizer_detail::kOutOfMemory;
  return false;
}

inline bool Tokenizer::load(std::string_view blob) {
  Tokenizer loaded;
  try {
    loaded.blob_ = blob;
    if (loaded.parse_blob() && loaded.check_pieces() && loaded.index_pieces() && loaded.index_merges()) {
      loaded.index_neighbours();
      *this = std::move(loaded);
      return true;
    }
  } catch (const std::exception&) {
    loaded.error = tokenizer_detail::kOutOfMemory;
  }
  std::string why = std::move(loaded.error);
  *this = Tokenizer();
  error = std::move(why);
  return false;
}

inline bool Tokenizer::load_sentencepiece(std::string_view model) {
  std::string why, blob;
  try {
    Vocabulary v;
    if (parse_sentencepiece(model, v, why)) blob = to_blob(v);
  } catch (const std::exception&) {
    why = tokenizer_detail::kOutOfMemory;
  }
  if (why.empty()) return load(blob);
  *this = Tokenizer();
  error = std::move(why);
  return false;
}

inline bool Tokenizer::fail(const std::string& field, const std::string& expected, const std::string& found) {
  error = "tokenizer: " + field + ": expected " + expected + ", found " + found;
  return false;
}

// Checks the range of every header field; parse_blob() checks the sizes.
inline bool Tokenizer::check_header(const tokenizer_detail::BlobHeader& h) {
  using namespace tokenizer_detail;
  if (std::memcmp(h.magic, kBlobMagic, 4)) return fail("magic", kBlobMagic, "other bytes: not a tokenizer blob");
  const int64_t last_id = int64_t(h.n_pieces) - 1;
  const bool needs_unk = h.kind == uint32_t(Kind::sentencepiece) && !(h.flags & kByteFallback);
  const struct {
    const char* name;
    int64_t value, low, high;
  } fields[] = {{"version", h.version, 1, kBlobVersion},
                {"kind", h.kind, 1, 2},
                {"flags", h.flags & ~uint32_t(kAllFlags), 0, 0},
                {"split", h.split, 0, kSplits - 1},
                {"pieces", h.n_pieces, 1, kMaxPieces},
                {"bos", h.bos, h.flags & kAddBos ? 0 : -1, last_id},
                {"eos", h.eos, -1, last_id},
                {"unk", h.unk, needs_unk ? 0 : -1, last_id},
                {"bytes of unk_surface", h.unk_surface_bytes, 0, kMaxPieceBytes}};
  for (const auto& f : fields)
    if (f.value < f.low || f.value > f.high)
      return fail(f.name, std::to_string(f.low) + " to " + std::to_string(f.high), std::to_string(f.value));
  return true;
}

// Reads the header and locates the sections; their sizes must add up to the size of the blob.
inline bool Tokenizer::parse_blob() {
  using namespace tokenizer_detail;
  if (blob_.size() < sizeof(BlobHeader))
    return fail("size", "at least " + std::to_string(sizeof(BlobHeader)) + " bytes", std::to_string(blob_.size()));
  const auto h = at<BlobHeader>(0);
  if (!check_header(h)) return false;
  kind_ = Kind(h.kind);
  split_ = Split(h.split);
  add_bos_ = h.flags & kAddBos;
  add_dummy_prefix_ = h.flags & kAddDummyPrefix;
  remove_extra_whitespaces_ = h.flags & kRemoveExtraWhitespaces;
  escape_whitespaces_ = h.flags & kEscapeWhitespaces;
  byte_fallback_ = h.flags & kByteFallback;
  prefix_only_at_start_ = h.flags & kPrefixOnlyAtStart;
  metaspace_ = h.flags & kMetaspace;
  ignore_merges_ = h.flags & kIgnoreMerges;
  nfc_ = h.flags & kNfc;
  bos_ = h.bos;
  eos_ = h.eos;
  unk_ = h.unk;
  n_pieces_ = h.n_pieces;
  n_merges_ = h.n_merges;
  uint64_t end = sizeof h;
  const auto section = [&](uint64_t bytes) {
    const uint64_t begin = end;
    end += bytes;
    return size_t(begin);
  };
  ends_at_ = section(4 * uint64_t(h.n_pieces));
  scores_at_ = section(kind_ == Kind::sentencepiece ? 4 * uint64_t(h.n_pieces) : 0);
  merges_at_ = section(8 * uint64_t(h.n_merges));
  types_at_ = section(h.n_pieces);
  text_at_ = section(h.text_bytes);
  unk_surface_at_ = section(h.unk_surface_bytes);
  if (end != blob_.size()) return fail("size", std::to_string(end) + " bytes", std::to_string(blob_.size()));
  return true;
}

inline bool Tokenizer::check_pieces() {
  uint32_t begin = 0;
  for (size_t i = 0; i < n_pieces_; i++) {
    const uint32_t end = at<uint32_t>(ends_at_ + 4 * i), limit = uint32_t(unk_surface_at_ - text_at_);
    const std::string name = "piece " + std::to_string(i);
    if (end < begin || end - begin > tokenizer_detail::kMaxPieceBytes || end > limit)
      return fail(name + ": end of text",
                  std::to_string(begin) + " to " + std::to_string(limit) + " and at most " +
                      std::to_string(tokenizer_detail::kMaxPieceBytes) + " bytes of text",
                  std::to_string(end));
    begin = end;
    const int type = int(this->type(int(i)));
    if (type < int(PieceType::normal) || type > int(PieceType::added_normalized) || strip(int(i)) > 7)
      return fail(name + ": type", "1 to 8, and 0 to 7 times 16", std::to_string(uint8_t(blob_[types_at_ + i])));
    if (kind_ == Kind::sentencepiece && !std::isfinite(score(int(i))))
      return fail(name + ": score", "a finite number", std::to_string(score(int(i))));
    if (PieceType(type) == PieceType::byte && tokenizer_detail::byte_value(piece(int(i))) < 0)
      return fail(name + ": text", "a byte as <0x41>", "'" + std::string(piece(int(i))) + "'");
  }
  return begin + text_at_ == unk_surface_at_ ||
         fail("texts", std::to_string(begin) + " bytes", std::to_string(unk_surface_at_ - text_at_));
}

inline bool Tokenizer::index_pieces() {
  by_text_.reserve(n_pieces_);
  for (int& id : byte_id_) id = -1;
  longest_piece_ = 1;
  for (int id = 0; id < size(); id++) {
    const std::string_view text = piece(id);
    const PieceType t = type(id);
    if (t == PieceType::byte) byte_id_[tokenizer_detail::byte_value(text)] = id;
    if (t != PieceType::normal && !is_marker(id) && !(t == PieceType::unused && kind_ == Kind::sentencepiece)) continue;
    longest_piece_ = std::max(longest_piece_, text.size());
    // SentencePiece merges unused pieces too, and append_ids() splits them again. It knows nothing of added tokens.
    if (kind_ == Kind::sentencepiece && (t == PieceType::added || t == PieceType::added_normalized)) continue;
    if (!by_text_.insert(tokenizer_detail::hash_text(text), id, [&](int other) { return piece(other) == text; }))
      return fail("piece " + std::to_string(id), "texts with different hashes", "too many with similar ones");
    if (kind_ == Kind::byte_level && text.size() == 1 && t == PieceType::normal) byte_id_[uint8_t(text[0])] = id;
  }
  index_markers();
  for (int byte = 0; byte < 256 && byte_fallback_; byte++)
    if (byte_id_[byte] < 0) return fail("byte_fallback", "a piece for each byte", "none for " + std::to_string(byte));
  return true;
}

// Of markers with equal texts, the first counts.
inline void Tokenizer::index_markers() {
  std::vector<std::string_view> user_defined;
  for (int id = 0; id < size(); id++) {
    const PieceType t = type(id);
    if (!is_marker(id) || piece(id).empty()) continue;
    if (t == PieceType::user_defined && kind_ == Kind::sentencepiece) {
      if (find_piece(piece(id)) == id) user_defined.push_back(piece(id));
      continue;
    }
    // The normalizer also applies to the text of a normalized token. Metaspace is no normalizer.
    const bool normalized = t == PieceType::added_normalized;
    std::string text(piece(id));
    if (normalized && kind_ == Kind::sentencepiece && !metaspace_) text = normalize(text, true);
    if (normalized && nfc_) text = tokenizer_detail::nfc(text);
    if (!text.empty()) (t == PieceType::added_normalized ? added_normalized_ : added_).ids.emplace(std::move(text), id);
  }
  if (!user_defined.empty()) user_defined_ = tokenizer_detail::PieceFinder(std::move(user_defined));
  for (Markers* markers : {&added_, &added_normalized_}) {
    std::vector<std::string_view> texts;
    for (const auto& marker : markers->ids) texts.push_back(marker.first);
    if (!texts.empty()) markers->finder = tokenizer_detail::PieceFinder(std::move(texts));
  }
}

inline bool Tokenizer::index_merges() {
  by_pair_.reserve(n_merges_);
  merged_.resize(n_merges_);
  std::string text;
  for (int rank = 0; rank < int(n_merges_); rank++) {
    const auto [left, right] = merge(rank);
    const std::string name = "merge " + std::to_string(rank);
    for (int id : {left, right})
      if (id < 0 || id >= size()) return fail(name, "ids of 0 to " + std::to_string(size() - 1), std::to_string(id));
    text.assign(piece(left)).append(piece(right));
    merged_[size_t(rank)] = find_piece(text);
    if (merged_[size_t(rank)] < 0) return fail(name, "a piece for the merged text", "no piece '" + text + "'");
    if (!by_pair_.insert(tokenizer_detail::hash_pair(left, right), rank,
                         [&, pair = merge(rank)](int other) { return merge(other) == pair; }))
      return fail(name, "pairs with different hashes", "too many with similar ones");
  }
  return true;
}

// Prepares the encoding of a text in parts. It is not possible with unused pieces, which append_ids() splits as they were
// merged last in the whole text, nor with user-defined pieces, which may begin anywhere.
inline void Tokenizer::index_neighbours() {
  if (kind_ != Kind::sentencepiece || !user_defined_.empty()) return;
  const auto pairs = std::make_shared<std::bitset<65536>>();
  for (int id = 0; id < size(); id++) {
    if (type(id) == PieceType::unused && piece(id).size() > 1) return;
    if (type(id) != PieceType::normal) continue;
    tokenizer_detail::find_neighbours(piece(id), [&](size_t pair) {
      pairs->set(pair);
      return false;
    });
  }
  neighbours_ = pairs;
  merges_into_.reset(new std::atomic<uint8_t>[n_pieces_]());
}

// ====================================================================================================================
// 8. Loading: SentencePiece .model files
// ====================================================================================================================
//
// A .model file is a protobuf message (sentencepiece_model.proto): a sequence of fields. A field is a varint, which is
// number * 8 + wire type, and a value: a varint (wire type 0), 8 bytes (1), a length and that number of bytes (2), or
// 4 bytes (5).

namespace tokenizer_detail {

struct Field {
  uint64_t number, wire_type;
  uint64_t value;          // of wire type 0
  std::string_view bytes;  // of the other wire types
};

// Moves a varint from the start of s to value; false if it is malformed.
inline bool take_varint(std::string_view& s, uint64_t& value) {
  value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (s.empty()) return false;
    const uint8_t byte = uint8_t(s[0]);
    s.remove_prefix(1);
    value |= uint64_t(byte & 127) << shift;
    if (byte < 128) return true;
  }
  return false;
}

// Moves a field from the start of s to f; false if it is malformed.
inline bool take_field(std::string_view& s, Field& f) {
  uint64_t tag, size = 0;
  if (!take_varint(s, tag) || tag >> 3 == 0) return false;
  f = {tag >> 3, tag & 7, 0, {}};
  if (f.wire_type == 0) return take_varint(s, f.value);
  if (f.wire_type == 2 && !take_varint(s, size)) return false;
  if (f.wire_type != 1 && f.wire_type != 2 && f.wire_type != 5) return false;
  if (f.wire_type != 2) size = f.wire_type == 1 ? 8 : 4;
  if (size > s.size()) return false;
  f.bytes = s.substr(0, size_t(size));
  s.remove_prefix(size_t(size));
  return true;
}

// A field to read, and the variable that receives its value. The type of the variable determines the wire type.
struct Target {
  uint64_t number;
  const char* name;
  std::variant<uint64_t*, std::string_view*, float*> variable;
};
inline constexpr uint64_t kWireTypes[] = {0, 2, 5};  // of the alternatives of Target::variable

inline void assign(const Target& target, const Field& f) {
  if (const auto varint = std::get_if<uint64_t*>(&target.variable)) **varint = f.value;
  if (const auto text = std::get_if<std::string_view*>(&target.variable)) **text = f.bytes;
  if (const auto number = std::get_if<float*>(&target.variable)) std::memcpy(*number, f.bytes.data(), sizeof **number);
}

// Reads the target fields of a message and skips the others. Of a repeated field the last value is kept.
inline bool read_message(std::string_view s, const std::string& where, std::initializer_list<Target> targets,
                         std::string& error) {
  for (Field f; !s.empty();) {
    if (!take_field(s, f)) {
      error = "tokenizer: " + where + ": expected protobuf fields, found " + std::to_string(s.size()) +
              " bytes of invalid data";
      return false;
    }
    for (const Target& target : targets) {
      if (target.number != f.number) continue;
      const uint64_t type = kWireTypes[target.variable.index()];
      if (f.wire_type != type) {
        error = "tokenizer: " + where + ": " + target.name + ": expected wire type " + std::to_string(type) +
                ", found " + std::to_string(f.wire_type);
        return false;
      }
      assign(target, f);
    }
  }
  return true;
}

struct TrainerSpec {
  uint64_t model_type = 1, byte_fallback = 0, whitespace_as_suffix = 0;
  std::string_view unk_surface = " \xE2\x81\x87 ", bos_piece = "<s>", eos_piece = "</s>";

  bool read(std::string_view s, std::string& error) {
    if (!read_message(s, "trainer_spec",
                      {{3, "model_type", &model_type},
                       {24, "treat_whitespace_as_suffix", &whitespace_as_suffix},
                       {35, "byte_fallback", &byte_fallback},
                       {44, "unk_surface", &unk_surface},
                       {46, "bos_piece", &bos_piece},
                       {47, "eos_piece", &eos_piece}},
                      error))
      return false;
    static constexpr const char* kNames[] = {"unknown", "unigram", "BPE", "word", "char"};
    if (model_type != 2)
      error = std::string("tokenizer: model_type: expected BPE, found ") + kNames[model_type < 5 ? model_type : 0];
    else if (whitespace_as_suffix)
      error = "tokenizer: treat_whitespace_as_suffix: expected false, found true";
    return error.empty();
  }
};

struct NormalizerSpec {
  uint64_t add_dummy_prefix = 1, remove_extra_whitespaces = 1, escape_whitespaces = 1;
  std::string_view rules = "a character map", map;

  bool read(std::string_view s, const char* name, std::string& error) {
    if (!read_message(s, name,
                      {{1, "name", &rules},
                       {2, "precompiled_charsmap", &map},
                       {3, "add_dummy_prefix", &add_dummy_prefix},
                       {4, "remove_extra_whitespaces", &remove_extra_whitespaces},
                       {5, "escape_whitespaces", &escape_whitespaces}},
                      error))
      return false;
    if (!map.empty())
      error = std::string("tokenizer: ") + name + ": expected identity, found " + std::string(rules) +
              ", which changes characters";
    return error.empty();
  }
};

inline bool read_piece(std::string_view s, Tokenizer::Vocabulary& out, std::string& error) {
  const std::string where = "piece " + std::to_string(out.pieces.size());
  std::string_view text;
  uint64_t type = 1;
  float score = 0;
  if (!read_message(s, where, {{1, "piece", &text}, {2, "score", &score}, {3, "type", &type}}, error)) return false;
  if (type < 1 || type > 6)
    error = "tokenizer: " + where + ": type: expected 1 to 6, found " + std::to_string(type);
  else if (text.empty())
    error = "tokenizer: " + where + ": piece: expected a text, found none";
  else
    out.pieces.push_back({std::string(text), score, Tokenizer::PieceType(type)});
  return error.empty();
}

// The messages of a .model file besides its pieces.
struct ModelSpecs {
  TrainerSpec trainer;
  NormalizerSpec normalizer, denormalizer;
  bool has_trainer = false;
};

// Reads one field of a .model file.
inline bool read_model_field(const Field& f, Tokenizer::Vocabulary& out, ModelSpecs& specs, std::string& error) {
  switch (f.number) {
    case 1:
      return read_piece(f.bytes, out, error);
    case 2:
      specs.has_trainer = true;
      return specs.trainer.read(f.bytes, error);
    case 3:
      return specs.normalizer.read(f.bytes, "normalizer_spec", error);
    case 5:
      return f.wire_type != 2 || specs.denormalizer.read(f.bytes, "denormalizer_spec", error);
    default:
      return true;
  }
}

}  // namespace tokenizer_detail

inline bool Tokenizer::parse_sentencepiece(std::string_view model, Vocabulary& out, std::string& error) {
  using namespace tokenizer_detail;
  out = Vocabulary();
  error.clear();
  ModelSpecs specs;
  size_t pieces = 0;
  std::string_view rest = model;
  for (Field f; take_field(rest, f);) pieces += f.number == 1 && !f.bytes.empty();
  out.pieces.reserve(pieces);
  for (Field f; !model.empty();) {
    if (!take_field(model, f) || (f.number <= 3 && f.wire_type != 2)) {
      error = "tokenizer: expected a SentencePiece model, found invalid data after " +
              std::to_string(out.pieces.size()) + " pieces";
      return false;
    }
    if (!read_model_field(f, out, specs, error)) return false;
  }
  if (out.pieces.empty() || !specs.has_trainer) {
    error = "tokenizer: expected a SentencePiece model, found no pieces or no trainer_spec";
    return false;
  }
  for (size_t i = 0; i < out.pieces.size(); i++) {
    const Piece& p = out.pieces[i];
    if (p.type == PieceType::unknown) out.unk = int(i);
    if (p.type == PieceType::control && p.text == specs.trainer.bos_piece) out.bos = int(i);
    if (p.type == PieceType::control && p.text == specs.trainer.eos_piece) out.eos = int(i);
  }
  out.add_bos = out.bos >= 0;
  out.add_dummy_prefix = specs.normalizer.add_dummy_prefix;
  out.escape_whitespaces = specs.normalizer.escape_whitespaces;
  out.remove_extra_whitespaces = specs.normalizer.remove_extra_whitespaces;
  out.byte_fallback = specs.trainer.byte_fallback;
  out.unk_surface = specs.trainer.unk_surface;
  return true;
}

// ====================================================================================================================
// 9. Conversations: from turns to tokens
// ====================================================================================================================
//
// A model file describes the layout of a conversation as data, not as a program:
//
//   stop ids | -1 | slots up to kReplySuffix: their parts, each an id and a text | flags | the other slots | commands
//
// Numbers are int32; a list begins with its count; a text is its size and its bytes. The flags: kTextBits bits of Edit for
// each Text, system_in_last_turn, no_system. Older files had a default system prompt in place of -1, and ended with the
// slots, or with flags: bits 0 to 2 for trimmed system prompts, messages, replies.
//
// An id of a token has its bits of Tokenizer::Strip in bits 24 and 25.

// The size of the white space character that a text begins with; 0: none. White space is that of Unicode, which added
// tokens strip, and with `separators` U+001C to U+001F too: that of Python's strip(), which chat templates call.
inline size_t white_space(std::string_view text, bool separators = true) {
  static constexpr std::string_view kSpaces[] = {
      " ",      "\t",     "\n",     "\v",     "\f",     "\r",     "\xC2\x85", "\xC2\xA0", "\u1680",
      "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006",   "\u2007",   "\u2008",
      "\u2009", "\u200A", "\u2028", "\u2029", "\u202F", "\u205F", "\u3000"};
  if (separators && !text.empty() && text[0] >= '\x1C' && text[0] <= '\x1F') return 1;
  for (const std::string_view space : kSpaces)
    if (text.substr(0, space.size()) == space) return space.size();
  return 0;
}

// A text without leading, without trailing white space.
inline std::string_view without_space(std::string_view text, bool front, bool back, bool separators) {
  while (const size_t n = front ? white_space(text, separators) : 0) text.remove_prefix(n);
  for (size_t n = back ? 1 : 4; n <= 3 && n <= text.size();) {
    const bool space = white_space(text.substr(text.size() - n), separators) == n;
    if (space) text.remove_suffix(n);
    n = space ? 1 : n + 1;
  }
  return text;
}

// Without white space at both ends.
inline std::string trimmed(std::string_view text) { return std::string(without_space(text, true, true)); }

// Whether strftime() can write a date in this format, the same one all day: conversions are those of days, months, years.
inline bool is_date_format(std::string_view format) {
  for (size_t i = 0; i < format.size(); i++)
    if (format[i] == '%' && (++i == format.size() || !std::strchr("aAbBdjmyY%", format[i]) || !format[i])) return false;
  return !format.empty() && format.size() <= 64;
}

// A day in a valid format, in local time.
inline std::string written_date(const std::string& format, std::time_t day) {
  char text[1024];
  std::tm local{};
#if defined(_WIN32)
  localtime_s(&local, &day);
#else
  localtime_r(&day, &local);
#endif
  return std::string(text, std::strftime(text, sizeof text, format.c_str(), &local));
}

// The strings around the turns of a conversation.
struct ChatTemplate {
  static constexpr int kText = -1, kDate = -2;
  struct Part {
    int id = kText;     // a control token; kText; or kDate: today's date in the format `text`, as for strftime
    std::string text;   // of a control token: ""
    uint8_t strip = 0;  // of a control token: bits of Tokenizer::Strip
  };
  using Parts = std::vector<Part>;
  enum Slot {
    kSystemPrefix,
    kSystemSuffix,
    kFirstUserPrefix,  // before the message after a system prompt
    kUserPrefix,       // before any other message, but the first
    kUserSuffix,
    kReplyPrefix,  // before a reply that is to be generated
    kReplySuffix,
    kOpening,         // before the first message of a conversation without a system prompt
    kPastReplyPrefix  // before the text of an earlier reply
  };
  static constexpr int kSlots = 9;
  // The texts of a conversation, and what happens to them. A first message is one after a system prompt.
  enum Text { kSystemText, kFirstUserText, kUserText, kReplyText, kThinkingReplyText };
  static constexpr std::string_view kThinkingEnd = "</think>";  // a reply with it is a kThinkingReplyText
  static constexpr int kTexts = 5;
  enum Edit : unsigned {
    kTrimFront = 1,     // removes leading white space
    kTrimBack = 2,      // removes trailing white space
    kTrimNewlines = 4,  // removes leading newlines
    kDropThinking = 8,  // removes all up to the last </think>
    kTrim = kTrimFront | kTrimBack
  };
  static constexpr int kTextBits = 4;

  Parts slot[kSlots];
  std::vector<int> stop_ids;          // tokens that end a reply, or a text
  unsigned edit[kTexts] = {};         // bits of Edit; the removal of thinking comes first
  bool system_in_last_turn = false;   // the system prompt comes before the last message, not before the first
  bool no_system = false;             // the model takes no system prompt
  std::vector<std::string> commands;  // texts that change more than the system prompt that they are in
  std::string error;                  // of load()

  // Whether there is a template: a model that was not trained on conversations has none.
  bool known() const {
    return std::any_of(std::begin(slot), std::end(slot), [](const Parts& parts) { return !parts.empty(); });
  }

  // The ids of all tokens that the template contains.
  std::vector<int> ids() const {
    std::vector<int> all = stop_ids;
    for (const Parts& parts : slot)
      for (const Part& part : parts)
        if (part.id >= 0) all.push_back(part.id);
    return all;
  }

  // Whether the template describes conversations with this system prompt. "": none.
  bool takes(const std::string& system) const {
    const auto has = [&](const std::string& command) { return system.find(command) != system.npos; };
    return system.empty() || (!no_system && std::none_of(commands.begin(), commands.end(), has));
  }

  // Reads the chat section of a model file (Model::chat_bytes). On failure returns false with `error` set, and the
  // template is empty.
  bool load(std::string_view bytes, int vocab_size);

  // The flags of the chat section.
  uint32_t flags() const;

 private:
  void set_flags(uint32_t flags);
  void complete(const std::string& default_system, uint32_t trim);
  bool has_valid_parts(int vocab_size);
};

inline uint32_t ChatTemplate::flags() const {
  uint32_t flags = uint32_t(system_in_last_turn) << kTexts * kTextBits | uint32_t(no_system)
                                                                             << (kTexts * kTextBits + 1);
  for (int i = 0; i < kTexts; i++) flags |= edit[i] << i * kTextBits;
  return flags;
}

inline void ChatTemplate::set_flags(uint32_t flags) {
  for (int i = 0; i < kTexts; i++) edit[i] = flags >> i * kTextBits & ((1u << kTextBits) - 1);
  system_in_last_turn = flags >> kTexts * kTextBits & 1;
  no_system = flags >> (kTexts * kTextBits + 1) & 1;
}

// Adds to the template of an older file what the format has gained. A model started its reply with a space after text
// that did not end in white space.
inline void ChatTemplate::complete(const std::string& default_system, uint32_t trim) {
  const Text texts[] = {kSystemText, kFirstUserText, kUserText, kReplyText, kThinkingReplyText};
  const uint32_t bits[] = {1, 2, 2, 4, 4};
  for (int i = 0; i < kTexts; i++) edit[texts[i]] = trim & bits[i] ? unsigned(kTrim) : 0;
  slot[kOpening] = slot[kUserPrefix];
  if (!default_system.empty()) {
    slot[kOpening] = slot[kSystemPrefix];
    slot[kOpening].push_back({kText, trim & 1 ? trimmed(default_system) : default_system});
    for (const Slot next : {kSystemSuffix, kFirstUserPrefix})
      slot[kOpening].insert(slot[kOpening].end(), slot[next].begin(), slot[next].end());
  }
  slot[kPastReplyPrefix] = slot[kReplyPrefix];
  const Parts& before = slot[kReplyPrefix].empty() ? slot[kUserSuffix] : slot[kReplyPrefix];
  const bool separate =
      before.empty() || before.back().text.empty() || std::isspace(uint8_t(before.back().text.back()));
  if (!separate) slot[kPastReplyPrefix].push_back({kText, " "});
}

inline bool ChatTemplate::load(std::string_view bytes, int vocab_size) try {
  *this = {};
  bool ok = true;
  const auto take = [&](size_t n) {
    ok = ok && n <= bytes.size();
    const std::string_view taken = ok ? bytes.substr(0, n) : std::string_view();
    bytes.remove_prefix(taken.size());
    return taken;
  };
  const auto number = [&] {
    uint32_t value = 0;
    const std::string_view raw = take(sizeof value);
    if (ok) std::memcpy(&value, raw.data(), sizeof value);
    return value;
  };
  const auto read_slot = [&](Parts& parts) {
    for (uint32_t left = number(); ok && left > 0; left--) {
      const int word = int(number()), strip = word < 0 ? 0 : word >> 24, id = word < 0 ? word : word & 0xFFFFFF;
      parts.push_back({id, std::string(take(number())), uint8_t(strip)});
    }
  };
  for (uint32_t left = number(); ok && left > 0; left--) stop_ids.push_back(int(number()));
  const uint32_t size = number();
  const bool older = size != UINT32_MAX;
  const std::string default_system(older ? take(size) : "");
  for (int i = 0; i <= kReplySuffix; i++) read_slot(slot[i]);
  const uint32_t flags = older && bytes.empty() ? 0 : number();
  for (int i = kReplySuffix + 1; i < kSlots && !older; i++) read_slot(slot[i]);
  for (uint32_t left = older ? 0 : number(); ok && left > 0; left--) commands.emplace_back(take(number()));
  if (!has_valid_parts(vocab_size)) return false;
  older ? complete(default_system, flags) : set_flags(flags);
  if (ok && bytes.empty() && (older ? flags <= 7 : flags == this->flags())) return true;
  *this = {};
  error = "section chat: expected a complete template, found one that does not match its size";
  return false;
} catch (const std::exception&) {
  *this = {};
  error = tokenizer_detail::kOutOfMemory;
  return false;
}

// False with `error` set, and the template empty, if an id or the format of a date is invalid.
inline bool ChatTemplate::has_valid_parts(int vocab_size) {
  const auto refuse = [&](const std::string& expected, const std::string& found) {
    *this = {};
    error = "section chat: expected " + expected + ", found " + found;
    return false;
  };
  for (const int id : stop_ids)
    if (id < 0 || id >= vocab_size) return refuse("stop ids within the vocabulary", std::to_string(id));
  for (const Parts& parts : slot)
    for (const Part& part : parts) {
      if (part.id < kDate || part.id >= vocab_size || part.strip > 3)
        return refuse("ids within the vocabulary", std::to_string(part.id));
      if (part.id == kDate && !is_date_format(part.text)) return refuse("the format of a date", "'" + part.text + "'");
    }
  return true;
}

// Turns text into ids, as Tokenizer::encode() does. Throws std::bad_alloc on failure, as ids_of() does.
using Encode = std::function<std::vector<int>(std::string_view text, bool bos)>;

// A text after edits, bits of ChatTemplate::Edit.
inline std::string edited(std::string_view text, unsigned edits) {
  const std::string_view end = ChatTemplate::kThinkingEnd;
  const size_t at = edits & ChatTemplate::kDropThinking ? text.rfind(end) : text.npos;
  if (at != text.npos) text.remove_prefix(at + end.size());
  if (edits & ChatTemplate::kTrimNewlines) text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
  return std::string(without_space(text, edits & ChatTemplate::kTrimFront, edits & ChatTemplate::kTrimBack));
}

// A reply as the template renders it.
inline std::string edited_reply(const ChatTemplate& chat, const std::string& text) {
  const bool thinks = text.find(ChatTemplate::kThinkingEnd) != text.npos;
  return edited(text, chat.edit[thinks ? ChatTemplate::kThinkingReplyText : ChatTemplate::kReplyText]);
}

// The reply after a message: to be generated, or of an earlier turn, whose tokens or text follow.
enum class Reply { next, tokens, text };

// For programs: the text and control tokens before a reply: `message` as the next user turn, after the end of the last reply or, if
// it is the first turn, after the system prompt. None if the template does not take the system prompt.
inline ChatTemplate::Parts chat_parts(const ChatTemplate& chat, const std::string& system, const std::string& message,
                                      bool first, Reply reply = Reply::next) {
  ChatTemplate::Parts parts;
  if (!chat.takes(system)) return parts;
  const auto add = [&](ChatTemplate::Slot slot) {
    parts.insert(parts.end(), chat.slot[slot].begin(), chat.slot[slot].end());
  };
  const auto add_text = [&](ChatTemplate::Text kind, const std::string& text) {
    parts.push_back({ChatTemplate::kText, edited(text, chat.edit[kind])});
  };
  const bool with_system = !system.empty() && (chat.system_in_last_turn ? reply == Reply::next : first);
  if (!first) add(ChatTemplate::kReplySuffix);
  if (!with_system || chat.system_in_last_turn) add(first ? ChatTemplate::kOpening : ChatTemplate::kUserPrefix);
  if (with_system) {
    add(ChatTemplate::kSystemPrefix);
    add_text(ChatTemplate::kSystemText, system);
    add(ChatTemplate::kSystemSuffix);
    add(ChatTemplate::kFirstUserPrefix);
  }
  add_text(with_system ? ChatTemplate::kFirstUserText : ChatTemplate::kUserText, message);
  add(ChatTemplate::kUserSuffix);
  add(reply == Reply::text ? ChatTemplate::kPastReplyPrefix : ChatTemplate::kReplyPrefix);
  return parts;
}

// For programs: their token ids; bos: they begin a sequence. Text between two control tokens is encoded in one piece, so
// that no token boundary depends on which part it came from, and without the white space that belongs to the tokens.
inline std::vector<int> encode_parts(const ChatTemplate::Parts& parts, const Encode& encode, bool bos) {
  std::vector<int> ids;
  std::string text;
  uint8_t strip = 0;  // of the control token before the text
  const auto flush = [&](uint8_t next) {
    text = std::string(without_space(text, strip & Tokenizer::kStripRight, next & Tokenizer::kStripLeft, false));
    if (text.empty()) return;
    const std::vector<int> more = encode(text, std::exchange(bos, false));
    ids.insert(ids.end(), more.begin(), more.end());
    text.clear();
  };
  for (const ChatTemplate::Part& part : parts) {
    text += part.id == ChatTemplate::kDate ? written_date(part.text, std::time(nullptr)) : part.text;
    if (part.id < 0) continue;
    flush(part.strip);
    const bool first = std::exchange(bos, false);
    if (first) ids = encode("", true);  // BOS, or nothing
    if (!first || ids.empty() || ids[0] != part.id) ids.push_back(part.id);
    strip = part.strip;
  }
  flush(0);
  return bos ? encode("", true) : ids;
}

// Both at once: the token ids of a turn. Returns no ids, which Session::forward() refuses, if memory runs out, or if the
// template does not take the system prompt.
inline std::vector<int> chat_turn(const ChatTemplate& chat, const Encode& encode, const std::string& system,
                                  const std::string& message, bool first) try {
  const ChatTemplate::Parts parts = chat_parts(chat, first ? system : "", message, first);
  if (parts.empty()) return {};
  return encode_parts(parts, encode, first);
} catch (const std::bad_alloc&) {
  return {};
}

// Notices that a text has locked into a loop: it ends in one passage repeated at least four times and for 96 tokens.
// Lists, tables and refrains repeat too, but not for that long.
class LoopWatch {
 public:
  static constexpr size_t kTokens = 96, kTimes = 4, kLongest = 128;  // kLongest: of the passage, tokens

  // True once the tokens so far end in a loop.
  bool push(int id) {
    ids_.push_back(id);
    for (size_t p = 1; p <= std::min(kLongest, ids_.size() - 1); p++) {
      repeated_[p] = ids_[ids_.size() - 1 - p] == id ? repeated_[p] + 1 : 0;
      if (repeated_[p] + p < std::max(kTokens, kTimes * p)) continue;
      period_ = p;
      return true;
    }
    return false;
  }
  size_t period() const { return period_; }                         // tokens of the passage
  size_t kept() const { return ids_.size() - repeated_[period_]; }  // tokens up to the end of its first occurrence

 private:
  std::vector<int> ids_;
  size_t repeated_[kLongest + 1] = {};  // by period: how many of the last tokens equal the token one period earlier
  size_t period_ = 0;
};

// ====================================================================================================================
// 10. Unicode: sets of characters, and normalization
// ====================================================================================================================

namespace tokenizer_detail {

// The tables at the end of this file. Each is a list of numbers in base 32, the lowest digit first. The digits are the
// characters of -0123456789A...Z_a...z; 32 is added to all digits of a number but the last.
struct UnicodeTables {
  static const char kCategories[];        // of each run of code points: 16 * size + category
  static const char kDeepSeekLetters[];   // of each run: code points after the last run, size
  static const char kCombiningClasses[];  // the same and the class
  // Differences to the entry before: 2 * code point + whether two characters become it again; the first and the second
  // character, 0 if there is no second.
  static const char kDecompositions[];
};

class Numbers {
 public:
  explicit Numbers(const char* table) : at_(table) {}
  bool more() const { return *at_ != 0; }
  uint32_t next() {
    uint32_t value = 0;
    for (int shift = 0;; shift += 5) {
      const uint32_t d = digit(*at_++);
      value |= d % 32 << shift;
      if (d < 32) return value;
    }
  }
  // Adds a difference: 0, -1, 1, -2, 2, ... are stored as 0, 1, 2, 3, 4, ...
  void add_next(char32_t& value) {
    const uint32_t n = next();
    value += n % 2 ? ~(n / 2) : n / 2;
  }

 private:
  static uint32_t digit(char c) {
    if (c >= 'a') return uint32_t(c - 'a') + 38;
    if (c >= 'A') return c == '_' ? 37 : uint32_t(c - 'A') + 11;
    return c == '-' ? 0 : uint32_t(c - '0') + 1;
  }
  const char* at_;
};

// ---- Sets of characters ----

// Code points from `first` to the next run.
struct Run {
  char32_t first;
  uint32_t value;
};

// The value of a code point; the runs are in ascending order and begin at 0.
inline Run run_of(const std::vector<Run>& runs, char32_t code) {
  return *(std::upper_bound(runs.begin(), runs.end(), code, [](char32_t c, const Run& run) { return c < run.first; }) -
           1);
}

struct CharacterSets {
  std::vector<Run> categories;  // a bit of Set; 0: upper and lower case in turn
  std::vector<Run> deepseek;    // whether DeepSeek LLM lists it as a letter
  Set ascii[128];

  CharacterSets() {
    char32_t code = 0;
    for (Numbers table(UnicodeTables::kCategories); table.more();) {
      const uint32_t run = table.next(), category = run % 16;
      categories.push_back({code, category > 8 ? 0 : Set(1) << category});
      code += run / 16;
    }
    code = 0;
    deepseek.push_back({0, 0});
    for (Numbers table(UnicodeTables::kDeepSeekLetters); table.more();) {
      deepseek.push_back({code += table.next(), 1});
      deepseek.push_back({code += table.next(), 0});
    }
    for (code = 0; code < 128; code++) ascii[code] = find(code);
  }

  Set find(char32_t code) const {
    const Run run = run_of(categories, code);
    Set sets = run.value != 0 ? run.value : (code - run.first) % 2 ? kLower : kUpper;
    if (run_of(deepseek, code).value) sets |= kDeepSeekLetter;
    return code < 128 ? with_ascii_sets(code, sets) : with_wide_sets(code, sets);
  }

  static Set with_ascii_sets(char32_t code, Set sets) {
    if (code == ' ') return kBlank;
    if (code == '\r' || code == '\n') return kNewline;
    if (sets & kLetter) sets |= kAsciiLetter;
    if (sets & kNumber) sets |= kAsciiDigit | kDigit;
    if (sets & (kPunctuation | kSymbol)) sets |= kAsciiSign;
    if ((code >= '!' && code <= '/') || (code >= ':' && code <= '~')) sets |= kDeepSeekSign;
    return code == '/' ? sets | kSlash : sets;
  }

  static Set with_wide_sets(char32_t code, Set sets) {
    const auto in = [=](char32_t first, char32_t last) { return code >= first && code <= last; };
    if (sets & kNumber || in(0x11DE0, 0x11DE9) || in(0x16FF4, 0x16FF6)) sets |= kDigit;  // \p{N} of Unicode 17
    if (in(0x4E00, 0x9FA5) || in(0x3040, 0x30FF)) sets |= kHanOrKana;
    if (in(0x800, 0x9FA5) || in(0xAC00, 0xD7FF)) sets |= kEastAsian;
    if (in(0x2018, 0x201F) || in(0x3000, 0x3002) || in(0xFF01, 0xFF0F) || in(0xFF1A, 0xFF5E)) sets |= kDeepSeekSign;
    return sets;
  }
};

inline Set sets_of(char32_t code) {
  static const CharacterSets sets;
  return code < 128 ? sets.ascii[code] : sets.find(code);
}

// ---- Normalization form C (Unicode Standard Annex 15) ----

// Characters are decomposed, marks that do not interact are sorted by their combining class, and characters are composed.
struct Normalization {
  struct Decomposition {
    char32_t code, first, second;  // second: 0 if there is none
  };
  std::vector<Run> combining_classes;
  std::vector<Decomposition> decompositions;  // by code
  std::vector<Decomposition> compositions;    // by first and second

  Normalization() {
    char32_t code = 0;
    combining_classes.push_back({0, 0});
    for (Numbers table(UnicodeTables::kCombiningClasses); table.more();) {
      code += table.next();
      const uint32_t size = table.next();
      combining_classes.push_back({code, table.next()});
      combining_classes.push_back({code += size, 0});
    }
    Decomposition d = {0, 0, 0};
    for (Numbers table(UnicodeTables::kDecompositions); table.more();) {
      const uint32_t difference = table.next();
      d.code += difference / 2;
      table.add_next(d.first);
      table.add_next(d.second);
      decompositions.push_back(d);
      if (difference % 2) compositions.push_back(d);
    }
    std::sort(compositions.begin(), compositions.end(), before);
  }
  static bool before(const Decomposition& a, const Decomposition& b) {
    return a.first != b.first ? a.first < b.first : a.second < b.second;
  }

  struct Decomposed {
    char32_t code;
    uint32_t combining_class;
  };

  // Hangul syllables are numbered by their parts: 19 leading consonants, 21 vowels, 27 trailing consonants or none.
  static constexpr char32_t kHangul = 0xAC00, kLeading = 0x1100, kVowel = 0x1161, kTrailing = 0x11A7;
  static constexpr uint32_t kLeadings = 19, kVowels = 21, kTrailings = 28;

  void decompose(char32_t code, std::vector<Decomposed>& out) const {
    const auto found = std::lower_bound(decompositions.begin(), decompositions.end(), code,
                                        [](const Decomposition& d, char32_t c) { return d.code < c; });
    if (found != decompositions.end() && found->code == code) {
      decompose(found->first, out);
      if (found->second != 0) decompose(found->second, out);
    } else if (const uint32_t n = code - kHangul; n < kLeadings * kVowels * kTrailings) {
      out.push_back({kLeading + n / (kVowels * kTrailings), 0});
      out.push_back({kVowel + n / kTrailings % kVowels, 0});
      if (n % kTrailings) out.push_back({kTrailing + n % kTrailings, 0});
    } else {
      out.push_back({code, run_of(combining_classes, code).value});
    }
  }

  // 0: none
  char32_t compose(char32_t first, char32_t second) const {
    const uint32_t l = first - kLeading, v = second - kVowel, s = first - kHangul, t = second - kTrailing;
    if (l < kLeadings && v < kVowels) return kHangul + (l * kVowels + v) * kTrailings;
    if (s < kLeadings * kVowels * kTrailings && s % kTrailings == 0 && t > 0 && t < kTrailings) return first + t;
    const Decomposition key = {0, first, second};
    const auto found = std::lower_bound(compositions.begin(), compositions.end(), key, before);
    return found != compositions.end() && !before(key, *found) ? found->code : 0;
  }

  // Composes in place.
  void compose(std::vector<Decomposed>& text) const {
    size_t size = 0, starter = text.size();  // starter: the last character of class 0
    for (const Decomposed d : text) {
      const bool adjacent = size > 0 && starter == size - 1;
      const bool reaches = starter < size && (adjacent || text[size - 1].combining_class < d.combining_class);
      if (const char32_t code = reaches ? compose(text[starter].code, d.code) : 0) {
        text[starter].code = code;
        continue;
      }
      if (d.combining_class == 0) starter = size;
      text[size++] = d;
    }
    text.resize(size);
  }
};

inline std::string nfc(std::string_view text) {
  static const Normalization tables;
  if (std::all_of(text.begin(), text.end(), [](char c) { return uint8_t(c) < 0xCC; }))
    return std::string(text);  // < U+0300
  std::vector<Normalization::Decomposed> characters;
  characters.reserve(count_characters(text));
  for (size_t i = 0; i < text.size();) {
    const Utf8 u = read_utf8(text.substr(i));
    i += u.length;
    tables.decompose(u.code, characters);
  }
  const auto is_starter = [](const Normalization::Decomposed& d) { return d.combining_class == 0; };
  for (auto begin = characters.begin(), end = begin; begin != characters.end(); begin = end) {
    begin = std::find_if_not(begin, characters.end(), is_starter);
    end = std::find_if(begin, characters.end(), is_starter);
    std::stable_sort(begin, end, [](const auto& a, const auto& b) { return a.combining_class < b.combining_class; });
  }
  tables.compose(characters);
  std::string out;
  out.reserve(text.size());
  for (const auto& d : characters) append_utf8(d.code, out);
  return out;
}

// clang-format off
// Printed by tests/tokenizer/unicode_tables.py: categories of Unicode 16.0.0, normalization of Unicode 9.0.0.
inline const char UnicodeTables::kCategories[] =
    "k3s1V8Nq0Ma2Ma1_4a0r0a0WCq0MLMXCLMLMV2NVCNLr1Lb0ILMFb1_0MHa0MKILp0LlAMl2XBMX3tQX0t6X0dMW0HGHGm0W0HGHW0Hl0X0W1HW0H"
    "l0m0W0HW0Hd1W0HGX0GHW0Hl0HGHW0X0IGm0Y1W0HW0HW0Ht6X0t7X0W0HGHl0HtRm2W0HW0X0GHW1Ht2mX0ImCY8b1Y5b6n1r2IMIr7Zs0d1IMGH"
    "V0Im0LGV1b0GLl0FGFW0Hl7Fl3mGGX0l0m0tAm1GHMGHW0X0lOXNdGMo2dQW0Ht4X0dk0FWIV0Ia2mJa0V0r0FoLLJLZ0LZ0LJV3nCV1Y1a0k7r0a"
    "0Ma0b0o4LFq0nKo9_4a1Y0Jnl0LIo2FMZ2Y0Z0MZ1Y0_4n0b0Ia6V0IJYEoCV0ng0o4IV6_4nFo3Y0Mq0IV0Jb0YAZ1Io3Io0Io1V0q6FnBo0V0LF"
    "n4k1YBMY2V3o3YKZBFoFYQo0IZ8Io2Y4Z0a0_4LY7o0FY3V0Y0V0YAFn2FIk0Y1V0JIo2V0Z0V0o0IV3JV1Y0Fn0Z0V0_4Y0b0_2b0ILJV0o0FY2V"
    "1Y0V0YAFn2FY0FY0FY0V0JFo1V1Z0V0o0k0Jk2Y1FIk2_4Z0n0JLV4o0Fn3Fn0FYAFn2FY0Fn1V0JIZ3Fo0Fo0V0Ik6Y0Z0V0_4LMk2IZ2Fo0FY3V"
    "0Y0V0YAFn2FY0Fn1V0JIo2V0Z0V0o0k2o0V1Y0Fn0Z0V0_4MI_2V4JIFY2k0n0FY1k0Y0FIFY0k0Y0k0n0k0Y5V1o1k0o0FZ1V0IV2JV6p5b3k1o1"
    "Y3Fn0FnAFY7V0JIo2Fo0FZ1k2Z0Fn0V0IV0Y0Z0V0_4k2Lp2MIo0LY3Fn0FnAFY4Fn1V0JIo2Fo0FZ1k2Z0V2Y0FY0Z0V0_4FY0JV5Z1n3Fn0FnJZ"
    "0Io2Fo0FZ1IMV1n0Jp2n0Z0V0p8MY2Fo0FY8k0YBFn3FIV0n2k0JV1Z2FJFZ3V2_4V0Z0LV5YNJY0o2V1Mn2Z3L_4a0kHY0FIFn1FYBFIFY4JY0o3"
    "IV0n1FIFo2F_4V0Y1VFIr0q6MLr0Z0b2_9MJMJMJa1Z0Y3FYHV1Z9LZ0n1o4FZHFb3Jb2Fb0q1b1a0kHnKZ9I_4a2Y2Z1Y1o0Io0Y0o2n0Z1n5Z5I"
    "J_4Z1b0WIFGk1GV0mKLIm0nZ4FY1V0n2FIFY1V0nJFY1V0nFFY1V0n2FIFY1V0n6FnRFY1V0nW0V0o0q3_9k0Y7b4V2Wf0V0X2V0LYq8MLn7NYCa0"
    "k0n_0q0p0Y3k2Y8Z1k3n8o0a0k3Y8Z0V5n5Fn0FZ0V5YPZFq0Iq0MIJV0_4V2_4V2q4o0FJ_4V2ng0k2n1Z0YGJIk1YY0V4nEFZ5V1Z5V1Mk0a0_4"
    "YEV0n1k4YLV1YCV2p4k0bGnAo1V0a0nPZ4FoDV0J_4V2_4V2q2Ia2V0oEkNo1nMo7Y3Fa0_4q2b4o3r3q0o0YEo5Y0_4YLZ6V3a1YHZ9k0q1_4k0n"
    "0_4YHa0m3GHk1lKV0l0a3V3o0Lo9Y1JY2JY0o0Ik1XLnUm5IXGnHZV0te1m3tk0m3W3X2V0W2V0X3W3X3W3X2V0W2V0X3FGFGFGFGX3W3X6V0X3W3"
    "X3W3X3W3m1FX0l1MHr0m0FX0l1r0X1V0X0W1Fr0X3l1r0V0m0FX0l1b0Fs4k1aBc0k1Na9Mq5Ma5NV7KIV0_2r0a0I_4r0a0Fn5k0rFk6oFk6b0Gb"
    "1Gb0Hl0X0l0HMGr0l1b2GMGMGMW1MHW1HY1Hb0X0W0r1GX1b1HMpOGHp1b0V1bw4a1rDa0rz2VAr4k9_Tbb0_Abo8a6_ErNa0rEa4rd5aArUa1bFa"
    "0bv4V0bFFro0WNXNGHl0X0d2W1HGX0GX2Y0l0Htk0X0b2d1o0GHk1a1Ka0XIFHk1HV0YRk2ILV6JnAk3n2Fn2Fn2Fn2Fn2Fn2Fn2Fn2FZFqMIaFb0"
    "a5VGbCFrg0V5bf2VCb7Nq0MY0Ka4b0a5Mp3Z2Ln1b0p0Y0Lb0FYf0V0Z0b0n0LYh0LY1k1nKFYj0Fb0_1b4YFbIk3MY7rEF_4bE_3Mp6bF_4rIp6b"
    "V4YVb2bV0nau9k0rQk3YMa0na3q0Y7_4Y0V9dMIZ1LZ4LIdDY0Z0YY0_4Z0a2V3rAn3b0t5m0dUIX3d1W0Hd3Ib0d1IGHGm0d9l1Hl1Hd6W1HGHW0"
    "HV0GHFHFHt2k9n0GHn0Hn2Jn0JY1JnAo1b1Jk0_2b1V2YPa1V3Z0YOZ8V3a0_4V2Z8Y2q0ILY0J_4YDZ3a0nAo5k4LnDk0Z1nMZ6q5FI_4V1a0n1J"
    "Y4_4n1FnJZ6k3n0JY3Z0V0_4V0a1nAr0Io0YOJIo0Y0Z0n1Z0IJIVBn0a0n4o1a0n0Z0V4Y2V0Y2V0Y2k3n2Fn2FmKMY1m3Ib0V1Xc0nGZ3LZ0V0_"
    "4V2Ymi4V5nAV1nNVXZ3Yr4V0Yp0VIm2V5m1k1IJY4Mn5Fn1FIFY0FY0FYq0r7V7np4a0b7YV0V0YQk2MVFY5b1Z7a4V2Z7qGFa6MLr0FLMa0V1n1F"
    "nY1V1q0Ma2Ma1_4a0r0a0WCq0MLMXCLMLMq2ng0k0Y2V0Y2V0Y2V0n0k0r2Fr2k5b0V0Y5FYCFn8FY0Fn6V0Y6VGnx0k1q0V1pLk0r3pRr7_0r0Fr"
    "5k0MkMrLJVW1nDk0nNk6JpCV1YF_1k3Y9KY3Kk1YIo1k1YEFLYHV1Y3Lp1VKWJXJYb0V0_4V2WHV1XHV1YJV3YPk4Ll4Fl6Fl2FW0Fm4Fm6Fm2FX0"
    "k0YPV5nv3k3YAV4Y3VBY2FYKFn3kX0Y2V0IFYLFY0k0IV0nAFL_3nAb0p2nEV3p3VNn8FY0k1p1YA_2k0LYCk1LVV0YRV1_0Y0_7V0_MIo0FZ0k1Z"
    "1Y1Fn0FnDV0o0V1Jp3k2q3k2nD_0LnDp0VFY3MYDZ0V1p1q2k3YQk0q2YAV0_3n8k1_3Y8k2a1V5p2Vc0nZ0kQlOk5mOk2_2YHZ1V3_4V2_4Y2WAk"
    "0o1LIXAV3b0Vc2pEFYKFZ0LV0Y0V7n0kQZ1nD_4IV3YAo4_1q1VAY8Z1a1VIn9p2V9nAk3o0nPo6q2V1_EJY0Z0Ik3Z1nLo4a0Fa1Jk5nBk2_4V2o"
    "0YHZ6F_4a1IZ0IV3nGJa0Ik3o0YNZ6Y1a1Z1LZ0_4ILIq0F_9k4Y8FnBZ5a2JY0JVUn2FIFY1Fn6FY4LV2nMZ5k1_4V2Z1FY3V0Y0V0YAFn2FY0Fn"
    "1FZ0Io2V0Z0V0o0V0IV2Jk1n1Z0V0o2k0o1k4Y4FIV0IFYIFIo3FJV0JFZ1Fo1IJIa0Fa0V3Z0kDnPZ8Y1q1_4a0FLJn0VEYNZ9Y0LIV3_4Vn1nMo"
    "2V0o3qAY1Z0VGYNo7q0Ik4_4V2q5k8nKo5ILV2_4V2_9VDnCV0o6V1_5q0Mn2kw1YLo6LVm0WFXFp8V5Y3V0IV0Y3FY0FYBZ2FZ0V0Z1IJIZ0q0k3"
    "_4VY0Y3V0nIo2V0o2ILIJkCIZ4YJo2IZ1a3JV3Io4YMZ7q0Iq1k5nZ0k2a4Vv1nFLV6_4V2n3FnHZ3FZ3Iq1V4pDk0a0YEV0ZAFZ6kZ0n2FY0FYIZ"
    "2k0JFZ0Fo2IJV3_4V2Y2FY0FYFo1FZ0Fo1Ik2_4Vv3n8Z1a0k2Z0IJn5FYGo2k0o1q5_4Jke0Ik6p9rDk5LYhDVn0pr0Fq1k4YX2Vad0nk0a0k5Ys"
    "FV7JY2o6V4nhy0k1nY8kwe2YEZ8_4VYQnw7k2nEF_4V1a0nb0F_4V2YEV0o1LV4YNo2q1b1Y1LMV4_4Fp2Fn9k1n8Vs5nLq0_4VY2WFXFpAa1km0n"
    "_0V1JIoQk2Z1n5VV0Y0LIJk4Z0V6Ywz1V3YfIkJY4knf3Y1Fn2FY0Fnl3k6IkDn0V0IV6Y1V3Ya5VXZ0np0k1n5k0n3k2Y4V0MZ0LVkx0bs2_4V2b"
    "u5Va0ZMV0oAk3bu0VTbv2V4rIV0bTo1r0Z2V3Z3b0o2bEZ1rTk9bW0o0MVx0_9V5_9V5rf0k3pBkY1WCXCWCm2FX8WCXCGFW0V0GV0W0V0W1FW3X1"
    "FHFm2Fm4WCXCW0FW1V0W3Fl2FXCW0FW1Fl1FGk0l2FXCWCXCWCXCWCXCWCXCWCXCWCXDV0lBMmBMX2lBMmBMX2lBMmBMX2lBMmBMX2lBMmBMX2GHV"
    "0_ObV7oQb1ZOb3Jb6Jb0q1k6o1Fo6VcGX4IX9V2X2ke2o2Fo7V0o2FZ0Fo1k1YUkFJVs0nLk0o2n2V0_4V1IMVV4YEJk7YLZ1_4k1MVc6YDZ1_4Vf"
    "2YEZ0I_4V1LVk6n2FY1FY0Fn6FnX2V0p3o2kJWGXGo2IV1_4V1a0kcBpSMp0M_1Va0pLMp6VW2Y1FnCFY0FIV0IFY4FY1FIFIV2IV1IFIFIFn0FY0"
    "FIV0IFIFIFIFIFY0FIV0Y1Fn2FY1FY1FIFY4Fn7k1n0Fn1Fn7VPb0Vb3bLV1bm0V5r6V0r6Fr6FrHV4p5rk1VRrDk5bLV1r3k2b0V6b2Vh1bgEV1r"
    "7k0r5k0rv0V1rj0V2b5V1Mk6b5V1bRV3b4V2bJV3bEV0b5V1b0VUbe4V5b6V0r5k0b4k1bRk2r6V0r4V2r3k2rd1Fbi0_4VYFYkvJVFYxV1V2Yj2V"
    "0YWu1V6nso2k6Yr8Vla0Yj7VlMn_h1k1YkW1Vcpv9Zs2Vcsz1";
inline const char UnicodeTables::kDeepSeekLetters[] =
    "W1P5Pu009M0U0Y5033k50QV531122005002000J0n10f37a40a0du1a0uLq115mZ1f012V1g0z0C0X0_2q7151a015170000000U1p00600220623"
    "153C4206_7030190024500000030530134430o01vn1w21b25321geTi0HRa3i10M23WUk1VuI6B4dV0P5P__0k1V2Z03Z0Zw0n0Cn0hx1V1VWo0Z"
    "1";
inline const char UnicodeTables::kCombiningClasses[] =
    "VNKa6-0c6-3w5-0c6-0s5-4w5-1e5-3w5-1e5-Aw5-40-3w5-7a6-0k6-0a6-2w5-2a6-1w502a6-3w5-0a6-0c6-1w5-0a6-0d6-1e6-0d6-1e6-"
    "0d6-Ca6n74a6d70w5-3a6-0w5-2a6-0y5-0w5-5a6-5w5-1a6-0w5-1a6-0y5-0Z6-0a6-09-0A-0B-0C-0D-0E-0F-0G-0H-1I-0J-0K-0L00M00"
    "N-0O00a6-0w500Hc17a6-0T-0U-0V0k00Q-0R-0S-0T-0U-0V0-0W0-0X0-1a6-1w5-4a6-0w5-1a6-0w5F0Y0_26a613a6-0w5-0a611a600w5-1"
    "a6-0w5Y00Z0T0a6-0w5-1a6-0w5-1a6-2w5-0a6-1w5-0a6-0w5-2a6-0w5-0a6-0w5-0a6-0w5-0a6-0w5-1a6V46a6-0w5-0a6X03a608a602a6"
    "04a6f02w5s2Da600w5-1a6-0w5-1a6-0w5-2a6-2w5-0Q-0R-0S-2a6-0w5-1a6-1w5-4a6w006F0820a6-0w5-1a6b206F08i206F08i206F08i2"
    "06F08z208z20860o1-0v1_206F08z208w208h21b2-08C3f2g21q2D3u2g11w5Q0w500w500s5r00W3-0X300Z343X310X301a6-0801a6y00w5k2"
    "06018m10w5jL2a6oS08U08x30890a6f50Z6j30y5-0a6-0w5v50a6-0w5b108J7a610w5k04a6-5w5-1a6-0w5q206E08a00a6-0w5-6a6q018u00"
    "6A18Y106s32a6000-4w5-1a6-3w5-0a606030w550a621a6a51a6-0w5-6a6-0w5-1a6-0e6-0q5-0w5-0e5-_0a640a6-0d6-0w5-0a6-0w5kL1a"
    "6-10-3a6-20-1a630a6210-0a6-0w5-0a6-10-3w5-0a6yz12a6h308V2V0a6eG0u5-0Z6-0c6-0y5-1V6d217oiS0a639a6V01a6k11a6o708x40"
    "8QHa6t02w5_008z106B08j60a601a6-0w511a641a600a6o008q608ktI0PWN6a6-6w5-1a6hT0w5X60w5p34a6mo00w500a6c00a6-00-0w5308_"
    "40a6-0w5ze008s008t008-06_12a6k018y006g108806e208-06m406-08l106F08N6a624a6h508206v208-06v608-06y208q208-06n208nc00"
    "8kpI40v06a6bfJ00aa41s5-2020X6-4s577w514a6-1w5T3a6o32a6vh26a60Ga616a601a604a6__16w5h25a6-06";
inline const char UnicodeTables::kDecompositions[] =
    "WBX3Vk02-12-12-12-92-343u023h12-12-12-B27E2-12-12-B4982142-12-12-12-96BE2-12-12-B27C6F02-12-12-12-92-343u023h12-1"
    "2-12-B27E2-12-12-B4982142-12-12-12-96BE2-12-12-B27C4-D2j262V1-2z032V1-2z0Z12V1-2v0h12V1-2z012V1-2z092V1-2z092V1-2"
    "x0-2V1-6x0E2V1-2z032V1-2z012V1-2z0X12V1-2z0r02V1-2v0I2V1-2z072V1-2z012V1-2z0V12V1-2x0d12V1-6x012V1-2z012V1-2z032V"
    "1-2z0Z12V1-2z0W18182V1-2x0e12V1-4x0f12V1-2z0g12V1-2z0p02V1-Av0K2V1-2z0g12V1-2z0p02V1-8x0E2V1-2z032V1-2z092V1-6t0I"
    "2V1-2z0g12V1-2z0p02V1-2x0K2V1-2z012V1-2z0e12V1-2z0p02V1-2x0q02V1-2z0p02V1-6x0G2V1-2z012V1-2z032V1-2z072V1-2z012V1"
    "-2z0u02V1-2v0f12V1-2v0-2V1-2z0B21C2V1-2z0B2V1-2z092V1-_1p1T2V1-Sn0-2V1-v0b2S2V1-2j0-2V1-2n0-2V1-2n0-2V1-2i5E2V1-2"
    "z042V1-2z0L2V1-2z0M2V1-4j272V1-2ZJ-21-2WL-2V1-6x8F2V1-2r0-2V1-2r0s02V1-2qMb121-2b2F2qC-2jX0-8_1K2V1-6l002V1-2i412"
    "V1-2x0-2V1-2Q-2V1-2hAR2V1-2z032V1-2r022V1-2z032V1-2r022V1-2z032V1-2n022V1-2z032V1-2t022V1-2z032V1-2t022V1-2z032V1"
    "-2Y1e02V1-2x0-2V1-6r1n02V1-Eh182V1-2r0V12V1-2X6_12V1-2W1-2V1-2f952V1-2yQ421-2fS-2V1-uFic0bk011-3Z0-1KXk0V2x3Wk0Jv"
    "b0-Eu5Xk02mi0-1nh0Wk02wh0Xk023-23-4B-4B-27-2X1-p0W2D2N-2NC27-23-23-2Z0-p0Y0D2N-2AC2B-27-AH-2-Dt1a3E2-F42C8ODAc0C2"
    "202LBMK-W1V1-j04A2-F42C8a1DAr0C2202LBl0X2H21-p3x4G2V1-Sf1-2V1-2z032V1-6p022V1-6a9321-2_B-2V1-2x0-2V1-6x062V1-2z07"
    "2V1-2n0-2V1-6o9-21-2rA-2V1-2n162V1-2z072V1-2z052V1-2r042V1-6r0-2V1-nHsSqo02-12X1-2W112a10p8q7-4b0-Y0X0-h_0g_0ki0G"
    "F-65-c1v0-11-11-19-19-11-1H-17-t5k8Z72-m0V0f1p011-3P-c4a7V75B-a1Y1-11-19-5T-pDsGoG6-j02-m0V0f1p011-j2V6q8h2c2l021"
    "-20m0t6V7y6l6m6y6ED-2-14-b027a0z6s6m521-20m0x7a8a64-925824e0eLmLkSJJ-99-99-99-Pp02JX2_33-31X3N31-HY3-Z0X1i2JJ-99-"
    "99-99-Pp02v5e8m6Wi4Vi4ik443-43-43-43-87-n1m1-43-63-21-45-vf0WkCzVB2V1-2x0v02V1-2z0s02V1-2z0R2V1-2e5z12V1-2_9B2V1-"
    "2z0s02V1-2z0R2V1-2z0I2V1-2z0B2V1-2w9t121-20121-2vBs12V1-2z052V1-2aRn121-2_T12V1-2x042V1-2x052V1-2z0s02V1-2z0p02V1"
    "-2z0y02V1-2z0D2V1-2x032V1-2g5x12V1-2b9-2V1-2z0Z12V1-2z0R2V1-2x0Q2V1-2owDx021-2pyDu12V1-2z062V1-2x0r12V1-2z0B2V1-2"
    "z0s02V1-2x0r02V1-2z0s02V1-2z0R2V1-2z062V1-2i5r12V1-2z0D2V1-2i4E21-20121-2tE-2V1-2z0B2V1-2v0-2V1-2z0s02V1-2kyDx021"
    "-2lVEu12V1-2x0n12V1-2z0s02V1-2iDr021-29-21-2XkD-21-2xVE-2V1-2z0s02V1-2z0R2V1-2z062V1-2x0G2V1-2z0N2V1-2z042V1-2aEr"
    "121-21D21-2dG82V1-2z0V12V1-2x0_12V1-2z012V1-2z0D2V1-2z002V1-2z0s02V1-2x0r02V1-2z012V1-2x002V1-2x082V1-2z0X12V1-2z"
    "0R2V1-2Y0-2Nl125323-4gF4AvIs02V1-2z0n02V1-2X5E2V1-2z002V1-2z0H2V1-2z0A2V1-2wvD021-2xtD021-20021-20H21-20A21-2utD5"
    "21-2r_Eu02V1-2z0n02V1-2z0A2V1-2e522V1-2z002V1-2z0H2V1-2z0A2V1-2wwD021-2zaED2V1-2z0o02V1-2n0-2V1-2z0n02V1-2e5E2V1-"
    "2z002V1-2z0H2V1-2z0A2V1-2kxD021-2tmD021-20021-20H21-20A21-20V121-2rJ-2V1-2z0n02V1-2oIE21-20021-20H21-20A21-20V121"
    "-2hK_12V1-2z0a12V1-2z0n02V1-2z0A2V1-Ekn0V02-12yoCb021-20121-20X321-2zqCx12-12irCb021-20121-20X321-2bpCx12-12qpCb0"
    "21-20121-6rrCZ02-12asCb021-20121-6YqCZ02-12mqCb021-20121-20X321-2nsCx12-12XtCb021-20121-20X321-2zqCx12-12irCb021-"
    "20121-20X321-2jtCx12-12ytCb021-20121-20X321-2nrCx12-12XsCb021-20121-6YuCZ02-12muCb021-20121-6bsCZ02-12qsCb021-201"
    "21-20X321-4ruCv14cvCb04-14-X32zsCx12-12itCb021-20121-20X321-2jvCx12-12yvCb021-20121-20X321-2jvCY318zj02HVk01Ezj02"
    "JVk01Gzj02LVk01Izj02V0Vk01Pzj02CVk01Fzj026Vk019zj06ZnCeo021-21-21-21-21-21-21-21-21-21-21-21-21-21-21-2X0-21-21-2"
    "1-21-21-21-21-21-21-21-21-21-21-21-21-2X2-21-21-21-21-21-21-21-21-21-21-21-21-21-21-21-2vvCx22-22yvCX32xvC-28-494"
    "2eVD52dXDx22-22-61Kzj02Leo03k1do06Wl0Zo02sgE52tvC-2G-4H42yVD52WYDd31Ozj02TVk01Qzj02Reo02kXDd32-12-X32fVDr22-22X06"
    "1n2zj06m1Zo02X0-2W2r22-22-61Szj04cbDVk02-12-X32lYDr22-22B61p0zj02X0al02-127w12B-2f1r22-22-61h0zj02a0cl02lj0b01uh0"
    "zj01dm0-6slEeo02_vC-29-4842uXD52h_Dd31_0zj02u0Vk01n0zj02o0eo01dj0do05woE-11-eHn_D-7vp0-1o6-z5qgFkn023-b03-z0s2-27"
    "-22-f2X2-A9-65-l0k0-43-r0i0-6D-63-45-j0pVG-4cXG-Mb0-2WWG-23-2gXG-21-6P-21-65-21-E5-21-6D-21-65-21-b1q0-2B-21-23-Y"
    "2x1-21-2c0-21-EV1-21-21-21-s2ap5jn011-Zv2rm1kn0Wr1wq1XqL43-43-43-43-43-43-43-43-43-43-43-65-43-43-ED-2-14502-1450"
    "2-14502-14502-1j0d20Ki4-SR-43-43-43-43-43-43-43-43-43-43-43-65-43-43-ED-2-14502-14502-14502-14502-1j0d206m3-21-21"
    "-21-8L-ZVZ2qoh0ldN1bpH-1gxI-1YV0-1hzD-1xdF-1av1-1iv_0-1--1pZY0-1VcR-1nZT-1Xw0-1we3-1ab9-1sl3-1of2-1qM-1wI-1it2-1t"
    "cI-1ml0-1wv0-1ek0-1y_7-1um5-1ic3-1xq_0-1aj1-1ysA-1il2-1ZW9-1XzA-1vgV0-1qd8-1Zy9-1it0-1pdI-1ykE-1iZ2-1dpJ-1uZ3-1a_"
    "2-1Zt1-1ZxD-1joV0-1XY0-1iH-1gy7-1yV2-1un2-1ih1-1ol3-1eV2-1g4-1at2-1ao3-1uY1-1qc0-1vqH-1aE-1XX1-1mX2-1qn6-1qr4-1lu"
    "8-1hzN-1eX2-1spD-1wW1-1rW6-1ka2-1kz8-1eY4-1xWU-1os0-1Xv5-1iw0-1eI-1VX6-1kF-1cWB-1lrW0-1mvL-1xeM-1U-1V_J-1Zu0-1aY2"
    "-1cc8-1dj4-1WfJ-1an2-1sjF-1dgT-1wu5-1qX1-1er8-1mT-1l_G-1cyH-1rnJ-1oy6-1rt7-1yfE-1bp2-1ouA-1xpJ-1qd1-1aeE-1ko5-1Xa"
    "2-1ziE-1gzG-1jmG-1ns3-1iyE-1doE-1ew7-1hfI-1qf0-1V5-1kfA-1ga9-1ks1-1aa3-1uj2-1nhU-1uJ-1Xn1-1mr1-1mh2-1mY4-1sm3-1ac"
    "D-1uf1-1uX1-1i2-1_Ya0-1qX9-1Xf1-1qyG-1viN-1sl0-1V6-1od0-1mc4-1gX0-1Vo0-1Xo1-1oX1-1qb0-1if6-1jY4-1en4-1im0-1_nV0-1"
    "s7-1oW0-1qVD-1ozA-1kT-1WyK-1sH-1gs0-1aY3-1Vd7-1lg3-1WdH-1eW3-1wi1-1aS-1Za0-1gt8-1iA-1Xn4-1s9-1wy7-1Zg1-1Z4-1VC-1t"
    "cZ0-1aXK-1gVB-1ck1-1hxP-1p_8-1c_0-1cl4-1X4-1op3-1ma1-1sw2-1cb1-1of6-1Vs4-1Xl6-1dkR-1guM-1duW0-1Zj9-1k6-1wo1-1qK-1"
    "uq1-1VK-1Zl0-1ee1-1woC-1WjY0-1Xg7-1oZP-1tZY0-1wi5-1Xh7-1VoF-1xtM-1mQ-1ah2-1Vr4-1yjG-1t_X0-1gT-1g_3-1wu3-1qI-1oK-1"
    "uY1-1Xm2-1sS-1it3-1gp3-1Z0-1qi3-1gl1-1_uW0-1qrC-1tdC-1avD-1kg0-1Zq7-1me7-1cv1-1kZ0-1jkQ-1cY2-1uW9-1tl2-1e4-1ZM-1Y"
    "x3-1hX0-1yfC-1jdT-1gbP-1rjN-1_2-1yd5-1uX1-1aVC-1WpF-1mt7-1na2-1icJ-1xi2-1XV6-1Yg5-1jfK-1_t5-1Vc1-5od0-3oW6-5fd9-1"
    "soF-1Vu0-1Zb0-1Z1-1D-1o1-1iwD-1jdC-1yj0-3e_2-3gi1-5Vo1-1eB-7Zz2-1P-1s1-1sc1-1fh5-1mx1-1lkY0-1mI-1g5-1sM-1q0-1u5-1"
    "sZ0-1m5-1Z5-1kS-1k5-1sv0-1J-1gX1-1cC-1g1-1c5-1up0-1a8-1y9-1cU-1Zj1-1a9-1kF-1sZ0-1uA-1iU-1ya1-1u9-1L-10-1F-1B-1D-1"
    "V2-11-1ZA-1X3-1yI-1cY0-1e0-1k2-1XI-1a8-1kT-1s7-1--1wS-1mf1-1g7-1qL-1k2-1oO-1e2-1we0-1Z7-1qe2-1sG-1s2-1fwQ-1mbl6-1"
    "fhV6-5YzO-1ys0-1t3-1jT-1eR-1q2-1iJ-1a2-1ae0-1j3-1c3-1m3-1kb0-1m4-1X8-1V0-1wF-1gB-1ou0-1D-1V8-1c3-1qH-1g6-1f3-1g7-"
    "1v1-1Z8-1Z3-1VO-1k4-1g2-1cF-1wG-1a9-17-1q2-1aX1-1X3-1iN-1oO-1U-1i4-1sE-1VK-1mY2-1Yr1-1o6-1q6-1iJ-1e8-1e2-1ZD-13-1"
    "q9-1X0-1m0-1g4-1I-1sN-1eT-1yF-1qA-1VD-1m8-1oJ-1iB-1uo0-1u8-1os0-1kR-1e3-1V0-1mH-1m2-1t1-1g2-14-1W0-1s3-1X4-1wM-1V"
    "Y0-1oI-1iH-1uC-1gV1-1i5-1a6-1e7-1c1-1N-1V2-1ih0-1oc1-1weZ5-1A-1Xt4-1jYw6-1qb1-1X1-1VWd7-1ic4-1aVG-1zsj6-1q3-c3dvg"
    "1cv13m05LGJ1-11Vqu201-11lru2K1-11-711-11-11-11-11-11-33-11-11-11-11-33-33-11-33-11-33-11-11-11-11-1d0416B1J-1H-to"
    "9ef_3qj_343-UJ-b7s7u521-tW0eW0iW02-m0zLZMaL2-I4-PtEyEZE21-aux1wtx1gvx111-1DH1-11-11-11-1i4o4O11-11H11-10111-VZn3x"
    "rW5xqc618-1H-1Xit5-1Yws5-1w3-1P-1i3-1k6-1y0-1w3-1j0-1WYD-1stc6-1tiu5-1D-1V0-1a0-1eut5-1_ac6-1weD-1g1-1wvt5-1bvt5-"
    "1P-1jh0-1Vi0-1H-1oXV8-1nyz7-1R-1bmD-1spD-1L-1s1-19-1YqD-1ZvD-13-1q0-1g0-1L-11-1X0-1Z2-1F-1H-1m0-1J-13-1--1--1uev5"
    "-1rvg5-1feD-1e0-1csv5-1jrv5-1B-1e0-1k8-1f5-1V0-1V1-1o2-1c4-1o0-1a3-1V0-1X1-1--1e0-1Z0-1F-1T-1cK-1zF-1XG-1fB-1a1-1"
    "ta1-1ii2-1zG-1g1-1m0-1Y7-1i9-10-1q6-1kYy5-1Yzx5-19-1T-1c0-1F-1V3-1goy5-1Z3-1vjy5-1y1-1N-1x3-1w7-1jrG-1R-1sVH-1g2-"
    "1--1ocz5-1dVz5-1e0-1T-1N-1emz5-1llz5-1D-1uo0-1Wn0-1WeH-1yhH-1R-1Z4-1_2-1ipV6-1WeV6-1aeV6-1jbV6-14-1X0-1e5-11-1_vH"
    "-1wwH-1q1-1e0-1s1-1hVI-1Xmo6-1hko6-1cYI-15-15-1c0-1kgX8-1bdX8-1aYX6-1--1zmk5-1xhG-1--1p_I-1Xzw6-1ZmM-1jbW7-1H-1jc"
    "I-1ifI-1a2-1J-1Z1-1k7-1hoI-1v0-1krI-1VZY6-1tVY6-1X7-17-13-12-1w1-1c0-1c1-1Q-1L-1y1-1c0-17-1o0-1L-1Z3-1c4-1a1-1s6-"
    "1svY6-1xwY6-1W3-1s5-1q0-1X5-1uVZ6-1xwY6-1t4-1r0-1prJ-1qYK-1e0-1y0-1f1-1pVK-1aiK-1u0-1wd_6-1hX_6-1eG-1x9-1zmK-1krK"
    "-1lsK-1b1-1weA-15-1qq9-1b5-1XWC-1bhT-1wnG-17-1B-1u2-1K-1Vba6-1nbw6-1XfL-1d6-1uB-1a2-1ky_6-1xx_6-1x5-1eE-1hrL-1euL"
    "-1X5-1i3-1wA-1qz_6-1jw_6-1_gM-1mkM-1gsa6-1_pa6-1fkM-1cmM-1u1-1q0-11-1Zhb6-1YsD-1yyD-1reb6-1wac6-1tzb6-1R-1f5-1y9-"
    "1k1-1m2-1f2-1k1-1T-1P-1mtb6-1nyb6-1qE-1y2-1pnN-1ktN-16-1oVc6-1jhc6-1eM-1Vzb6-1V2-1jwb6-1a6-1p0-14-1dcO-1cfO-1a2-1"
    "A-1g2-1kbe5-1zxd5-1wlc6-1hgc6-1yVd6-1_sc6-1P-1q0-1kvd6-1jsd6-1e0-1Vee6-1yC-1nde6-1X0-1xhP-1mjP-1tiP-1--1ysP-1e0-1"
    "e0-1c0-1e3-1xuP-1mVQ-1Zlf6-1jjf6-1cpf6-1Ymf6-1yXq5-1xsp5-1Xtg6-1i0-1s7-1jZc7-1N-1siQ-1yzg6-10-1i1-1o0-1dWh6-11-1-"
    "-1q1-1WlQ-1ZpQ-1doQ-1V4-1isd7-1xwh6-1w2-1V3-1lyQ-1aoe7-1zgi6-1coi6-1q1-1fni6-1s4-1rfR-1XlR-1J-19-1umj6-1qH-1--1lv"
    "j6-1riR-1mug7-1dyj6-15-1YuR-1m_h7-1vuj6-1YYS-1kZS-18-1u0-1gcl6-1_Xl6-1YaS-1ggS-1q2-1a3-1WlS-1cjj7-1y0-1vij7-1Vsj7"
    "-1xpl6-1cwl6-1lul6-1e5-1L-1ehm6-1m3-1_gm6-1kom6-1jnm6-1yit5-1nsr6-1uhT-1X4-1jjT-1anT-1lcI-1Zja7-1R-1YXP-1H-1pts5-"
    "15-1ot5-1_n_0-1gXU-1A-1Z0-1nyM-1wzM-13-1J-1m1-1g_o6-1h_o6-1k2-1g3-1o3-1n7-1o8-1o1-1V6-1bF-1i6-13-1V0-1o_o6-1eI-1f"
    "8-1nun7-1gwU-13-1a1-1cfr6-1far6-1kwo6-1xwo7-17-1V_p7-1XH-1hqp7-1eiV0-1N-1L-13-1V3-1W1-1g7-1r1-1i8-1W4-1a3-1q0-1xu"
    "V0-1oVW0-1V1-1jVW0-1iaW0-15-1cVr6-1zsq6-1D-1leW0-1egW0-1xYe0-1azW8-1kA-1jet7-1H-1mxW0-1u3-1u8-1qB-1a_s6-1tzr6-1g0"
    "-1o4-1s4-1kvs6-1pmv0-1lYx4-1S-1c2-1wix4-1nVx4-1c5-1odv6-1q0-1lpu6-1u4-1V1-1uWv6-1_Wv6-1uG-1y8-11-1r4-1uM-1s0-1eyv"
    "6-1xav6-1fz_0-1ZXa0-1Vwv6-1WtW8-1uha0-1WlR-1XrR-1ZXx6-1eC-1ruY8-1F-1oqa0-1oXy6-1jpZ8-1cyZ8-1pcy6-1--1w0-1usy6-1bh"
    "y6-1xua0-1gza0-1w6-1q0-1s2-1zXb0-1Zqb8-1vWV7-1wH-1uA-1xXc0-1y0-1obc0-1iqW7-1fxd8-1uVe8-1mF-1a7-1fxW7-1dqc0-1auc0-"
    "19-1D-1J-1D-1e1-1egY7-";
// clang-format on

}  // namespace tokenizer_detail

}  // namespace POCKET_ISA
}  // namespace pocket
