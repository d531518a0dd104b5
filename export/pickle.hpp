// pickle.hpp: reads the pickles of torch.save() as data. No code in them is run.
// A pickle (docs.python.org/3/library/pickletools.html) is a program for a machine with a stack and a memo. Opcodes
// push numbers, strings and marks, collect the values above a mark into tuples, lists and dictionaries, and can name
// any Python function (GLOBAL) and call it (REDUCE): a pickle can run arbitrary code. Here only the names that tensors
// consist of are known, and a "call" only combines its arguments. Everything else is rejected.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "byte_reader.hpp"
#include "input_file.hpp"

namespace pocket {

enum class PickleKind : uint8_t { none, boolean, integer, real, text, tuple, list, dict, global, storage, tensor };

/// A value of a pickle. Items are indices of PickleReader's values, so that a value that occurs repeatedly is stored
/// once:
///   tuple, list   the elements
///   dict          key, value, key, value, ...
///   storage       text: its key; integer: number of elements; items: the global that names their type
///   tensor        integer: its first element in the storage; items: storage, shape (tuple), strides (tuple)
struct PickleValue {
  PickleKind kind = PickleKind::none;
  int64_t integer = 0;  // also of a boolean
  double real = 0;
  std::string text;  // also of a global: "torch.FloatStorage"
  std::vector<uint32_t> items;
};

/// "a tuple", for messages.
inline const char* pickle_kind_name(PickleKind kind) {
  constexpr const char* kNames[] = {"None",   "a boolean",    "an integer", "a number",  "a text",  "a tuple",
                                    "a list", "a dictionary", "a function", "a storage", "a tensor"};
  return kNames[int(kind)];
}

/// Whether a global is the element type of a storage; pytorch.hpp supports some of them.
inline bool is_storage_type(std::string_view global) {
  constexpr std::string_view kBegin = "torch.", kEnd = "Storage";
  if (global.size() < kBegin.size() + kEnd.size() || global.substr(0, kBegin.size()) != kBegin) return false;
  if (global.substr(global.size() - kEnd.size()) != kEnd) return false;
  const std::string_view type = global.substr(kBegin.size(), global.size() - kBegin.size() - kEnd.size());
  for (const char* known : {"Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"})
    if (type == known) return true;
  return false;
}

/// Reads one pickle.
class PickleReader {
 public:
  /// Limit for values, and for entries of the stack and the memo, far above real files.
  static constexpr uint32_t kMost = 1 << 20;

  std::string error;  // "NAME: offset 12: expected ..., found ..."

  /// Parses one pickle; anything after it is an error. name: how messages refer to it. False with `error` set.
  bool parse(std::string name, std::string_view bytes) {
    name_ = std::move(name);
    in_ = {bytes};
    size_ = bytes.size();
    for (;;) {
      at_ = size_ - in_.bytes.size();
      const uint8_t op = in_.get<uint8_t>();
      if (!in_.ok) return cut_short();
      if (op == '.') break;
      if (!execute(op)) return false;
      if (!in_.ok) return cut_short();
      if (values_.size() > kMost || stack_.size() > kMost || marks_.size() > kMost)
        return refuse({"expected at most ", kMost, " values, found more"});
    }
    if (stack_.size() != 1 || !marks_.empty()) return refuse({"expected one value at the end"});
    return in_.bytes.empty() || refuse({"expected the end, found ", in_.bytes.size(), " more bytes"});
  }

  const PickleValue& root() const { return values_[stack_.back()]; }
  const PickleValue& operator[](uint32_t i) const { return values_[i]; }

  /// The value of a key of a dictionary, null if there is none.
  const PickleValue* find(const PickleValue& dict, std::string_view key) const {
    for (size_t i = 0; i + 1 < dict.items.size() && dict.kind == PickleKind::dict; i += 2)
      if (const PickleValue& k = values_[dict.items[i]]; k.kind == PickleKind::text && k.text == key)
        return &values_[dict.items[i + 1]];
    return nullptr;
  }

 private:
  using Kind = PickleKind;

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
        marks_.push_back(stack_.size());
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
        return push({});
      case 0x88:  // NEWTRUE
      case 0x89:  // NEWFALSE
        return push({Kind::boolean, op == 0x88, 0, {}, {}});
      case 'K':  // BININT1
        return push({Kind::integer, in_.get<uint8_t>(), 0, {}, {}});
      case 'M':  // BININT2
        return push({Kind::integer, in_.get<uint16_t>(), 0, {}, {}});
      case 'J':  // BININT
        return push({Kind::integer, in_.get<int32_t>(), 0, {}, {}});
      case 0x8a:  // LONG1
        return long_integer(in_.get<uint8_t>());
      case 'G':  // BINFLOAT
        return real();
      case 'X':  // BINUNICODE
        return text(in_.get<uint32_t>());
      case 0x8c:  // SHORT_BINUNICODE
        return text(in_.get<uint8_t>());
      default:
        return false;
    }
  }

  // Opcodes that create or fill tuples, lists and dictionaries.
  bool container(uint8_t op) {
    switch (op) {
      case '}':  // EMPTY_DICT
        return push({Kind::dict, 0, 0, {}, {}});
      case ']':  // EMPTY_LIST
        return push({Kind::list, 0, 0, {}, {}});
      case ')':  // EMPTY_TUPLE
        return push({Kind::tuple, 0, 0, {}, {}});
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

  bool push(PickleValue value) {
    values_.push_back(std::move(value));
    stack_.push_back(uint32_t(values_.size() - 1));
    return true;
  }

  // The number of values above the last mark. Those below it are not accessible.
  size_t reachable() const { return stack_.size() - (marks_.empty() ? 0 : marks_.back()); }
  bool need(size_t n) { return reachable() >= n || refuse({"expected ", n, " values on the stack"}); }
  std::vector<uint32_t> pop(size_t n) {
    std::vector<uint32_t> top(stack_.end() - ptrdiff_t(n), stack_.end());
    stack_.resize(stack_.size() - n);
    return top;
  }

  // Removes the last mark; taken_ is its position.
  bool to_mark() {
    if (marks_.empty()) return refuse({"expected a mark on the stack"});
    taken_ = marks_.back();
    marks_.pop_back();
    return true;
  }

  bool tuple(size_t n) { return need(n) && push({Kind::tuple, 0, 0, {}, pop(n)}); }

  // Adds n values to the container below them.
  bool add(Kind kind, size_t n) {
    if (!need(n + 1)) return false;
    if (kind == Kind::dict && n % 2) return refuse({"expected a value for each key"});
    const std::vector<uint32_t> items = pop(n);
    PickleValue& to = values_[stack_.back()];
    if (to.kind != kind) return refuse({"expected ", pickle_kind_name(kind), ", found ", pickle_kind_name(to.kind)});
    to.items.insert(to.items.end(), items.begin(), items.end());
    return true;
  }

  bool put(uint32_t place) {
    if (!need(1)) return false;
    if (place >= kMost) return refuse({"memo: expected at most 1048576 places, found ", place});
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
    uint64_t value = bytes > 0 && !raw.empty() && (raw.back() & 0x80) ? ~uint64_t(0) : 0;
    std::memcpy(&value, raw.data(), raw.size());
    return push({Kind::integer, int64_t(value), 0, {}, {}});
  }

  bool real() {  // big-endian
    uint64_t bits = 0;
    for (int i = 0; i < 8; i++) bits = bits << 8 | in_.get<uint8_t>();
    return push({Kind::real, 0, load<double>(&bits), {}, {}});
  }

  bool text(uint64_t length) { return push({Kind::text, 0, 0, std::string(in_.take(length)), {}}); }

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
    const std::vector<uint32_t> names = pop(2);
    for (uint32_t i : names)
      if (values_[i].kind != Kind::text) return refuse({"expected the name of a function"});
    return global(values_[names[0]].text + "." + values_[names[1]].text);
  }
  bool global(const std::string& name) {
    for (const char* known : {"collections.OrderedDict", "torch.Size", "torch._utils._rebuild_tensor_v2",
                              "torch._utils._rebuild_parameter"})
      if (name == known) return push({Kind::global, 0, 0, name, {}});
    if (is_storage_type(name)) return push({Kind::global, 0, 0, name, {}});
    return refuse({"expected tensors and plain data, found the function ", printable(name),
                   ", which Python would call; this program calls no functions. If you trust the file, load it in "
                   "Python and save only the model's state_dict()"});
  }

  // ("storage", type, key, device, elements)
  bool storage() {
    if (!need(1)) return false;
    const PickleValue& id = values_[pop(1)[0]];
    const auto is = [&](size_t i, Kind kind) { return values_[id.items[i]].kind == kind; };
    if (id.kind != Kind::tuple || id.items.size() < 5 || !is(0, Kind::text) || !is(1, Kind::global) ||
        !is(2, Kind::text) || !is(4, Kind::integer) || values_[id.items[0]].text != "storage" ||
        !is_storage_type(values_[id.items[1]].text))
      return refuse({"expected a storage of tensors, found another persistent id"});
    PickleValue found{Kind::storage, values_[id.items[4]].integer, 0, values_[id.items[2]].text, {id.items[1]}};
    return push(std::move(found));
  }

  bool call() {
    if (!need(2)) return false;
    const std::vector<uint32_t> both = pop(2);
    const PickleValue &function = values_[both[0]], &arguments = values_[both[1]];
    if (function.kind != Kind::global || arguments.kind != Kind::tuple)
      return refuse({"expected a function and its arguments, found ", pickle_kind_name(function.kind), " and ",
                     pickle_kind_name(arguments.kind)});
    const std::vector<uint32_t>& a = arguments.items;
    const auto is = [&](size_t i, Kind kind) { return i < a.size() && values_[a[i]].kind == kind; };
    if (function.text == "collections.OrderedDict" && a.empty()) return push({Kind::dict, 0, 0, {}, {}});
    const bool is_first = (function.text == "torch.Size" && a.size() == 1 && is(0, Kind::tuple)) ||
                          (function.text == "torch._utils._rebuild_parameter" && is(0, Kind::tensor));
    if (is_first) {  // the result is the first argument
      stack_.push_back(a[0]);
      return true;
    }
    // (storage, first element, shape, strides, requires_grad, hooks, perhaps metadata)
    if (function.text == "torch._utils._rebuild_tensor_v2" && is(0, Kind::storage) && is(1, Kind::integer) &&
        is(2, Kind::tuple) && is(3, Kind::tuple))
      return push({Kind::tensor, values_[a[1]].integer, 0, {}, {a[0], a[2], a[3]}});
    return refuse({"expected other arguments of ", function.text});
  }

  // The attributes of an OrderedDict (_metadata: versions of the modules) are ignored.
  bool build() {
    if (!need(2)) return false;
    const PickleValue &state = values_[pop(1)[0]], &of = values_[stack_.back()];
    return (state.kind == Kind::dict && of.kind == Kind::dict) || refuse({"expected the attributes of a dictionary"});
  }

  static constexpr uint32_t kNothing = UINT32_MAX;

  std::string name_;
  ByteReader in_;
  size_t size_ = 0, at_ = 0;
  std::deque<PickleValue> values_;
  std::vector<uint32_t> stack_, memo_;
  std::vector<size_t> marks_;  // stack sizes
  size_t taken_ = 0;
};

}  // namespace pocket
