#include "x86/translate/unwind.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "base/fork.h"

// Of the C++ runtime (libgcc); no header declares them.
extern "C" void __register_frame(void*);
extern "C" void __deregister_frame(void*);

// gdb's JIT interface ("JIT Compilation Interface" in its manual): gdb puts a breakpoint on the function and
// reads the list.
struct jit_code_entry {
  jit_code_entry* next_entry;
  jit_code_entry* prev_entry;
  const char* symfile_addr;
  anykvm::u64 symfile_size;
};
struct jit_descriptor {
  anykvm::u32 version;
  anykvm::u32 action_flag;
  jit_code_entry* relevant_entry;
  jit_code_entry* first_entry;
};
extern "C" {
[[gnu::noinline, gnu::used]] void __jit_debug_register_code() { asm volatile("" ::: "memory"); }
[[gnu::used]] jit_descriptor __jit_debug_descriptor = {1, 0, nullptr, nullptr};
}

namespace anykvm::x86 {
namespace {

// DWARF 5, 6.4 and 7.24; numbers of registers from the x86-64 ABI, figure 3.36.
constexpr u8 kDefCfa = 0x0c, kDefCfaOffset = 0x0e, kAdvanceLoc4 = 0x04, kOffset = 0x80, kNop = 0;
constexpr u8 kDwarfRbx = 3, kDwarfRbp = 6, kDwarfRsp = 7, kDwarfRip = 16;

class Bytes {
 public:
  std::vector<u8> out;

  void byte(u8 value) { out.push_back(value); }
  void text(const char* value) { append(value, std::strlen(value) + 1); }
  template <class T>
  void value(T value) {
    append(&value, sizeof value);
  }
  void append(const void* bytes, std::size_t size) {
    auto* first = static_cast<const u8*>(bytes);
    out.insert(out.end(), first, first + size);
  }
  void align(std::size_t to) {
    while (out.size() % to) byte(kNop);
  }
  // A record that begins with the length of what follows.
  std::size_t begin_record() {
    value<u32>(0);
    return out.size();
  }
  void end_record(std::size_t begin) {
    align(8);
    auto size = static_cast<u32>(out.size() - begin);
    std::memcpy(out.data() + begin - 4, &size, 4);
  }
};

// Offsets are in units of -8: the return address is the first thing below the CFA.
void write_cie(Bytes& b) {
  std::size_t begin = b.begin_record();
  b.value<u32>(0);    // a CIE
  b.byte(1);          // version
  b.byte(0);          // no augmentation: addresses are absolute
  b.byte(1);          // code alignment
  b.byte(0x78);       // data alignment -8, SLEB128
  b.byte(kDwarfRip);  // return address
  for (u8 byte : {kDefCfa, kDwarfRsp, u8{8}, u8{kOffset | kDwarfRip}, u8{1}}) b.byte(byte);
  b.end_record(begin);
}

void write_row(Bytes& b, const FrameRow& row, bool newly_saved) {
  b.byte(kDefCfaOffset);
  b.byte(static_cast<u8>(row.cfa));  // ULEB128, below 128
  if (!newly_saved) return;
  u8 place = 2;
  for (u8 saved : {kDwarfRbx, kDwarfRbp, u8{12}, u8{13}, u8{14}, u8{15}}) {
    b.byte(kOffset | saved);
    b.byte(place++);
  }
}

// The CIE is at the section's start.
void write_fde(Bytes& b, const GeneratedFunction& function) {
  std::size_t begin = b.begin_record();
  b.value<u32>(static_cast<u32>(begin));  // the distance back to the CIE
  b.value(reinterpret_cast<u64>(function.begin));
  b.value<u64>(function.size);
  FrameRow before;
  for (const FrameRow& row : function.rows) {
    if (row.offset != before.offset) {
      b.byte(kAdvanceLoc4);
      b.value<u32>(row.offset - before.offset);
    }
    write_row(b, row, row.saved && !before.saved);
    before = row;
  }
  b.end_record(begin);
}

// An object file with the sections .text (only its place), .eh_frame and a symbol for each function.
class Object {
 public:
  explicit Object(const std::vector<GeneratedFunction>& functions, const std::vector<u8>& frames) {
    const u8* first = functions.front().begin;
    for (const GeneratedFunction& f : functions) first = std::min(first, f.begin);
    const u8* last = first;
    for (const GeneratedFunction& f : functions) last = std::max(last, f.begin + f.size);
    m_bytes.out.resize(sizeof(Elf64_Ehdr));
    m_names.byte(0);
    m_sections.push_back({});
    Elf64_Shdr& text = add_section(".text", SHT_NOBITS, SHF_ALLOC | SHF_EXECINSTR, {});
    text.sh_addr = reinterpret_cast<u64>(first);
    text.sh_size = static_cast<u64>(last - first);
    add_section(".eh_frame", SHT_PROGBITS, SHF_ALLOC, frames);
    add_symbols(functions, first);
    finish();
  }

  std::vector<u8> take() { return std::move(m_bytes.out); }

 private:
  enum Section : u16 { kText = 1, kFrames, kSymbols, kStrings, kSectionNames };

  Elf64_Shdr& add_section(const char* name, u32 type, u64 flags, const std::vector<u8>& contents) {
    m_bytes.align(16);
    Elf64_Shdr header{};
    header.sh_name = static_cast<u32>(m_names.out.size());
    header.sh_type = type;
    header.sh_flags = flags;
    header.sh_offset = m_bytes.out.size();
    header.sh_size = contents.size();
    header.sh_addralign = 1;
    m_names.text(name);
    m_bytes.append(contents.data(), contents.size());
    return m_sections.emplace_back(header);
  }

  void add_symbols(const std::vector<GeneratedFunction>& functions, const u8* text) {
    Bytes symbols, strings;
    strings.byte(0);
    symbols.value(Elf64_Sym{});
    for (const GeneratedFunction& f : functions) {
      Elf64_Sym symbol{};
      symbol.st_name = static_cast<u32>(strings.out.size());
      symbol.st_info = ELF64_ST_INFO(STB_GLOBAL, STT_FUNC);
      symbol.st_shndx = kText;
      symbol.st_value = static_cast<u64>(f.begin - text);  // of a relocatable object: within the section
      symbol.st_size = f.size;
      symbols.value(symbol);
      strings.text(f.name.c_str());
    }
    Elf64_Shdr& table = add_section(".symtab", SHT_SYMTAB, 0, symbols.out);
    table.sh_link = kStrings;
    table.sh_info = 1;  // the first global symbol
    table.sh_entsize = sizeof(Elf64_Sym);
    add_section(".strtab", SHT_STRTAB, 0, strings.out);
  }

  void finish() {
    add_section(".shstrtab", SHT_STRTAB, 0, {});
    m_sections.back().sh_size = m_names.out.size();
    m_bytes.append(m_names.out.data(), m_names.out.size());
    m_bytes.align(16);
    Elf64_Ehdr header{};
    const u8 identity[] = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT};
    std::memcpy(header.e_ident, identity, sizeof identity);
    header.e_type = ET_REL;
    header.e_machine = EM_X86_64;
    header.e_version = EV_CURRENT;
    header.e_ehsize = sizeof header;
    header.e_shoff = m_bytes.out.size();
    header.e_shentsize = sizeof(Elf64_Shdr);
    header.e_shnum = static_cast<u16>(m_sections.size());
    header.e_shstrndx = kSectionNames;
    std::memcpy(m_bytes.out.data(), &header, sizeof header);
    m_bytes.append(m_sections.data(), m_sections.size() * sizeof(Elf64_Shdr));
  }

  Bytes m_bytes, m_names;
  std::vector<Elf64_Shdr> m_sections;
};

// gdb's list, and the C++ runtime's of frames: it has a lock of its own, which a forked child would find
// taken.
ProcessMutex g_lists_mutex;

void tell_gdb(jit_code_entry* entry, u32 action) {
  __jit_debug_descriptor.action_flag = action;
  __jit_debug_descriptor.relevant_entry = entry;
  __jit_debug_register_code();
  __jit_debug_descriptor.action_flag = 0;
}

}  // namespace

struct UnwindInfo::GdbEntry : jit_code_entry {
  explicit GdbEntry(const std::vector<u8>& object) : jit_code_entry{} {
    symfile_addr = reinterpret_cast<const char*>(object.data());
    symfile_size = object.size();
    std::lock_guard lock(g_lists_mutex);
    next_entry = __jit_debug_descriptor.first_entry;
    if (next_entry) next_entry->prev_entry = this;
    __jit_debug_descriptor.first_entry = this;
    tell_gdb(this, 1);
  }
  ~GdbEntry() {
    std::lock_guard lock(g_lists_mutex);
    (prev_entry ? prev_entry->next_entry : __jit_debug_descriptor.first_entry) = next_entry;
    if (next_entry) next_entry->prev_entry = prev_entry;
    tell_gdb(this, 2);
  }
};

std::vector<u8> make_eh_frame(const std::vector<GeneratedFunction>& functions) {
  Bytes b;
  write_cie(b);
  for (const GeneratedFunction& function : functions) write_fde(b, function);
  b.value<u32>(0);
  return std::move(b.out);
}

UnwindInfo::UnwindInfo(std::vector<GeneratedFunction> functions)
    : m_frames(make_eh_frame(functions)), m_object(Object(functions, m_frames).take()) {
  {
    std::lock_guard lock(g_lists_mutex);
    __register_frame(m_frames.data());
  }
  m_gdb_entry = std::make_unique<GdbEntry>(m_object);
}

UnwindInfo::~UnwindInfo() {
  std::lock_guard lock(g_lists_mutex);
  __deregister_frame(m_frames.data());
}

}  // namespace anykvm::x86
