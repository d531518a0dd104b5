// pickle.hpp: reads the pickles of torch.save() as data. No code in them is run.
// A pickle (docs.python.org/3/library/pickletools.html) is a program for a machine with a stack and a memo. Opcodes
// push numbers, strings and marks, collect the values above a mark into tuples, lists and dictionaries, and can name
// any Python function (GLOBAL) and call it (REDUCE): a pickle can run arbitrary code. Here only the names that tensors
// consist of are known, and a "call" only combines its arguments. Everything else is rejected.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "byte_reader.hpp"
#include "input_file.hpp"

namespace pocket {

enum class PickleKind : uint8_t { none, boolean, integer, real, text, tuple, list, dict, global, storage, tensor };

/// A value of a pickle, as small as possible: one byte of a pickle can create one. Its items are values of the same
/// PickleReader, so that a value that occurs repeatedly is stored once:
///   tuple, list   the elements
///   dict          key, value, key, value, ...
///   storage       its type (a global), its key (a text); integer: number of elements
///   tensor        storage, shape (tuple), strides (tuple); integer: its first element in the storage
struct PickleValue {
  PickleKind kind = PickleKind::none;
  uint32_t size = 0;             // items; of a text or a global: bytes
  uint32_t first = 0, last = 0;  // entries of its items in PickleReader
  union {
    int64_t integer = 0;  // also of a boolean
    double real;
    const char* text;  // also of a global: "torch.FloatStorage"
  };

  std::string_view string() const {
    return kind == PickleKind::text || kind == PickleKind::global ? std::string_view(text, size) : std::string_view();
  }
};

/// "a tuple", for messages.
inline const char* pickle_kind_name(PickleKind kind) {
  constexpr const char* kNames[] = {"None",   "a boolean",    "an integer", "a number",  "a text",  "a tuple",
                                    "a list", "a dictionary", "a function", "a storage", "a tensor"};
  return kNames[int(kind)];
}

/// The functions that may occur in a pickle: OrderedDict, the constructors of tensors, and the element types of
/// storages; pytorch.hpp supports some of the types.
inline constexpr std::string_view kPickleGlobals[] = {"collections.OrderedDict",
                                                      "torch.Size",
                                                      "torch._utils._rebuild_tensor_v2",
                                                      "torch._utils._rebuild_parameter",
                                                      "torch.DoubleStorage",
                                                      "torch.FloatStorage",
                                                      "torch.HalfStorage",
                                                      "torch.BFloat16Storage",
                                                      "torch.LongStorage",
                                                      "torch.IntStorage",
                                                      "torch.ShortStorage",
                                                      "torch.CharStorage",
                                                      "torch.ByteStorage",
                                                      "torch.BoolStorage"};

/// Whether a global is the element type of a storage.
inline bool is_storage_type(std::string_view global) {
  constexpr std::string_view kEnd = "Storage";
  return global.size() > kEnd.size() && global.substr(global.size() - kEnd.size()) == kEnd;
}

/// Reads one pickle. Takes memory in proportion to its size.
class PickleReader {
 public:
  /// Limit for values, and for entries of the stack and the memo, far above real files. There may also be no more
  /// values than half of the bytes; Python writes at least two for each, and seven on average.
  static constexpr uint32_t kMost = 1 << 20, kMostInAnyPickle = 1024;

  std::string error;  // "NAME: offset 12: expected ..., found ..."

  /// Parses one pickle; anything after it is an error. name: how messages refer to it. False with `error` set.
  bool parse(std::string name, std::string bytes) {
    name_ = std::move(name);
    bytes_ = std::move(bytes);
    in_ = {bytes_};
    for (;;) {
      at_ = bytes_.size() - in_.bytes.size();
      const uint8_t op = in_.get<uint8_t>();
      if (!in_.ok) return cut_short();
      if (op == '.') break;
      if (!execute(op)) return false;
      if (!in_.ok) return cut_short();
      if (values_.size() > most_values()) return refuse({"expected at most ", most_values(), " values, found more"});
      if (stack_.size() > kMost || marks_.size() > kMost)
        return refuse({"expected at most ", kMost, " values on the stack, found more"});
    }
    if (stack_.size() != 1 || !marks_.empty()) return refuse({"expected one value at the end"});
    return in_.bytes.empty() || refuse({"expected the end, found ", in_.bytes.size(), " more bytes"});
  }

  const PickleValue& root() const { return values_[stack_.back()]; }

  /// The first items of a value, at most so many.
  std::vector<const PickleValue*> items(const PickleValue& of, size_t most = kMost) const {
    std::vector<const PickleValue*> all;
    if (of.kind < PickleKind::tuple || of.kind == PickleKind::global) return all;
    all.reserve(std::min<size_t>(of.size, most));
    for (uint32_t entry = of.first; all.size() < std::min<size_t>(of.size, most); entry = entries_[entry].next)
      all.push_back(&values_[entries_[entry].value]);
    return all;
  }

  /// The value of a key of a dictionary, null if there is none.
  const PickleValue* find(const PickleValue& dict, std::string_view key) const {
    if (dict.kind != PickleKind::dict) return nullptr;
    const std::vector<const PickleValue*> all = items(dict);
    for (size_t i = 0; i < all.size(); i += 2)
      if (all[i]->kind == PickleKind::text && all[i]->string() == key) return all[i + 1];
    return nullptr;
  }

 private:
  using Kind = PickleKind;

  struct Entry {
    uint32_t value, next;
  };

  size_t most_values() const { return std::min<size_t>(kMost, kMostInAnyPickle + bytes_.size() / 2); }
  bool refuse(Message why) {
    if (error.empty()) error = text_of({name_, ": offset ", at_, ": ", text_of(why)});
    return false;
  }
  bool cut_short() { return refuse({"truncated: expected more of the pickle"}); }

  bool execute(uint8_t op) {
    switch (op) {
      case 0x80:  // PROTO
        return protocol(in_.get<uint8_t>());
      case 0x95:  // FRAME: size of the following frame, for buffering
        return in_.get<uint64_t>() <= in_.bytes.size() || cut_short();
      case '(':  // MARK
        marks_.push_back(uint32_t(stack_.size()));
        return true;
      case 'Q':  // BINPERSID
        return storage();
      case 'R':  // REDUCE
        return call();
      case 'c':  // GLOBAL
        return global_lines();
      case 0x93:  // STACK_GLOBAL
        return global_stack();
      case 'b':  // BUILD
        return build();
      case 'q':  // BINPUT
        return put(in_.get<uint8_t>());
      case 'r':  // LONG_BINPUT
        return put(in_.get<uint32_t>());
      case 0x94:  // MEMOIZE
        return put(uint32_t(memo_.size()));
      case 'h':  // BINGET
        return get(in_.get<uint8_t>());
      case 'j':  // LONG_BINGET
        return get(in_.get<uint32_t>());
      default:
        return constant(op) || (error.empty() && container(op));
    }
  }

  // Opcodes that push a number or a string. False without an error for other opcodes.
  bool constant(uint8_t op) {
    switch (op) {
      case 'N':  // NONE
        return push(Kind::none);
      case 0x88:  // NEWTRUE
      case 0x89:  // NEWFALSE
        return integer(op == 0x88, Kind::boolean);
      case 'K':  // BININT1
        return integer(in_.get<uint8_t>());
      case 'M':  // BININT2
        return integer(in_.get<uint16_t>());
      case 'J':  // BININT
        return integer(in_.get<int32_t>());
      case 0x8a:  // LONG1
        return long_integer(in_.get<uint8_t>());
      case 'G':  // BINFLOAT
        return real();
      case 'X':  // BINUNICODE
        return text(in_.take(in_.get<uint32_t>()));
      case 0x8c:  // SHORT_BINUNICODE
        return text(in_.take(in_.get<uint8_t>()));
      default:
        return false;
    }
  }

  // Opcodes that create or fill tuples, lists and dictionaries.
  bool container(uint8_t op) {
    switch (op) {
      case '}':  // EMPTY_DICT
        return push(Kind::dict);
      case ']':  // EMPTY_LIST
        return push(Kind::list);
      case ')':  // EMPTY_TUPLE
        return push(Kind::tuple);
      case 0x85:  // TUPLE1, TUPLE2, TUPLE3
      case 0x86:
      case 0x87:
        return tuple(size_t(op) - 0x84);
      case 't':  // TUPLE
        return to_mark() && tuple(stack_.size() - taken_);
      case 's':  // SETITEM
        return add(Kind::dict, 2);
      case 'u':  // SETITEMS
        return to_mark() && add(Kind::dict, stack_.size() - taken_);
      case 'a':  // APPEND
        return add(Kind::list, 1);
      case 'e':  // APPENDS
        return to_mark() && add(Kind::list, stack_.size() - taken_);
      default:
        constexpr char kHex[] = "0123456789abcdef";
        return refuse({"opcode: expected an opcode of tensors or plain data, found 0x", kHex[op >> 4], kHex[op & 15]});
    }
  }

  bool protocol(uint8_t version) {
    return !in_.ok || (version >= 2 && version <= 5) || refuse({"protocol: expected 2 to 5, found ", version});
  }

  PickleValue& create(Kind kind) {
    stack_.push_back(uint32_t(values_.size()));
    values_.emplace_back();
    values_.back().kind = kind;
    return values_.back();
  }
  bool push(Kind kind) {
    create(kind);
    return true;
  }
  bool integer(int64_t value, Kind kind = Kind::integer) {
    create(kind).integer = value;
    return true;
  }
  bool text(std::string_view text, Kind kind = Kind::text) {
    PickleValue& value = create(kind);
    value.text = text.data();
    value.size = uint32_t(text.size());
    return true;
  }

  void append(PickleValue& to, uint32_t value) {
    const uint32_t entry = uint32_t(entries_.size());
    entries_.push_back({value, 0});
    if (to.size++ == 0)
      to.first = entry;
    else
      entries_[to.last].next = entry;
    to.last = entry;
  }

  // The number of values above the last mark. Those below it are not accessible.
  size_t reachable() const { return stack_.size() - (marks_.empty() ? 0 : marks_.back()); }
  bool need(size_t n) { return reachable() >= n || refuse({"expected ", n, " values on the stack"}); }
  uint32_t pop() {
    const uint32_t top = stack_.back();
    stack_.pop_back();
    return top;
  }

  // Removes the last mark; taken_ is its position.
  bool to_mark() {
    if (marks_.empty()) return refuse({"expected a mark on the stack"});
    taken_ = marks_.back();
    marks_.pop_back();
    return true;
  }

  // Moves the n values on top of the stack to a container.
  void move_items(size_t n, PickleValue& to) {
    const auto first = stack_.end() - ptrdiff_t(n);
    for (auto item = first; item != stack_.end(); ++item) append(to, *item);
    stack_.erase(first, stack_.end());
  }

  bool tuple(size_t n) {
    if (!need(n)) return false;
    PickleValue made;
    made.kind = Kind::tuple;
    move_items(n, made);
    stack_.push_back(uint32_t(values_.size()));
    values_.push_back(made);
    return true;
  }

  // Adds n values to the container below them.
  bool add(Kind kind, size_t n) {
    if (!need(n + 1)) return false;
    if (kind == Kind::dict && n % 2) return refuse({"expected a value for each key"});
    PickleValue& to = values_[stack_[stack_.size() - n - 1]];
    if (to.kind != kind) return refuse({"expected ", pickle_kind_name(kind), ", found ", pickle_kind_name(to.kind)});
    move_items(n, to);
    return true;
  }

  bool put(uint32_t place) {
    if (!need(1)) return false;
    const size_t most = std::min<size_t>(kMost, kMostInAnyPickle + bytes_.size());  // Python numbers the places
    if (place >= most) return refuse({"memo: expected at most ", most, " places, found ", place});
    if (place >= memo_.size()) memo_.resize(place + 1, kNothing);
    memo_[place] = stack_.back();
    return true;
  }
  bool get(uint32_t place) {
    if (place >= memo_.size() || memo_[place] == kNothing)
      return refuse({"memo: expected a value at ", place, ", found nothing"});
    stack_.push_back(memo_[place]);
    return true;
  }

  bool long_integer(size_t bytes) {  // little-endian, two's complement
    if (bytes > 8) return refuse({"expected an integer of 64 bits, found ", bytes * 8});
    const std::string_view raw = in_.take(bytes);
    uint64_t value = 0;
    for (size_t i = 0; i < raw.size(); i++) value |= uint64_t(uint8_t(raw[i])) << (8 * i);
    const unsigned unused = unsigned(64 - 8 * raw.size());
    return integer(raw.empty() ? 0 : int64_t(value << unused) >> unused);
  }

  bool real() {  // big-endian
    uint64_t bits = 0;
    for (int i = 0; i < 8; i++) bits = bits << 8 | in_.get<uint8_t>();
    create(Kind::real).real = load<double>(&bits);
    return true;
  }

  bool global_lines() {
    std::string name;
    for (int line = 0; line < 2; line++) {
      const size_t end = in_.bytes.find('\n');
      if (end == std::string_view::npos) return cut_short();
      name += (line ? "." : "") + std::string(in_.take(end));
      in_.take(1);
    }
    return global(name);
  }
  bool global_stack() {
    if (!need(2)) return false;
    const PickleValue &name = values_[pop()], &module = values_[pop()];
    for (const PickleValue* v : {&module, &name})
      if (v->kind != Kind::text) return refuse({"expected the name of a function"});
    return global(text_of({printable(module.string()), ".", printable(name.string())}));
  }
  bool global(const std::string& name) {
    for (std::string_view known : kPickleGlobals)
      if (name == known) return text(known, Kind::global);
    return refuse({"expected tensors and plain data, found the function ", printable(name),
                   ", which Python would call; this program calls no functions. If you trust the file, load it in "
                   "Python and save only the model's state_dict()"});
  }

  // ("storage", type, key, device, elements)
  bool storage() {
    if (!need(1)) return false;
    const uint32_t id = pop();
    const std::vector<uint32_t> parts = indices(values_[id], 5);
    const auto is = [&](size_t i, Kind kind) { return values_[parts[i]].kind == kind; };
    if (values_[id].kind != Kind::tuple || parts.size() < 5 || !is(0, Kind::text) || !is(1, Kind::global) ||
        !is(2, Kind::text) || !is(4, Kind::integer) || values_[parts[0]].string() != "storage" ||
        !is_storage_type(values_[parts[1]].string()))
      return refuse({"expected a storage of tensors, found another persistent id"});
    PickleValue& made = create(Kind::storage);
    made.integer = values_[parts[4]].integer;
    for (uint32_t part : {parts[1], parts[2]}) append(made, part);
    return true;
  }

  bool call() {
    if (!need(2)) return false;
    const PickleValue &arguments = values_[pop()], &function = values_[pop()];
    if (function.kind != Kind::global || arguments.kind != Kind::tuple)
      return refuse({"expected a function and its arguments, found ", pickle_kind_name(function.kind), " and ",
                     pickle_kind_name(arguments.kind)});
    const std::vector<uint32_t> a = indices(arguments, 4);
    const auto is = [&](size_t i, Kind kind) { return i < a.size() && values_[a[i]].kind == kind; };
    const std::string_view name = function.string();
    if (name == "collections.OrderedDict" && a.empty()) return push(Kind::dict);
    const bool is_first = (name == "torch.Size" && arguments.size == 1 && is(0, Kind::tuple)) ||
                          (name == "torch._utils._rebuild_parameter" && is(0, Kind::tensor));
    if (is_first) {  // the result is the first argument
      stack_.push_back(a[0]);
      return true;
    }
    // (storage, first element, shape, strides, requires_grad, hooks, perhaps metadata)
    if (name != "torch._utils._rebuild_tensor_v2" || !is(0, Kind::storage) || !is(1, Kind::integer) ||
        !is(2, Kind::tuple) || !is(3, Kind::tuple))
      return refuse({"expected other arguments of ", name});
    PickleValue& made = create(Kind::tensor);
    made.integer = values_[a[1]].integer;
    for (uint32_t part : {a[0], a[2], a[3]}) append(made, part);
    return true;
  }

  // The indices of the first items of a value, at most so many.
  std::vector<uint32_t> indices(const PickleValue& of, size_t most) const {
    std::vector<uint32_t> all;
    const size_t n = of.kind == Kind::tuple ? std::min<size_t>(of.size, most) : 0;
    for (uint32_t entry = of.first; all.size() < n; entry = entries_[entry].next) all.push_back(entries_[entry].value);
    return all;
  }

  // The attributes of an OrderedDict (_metadata: versions of the modules) are ignored.
  bool build() {
    if (!need(2)) return false;
    const PickleValue &state = values_[pop()], &of = values_[stack_.back()];
    return (state.kind == Kind::dict && of.kind == Kind::dict) || refuse({"expected the attributes of a dictionary"});
  }

  static constexpr uint32_t kNothing = UINT32_MAX;

  // Deques, because a vector takes three times its size while it grows.
  std::string name_, bytes_;
  ByteReader in_;
  size_t at_ = 0;
  std::deque<PickleValue> values_;
  std::deque<Entry> entries_;                  // of all items
  std::deque<uint32_t> stack_, memo_, marks_;  // marks: stack sizes
  size_t taken_ = 0;
};

}  // namespace pocket
