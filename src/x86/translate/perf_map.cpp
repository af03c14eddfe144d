#include "x86/translate/perf_map.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <charconv>
#include <fstream>
#include <iterator>

#include "base/fd.h"

namespace anykvm::x86 {
namespace {

// perf believes a map only if it belongs to who runs it or to root, so nobody else's file may be there.
Fd open_map() {
  std::string name = fmt::format("/tmp/perf-{}.map", getpid());
  unlink(name.c_str());
  return out_of_the_way(Fd(open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600)));
}

struct Map {
  GuestSymbols symbols;
  Fd file;

  Map() {
    const char* wanted = getenv("ANYKVM_PERF_MAP");
    if (!wanted || !*wanted || std::string_view(wanted) == "0") return;
    file = open_map();
    if (std::string_view(wanted) == "1") return;
    std::ifstream text(wanted);
    symbols = GuestSymbols::parse(std::string(std::istreambuf_iterator<char>(text), {}));
  }
};

// Never destroyed: vCPUs may still translate while the process exits.
Map& map() {
  static Map& map = *new Map;
  return map;
}

}  // namespace

GuestSymbols GuestSymbols::parse(std::string_view text) {
  GuestSymbols symbols;
  while (!text.empty()) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    u64 address = 0;
    auto [rest, error] = std::from_chars(line.data(), line.data() + line.size(), address, 16);
    line.remove_prefix(static_cast<std::size_t>(rest - line.data()));
    if (error != std::errc() || line.size() < 4 || line[0] != ' ' || line[2] != ' ') continue;
    symbols.m_names.try_emplace(address, line.substr(3, line.find_first_of(" \t", 3) - 3));
  }
  return symbols;
}

std::string GuestSymbols::name_of(u64 address) const {
  auto after = m_names.upper_bound(address);
  if (after == m_names.begin()) return {};
  auto found = std::prev(after);
  return fmt::format("{}+{:#x}", found->second, address - found->first);
}

std::string block_name(const Block& block, u64 rip, const GuestSymbols& symbols) {
  const bool user = block.mode.cpl == 3;
  std::string place = user ? std::string() : symbols.name_of(rip);
  if (place.empty()) place = fmt::format("{:#x}", rip);
  std::string name = fmt::format("guest {} {}", user ? "user" : "kernel", place);
  return block.mode.code64() ? name : fmt::format("{} ({}-bit)", name, block.mode.code_bits);
}

namespace perf_map {

bool enabled() {
  static const bool kEnabled = map().file.get() >= 0;
  return kEnabled;
}

void add(const u8* code, std::size_t size, std::string_view name) {
  if (!enabled()) return;
  // One write(2) each: several VMs may append.
  std::string line = fmt::format("{:x} {:x} {}\n", reinterpret_cast<u64>(code), size, name);
  [[maybe_unused]] ssize_t written = write(map().file.get(), line.data(), line.size());
}

void add(const Block& block, u64 rip) {
  if (enabled()) add(block.code, block.host_bytes, block_name(block, rip, map().symbols));
}

}  // namespace perf_map
}  // namespace anykvm::x86
