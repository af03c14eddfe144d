#pragma once
// The layout of the memfd in which a process keeps its counters. It describes itself, so that another version
// of `anykvm top` can read it: FileHeader, then a CounterName for each counter of the process and for each of
// a vCPU, then the values of the process, then a line for each vCPU: whether it is in use, and its values.
// All values are u64. Owner: nobody; plain constants.

#include "base/types.h"

namespace anykvm::counters {

inline constexpr char kFileName[] = "anykvm-counters";
inline constexpr u64 kFileMagic = 0x31726e756f63766b;

struct FileHeader {
  u64 magic;
  u32 pid;  // whose they are: a forked child has the descriptor too
  u32 process_counters, cpu_counters, lines;
  // Where the first process value and the first line are, and how far lines are apart, in bytes.
  u32 process_offset, lines_offset, line_size;
};

struct CounterName {
  char name[32];
  char description[96];
};

// Of a line's first word. Line 0 is never in use: it has the sums of vCPUs that are gone.
inline constexpr u64 kLineInUse = 1;

}  // namespace anykvm::counters
