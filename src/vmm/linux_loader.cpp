#include "vmm/linux_loader.h"

#include <algorithm>
#include <cstring>

#include "base/bits.h"
#include "vmm/kernel_image.h"
#include "vmm/layout.h"

namespace anykvm::vmm {
namespace {

// Types of the e820 map (ACPI 6.5, 15.1).
enum E820 : u32 { kRam = 1, kReserved = 2, kAcpi = 3 };

constexpr u8 kLoaderUndefined = 0xff;

struct Span {
  u64 start;
  u64 end;
};

// Highest place of `size` bytes inside `within` at a page boundary that does not touch `taken`.
std::optional<u64> place_below(Span within, u64 size, Span taken) {
  auto fit = [&](Span space) -> std::optional<u64> {
    if (space.end < space.start || space.end - space.start < size) return std::nullopt;
    u64 start = align_down(space.end - size, kPageSize);
    return start >= space.start ? std::optional(start) : std::nullopt;
  };
  Span above{std::max(within.start, taken.end), within.end},
      below{within.start, std::min(within.end, taken.start)};
  auto place = fit(above);
  return place ? place : fit(below);
}

Outcome<> load_segments(const GuestMemory& memory, const KernelImage& image) {
  for (const LoadSegment& segment : image.segments) {
    u8* target = segment.target >= kHighRamStart ? memory.at(segment.target, segment.memory_size) : nullptr;
    if (!target) {
      return failure("the kernel wants {:#x} bytes at {:#x}, which is not in the guest's {} MiB of memory",
                     segment.memory_size, segment.target.value, memory.size() / kMiB);
    }
    std::copy(segment.bytes.begin(), segment.bytes.end(), target);
    std::fill(target + segment.bytes.size(), target + segment.memory_size, u8{0});
  }
  return {};
}

Failure too_small(const GuestMemory& memory, const KernelImage& image) {
  return failure("the kernel needs at least {} MiB of memory, but the guest has {} MiB",
                 (image.end.value + kMiB - 1) / kMiB, memory.size() / kMiB);
}

// A bzImage unpacks itself where it lies and wants much more room for it than the kernel takes in the end.
Outcome<KernelImage> choose_image(const GuestMemory& memory, const BootImages& images) {
  KernelImage image = TRY(parse_kernel(images.kernel));
  auto fits = [&](const KernelImage& candidate) { return candidate.end.value <= memory.low_end(); };
  if (fits(image)) return image;
  auto inside = parse_kernel_inside(images.kernel);
  if (inside && fits(inside.value())) return std::move(inside).value();
  return too_small(memory, inside ? inside.value() : image);
}

Outcome<u64> place_initrd(const GuestMemory& memory, const KernelImage& image, std::span<const u8> initrd) {
  u64 limit = std::min(memory.low_end(), u64{image.header.initrd_addr_max} + 1);
  auto place = place_below({kHighRamStart.value, limit}, initrd.size(), {image.start.value, image.end.value});
  if (!place) {
    return failure("the initrd ({} MiB) does not fit beside the kernel in {} MiB of guest memory",
                   (initrd.size() + kMiB - 1) / kMiB, memory.size() / kMiB);
  }
  memory.write(Gpa(*place), initrd);
  return *place;
}

Outcome<> put_command_line(const GuestMemory& memory, const std::string& text, u32 limit) {
  if (text.size() > std::min<u64>(limit, kCommandLineMax - 1)) {
    return failure("the kernel command line has {} characters, the kernel takes {}", text.size(), limit);
  }
  // SAFETY: c_str() holds size() + 1 bytes.
  memory.write(kCommandLineAddress, {reinterpret_cast<const u8*>(text.c_str()), text.size() + 1});
  return {};
}

void add_e820(boot_params& params, u64 start, u64 end, u32 type) {
  params.e820_table[params.e820_entries++] = {start, end - start, type};
}

void fill_e820(boot_params& params, const GuestMemory& memory) {
  u64 acpi_end = kAcpiAddress.value + kAcpiSize;
  add_e820(params, 0, kLowRamEnd, kRam);
  add_e820(params, kLowRamEnd, 0xa0000, kReserved);
  add_e820(params, kAcpiAddress.value, acpi_end, kAcpi);
  add_e820(params, kHighRamStart.value, memory.low_end(), kRam);
  add_e820(params, kIdentityMapAddress, kTssAddress + 3 * kPageSize, kReserved);
  for (const RamRange& range : memory.ranges()) {
    if (range.start >= Gpa(kHoleEnd)) {
      add_e820(params, range.start.value, range.start.value + range.size, kRam);
    }
  }
}

}  // namespace

std::string command_line_with_defaults(const std::string& append) {
  std::string text = "console=ttyS0 reboot=t panic=-1";
  if (!append.empty()) text += " " + append;
  return text;
}

Outcome<Gpa> load_linux(const GuestMemory& memory, const BootImages& images) {
  KernelImage image = TRY(choose_image(memory, images));
  TRY(load_segments(memory, image));
  TRY(put_command_line(memory, images.command_line, image.header.cmdline_size));

  boot_params params{};
  params.hdr = image.header;
  params.hdr.type_of_loader = kLoaderUndefined;
  params.hdr.cmd_line_ptr = static_cast<u32>(kCommandLineAddress.value);
  params.acpi_rsdp_addr = kAcpiAddress.value;
  if (!images.initrd.empty()) {
    params.hdr.ramdisk_image = static_cast<u32>(TRY(place_initrd(memory, image, images.initrd)));
    params.hdr.ramdisk_size = static_cast<u32>(images.initrd.size());
  }
  fill_e820(params, memory);
  memory.write_object(kBootParamsAddress, params);
  return image.entry;
}

}  // namespace anykvm::vmm
