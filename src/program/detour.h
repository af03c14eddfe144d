#pragma once
// Leads a CPUID instruction of a program past code of ours. CPUID has two bytes, a jump five: the
// instructions behind it move along. Owner: nobody. For a time when no other thread runs the program's code.

#include <optional>
#include <vector>

#include "base/types.h"
#include "program/functions.h"

namespace anykvm::program {

// What a CPUID leaf is to say more than the CPU does.
struct ExtraFeature {
  u32 leaf;
  u8 bit;  // of ECX
};

struct Detour {
  const u8* from;        // the CPUID
  u8 size;               // of it and what moves along
  std::vector<u8> code;  // to be put at the address that it was made for
};

constexpr unsigned kMaxDetourBytes = 192;

// Nothing if that is not an instruction of `function`, or if what is behind it cannot move: too short, a
// call, or a target of a jump. `place` is within 2 GiB of the function.
std::optional<Detour> make_detour(Range function, const u8* cpuid, const u8* place, ExtraFeature extra);

// The bytes for `detour.from`: a jump to `place`.
std::vector<u8> way_into(const Detour& detour, const u8* place);

}  // namespace anykvm::program
