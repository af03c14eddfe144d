#include "vmm/acpi.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <span>
#include <string_view>

#include "devices/legacy/acpi_pm.h"
#include "vmm/layout.h"

namespace anykvm::vmm {
namespace {

using devices::AcpiPm;

// Appends little-endian fields; every table is written field by field in the order of the specification.
class Table {
 public:
  Table& u(u64 value, unsigned size) {
    for (unsigned i = 0; i < size; ++i) bytes.push_back(static_cast<u8>(value >> (8 * i)));
    return *this;
  }
  Table& text(std::string_view value) {
    bytes.insert(bytes.end(), value.begin(), value.end());
    return *this;
  }
  Table& zeros(size_t count) {
    bytes.resize(bytes.size() + count);
    return *this;
  }
  // Generic address structure, system I/O space (ACPI 6.5, 5.2.3.2).
  Table& io_address(u16 port, u8 width_bits, u8 access_size) {
    return u(1, 1).u(width_bits, 1).u(0, 1).u(access_size, 1).u(port, 8);
  }
  Table& no_address() { return zeros(12); }

  std::vector<u8> bytes;
};

u8 checksum(std::span<const u8> bytes) {
  return static_cast<u8>(0x100 - std::accumulate(bytes.begin(), bytes.end(), 0u) % 0x100);
}

// The header all tables but RSDP and FACS share (5.2.6); length and checksum are filled in by finish().
Table begin(std::string_view signature, u8 revision) {
  Table table;
  table.text(signature).u(0, 4).u(revision, 1).u(0, 1).text("ANYKVMANYKVMVM").u(1, 4).text("AKVM").u(1, 4);
  return table;
}

std::vector<u8> finish(Table table) {
  u32 length = static_cast<u32>(table.bytes.size());
  std::memcpy(&table.bytes[4], &length, sizeof length);
  table.bytes[9] = checksum(table.bytes);
  return table.bytes;
}

// Name (_S5, Package (4) {5, 5, 0, 0}): the sleep type of a soft power-off.
std::vector<u8> build_dsdt() {
  constexpr u8 kNameOp = 0x08, kPackageOp = 0x12, kBytePrefix = 0x0a, kZeroOp = 0x00;
  constexpr u8 kPackageLength = 8, kElements = 4, kType = AcpiPm::kSleepTypeSoftOff;
  Table table = begin("DSDT", 2);
  table.u(kNameOp, 1).text("_S5_").u(kPackageOp, 1).u(kPackageLength, 1).u(kElements, 1);
  table.u(kBytePrefix, 1).u(kType, 1).u(kBytePrefix, 1).u(kType, 1).u(kZeroOp, 1).u(kZeroOp, 1);
  return finish(table);
}

std::vector<u8> build_facs() {
  Table table;
  table.text("FACS").u(64, 4).zeros(24).u(2, 1).zeros(31);
  return table.bytes;
}

// FADT revision 6 (5.2.9). The legacy 32-bit fields and the extended ones say the same.
std::vector<u8> build_fadt(u64 facs, u64 dsdt) {
  constexpr u16 kEvent = kAcpiPmPort + AcpiPm::kEvent, kControl = kAcpiPmPort + AcpiPm::kControl;
  constexpr u16 kTimer = kAcpiPmPort + AcpiPm::kTimer;
  constexpr u16 kNoC2 = 101, kNoC3 = 1001;  // latencies above 100 and 1000: the state is not supported
  constexpr u16 kBootVgaNotPresent = 1 << 2;
  constexpr u32 kWbinvd = 1 << 0, kSleepButton = 1 << 5, kPowerButton = 1 << 4, kResetRegister = 1 << 10;
  constexpr u8 kResetValue = 6;
  Table t = begin("FACP", 6);
  t.u(facs, 4).u(dsdt, 4).u(0, 1).u(0, 1).u(kSciIrq, 2);
  t.u(0, 4).u(0, 4);  // no SMI command port: the machine is always in ACPI mode
  t.u(kEvent, 4).u(0, 4).u(kControl, 4).u(0, 4).u(0, 4).u(kTimer, 4).u(0, 4).u(0, 4);
  t.u(4, 1).u(2, 1).u(0, 1).u(4, 1).u(0,
                                      4);  // lengths of PM1_EVT, PM1_CNT, PM2_CNT, PM_TMR; no GPEs, no _CST
  t.u(kNoC2, 2).u(kNoC3, 2).u(0, 6);       // no cache flush strides, no duty cycle
  t.u(0, 1).u(0, 1).u(0x32, 1);            // no RTC alarm dates; the century's place in CMOS memory
  t.u(kBootVgaNotPresent, 2).u(0, 1);
  t.u(kWbinvd | kSleepButton | kPowerButton | kResetRegister, 4);
  t.io_address(kResetPort, 8, 1).u(kResetValue, 1).u(0, 2).u(5, 1);  // minor revision 5
  t.u(facs, 8).u(dsdt, 8);
  t.io_address(kEvent, 32, 2).no_address().io_address(kControl, 16, 2).no_address().no_address();
  t.io_address(kTimer, 32, 3).no_address().no_address();
  t.no_address().no_address().u(0, 8);  // no sleep registers, no hypervisor vendor
  return finish(t);
}

// Local APIC (5.2.12.2), or local x2APIC (5.2.12.12) where the ID needs more than 8 bits. The ACPI processor
// UID is the vCPU's number.
void add_local_apic(Table& table, u32 uid, u32 apic_id) {
  constexpr u32 kEnabled = 1;
  if (apic_id < 0xff && uid < 0xff) {
    table.u(0, 1).u(8, 1).u(uid, 1).u(apic_id, 1).u(kEnabled, 4);
  } else {
    table.u(9, 1).u(16, 1).u(0, 2).u(apic_id, 4).u(kEnabled, 4).u(uid, 4);
  }
}

// An ISA interrupt that is not the I/O APIC pin of its number, or not edge-triggered active-high (5.2.12.5).
void add_override(Table& table, u8 irq, u32 pin, u16 flags) {
  table.u(2, 1).u(10, 1).u(0, 1).u(irq, 1).u(pin, 4).u(flags, 2);
}

std::vector<u8> build_madt(const std::vector<u32>& apic_ids) {
  constexpr u32 kPcAtCompatible = 1;
  constexpr u8 kIoapicId = 0;  // what the chip itself says after reset
  constexpr u16 kConforming = 0, kLevelHigh = 0x0d;
  Table t = begin("APIC", 5);
  t.u(kLapicAddress, 4).u(kPcAtCompatible, 4);
  for (u32 i = 0; i < apic_ids.size(); ++i) add_local_apic(t, i, apic_ids[i]);
  t.u(1, 1).u(12, 1).u(kIoapicId, 1).u(0, 1).u(kIoapicAddress, 4).u(0, 4);
  add_override(t, 0, 2, kConforming);  // the PIT's line is wired to pin 2
  add_override(t, kSciIrq, kSciIrq, kLevelHigh);
  t.u(4, 1).u(6, 1).u(0xff, 1).u(kConforming, 2).u(1, 1);  // NMI is LINT1 of every local APIC
  return finish(t);
}

std::vector<u8> build_xsdt(const std::vector<u64>& tables) {
  Table t = begin("XSDT", 1);
  for (u64 address : tables) t.u(address, 8);
  return finish(t);
}

// Revision 2 (5.2.5.3): the first checksum covers 20 bytes, the second all 36.
std::vector<u8> build_rsdp(u64 xsdt) {
  Table t;
  t.text("RSD PTR ").u(0, 1).text("ANYKVM").u(2, 1).u(0, 4).u(36, 4).u(xsdt, 8).u(0, 1).zeros(3);
  t.bytes[8] = checksum(std::span(t.bytes).first(20));
  t.bytes[32] = checksum(t.bytes);
  return t.bytes;
}

}  // namespace

std::vector<u8> build_acpi_tables(Gpa address, const std::vector<u32>& apic_ids) {
  constexpr size_t kRsdpSize = 36, kFacsAlignment = 64;
  std::vector<u8> block(kRsdpSize);
  auto place = [&](const std::vector<u8>& table) {
    block.resize((block.size() + kFacsAlignment - 1) / kFacsAlignment * kFacsAlignment);
    u64 at = address.value + block.size();
    block.insert(block.end(), table.begin(), table.end());
    return at;
  };
  u64 facs = place(build_facs());
  u64 dsdt = place(build_dsdt());
  u64 fadt = place(build_fadt(facs, dsdt));
  u64 madt = place(build_madt(apic_ids));
  u64 xsdt = place(build_xsdt({fadt, madt}));
  std::vector<u8> rsdp = build_rsdp(xsdt);
  std::copy(rsdp.begin(), rsdp.end(), block.begin());
  return block;
}

}  // namespace anykvm::vmm
