#include "core/stats.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>

namespace anykvm::core {
namespace {

constexpr std::size_t kNameSize = 48;
constexpr std::size_t kDescriptorSize = sizeof(kvm_stats_desc) + kNameSize;
constexpr std::size_t kDescriptorsOffset = sizeof(kvm_stats_header) + kNameSize;

constexpr const char* kVmNames[] = {
#define ANYKVM_STAT_Vm(name) #name,
#define ANYKVM_STAT_Vcpu(name)
#define ANYKVM_STAT(kind, name) ANYKVM_STAT_##kind(name)
#include "core/stats.def"
#undef ANYKVM_STAT_Vm
#undef ANYKVM_STAT_Vcpu
};
constexpr const char* kVcpuNames[] = {
#define ANYKVM_STAT_Vm(name)
#define ANYKVM_STAT_Vcpu(name) #name,
#include "core/stats.def"
#undef ANYKVM_STAT_Vm
#undef ANYKVM_STAT_Vcpu
#undef ANYKVM_STAT
};

std::vector<const char*> names(Stats::Kind kind) {
  if (kind == Stats::Kind::kVm) return {std::begin(kVmNames), std::end(kVmNames)};
  return {std::begin(kVcpuNames), std::end(kVcpuNames)};
}

void copy_name(u8* to, const std::string& name) {
  memcpy(to, name.data(), std::min(name.size(), kNameSize - 1));
}

// Header, id, descriptors; then the counts.
std::vector<u8> file_image(const std::string& id, const std::vector<const char*>& counts) {
  kvm_stats_header header{};
  header.name_size = kNameSize;
  header.num_desc = static_cast<u32>(counts.size());
  header.id_offset = sizeof header;
  header.desc_offset = kDescriptorsOffset;
  header.data_offset = static_cast<u32>(kDescriptorsOffset + counts.size() * kDescriptorSize);
  std::vector<u8> image(header.data_offset + counts.size() * sizeof(u64));
  memcpy(image.data(), &header, sizeof header);
  copy_name(image.data() + header.id_offset, id);
  for (std::size_t i = 0; i < counts.size(); ++i) {
    kvm_stats_desc descriptor{};
    descriptor.flags = KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10;
    descriptor.size = 1;
    descriptor.offset = static_cast<u32>(i * sizeof(u64));
    u8* at = image.data() + header.desc_offset + i * kDescriptorSize;
    memcpy(at, &descriptor, sizeof descriptor);
    copy_name(at + sizeof descriptor, counts[i]);
  }
  return image;
}

}  // namespace

Stats::Stats(Kind kind) : m_kind(kind), m_early(names(kind).size()), m_values(m_early.data()) {}

Stats::~Stats() {
  if (m_mapping) munmap(m_mapping, m_size);
}

Result<> Stats::make_file(const std::string& id) {
  const std::vector<u8> image = file_image(id, names(m_kind));
  Fd fd(memfd_create("anykvm-stats", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return Error{errno, "no memfd for statistics"};
  if (write(fd.get(), image.data(), image.size()) != static_cast<ssize_t>(image.size()))
    return Error{ENOMEM, "cannot fill the memfd"};
  // SAFETY: nobody can shrink the file under the mapping.
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return Error{errno, "cannot seal the memfd"};
  void* mapping = mmap(nullptr, image.size(), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (mapping == MAP_FAILED) return Error{ENOMEM, "cannot map the memfd"};
  m_file = std::move(fd);
  m_mapping = mapping;
  m_size = image.size();
  u64* values =
      reinterpret_cast<u64*>(static_cast<u8*>(mapping) + image.size() - m_early.size() * sizeof(u64));
  std::copy(m_early.begin(), m_early.end(), values);
  m_values = values;
  return {};
}

Result<Fd> Stats::descriptor(const std::string& id) {
  if (!m_file.valid()) TRY(make_file(id));
  Fd fd(open(fmt::format("/proc/self/fd/{}", m_file.get()).c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return Error{errno, "no descriptor for statistics"};
  return fd;
}

}  // namespace anykvm::core
