#pragma once
// A value or an error, and TRY() to pass the error up. `Result<T>` carries an errno of the KVM ABI.
// Owner: nobody; plain values. Any thread.

#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

namespace anykvm {

template <class T, class E>
class [[nodiscard]] Expected {
 public:
  Expected(T value) : m_storage(std::in_place_index<0>, std::move(value)) {}
  Expected(E error) : m_storage(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return m_storage.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& value() & { return *std::get_if<0>(&m_storage); }
  const T& value() const& { return *std::get_if<0>(&m_storage); }
  T value() && { return std::move(*std::get_if<0>(&m_storage)); }
  const E& error() const { return *std::get_if<1>(&m_storage); }

 private:
  std::variant<T, E> m_storage;
};

template <class E>
class [[nodiscard]] Expected<void, E> {
 public:
  Expected() = default;
  Expected(E error) : m_error(std::move(error)) {}

  bool ok() const { return !m_error.has_value(); }
  explicit operator bool() const { return ok(); }
  void value() const {}
  const E& error() const { return *m_error; }

 private:
  std::optional<E> m_error;
};

// An errno of the KVM ABI, and for the trace why. `reason` is a string literal.
struct Error {
  int code = 0;
  const char* reason = "";
};

template <class T = void>
using Result = Expected<T, Error>;

// Evaluates to the value, or returns the error from the enclosing function.
#define TRY(expression)                                    \
  ({                                                       \
    auto&& try_result_ = (expression);                     \
    if (!try_result_.ok()) return try_result_.error();     \
    std::forward<decltype(try_result_)>(try_result_).value(); \
  })

}  // namespace anykvm
