#include "user_descriptors.h"

#include "user_state.h"

namespace anykvm::isa {
namespace {

using D = UserDescriptor;
constexpr u32 kData = static_cast<u32>(kDataBase);

}  // namespace

const UserDescriptor kLdtDescriptors[kLdtEntries] = {
    {},
    {.base = kData, .limit = 0xfff, .restricted = true, .pages = false},
    {.contents = D::kCode, .restricted = true},
    {.contents = D::kConforming, .present = false},  // the only kind of conforming ones that the kernel takes
    {.present = false},
    {.limit = (kData >> 12) + 1, .contents = D::kExpandDown},
    {.base = kData, .limit = 0xffff, .wide = false, .pages = false},
    {.contents = D::kCode},
    {.base = kData, .limit = kWritableSize - 1, .pages = false},
    {.base = kData + 0x800},
};

}  // namespace anykvm::isa
