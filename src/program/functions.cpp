#include "program/functions.h"

#include <cstring>

namespace anykvm::program {
namespace {

// DW_EH_PE_*: how linkers write this table.
constexpr u8 kPointerToFrames = 0x1b;  // pcrel | sdata4
constexpr u8 kCount = 0x03;            // udata4
constexpr u8 kEntries = 0x3b;          // datarel | sdata4

struct Header {
  u8 version, pointer_encoding, count_encoding, table_encoding;
  i32 frames;
  u32 count;
};
struct Entry {
  i32 function, description;  // from the table's own address
};

template <class T>
T read(const u8* at) {
  T value;
  memcpy(&value, at, sizeof value);
  return value;
}

// A frame description entry: length, pointer to the common one, first address (relative to itself), size.
std::optional<Range> described_at(const u8* description, const u8* function) {
  constexpr u32 kLong = 0xffffffff;
  if (read<u32>(description) == kLong) return std::nullopt;
  const u8* first = description + 8;
  if (first + read<i32>(first) != function) return std::nullopt;  // in another encoding
  return Range{function, function + read<u32>(first + 4)};
}

}  // namespace

std::optional<Range> Functions::around(const u8* pc) const {
  if (!m_table) return std::nullopt;
  const auto header = read<Header>(m_table);
  if (header.version != 1 || header.pointer_encoding != kPointerToFrames || header.count_encoding != kCount ||
      header.table_encoding != kEntries)
    return std::nullopt;
  const u8* entries = m_table + sizeof header;
  u32 from = 0, to = header.count;  // the last entry that begins at or before pc is in front of `to`
  while (from < to) {
    const u32 middle = from + (to - from) / 2;
    if (m_table + read<Entry>(entries + middle * sizeof(Entry)).function <= pc)
      from = middle + 1;
    else
      to = middle;
  }
  if (from == 0) return std::nullopt;
  const auto entry = read<Entry>(entries + (from - 1) * sizeof(Entry));
  const auto range = described_at(m_table + entry.description, m_table + entry.function);
  return range && range->has(pc) ? range : std::nullopt;
}

Image program_with(const Elf64_Phdr* headers, unsigned count, u64 moved) {
  Image image;
  for (unsigned i = 0; i < count; ++i) {
    const auto& segment = headers[i];
    const auto* at = reinterpret_cast<const u8*>(moved + segment.p_vaddr);
    if (segment.p_type == PT_LOAD && (segment.p_flags & PF_X) && !(segment.p_flags & PF_W))
      image.code.push_back({at, at + segment.p_filesz});
    if (segment.p_type == PT_GNU_EH_FRAME) image.unwind_table = at;
  }
  return image;
}

Image main_program() {
  Image image;
  const auto look = [](dl_phdr_info* info, std::size_t, void* out) {
    *static_cast<Image*>(out) = program_with(info->dlpi_phdr, info->dlpi_phnum, info->dlpi_addr);
    return 1;  // the main program is the first
  };
  dl_iterate_phdr(look, &image);
  return image;
}

}  // namespace anykvm::program
