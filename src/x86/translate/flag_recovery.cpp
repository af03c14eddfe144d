// Compiled without vector instructions: the guest's may be in the host's registers.
#include "x86/translate/flag_recovery.h"

#include <bit>

#include "x86/translate/thunks.h"

namespace anykvm::x86 {
namespace {

using Kind = FlagRecovery::Kind;

// The flags of `instruction` on a = %[a] and b = %[b]. Before it flags are as in `image`, behind it they go
// there: as in host::restore_flags_by() and save_flags().
#define ANYKVM_FLAGS_OF(instruction)          \
  asm("add $0x7f, %%al\n\t"                   \
      "sahf\n\t" instruction                  \
      "\n\tlahf\n\t"                          \
      "seto %%al"                             \
      : "+a"(image), [a] "+q"(a), [b] "+c"(b) \
      :                                       \
      : "cc")

template <class T>
u16 flags_of(Kind kind, T a, T b, u16 image) {
  switch (kind) {
    case Kind::kCompare:
    case Kind::kSubtract:
      ANYKVM_FLAGS_OF("sub %[b], %[a]");
      break;
    case Kind::kTest:
      ANYKVM_FLAGS_OF("test %[b], %[a]");
      break;
    case Kind::kDouble:
    case Kind::kAdd:
      ANYKVM_FLAGS_OF("add %[b], %[a]");
      break;
    case Kind::kShiftLeft:
      ANYKVM_FLAGS_OF("shl %%cl, %[a]");
      break;
    case Kind::kShiftRight:
      ANYKVM_FLAGS_OF("shr %%cl, %[a]");
      break;
    case Kind::kShiftRightArithmetic:
      ANYKVM_FLAGS_OF("sar %%cl, %[a]");
      break;
    case Kind::kNegate:
      ANYKVM_FLAGS_OF("neg %[a]");
      break;
    case Kind::kIncrement:
      ANYKVM_FLAGS_OF("inc %[a]");
      break;
    case Kind::kDecrement:
      ANYKVM_FLAGS_OF("dec %[a]");
      break;
    case Kind::kRotateLeft:
      ANYKVM_FLAGS_OF("rol %%cl, %[a]");
      break;
    case Kind::kRotateRight:
      ANYKVM_FLAGS_OF("ror %%cl, %[a]");
      break;
  }
  return image;
}

#undef ANYKVM_FLAGS_OF

// The first operand, where `first` is the result.
template <class T>
T before(Kind kind, T first, T other) {
  switch (kind) {
    case Kind::kAdd:
      return static_cast<T>(first - other);
    case Kind::kSubtract:
      return static_cast<T>(first + other);
    case Kind::kNegate:
      return static_cast<T>(0 - first);
    case Kind::kIncrement:
      return static_cast<T>(first - 1);
    case Kind::kDecrement:
      return static_cast<T>(first + 1);
    case Kind::kRotateLeft:
      return std::rotr(first, static_cast<int>(other));
    case Kind::kRotateRight:
      return std::rotl(first, static_cast<int>(other));
    default:
      return first;
  }
}

template <class T>
u16 image_by(Kind kind, u64 first, u64 other, u16 image) {
  const T b = static_cast<T>(kind == Kind::kDouble ? first : other);
  return flags_of<T>(kind, before<T>(kind, static_cast<T>(first), b), b, image);
}

u64 value_of(const Context& context, u8 operand) {
  if (operand >= FlagRecovery::kFirstKept) return context.kept[operand - FlagRecovery::kFirstKept];
  return context.state.gpr[operand];
}

}  // namespace

u16 FlagRecovery::image(const Context& context) const {
  const u16 others = before ? before->image(context) : u16{0x0200};
  const u64 a = value_of(context, first);
  const u64 b = other == kNoRegister ? static_cast<u64>(i64{immediate}) : value_of(context, other);
  switch (size) {
    case 1:
      return image_by<u8>(kind, a, b, others);
    case 2:
      return image_by<u16>(kind, a, b, others);
    case 4:
      return image_by<u32>(kind, a, b, others);
    default:
      return image_by<u64>(kind, a, b, others);
  }
}

extern "C" void anykvm_recover_flags(Context* context, u64, const FlagRecovery* recovery) {
  context->flags_image = recovery->image(*context);
}

}  // namespace anykvm::x86
