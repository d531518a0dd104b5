// message.hpp: error messages from texts and numbers.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace pocket {

/// A part of a message: a text, a character or a number. It refers to the text, so it is only valid within the
/// expression that creates it. Concatenating std::strings at every place that can report an error would make up most of
/// the code of the file readers.
class MessagePart {
 public:
  MessagePart(const char* text) : MessagePart(std::string_view(text)) {}
  MessagePart(const std::string& text) : MessagePart(std::string_view(text)) {}
  MessagePart(std::string_view text) : data_(text.data()), size_(text.size()) {}
  MessagePart(char character) : kind_(Kind::character), integer_(character) {}
  MessagePart(double number) : kind_(Kind::real), real_(number) {}
  template <class T, class = std::enable_if_t<std::is_integral_v<T>>>
  MessagePart(T number) : kind_(std::is_signed_v<T> ? Kind::integer : Kind::natural), integer_(int64_t(number)) {}

  void append_to(std::string& message) const {
    if (kind_ == Kind::text) message.append(data_, size_);
    if (kind_ == Kind::character) message += char(integer_);
    if (kind_ == Kind::integer) message += std::to_string(integer_);
    if (kind_ == Kind::natural) message += std::to_string(uint64_t(integer_));
    if (kind_ == Kind::real) message += std::to_string(real_);
  }

 private:
  enum class Kind { text, character, integer, natural, real } kind_ = Kind::text;
  union {
    const char* data_;
    int64_t integer_;
    double real_;
  };
  size_t size_ = 0;
};

/// The parts of a message, in braces: {path, ": expected ", n, " bytes"}.
using Message = std::initializer_list<MessagePart>;

inline std::string text_of(Message parts) {
  std::string text;
  for (const MessagePart& part : parts) part.append_to(text);
  return text;
}

/// For `return fail(error, {path, ": why"})`: sets `error`, returns false.
inline bool fail(std::string& error, Message parts) {
  error = text_of(parts);
  return false;
}

/// The same for a message that exists already.
inline bool fail(std::string& error, std::string message) {
  error = std::move(message);
  return false;
}

/// For handlers of std::bad_alloc, which must not allocate: the message fits into the string object itself.
inline bool fail_out_of_memory(std::string& error) {
  error = "out of memory";
  return false;
}

}  // namespace pocket
