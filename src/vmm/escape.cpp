#include "vmm/escape.h"

namespace anykvm::vmm {
namespace {

constexpr u8 kEscape = 0x01;  // Ctrl-A

}  // namespace

// Any other key after the escape key means nothing and goes to nobody.
void EscapeFilter::after_escape(u8 key, Result& result) {
  if (key == 'x' || key == 'X') result.quit = true;
  if (key == 'h' || key == 'H' || key == '?') result.help = true;
  if (key == 'a' || key == 'A' || key == kEscape) result.bytes.push_back(kEscape);
}

EscapeFilter::Result EscapeFilter::feed(std::span<const u8> typed) {
  Result result;
  for (u8 key : typed) {
    if (m_escaped) {
      m_escaped = false;
      after_escape(key, result);
    } else if (key == kEscape) {
      m_escaped = true;
    } else {
      result.bytes.push_back(key);
    }
  }
  return result;
}

}  // namespace anykvm::vmm
